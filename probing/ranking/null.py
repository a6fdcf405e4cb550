"""What keeps a ranking honest: intervals, a split by hash, and the null of the best of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from probing.choices import NULLS, PERMUTATIONS
from probing.errors import ConfigError
from probing.ranking.metrics import RankedTrace, ranking_counts
from probing.settings import unknown


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
    raise ConfigError(unknown("null", kind, NULLS))


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
