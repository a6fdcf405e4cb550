"""The sections of training runs, comparisons and evaluations in a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kfh.findings.base import (
    NONE,
    Place,
    Section,
    TextTable,
    comparison_caveats,
    ends,
    figure_text,
    header_facts,
    number,
    pictures,
    run_caveats,
    side_by_side,
)
from kfh.findings.summary import comparison_summary, runs_summary
from probing.errors import DataError
from probing.files.headers import HEADER, file_header, read_object, whole_file, write_json
from probing.intervals import Estimate
from rl.runs.comparison import COLUMNS, Difference, Row


def find_runs(folders: Sequence[Path]) -> list[Place]:
    """Training runs, those side by side together."""
    from rl.runs.folders import is_run

    return side_by_side([f for f in folders if is_run(f)], folders)


def read_runs(place: Place) -> Section:
    """Training runs: settings, first and last batches, curves."""
    from rl.runs.figures import all_figures
    from rl.runs.folders import read_run

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
    section.summary = runs_summary(runs)
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
    from rl.runs.folders import RESULT_FILE

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
    from rl.runs.comparison import read_rows
    from rl.runs.figures import tradeoff
    from rl.runs.folders import read_evaluations

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
    section.summary = comparison_summary(differences)
    section.caveats = comparison_caveats(rows, differences)
    if evaluations:
        captions = {"tradeoff": "accuracy against tokens; arrows from the policy before training"}
        section.pictures = pictures(captions, {"tradeoff": tradeoff(evaluations)})
    return section


def _methods_table(rows: Sequence[dict[str, Any]]) -> TextTable:
    from rl.runs.comparison import COLUMNS

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


def markdown(rows: Sequence[Row], differences: Sequence[Difference], notes: Sequence[str]) -> str:
    """The table with 95 % intervals, the differences, and what is missing."""
    heads = [f"{value.replace('_', ' ')}, {decoding}" for decoding, value, _ in COLUMNS]
    lines = ["| method | seeds | " + " | ".join(heads) + " | seconds |"]
    lines.append("|---" * (len(heads) + 3) + "|")
    for row in rows:
        cells = [_cell(row.figures.get(f"{d}.{v}"), digits) for d, v, digits in COLUMNS]
        count = str(len(row.seeds)) if row.method != "initial" else "–"
        lines.append(f"| {row.method} | {count} | {' | '.join(cells)} | {_cell(row.seconds, 0)} |")
    problems = {figure.n for row in rows for figure in row.figures.values()}
    lines += [
        "",
        f"{_listed(problems)} held-out problems. In brackets: 95 % over seeds and problems "
        "(seconds: over seeds; least and greatest where there are fewer than 3). Redundant tokens: "
        "beyond the shortest correct response.",
    ]
    lone = [row.method for row in rows if len(row.seeds) == 1 and row.method != "initial"]
    if lone:
        lines.append(f"Of one seed, over problems alone: {', '.join(lone)}.")
    bad = [f"{row.method} {row.unreadable}" for row in rows if row.unreadable]
    if bad:
        lines.append(f"Unreadable responses, left out of redundant steps: {', '.join(bad)}.")
    if differences:
        lines += ["", "| against | seeds | decoding | redundant tokens, % | accuracy, points |"]
        lines.append("|---|---|---|---|---|")
        lines += [_difference_line(item) for item in differences]
    return "\n".join([*lines, *[f"\n{note}" for note in notes]]) + "\n"


def _difference_line(item: Difference) -> str:
    gained = item.accuracy
    points = Estimate(100 * gained.value, 100 * gained.low, 100 * gained.high, gained.n)
    goal = f", goal {item.goal:+.0f}" if item.goal is not None else ""
    return (
        f"| {item.method} against {item.against} | {len(item.seeds)} | {item.decoding} "
        f"| {_cell(item.redundant, 1, '+')}{goal} | {_cell(points, 1, '+')} |"
    )


def _cell(figure: Estimate | None, digits: int, sign: str = "") -> str:
    if figure is None or not np.isfinite(figure.value):
        return "–"
    value, low, high = (f"{x:{sign}.{digits}f}" for x in (figure.value, figure.low, figure.high))
    return f"{value} [{low}, {high}]"


def _listed(numbers: set[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers))


def write_table(
    out: Path, rows: Sequence[Row], differences: Sequence[Difference], notes: Sequence[str]
) -> str:
    """Write `table.md` and `comparison.json` into `out`; returns the text."""
    text = markdown(rows, differences, notes)
    with whole_file(out / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    content = {
        HEADER: file_header("comparison"),
        "rows": [_plain(asdict(row)) for row in rows],
        "differences": [_plain(asdict(item)) for item in differences],
        "notes": list(notes),
    }
    write_json(out / "comparison.json", content)
    return text


def _plain(value: Any) -> Any:
    """JSON knows no `not a number`: null stands for it. Six digits are enough."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
