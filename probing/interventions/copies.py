"""Which step a value of the answer is copied from: asked by hiding, and by altering a step.

By hiding: each step in turn is hidden from the queries Q, in all heads, and the source of a value
token is the step whose hiding costs it most (docs/PAPER.md, eq. 17). By altering: the value in one
step is replaced by another that the trace does not hold, and it is read off how much more likely
the answer's value has become the altered one than the original (eq. 18).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from probing.answers.context import PreparedTrace
from probing.answers.edited import EditedAnswers, Reading
from probing.answers.edits import HeadEdit
from probing.answers.hiding import StepHiding
from probing.errors import in_trace
from probing.interventions.setup import generator
from probing.models.lengths import held_at
from probing.traces.text import value_spans
from probing.traces.tokens import decode_with_offsets, token_spans

LEAST = 0.5  # nats that a source must be worth, as an essential step (eq. 8)
TRIES = 50
Span = tuple[int, int]  # half open, in tokens of the trace


def value_runs(tokenizer: Any, trace: PreparedTrace) -> list[Span]:
    """The tokens of each value (`probing.traces.text.value_spans`) in the trace's correct answer.

    In an answer that is a box alone: of the box. A value cut off by a limit of tokens counts as
    far as it goes.
    """
    text, offsets = decode_with_offsets(tokenizer, trace.ids[trace.answer :])
    spans = token_spans(offsets, value_spans(text), "overlap") + trace.answer
    return [(int(start), int(end)) for start, end in spans if end > start]


def copy_sources(
    drops: Float[np.ndarray, "step token"], least: float = LEAST
) -> Int[np.ndarray, "token"]:
    """The step that each token is copied from; -1 where no step is worth `least` nats (eq. 17).

    Args:
        drops: log p(token | all) − log p(token | step hidden from Q).
        least: nats.

    Example:
        >>> copy_sources(np.array([[0.0, 3.0, 0.1], [2.0, 1.0, 0.2]])).tolist()
        [1, 0, -1]
    """
    if not len(drops):
        return np.full(drops.shape[1], -1)
    return np.where(drops.max(0) >= least, drops.argmax(0), -1)


def source_shares(
    sources: Int[np.ndarray, "token"],
    before: Int[np.ndarray, "token"],
    labels: Sequence[str | None],
) -> dict[str, float]:
    """What sources say of one trace under an edit, as shares of its value tokens.

    `has_source`: of all value tokens; `source_kept`: of those that had one before, have the same;
    `source_essential`: of those that have one, it is an essential step. A share of nothing, or
    without labels, is left out.

    Example:
        >>> source_shares(np.array([1, -1, 0]), np.array([1, 1, -1]), ["redundant", "essential"])
        {'has_source': 0.6666666666666666, 'source_kept': 0.5, 'source_essential': 0.5}
    """
    there, had = sources >= 0, before >= 0
    shares = {"has_source": float(there.mean())} if len(sources) else {}
    if had.any():
        shares["source_kept"] = float((sources == before)[had].mean())
    if there.any() and any(labels):
        essential = [labels[step] == "essential" for step in sources[there]]
        shares["source_essential"] = float(np.mean(essential))
    return shares


def hiding_drops(
    hiding: StepHiding,
    answers: EditedAnswers,
    reading: Reading,
    row: int,
    runs: Sequence[Span],
    edit: HeadEdit | None,
) -> Float[np.ndarray, "step token"]:
    """What each value token loses with each step hidden from Q, under an edit.

    Args:
        hiding: of the same model.
        answers: whose edits are entered.
        reading: of the contexts, under the same edit where it is at all positions.
        row: of the trace in the reading.
        runs: the values of its answer, at least one.
        edit: what is done to the heads, in the rows with a step hidden and without.

    Raises:
        ModelError: a layer's window has dropped a part of the context.
    """
    trace = reading.traces[row]
    counted = np.zeros(len(trace), dtype=bool)
    for start, end in runs:
        counted[start:end] = True
    end = int(np.flatnonzero(counted)[-1]) + 1
    cut = replace(trace, ids=trace.ids[:end], counted=counted[:end])
    with held_at(hiding.model, len(trace)), in_trace(trace.id):
        layers = reading.layers_of(row) or hiding.context(cut)  # which names the window
        nothing = np.zeros((1, trace.context), dtype=bool)
        masks = torch.from_numpy(np.concatenate([nothing, trace.hidden]))
        steps = torch.from_numpy(trace.hidden.any(0)).to(hiding.device)
        rows = []
        for hidden in masks.split(hiding.rows_at_once(cut)):
            packed = len(hidden) * (end - trace.context - 1)
            queries = torch.ones((1, packed), dtype=torch.bool, device=hiding.device)
            columns = torch.cat([steps[None], ~queries], dim=1)
            with answers.edits.under(edit, queries, columns):
                chances = hiding.log_probabilities(cut, layers, hidden.to(hiding.device))
            rows.append(chances.double().cpu().numpy())
    everything, *others = np.concatenate(rows)
    return np.asarray(everything - np.asarray(others).reshape(-1, len(everything)))


@dataclass(frozen=True, eq=False)
class Altered:
    """A trace with another value in one step.

    `trace`: the altered one, of the same tokens elsewhere; `step`: which was altered; `run`: the
    answer's tokens that hold the original value; `original`, `other`: the two values.
    """

    trace: PreparedTrace
    step: int
    run: Span
    original: tuple[int, ...]
    other: tuple[int, ...]

    def tails(self) -> tuple[np.ndarray, np.ndarray]:
        """The answer up to the value, then the original; and then the other."""
        before = self.trace.ids[self.trace.context : self.run[0]]
        original, other = np.asarray(self.original), np.asarray(self.other)
        return np.concatenate([before, original]), np.concatenate([before, other])


class Alterer:
    """Alters traces: finds a step that holds a value of the answer, and another value.

    Args:
        tokenizer: the model's; another value has the same number of digits in every token.
        seed: of the values drawn.
    """

    def __init__(self, tokenizer: Any, seed: int = 0) -> None:
        self.tokenizer, self.seed = tokenizer, seed
        self.texts = _texts(tokenizer)
        kinds: dict[tuple[str, int], list[int]] = {}
        for token, text in enumerate(self.texts):
            if text.strip().isascii() and text.strip().isdigit():
                kinds.setdefault((text.replace(text.strip(), ""), len(text.strip())), []).append(
                    token
                )
        self.alike = {token: tokens for tokens in kinds.values() for token in tokens}

    def __call__(self, trace: PreparedTrace) -> Altered | None:
        """The trace altered in the highest-scored step that holds a value of its answer.

        Essential steps come first where steps are labelled. None: no step holds one, or no other
        value can be found.
        """
        places = self._places(trace)
        essential = [p for p in places if trace.labels[p[0]] == "essential"]
        candidates = essential or places
        if not candidates:
            return None
        best = max(trace.scores[p[0]] for p in candidates)
        step, run, _ = max(
            (p for p in candidates if trace.scores[p[0]] == best), key=lambda p: p[2]
        )
        original = tuple(trace.ids[run[0] : run[1]].tolist())
        other = self._other(trace, original)
        if other is None:
            return None
        ids = trace.ids.copy()
        for at in self._places_in(trace, step, original):
            ids[at : at + len(original)] = other
        return Altered(replace(trace, ids=ids), step, run, original, other)

    def _places(self, trace: PreparedTrace) -> list[tuple[int, Span, int]]:
        """Steps that hold a value of the answer: step, the answer's tokens, place in the step."""
        places = []
        for run in value_runs(self.tokenizer, trace):
            value = tuple(trace.ids[run[0] : run[1]].tolist())
            if not any(token in self.alike for token in value):
                continue
            for step in np.flatnonzero(~np.isnan(trace.scores)):
                places += [(int(step), run, at) for at in self._places_in(trace, int(step), value)]
        return places

    def _places_in(self, trace: PreparedTrace, step: int, value: tuple[int, ...]) -> list[int]:
        """Where a step holds the value, not as a part of a longer number."""
        start, end = (int(place) for place in trace.spans[step])
        ids = trace.ids
        return [
            at
            for at in _occurrences(ids[start:end], value, start)
            if not (self._digit(ids, at - 1, -1) and self.texts[value[0]][:1].isdigit())
            and not self._digit(ids, at + len(value), 0)
        ]

    def _digit(self, ids: Int[np.ndarray, "token"], at: int, place: int) -> bool:
        text = self.texts[int(ids[at])] if 0 <= at < len(ids) else ""
        return text[place : place + 1 or None].isdigit()

    def _other(self, trace: PreparedTrace, original: tuple[int, ...]) -> tuple[int, ...] | None:
        """Another value of the same form that the trace holds nowhere; its first digits differ."""
        rng = generator(trace.id, self.seed)
        first = next(place for place, token in enumerate(original) if token in self.alike)
        for _ in range(TRIES):
            drawn = tuple(int(rng.choice(self.alike.get(token, [token]))) for token in original)
            if drawn[first] != original[first] and not _occurrences(trace.ids, drawn, 0):
                return drawn
        return None


def follows(
    answers: EditedAnswers,
    reading: Reading,
    altered: Sequence[Altered],
    edit: HeadEdit | None = None,
    spans: Sequence[Int[np.ndarray, "span 2"]] | None = None,
) -> list[float]:
    """How far each answer follows the altered step: log p(other) − log p(original) (eq. 18).

    Args:
        answers: whose edits are entered.
        reading: of the altered traces, under the same edit where it is at all positions.
        altered: the same traces.
        edit: what is done to the heads.
        spans: the edited columns; default all steps.
    """
    sums = []
    for which in (0, 1):
        tails = [alteration.tails()[which] for alteration in altered]
        chances = answers.log_probabilities(reading, edit, spans=spans, tails=tails)
        values = zip(chances, altered, strict=True)
        sums.append([of[-len(alteration.original) :].sum() for of, alteration in values])
    return [float(other - original) for original, other in zip(*sums, strict=True)]


def _occurrences(ids: Int[np.ndarray, "token"], value: Sequence[int], shift: int) -> list[int]:
    """Where the value stands in the ids, `shift` added."""
    if len(ids) < len(value):
        return []
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(value))
    return [int(at) + shift for at in np.flatnonzero((windows == np.asarray(value)).all(1))]


def _texts(tokenizer: Any) -> list[str]:
    """The text of every token alone."""
    return [tokenizer.decode([token]) for token in range(len(tokenizer))]
