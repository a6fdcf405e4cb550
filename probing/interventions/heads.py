"""Intervention on heads: silence the chosen ones, or random ones of the same layers.

For every mode (`probing.answers.edits.MODES`) there are the arms `chosen` and `random`, which has
as many heads in each layer as the head set; `none` changes nothing. Each is measured:
- the log-probability of the correct answer, and the greedy answer, from the context as it stands;
- where each value of the answer is copied from, found by hiding steps: `has_source`,
  `source_kept`, `source_essential` (`probing.interventions.copies.source_shares`);
- `follow`, nats: how far the answer follows an altered step
  (`probing.interventions.copies.follows`);
- `overlap`, of random heads: the share of them that are chosen ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations, islice, product
from math import comb, prod

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
ENUMERATED = 10_000  # so many sets of random heads are listed at most; above, they are drawn


@dataclass(frozen=True, eq=False)
class Arm:
    """One change of heads."""

    name: str
    mode: str
    draw: int
    edit: HeadEdit | None
    dose: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Measured:
    """What is measured of one trace under an arm; the fields are those of an `Outcome`."""

    logprob: float | None
    correct: bool | None
    extra: dict[str, float]

    def outcome(self, part: str, trace: PreparedTrace, arm: Arm) -> Outcome:
        """The outcome of the arm."""
        return Outcome(
            part,
            arm.name,
            arm.mode,
            arm.dose,
            arm.draw,
            trace.id,
            trace.group,
            self.correct,
            self.logprob,
            int(trace.counted.sum()),
            {**self.extra, **arm.extra},
        )


@dataclass(frozen=True, eq=False)
class TraceBatch:
    """Traces that are worked on together, and what every arm shares: contexts without an edit."""

    traces: Sequence[PreparedTrace]
    plain: Reading
    runs: list[list[Span]]  # of each trace, the values of its answer
    altered: list[Altered | None]
    plain_altered: Reading | None  # of those that there are

    @property
    def alterations(self) -> list[Altered]:
        """The altered traces that there are."""
        return [altered for altered in self.altered if altered]


def silence_heads(setup: Setup) -> Iterator[list[Outcome]]:
    """The outcomes of each trace with the head set silenced, and with random heads silenced.

    Raises:
        ModelError: heads cannot be edited, or a head does not exist.
        ConfigError: an unknown mode, or no random heads are left in the layers.
    """
    heads = tuple(setup.heads.pairs)
    with open_answers(setup) as answers:
        answers.check(heads)
        work = HeadWork(setup, answers, sources=True)
        arms = head_arms(setup, answers, heads)
        for traces in batches(setup.traces, setup.batch_tokens, answers.lengths):
            batch = work.prepare(traces)
            outcomes: list[list[Outcome]] = [[] for _ in traces]
            before = None
            for arm in arms:
                measured, sources = work.measure(batch, arm, before)
                before = sources if before is None else before
                for row, trace in enumerate(traces):
                    outcomes[row].append(measured[row].outcome(PART, trace, arm))
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
    by_place: dict[str, Means] = {}
    arms = [Arm(NONE, "", 0, None)]
    for mode in config.modes:
        kind, _, where = mode.partition("/")
        if kind == "mean" and where not in by_place:
            by_place[where] = head_means(
                answers, setup.reference, every, where, batch_tokens=setup.batch_tokens
            )
        means, dose = by_place.get(where), float(len(heads))
        arms.append(Arm(CHOSEN, mode, 0, HeadEdit.of_mode(mode, heads, means), dose))
        for draw, control in enumerate(controls):
            edit = HeadEdit.of_mode(mode, control.heads, means)
            arms.append(Arm(RANDOM, mode, draw, edit, dose, {"overlap": control.overlap}))
    return arms


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
        self.hiding = step_hiding(setup) if sources else None

    def prepare(self, traces: Sequence[PreparedTrace]) -> TraceBatch:
        """Read the contexts, and the altered ones."""
        altered = [self.alterer(trace) for trace in traces]
        changed = [alteration.trace for alteration in altered if alteration]
        self.setup.advance(sum(trace.context for trace in [*traces, *changed]))
        return TraceBatch(
            traces,
            self.answers.read(traces),
            [value_runs(self.setup.tokenizer, trace) for trace in traces],
            altered,
            self.answers.read(changed) if changed else None,
        )

    def measure(
        self, batch: TraceBatch, arm: Arm, before: Sequence[Int[np.ndarray, "token"]] | None
    ) -> tuple[list[Measured], list[Int[np.ndarray, "token"]]]:
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
        measured = self.answer(reading, arm.edit)
        sources = [self._sources(reading, row, runs, arm) for row, runs in enumerate(batch.runs)]
        if self.hiding is not None:
            for row, trace in enumerate(batch.traces):
                reference = sources[row] if before is None else before[row]
                shares = source_shares(sources[row], reference, trace.labels)
                measured[row].extra.update(shares)
        if altered is not None:
            followed = iter(follows(self.answers, altered, batch.alterations, arm.edit))
            for row, alteration in enumerate(batch.altered):
                if alteration:
                    measured[row].extra["follow"] = next(followed)
        return measured, sources

    def answer(
        self, reading: Reading, edit: HeadEdit | None, spans: Spans | None = None
    ) -> list[Measured]:
        """Log-probability of the correct answer, and the verdict on the greedy one, by trace."""
        limit = self.setup.config.max_answer_tokens
        chances = self.answers.log_probabilities(reading, edit, spans=spans)
        decoded: list[list[int]] | list[None] = [None] * len(reading.traces)
        if limit:
            decoded = self.answers.greedy(reading, edit, spans=spans, max_tokens=limit)
        self.setup.advance(sum(map(len, chances)) + sum(len(ids or ()) for ids in decoded))
        measured = []
        for trace, chance, ids in zip(reading.traces, chances, decoded, strict=True):
            logprob = float(chance[trace.counted[trace.context + 1 :]].sum())
            row = Measured(logprob if trace.own_correct else None, None, {})
            if ids is not None:
                row.correct = self.setup.verdict(trace, ids)
                row.extra["ended"] = float(bool(ids) and ids[-1] in self.setup.ends)
            measured.append(row)
        return measured

    def _sources(
        self, reading: Reading, row: int, runs: Sequence[Span], arm: Arm
    ) -> Int[np.ndarray, "token"]:
        if self.hiding is None or not runs:
            return np.zeros(0, dtype=np.int64)
        return copy_sources(hiding_drops(self.hiding, self.answers, reading, row, runs, arm.edit))


def step_hiding(setup: Setup) -> StepHiding | None:
    """What hides steps; None, with a warning, where the model's attention takes no such mask."""
    window, longest = shortest_window(setup.model.config), max(map(len, setup.reference))
    try:
        if window is not None and window <= longest:
            raise ModelError(f"a layer's window is shorter than the longest trace ({longest})")
        return StepHiding(setup.model)
    except ModelError as error:
        warnings.warn(f"no copy sources: {error}", stacklevel=2)
        return None


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
    options: list[_Layer] = []
    for layer in sorted({layer for layer, _ in chosen}):
        taken = [head for at, head in chosen if at == layer]
        others = [head for head in range(layers[layer]) if head not in taken]
        options.append(_Layer(layer, taken, others))
    if not any(layer.new for layer in options):
        raise ConfigError(
            "all heads of these layers are chosen, so there are no random heads of the same "
            "layers to compare with; choose fewer heads (kfh probe --top)"
        )
    count = prod(layer.count for layer in options)
    rng = np.random.default_rng(seed)
    if count <= ENUMERATED:
        sets = [_joined(parts) for parts in product(*(layer.sets() for layer in options))]
        places = rng.permutation(len(sets))[:draws]
        drawn = [sets[place] for place in sorted(places)]
    else:
        tries = (_joined(layer.draw(rng) for layer in options) for _ in range(100 * draws))
        drawn = list(islice(dict.fromkeys(tries), draws))
    return [Control(heads, len(set(heads) & set(chosen)) / len(heads)) for heads in drawn]


@dataclass(frozen=True)
class _Layer:
    """The heads of one layer: those of the chosen set, and the others."""

    number: int
    chosen: list[int]
    others: list[int]

    @property
    def new(self) -> int:
        """How many heads of a random set are not chosen ones: all, where there are enough."""
        return min(len(self.chosen), len(self.others))

    @property
    def count(self) -> int:
        """Number of random sets."""
        filled = len(self.chosen) - self.new
        return comb(len(self.others), self.new) * comb(len(self.chosen), filled)

    def sets(self) -> list[tuple[Head, ...]]:
        """Every random set: other heads first, filled up with chosen ones."""
        return [
            self._heads(*new, *old)
            for new in combinations(self.others, self.new)
            for old in combinations(self.chosen, len(self.chosen) - self.new)
        ]

    def draw(self, rng: np.random.Generator) -> tuple[Head, ...]:
        """One random set."""
        new = rng.permutation(self.others)[: self.new]
        return self._heads(*new, *rng.permutation(self.chosen)[: len(self.chosen) - self.new])

    def _heads(self, *heads: int) -> tuple[Head, ...]:
        return tuple((self.number, int(head)) for head in sorted(heads))


def _joined(parts: Iterable[tuple[Head, ...]]) -> tuple[Head, ...]:
    return tuple(head for part in parts for head in part)
