"""Pick the heads: top N by a metric, or greedy forward selection of the ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from probing.errors import ConfigError
from probing.ranking import METRICS, RankedTrace, Scores, metric_table
from probing.stats import mean_over_traces

SELECTIONS = ("top", "greedy")
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
            held = trace.scores[chosen].sum(axis=0, keepdims=True)
            mixed.append((held + trace.scores) / (len(chosen) + 1))
        figures = mean_over_traces(metric_table(traces, mixed)[metric])
        figures[chosen] = -np.inf
        chosen.append(int(np.nan_to_num(figures, nan=-1.0).argmax()))
        advance()
    return chosen


def check_metric(metric: str) -> None:
    """Raise ConfigError for a metric that does not exist."""
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}; choose {', '.join(METRICS)}")
