"""How far two labellings of the same steps agree: Cohen's kappa, AUC, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probing.errors import ConfigError, DataError
from probing.ranking.metrics import step_ranking_accuracy
from probing.traces.source import StepSource

STEPS = "steps"  # names the labels of the trace file itself
Key = tuple[str, int]  # trace id, step


@dataclass(frozen=True)
class Labelling:
    """Labels by trace and step, and scores where the labelling has them."""

    name: str
    labels: dict[Key, str | None]
    scores: dict[Key, float]


@dataclass(frozen=True)
class Agreement:
    """What two labellings say of the steps that both label."""

    first: str
    second: str
    both: int  # steps with a label in both
    only_first: int
    only_second: int
    same: int
    kappa: float | None  # None where it does not exist
    auc: float | None  # of the first's scores against the second's labels, mean over traces
    auc_reverse: float | None  # of the second's scores against the first's labels
    different: tuple[tuple[Key, str, str], ...]  # step, first's label, second's label


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """κ = (p_o − p_e) / (1 − p_e): agreement beyond what the shares of the labels give by chance.

    Cohen, "A coefficient of agreement for nominal scales", 1960. None without a step, or where
    both use one and the same label throughout (p_e = 1).

    Example:
        >>> cohen_kappa(["e", "e", "r", "r"], ["e", "r", "r", "r"])
        0.5
    """
    if not first:
        return None
    a, b = np.asarray(first), np.asarray(second)
    observed = float((a == b).mean())
    chance = sum(float((a == name).mean() * (b == name).mean()) for name in {*first, *second})
    return None if chance == 1 else (observed - chance) / (1 - chance)


def scores_auc(scores: dict[Key, float], labels: dict[Key, str | None]) -> float | None:
    """Share of (essential, redundant) pairs of a trace that the scores put right, mean over traces.

    None where no trace has both kinds among its scored steps.
    """
    by_trace: dict[str, list[tuple[float, bool]]] = {}
    for key, score in scores.items():
        if (label := labels.get(key)) is not None:
            by_trace.setdefault(key[0], []).append((score, label == "essential"))
    found = []
    for rows in by_trace.values():
        values, essential = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
        if essential.any() and not essential.all():
            found.append(float(step_ranking_accuracy(values, essential)))
    return float(np.mean(found)) if found else None


def cohen_agreement(first: Labelling, second: Labelling) -> Agreement:
    """Compare two labellings step by step.

    Raises:
        DataError: they have no step in common.
    """
    common = sorted(first.labels.keys() & second.labels.keys())
    if not common:
        raise DataError(
            f"{first.name} and {second.name} have no step in common: are they of the same traces?"
        )
    pairs = [(key, first.labels[key], second.labels[key]) for key in common]
    both = [(key, a, b) for key, a, b in pairs if a is not None and b is not None]
    different = tuple((key, a, b) for key, a, b in both if a != b)
    return Agreement(
        first.name,
        second.name,
        len(both),
        sum(a is not None and b is None for _, a, b in pairs),
        sum(a is None and b is not None for _, a, b in pairs),
        len(both) - len(different),
        cohen_kappa([a for _, a, _ in both], [b for _, _, b in both]),
        scores_auc(first.scores, second.labels),
        scores_auc(second.scores, first.labels),
        different,
    )


def read_labelling(name: str, source: StepSource | None) -> Labelling:
    """A labelling by the path of its file, or the trace file's own by the name `steps`.

    Raises:
        ConfigError: `steps` without a trace file.
    """
    from probing.traces.labels import read_labels

    if name != STEPS:
        found = read_labels(Path(name))
        labels = {(id, n): label for id, of in found.labels.items() for n, label in of.items()}
        details = found.details.items()
        scores = {(id, n): d["score"] for id, of in details for n, d in of.items() if "score" in d}
        return Labelling(Path(name).name, labels, scores)
    if source is None:
        raise ConfigError("`steps` are the labels of the trace file: give it with --traces")
    labels = {(t.id, n): step.label for t in source.traces() for n, step in enumerate(t.steps)}
    return Labelling(STEPS, labels, {})
