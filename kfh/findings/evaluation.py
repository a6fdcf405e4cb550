"""An evaluation: its tables, figures and caveats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kfh.findings.base import (
    NONE,
    Place,
    Section,
    TextTable,
    evaluation_caveats,
    figure_text,
    header_facts,
    number,
    pictures,
    side_by_side,
)
from kfh.findings.summary import evaluation_summary
from probing.errors import DataError
from probing.files.headers import HEADER, read_object


def find_evaluations(folders: Sequence[Path]) -> list[Place]:
    """Evaluations, those side by side together."""
    from rl.runs.folders import EVAL_FILE

    return side_by_side([f for f in folders if (f / EVAL_FILE).is_file()], folders)


def read_evaluation(place: Place) -> Section:
    """Evaluations: settings, the figures of each benchmark, accuracy against length."""
    from rl.runs.figures import tradeoff
    from rl.runs.folders import EVAL_FILE, read_points

    section = Section("Evaluation")
    points = []
    for folder in place.parts:
        try:
            content = read_object(folder / EVAL_FILE)
            points += read_points(folder)
            facts, table, caveats = _evaluated(folder, content)
            summary = evaluation_summary(folder.name, content, _base_of(content["settings"])[0])
        except (DataError, KeyError, TypeError, AttributeError) as error:
            text = (
                str(error)
                if isinstance(error, DataError)
                else (f"{folder / EVAL_FILE}: no evaluation of `kfh eval` ({error!r})")
            )
            section.damaged.append(text)
            continue
        section.summary += summary
        section.facts += facts
        section.tables.append(table)
        section.caveats += caveats
    if len({point.name for point in points}) > 1:
        captions = {"benchmarks": "accuracy against tokens, by benchmark"}
        section.pictures = pictures(captions, {"benchmarks": tradeoff((), points)})
    return section


def _evaluated(
    folder: Path, content: dict[str, Any]
) -> tuple[list[tuple[str, str]], TextTable, list[str]]:
    """Facts, table and caveats of one evaluation."""
    settings, name = content["settings"], folder.name
    sampling = (
        "greedy"
        if settings["temperature"] == 0
        else f"temperature {settings['temperature']}, top-p {settings['top_p']}"
    )
    facts = [
        (name, "; ".join(text for _, text in header_facts(content[HEADER]))),
        (f"{name}: model", str(settings["model"])),
        (
            f"{name}: sampling",
            f"{sampling}, at most {settings['max_tokens']} tokens, seed {settings['seed']}",
        ),
    ]
    base, caveats = _base_of(settings)
    caveats += [f"The base was evaluated otherwise: {text}." for text in content["base_differs"]]
    rows = []
    for benchmark, found in content["benchmarks"].items():
        caveats += evaluation_caveats(benchmark, found, settings, base.get(benchmark))
        pocket = found.get("pocket") or {}
        rows.append(
            (
                benchmark,
                f"{found['accuracy']['n']} × {found['samples']}",
                figure_text(found["accuracy"]),
                figure_text(found["tokens"], 1),
                figure_text(found["truncated"]),
                "; ".join(f"≤ {k}: {figure_text(v)}" for k, v in found["budgets"].items()) or NONE,
                "; ".join(f"{k}: {figure_text(v)}" for k, v in found["pass_at"].items()) or NONE,
                figure_text(pocket.get("redundant_steps"), 2),
                figure_text(pocket.get("redundant_tokens"), 1),
                number(found.get("aes")),
            )
        )
    columns = (
        "benchmark",
        "questions × samples",
        "accuracy",
        "tokens",
        "cut off",
        "accuracy within a budget",
        "pass@k",
        "redundant steps",
        "redundant tokens",
        "AES",
    )
    title = f"{name}; in brackets 95 % over questions"
    return facts, TextTable(title, columns, tuple(rows)), caveats


def _base_of(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The figures of the base, and what is to say where they cannot be read any more."""
    from rl.evaluation.summary import Base

    if not settings.get("base"):
        return {}, []
    try:
        return Base.load(Path(settings["base"])).benchmarks, []
    except DataError as error:
        return {}, [f"The base cannot be read any more, so accuracies are not compared: {error}"]
