"""The ranking of the heads: a table of figures, controls, ensembles, and the heads chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probing.choices import METRICS, Head
from probing.config import ProbeConfig
from probing.errors import DataError
from probing.files.headers import file_hash, file_header, json_number, part_json
from probing.headset import HeadFigures, HeadSet
from probing.intervals import bootstrap_interval, mean_over_traces, next_below
from probing.models.identity import ModelCard
from probing.ranking.metrics import (
    BUILT_IN,
    CONTROLS,
    Measured,
    Measures,
    RankedTrace,
    ReadTraces,
    ratios,
)
from probing.ranking.null import best_by_chance
from probing.ranking.select import CURVE, ensembles, halves, select_greedy, select_top, set_caveats
from probing.settings import Progress, no_progress

RANDOM_WEIGHTS = "best head of random weights"  # a control


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranking:
    """What ranking the heads of a model on labelled traces gives, as values.

    Args:
        config: the settings.
        table: a row a head, in the order of layers and heads: every metric with its 95 % interval
            over problems (`sra`, `sra_low`, `sra_high`, …), on both halves (`sra_select`,
            `sra_held_out`), and p-values against the best head by chance (`sra_p`).
        controls: a row a control (`probing.ranking.metrics.CONTROLS`), in the same columns;
            where that was asked for, what the best heads of untrained models stay below.
        curves: ensembles of 1 … 10 heads by way of selection, `top` and the one that was asked for;
            each point names the head `added`.
        chosen: the heads of the set, in the order in which they were chosen.
        set_caveats: in sentences, where the set does not beat the best control, or does not gate.
        scorers: the controls of the user's, by name: name and hash of the function.
        null: the best head by chance: `mean` and 95 % quantile `q95` by metric.
        counts: problems, traces, pairs, ids of both halves, and what was left out.
    """

    config: ProbeConfig
    table: pd.DataFrame
    controls: pd.DataFrame
    curves: dict[str, list[dict[str, Any]]]
    chosen: list[Head]
    set_caveats: list[str]
    scorers: dict[str, dict[str, Any]]
    null: dict[str, dict[str, float]]
    counts: dict[str, Any]

    @property
    def set_point(self) -> dict[str, Any]:
        """The figures of the set's mean score: held out with interval, and where it was chosen."""
        return self.curves[self.config.select][len(self.chosen) - 1]


def rank_heads(
    config: ProbeConfig,
    heads: Sequence[Head],
    measures: Measures,
    traces: Sequence[RankedTrace],
    progress: Progress = no_progress,
    random: Sequence[Measured] = (),
) -> Ranking:
    """Rank the heads, choose the set on one half of the problems and report it on the other.

    Args:
        config: the settings.
        heads: of the model, in the order of the scores.
        measures: of the traces, from going through them once.
        traces: the same, in the same order; gone through once more, and once a head for greedy
            selection and for a null of permuted labels.
        progress: makes progress bars.
        random: the same traces as each of several models of random weights scores them, for a
            control.

    Raises:
        DataError: the traces are of fewer than two problems, so that no half is left to report on.
    """
    measured, seed = measures.heads, config.seed
    split = _split(config, measured)
    with progress("null of the best head", len(measured)) as advance:
        null = best_by_chance(
            traces, measured, config.null, config.permutations, seed, lambda: advance(1, 0)
        )
    table = pd.DataFrame(heads, columns=["layer", "head"])
    add_figures(table, measured, split, seed)
    for metric, (p, _) in null.items():
        table[f"{metric}_p"] = p
    controls, counts = _controls(measures.controls, split, seed), _counts(measured, split)
    if random:
        best, found = _best_of_random(config, heads, random, split)
        controls = pd.concat([controls, best], ignore_index=True)
        counts["random_weights"] = found
    orders = _orders(config, traces, table, split, progress)
    mixed = _read_again(measures, traces, orders, table, progress)
    curves = {how: _curve(table, orders[how], mixed[how], split, seed) for how in orders}
    points = curves[config.select][: config.top]
    return Ranking(
        config=config,
        table=table,
        controls=controls,
        curves=curves,
        chosen=[(layer, head) for layer, head in (point["added"] for point in points)],
        set_caveats=set_caveats(controls, table, points, config.answer),
        scorers={name: part_json(f) for name, f in CONTROLS.items() if name not in BUILT_IN},
        null={
            metric: {"mean": float(best.mean()), "q95": float(np.quantile(best, 0.95))}
            for metric, (_, best) in null.items()
            if len(best)
        },
        counts=counts,
    )


def _split(config: ProbeConfig, measured: Measured) -> tuple[list[int], list[int]]:
    split = halves(measured.ids, measured.groups)
    if not split[1]:
        raise DataError(
            f"{config.traces}: ranking needs labelled traces of at least two problems, one to "
            f"select heads on and one to report them on; {len(measured)} trace(s) can be ranked"
        )
    return split


def _counts(measured: Measured, split: tuple[list[int], list[int]]) -> dict[str, Any]:
    """Traces, problems and pairs that were ranked, and the ids of both halves."""
    ids, groups = measured.ids, measured.groups
    counts: dict[str, Any] = {
        "ranked": len(ids),
        "problems": len(set(groups)),
        "problem_of": dict(zip(ids, groups, strict=True)),
        "pairs": sum(measured.pairs),
        "both_orders": int((~np.isnan(measured.values["balanced"][0])).sum()),
    }
    for name, half in zip(("select", "held_out"), split, strict=True):
        counts[f"{name}_problems"] = len({groups[place] for place in half})
        counts[f"{name}_traces"] = [ids[place] for place in half]
    return counts


def add_figures(
    rows: pd.DataFrame, measured: Measured, split: tuple[list[int], list[int]], seed: int
) -> None:
    """Add the columns of every metric: its mean, its interval, and its mean on each half."""
    values = measured.values
    for metric in METRICS:
        rows[metric] = mean_over_traces(values[metric])
        limits = bootstrap_interval(values[metric], measured.groups, seed=seed)
        rows[f"{metric}_low"], rows[f"{metric}_high"] = limits.T
    for name, half in zip(("select", "held_out"), split, strict=True):
        for metric in METRICS:
            rows[f"{metric}_{name}"] = mean_over_traces(values[metric][:, half])


def _controls(measured: Measured, split: tuple[list[int], list[int]], seed: int) -> pd.DataFrame:
    """Figures of the controls, as of heads."""
    rows = pd.DataFrame({"control": list(CONTROLS)})
    add_figures(rows, measured, split, seed)
    # Only scores in the unit of attention can be held against S_base.
    gating = [column for column in rows if column.startswith("gating")]
    rows.loc[rows["control"] != "all heads", gating] = np.nan
    return rows


def _best_of_random(
    config: ProbeConfig,
    heads: Sequence[Head],
    models: Sequence[Measured],
    split: tuple[list[int], list[int]],
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """A control from models of random weights: what the best head of such a model stays below.

    Of each model the best head is chosen as the probed model's are: figures over all traces are
    those of the best head on all, those on the other half those of the best head on the selection
    half. Models differ among each other by more than their intervals over problems say, so the
    control is the figure that one more model stays below in 97.5 % of cases. On the other half, on
    which nothing was chosen, it is the greatest of theirs: the set's interval has its noise.

    Returns:
        The row of the control, and of each model its best head with its figures.
    """
    found = []
    for measured in models:
        values = measured.values
        columns: dict[str, np.ndarray] = {}
        for metric in METRICS:
            columns[metric] = mean_over_traces(values[metric])
            for name, half in zip(("select", "held_out"), split, strict=True):
                columns[f"{metric}_{name}"] = mean_over_traces(values[metric][:, half])
        best, chosen = (
            select_top(columns[name], 1)[0] for name in (config.by, f"{config.by}_select")
        )
        figures = {
            name: json_number(column[best if name in METRICS else chosen])
            for name, column in columns.items()
        }
        found.append({"head": list(heads[best]), **figures})
    table = pd.DataFrame(found).drop(columns="head").astype(float)
    bounds = {
        name: min(next_below(table[name].to_numpy()), 1.0)
        if not name.endswith("held_out")
        else float(table[name].max())
        for name in table
    }
    return pd.DataFrame([{"control": RANDOM_WEIGHTS, **bounds}]), found


def _orders(
    config: ProbeConfig,
    traces: Sequence[RankedTrace],
    table: pd.DataFrame,
    split: tuple[list[int], list[int]],
    progress: Progress,
) -> dict[Any, list[int]]:
    """Heads in the order in which the first half chooses them.

    Those of the best single heads always, for they cost nothing; the greedy ones, for which the
    half is gone through once a head, where they are asked for.
    """
    size = min(max(CURVE, config.top), len(table))
    orders: dict[Any, list[int]] = {
        "top": select_top(table[f"{config.by}_select"].to_numpy(), size)
    }
    if config.select == "greedy":
        half = ReadTraces(split[0], traces.__getitem__)
        with progress("greedy selection", size) as advance:
            orders["greedy"] = select_greedy(half, config.by, size, lambda: advance(1, 0))
    return orders


def _read_again(
    measures: Measures,
    traces: Sequence[RankedTrace],
    orders: Mapping[Any, list[int]],
    table: pd.DataFrame,
    progress: Progress,
) -> dict[Any, Measured]:
    """Go through the traces once more: ensembles of each order, and medians into the table."""
    assert measures.ratios is not None
    found = {how: Measured() for how in orders}
    turns = measures.ratios.turns()
    with progress("ensembles", len(traces) * len(turns)) as advance:
        for number, turn in enumerate(turns):  # nearly always one
            for trace in traces:
                for first, values in ratios(trace):
                    turn.add(first, values)
                for how, order in orders.items() if number == 0 else ():
                    found[how].add(trace, ensembles(trace, order))
                advance(1, 0)
    contrast = np.concatenate([turn.medians() for turn in turns]).reshape(2, -1)
    table["contrast_essential"], table["contrast_redundant"] = contrast
    return found


def _curve(
    table: pd.DataFrame,
    order: list[int],
    measured: Measured,
    split: tuple[list[int], list[int]],
    seed: int,
) -> list[dict[str, Any]]:
    """Ensembles of 1 … 10 heads on the second half, and where they were chosen."""
    select, held_out = split
    groups = [measured.groups[place] for place in held_out]
    columns: dict[str, np.ndarray] = {}
    for metric in METRICS:
        values = measured.values[metric]
        columns[metric] = mean_over_traces(values[:, held_out])
        limits = bootstrap_interval(values[:, held_out], groups, seed=seed)
        columns[f"{metric}_low"], columns[f"{metric}_high"] = limits.T
        columns[f"{metric}_select"] = mean_over_traces(values[:, select])
    added = table[["layer", "head"]].iloc[order].to_numpy().tolist()
    return [
        {
            "heads": size + 1,
            "added": head,
            **{name: json_number(column[size]) for name, column in columns.items()},
        }
        for size, head in enumerate(added)
    ]


def head_set_of(ranking: Ranking, card: ModelCard, marks: Mapping[str, set[str]]) -> HeadSet:
    """The chosen heads with everything needed to score steps with them in the same way.

    `marks` is what the problem of each trace is known by, by id: what other traces are held out by.
    """
    config, counts = ranking.config, ranking.counts
    rows = ranking.table.set_index(["layer", "head"], drop=False)
    figures = {k: v for k, v in ranking.set_point.items() if k not in ("heads", "added")}
    return HeadSet(
        heads=tuple(_head_figures(config, rows.loc[pair]) for pair in ranking.chosen),
        model=card,
        segmenter=config.source.segmenter_json(),
        rule=config.source.rule,
        think_end=config.source.mark.text,
        think_end_at=config.source.mark.at,
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
            "unit": "problem",
            "select_traces": len(counts["select_traces"]),
            "held_out_traces": len(counts["held_out_traces"]),
            "problems_chosen_on": _marks_of(counts["select_traces"], marks),
            "problems_held_out": _marks_of(counts["held_out_traces"], marks),
            "ensemble_held_out": figures,
            "controls": {
                row["control"]: {metric: json_number(row[metric]) for metric in METRICS}
                for _, row in ranking.controls.iterrows()
            },
        },
        caveats=tuple(ranking.set_caveats),
        header=file_header("head set"),
    )


def _marks_of(ids: Iterable[str], marks: Mapping[str, set[str]]) -> list[str]:
    """The marks of these traces, each once, sorted."""
    return sorted(set().union(*(marks[name] for name in ids)))


def _head_figures(config: ProbeConfig, row: pd.Series) -> HeadFigures:
    held_out = {metric: json_number(row[f"{metric}_held_out"]) for metric in METRICS}
    return HeadFigures(
        int(row["layer"]),
        int(row["head"]),
        sra=float(row["sra"]),
        sra_interval=_interval(row, "sra"),
        balanced=json_number(row["balanced"]),
        balanced_interval=_interval(row, "balanced"),
        gating=float(row["gating"]),
        p=json_number(row.get(f"{config.by}_p")),
        held_out={metric: v for metric, v in held_out.items() if v is not None},
    )


def _interval(row: pd.Series, metric: str) -> tuple[float, float] | None:
    """The interval of a metric; None where there is none, as of a single problem."""
    low, high = (json_number(row[f"{metric}_{end}"]) for end in ("low", "high"))
    return None if low is None or high is None else (low, high)
