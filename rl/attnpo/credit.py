"""From step scores to advantages by token (AttnPO section 4), and the figures of a step.

`credit_tokens` is the credit of every engine: the trainer's, in a pass of its own (`credit`) and in
the loss (`Terms`, `InLoss`), that of `rl.engines`, and of any other loop.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from probing.attention.scores import pad_batch
from probing.errors import DataError
from probing.traces.phrases import phrase_counts
from rl.attnpo.completions import Batch, Completion, Outcomes
from rl.attnpo.rescale import (
    REASONS,
    Rescaling,
    kept_reasons,
    outside_scale,
    step_scales,
    token_scales,
)
from rl.attnpo.signals import AttentionSignal
from rl.signals.plain import Scores


@dataclass(frozen=True, eq=False)
class Credited:
    """What each token and each step of a batch is given, and why."""

    advantages: Float[Tensor, "response token"]  # γ_k · A
    gamma: Float[Tensor, "response token"]
    step_gamma: Float[Tensor, "response step"]
    advantage: Float[Tensor, "response"]  # A
    p: Float[Tensor, "response"]  # share of correct responses of the group, which gates
    reason: Int[Tensor, "response"]  # place in `REASONS`; 0: by step

    @property
    def attenuated(self) -> Bool[Tensor, "response step"]:
        """Steps below the baseline in responses with A > 0, which get less (PA)."""
        return (self.step_gamma < 1) & (self.advantage > 0)[:, None]

    @property
    def spared(self) -> Bool[Tensor, "response step"]:
        """Steps above the baseline in responses with A < 0, which are not blamed (NA)."""
        return (self.step_gamma < 1) & (self.advantage < 0)[:, None]

    @property
    def reasons(self) -> list[str]:
        """Why the advantage of each response is by step, or is not."""
        return [REASONS[place] for place in self.reason.tolist()]

    def counts(self) -> dict[str, int]:
        """Steps attenuated and spared, and responses by reason."""
        steps = {"attenuated": int(self.attenuated.sum()), "spared": int(self.spared.sum())}
        return {**steps, **Counter(self.reasons)}


@dataclass(frozen=True, eq=False)
class Terms:
    """What responses bring to their credit besides scores; as tensors, which TRL's batch carries
    through its shuffling and splitting.
    """

    advantage: Float[Tensor, "response"]  # A
    correct: Bool[Tensor, "response"]
    p: Float[Tensor, "response"]  # share of correct responses of the group
    needed: Bool[Tensor, "response"]  # whether scores could matter
    answer: Bool[Tensor, "response token"]  # F
    spans: Int[Tensor, "response step 2"]  # half open; empty behind the last step
    total_tokens: Int[Tensor, "response"]  # |q ⊕ o|

    @classmethod
    def of(cls, batch: Batch) -> Terms:
        """Those of a batch."""
        device, tokens = batch.advantage.device, batch.mask.shape[1]
        answer = pad_batch([each.answer for each in batch.responses], least=tokens)
        return cls(
            batch.advantage,
            batch.correct,
            batch.p,
            batch.needs_scores,
            answer.to(device),
            pad_batch([each.spans for each in batch.responses], least=2).to(device),
            torch.tensor(batch.total_tokens, device=device),
        )

    def put(self, batch: MutableMapping[str, Any]) -> None:
        """Into TRL's batch."""
        batch.update({f"credit_{each.name}": getattr(self, each.name) for each in fields(self)})

    @staticmethod
    def are_in(batch: Mapping[str, Any]) -> bool:
        """Whether TRL's batch, or a part of it, holds them."""
        return "credit_advantage" in batch

    @classmethod
    def taken(cls, batch: MutableMapping[str, Any]) -> Terms:
        """Out of TRL's batch, or a part of it."""
        return cls(*(batch.pop(f"credit_{each.name}") for each in fields(cls)))

    def credited(
        self, scores: Float[Tensor, "response step"], rescaling: Rescaling, step: int
    ) -> Credited:
        """γ_k · A for each token; see `credit_tokens`."""
        return credit_tokens(
            scores,
            self.spans,
            self.answer.sum(dim=1),
            self.total_tokens,
            self.advantage,
            self.correct,
            self.p,
            step,
            rescaling,
            self.answer.shape[1],
        )


@dataclass
class Scored:
    """Scores of responses whose pass is made in parts; NaN until it is, and where not needed."""

    signal: AttentionSignal
    answer: Bool[Tensor, "response token"]
    spans: Sequence[Int[np.ndarray, "_ 2"]]
    needed: Sequence[bool]

    def __post_init__(self) -> None:
        """No score yet."""
        self.scores: list[Scores] = [np.full(len(each), np.nan) for each in self.spans]
        self.seconds = 0.0  # that scoring took, beside the pass

    @classmethod
    def of(cls, signal: AttentionSignal, responses: Sequence[Completion], tokens: int) -> Scored:
        """All of these responses are to be scored; `tokens`: width of the widest."""
        answer = pad_batch([each.answer for each in responses], least=tokens)
        device = next(signal.capture.trunk.parameters()).device
        spans = [each.spans for each in responses]
        return cls(signal, answer.to(device), spans, [True] * len(spans))

    def while_passing(
        self, rows: list[int], prompt: int, tokens: int, forward: Callable[[], Any]
    ) -> Any:
        """What `forward` returns; it passes over these rows, cut to so many tokens."""
        wanted = [self.needed[row] for row in rows]
        if not any(wanted):
            return forward()
        answer = self.answer[rows, :tokens]
        answer &= torch.tensor(wanted, device=answer.device)[:, None]
        spans = [self.spans[row] for row in rows]
        before = self.signal.passing.seconds
        result, scores = self.signal.in_passing(answer, spans, prompt, forward)
        self.seconds += self.signal.passing.seconds - before
        for row, needed, own in zip(rows, wanted, scores, strict=True):
            self.scores[row] = own if needed else self.scores[row]
        return result


class InLoss:
    """A part of TRL's batch whose steps the pass of its loss scores.

    Args:
        inputs: the part; what `Terms` put there is taken out.
        signal: scores.
    """

    def __init__(self, inputs: MutableMapping[str, Any], signal: AttentionSignal) -> None:
        self.inputs, self.terms = inputs, Terms.taken(inputs)
        spans = list(self.terms.spans.cpu().numpy())
        self.scored = Scored(signal, self.terms.answer, spans, self.terms.needed.tolist())

    def credit(self, rescaling: Rescaling, step: int) -> dict[str, float]:
        """Advantages by token take the place of those by response; returns `scale_sums`."""
        scores = padded(self.scored.scores, self.terms.advantage.device)
        credited = self.terms.credited(scores, rescaling, step)
        self.inputs["advantages"] = credited.advantages
        return scale_sums(credited, self.inputs["completion_mask"].bool())


@dataclass
class Passage:
    """What one batch leaves on its way through TRL's methods; made anew for each batch."""

    responses: list[Completion] = field(default_factory=list)
    scored: Scored | None = None  # where the pass for old log-probabilities scores
    outcomes: Outcomes | None = None
    sums: dict[str, float] = field(default_factory=dict)  # of `step_figures`
    left: int = 0  # responses that the loss is still to score
    seconds: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)

    def clock(self, part: str) -> None:
        """Add the time since the last call to a part of the step."""
        now = time.perf_counter()
        self.add({part: now - self.since}, self.seconds)
        self.since = now

    def add(self, values: Mapping[str, float], to: dict[str, float] | None = None) -> None:
        """Add to the sums, or to others."""
        to = self.sums if to is None else to
        for name, value in values.items():
            to[name] = to.get(name, 0.0) + value

    def figures(self, accelerator: Any) -> dict[str, float]:
        """The figures of the step, over all processes, and the seconds of its parts in this."""
        assert self.outcomes is not None
        sums = self.sums
        if accelerator.num_processes > 1:
            values = torch.tensor([*sums.values()], device=accelerator.device)
            total = accelerator.reduce(values, reduction="sum").tolist()
            sums = dict(zip(sums, total, strict=True))
        seconds = {f"seconds_{part}": value for part, value in self.seconds.items()}
        return {**step_figures(sums, self.outcomes), **seconds}


def credit_tokens(
    scores: Float[Tensor, "response step"],
    spans: Int[Tensor, "response _ 2"],
    answer_tokens: Int[Tensor, "response"],
    total_tokens: Int[Tensor, "response"],
    advantage: Float[Tensor, "response"],
    correct: Bool[Tensor, "response"],
    p: Float[Tensor, "response"],
    step: int,
    constants: Rescaling,
    tokens: int,
) -> Credited:
    """Advantages by token from step scores (AttnPO section 4, eq. 14), and what was done.

        A_t = γ_k · A for t in step k; A outside the steps (or γ̄ · A, see `outside_scale`)

    All that credits steps ends here, whatever trains.

    Args:
        scores: S_k, attention per token, mean over the head set; NaN where a response has no such
            step, and for steps that are to keep γ = 1.
        spans: token spans of the steps in the response, half open, ascending and disjoint; empty
            behind the last step.
        answer_tokens: |F|.
        total_tokens: |q ⊕ o|, without the end token.
        advantage: A, for example by `rl.attnpo.rewards.group_advantages`.
        correct: whether the response is correct and complete.
        p: share of correct responses in its group.
        step: t, the training step, from 1 on.
        constants, tokens: α, β, δ, T_0 and what is switched on; width of the result.

    Raises:
        DataError: scores and spans are not of the same steps, or a step ends behind `tokens`.

    Example:
        >>> scores, spans = torch.tensor([[0.3, 0.05]]), torch.tensor([[[0, 2], [2, 4]]])
        >>> one = torch.ones(1)
        >>> credited = credit_tokens(scores, spans, 2 * one.int(), 20 * one.int(), one,
        ...                          one.bool(), one, 1, Rescaling(), tokens=5)
        >>> credited.advantages.tolist() == [[1.0, 1.0, 0.5, 0.5, 1.0]]
        True
        >>> credited.counts() == {"attenuated": 1, "spared": 0, "by step": 1}
        True
    """
    if scores.shape != spans.shape[:2]:
        given, wanted = tuple(scores.shape), tuple(spans.shape)
        raise DataError(f"scores {given} (response, step) for spans {wanted}: one a step is needed")
    if spans.numel() and int(spans.max()) > tokens:
        raise DataError(f"a step ends at token {int(spans.max())} of responses {tokens} wide")
    step_gamma = step_scales(
        scores, answer_tokens, total_tokens, advantage, correct, p, step, constants
    )
    rest = outside_scale(step_gamma, spans, advantage, constants)
    gamma = token_scales(step_gamma, spans, tokens, rest)
    steps = (spans[..., 1] > spans[..., 0]).sum(dim=1)
    reason = kept_reasons(advantage, correct, p, steps, step, constants)
    unscored = (reason == 0) & ((~scores.isnan()).sum(dim=1) < 2)
    reason = reason.masked_fill(unscored, len(REASONS) - 1)
    return Credited(advantage[:, None] * gamma, gamma, step_gamma, advantage, p, reason)


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
    return Terms.of(batch).credited(padded(scores, batch.advantage.device), rescaling, step)


def padded(
    scores: Sequence[Real[np.ndarray, "_"]], device: torch.device
) -> Float[Tensor, "response step"]:
    """Scores of responses as one tensor, NaN behind the last step of each."""
    rows = [np.asarray(row, dtype=np.float64) for row in scores]
    return pad_batch(rows, np.nan, least=2).to(device, torch.float32)


def step_sums(batch: Batch, credited: Credited | None) -> dict[str, float]:
    """What `step_figures` is made of, summed over the responses of this process.

    `credited` is None where the method does not rescale, and where the loss is still to credit:
    it adds `scale_sums`.
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
        values |= scale_sums(credited, batch.mask)
    if batch.labels is not None:
        labels = [step.label for truth in batch.labels for step in truth]
        values["redundant"] = float(labels.count("redundant"))
    return values


def scale_sums(credited: Credited, mask: Bool[Tensor, "response token"]) -> dict[str, float]:
    """The part of `step_sums` that scales make; `mask`: sampled tokens."""
    inside = credited.gamma[mask]
    return {
        "scaled_tokens": float(len(inside)),
        "gamma": float(inside.sum()),
        "attenuated_tokens": float((inside < 1).sum()),
        "attenuated": float((credited.step_gamma < 1).sum()),
    }


def ratio_sums(batch: Mapping[str, Tensor], args: Any) -> dict[str, float]:
    """Sampled tokens whose ratio of TRL's correction for vLLM is out of bounds: masked, or cut.

    Args:
        batch: TRL's, with `importance_sampling_ratio` (response, token) or (response, 1) where it
            corrects.
        args: the settings.
    """
    ratio, mask = batch.get("importance_sampling_ratio"), batch["completion_mask"].bool()
    if ratio is None:
        return {}
    out = ratio == 0
    if args.vllm_importance_sampling_mode.endswith("truncate"):
        low, high = args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max
        out = (ratio <= (low or 0)) | (ratio >= (high or torch.inf))
    return {"ratio_cut": float((out & mask).sum())}


def step_figures(sums: Mapping[str, float], outcomes: Outcomes) -> dict[str, float]:
    """The figures of a training step.

    Args:
        sums: `step_sums`, added up over all processes.
        outcomes: of all processes.

    Returns:
        Means over responses, but for `gamma` and `attenuated_tokens` (over tokens in the loss),
        `ratio_cut` (over tokens), `attenuated` (over steps), `tokens_correct` (over correct
        responses; NaN where there is none) and `phrases/…` (per 1000 tokens).
    """
    responses, tokens = sums["responses"], sums["tokens"]
    figures = {
        **outcomes.figures,
        "unfinished": sums["unfinished"] / responses,
        "steps": sums["steps"] / responses,
        "advantage_abs": sums["advantage"] / responses,
    }
    if "gamma" in sums:
        scaled = max(sums["scaled_tokens"], 1)
        figures["gamma"] = sums["gamma"] / scaled
        figures["attenuated"] = sums["attenuated"] / max(sums["steps"], 1)
        figures["attenuated_tokens"] = sums["attenuated_tokens"] / scaled
    if "ratio_cut" in sums:
        figures["ratio_cut"] = sums["ratio_cut"] / tokens
    if "redundant" in sums:
        figures["redundant_steps"] = sums["redundant"] / responses
    phrases = {k: 1000 * n / tokens for k, n in sums.items() if k.startswith("phrases/")}
    return {**figures, **phrases}
