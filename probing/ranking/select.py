"""Pick the heads: top N by a metric, or greedily; and what is to be said against those picked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from probing.attention.scores import Scores
from probing.choices import OVERLAP
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


def best_control(controls: pd.DataFrame, metric: str) -> tuple[str, float] | None:
    """Name and figure of the control with the highest figure, if any has one.

    The mean of all heads is left out: it is made of what is probed.
    """
    figures = controls[controls["control"] != "all heads"].set_index("control")[metric].dropna()
    return None if figures.empty else (str(figures.idxmax()), float(figures.max()))


def beaten(control: float, low: float | None) -> bool:
    """Whether a control lies below a whole interval; where there is no interval it does not."""
    return low is not None and control < low  # false for what is not a number, too


def set_caveats(
    controls: pd.DataFrame,
    table: pd.DataFrame,
    points: Sequence[Mapping[str, Any]],
    answer: str = "all",
) -> list[str]:
    """In sentences, where the set does not beat the best control, or does not gate.

    Args:
        controls: of `Ranking`; the figures on the held-out half count where they are there.
        table: of `Ranking`.
        points: of the set, in `Ranking.curves`: the last is the whole set's.
        answer: the tokens that looked back.
    """
    return [*_beaten_by_control(controls, points[-1], answer), *_do_not_gate(table, points)]


def _beaten_by_control(
    controls: pd.DataFrame, point: Mapping[str, Any], answer: str
) -> Iterator[str]:
    metric = "sra_held_out" if "sra_held_out" in controls else "sra"
    control = best_control(controls, metric)
    if control is None or beaten(control[1], point["sra_low"]):
        return
    how = "is not shown to beat" if control[1] < point["sra"] else "is no better than"
    low, high = point["sra_low"], point["sra_high"]
    ends = "" if low is None else f" ({low:.3f}–{high:.3f})"  # one problem leaves none
    further = ""
    if control[0] == OVERLAP and answer != "bare":
        further = " Whether it does more than match words: kfh probe --answer bare."
    yield (
        f"The head set {how} {control[0]} on traces that it was not chosen on: SRA "
        f"{point['sra']:.3f}{ends} against {control[1]:.3f}.{further}"
    )


def _do_not_gate(table: pd.DataFrame, points: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A head may rank all steps right, and give them all less than S_base."""
    rows = table.set_index(["layer", "head"])
    heads = [
        f"{layer}.{head} ({rows.loc[(layer, head), 'gating']:.3f})"
        for layer, head in (point["added"] for point in points)
        if rows.loc[(layer, head), "gating_low"] <= 0.5  # false where there is no interval
    ]
    if heads:
        yield (
            f"Of the set {', '.join(heads)} by gating accuracy are not shown to beat 0.5, chance: "
            "to train, choose by it (kfh probe --by gating)."
        )
