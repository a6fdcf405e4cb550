"""Pick the heads: top N by a metric, or greedy forward selection of the ensemble."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from probing.attention.scores import Scores
from probing.intervals import mean_over_traces
from probing.ranking.metrics import RankedTrace, metric_table
from probing.settings import check_metric

CURVE = 10  # ensembles of 1 … 10 heads, as in the paper's figure


def ensemble(trace: RankedTrace, heads: Sequence[int]) -> Scores:
    """Mean score of the heads, as of one head (AttnPO section 4: S_k over the head set)."""
    return trace.scores[list(heads)].mean(axis=0, keepdims=True)


def ensemble_values(
    traces: Sequence[RankedTrace], heads: Sequence[int], metric: str
) -> Float[np.ndarray, "trace"]:
    """The ensemble's metric on each trace."""
    table = metric_table(traces, [ensemble(trace, heads) for trace in traces])
    return table[metric][0]


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
        traces: the selection half.
        metric: of METRICS.
        count: heads to choose, at most as many as there are.
        advance: called after each head, for a progress bar.
    """
    check_metric(metric)
    chosen: list[int] = []
    for _ in range(count):
        mixed = []
        for trace in traces:
            so_far = trace.scores[chosen].sum(axis=0, keepdims=True)
            mixed.append((so_far + trace.scores) / (len(chosen) + 1))
        figures = mean_over_traces(metric_table(traces, mixed)[metric])
        figures[chosen] = -np.inf
        chosen.append(int(np.nan_to_num(figures, nan=-1.0).argmax()))
        advance()
    return chosen


def split_halves(traces: Sequence[RankedTrace]) -> tuple[list[int], list[int]]:
    """Places of the traces to select heads on, and of those to report on; see `halves`."""
    return halves([trace.id for trace in traces], [trace.group for trace in traces])


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
