"""Outcome-level rewards: correctness, and what a length-aware reward makes of it.

Pure functions of whole groups: `correct` and `lengths` are (prompt, group), gathered from all
processes, so that a group that is spread over processes has the right statistics.

An own length penalty is a function of the same kind, entered by its name; `length_penalty: mine`
then chooses it. It gets the settings `length_coef` and `target_length`, and may ignore them:

    PENALTIES["mine"] = lambda correct, lengths, coef, target: correct / (1 + coef * lengths)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.errors import ConfigError, DataError, KfhError
from probing.settings import unknown
from rl.attnpo.methods import NEED_TARGET
from rl.attnpo.rescale import group_rows, rloo_advantage

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


# (correct, lengths, coef, target) → rewards; all but the numbers are (prompt, group)
Penalty = Callable[[Tensor, Tensor, float, int], Tensor]

PENALTIES: dict[str, Penalty] = {
    "none": lambda correct, lengths, coef, target: correct.float(),
    "tlmre": lambda correct, lengths, coef, target: tlmre(correct, lengths, coef),
    "laser": lambda correct, lengths, coef, target: laser(correct, lengths, target, coef),
    "dler": lambda correct, lengths, coef, target: dler(correct, lengths, target),
}


def check_penalty(name: str, target: int | None) -> None:
    """Check the settings of a length penalty.

    Raises:
        ConfigError: an unknown name, or a penalty whose target length is missing.
    """
    if name not in PENALTIES:
        raise ConfigError(unknown("length penalty", name, PENALTIES))
    if name in NEED_TARGET and (target is None or target < 1):
        raise ConfigError(f"the length penalty {name} needs target_length in tokens, ≥ 1")


def shaped_reward(
    correct: Bool[Tensor, "prompt group"],
    lengths: Int[Tensor, "prompt group"],
    penalty: str,
    coef: float = 0.2,
    target: int | None = None,
) -> Float[Tensor, "prompt group"]:
    """The reward by the name of its length penalty, one of `PENALTIES`.

    Raises:
        ConfigError: see `check_penalty`.
        DataError: a penalty of another's gave rewards of another shape.
    """
    check_penalty(penalty, target)
    rewards = PENALTIES[penalty](correct, lengths, coef, target or 0).float()
    if rewards.shape != correct.shape:
        raise DataError(
            f"the length penalty {penalty!r} gave rewards of shape {tuple(rewards.shape)} for "
            f"verdicts of shape {tuple(correct.shape)} (prompt, group)"
        )
    return rewards


def group_advantages(
    correct: Bool[Tensor, "response"],
    lengths: Int[Tensor, "response"],
    groups: Int[Tensor, "response"],
    penalty: str = "tlmre",
    coef: float = 0.2,
    target: int | None = None,
) -> Float[Tensor, "response"]:
    """A of each response: its length-aware reward less the mean of the others of its group.

        A_i = r_i − 1/(G − 1) · Σ_{j≠i} r_j,  r = TLMRE or another penalty (AttnPO section 3)

    Args:
        correct: whether each response is correct.
        lengths: tokens of each response, with its end token.
        groups: a number for each prompt; groups may be of different sizes, in any order. A
            response alone in its group has nothing to be compared with: A = 0.
        penalty, coef, target: see `shaped_reward`.

    Raises:
        ConfigError: see `check_penalty`.
        DataError: see `shaped_reward`.

    Example:
        >>> right, lengths = torch.tensor([True, True, False]), torch.tensor([100, 300, 50])
        >>> advantage = group_advantages(right, lengths, torch.zeros(3, dtype=torch.long))
        >>> [round(value, 4) for value in advantage.tolist()] == [0.5193, 0.3807, -0.9]
        True
    """
    advantage = torch.zeros(len(correct), device=correct.device)
    for rows in group_rows(groups):
        rewards = shaped_reward(correct[rows][None], lengths[rows][None], penalty, coef, target)
        if len(rows) > 1:
            advantage[rows] = rloo_advantage(rewards)[0]
    return advantage


@contextmanager
def faults_told(where: str) -> Iterator[None]:
    """What a reward function raises becomes a DataError that says where; kfh's own errors pass."""
    try:
        yield
    except KfhError:
        raise
    except Exception as error:
        raise DataError(f"a reward function raised {error!r} {where}") from error
