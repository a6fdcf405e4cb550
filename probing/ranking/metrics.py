"""How well scores rank essential steps above redundant ones: SRA, its balanced form, the gate.

Equation numbers are those of docs/PAPER.md; the method is AttnPO's (arXiv 2602.09953, section 3).
Plain functions of one trace come first; the vectorised engine over heads and labellings after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from probing.attention.scores import ScoredTrace, Scores
from probing.choices import METRICS
from probing.errors import DataError
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

    `texts` are those of the steps; empty where a finished probe is read again without its traces.
    """

    id: str
    group: str  # traces of one problem share it: they never stand on both sides of a split
    scores: Scores
    essential: Essential
    tokens: Int[np.ndarray, "step"]  # |s_k|
    base: float  # S_base at p = 1
    texts: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        scored: ScoredTrace,
        labels: Sequence[str | None],
        group: str,
        texts: Sequence[str] = (),
    ) -> RankedTrace | None:
        """The steps with a label and a token of their own; None where no pair of them is left.

        Args:
            scored: the scores of all steps of the trace.
            labels: of each step.
            group: the trace's problem.
            texts: of each step, where they are known.
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
        )

    def measure(self, scores: Scores | None = None) -> dict[str, Float[np.ndarray, "head"]]:
        """Every metric of this trace for the given scores (default: its own)."""
        scores = self.scores if scores is None else scores
        counts = ranking_counts(scores, self.essential[None])
        return {
            "sra": counts.sra()[:, 0],
            "balanced": counts.balanced()[:, 0],
            "gating": gating_accuracy(scores, self.essential, self.base),
        }


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
    """Pairs put right, by which of the two comes first, for P labellings of one trace."""

    right_first: Float[np.ndarray, "head labelling"]  # the essential step comes first
    right_last: Float[np.ndarray, "head labelling"]  # the redundant step comes first
    pairs_first: Float[np.ndarray, "labelling"]
    pairs_last: Float[np.ndarray, "labelling"]

    @property
    def pairs(self) -> Float[np.ndarray, "labelling"]:
        """Number of (essential, redundant) pairs."""
        return self.pairs_first + self.pairs_last

    def sra(self) -> Float[np.ndarray, "head labelling"]:
        """`step_ranking_accuracy` of each head under each labelling."""
        return (self.right_first + self.right_last) / self.pairs

    def balanced(self) -> Float[np.ndarray, "head labelling"]:
        """`balanced_ranking_accuracy` of each head under each labelling."""
        with np.errstate(invalid="ignore", divide="ignore"):
            first = self.right_first / self.pairs_first
            last = self.right_last / self.pairs_last
            return (first + last) / 2


def ranking_counts(
    scores: Scores,
    labellings: Bool[np.ndarray, "labelling step"],
    chunk_bytes: int = 64 << 20,
) -> RankingCounts:
    """Count the pairs put right, for all heads and many labellings at once.

    With U_ij = [S_i > S_j] + ½ [S_i = S_j] for i < j, and labels m, one product X = m U serves
    both orders:
        essential first:  Σ_{i<j} m_i (1 − m_j) U_ij        = Σ_j X_j (1 − m_j)
        redundant first:  Σ_{i<j} (1 − m_i) m_j (1 − U_ij)  = n − Σ_j (Σ_i U_ij − X_j) m_j
    The counts are whole and half numbers below 2²⁴, hence exact in float32.
    """
    n_heads, n_steps = scores.shape
    labels = torch.from_numpy(labellings.astype(np.float32))
    before = torch.cumsum(labels, 1) - labels  # essential steps before each step
    others = torch.arange(n_steps) - before  # redundant steps before each step
    pairs_first = (before * (1 - labels)).sum(1)
    pairs_last = (others * labels).sum(1)
    right_first = torch.empty((n_heads, len(labels)))
    right_last = torch.empty((n_heads, len(labels)))
    size = max(1, chunk_bytes // (4 * n_steps * (n_steps + len(labels))))
    for at in range(0, n_heads, size):
        s = torch.from_numpy(np.ascontiguousarray(scores[at : at + size]))
        difference = s[:, :, None] - s[:, None, :]
        wins = ((difference > 0).float() + 0.5 * (difference == 0).float()).triu_(1)
        x = labels @ wins  # (head, labelling, step)
        right_first[at : at + size] = (x * (1 - labels)).sum(-1)
        rest = ((wins.sum(1)[:, None] - x) * labels).sum(-1)
        right_last[at : at + size] = pairs_last - rest
    return RankingCounts(
        right_first.double().numpy(),
        right_last.double().numpy(),
        pairs_first.double().numpy(),
        pairs_last.double().numpy(),
    )


def metric_table(
    traces: Sequence[RankedTrace], scores: Sequence[Float[np.ndarray, "head _"]] | None = None
) -> dict[str, Float[np.ndarray, "head trace"]]:
    """Every metric for every head (rows) and trace (columns); its mean over traces is the figure.

    Args:
        traces: at least one.
        scores: other scores than the traces' own, one array a trace (ensembles, controls).
    """
    rows = [
        trace.measure(None if scores is None else scores[number])
        for number, trace in enumerate(traces)
    ]
    return {metric: np.stack([row[metric] for row in rows], axis=1) for metric in METRICS}


def contrast(
    traces: Sequence[RankedTrace],
) -> tuple[Float[np.ndarray, "head"], Float[np.ndarray, "head"]]:
    """Median S / S_base over the essential and over the redundant steps of all traces, by head."""
    ratios = [trace.scores / trace.base for trace in traces]
    parts = []
    for essential in (True, False):
        chosen = [r[:, t.essential == essential] for r, t in zip(ratios, traces, strict=True)]
        parts.append(np.median(np.concatenate(chosen, axis=1), axis=1))
    return parts[0], parts[1]


def ranked_trace(trace: Trace, scored: ScoredTrace) -> RankedTrace | None:
    """The labelled steps of a trace with their scores; None where no pair is left."""
    return RankedTrace.of(
        scored,
        [step.label for step in trace.steps],
        trace.problem_key,
        [trace.response[step.start : step.end] for step in trace.steps],
    )
