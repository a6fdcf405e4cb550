"""Pick the heads: top N by a metric, or greedy forward selection of the ensemble."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from probing.attention.scores import Scores
from probing.intervals import mean_over_traces
from probing.ranking.metrics import RankedTrace
from probing.settings import check_metric

CURVE = 10  # ensembles of 1 … 10 heads, as in the paper's figure


def ensembles(trace: RankedTrace, order: Sequence[int]) -> Float[np.ndarray, "size step"]:
    """Mean scores of the first 1, 2, … heads of an order (AttnPO section 4: S_k over the set)."""
    sums = np.cumsum(trace.scores[list(order)], axis=0)
    means: Scores = sums / np.arange(1, len(sums) + 1, dtype=sums.dtype)[:, None]
    return means


def select_top(figures: Float[np.ndarray, "head"], count: int) -> list[int]:
    """The `count` best heads, best first; of equal ones the earlier."""
    order = np.argsort(-np.nan_to_num(figures, nan=-1.0), kind="stable")
    return [int(head) for head in order[:count]]


def select_greedy(
    traces: Sequence[RankedTrace],
    metric: str,
    count: int,
    advance: Callable[[], None] = lambda: None,
) -> list[int]:
    """Add, `count` times, the head whose mean with those chosen has the best figure.

    Args:
        traces: the selection half, gone through `count` times.
        metric: of METRICS.
        count: heads to choose, at most as many as there are.
        advance: called after each head, for a progress bar.
    """
    check_metric(metric)
    chosen: list[int] = []
    sums: list[Any] = [0.0] * len(traces)  # of the scores of those chosen, (step,) a trace
    for _ in range(count):
        values = []
        for number, trace in enumerate(traces):
            if chosen:
                sums[number] = sums[number] + trace.scores[chosen[-1]]
            mixed = (sums[number] + trace.scores) / (len(chosen) + 1)
            values.append(trace.measure(mixed)[metric])
        figures = mean_over_traces(np.stack(values, axis=1))
        figures[chosen] = -np.inf
        chosen.append(int(np.nan_to_num(figures, nan=-1.0).argmax()))
        advance()
    return chosen


def halves(ids: Sequence[str], groups: Sequence[str]) -> tuple[list[int], list[int]]:
    """Two halves of the places of these traces, no group (problem) in both.

    Whole groups (traces of one problem) are put in the order of the SHA-256 of their smallest
    trace id and dealt to the smaller half: it depends on the ids alone, not on order or seed.
    """
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)

    def key(places: list[int]) -> str:
        return hashlib.sha256(min(ids[p] for p in places).encode()).hexdigest()

    dealt: tuple[list[int], list[int]] = ([], [])
    for places in sorted(members.values(), key=key):
        smaller = 0 if len(dealt[0]) <= len(dealt[1]) else 1
        dealt[smaller].extend(places)
    return sorted(dealt[0]), sorted(dealt[1])
