"""What keeps a ranking honest: intervals, a split by hash, and the null of the best of many."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from probing.errors import ConfigError
from probing.ranking import RankedTrace, ranking_counts

NULLS = ("shuffle", "rotate")
RESAMPLES = 2000
PERMUTATIONS = 1000


def mean_over_traces(values: Float[np.ndarray, "*row trace"]) -> Float[np.ndarray, "*row"]:
    """Mean over the traces for which the figure exists; not a number where there is none."""
    valid = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(valid, values, 0.0).sum(-1) / valid.sum(-1))


def bootstrap_interval(
    values: Float[np.ndarray, "row trace"],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float[np.ndarray, "row 2"]:
    """Percentile bootstrap interval of the mean over traces, resampled with replacement.

    All rows see the same resamples, so that differences between heads stay paired.
    """
    n = values.shape[1]
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    valid = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means = (np.where(valid, values, 0.0) @ weights.T) / (valid.astype(float) @ weights.T)
    tail = (1 - level) / 2
    limits: np.ndarray = np.nanquantile(means, [tail, 1 - tail], axis=1).T
    return limits


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


def permuted_labels(
    essential: Bool[np.ndarray, "step"], count: int, kind: str, rng: np.random.Generator
) -> Bool[np.ndarray, "labelling step"]:
    """Labellings of the null: `shuffle` moves each label, `rotate` turns the row of labels round.

    Rotation keeps runs of equal labels together, as real labels have them; it is the stricter
    null where scores and labels both change slowly along the trace.
    """
    if kind == "shuffle":
        return rng.permuted(np.tile(essential, (count, 1)), axis=1)
    if kind == "rotate":
        n = len(essential)
        shift = rng.integers(0, n, size=(count, 1))
        return essential[(np.arange(n) + shift) % n]
    raise ConfigError(f"unknown null {kind!r}; choose {' or '.join(NULLS)}")


def max_null(
    traces: Sequence[RankedTrace],
    *,
    kind: str = "shuffle",
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Float[np.ndarray, "permutation"]]:
    """SRA and balanced SRA of the best head under labels permuted within each trace.

    Args:
        traces: with scores of every head.
        kind: see `permuted_labels`.
        permutations: number of labellings; the smallest p-value is 1 / (permutations + 1).
        seed: of the permutations.
        advance: called after each trace, for a progress bar.
    """
    rng = np.random.default_rng(seed)
    n_heads = traces[0].scores.shape[0]
    sums = {m: np.zeros((n_heads, permutations)) for m in ("sra", "balanced")}
    counted = {m: np.zeros(permutations) for m in sums}
    for trace in traces:
        labellings = permuted_labels(trace.essential, permutations, kind, rng)
        counts = ranking_counts(trace.scores, labellings)
        for metric, values in (("sra", counts.sra()), ("balanced", counts.balanced())):
            # A labelling with pairs of one order only has no balanced figure for any head.
            exists = ~np.isnan(values[0])
            sums[metric][:, exists] += values[:, exists]
            counted[metric] += exists
        advance()
    return {m: (sums[m] / np.maximum(counted[m], 1)).max(axis=0) for m in sums}


def p_values(
    figures: Float[np.ndarray, "head"], null: Float[np.ndarray, "permutation"]
) -> Float[np.ndarray, "head"]:
    """Share of permutations whose best head reaches the figure, the observed one counted in.

    Corrected for the choice among all heads: p ≤ 0.05 for one head is as rare as any head
    reaching its figure by chance in one of twenty studies. Not a number where there is no figure.
    """
    ordered = np.sort(null)
    reached = len(null) - np.searchsorted(ordered, figures - 1e-12, side="left")
    p: np.ndarray = np.where(np.isnan(figures), np.nan, (1 + reached) / (len(null) + 1))
    return p
