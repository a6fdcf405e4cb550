"""From step scores to advantages by token (AttnPO section 4), and the figures of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from probing.attention.scores import pad_batch
from probing.errors import DataError
from probing.traces.phrases import phrase_counts
from rl.attnpo.completions import Batch, Outcomes
from rl.attnpo.rescale import Rescaling, step_scales, token_scales


@dataclass(frozen=True, eq=False)
class Credited:
    """What each token and each step of a batch is given; outside the steps γ is 1."""

    advantages: Float[Tensor, "response token"]  # γ_k · A
    gamma: Float[Tensor, "response token"]
    step_gamma: Float[Tensor, "response step"]


def credit(
    batch: Batch,
    scores: Sequence[Real[np.ndarray, "_"]],
    rescaling: Rescaling,
    step: int,
) -> Credited:
    """γ_k · A for each token (AttnPO section 4, eq. 14): the outcome's advantage, by step.

    Args:
        batch: N responses of this process.
        scores: S_k of each response's steps, N arrays (`rl.attnpo.signals`).
        rescaling: the constants.
        step: t, the training step, the first one being 1.

    Raises:
        DataError: the scores are not one a step.
    """
    steps = [len(response.spans) for response in batch.responses]
    given = [len(row) for row in scores]
    if given != steps:
        raise DataError(f"the signal gave {given} scores for responses of {steps} steps")
    device = batch.advantage.device
    rows = [np.asarray(row, dtype=np.float64) for row in scores]
    step_gamma = step_scales(
        pad_batch(rows, np.nan, least=2).to(device, torch.float32),
        torch.tensor(batch.answer_tokens, device=device),
        torch.tensor(batch.total_tokens, device=device),
        batch.advantage,
        batch.correct,
        batch.p,
        step,
        rescaling,
    )
    spans = pad_batch([each.spans for each in batch.responses], least=2).to(device)
    gamma = token_scales(step_gamma, spans, batch.mask.shape[1])
    return Credited(batch.advantage[:, None] * gamma, gamma, step_gamma)


def step_sums(batch: Batch, credited: Credited | None) -> dict[str, float]:
    """What `step_figures` is made of, summed over the responses of this process.

    `credited` is None where the method does not rescale.
    """
    sums: Counter[str] = Counter()
    for response in batch.responses:
        sums["responses"] += 1
        sums["unfinished"] += not response.complete
        sums["steps"] += len(response.spans)
        sums["tokens"] += response.length
        sums.update({f"phrases/{k}": n for k, n in phrase_counts(response.text).items()})
    values = {name: float(value) for name, value in sums.items()}
    values["advantage"] = float(batch.advantage.abs().sum())
    if credited is not None:
        inside = credited.gamma[batch.mask]
        values["gamma"] = float(inside.sum())
        values["attenuated_tokens"] = float((inside < 1).sum())
        values["attenuated"] = float((credited.step_gamma < 1).sum())
    if batch.labels is not None:
        labels = [step.label for truth in batch.labels for step in truth]
        values["redundant"] = float(labels.count("redundant"))
    return values


def step_figures(sums: Mapping[str, float], outcomes: Outcomes) -> dict[str, float]:
    """The figures of a training step.

    Args:
        sums: `step_sums`, added up over all processes.
        outcomes: of all processes.

    Returns:
        Means over responses, but for `gamma` and `attenuated_tokens` (over tokens), `attenuated`
        (over steps), `tokens_correct` (over correct responses; NaN where there is none) and
        `phrases/…` (per 1000 tokens).
    """
    correct, lengths = outcomes.correct, outcomes.lengths.float()
    responses, tokens = sums["responses"], sums["tokens"]
    figures = {
        "accuracy": float(correct.float().mean()),
        "tokens": float(lengths.mean()),
        "tokens_correct": float(lengths[correct].mean()),
        "unfinished": sums["unfinished"] / responses,
        "steps": sums["steps"] / responses,
        "advantage_abs": sums["advantage"] / responses,
    }
    if "gamma" in sums:
        figures["gamma"] = sums["gamma"] / tokens
        figures["attenuated"] = sums["attenuated"] / max(sums["steps"], 1)
        figures["attenuated_tokens"] = sums["attenuated_tokens"] / tokens
    if "redundant" in sums:
        figures["redundant_steps"] = sums["redundant"] / responses
    phrases = {k: 1000 * n / tokens for k, n in sums.items() if k.startswith("phrases/")}
    return {**figures, **phrases}
