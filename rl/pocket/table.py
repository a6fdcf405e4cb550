"""The table of the comparison: figures of each method, differences between methods, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probing.errors import DataError
from probing.files import HEADER, file_header, read_object, whole_file, write_json
from rl.intervals import hierarchical_bootstrap, over_seeds, share
from rl.pocket.measure import Figure
from rl.runs import RESULT_FILE, Evaluation, read_evaluations, table

if TYPE_CHECKING:
    from numpy.typing import NDArray

DECODINGS = ("greedy", "sampled")
VALUES = ("accuracy", "tokens", "redundant_tokens", "redundant_steps")
# Pairs whose difference is reported, and the paper's change of length where it gives one.
PAIRS = {
    ("attnpo", "tlmre"): -23.0,
    ("attnpo", "grpo"): None,
    ("attnpo", "random-heads"): None,
    ("attnpo", "recency"): None,
    ("attnpo", "oracle"): None,
}
# Columns of the printed table: decoding, value, decimals.
COLUMNS = (
    ("greedy", "accuracy", 3),
    ("sampled", "accuracy", 3),
    ("greedy", "tokens", 1),
    ("sampled", "tokens", 1),
    ("greedy", "redundant_tokens", 1),
    ("sampled", "redundant_tokens", 1),
    ("sampled", "redundant_steps", 2),
)


@dataclass(frozen=True)
class Row:
    """One method: its seeds, its figures by `decoding.value`, and seconds of training."""

    method: str
    seeds: tuple[int, ...]
    figures: dict[str, Figure]
    seconds: Figure
    unreadable: int


@dataclass(frozen=True)
class Difference:
    """One method against another, paired over the seeds that both have and over problems.

    `redundant` is the change of redundant tokens in per cent, `accuracy` the difference of
    accuracies (as a share).
    """

    method: str
    against: str
    decoding: str
    seeds: tuple[int, ...]
    redundant: Figure
    accuracy: Figure
    goal: float | None


def change(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Change in per cent. Example: 77 against 100: -23."""
    return 100.0 * (ours / theirs - 1.0)


def gap(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Difference. Example: 0.90 against 0.91: -0.01."""
    return ours - theirs


def read_rows(folders: Sequence[Path]) -> tuple[list[Row], list[Difference]]:
    """Rows by method in the order of the folders, and the differences of `PAIRS` there are.

    Raises:
        DataError: a damaged result, or results of different problems or numbers of steps.
    """
    evaluations: list[Evaluation] = []
    results: list[dict[str, Any]] = []
    for folder in folders:
        evaluations += read_evaluations(folder)
        results.append(read_object(folder / RESULT_FILE))
        _same(results[0], results[-1], "problems", folders[0], folder)
    methods = list(dict.fromkeys(e.method for e in evaluations))
    rows = [_row(method, evaluations, results) for method in methods]
    differences = [
        found
        for (method, against), goal in PAIRS.items()
        for decoding in DECODINGS
        if (found := difference(evaluations, method, against, decoding, goal)) is not None
    ]
    return rows, differences


def _same(first: dict[str, Any], other: dict[str, Any], key: str, one: Path, two: Path) -> None:
    if first.get(key) != other.get(key):
        raise DataError(
            f"{one / RESULT_FILE} and {two / RESULT_FILE} differ in `{key}` "
            f"({first.get(key)}, {other.get(key)}): they cannot stand in one table"
        )


def _row(
    method: str, evaluations: Sequence[Evaluation], results: Sequence[Mapping[str, Any]]
) -> Row:
    mine = [result for result in results if result["method"] == method]
    figures = {}
    for decoding in DECODINGS:
        for value in VALUES:
            each = table(evaluations, method, decoding, value)
            if each.size and np.isfinite(each).any():
                figure = hierarchical_bootstrap(_itself, each)
                figures[f"{decoding}.{value}"] = share(figure) if value == "accuracy" else figure
    seconds = [result.get("seconds") for result in mine]
    return Row(
        method,
        tuple(sorted(int(result["seed"]) for result in mine)),
        figures,
        over_seeds(np.array([np.nan if s is None else s for s in seconds], dtype=float)),
        sum(int(result[d].get("unreadable", 0)) for result in mine for d in DECODINGS),
    )


def _itself(mean: NDArray[np.float64]) -> NDArray[np.float64]:
    return mean


def difference(
    evaluations: Sequence[Evaluation],
    method: str,
    against: str,
    decoding: str,
    goal: float | None = None,
) -> Difference | None:
    """One method against another; None where they have no seed in common."""
    seeds = {
        name: {e.seed for e in evaluations if (e.method, e.decoding) == (name, decoding)}
        for name in (method, against)
    }
    common = seeds[method] & seeds[against]
    if not common:
        return None
    paired = [e for e in evaluations if e.seed in common]

    def tables(value: str) -> list[NDArray[np.float64]]:
        return [table(paired, name, decoding, value) for name in (method, against)]

    return Difference(
        method,
        against,
        decoding,
        tuple(sorted(common)),
        hierarchical_bootstrap(change, *tables("redundant_tokens")),
        hierarchical_bootstrap(gap, *tables("accuracy")),
        goal,
    )


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
    points = Figure(100 * gained.value, 100 * gained.low, 100 * gained.high, gained.n)
    goal = f", goal {item.goal:+.0f}" if item.goal is not None else ""
    return (
        f"| {item.method} against {item.against} | {len(item.seeds)} | {item.decoding} "
        f"| {_cell(item.redundant, 1, '+')}{goal} | {_cell(points, 1, '+')} |"
    )


def _cell(figure: Figure | None, digits: int, sign: str = "") -> str:
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
