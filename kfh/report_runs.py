"""The sections of training runs, comparisons and evaluations in a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kfh.caveats import comparison_caveats, ends, evaluation_caveats, run_caveats
from kfh.report_parts import (
    NONE,
    Place,
    Section,
    TextTable,
    figure_text,
    header_facts,
    number,
    pictures,
    side_by_side,
)
from probing.errors import DataError
from probing.files import HEADER, read_object


def find_runs(folders: Sequence[Path]) -> list[Place]:
    """Training runs, those side by side together."""
    from rl.runs import is_run

    return side_by_side([f for f in folders if is_run(f)], folders)


def read_runs(place: Place) -> Section:
    """Training runs: settings, first and last batches, curves."""
    from rl.figures import all_figures
    from rl.runs import read_run

    section = Section("Training")
    runs = []
    for folder in place.parts:
        try:
            runs.append(read_run(folder))
        except DataError as error:
            section.damaged.append(str(error))
    for run in runs:
        info = run.info
        facts = header_facts(info.get(HEADER) or {})[:2]
        model = f"{info.get('model', NONE)}, {info.get('fingerprint', 'no fingerprint')}"
        heads = info.get("heads") or []
        section.facts += [
            (run.folder.name, "; ".join(text for _, text in facts if text)),
            (f"{run.folder.name}: model", model),
            (f"{run.folder.name}: heads", ", ".join(".".join(map(str, h)) for h in heads) or NONE),
        ]
    section.tables = [_runs_table(runs)] if runs else []
    section.caveats = run_caveats(runs)
    try:
        drawn = all_figures(runs)
    except DataError as error:  # two runs of one method and seed
        section.damaged.append(f"no curves: {error}")
        drawn = {}
    captions = {
        "training": "batches of training, step by step; bands over seeds where there are several",
        "stability": "the head set probed again while the policy is trained",
        "phrases": "transition phrases per 1,000 tokens",
    }
    section.pictures = pictures(captions, drawn)
    return section


def _runs_table(runs: Sequence[Any]) -> TextTable:
    columns = (
        "run",
        "method",
        "seed",
        "steps",
        "status",
        "accuracy",
        "tokens",
        "steps attenuated",
        "seconds",
    )
    rows = []
    for run in runs:
        cells = []
        for name, digits in (("accuracy", 3), ("tokens", 1), ("attenuated", 3)):
            first, last = ends(run, name)
            none = number(first) == NONE and number(last) == NONE
            cells.append(NONE if none else f"{number(first, digits)} → {number(last, digits)}")
        rows.append(
            (
                run.folder.name,
                run.method,
                str(run.seed),
                f"{len(run.metrics)} of {run.info.get('steps', NONE)}",
                run.status,
                *cells,
                number(run.seconds, 0),
            )
        )
    title = "Runs; means over the first and the last fifth of the steps, on training batches"
    return TextTable(title, columns, tuple(rows))


def find_comparisons(folders: Sequence[Path]) -> list[Place]:
    """Sequence[Path] with a comparison, or with results of several runs side by side."""
    from rl.runs import RESULT_FILE

    found = {
        p.folder: p
        for p in side_by_side([f for f in folders if (f / RESULT_FILE).is_file()], folders)
    }
    for folder in folders:
        if (folder / "comparison.json").is_file():
            parts = found[folder].parts if folder in found else ()
            found[folder] = Place(folder, parts)
    return list(found.values())


def read_comparison(place: Place) -> Section:
    """A comparison: the table of methods, differences with intervals, accuracy against length."""
    from rl.figures import tradeoff
    from rl.pocket.table import read_rows
    from rl.runs import read_evaluations

    section = Section("Comparison of methods")
    path = place.folder / "comparison.json"
    evaluations = []
    readable = []
    for folder in place.parts:
        try:
            evaluations += read_evaluations(folder)
            readable.append(folder)
        except DataError as error:
            section.damaged.append(str(error))
    if path.is_file():
        content = read_object(path)
        section.facts = header_facts(content[HEADER])
        rows, differences, notes = content["rows"], content["differences"], content["notes"]
    elif readable:
        found = read_rows(readable)
        rows, differences = ([asdict(item) for item in part] for part in found)
        notes = []
    else:
        return section
    section.facts += [("note", note) for note in notes]
    section.tables = [_methods_table(rows)]
    if differences:
        section.tables.append(_differences_table(differences))
    section.caveats = comparison_caveats(rows, differences)
    if evaluations:
        captions = {"tradeoff": "accuracy against tokens; arrows from the policy before training"}
        section.pictures = pictures(captions, {"tradeoff": tradeoff(evaluations)})
    return section


def _methods_table(rows: Sequence[dict[str, Any]]) -> TextTable:
    from rl.pocket.table import COLUMNS

    columns = (
        "method",
        "seeds",
        *(f"{value.replace('_', ' ')}, {decoding}" for decoding, value, _ in COLUMNS),
    )
    cells = tuple(
        (
            row["method"],
            NONE if row["method"] == "initial" else str(len(row["seeds"])),
            *(figure_text(row["figures"].get(f"{d}.{v}"), digits) for d, v, digits in COLUMNS),
        )
        for row in rows
    )
    problems = sorted({figure["n"] for row in rows for figure in row["figures"].values()})
    title = (
        f"Methods on {', '.join(map(str, problems))} held-out problems; in brackets 95 % over "
        "seeds and problems"
    )
    return TextTable(title, columns, cells)


def _differences_table(differences: Sequence[dict[str, Any]]) -> TextTable:
    rows = []
    for item in differences:
        points = {
            k: None if item["accuracy"][k] is None else 100 * item["accuracy"][k]
            for k in ("value", "low", "high")
        }
        goal = NONE if item.get("goal") is None else number(item["goal"], 0)
        rows.append(
            (
                f"{item['method']} against {item['against']}",
                str(len(item["seeds"])),
                item["decoding"],
                figure_text(item["redundant"], 1),
                goal,
                figure_text(points, 1),
            )
        )
    columns = (
        "pair",
        "seeds",
        "decoding",
        "redundant tokens, %",
        "the paper's, %",
        "accuracy, points",
    )
    return TextTable("Differences, paired over seeds and problems", columns, tuple(rows))


def find_evaluations(folders: Sequence[Path]) -> list[Place]:
    """Evaluations, those side by side together."""
    from rl.runs import EVAL_FILE

    return side_by_side([f for f in folders if (f / EVAL_FILE).is_file()], folders)


def read_evaluation(place: Place) -> Section:
    """Evaluations: settings, the figures of each benchmark, accuracy against length."""
    from rl.figures import tradeoff
    from rl.runs import EVAL_FILE, read_points

    section = Section("Evaluation")
    points = []
    for folder in place.parts:
        try:
            content = read_object(folder / EVAL_FILE)
            points += read_points(folder)
            facts, table, caveats = _evaluated(folder, content)
        except (DataError, KeyError, TypeError, AttributeError) as error:
            text = (
                str(error)
                if isinstance(error, DataError)
                else (f"{folder / EVAL_FILE}: no evaluation of `kfh eval` ({error!r})")
            )
            section.damaged.append(text)
            continue
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
    from rl.report import Base

    if not settings.get("base"):
        return {}, []
    try:
        return Base.load(Path(settings["base"])).benchmarks, []
    except DataError as error:
        return {}, [f"The base cannot be read any more, so accuracies are not compared: {error}"]
