"""Stepwise rescaling of the advantage (AttnPO sections 3 and 4) as pure functions on tensors.

A response to a prompt q is o = T ⊕ F, cut into steps s_1 … s_K. Its tokens get γ_k · A, where A is
the outcome-level advantage of the response and γ_k the scale of the step that a token is in:
1. A_i = r_i − mean of the other responses' rewards (`rloo_advantage`).
2. S_base = p^α · |F| / |q ⊕ o| (`probing.attention.scores.step_baseline`, eq. 4).
3. A > 0 and S_k < S_base: attenuate (`positive_scale`), once t > T_0 · (1 − p) (`schedule_open`).
4. A < 0 and S_k > S_base: γ_k = 0.
5. Everything else keeps γ = 1: wrong responses, responses of one step (`kept_reasons`), and tokens
   outside steps, the answer's, unless `outside` is `mean` (`outside_scale`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attention.scores import step_baseline
from probing.errors import ConfigError
from probing.settings import unknown

FORMS = ("release", "printed", "hard")
OUTSIDE = ("whole", "mean")
LARGEST_GROUP = 1024  # responses; a float32 is near one share of so few only
# Why a response's advantage is the same for all its tokens; the first: it is not, steps decide.
REASONS = (
    "by step",
    "wrong or unfinished",
    "advantage of 0",
    "fewer than two steps",
    "before the schedule opens",
    "attenuation of this sign is off",
    "fewer than two scores",
)


@dataclass(frozen=True)
class Rescaling:
    """The constants of section 4; the defaults are the release's.

    Args:
        alpha: α, how fast the baseline falls for hard problems.
        alpha_negative: α in the baseline that negative-advantage attenuation compares with; None
            takes `alpha` (the paper). With few correct responses p^α puts the baseline below the
            scores of redundant steps, which are then protected too; 0 compares with uniform
            attention whatever p is.
        beta: β, how much of the attenuation acts on hard problems.
        floor: δ, the least scale.
        delay: T_0 in training steps; a problem with share p starts after T_0 · (1 − p) steps.
        form: `release`, `printed` or `hard`, see `positive_scale`.
        outside: γ outside the steps, `whole` (1, the paper) or `mean`, see `outside_scale`.
        positive: attenuate redundant steps of responses with A > 0 (PA).
        negative: protect essential steps of responses with A < 0 (NA).

    Raises:
        ConfigError: a constant out of its range.
    """

    alpha: float = 2.0
    alpha_negative: float | None = None
    beta: float = 2.0
    floor: float = 0.0
    delay: float = 1000.0
    form: str = "release"
    outside: str = "whole"
    positive: bool = True
    negative: bool = True

    def __post_init__(self) -> None:
        """Check the constants."""
        for name, known in (("form", FORMS), ("outside", OUTSIDE)):
            if getattr(self, name) not in known:
                raise ConfigError(unknown(name, getattr(self, name), known))
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"the floor δ must lie in [0, 1], is {self.floor}")
        for name in ("alpha", "alpha_negative", "beta", "delay"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} must not be negative, is {value}")

    @property
    def acts(self) -> bool:
        """Whether any step can get another scale than 1."""
        return self.positive or self.negative


def rloo_advantage(rewards: Float[Tensor, "prompt group"]) -> Float[Tensor, "prompt group"]:
    """A_i = r_i − 1/(G − 1) · Σ_{j≠i} r_j = G/(G − 1) · (r_i − mean r) (section 3).

    Example:
        >>> rloo_advantage(torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.5]])).tolist()
        [[0.625, -0.625, -0.625, 0.625, 0.0]]
    """
    size = rewards.shape[1]
    return (rewards - rewards.mean(dim=1, keepdim=True)) * (size / (size - 1))


def group_rows(groups: Int[Tensor, "response"]) -> list[Int[Tensor, "_"]]:
    """The rows of each group, in the order of the groups' numbers.

    Example:
        >>> tuple(rows.tolist() for rows in group_rows(torch.tensor([7, 3, 7])))
        ([1], [0, 2])
    """
    return [(groups == number).nonzero()[:, 0] for number in groups.unique()]


def schedule_open(
    p: Float[Tensor, "response"], step: int, delay: float
) -> Bool[Tensor, "response"]:
    """Whether attenuation has begun: t > T_0 · (1 − p) (section 4); hard problems start later.

    In whole numbers, with w wrong ones of G responses: t · G > T_0 · w. As floats 1000 · (1 − 0.8)
    is less than 200.

    Args:
        p: share of correct responses of each response's group, of at most `LARGEST_GROUP`.
        step: t, the training step, the first one being 1.
        delay: T_0.

    Example:
        >>> p = torch.tensor([0.8])
        >>> schedule_open(p, 200, 1000).item(), schedule_open(p, 201, 1000).item()
        (False, True)
    """
    shares, place = p.double().unique(return_inverse=True)
    wrong = (1 - Fraction(share).limit_denominator(LARGEST_GROUP) for share in shares.tolist())
    opened = [step * each.denominator > delay * each.numerator for each in wrong]
    return torch.tensor(opened, dtype=torch.bool, device=p.device)[place]


def kept_reasons(
    advantage: Float[Tensor, "response"],
    correct: Bool[Tensor, "response"],
    p: Float[Tensor, "response"],
    steps: Int[Tensor, "response"],
    step: int,
    constants: Rescaling,
) -> Int[Tensor, "response"]:
    """Why no score can give a step of the response another scale than 1, as places in `REASONS`.

    0 where one can; the first reason, where there are several.

    Args:
        advantage: A.
        correct: whether the response is correct.
        p: share of correct responses of each response's group.
        steps: number of steps.
        step: t, the training step, the first one being 1.
        constants: T_0 and what is switched on.

    Example:
        >>> one, steps = torch.ones(3), torch.tensor([4, 1, 4])
        >>> advantage, p = torch.tensor([1.0, 1.0, 0.5]), torch.tensor([1.0, 1.0, 0.5])
        >>> reasons = kept_reasons(advantage, one.bool(), p, steps, 1, Rescaling(delay=10))
        >>> tuple(REASONS[place] for place in reasons)
        ('by step', 'fewer than two steps', 'before the schedule opens')
    """
    up, down = advantage > 0, advantage < 0
    applies = (  # in the order of REASONS
        ~correct,
        ~(up | down),
        steps < 2,
        up & ~schedule_open(p, step, constants.delay),
        (up & (not constants.positive)) | (down & (not constants.negative)),
    )
    reasons = torch.zeros_like(steps)
    for place in range(len(applies), 0, -1):
        reasons = reasons.masked_fill(applies[place - 1], place)
    return reasons


def needs_scores(
    advantage: Float[Tensor, "response"],
    correct: Bool[Tensor, "response"],
    p: Float[Tensor, "response"],
    steps: Int[Tensor, "response"],
    step: int,
    constants: Rescaling,
) -> Bool[Tensor, "response"]:
    """Whether some score could give a step of the response another scale than 1 (section 4).

    Arguments are those of `kept_reasons`.

    Example:
        >>> one = torch.ones(3)
        >>> steps, advantage = torch.tensor([4, 1, 4]), torch.tensor([1.0, 1.0, 0.0])
        >>> needs_scores(advantage, one.bool(), one, steps, 1, Rescaling()).tolist()
        [True, False, False]
    """
    return kept_reasons(advantage, correct, p, steps, step, constants) == 0


def positive_scale(
    ratio: Float[Tensor, "..."],
    p: Float[Tensor, "..."],
    beta: float,
    floor: float,
    form: str = "release",
) -> Float[Tensor, "..."]:
    """γ of a step below the baseline in a response with A > 0 (section 4, PA).

    release: γ = (1 − δ) · (p^β · S_k/S_base + 1 − p^β) + δ
    printed: γ = (1 − δ) · p^λ · S_k/S_base + δ, with λ = β
    hard:    γ = (1 − δ) · (1 − p^β) + δ, whatever S_k is: not the paper's; true labels act like it

    The first two agree at p = 1, where the third is δ. For p → 0 the release's form and the hard
    one leave γ = 1; the printed form, which summaries of the paper show, goes to δ.

    Args:
        ratio: S_k / S_base, in [0, 1).
        p: share of correct responses, of a shape that broadcasts with `ratio`.
        beta: β (λ).
        floor: δ.
        form: one of `FORMS`.

    Example:
        >>> ratio, p = torch.tensor([0.5]), torch.tensor([0.5])
        >>> positive_scale(ratio, p, beta=2, floor=0).item()
        0.875
        >>> positive_scale(ratio, p, beta=2, floor=0, form="printed").item()
        0.125
        >>> positive_scale(ratio, p, beta=2, floor=0, form="hard").item()
        0.75
    """
    weight = p**beta
    inner = {
        "release": weight * ratio + 1 - weight,
        "printed": weight * ratio,
        "hard": (1 - weight).expand_as(ratio),
    }[form]
    return (1 - floor) * inner + floor


def step_scales(
    scores: Float[Tensor, "response step"],
    answer_tokens: Int[Tensor, "response"],
    total_tokens: Int[Tensor, "response"],
    advantage: Float[Tensor, "response"],
    correct: Bool[Tensor, "response"],
    p: Float[Tensor, "response"],
    step: int,
    constants: Rescaling,
) -> Float[Tensor, "response step"]:
    """γ_k of every step of a batch (section 4).

    Args:
        scores: S_k, the mean over the head set; NaN where a response has no such step, and for
            steps that are to keep γ = 1.
        answer_tokens: |F|.
        total_tokens: |q ⊕ o|.
        advantage: A.
        correct: whether the response is correct.
        p: share of correct responses in the response's group.
        step: t, the training step, the first one being 1.
        constants: α, β, δ, T_0 and what is switched on.

    Returns:
        γ in [0, 1]; exactly 1 wherever nothing acts.

    Example:
        >>> one = torch.ones(1)
        >>> scores = torch.tensor([[0.3, 0.05, torch.nan]])
        >>> step_scales(scores, 20 * one.int(), 200 * one.int(), one, one.bool(), one, 2,
        ...             Rescaling()).tolist()
        [[1.0, 0.5, 1.0]]
    """
    rescaled = (correct & ((~scores.isnan()).sum(dim=1) >= 2))[:, None]
    gamma = torch.ones_like(scores)
    if constants.positive:
        base = step_baseline(answer_tokens, total_tokens, p, constants.alpha)[:, None]
        acts = rescaled & (advantage > 0)[:, None] & (scores < base)
        acts = acts & schedule_open(p, step, constants.delay)[:, None]
        # A baseline of 0 has no score below it; the quotient there is never used.
        ratio = scores / base.clamp_min(torch.finfo(scores.dtype).tiny)
        scale = positive_scale(ratio, p[:, None], constants.beta, constants.floor, constants.form)
        gamma = torch.where(acts, scale, gamma)
    if constants.negative:
        alpha = constants.alpha if constants.alpha_negative is None else constants.alpha_negative
        base = step_baseline(answer_tokens, total_tokens, p, alpha)[:, None]
        acts = rescaled & (advantage < 0)[:, None] & (scores > base)
        gamma = torch.where(acts, torch.zeros_like(gamma), gamma)
    return gamma


def outside_scale(
    gamma: Float[Tensor, "response step"],
    spans: Int[Tensor, "response step 2"],
    advantage: Float[Tensor, "response"],
    constants: Rescaling,
) -> Float[Tensor, "response"]:
    """γ of the tokens outside the steps, which are those of the answer: 1, as in the paper, or

    mean: where A > 0, the mean γ of the tokens inside, so that cutting the steps' share does not
    leave the answer the loudest part of a response. Not the paper's.

    Args:
        gamma: γ of every step.
        spans: half-open token spans of the steps; empty behind the last.
        advantage: A.
        constants: which of the two.

    Example:
        >>> gamma, spans = torch.tensor([[0.5, 0.0]]), torch.tensor([[[1, 3], [3, 5]]])
        >>> outside_scale(gamma, spans, torch.ones(1), Rescaling(outside="mean")).tolist()
        [0.25]
    """
    length = (spans[..., 1] - spans[..., 0]).to(gamma.dtype)
    total = length.sum(dim=1)
    acts = (total > 0) & (advantage > 0) & (constants.outside == "mean")
    mean = (gamma * length).sum(dim=1) / total.clamp_min(1)
    return torch.where(acts, mean, torch.ones_like(mean))


def token_scales(
    gamma: Float[Tensor, "response step"],
    spans: Int[Tensor, "response step 2"],
    tokens: int,
    outside: Float[Tensor, "response"] | None = None,
) -> Float[Tensor, "response token"]:
    """γ of every token of the responses: that of its step, and outside the steps 1, or `outside`.

    Args:
        gamma: of every step.
        spans: half-open token spans of the steps, ascending and disjoint in each response; an
            empty span (also the padding of a response with fewer steps) takes no token.
        tokens: width of the result.
        outside: see `outside_scale`.

    Example:
        >>> token_scales(torch.tensor([[0.5, 0.0]]), torch.tensor([[[1, 3], [3, 4]]]), 5).tolist()
        [[1.0, 0.5, 0.5, 0.0, 1.0]]
    """
    # +(γ − 1) where a step starts and −(γ − 1) where it ends would round: number the tokens by
    # step instead (0: outside), and look the scale up.
    responses, steps = gamma.shape
    filled = (spans[..., 1] > spans[..., 0]).long()
    edges = torch.zeros((responses, tokens + 1), dtype=torch.long, device=gamma.device)
    number = torch.arange(1, steps + 1, device=gamma.device).expand(responses, steps) * filled
    edges.scatter_add_(1, spans[..., 0].clamp(0, tokens), number)
    edges.scatter_add_(1, spans[..., 1].clamp(0, tokens), -number)
    step_of = edges.cumsum(dim=1)[:, :tokens]
    first = gamma.new_ones(responses) if outside is None else outside
    table = torch.cat([first[:, None], gamma], dim=1)
    return table.gather(1, step_of)
