"""Intervention on attention: that of the chosen heads from the answer to one step, scaled.

In each trace one step is altered: a value that the answer takes up is
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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probing.answers.context import PreparedTrace
from probing.answers.edited import EditedAnswers, Reading, batches
from probing.answers.edits import ANSWER, HeadEdit
from probing.choices import Head
from probing.interventions.copies import Altered, follows
from probing.interventions.effects import OTHER_STEP, STEERING
from probing.interventions.heads import CHOSEN, Arm, HeadWork, open_answers, random_heads
from probing.interventions.outcomes import NONE, RANDOM, Outcome
from probing.interventions.setup import Setup, generator

PART = STEERING
MODE = "scale/answer-to-step"


@dataclass(frozen=True, eq=False)
class Steered:
    """One batch: the traces as they were and altered, and the steps that are steered to."""

    traces: list[PreparedTrace]
    altered: list[Altered]
    plain: Reading
    changed: Reading
    spans: dict[str, list[Any]]  # by arm: of the altered step, or of another one


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
        for traces in batches(setup.traces, setup.batch_tokens, answers.lengths):
            pairs = [(trace, work.alterer(trace)) for trace in traces]
            outcomes: dict[str, list[Outcome]] = {trace.id: [] for trace in traces}
            if any(altered for _, altered in pairs):
                batch = _read(setup, answers, [(t, altered) for t, altered in pairs if altered])
                for arm in arms:
                    for outcome in _outcomes(work, answers, batch, arm):
                        outcomes[outcome.trace].append(outcome)
            yield from outcomes.values()


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


def _read(
    setup: Setup, answers: EditedAnswers, pairs: list[tuple[PreparedTrace, Altered]]
) -> Steered:
    traces, alterations = [trace for trace, _ in pairs], [altered for _, altered in pairs]
    changed = [altered.trace for altered in alterations]
    setup.advance(2 * sum(trace.context for trace in traces))
    step, other = [], []
    for altered in alterations:
        step.append(altered.trace.spans[[altered.step]])
        another = other_step(altered, setup.config.seed)
        other.append(altered.trace.spans[[] if another is None else [another]])
    spans = {CHOSEN: step, RANDOM: step, OTHER_STEP: other}
    return Steered(traces, alterations, answers.read(traces), answers.read(changed), spans)


def other_step(altered: Altered, seed: int) -> int | None:
    """Another step that has tokens, drawn by the trace's id; None where there is none."""
    trace = altered.trace
    rng = generator(trace.id, seed, 1)
    there = np.flatnonzero(trace.spans[:, 1] > trace.spans[:, 0])
    others = there[there != altered.step]
    return int(rng.choice(others)) if len(others) else None


def _outcomes(
    work: HeadWork, answers: EditedAnswers, batch: Steered, arm: Arm
) -> Iterator[Outcome]:
    """The outcomes of one arm; a trace without another step has none in `other-step`."""
    spans = batch.spans.get(arm.name)
    measured = work.answer(batch.plain, arm.edit, spans)
    followed = follows(answers, batch.changed, batch.altered, arm.edit, spans)
    for row, trace in enumerate(batch.traces):
        if spans is not None and not len(spans[row]):
            continue
        measured[row].extra["follow"] = followed[row]
        yield measured[row].outcome(PART, trace, arm)
