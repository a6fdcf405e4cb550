"""What a probe finds: the table of heads, controls, ensembles, the head set; and its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probing.choices import CONTROLS, METRICS, SELECTIONS, Head
from probing.config import ProbeConfig
from probing.errors import DataError
from probing.files.headers import file_hash, file_header, json_number
from probing.headset import HeadFigures, HeadSet
from probing.intervals import bootstrap_interval, mean_over_traces
from probing.models.identity import ModelCard
from probing.ranking.metrics import RankedTrace, contrast, metric_table
from probing.ranking.null import max_null, p_values
from probing.ranking.select import CURVE, ensemble_values, select_greedy, select_top, split_halves
from probing.settings import Progress, no_progress
from probing.traces.source import SourceReport


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """Everything that `kfh probe` prints, draws and saves."""

    config: ProbeConfig
    card: ModelCard
    table: pd.DataFrame  # a row a head, in the order of layers and heads
    controls: pd.DataFrame  # a row a trivial scorer
    curves: dict[str, list[dict[str, Any]]]  # ensembles of 1 … 10 heads, by way of selection
    head_set: HeadSet
    counts: dict[str, Any]  # traces, pairs, halves, what was left out
    null: dict[str, Any]  # the best head by chance: mean and 95 % quantile
    speed: dict[str, float] = field(default_factory=dict)


def rank_heads(
    config: ProbeConfig,
    card: ModelCard,
    heads: Sequence[Head],
    traces: Sequence[RankedTrace],
    report: SourceReport,
    progress: Progress = no_progress,
) -> ProbeResult:
    """Rank, select and report.

    Raises:
        DataError: the traces are of fewer than two problems, so that no half is left to report on.
    """
    halves = split_halves(traces)
    if not halves[1]:
        raise DataError(
            f"{config.traces}: ranking needs labelled traces of at least two problems, one to "
            f"select heads on and one to report them on; {len(traces)} trace(s) can be ranked"
        )
    values = metric_table(traces)
    with progress("null of the best head", len(traces)) as advance:
        null = max_null(
            traces,
            kind=config.null,
            permutations=config.permutations,
            seed=config.seed,
            advance=lambda: advance(1, 0),
        )
    table = pd.DataFrame(heads, columns=["layer", "head"])
    _add_figures(table, values, config.seed)
    for metric in ("sra", "balanced"):
        table[f"{metric}_p"] = p_values(table[metric].to_numpy(), null[metric])
    table["contrast_essential"], table["contrast_redundant"] = contrast(traces)
    for name, half in zip(("select", "held_out"), halves, strict=True):
        for metric in METRICS:
            table[f"{metric}_{name}"] = mean_over_traces(values[metric][:, half])
    curves = _curves(config, traces, table, halves, progress)
    chosen = _chosen(config, table, curves)
    counts = {
        **report.to_json(),
        "ranked": len(traces),
        "pairs": int(sum(t.essential.sum() * (~t.essential).sum() for t in traces)),
        "both_orders": int((~np.isnan(values["balanced"][0])).sum()),
        "select_traces": [traces[place].id for place in halves[0]],
        "held_out_traces": [traces[place].id for place in halves[1]],
    }
    controls = _controls(traces, config.seed)
    return ProbeResult(
        config,
        card,
        table,
        controls,
        curves,
        _head_set(config, card, table, controls, chosen, curves, counts),
        counts,
        {m: {"mean": float(v.mean()), "q95": float(np.quantile(v, 0.95))} for m, v in null.items()},
    )


def _add_figures(table: pd.DataFrame, values: dict[str, np.ndarray], seed: int) -> None:
    for metric in METRICS:
        table[metric] = mean_over_traces(values[metric])
        limits = bootstrap_interval(values[metric], seed=seed)
        table[f"{metric}_low"], table[f"{metric}_high"] = limits.T


def _controls(traces: Sequence[RankedTrace], seed: int) -> pd.DataFrame:
    """Figures of the trivial scorers, as of heads."""
    rows = pd.DataFrame({"control": CONTROLS})
    scores = [np.concatenate([trace.control(name) for name in CONTROLS]) for trace in traces]
    _add_figures(rows, metric_table(traces, scores), seed)
    # Only scores in the unit of attention can be held against S_base.
    rows.loc[rows["control"] != "all heads", ["gating", "gating_low", "gating_high"]] = np.nan
    return rows


def _curves(
    config: ProbeConfig,
    traces: Sequence[RankedTrace],
    table: pd.DataFrame,
    halves: tuple[list[int], list[int]],
    progress: Progress,
) -> dict[Any, list[dict[str, Any]]]:
    """Both ways of selection on the first half, ensembles of 1 … 10 heads on the second."""
    select, held_out = ([traces[place] for place in half] for half in halves)
    size = min(max(CURVE, config.top), len(table))
    orders = {"top": select_top(table[f"{config.by}_select"].to_numpy(), size)}
    with progress("greedy selection", size) as advance:
        orders["greedy"] = select_greedy(select, config.by, size, lambda: advance(1, 0))
    curves = {}
    for how in SELECTIONS:
        points = []
        for count in range(1, size + 1):
            heads = orders[how][:count]
            point: dict[str, Any] = {"heads": count, "added": heads[-1]}
            for metric in METRICS:
                own = ensemble_values(held_out, heads, metric)
                point[metric] = json_number(mean_over_traces(own))
                limits = bootstrap_interval(own[None], seed=config.seed)[0]
                point[f"{metric}_low"], point[f"{metric}_high"] = map(json_number, limits)
                chosen = ensemble_values(select, heads, metric)
                point[f"{metric}_select"] = json_number(mean_over_traces(chosen))
            points.append(point)
        curves[how] = points
    return curves


def _chosen(
    config: ProbeConfig, table: pd.DataFrame, curves: dict[str, list[dict[str, Any]]]
) -> list[int]:
    count = min(config.top, len(table))
    return [int(point["added"]) for point in curves[config.select][:count]]


def _head_set(
    config: ProbeConfig,
    card: ModelCard,
    table: pd.DataFrame,
    controls: pd.DataFrame,
    chosen: list[int],
    curves: dict[str, list[dict[str, Any]]],
    counts: dict[str, Any],
) -> HeadSet:
    ensemble = curves[config.select][len(chosen) - 1]
    return HeadSet(
        heads=tuple(_figures(config, table.iloc[place]) for place in chosen),
        model=card,
        segmenter=config.source.segmenter_json(),
        rule=config.source.rule,
        answer=config.answer,
        traces={
            "file": str(config.traces),
            "hash": file_hash(Path(config.traces)),
            "keep": config.keep,
            "ranked": counts["ranked"],
            "pairs": counts["pairs"],
        },
        labels=config.source.label_json(),
        selection={
            "by": config.by,
            "how": config.select,
            "split": "halves by SHA-256 of the trace id, traces of one problem together",
            "select_traces": len(counts["select_traces"]),
            "held_out_traces": len(counts["held_out_traces"]),
            "ensemble_held_out": {k: v for k, v in ensemble.items() if k not in ("heads", "added")},
            "controls": {
                row["control"]: {m: json_number(row[m]) for m in METRICS}
                for _, row in controls.iterrows()
            },
        },
        header=file_header("head set"),
    )


def _figures(config: ProbeConfig, row: pd.Series) -> HeadFigures:
    p = None if config.by == "gating" else json_number(row[f"{config.by}_p"])
    return HeadFigures(
        int(row["layer"]),
        int(row["head"]),
        sra=float(row["sra"]),
        sra_interval=(float(row["sra_low"]), float(row["sra_high"])),
        balanced=json_number(row["balanced"]),
        balanced_interval=_interval(row, "balanced"),
        gating=float(row["gating"]),
        p=p,
        held_out={m: v for m in METRICS if (v := json_number(row[f"{m}_held_out"])) is not None},
    )


def _interval(row: pd.Series, metric: str) -> tuple[float, float] | None:
    low, high = json_number(row[f"{metric}_low"]), json_number(row[f"{metric}_high"])
    return None if low is None or high is None else (low, high)
