"""What is to be held against a ranking, in sentences: for terminal, report and notebook alike.

A control is beaten where it lies below the whole 95 % interval of a head. An empty list means that
none of these rules was broken, not that nothing can be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from probing.choices import METRIC_NAMES
from probing.intervals import few_problems
from probing.numbers import exists
from probing.ranking.rank import RANDOM_WEIGHTS, Ranking
from probing.ranking.select import beaten, best_control

RARE = 0.05  # a p-value up to this says that chance alone is no explanation
LABELS = {
    "rules": "The labels are by rules (phrases and repetition): rough, no ground truth.",
    "ablation": "The labels are by cause, as this or another model sees it: a step that a later "
    "one repeats is called redundant.",
    "judges": "The labels are by model judges: what they all miss, the figures miss.",
}


def ranking_caveats(ranking: Ranking) -> list[str]:
    """What to hold against the best head, the traces, the set, and each head of it."""
    return [
        *_best_head(ranking),
        *_traces(ranking),
        *_problems(ranking),
        *ranking.set_caveats,
        *_heads_of_the_set(ranking),
        *_held_out(ranking),
    ]


def label_caveats(ranking: Ranking, way: str | None) -> list[str]:
    """What to hold against the labels.

    Args:
        ranking: with the number of its steps by label.
        way: how the label file was made: `ablation`, `rules`, `judges`, or empty where that is
            not known; None where the file is gone.
    """
    steps = ranking.counts["steps"]
    sentences = []
    if unlabelled := steps.get("unlabelled"):
        total = sum(steps.get(kind, 0) for kind in ("essential", "redundant", "unlabelled"))
        sentences.append(
            f"{unlabelled} of {total} steps have no label and took no part: nothing is said about "
            "how the heads see them."
        )
    if way is None:
        sentences.append(
            f"{ranking.config.labels} is not there any more: how the labels were made is not "
            "known here."
        )
    elif way in LABELS:
        sentences.append(LABELS[way])
    return sentences


def _best_head(ranking: Ranking) -> Iterator[str]:
    best = ranking.table.loc[ranking.table[ranking.config.by].idxmax()]
    name = f"head {int(best['layer'])}.{int(best['head'])}"
    control = best_control(ranking.controls, "sra")
    if control and not beaten(control[1], best["sra_low"]):
        reaches = (
            f"{control[0]} alone may reach (97.5 %)"
            if control[0] == RANDOM_WEIGHTS
            else f"{control[0]} alone reaches"
        )
        yield (
            f"{reaches} SRA {control[1]:.3f}, within the interval of {name} "
            f"({best['sra']:.3f}, from {best['sra_low']:.3f}): look at balanced SRA."
        )
    if np.isnan(best["balanced"]):
        yield (
            f"{name} has no balanced SRA: in no trace do pairs of both orders exist, so that what "
            "it sees cannot be told from position."
        )
    elif best["balanced_p"] > RARE:
        yield (
            f"The balanced SRA of {name} ({best['balanced']:.3f}) is what the best of "
            f"{len(ranking.table)} heads reaches by chance (p = {best['balanced_p']:.2f})."
        )


def _problems(ranking: Ranking) -> Iterator[str]:
    """Few problems; and a null that is not the claim's."""
    counts, null = ranking.counts, ranking.config.null
    if "problems" not in counts:  # of a probe before problems were counted
        yield (
            "The intervals of this probe are over traces: where problems have several, they are "
            "too narrow. Probe again: nothing is scored anew."
        )
        return
    problems = counts["problems"]
    yield from few_problems(problems)
    if null == "problems" and 1 / 2**problems > RARE:
        yield (
            f"{problems} problems cannot give a p below {1 / 2**problems:.2f}, whatever the heads "
            "do: whether one ranks the steps of new problems is not known."
        )
    if null != "problems" and counts["ranked"] > problems:
        yield (
            f"p by {null} takes {counts['ranked']} traces of {problems} problems for independent: "
            "it comes out too small. Use --null problems."
        )


def _traces(ranking: Ranking) -> Iterator[str]:
    if beyond := ranking.counts["beyond_context"]:
        yield (
            f"{beyond} traces are longer than the model's context; what it attends to there may "
            "mean little."
        )


def _heads_of_the_set(ranking: Ranking) -> Iterator[str]:
    rows = ranking.table.set_index(["layer", "head"])
    for metric in ("sra", "balanced"):
        if (control := best_control(ranking.controls, metric)) is None:
            continue
        weak = [
            f"{layer}.{head} ({row[metric]:.3f}, from {row[f'{metric}_low']:.3f})"
            for layer, head in ranking.chosen
            for row in [rows.loc[(layer, head)]]
            if not beaten(control[1], row[f"{metric}_low"])
        ]
        if weak:
            yield (
                f"Of the set {', '.join(weak)} by {METRIC_NAMES[metric]} do not beat {control[0]}, "
                f"{control[1]:.3f}."
            )


def _held_out(ranking: Ranking) -> Iterator[str]:
    by, point = ranking.config.by, ranking.set_point
    held_out, selected = point[by], point[f"{by}_select"]
    known = exists(held_out) and exists(selected) and exists(point[f"{by}_high"])
    if known and selected > point[f"{by}_high"]:
        yield (
            f"The set's {METRIC_NAMES[by]} is {selected:.3f} on the half that it was chosen on, "
            f"beyond the interval on the other half, {held_out:.3f} ({point[f'{by}_low']:.3f}–"
            f"{point[f'{by}_high']:.3f}): the held-out figure is the one to quote."
        )
