"""Which rows of a trace are computed for head types, and what for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.traces.tokens import EncodedTrace


@dataclass(frozen=True, eq=False)
class RowPlan:
    """Which rows are computed of a trace, and what for (1).

    Args:
        at: their positions, ascending.
        rows, classes: pairs of a row and what it is averaged for: a step, or behind them the last
            token of the end mark; ascending by row.
        sizes: rows of each class.
        answer: which are F.
        before: which stand before a token of F.
        spans: of the steps.
        behind: the first token behind the end mark.
        length: tokens of the trace.
    """

    at: Int[np.ndarray, "row"]
    rows: Int[np.ndarray, "pair"]
    classes: Int[np.ndarray, "pair"]
    sizes: Int[np.ndarray, "class"]
    answer: Int[np.ndarray, "answer"]
    before: Int[np.ndarray, "answer"]
    spans: Int[np.ndarray, "step 2"]
    behind: int
    length: int

    @classmethod
    def of(cls, trace: EncodedTrace, most: int | None) -> RowPlan:
        """The plan for a trace; of each step `most` rows, None: all of it.

        Every row from the answer's first on is taken; without a bound every one from the first
        step on.
        """
        own = [spread(int(first), int(last), most) for first, last in trace.spans]
        answer = np.flatnonzero(trace.answer)
        every = int(answer[0]) if len(answer) else len(trace)
        behind = every if trace.behind is None else trace.behind
        own.append(np.arange(max(behind - 1, 0), behind))
        if most is None:
            every = int(trace.spans[:, 0].min(initial=every))
        before = np.maximum(answer - 1, 0)
        at = np.unique(np.concatenate([*own, before, np.arange(every, len(trace))]))
        sizes = np.array(list(map(len, own)))
        rows = np.searchsorted(at, np.concatenate(own))
        order = np.argsort(rows, kind="stable")
        classes = np.repeat(np.arange(len(own)), sizes)[order]
        answered, written = (np.searchsorted(at, of) for of in (answer, before))
        own_rows = (rows[order], classes, sizes)
        return cls(at, *own_rows, answered, written, trace.spans, behind, len(trace))


def spread(first: int, last: int, most: int | None) -> Int[np.ndarray, "row"]:
    """At most so many positions of a span, evenly spread; the middle of each part.

    Example:
        >>> spread(10, 20, 2).tolist(), spread(10, 12, 4).tolist()
        ([12, 17], [10, 11])
    """
    size = last - first
    count = size if most is None else min(most, size)
    return first + (np.arange(count) * 2 + 1) * size // max(2 * count, 1)


def taken(probs: Float[Tensor, "kv row group key"], rows: Int[np.ndarray, "_"]) -> Tensor:
    """Some rows of a chunk; a view where they are a run."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
        return probs[:, int(rows[0]) : int(rows[-1]) + 1]
    return probs[:, torch.from_numpy(rows).to(probs.device)]


def within(rows: Int[np.ndarray, "_"], begin: int, end: int) -> slice:
    """Which of ascending rows are begin … end − 1."""
    first, last = np.searchsorted(rows, (begin, end))
    return slice(int(first), int(last))
