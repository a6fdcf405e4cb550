"""The best of many heads by chance: what its figure must exceed, under a null that is named.

`problems`, the default, tests what is claimed of a head: that it ranks the steps of *new problems*
better than chance. A problem with all its traces is one observation. `shuffle` and `rotate` test
less: that the labels of *these traces* have nothing to do with the scores. Where a problem has
several traces, or a head likes one step of a problem whatever its label, theirs is false far more
often than the claim is true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from probing.attention.scores import Scores
from probing.choices import METRICS, NULLS, PERMUTATIONS
from probing.errors import ConfigError
from probing.intervals import by_group
from probing.ranking.metrics import Measured, RankedTrace, RankingCounts
from probing.settings import unknown

CHANCE = 0.5  # of every metric, for scores that know nothing of the labels
Null = tuple[Float[np.ndarray, "head"], Float[np.ndarray, "draw"]]  # p-values, best by chance


def sign_flips(
    groups: int, draws: int = PERMUTATIONS, seed: int = 0
) -> Float[np.ndarray, "draw group"]:
    """Signs of each group in each draw; the first draw is the observed one, all +1.

    All 2ⁿ of them where they are no more than `draws`; else drawn at random.

    Example:
        >>> sign_flips(2, 100).tolist()
        [[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]
    """
    if groups < 63 and 2**groups <= draws:
        return 1.0 - 2.0 * (np.arange(2**groups)[:, None] >> np.arange(groups) & 1)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (draws + 1, groups))
    signs[0] = 1.0
    return signs


def flipped_null(
    values: Float[np.ndarray, "head trace"],
    groups: Sequence[str],
    *,
    draws: int = PERMUTATIONS,
    seed: int = 0,
) -> Null:
    """Test over problems that a head ranks better than chance, for the best of all heads (eq. 25).

        d_g = Σ_{traces of g} (value − ½),  T = Σ_g d_g / √(Σ_g d_g²),  p = P(max_h T* ≥ T)

    where T* has the sign of every d_g drawn, the same for all heads. Null: on problems like these
    the head's figure lies as often and as far below ½ as above. With √Σd² unchanged by signs, T
    grows with Student's t; the maximum over heads corrects for the choice among them (Westfall and
    Young 1993; Romano and Wolf 2005, JASA 100, 94–108).

    Args:
        values: of a metric; not a number where a trace has none.
        groups: the problem of each trace; n of them give no p below 1 / 2ⁿ.
        draws: of signs.
        seed: of the draws.

    Returns:
        p of each head, one-sided, not a number where it has no figure; and the figure of the best
        head in each draw but the observed one, none where no head has a figure.

    Example: three problems leave eight ways to set the signs, of which one is as good.
        >>> p, chance = flipped_null(np.array([[0.9, 0.8, 0.7]]), ["a", "b", "c"])
        >>> float(p[0]), len(chance)
        (0.125, 7)
    """
    sums = by_group(np.nan_to_num(values - CHANCE), groups)
    counted = (~np.isnan(values)).sum(axis=1)
    norms = np.sqrt((sums**2).sum(axis=1))
    flipped = sign_flips(sums.shape[1], draws, seed) @ sums.T  # (draw, head)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.where(norms > 0, flipped / norms, 0.0)
        figures = CHANCE + flipped / counted
    known = counted > 0
    reached = _reached(t[0], t.max(axis=1)) / len(t)
    best = figures[1:][:, known].max(axis=1) if known.any() else figures[1:1, 0]
    return np.where(known, reached, np.nan), best


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


def labelling_counts(
    scores: Scores,
    labellings: Bool[np.ndarray, "labelling step"],
    chunk_bytes: int = 64 << 20,
) -> RankingCounts:
    """`ranking_counts` under many labellings at once.

    With U_ij = [S_i > S_j] + ½ [S_i = S_j] for i < j, and labels m, one product over pairs serves
    both orders, Q = Σ_{i<j} U_ij m_i m_j, beside two over steps:
        essential first:  Σ_{i<j} m_i (1 − m_j) U_ij        = Σ_i m_i Σ_{j>i} U_ij − Q
        redundant first:  Σ_{i<j} (1 − m_i) m_j (1 − U_ij)  = n − Σ_j m_j Σ_{i<j} U_ij + Q
    Equal labellings, as of rotations and of short traces, are counted once.

    Args:
        scores: of every head.
        labellings: True for essential.
        chunk_bytes: of the pairs of heads and of labellings that are in memory at once. Sums over
            as many are whole and half numbers below 2²³, hence exact in float32.
    """
    labels, of = np.unique(labellings, axis=0, return_inverse=True)
    n_heads, n_steps = scores.shape
    by_step = np.ascontiguousarray(scores.T)
    size = min(max(n_steps, chunk_bytes // (4 * (n_heads + len(labels)))), 1 << 23)  # of pairs
    wins = np.empty((size, n_heads), dtype=np.float32)
    both = np.empty((size, len(labels)), dtype=np.float32)
    later, earlier = np.zeros((2, n_steps, n_heads))  # Σ U_ij over j > i, over i < j
    product, filled = np.zeros((n_heads, len(labels))), 0
    for step in range(n_steps - 1):
        end = filled + n_steps - step - 1
        if end > size:
            product += wins[:filled].T @ both[:filled]
            filled, end = 0, end - filled
        rest, won = by_step[step + 1 :], wins[filled:end]
        np.add(rest < by_step[step], rest <= by_step[step], out=won, dtype=np.float32)
        won *= 0.5
        later[step] = won.sum(axis=0, dtype=np.float64)
        earlier[step + 1 :] += won
        np.multiply(labels[:, step + 1 :].T, labels[:, step], out=both[filled:end])
        filled = end
    product += wins[:filled].T @ both[:filled]
    before = np.cumsum(labels, axis=1) - labels  # essential steps before each step
    pairs_first = (before * ~labels).sum(axis=1).astype(float)
    pairs_last = ((np.arange(n_steps) - before) * labels).sum(axis=1).astype(float)
    weights = labels.T.astype(float)
    first = later.T @ weights - product
    last = pairs_last - earlier.T @ weights + product
    of = of.reshape(-1)
    return RankingCounts(first[:, of], last[:, of], pairs_first[of], pairs_last[of])


def max_null(
    traces: Iterable[RankedTrace],
    *,
    kind: str = "shuffle",
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Float[np.ndarray, "permutation"]]:
    """SRA and balanced SRA of the best head under labels permuted within each trace.

    Args:
        traces: at least one, with scores of every head; gone through once.
        kind: see `permuted_labels`.
        permutations: number of labellings; the smallest p-value is 1 / (permutations + 1).
        seed: of the permutations.
        advance: called after each trace, for a progress bar.

    Raises:
        ConfigError: an unknown kind.
    """
    rng = np.random.default_rng(seed)
    sums: dict[str, Any] = dict.fromkeys(("sra", "balanced"), 0.0)  # (head, permutation)
    counted = {m: np.zeros(permutations) for m in sums}
    for trace in traces:
        labellings = permuted_labels(trace.essential, permutations, kind, rng)
        counts = labelling_counts(trace.scores, labellings)
        for metric, values in (("sra", counts.sra()), ("balanced", counts.balanced())):
            # A labelling with pairs of one order only has no balanced figure for any head.
            counted[metric] += ~np.isnan(values[0])
            sums[metric] += np.nan_to_num(values)
        advance()
    return {m: (sums[m] / np.maximum(counted[m], 1)).max(axis=0) for m in sums}


def p_values(
    figures: Float[np.ndarray, "head"], null: Float[np.ndarray, "permutation"]
) -> Float[np.ndarray, "head"]:
    """Share of permutations whose best head reaches the figure, the observed one counted in.

    Corrected for the choice among all heads: p ≤ 0.05 for one head is as rare as any head
    reaching its figure by chance in one of twenty studies. Not a number where there is no figure.
    """
    reached = 1 + _reached(figures, null)
    return np.where(np.isnan(figures), np.nan, reached / (len(null) + 1))


def _reached(
    figures: Float[np.ndarray, "head"], null: Float[np.ndarray, "draw"]
) -> Int[np.ndarray, "head"]:
    """How many draws reach each figure."""
    return len(null) - np.searchsorted(np.sort(null), figures - 1e-12, side="left")


def best_by_chance(
    traces: Iterable[RankedTrace],
    measured: Measured,
    kind: str,
    draws: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Null]:
    """p-values and the best head by chance of every metric that the kind of null has them for.

    Args:
        traces: with scores of every head; gone through once where labels are permuted.
        measured: every metric of them.
        kind: of NULLS; see the top of this module.
        draws: of signs or labellings.
        seed: of the draws.
        advance: called after each trace, for a progress bar.

    Raises:
        ConfigError: an unknown kind.
    """
    values, groups = measured.values, measured.groups
    if kind == "problems":
        for _ in measured.ids:
            advance()
        return {str(m): flipped_null(values[m], groups, draws=draws, seed=seed) for m in METRICS}
    null = max_null(traces, kind=kind, permutations=draws, seed=seed, advance=advance)
    with np.errstate(invalid="ignore"):
        return {m: (p_values(np.nanmean(values[m], axis=1), v), v) for m, v in null.items()}


def null_words(kind: str, problems: int, heads: int, draws: int) -> str:
    """Which null the p-values are under, for the foot of a table.

    Args:
        kind: of NULLS.
        problems: that were ranked.
        heads: among which the best one is chosen.
        draws: of signs or labellings.
    """
    if kind == "problems":
        signs = f"{min(draws, 2**problems) if problems < 63 else draws:,}"
        return (
            f"p: how often the best of {heads} heads would reach as much if none ranked the steps "
            f"of new problems better than chance (signs of {problems} problems, {signs} draws). "
            "It does not say why a head ranks: position and length do so too, see the controls"
        )
    return (
        f"p: how often the best of {heads} heads would reach as much if the labels of these very "
        f"traces had nothing to do with the scores (labels by {kind}, {draws:,} draws). It says "
        "nothing of new problems"
    )
