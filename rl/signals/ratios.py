"""Formulas: evidence of a response → S_k / S_base of each step; below 1 a step is attenuated.

Each stands in `RATIOS` by the name that `signal` chooses it by. docs/signals.md holds them against
true labels on the pocket model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from probing.attention.scores import step_scores
from rl.signals.evidence import Evidence

Ratios = Float[np.ndarray, "step"]

DOUBT = 0.3  # nats: a step that says something less sure than this wants a check
LAST_STEPS = 2  # before the end of the reasoning, read beside the answer


def answer_ratio(seen: Evidence) -> Ratios:
    """S_k / S_base as AttnPO has it: the answer's attention per token of the step (eq. 1, 4)."""
    return step_scores(seen.looks[-1], seen.spans) / seen.base


def last_steps_ratio(seen: Evidence) -> Ratios:
    """The same, read from the last steps of the reasoning as well as from the answer."""
    lookers = seen.tokens[-LAST_STEPS:].sum() + seen.answer.sum()
    mass = seen.looks[-1 - LAST_STEPS :].sum(axis=0)
    return step_scores(mass, seen.spans) / (lookers / len(seen.answer))


def mass_ratio(seen: Evidence) -> Ratios:
    """The answer's attention to the whole step, over the mean of the response's steps.

    S_k · |s_k| / mean_j S_j · |s_j|: long steps are not made less of.
    """
    mass = seen.edges[-1]
    return mass / max(float(mass.mean()), np.finfo(float).tiny)


def rank_ratio(seen: Evidence) -> Ratios:
    """2 · rank / (K + 1): the upper half of a response's steps is kept, whatever S_base is."""
    from scipy.stats import rankdata

    ratio = answer_ratio(seen)
    ranks: Ratios = 2 * rankdata(ratio) / (len(ratio) + 1)
    return ranks


def chained_ratio(seen: Evidence) -> Ratios:
    """Essential is what a path of looks leads to from the answer; see `widest_paths`."""
    lookers = seen.tokens[:, None] * seen.tokens[None]
    before = np.maximum(seen.spans[:, :1], 1)  # tokens that a step can look back at
    looks = np.tril(seen.edges[:-1] / np.maximum(lookers, 1) * before, -1)
    return widest_paths(answer_ratio(seen), looks)


def widest_paths(answer: Ratios, looks: Float[np.ndarray, "step step"]) -> Ratios:
    """r_i = max(a_i, max over j > i of min(r_j, e_{j→i})): the best path's weakest look.

    Args:
        answer: a, how much the answer looks at each step, over uniform attention.
        looks: e, how much each step looks at each earlier one, over uniform attention.

    Example: the answer looks at the last step, that at the first one.
        >>> looks = np.array([[0, 0, 0], [0, 0, 0], [3.0, 0.1, 0]])
        >>> tuple(map(float, widest_paths(np.array([0.2, 0.2, 2.0]), looks)))
        (2.0, 0.2, 2.0)
    """
    reached = np.array(answer, dtype=float)
    for step in range(len(reached) - 1, 0, -1):  # all that look at an earlier step are done
        through = np.minimum(reached[step], looks[step, :step])
        reached[:step] = np.maximum(reached[:step], through)
    return reached


def checks_ratio(seen: Evidence) -> Ratios:
    """Attention of the answer, or the first look back at a step that the policy doubted.

    max(S_k / S_base, d_k / DOUBT), d_k as `doubt_paid` has it. A check that confirms moves no
    value, so that no answer looks at it; what it looks at tells whether it was worth making.
    """
    paid = doubt_paid(seen.edges[:-1], doubts(seen.entropy, seen.spans))
    return np.maximum(answer_ratio(seen), paid / DOUBT)


def doubts(
    entropy: Float[np.ndarray, "token"], spans: Int[np.ndarray, "step 2"]
) -> Float[np.ndarray, "step"]:
    """Largest entropy within each step; its first token is left out: that chooses which step.

    Example:
        >>> tuple(map(float, doubts(np.array([2.0, 0.1, 0.7, 3.0]), np.array([[0, 3], [3, 4]]))))
        (0.7, 0.0)
    """
    return np.array([entropy[first + 1 : last].max(initial=0) for first, last in spans])


def doubt_paid(
    edges: Float[np.ndarray, "step step"], doubt: Float[np.ndarray, "step"]
) -> Float[np.ndarray, "step"]:
    """Doubt of the step that each step looks back at most, if it is the first that does so.

    Args:
        edges: attention of each step to each step.
        doubt: of each step, nats.

    Example: steps 1 and 2 look back at step 0, which was doubted; the first of them is paid.
        >>> edges = np.array([[0, 0, 0], [0.6, 0, 0], [0.5, 0.2, 0]])
        >>> tuple(map(float, doubt_paid(edges, np.array([0.9, 0.0, 0.0]))))
        (0.0, 0.9, 0.0)
    """
    open_, paid = np.array(doubt, dtype=float), np.zeros(len(doubt))
    for step in range(1, len(paid)):
        back = int(edges[step, :step].argmax())
        paid[step], open_[back] = open_[back], 0.0
    return paid


def influence_ratio(seen: Evidence) -> Ratios:
    """Attention per token from all that follows (the step, or F), over the mean of the steps.

    By step what arXiv 2510.13554 calls future attention influence; there by token and window.
    """
    after = np.tril(seen.edges, -1).sum(axis=0)
    followers = np.maximum(seen.spans[-1, 1] + seen.answer.sum() - seen.spans[:, 1], 1)
    influence = after / (np.maximum(seen.tokens, 1) * followers)
    return influence / max(float(influence.mean()), np.finfo(float).tiny)


def entropy_ratio(seen: Evidence) -> Ratios:
    """Mean entropy of the step's tokens over that of all steps' (arXiv 2506.01939, by step)."""
    means = step_scores(seen.entropy, seen.spans)
    whole = float(np.average(means, weights=np.maximum(seen.tokens, 1)))
    return means / max(whole, np.finfo(float).tiny)


RATIOS: dict[str, Callable[[Evidence], Ratios]] = {
    "last-steps": last_steps_ratio,
    "mass": mass_ratio,
    "rank": rank_ratio,
    "chained": chained_ratio,
    "checks": checks_ratio,
    "influence": influence_ratio,
    "entropy": entropy_ratio,
}
