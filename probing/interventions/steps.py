"""Intervention on steps: remove some, and let the model answer again from the end marker.

Arms, for each number k of steps: `high`, the k with the highest score by the head set; `low`, the k
with the lowest; and the controls `random`, k drawn evenly, `matched`, k of which none is high and
that have about as many tokens as the high ones, and `recent`, the last k. In `none` nothing is
removed. It is token ids that are taken out; no text is tokenised again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from probing.answers.context import PreparedTrace
from probing.answers.removal import Answer, Answerer, without
from probing.interventions.outcomes import NONE, RANDOM, Outcome
from probing.interventions.setup import Setup, generator

PART = "steps"
ARMS = ("high", "low", RANDOM, "matched", "recent")
MATCHES = 32  # sets of steps among which the one nearest in tokens is taken

Steps = tuple[int, ...]


def remove_steps(setup: Setup) -> Iterator[list[Outcome]]:
    """Outcomes of removing steps, trace by trace; see the top of this file.

    A trace of at most k steps (with tokens) has no outcome for k, since nothing would remain.
    """
    config = setup.config
    answerer = Answerer(
        setup.model,
        setup.ends,
        max_tokens=config.max_answer_tokens,
        batch_tokens=setup.batch_tokens,
        advance=setup.advance,
    )
    for trace in setup.traces:
        plan = removals(trace, config.remove, config.draws, config.seed)
        sets = list(dict.fromkeys(plan.values()))  # no set of steps is removed twice
        gone = np.stack([without(trace, steps) for steps in sets])
        answers = dict(zip(sets, answerer(trace, gone), strict=True))
        yield [
            outcome(setup, trace, arm, k, draw, steps, answers[steps])
            for (arm, k, draw), steps in plan.items()
        ]


def removals(
    trace: PreparedTrace, remove: tuple[int, ...], draws: int, seed: int
) -> dict[tuple[str, int, int], Steps]:
    """Which steps go, by arm, k and draw; the arm `none` with k = 0 first."""
    sizes = trace.spans[:, 1] - trace.spans[:, 0]
    there = np.flatnonzero((sizes > 0) & ~np.isnan(trace.scores))
    order = there[np.argsort(-trace.scores[there], kind="stable")]
    plan: dict[tuple[str, int, int], Steps] = {(NONE, 0, 0): ()}
    for k in remove:
        if len(there) <= k:
            continue
        high = order[:k]
        plan["high", k, 0] = as_steps(high)
        plan["low", k, 0] = as_steps(order[::-1][:k])
        plan["recent", k, 0] = as_steps(there[-k:])
        others = np.setdiff1d(there, high)
        for draw in range(draws):
            rng = generator(trace.id, seed, after=(k, draw))
            plan[RANDOM, k, draw] = as_steps(rng.choice(there, k, replace=False))
            if len(others) >= k:
                matched = nearest_in_tokens(others, sizes, int(sizes[high].sum()), k, rng)
                plan["matched", k, draw] = as_steps(matched)
    return plan


def nearest_in_tokens(
    others: Int[np.ndarray, "step"],
    sizes: Int[np.ndarray, "step"],
    tokens: int,
    k: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "k"]:
    """Of 32 random sets of k steps, the one whose tokens are nearest in number to `tokens`.

    Args:
        others: the steps to draw from.
        sizes: tokens of every step of the trace.
        tokens: what the set should have.
        k: steps in a set.
        rng: what draws.
    """
    sets = np.stack([rng.choice(others, k, replace=False) for _ in range(MATCHES)])
    nearest: Int[np.ndarray, "k"] = sets[np.abs(sizes[sets].sum(1) - tokens).argmin()]
    return nearest


def as_steps(steps: Int[np.ndarray, "k"]) -> Steps:
    """Step numbers in the order of the text."""
    return tuple(sorted(int(step) for step in steps))


def outcome(
    setup: Setup,
    trace: PreparedTrace,
    arm: str,
    k: int,
    draw: int,
    steps: Steps,
    answer: Answer,
) -> Outcome:
    """One outcome, judged; `extra` says what was removed and whether the answer ended by itself."""
    extra = {"removed_tokens": float(without(trace, steps).sum())}
    labels = [trace.labels[step] for step in steps if trace.labels[step]]
    if labels:
        extra["essential"] = labels.count("essential") / len(labels)
    correct = None
    if answer.ids is not None:
        correct = setup.verdict(trace, answer.ids)
        extra["ended"] = float(answer.ids[-1] in setup.ends)
    return Outcome(
        PART,
        arm,
        "",
        float(k),
        draw,
        trace.id,
        trace.group,
        correct,
        answer.logprob if trace.own_correct else None,
        int(trace.counted.sum()),
        extra,
    )
