"""A probe: facts, tables and pictures of a `ProbeResult`; its caveats are the result's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kfh.findings.base import Place, Section, counted, header_facts, heads_text, pictures
from kfh.findings.summary import probe_summary
from kfh.tables import Cell, Table
from probing.choices import METRIC_NAMES, METRICS
from probing.folder import ProbeResult, heads_of
from probing.numbers import NONE, Number, number
from probing.ranking.rank import RANDOM_WEIGHTS

# Controls by a longer name; that of random weights is a bound (`probing.ranking.rank`).
SCORERS = {"all heads": "mean of all heads", RANDOM_WEIGHTS: f"{RANDOM_WEIGHTS}, 97.5 %"}


def read_probe(place: Place) -> Section:
    """A probe: settings, counts, the best heads, controls, held-out halves, null, figures."""
    from probing.figures.probe import figures_of

    result = ProbeResult.load(place.folder)
    by = METRIC_NAMES[result.config.by]
    section = Section(f"Probe: {Path(result.card.id).name}")
    section.facts = [*header_facts(result.header), *probe_facts(result)]
    section.summary = probe_summary(result)
    section.tables = probe_tables(result)
    captions = {
        "heatmap": f"{by} of every head, by layer; the set is marked",
        "heads": "all heads from best to worst, with intervals, the best control and the null",
        "layers": "the best head, the mean and the span of the heads of each layer",
        "ensembles": "mean scores of several heads, on the half that they were not chosen on",
    }
    section.pictures = pictures(captions, figures_of(result, result.config.by))
    section.caveats = result.caveats
    if result.head_set.pairs != result.chosen:
        section.damaged.append(
            f"{place.folder / 'heads.json'} holds other heads than run.json chose: the files are "
            "of different runs"
        )
    return section


def probe_facts(result: ProbeResult) -> list[tuple[str, str]]:
    """What was probed, on what, with which settings, by name."""
    config, counts, card, heads = result.config, result.counts, result.card, result.head_set
    bad_lines = {f"bad lines: {kind}": n for kind, n in counts["bad_lines"].items()}
    by, point = METRIC_NAMES[config.by], result.set_point
    facts = {
        "model": f"{card.id} ({card.type}, {card.layers} layers × {card.heads} heads)",
        "fingerprint": card.fingerprint or NONE,
        "traces": f"{config.traces}, {(heads.traces or {}).get('hash', 'no hash')}",
        "labels": "those of the trace file" if config.labels == "steps" else config.labels,
        "labels are by": result.label_way,
        "steps cut by": str((heads.segmenter or {}).get("name", NONE)),
        "answer tokens": config.answer,
        "read, used, ranked": f"{counts['read']}, {counts['used']}, {counts['ranked']} traces; "
        f"{counts['pairs']:,} pairs",
        "left out": counted({**counts["left_out"], **bad_lines}),
        "steps": counted(counts["steps"]),
        "head set": f"{heads_text(heads.pairs)}, by {config.select} {by}",
        "the set, held out": f"{by} {Number.column(point, config.by)} on "
        f"{len(counts['held_out_traces'])} traces; chosen on {len(counts['select_traces'])}: "
        f"{number(point[f'{config.by}_select'])}",
        "backend, seed": f"{config.backend}, {config.seed}",
    }
    return [(name, text) for name, text in facts.items() if text]


def probe_tables(result: ProbeResult) -> list[Table]:
    """The best heads, the controls, and ensembles on the held-out half."""
    return [heads_table(result), controls_table(result), ensembles_table(result)]


def heads_table(result: ProbeResult) -> Table:
    """The best heads, and those of the set that are not among them."""
    by, best = result.config.by, result.best()
    p = f"{by}_p" if f"{by}_p" in best else "sra_p"
    count = result.counts.get("problems")  # not counted by probes of before
    problems = f"{count} problems" if count else "traces"
    rows: list[tuple[Cell, ...]] = [
        (
            f"{layer}.{head}{' *' if (layer, head) in result.chosen else ''}",
            *(Number.column(row, metric) for metric in METRICS),
            number(row[p]),
            f"{number(row['contrast_essential'], 2)}, {number(row['contrast_redundant'], 2)}",
            f"{number(row[f'{by}_select'])} → {number(row[f'{by}_held_out'])}",
        )
        for (layer, head), (_, row) in zip(heads_of(best), best.iterrows(), strict=True)
    ]
    title = (
        f"Best heads by {METRIC_NAMES[by]} on {result.counts['ranked']} traces, of "
        f"{len(result.table)}; * in the set; in brackets 95 % over {problems}; p against the best "
        "head by chance"
    )
    columns = ("head", "SRA", "balanced", "gating", "p", "score over S_base: essential, redundant")
    return Table(title, (*columns, f"{METRIC_NAMES[by]}: half chosen on → held out"), rows)


def controls_table(result: ProbeResult) -> Table:
    """The controls, and what the best of all heads reaches by chance."""
    rows: list[tuple[Cell, ...]] = []
    for _, row in result.controls.iterrows():
        if row["control"] == RANDOM_WEIGHTS:
            rows.append(_random_weights(result, row))
        else:
            name = SCORERS.get(row["control"], row["control"])
            rows.append((name, *(Number.column(row, metric) for metric in METRICS)))
    chance = [
        f"{number(best['mean'])} (95 % {number(best['q95'])})" if best else NONE
        for best in map(result.null.get, METRICS)
    ]
    kind = f"{result.config.null}, {result.config.permutations:,} draws"
    return Table(
        "Controls: scorers beside the heads, and the null of the best head",
        ("scorer", "SRA", "balanced", "gating"),
        [*rows, (f"best head by chance ({kind})", *chance)],
    )


def _random_weights(result: ProbeResult, bound: Mapping[str, Any]) -> tuple[Cell, ...]:
    """Their mean, and what one more such model stays below."""
    models = result.counts["random_weights"]
    means = {metric: np.mean([model[metric] for model in models]) for metric in METRICS}
    cells = (f"{number(means[metric])} (97.5 % {number(bound[metric])})" for metric in METRICS)
    return (f"{RANDOM_WEIGHTS} ({len(models)} models)", *cells)


def ensembles_table(result: ProbeResult) -> Table:
    """Ensembles of 1 … 10 heads on the held-out half, by every way of selection."""
    by, counts = result.config.by, result.counts
    rows = []
    for points in zip(*result.curves.values(), strict=True):
        cells = [(Number.column(point, by), heads_text([point["added"]])) for point in points]
        rows.append((str(points[0]["heads"]), *(cell for pair in cells for cell in pair)))
    title = (
        f"Ensembles: heads chosen by {METRIC_NAMES[by]} on {len(counts['select_traces'])} traces, "
        f"the figure on the other {len(counts['held_out_traces'])}"
    )
    columns = (name for way in result.curves for name in (way, f"{way}: added"))
    return Table(title, ("heads", *columns), rows)
