"""The table of the comparison: figures of each method over seeds and problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probing.errors import DataError
from probing.files.headers import read_object
from probing.intervals import Estimate
from rl.runs.folders import RESULT_FILE, Evaluation, labelled, read_evaluations, table
from rl.runs.intervals import hierarchical_bootstrap, over_seeds, share, within

if TYPE_CHECKING:
    from numpy.typing import NDArray


DECODINGS = ("greedy", "sampled")
VALUES = ("accuracy", "tokens", "redundant_tokens", "redundant_steps")
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
    figures: dict[str, Estimate]
    seconds: Estimate
    unreadable: int


def read_rows(folders: Sequence[Path]) -> list[Row]:
    """Rows by method in the order of the folders.

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
    return [_row(method, evaluations, results) for method in methods]


def _same(first: dict[str, Any], other: dict[str, Any], key: str, one: Path, two: Path) -> None:
    if first.get(key) != other.get(key):
        raise DataError(
            f"{one / RESULT_FILE} and {two / RESULT_FILE} differ in `{key}` "
            f"({first.get(key)}, {other.get(key)}): they cannot stand in one table"
        )


def _row(
    method: str, evaluations: Sequence[Evaluation], results: Sequence[Mapping[str, Any]]
) -> Row:
    mine = [result for result in results if labelled(result) == method]
    figures = {}
    for decoding in DECODINGS:
        for value in VALUES:
            each = table(evaluations, method, decoding, value)
            if each.size and np.isfinite(each).any():
                figures[f"{decoding}.{value}"] = _over(value, each)
    seconds = [result.get("seconds") for result in mine]
    return Row(
        method,
        tuple(sorted(int(result["seed"]) for result in mine)),
        figures,
        within(
            over_seeds(np.array([np.nan if s is None else s for s in seconds], dtype=float)), np.inf
        ),
        sum(int(result[d].get("unreadable", 0)) for result in mine for d in DECODINGS),
    )


def _over(value: str, each: NDArray[np.float64]) -> Estimate:
    """A figure over seeds and problems; redundant tokens alone may be below 0."""
    if value == "accuracy":
        return share(each)
    figure = hierarchical_bootstrap(lambda mean: mean, each)
    return figure if value == "redundant_tokens" else within(figure, np.inf)
