"""Training runs and their comparison: tables, figures and caveats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kfh.findings.base import (
    FEW_SEEDS,
    Place,
    Row,
    Section,
    ends,
    header_facts,
    heads_text,
    pictures,
    side_by_side,
)
from kfh.findings.standings import standings_caveats, standings_summary, standings_tables
from kfh.findings.summary import runs_summary
from kfh.tables import Cell, Table, markdown
from probing.errors import DataError
from probing.files.headers import (
    HEADER,
    file_header,
    json_value,
    kind_of,
    read_object,
    whole_file,
    write_json,
)
from probing.numbers import NONE, Number, exists, number
from rl.runs.comparison import COLUMNS, DECODINGS, read_rows
from rl.runs.folders import INITIAL, RESULT_FILE, Run
from rl.runs.frontier import Contender
from rl.runs.standings import read_contenders, stand

COMPARISON = "comparison.json"
REDUNDANT = "redundant tokens"
BEYOND = "; redundant tokens: beyond the shortest correct response"
DIGITS = 6  # significant ones of its figures


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
        chosen = info.get("heads_chosen_on")
        section.facts += [
            (run.folder.name, "; ".join(text for _, text in facts if text)),
            (f"{run.folder.name}: model", model),
            (f"{run.folder.name}: heads", heads_text(info.get("heads") or [])),
            *([(f"{run.folder.name}: heads chosen on", chosen)] if chosen else []),
        ]
    section.tables = [runs_table(runs)] if runs else []
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


def runs_table(runs: Sequence[Run]) -> Table:
    """A row a run: steps done, and what its batches went from and to."""
    measures = {"accuracy": 3, "tokens": 1, "attenuated": 3}
    rows = [
        (
            run.folder.name,
            run.method,
            str(run.seed),
            f"{len(run.metrics)} of {run.info.get('steps', NONE)}",
            run.status,
            *(_from_to(run, name, digits) for name, digits in measures.items()),
            number(run.seconds, 0),
        )
        for run in runs
    ]
    columns = ("run", "method", "seed", "steps", "status", "accuracy", "tokens")
    title = "Runs; means over the first and the last fifth of the steps, on training batches"
    return Table(title, (*columns, "steps attenuated", "seconds"), rows)


def _from_to(run: Run, column: str, digits: int) -> str:
    first, last = ends(run, column)
    if not exists(first) and not exists(last):
        return NONE
    return f"{number(first, digits)} → {number(last, digits)}"


def run_caveats(runs: Sequence[Run]) -> list[str]:
    """What to hold against training runs, seen by their own batches."""
    caveats = []
    seeds: dict[str, int] = {}
    for run in runs:
        seeds[run.method] = seeds.get(run.method, 0) + 1
        if run.status != "done":
            steps = f"{len(run.metrics)} of {run.info.get('steps')} steps"
            caveats.append(f"{run.folder.name} is not finished: {run.status}, {steps}.")
        caveats += [f"{run.folder.name}: {text}" for text in run.info.get("caveats", ())]
        if run.torn:
            caveats.append(f"{run.folder.name}: {run.torn} cut last line(s) were left out.")
        first, last = ends(run, "accuracy")
        if last < first:
            caveats.append(
                f"{run.folder.name}: the accuracy of its batches went from {number(first)} to "
                f"{number(last)}. Batches hold other problems each time: measure on held-out ones."
            )
    few = [f"{method} {n}" for method, n in seeds.items() if n < FEW_SEEDS]
    if few:
        caveats.append(f"Few seeds ({', '.join(few)}): another seed may go another way.")
    return caveats


def comparisons(parts: Sequence[Path], folders: Sequence[Path]) -> list[Place]:
    """Folders with a comparison, or with results of several runs side by side."""
    results = [folder for folder in folders if "comparison result" in kind_of(folder)]
    places = {place.folder: place for place in side_by_side(results, folders)}
    for part in parts:
        places.setdefault(part, Place(part, ()))
    return list(places.values())


def read_comparison(place: Place) -> Section:
    """A comparison: where methods stand, their tables, accuracy against length."""
    from rl.runs.course_figures import courses, gains
    from rl.runs.figures import tradeoff
    from rl.runs.folders import CURVE_FILE, read_course, read_evaluations

    section = Section("Comparison of methods")
    path = place.folder / COMPARISON
    evaluations = []
    readable = []
    for folder in place.parts:
        try:
            found = read_evaluations(folder)
            if (folder / CURVE_FILE).exists():
                read_course(folder)
        except DataError as error:
            section.damaged.append(str(error))
        else:
            evaluations += found
            readable.append(folder)
    try:
        contenders = read_contenders(readable)
    except DataError as error:  # runs of other settings, or none of the policy before training
        section.damaged.append(str(error))
        contenders = []
    if path.is_file():
        content = read_object(path)
        section.facts = header_facts(content[HEADER])
    elif readable:
        content = comparison_json(readable, contenders, [])
    else:
        return section
    if content.get("standings"):
        section.summary = standings_summary(content["standings"])
    section.facts += [("note", note) for note in content["notes"]]
    section.tables = comparison_tables(content)
    section.caveats = comparison_caveats(content)
    if evaluations:
        captions = {
            "gains": "each pair: how much sooner the first is, and its accuracy at equal length",
            "tradeoff": "accuracy against tokens; arrows from the policy before training",
            "courses": "accuracy and length at each checkpoint, and the plane of both",
        }
        counted, trial = content.get("length", REDUNDANT), content.get("standings")
        drawn = {
            "gains": gains(trial["pairs"], counted) if trial else None,
            "tradeoff": tradeoff(evaluations),
            "courses": courses(contenders, counted),
        }
        section.pictures = pictures(captions, drawn)
    return section


def comparison_json(
    folders: Sequence[Path], contenders: Sequence[Contender], notes: Sequence[str]
) -> dict[str, Any]:
    """What comparison.json holds of these folders with a result, without its header."""
    rows = read_rows(folders)
    results = [read_object(folder / RESULT_FILE) for folder in folders]
    floors = any(any(result.get("shortest_each", [1])) for result in results)
    return {
        "length": REDUNDANT if floors else "tokens",  # what it is that `redundant` counts
        "rows": [json_value(asdict(row), DIGITS) for row in rows],
        "standings": json_value(asdict(stand(contenders)), DIGITS) if contenders else None,
        "notes": list(notes),
    }


def comparison_tables(content: Row) -> list[Table]:
    """Where methods stand, and a table of them for each way of decoding.

    Args:
        content: of comparison.json.
    """
    rows = content["rows"]
    problems = sorted({figure["n"] for row in rows for figure in row["figures"].values()})
    where = f"{', '.join(map(str, problems))} held-out problems"
    tables = [
        _methods_table(rows, decoding, where, content.get("length", REDUNDANT))
        for decoding in DECODINGS
    ]
    if content.get("standings"):
        tables = [*standings_tables(content["standings"]), *tables]
    if content.get("length", REDUNDANT) == REDUNDANT:
        return tables
    return [_of_all_tokens(table) for table in tables]


def _of_all_tokens(table: Table) -> Table:
    """The table of a task that knows no shortest response: what counts as redundant is all."""

    def said(text: str) -> str:
        return text.replace(REDUNDANT, "tokens").replace("redundant", "tokens")

    title = said(table.title.replace(BEYOND, ""))
    return replace(table, title=title, columns=tuple(map(said, table.columns)))


def _methods_table(rows: Sequence[Row], decoding: str, where: str, length: str) -> Table:
    same = None if length == REDUNDANT else "redundant_tokens"  # as tokens, which stand there
    columns = [(v, digits) for name, v, digits in COLUMNS if name == decoding and v != same]
    first = decoding == DECODINGS[0]  # the seconds of training stand beside one of the two
    cells: list[list[Cell]] = [
        [
            row["method"],
            NONE if row["method"] == INITIAL else str(len(row["seeds"])),
            *(
                Number.of(row["figures"].get(f"{decoding}.{value}"), digits)
                for value, digits in columns
            ),
            *([Number.of(row["seconds"], 0)] if first else []),
        ]
        for row in rows
    ]
    names = (value.replace("_", " ") for value, _ in columns)
    title = f"Methods, {decoding}, on {where}; in brackets 95 % over seeds and problems"
    if first:
        title += " (seconds: over seeds; least and greatest where there are fewer than 3)"
    return Table(title, ("method", "seeds", *names, *(["seconds"] if first else [])), cells)


def comparison_caveats(content: Row) -> list[str]:
    """What to hold against a comparison: of its trial, and few seeds.

    Args:
        content: of comparison.json.
    """
    caveats = standings_caveats(content["standings"]) if content.get("standings") else []
    length = content.get("length", REDUNDANT)
    if length != REDUNDANT:
        caveats.append("The task knows no shortest correct response: tokens are all of a response.")
    trained = {
        row["method"]: len(row["seeds"]) for row in content["rows"] if row["method"] != INITIAL
    }
    few = [f"{method} {seeds}" for method, seeds in trained.items() if seeds < FEW_SEEDS]
    if few:
        caveats.append(f"Few seeds ({', '.join(few)}): a first look.")
    lone = [method for method, seeds in trained.items() if seeds == 1]
    if lone:
        caveats.append(f"Of one seed, over problems alone: {', '.join(lone)}.")
    bad = [f"{row['method']} {row['unreadable']}" for row in content["rows"] if row["unreadable"]]
    if bad:
        caveats.append(
            f"Responses that could not be read, left out of redundant steps: {', '.join(bad)}."
        )
    return caveats


def write_comparison(out: Path, folders: Sequence[Path], notes: Sequence[str]) -> dict[str, Any]:
    """Write `comparison.json`, `table.md` with its tables and caveats, and two figures.

    Args:
        out: the folder to write to.
        folders: those with a result.

    Returns:
        The content of comparison.json.
    """
    from probing.figures.style import save_figure
    from rl.runs.course_figures import courses, gains

    contenders = read_contenders(folders)
    content = comparison_json(folders, contenders, notes)
    write_json(out / COMPARISON, {HEADER: file_header("comparison"), **content})
    said = standings_summary(content["standings"]) if content["standings"] else []
    lines = [*said, *notes, *(f"- {caveat}" for caveat in comparison_caveats(content))]
    text = "\n\n".join([*map(markdown, comparison_tables(content)), "\n".join(lines)])
    with whole_file(out / "table.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    pairs = content["standings"]["pairs"] if content["standings"] else []
    drawn = {"courses": courses(contenders, content["length"])}
    drawn["gains"] = gains(pairs, content["length"])
    for name, figure in drawn.items():
        if figure is not None:
            save_figure(figure, out / f"{name}.png")
    return content
