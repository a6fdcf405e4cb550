"""How well scores rank essential steps above redundant ones: SRA, its balanced form, the gate.

Equation numbers are those of docs/PAPER.md; the method is AttnPO's (arXiv 2602.09953, section 3).
Plain functions of one trace come first; what counts the pairs of all heads at once after.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Float, Int

from probing.attention.scores import ScoredTrace, Scores
from probing.choices import METRICS, OVERLAP
from probing.errors import DataError
from probing.intervals import Medians
from probing.traces.file import Trace

Essential = Bool[np.ndarray, "step"]


def step_ranking_accuracy(
    scores: Float[np.ndarray, "*head step"], essential: Essential
) -> Float[np.ndarray, "*head"]:
    """Share of (essential, redundant) pairs of one trace that the scores put right (eq. 2).

        SRA = (1 / |E||R|) Σ_{i ∈ E} Σ_{j ∈ R} [S_i > S_j] + ½ [S_i = S_j]

    Over several traces it is averaged with equal weight (`sra_table`). The paper describes the
    measure in words; this reading is ours, see docs/PAPER.md.

    Args:
        scores: one score a step, for any number of heads.
        essential: True for essential, False for redundant; steps without a label left out.

    Raises:
        DataError: all steps have the same label, so that there is no pair.

    Example:
        >>> float(step_ranking_accuracy(np.array([3.0, 1.0, 2.0, 2.0]),
        ...                             np.array([True, False, True, False])))
        0.875
    """
    if essential.all() or not essential.any():
        raise DataError("SRA needs both essential and redundant steps in the trace")
    difference = scores[..., essential][..., :, None] - scores[..., ~essential][..., None, :]
    return np.asarray(((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-2, -1)))


def balanced_ranking_accuracy(
    scores: Float[np.ndarray, "*head step"], essential: Essential
) -> Float[np.ndarray, "*head"]:
    """SRA over pairs whose essential step comes first and over the others, averaged (eq. 3).

    A score that rises or falls with position alone is right on one kind of pair and wrong on the
    other, hence gets exactly 0.5.

    Returns:
        Not a number where the trace lacks one of the two kinds of pairs.

    Example:
        >>> recency = np.arange(4.0)
        >>> float(balanced_ranking_accuracy(recency, np.array([True, False, True, False])))
        0.5
    """
    early, late = np.flatnonzero(essential)[:, None], np.flatnonzero(~essential)[None, :]
    difference = scores[..., early] - scores[..., late]
    right = (difference > 0) + 0.5 * (difference == 0)
    first = early < late
    if first.all() or not first.any():
        return np.full(scores.shape[:-1], np.nan)
    return np.asarray((right[..., first].mean(-1) + right[..., ~first].mean(-1)) / 2)


def gating_accuracy(
    scores: Float[np.ndarray, "*head step"], essential: Essential, base: float
) -> Float[np.ndarray, "*head"]:
    """How well the baseline parts the steps: what training sees of a head (eq. 5).

    The mean of the share of essential steps above S_base and of redundant steps below it, at
    p = 1; on the baseline itself counts one half. AttnPO attenuates by this comparison, so a head
    of high SRA whose scores all lie above the baseline would attenuate nothing.

    Args:
        scores: one score a step, for any number of heads.
        essential: True for essential, False for redundant.
        base: S_base = |F| / |q ⊕ o|, what uniform attention would give (eq. 4).

    Example:
        >>> float(gating_accuracy(np.array([3.0, 0.5, 0.2]), np.array([True, True, False]), 1.0))
        0.75
    """
    above = (scores > base) + 0.5 * (scores == base)
    kept = above[..., essential].mean(-1)
    gated = 1.0 - above[..., ~essential].mean(-1)
    return np.asarray((kept + gated) / 2)


@dataclass(frozen=True, eq=False)
class RankedTrace:
    """The labelled steps of one trace with their scores for every head, in the order of heads.

    `texts` are those of the steps, `answer` that of the final answer; empty where a finished probe
    is read again without its traces.
    """

    id: str
    group: str  # traces of one problem share it: they never stand on both sides of a split
    scores: Scores
    essential: Essential
    tokens: Int[np.ndarray, "step"]  # |s_k|
    base: float  # S_base at p = 1
    texts: tuple[str, ...] = ()
    answer: str = ""

    @classmethod
    def of(
        cls,
        scored: ScoredTrace,
        labels: Sequence[str | None],
        group: str,
        texts: Sequence[str] = (),
        answer: str = "",
    ) -> RankedTrace | None:
        """The steps with a label and a token of their own; None where no pair of them is left.

        Args:
            scored: the scores of all steps of the trace.
            labels: of each step.
            group: the trace's problem.
            texts, answer: of each step, and of the final answer, where they are known.
        """
        chosen = np.array([label is not None for label in labels]) & (scored.tokens > 0)
        essential = np.array([label == "essential" for label in labels])[chosen]
        if scored.answer_tokens == 0 or essential.all() or not essential.any():
            return None
        return cls(
            scored.id,
            group,
            scored.scores[:, chosen],
            essential,
            scored.tokens[chosen],
            scored.base,
            tuple(text for text, use in zip(texts, chosen, strict=bool(texts)) if use),
            answer,
        )

    def measure(self, scores: Scores | None = None) -> dict[str, Float[np.ndarray, "head"]]:
        """Every metric of this trace for the given scores (default: its own)."""
        scores = self.scores if scores is None else scores
        counts = ranking_counts(scores, self.essential)
        return {
            "sra": counts.sra(),
            "balanced": counts.balanced(),
            "gating": gating_accuracy(scores, self.essential, self.base),
        }


def answer_overlap(texts: Sequence[str], answer: str) -> Float[np.ndarray, "step"]:
    """The share of each step's words and numbers that the final answer has, too (a sign of Chinese
    or Japanese is a word): what looking for the answer's words would give. Ours.

    Args:
        texts: of the steps.
        answer: the text behind the end of the reasoning.

    Example:
        >>> answer_overlap(["So a = 12.", "Wait, is that so?"], " a 12").tolist()
        [0.6666666666666666, 0.0]
    """
    known = {*_WORD.findall(answer)}
    found = [[word in known for word in _WORD.findall(text)] for text in texts]
    return np.array([np.mean(row) if row else 0.0 for row in found])


_WORD = re.compile(
    r"[\u3040-\u30ff\u4e00-\u9fff]|\d+(?:[.,]\d+)*|[^\W\d_\u3040-\u30ff\u4e00-\u9fff]+"
)


def _overlap(trace: RankedTrace) -> np.ndarray:
    if not trace.texts:  # not known: no step is told from another
        return np.zeros(len(trace.essential))
    return answer_overlap(trace.texts, trace.answer)


# Scorers beside the heads, by name: a function of a trace gives a score a step. A scorer of your
# own stands among them after `CONTROLS["mine"] = scorer`, where `scorer(trace)` returns an array
# (step,) for a `RankedTrace`; the probe ranks it, prints it, draws it and reports it like the rest,
# and the hash of its source goes into run.json.
Control = Callable[[RankedTrace], np.ndarray]
CONTROLS: dict[str, Control] = {
    "recency": lambda trace: np.arange(len(trace.essential)),
    "earliness": lambda trace: -np.arange(len(trace.essential)),
    "length": lambda trace: trace.tokens,
    "uniform": lambda trace: np.zeros(len(trace.essential)),
    OVERLAP: _overlap,
    "all heads": lambda trace: trace.scores.mean(axis=0),
}
BUILT_IN = tuple(CONTROLS)


def control_scores(trace: RankedTrace, name: str) -> Float[np.ndarray, "1 step"]:
    """Scores of a trace by the control of this name, as of one head.

    Raises:
        DataError: it does not give one number a step.
    """
    scores = np.asarray(CONTROLS[name](trace), dtype=np.float64)
    if scores.shape != trace.essential.shape or not np.isfinite(scores).all():
        raise DataError(
            f"the control {name!r} must give {len(trace.essential)} numbers for trace {trace.id}, "
            f"one a step; it gave an array of shape {scores.shape}"
        )
    return scores[None]


@dataclass(frozen=True, eq=False)
class RankingCounts:
    """Pairs put right, by which of the two comes first, under one labelling or each of many."""

    right_first: Float[np.ndarray, "head *labelling"]  # the essential step comes first
    right_last: Float[np.ndarray, "head *labelling"]  # the redundant step comes first
    pairs_first: Float[np.ndarray, "*labelling"]
    pairs_last: Float[np.ndarray, "*labelling"]

    def sra(self) -> Float[np.ndarray, "head *labelling"]:
        """`step_ranking_accuracy` of each head under each labelling."""
        return (self.right_first + self.right_last) / (self.pairs_first + self.pairs_last)

    def balanced(self) -> Float[np.ndarray, "head *labelling"]:
        """`balanced_ranking_accuracy` of each head under each labelling."""
        with np.errstate(invalid="ignore", divide="ignore"):
            first = self.right_first / self.pairs_first
            last = self.right_last / self.pairs_last
            return (first + last) / 2


def ranking_counts(scores: Scores, essential: Essential) -> RankingCounts:
    """Count the pairs put right, for all heads at once, in whole numbers.

    Only pairs of an essential and a redundant step are compared, one essential step after another
    with all redundant ones: 2 U_ij = [S_i > S_j] + [S_i ≥ S_j]. Heads lie side by side in memory,
    so that a comparison takes many of them, and hits are added as bytes.
    """
    by_step = np.ascontiguousarray(scores.T)
    redundant, places = by_step[~essential], np.flatnonzero(~essential)
    first, last = np.zeros((2, len(scores)), dtype=np.int64)  # twice the pairs put right
    lower = np.empty(redundant.shape, dtype=bool)
    chosen = np.flatnonzero(essential)
    earlier = np.searchsorted(places, chosen)  # redundant steps before each essential one
    for step, before in zip(chosen, earlier, strict=True):
        for below in (np.less, np.less_equal):
            below(redundant, by_step[step], out=lower)
            _add_hits(last, lower[:before])
            _add_hits(first, lower[before:])
    pairs_last = int(earlier.sum())
    pairs = (len(chosen) * len(places) - pairs_last, pairs_last)
    return RankingCounts(first / 2, last / 2, *(np.array(float(number)) for number in pairs))


def _add_hits(to: Int[np.ndarray, "head"], hits: Bool[np.ndarray, "step head"]) -> None:
    """Add the number of hits of each head; 255 steps at a time fit a byte."""
    for at in range(0, len(hits), 255):
        to += np.add.reduce(hits[at : at + 255].view(np.uint8), axis=0, dtype=np.uint8)


def metric_table(traces: Iterable[RankedTrace]) -> dict[str, Float[np.ndarray, "head trace"]]:
    """Every metric for every head (rows) and trace (columns); its mean over traces is the figure.

    Args:
        traces: at least one.
    """
    return by_metric([trace.measure() for trace in traces])


def by_metric(
    measured: Sequence[dict[str, Float[np.ndarray, "head"]]],
) -> dict[str, Float[np.ndarray, "head trace"]]:
    """The metrics of single traces as one table a metric."""
    return {metric: np.stack([row[metric] for row in measured], axis=1) for metric in METRICS}


def ratios(trace: RankedTrace) -> Iterator[tuple[int, Float[np.ndarray, "head step"]]]:
    """S / S_base of the essential steps, of the redundant ones, with the row of the first head.

    Rows as `Medians` takes them: of essential steps by head, then of redundant steps by head.
    """
    of_base = trace.scores / trace.base
    yield 0, of_base[:, trace.essential]
    yield len(of_base), of_base[:, ~trace.essential]


def ranked_trace(trace: Trace, scored: ScoredTrace, answer: str = "all") -> RankedTrace | None:
    """The labelled steps of a trace with their scores by `answer`; None where no pair is left."""
    return RankedTrace.of(
        scored,
        [step.label for step in trace.steps],
        trace.problem_key,
        [trace.response[step.start : step.end] for step in trace.steps],
        trace.answer_text(bare=answer == "bare"),
    )


class Measured:
    """The metrics of some scorers (the heads of a model, controls) on each trace."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.groups: list[str] = []  # problems
        self.pairs: list[int] = []  # of an essential and a redundant step
        self._rows: list[dict[str, Float[np.ndarray, "scorer"]]] = []

    @classmethod
    def of(cls, traces: Iterable[RankedTrace]) -> Measured:
        """All of these, by their own scores."""
        measured = cls()
        for trace in traces:
            measured.add(trace)
        return measured

    def add(self, trace: RankedTrace, scores: Scores | None = None) -> None:
        """Measure one trace, by its own scores or by others; not after `values` were asked for."""
        self.ids.append(trace.id)
        self.groups.append(trace.group)
        self.pairs.append(int(trace.essential.sum() * (~trace.essential).sum()))
        self._rows.append(trace.measure(scores))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def values(self) -> dict[str, Float[np.ndarray, "scorer trace"]]:
        """Every metric of every scorer on every trace."""
        values = by_metric(self._rows)
        self._rows.clear()
        return values


class Measures:
    """All that ranking needs from going through the traces for the first time."""

    def __init__(self) -> None:
        self.heads, self.controls = Measured(), Measured()
        self.ratios: Medians | None = None  # of S / S_base, see `ratios`

    @classmethod
    def of(cls, traces: Iterable[RankedTrace]) -> Measures:
        """Of all of these."""
        measures = cls()
        for trace in traces:
            measures.add(trace)
        return measures

    def add(self, trace: RankedTrace) -> None:
        """Measure one trace.

        Raises:
            DataError: a control does not give one number a step.
        """
        self.heads.add(trace)
        controls = [control_scores(trace, name) for name in CONTROLS]
        self.controls.add(trace, np.concatenate(controls))
        self.ratios = self.ratios or Medians(2 * len(trace.scores))
        for first, values in ratios(trace):
            self.ratios.add(first, values)


class ReadTraces(Sequence[RankedTrace]):
    """Ranked traces that are read when they are asked for: none stays in memory.

    Args:
        keys: ids or places, one a trace.
        read: gives the trace of a key.
    """

    def __init__(self, keys: Sequence[Any], read: Callable[[Any], RankedTrace]) -> None:
        self.keys, self.read = keys, read

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, place: int) -> RankedTrace: ...

    @overload
    def __getitem__(self, place: slice) -> ReadTraces: ...

    def __getitem__(self, place: int | slice) -> RankedTrace | ReadTraces:
        if isinstance(place, slice):
            return ReadTraces(self.keys[place], self.read)
        return self.read(self.keys[place])

    def __iter__(self) -> Iterator[RankedTrace]:
        return map(self.read, self.keys)
