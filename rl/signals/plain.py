"""Signals without attention: controls, and the ceiling by true labels.

Each takes a batch of responses and gives one score a step, as `rl.attnpo.signals` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from probing.attention.scores import step_baseline
from probing.ranking.metrics import answer_overlap
from probing.traces.segmenters import carry_labels

if TYPE_CHECKING:
    from rl.attnpo.completions import Batch

Scores = Float[np.ndarray, "step"]
LABEL_SCORES = {"essential": np.inf, "redundant": 0.0, None: np.nan}


def recency_scores(batch: Batch) -> list[Scores]:
    """A control without attention: later steps score higher, whatever they say.

        S_k = 2k / (K + 1) · |F| / |q ⊕ o|,  k = 1 … K

    so that the mean over the steps is the baseline at p = 1.
    """
    counts = [len(response.spans) for response in batch.responses]
    return _times_baseline(batch, [2 * np.arange(1, n + 1) / (n + 1) for n in counts])


def overlap_scores(batch: Batch) -> list[Scores]:
    """A control without attention: the share o_k of a step's words that the answer has, too
    (`probing.ranking.metrics.answer_overlap`).

        S_k = o_k / mean(o) · |F| / |q ⊕ o|

    so that the mean over the steps is the baseline at p = 1, as all are where none shares a word.
    """
    ratios = []
    for response in batch.responses:
        texts = [response.text[step.start : step.end] for step in response.steps]
        answer = response.text[response.steps[-1].end :] if texts else ""
        shared = answer_overlap(texts, answer)
        ratios.append(shared / shared.mean() if shared.any() else np.ones(len(shared)))
    return _times_baseline(batch, ratios)


def _times_baseline(batch: Batch, ratios: list[Scores]) -> list[Scores]:
    sizes = zip(ratios, batch.answer_tokens, batch.total_tokens, strict=True)
    return [np.asarray(ratio * step_baseline(answer, total)) for ratio, answer, total in sizes]


def label_scores(batch: Batch) -> list[Scores]:
    """The ceiling: essential steps above every baseline, redundant ones below, others NaN."""
    scores = []
    for truth, response in zip(batch.labels or (), batch.responses, strict=True):
        steps = carry_labels(tuple(truth), list(response.steps))
        scores.append(np.array([LABEL_SCORES[step.label] for step in steps]))
    return scores
