"""What the answer loses when heads are silenced: the chosen ones, or random ones beside them.

A part of `kfh ablate`. For every mode (`probing.answers.edits.MODES`) there are the arms `chosen`
and `random` (heads of the same layers, `probing.interventions.heads`); `none` changes nothing. Each
is measured:
- the log-probability of the correct answer, and the greedy answer, from the context as it stands;
- where each value of the answer is copied from, found by hiding steps: `has_source`,
  `source_kept`, `source_essential` (`probing.interventions.copies.source_shares`);
- `follow`, nats: how far the answer follows an altered step
  (`probing.interventions.copies.follows`);
- `overlap`, of random heads: the share of them that are chosen ones.

Random heads to hold chosen ones against: of the same layers, as many in each.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations, islice, product
from math import comb, prod
from typing import Any

import numpy as np
from jaxtyping import Int

from probing.answers.context import PreparedTrace
from probing.answers.edited import EditedAnswers, Means, Reading, Spans, batches, head_means
from probing.answers.edits import ALL, HeadEdit, HeadEdits
from probing.answers.hiding import StepHiding
from probing.choices import Head
from probing.errors import ConfigError, ModelError
from probing.interventions.copies import (
    Altered,
    Alterer,
    Span,
    copy_sources,
    follows,
    hiding_drops,
    source_shares,
    value_runs,
)
from probing.interventions.outcomes import NONE, RANDOM, Outcome
from probing.interventions.setup import Setup
from probing.models.identity import shortest_window

PART = "heads"
CHOSEN = "chosen"


@dataclass(frozen=True, eq=False)
class Arm:
    """One change of heads."""

    name: str
    mode: str
    draw: int
    edit: HeadEdit | None
    dose: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Batch:
    """Traces that are worked on together, and what every arm shares: contexts without an edit."""

    traces: Sequence[PreparedTrace]
    plain: Reading
    runs: list[list[Span]]
    altered: list[Altered | None]
    plain_altered: Reading | None

    @property
    def alterations(self) -> list[Altered]:
        """Those that there are."""
        return [one for one in self.altered if one]


class HeadWork:
    """Measures arms on batches of traces.

    Args:
        setup: of the part.
        answers: of `open_answers`.
        sources: whether copy sources are looked for.
    """

    def __init__(self, setup: Setup, answers: EditedAnswers, *, sources: bool) -> None:
        self.setup, self.answers = setup, answers
        self.alterer = Alterer(setup.tokenizer, setup.config.seed)
        self.ablation = _ablation(setup) if sources else None

    def prepare(self, traces: Sequence[PreparedTrace]) -> Batch:
        """Read the contexts, and the altered ones."""
        altered = [self.alterer(trace) for trace in traces]
        there = [one.trace for one in altered if one]
        self.setup.advance(sum(trace.context for trace in [*traces, *there]))
        return Batch(
            traces,
            self.answers.read(traces),
            [value_runs(self.setup.tokenizer, trace) for trace in traces],
            altered,
            self.answers.read(there) if there else None,
        )

    def measure(
        self, batch: Batch, arm: Arm, before: Sequence[Int[np.ndarray, "token"]] | None
    ) -> tuple[list[dict[str, Any]], list[Int[np.ndarray, "token"]]]:
        """Measures of every trace under an arm, and the sources of its value tokens.

        Args:
            batch: prepared.
            arm: what is done.
            before: the sources without an edit; None: this arm is that one.
        """
        reading, altered = batch.plain, batch.plain_altered
        if arm.edit is not None and arm.edit.where == ALL:
            reading = self.answers.read(batch.traces, arm.edit)
            if altered is not None:
                altered = self.answers.read(altered.traces, arm.edit)
            self.setup.advance(sum(trace.context for trace in batch.traces))
        found = self.answer(reading, arm.edit)
        sources = [
            self._sources(reading, row, batch.runs[row], arm.edit)
            for row in range(len(batch.traces))
        ]
        for row, trace in enumerate(batch.traces):
            if self.ablation is not None:
                reference = sources[row] if before is None else before[row]
                shares = source_shares(sources[row], reference, trace.labels)
                found[row]["extra"].update(shares)
        if altered is not None:
            followed = iter(follows(self.answers, altered, batch.alterations, arm.edit))
            for row, one in enumerate(batch.altered):
                if one:
                    found[row]["extra"]["follow"] = next(followed)
        return found, sources

    def answer(
        self, reading: Reading, edit: HeadEdit | None, spans: Spans | None = None
    ) -> list[dict[str, Any]]:
        """Log-probability of the correct answer, and the verdict on the greedy one, by trace."""
        limit = self.setup.config.max_answer_tokens
        chances = self.answers.log_probabilities(reading, edit, spans=spans)
        decoded: list[list[int]] | list[None] = [None] * len(reading.traces)
        if limit:
            decoded = self.answers.greedy(reading, edit, spans=spans, max_tokens=limit)
        self.setup.advance(sum(map(len, chances)) + sum(len(ids or ()) for ids in decoded))
        found: list[dict[str, Any]] = []
        for trace, of, ids in zip(reading.traces, chances, decoded, strict=True):
            counted = trace.counted[trace.context + 1 :]
            one: dict[str, Any] = {"logprob": None, "correct": None, "extra": {}}
            if trace.own_correct:
                one["logprob"] = float(of[counted].sum())
            if ids is not None:
                one["correct"] = self.setup.verdict(trace, ids)
                one["extra"]["ended"] = float(bool(ids) and ids[-1] in self.setup.ends)
            found.append(one)
        return found

    def _sources(
        self, reading: Reading, row: int, runs: Sequence[Span], edit: HeadEdit | None
    ) -> Int[np.ndarray, "token"]:
        if self.ablation is None or not runs:
            return np.zeros(0, dtype=np.int64)
        return copy_sources(hiding_drops(self.ablation, self.answers, reading, row, runs, edit))


def silence_heads(setup: Setup) -> Iterator[list[Outcome]]:
    """The outcomes of each trace with the head set silenced, and with random heads silenced.

    Raises:
        ModelError: heads cannot be edited, or a head does not exist.
        ConfigError: an unknown mode, or no random heads are left in the layers.
    """
    heads = tuple(setup.heads.pairs)
    config = setup.config
    with open_answers(setup) as answers:
        answers.check(heads)
        work = HeadWork(setup, answers, sources=True)
        arms = head_arms(setup, answers, heads)
        for traces in batches(setup.traces, config.batch_tokens):
            batch = work.prepare(traces)
            outcomes: list[list[Outcome]] = [[] for _ in traces]
            before = None
            for arm in arms:
                found, sources = work.measure(batch, arm, before)
                before = sources if before is None else before
                for row, trace in enumerate(traces):
                    outcomes[row].append(outcome_of(PART, trace, arm, found[row]))
            yield from outcomes


@contextmanager
def open_answers(setup: Setup) -> Iterator[EditedAnswers]:
    """What answers under edits.

    Raises:
        ModelError: the model's heads cannot be edited.
    """
    with HeadEdits(setup.model) as edits:
        yield EditedAnswers(setup.model, edits, setup.ends)


def head_arms(setup: Setup, answers: EditedAnswers, heads: tuple[Head, ...]) -> list[Arm]:
    """`none` first, then for every mode the chosen heads and the random ones."""
    config = setup.config
    controls = random_heads(heads, answers.layers, config.draws, config.seed)
    every = tuple(dict.fromkeys([*heads, *(head for c in controls for head in c.heads)]))
    means: dict[str, Means] = {}
    arms = [Arm(NONE, "", 0, None)]
    for mode in config.modes:
        kind, _, where = mode.partition("/")
        if kind == "mean" and where not in means:
            means[where] = head_means(
                answers, setup.reference, every, where, batch_tokens=config.batch_tokens
            )
        of = means.get(where)
        dose = float(len(heads))
        arms.append(Arm(CHOSEN, mode, 0, HeadEdit.of_mode(mode, heads, of), dose))
        for draw, control in enumerate(controls):
            edit = HeadEdit.of_mode(mode, control.heads, of)
            arms.append(Arm(RANDOM, mode, draw, edit, dose, {"overlap": control.overlap}))
    return arms


def outcome_of(part: str, trace: PreparedTrace, arm: Arm, found: dict[str, Any]) -> Outcome:
    """One outcome of an arm."""
    return Outcome(
        part,
        arm.name,
        arm.mode,
        arm.dose,
        arm.draw,
        trace.id,
        trace.group,
        found["correct"],
        found["logprob"],
        int(trace.counted.sum()),
        {**found["extra"], **arm.extra},
    )


def _ablation(setup: Setup) -> StepHiding | None:
    """What hides steps; None, with a warning, where the model's attention takes no such mask."""
    window, longest = shortest_window(setup.model.config), max(map(len, setup.reference))
    try:
        if window is not None and window <= longest:
            raise ModelError(f"a layer's window is shorter than the longest trace ({longest})")
        return StepHiding(setup.model)
    except ModelError as error:
        warnings.warn(f"no copy sources: {error}", stacklevel=2)
        return None


ENUMERATED = 10_000  # so many sets at most are listed; above, they are drawn one by one


@dataclass(frozen=True)
class Control:
    """A set of heads, and the share of them that are chosen ones."""

    heads: tuple[Head, ...]
    overlap: float


def random_heads(
    chosen: Sequence[Head], layers: Mapping[int, int], draws: int, seed: int = 0
) -> list[Control]:
    """Different sets of random heads with as many heads in each layer as the chosen set has.

    Heads that are not chosen are taken first. A layer with too few of them is filled up with chosen
    ones (its set still differs, where any other head is left), and `overlap` says so. Where there
    are fewer such sets than draws, all of them are given.

    Args:
        chosen: the heads to control for.
        layers: heads of each layer of the model.
        draws: sets wanted, at least one.
        seed: of the drawing.

    Raises:
        ConfigError: no other head is in these layers.

    Example:
        >>> [c.heads for c in random_heads([(0, 1)], {0: 3}, 5)]
        [((0, 0),), ((0, 2),)]
    """
    options: list[tuple[list[int], list[int], int, int]] = []  # layer by layer
    for layer in sorted({layer for layer, _ in chosen}):
        own = [head for at, head in chosen if at == layer]
        others = [head for head in range(layers[layer]) if head not in own]
        fill = max(0, len(own) - len(others))
        options.append((others, own, len(own) - fill, layer))
    if not any(take for _, _, take, _ in options):
        raise ConfigError(
            "all heads of these layers are chosen, so there are no random heads of the same "
            "layers to compare with; choose fewer heads (kfh probe --top)"
        )
    count = prod(comb(len(o), n) * comb(len(own), len(own) - n) for o, own, n, _ in options)
    rng = np.random.default_rng(seed)
    if count <= ENUMERATED:
        sets = [_joined(parts) for parts in product(*map(_layer_sets, options))]
        places = rng.permutation(len(sets))[:draws]
        found = [sets[place] for place in sorted(places)]
    else:
        drawn = ((_joined(tuple(_drawn(o, rng) for o in options))) for _ in range(100 * draws))
        found = list(islice(dict.fromkeys(drawn), draws))
    return [Control(heads, len(set(heads) & set(chosen)) / len(heads)) for heads in found]


def _layer_sets(option: tuple[list[int], list[int], int, int]) -> list[tuple[Head, ...]]:
    """Every set of one layer: others first, filled up with chosen heads."""
    others, own, take, layer = option
    return [
        tuple((layer, head) for head in sorted((*new, *old)))
        for new in combinations(others, take)
        for old in combinations(own, len(own) - take)
    ]


def _drawn(
    option: tuple[list[int], list[int], int, int], rng: np.random.Generator
) -> tuple[Head, ...]:
    others, own, take, layer = option
    new = rng.permutation(others)[:take]
    old = rng.permutation(own)[: len(own) - take]
    return tuple((layer, int(head)) for head in sorted((*new, *old)))


def _joined(parts: Sequence[tuple[Head, ...]]) -> tuple[Head, ...]:
    return tuple(head for part in parts for head in part)
