"""Steering: the chosen heads' attention from the answer to one step, scaled up and down.

A part of `kfh ablate`. In each trace one step is altered: a value that the answer takes up is
replaced by another (`probing.interventions.copies.Alterer`; the highest-scored essential step that
holds one). The weights of heads from the answer to that step are multiplied by each factor, and the
rows made to sum to one again (docs/PAPER.md, eq. 16). What is read off:
- `follow`, nats, in the altered trace: how far the answer follows the step (eq. 18). Where the
  heads copy, it rises with the factor;
- the log-probability of the correct answer, and the greedy answer, in the trace as it was.
Arms: `chosen`: the head set, to that step; `random`: random heads of the same layers, to the same
step; `other-step`: the head set, to another step drawn at random. `none` is the factor 1, at which
all arms are the same and nothing is computed anew. Traces in which nothing can be altered have no
outcomes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probing.answers.context import PreparedTrace
from probing.answers.edited import batches
from probing.answers.edits import ANSWER, HeadEdit
from probing.choices import Head
from probing.interventions.copies import Altered, follows
from probing.interventions.effects import OTHER_STEP, STEERING
from probing.interventions.heads import (
    CHOSEN,
    Arm,
    HeadWork,
    open_answers,
    outcome_of,
    random_heads,
)
from probing.interventions.outcomes import NONE, RANDOM, Outcome
from probing.interventions.setup import Setup

PART = STEERING
MODE = "scale/answer-to-step"


@dataclass(frozen=True, eq=False)
class Steered:
    """One batch: the traces as they were and altered, and the steps that are steered to."""

    traces: list[PreparedTrace]
    altered: list[Altered]
    plain: Any  # readings of both
    changed: Any
    spans: dict[str, list[Any]]  # of the altered step, and of another one


def steer(setup: Setup) -> Iterator[list[Outcome]]:
    """The outcomes of each trace, arm by arm and factor by factor.

    Raises:
        ModelError: heads cannot be edited, or a head does not exist.
        ConfigError: no random heads are left in the layers.
    """
    heads = tuple(setup.heads.pairs)
    with open_answers(setup) as answers:
        answers.check(heads)
        work = HeadWork(setup, answers, sources=False)
        arms = steering_arms(setup, heads, answers.layers)
        for traces in batches(setup.traces, setup.config.batch_tokens):
            pairs = [(trace, work.alterer(trace)) for trace in traces]
            found: dict[str, list[Outcome]] = {trace.id: [] for trace in traces}
            if any(altered for _, altered in pairs):
                batch = _read(setup, answers, [(t, one) for t, one in pairs if one])
                for arm in arms:
                    for outcome in _outcomes(work, answers, batch, arm):
                        found[outcome.trace].append(outcome)
            yield from found.values()


def steering_arms(setup: Setup, heads: tuple[Head, ...], layers: dict[int, int]) -> list[Arm]:
    """`none` first; then the arms at each factor but 1, which is `none`."""
    config = setup.config
    controls = random_heads(heads, layers, config.draws, config.seed)
    arms = [Arm(NONE, "", 0, None, 1.0)]
    for factor in config.factors:
        if factor == 1:
            continue

        def scale(of: Sequence[Head], by: float = factor) -> HeadEdit:
            return HeadEdit("scale", tuple(of), ANSWER, by)

        arms.append(Arm(CHOSEN, MODE, 0, scale(heads), factor))
        arms.append(Arm(OTHER_STEP, MODE, 0, scale(heads), factor))
        for draw, control in enumerate(controls):
            extra = {"overlap": control.overlap}
            arms.append(Arm(RANDOM, MODE, draw, scale(control.heads), factor, extra))
    return arms


def _read(setup: Setup, answers: Any, pairs: list[tuple[PreparedTrace, Altered]]) -> Steered:
    traces, altered = [trace for trace, _ in pairs], [one for _, one in pairs]
    setup.advance(2 * sum(trace.context for trace in traces))
    own = [one.trace.spans[[one.step]] for one in altered]
    other = [other_step(one, setup.config.seed) for one in altered]
    return Steered(
        traces,
        altered,
        answers.read(traces),
        answers.read([one.trace for one in altered]),
        {
            CHOSEN: own,
            RANDOM: own,
            OTHER_STEP: [
                one.trace.spans[[] if step is None else [step]]
                for one, step in zip(altered, other, strict=True)
            ],
        },
    )


def other_step(altered: Altered, seed: int) -> int | None:
    """Another step that has tokens, drawn by the trace's id; None where there is none."""
    trace = altered.trace
    digest = hashlib.sha256(trace.id.encode()).digest()
    rng = np.random.default_rng([seed, 1, int.from_bytes(digest[:8], "big")])
    there = np.flatnonzero(trace.spans[:, 1] > trace.spans[:, 0])
    others = there[there != altered.step]
    return int(rng.choice(others)) if len(others) else None


def _outcomes(work: HeadWork, answers: Any, batch: Steered, arm: Arm) -> Iterator[Outcome]:
    """The outcomes of one arm; a trace without another step has none in `other-step`."""
    spans = batch.spans.get(arm.name)
    found = work.answer(batch.plain, arm.edit, spans)
    followed = follows(answers, batch.changed, batch.altered, arm.edit, spans)
    for row, trace in enumerate(batch.traces):
        if spans is not None and not len(spans[row]):
            continue
        found[row]["extra"]["follow"] = followed[row]
        yield outcome_of(PART, trace, arm, found[row])
