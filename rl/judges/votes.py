"""Votes of judges: consensus and agreement, as formulas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from probing.errors import ConfigError
from probing.settings import unknown

Consensus = Literal["unanimous", "majority"]
CONSENSUS: tuple[Consensus, ...] = get_args(Consensus)
ESSENTIAL, REDUNDANT = "essential", "redundant"


def consensus_label(votes: Sequence[str | None], rule: str) -> str | None:
    """The label on which judges agree; None where they do not.

    Args:
        votes: one a judge; None where it gave none, which is no vote for either.
        rule: `unanimous`: all judges say so; `majority`: more than half of all judges do.

    Raises:
        ConfigError: an unknown rule.

    Example:
        >>> consensus_label(["essential", "essential", None], "majority")
        'essential'
    """
    if rule not in CONSENSUS:
        raise ConfigError(unknown("consensus", rule, CONSENSUS))
    for label in (ESSENTIAL, REDUNDANT):
        share = sum(vote == label for vote in votes) / len(votes)
        if share == 1 or (rule == "majority" and share > 0.5):
            return label
    return None


def essential_share(votes: Sequence[str | None]) -> float | None:
    """Share of the votes given that say essential; None without a vote."""
    given = [vote for vote in votes if vote is not None]
    return given.count(ESSENTIAL) / len(given) if given else None


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Agreement of n raters beyond chance (Fleiss 1971, Psychological Bulletin 76, 378–382).

    κ = (P̄ − P_e) / (1 − P_e), with P̄ the mean over items of (Σ_j n_ij² − n) / (n (n − 1)) and
    P_e = Σ_j p_j², p_j the share of all ratings in category j.

    Args:
        counts: n_ij, ratings of item i in category j; each item has the same number n ≥ 2.

    Returns:
        κ; None where it does not exist: no item, one rater, or all ratings in one category.

    Example:
        Two raters, three items, of which they agree on two: P̄ = 2/3, p = (1/2, 1/2), κ = 1/3.
        >>> round(fleiss_kappa([[2, 0], [0, 2], [1, 1]]), 6)
        0.333333
    """
    table = np.asarray(counts, dtype=float)
    if table.size == 0 or table[0].sum() < 2:
        return None
    raters = table[0].sum()
    observed = ((table**2).sum(axis=1) - raters) / (raters * (raters - 1))
    by_chance = float(((table.sum(axis=0) / table.sum()) ** 2).sum())
    if by_chance == 1:
        return None
    return float((observed.mean() - by_chance) / (1 - by_chance))


def fleiss_agreement(votes: Sequence[Mapping[str, str | None]]) -> dict[str, object]:
    """How judges agree on steps.

    Args:
        votes: `{judge: label}` of each step, null where a judge gave none.

    Returns:
        Fleiss' kappa and the share of steps on which all agree, over the steps that all judges
        labelled; and for each judge its share of essential and how often it agrees with each
        other judge, over the steps that they labelled.
    """
    full = [list(of.values()) for of in votes if None not in of.values()]
    counts = [[labels.count(ESSENTIAL), labels.count(REDUNDANT)] for labels in full]
    names = list(votes[0]) if votes else []
    judges: dict[str, object] = {}
    for name in names:
        cast = [vote[name] for vote in votes]
        judges[name] = {
            "steps": sum(vote is not None for vote in cast),
            "essential": essential_share(cast),
            "agrees_with": {
                other: _same(cast, [vote[other] for vote in votes])
                for other in names
                if other != name
            },
        }
    return {
        "steps": len(full),
        "fleiss_kappa": fleiss_kappa(counts) if full else None,
        "unanimous": sum(0 in pair for pair in counts) / len(full) if full else None,
        "judges": judges,
    }


def _same(first: Sequence[str | None], second: Sequence[str | None]) -> float | None:
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else None
