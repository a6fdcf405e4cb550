"""Outcome-level rewards: correctness, and what a length-aware reward makes of it.

Pure functions of whole groups: `correct` and `lengths` are (prompt, group), gathered from all
processes, so that a group that is spread over processes has the right statistics.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.errors import ConfigError
from rl.attnpo.methods import PENALTIES

EPSILON = 1e-6


def tlmre(
    correct: Bool[Tensor, "prompt group"],
    lengths: Int[Tensor, "prompt group"],
    coef: float = 0.2,
) -> Float[Tensor, "prompt group"]:
    """Correctness with a penalty on length relative to the group (AttnPO section 3).

        r = 1[correct] · (1 − c · σ((len − mean) / (std + ε)))

    σ is the logistic function; mean and population standard deviation are those of the correct
    responses of the group.

    Args:
        correct: whether each response is correct.
        lengths: tokens of each response, with its end token.
        coef: c; the paper takes 0.2.

    Example:
        >>> r = tlmre(torch.tensor([[True, True, False]]), torch.tensor([[100, 300, 50]]), 0.2)
        >>> [round(value, 4) for value in r[0].tolist()]
        [0.9462, 0.8538, 0.0]
    """
    right, tokens = correct.float(), lengths.float()
    count = right.sum(dim=1, keepdim=True).clamp_min(1)
    mean = (right * tokens).sum(dim=1, keepdim=True) / count
    variance = (right * (tokens - mean) ** 2).sum(dim=1, keepdim=True) / count
    return right * (1 - coef * torch.sigmoid((tokens - mean) / (variance.sqrt() + EPSILON)))


def laser(
    correct: Bool[Tensor, "prompt group"],
    lengths: Int[Tensor, "prompt group"],
    target: int,
    bonus: float = 0.5,
) -> Float[Tensor, "prompt group"]:
    """Correctness with a bonus for a correct response within a target length (LASER).

        r = 1[correct] · (1 + α · 1[len ≤ L])

    Source: LASER, arXiv 2505.15612, the step reward with α = 0.5; not its dynamic targets.

    Args:
        correct: whether each response is correct.
        lengths: tokens of each response.
        target: L in tokens.
        bonus: α.

    Example:
        >>> laser(torch.tensor([[True, True, False]]), torch.tensor([[90, 200, 90]]), 100).tolist()
        [[1.5, 1.0, 0.0]]
    """
    return correct.float() * (1 + bonus * (lengths <= target).float())


def dler(
    correct: Bool[Tensor, "prompt group"], lengths: Int[Tensor, "prompt group"], target: int
) -> Float[Tensor, "prompt group"]:
    """Correctness that counts only within a target length (DLER's truncation penalty).

        r = 1[correct] · 1[len ≤ L]

    Source: DLER, arXiv 2510.15110, which pairs this plainest of penalties with an advantage
    normalised over the batch and a higher upper clip; its dynamic sampling is not built.

    Args:
        correct: whether each response is correct.
        lengths: tokens of each response.
        target: L in tokens.

    Example:
        >>> dler(torch.tensor([[True, True, False]]), torch.tensor([[90, 200, 90]]), 100).tolist()
        [[1.0, 0.0, 0.0]]
    """
    return correct.float() * (lengths <= target).float()


def shaped_reward(
    correct: Bool[Tensor, "prompt group"],
    lengths: Int[Tensor, "prompt group"],
    penalty: str,
    coef: float,
    target: int | None,
) -> Float[Tensor, "prompt group"]:
    """The reward by the name of its length penalty, one of `PENALTIES`.

    Raises:
        ConfigError: an unknown name, or a penalty whose target length is missing.
    """
    if penalty == "none":
        return correct.float()
    if penalty == "tlmre":
        return tlmre(correct, lengths, coef)
    if penalty not in PENALTIES:
        raise ConfigError(f"unknown length penalty {penalty!r}; choose {', '.join(PENALTIES)}")
    if target is None or target < 1:
        raise ConfigError(f"the length penalty {penalty} needs target_length in tokens, ≥ 1")
    return (
        laser(correct, lengths, target, coef)
        if penalty == "laser"
        else dler(correct, lengths, target)
    )
