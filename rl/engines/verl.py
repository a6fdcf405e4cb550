"""AttnPO on verl, without verl: what a worker scores, and what the driver makes of it.

1. A worker cuts its responses and takes the answer's rows in verl's own pass for old
   log-probabilities, packed or padded (`PassScorer`): no pass is added.
2. Steps and sizes travel with the batch, as two tensors with a row a response (`STEPS`, `SIZES`).
3. The driver has the rewards of whole groups; its advantage estimator makes γ_k · A of both
   (`StepEstimator`, `row_credit`).

`rl.engines.verl_plugin` puts this in its places in verl.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from probing.attention.passing import PassingSequences
from probing.attention.scores import check_finite, step_scores
from probing.errors import ConfigError, DataError
from probing.headset import HeadSet
from probing.settings import check_keys
from rl.attnpo.completions import Completion, Cutter, Outcomes
from rl.attnpo.credit import Credited, credit_tokens
from rl.attnpo.rescale import Rescaling
from rl.attnpo.rewards import check_penalty, group_advantages

NAME = "attnpo"  # of the estimator, the trainer mode and the settings, in verl's configuration
# Fields of verl's batch, a row a response.
STEPS = "attnpo_steps"  # (response, step, 3), ragged: first token, token behind the last, S_k
SIZES = "attnpo_sizes"  # (response, 4): |F|, |q ⊕ o|, tokens with the end token, complete (0, 1)

Result = TypeVar("Result")


@dataclass(frozen=True)
class VerlConfig:
    """What verl's configuration holds under `actor_rollout_ref.attnpo`.

    Args:
        heads: a head set's file, or the name of a shipped one.
        length_penalty, length_coef, target_length: as of `rl.AttnPOConfig`.
        cut: how responses are cut, where not as the head set was made: the options of
            `rl.attnpo.completions.Cutter.like`.
        rescaling: the constants, those of `rl.Rescaling` by name.

    Raises:
        ConfigError: an unknown key, with the nearest known one, or a constant out of its range.
    """

    heads: str
    length_penalty: str = "tlmre"
    length_coef: float = 0.2
    target_length: int | None = None
    cut: Mapping[str, Any] = field(default_factory=dict)
    rescaling: Rescaling = field(default_factory=Rescaling)

    def __post_init__(self) -> None:
        """Check the penalty."""
        check_penalty(self.length_penalty, self.target_length)

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> VerlConfig:
        """From plain values, as a configuration has them."""
        values = dict(given or {})
        check_keys(cls, values, f"actor_rollout_ref.{NAME}")
        if "heads" not in values:
            raise ConfigError(f"actor_rollout_ref.{NAME}.heads is missing: give a head set")
        constants = values.pop("rescaling", None) or {}
        check_keys(Rescaling, constants, f"actor_rollout_ref.{NAME}.rescaling")
        return cls(**values, rescaling=Rescaling(**constants))


def refused(config: Mapping[str, Any]) -> list[str]:
    """What in verl's configuration cannot go with credit by step, and why.

    Args:
        config: the whole of it, as plain values. What it does not name is not looked at.
    """

    def at(path: str, default: Any = None) -> Any:
        value: Any = config
        for name in path.split("."):
            value = (value or {}).get(name)
        return default if value is None else value

    actor = "actor_rollout_ref.actor"
    rules = {
        f"algorithm.adv_estimator: set it to {NAME}": at("algorithm.adv_estimator", NAME) != NAME,
        "trainer.use_v1 = false: verl's old trainer has no place for it": (
            at("trainer.use_v1", True) is False
        ),
        f"{actor}.strategy: fsdp or fsdp2 alone run the models of transformers": (
            at(f"{actor}.strategy", "fsdp") not in ("fsdp", "fsdp2")
        ),
        f"{actor}.ulysses_sequence_parallel_size: a process would see a part of the tokens": any(
            at(f"{actor}.{place}ulysses_sequence_parallel_size", 1) > 1
            for place in ("", "fsdp_config.")
        ),
        "algorithm.rollout_correction.bypass_mode: it leaves out the pass that scores": bool(
            at("algorithm.rollout_correction.bypass_mode", False)
        ),
        "algorithm.use_kl_in_reward: rewards must be the verifier's, 0 or 1": bool(
            at("algorithm.use_kl_in_reward", False)
        ),
        "actor_rollout_ref.rollout.multi_turn.enable: a response must be one turn": bool(
            at("actor_rollout_ref.rollout.multi_turn.enable", False)
        ),
        f"{actor}.loss_agg_mode: token-mean alone is a mean over tokens": (
            at(f"{actor}.loss_agg_mode", "token-mean") != "token-mean"
        ),
        f"{actor}.policy_loss.loss_mode: vanilla alone weighs each token by its own ratio": (
            at(f"{actor}.policy_loss.loss_mode", "vanilla") != "vanilla"
        ),
    }
    return [rule for rule, applies in rules.items() if applies]


class PassScorer:
    """Scores the responses of a worker in a pass that verl makes (1, 2).

    Args:
        model: the actor's module, wrapped by FSDP or not.
        head_set: whose heads score.
        cutter: cuts the sampled ids.
    """

    def __init__(self, model: torch.nn.Module, head_set: HeadSet, cutter: Cutter) -> None:
        self.passing = PassingSequences(model, head_set.pairs)
        self.cutter = cutter

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        sampled: Sequence[Sequence[int]],
        run: Callable[[], Result],
    ) -> tuple[Result, dict[str, Tensor]]:
        """What `run` returns, and `STEPS` (response, step, 3) and `SIZES` (response, 4).

        A response that is unfinished, or has fewer than two steps, is not scored (S_k is NaN).

        Args:
            prompts: token ids, without padding.
            sampled: token ids of the responses, without padding, with their end token.
            run: makes passes over prompts and responses, in any batches and order.

        Raises:
            DataError: a response came by in no pass.
            ModelError: see `PassingSequences`; a NotFiniteError of attention that is not finite.
        """
        responses = [self.cutter(ids) for ids in sampled]
        keys = [
            PassingSequences.key([*prompt, *ids])
            for prompt, ids in zip(prompts, sampled, strict=True)
        ]
        answers = {}
        for key, prompt, ids, response in zip(keys, prompts, sampled, responses, strict=True):
            if response.complete and len(response.spans) >= 2:
                answers[key] = np.zeros(len(prompt) + len(ids), dtype=bool)
                answers[key][len(prompt) :][: len(response.answer)] = response.answer
        with self.passing.over(answers) as masses:
            result = run()
        steps = []
        for row, (key, response) in enumerate(zip(keys, responses, strict=True)):
            if key in answers and key not in masses:
                raise DataError(f"response {row} of the worker came by in no pass of its model")
            steps.append(self._steps(row, len(prompts[row]), response, masses.get(key)))
        return result, {
            STEPS: torch.nested.as_nested_tensor(steps, layout=torch.jagged),
            SIZES: torch.tensor(
                [
                    [int(each.answer.sum()), len(q) + len(each.ids), each.length, each.complete]
                    for q, each in zip(prompts, responses, strict=True)
                ]
            ),
        }

    def _steps(
        self,
        row: int,
        prompt: int,
        response: Completion,
        mass: Float[np.ndarray, "head token"] | None,
    ) -> Float[Tensor, "step 3"]:
        """Spans and scores of a response; one empty span where it has no step."""
        steps = np.full((max(1, len(response.spans)), 3), np.nan)
        steps[:, :2] = 0
        steps[: len(response.spans), :2] = response.spans
        if mass is not None:
            heads = self.passing.heads
            check_finite(f"response {row} of the worker", mass, heads, "the policy's precision")
            steps[:, 2] = step_scores(mass, response.spans + prompt).mean(axis=0)
        return torch.from_numpy(steps)


def row_credit(
    rewards: Float[Tensor, "response token"],
    mask: Shaped[Tensor, "response token"],
    index: Shaped[np.ndarray, "response"],
    steps: Float[Tensor, "response step 3"],
    sizes: Int[Tensor, "response 4"],
    settings: VerlConfig,
    step: int,
) -> Credited:
    """The credit of verl's batch (3): its reward, its groups, and what the workers scored.

    Args:
        rewards: 1 or 0 on one token of each response, as verl's reward functions give it.
        mask: 1 for sampled tokens. Rows without one fill a batch up, and get an advantage of 0.
        index: what the prompt of each response is known by.
        steps: `STEPS`, padded with zeros; `SIZES` beside it.
        settings: penalty and constants.
        step: t, the training step, the first one being 1.

    Raises:
        DataError: a reward other than 0 or 1; or a response of several turns.
    """
    sampled = mask.bool()
    if (sampled[:, 1:] & ~sampled[:, :-1]).any():
        raise DataError("a response has tokens that were not sampled between its own: one turn")
    answer_tokens, total_tokens, lengths, complete = sizes.to(rewards.device).unbind(dim=1)
    groups = torch.from_numpy(np.unique(index, return_inverse=True)[1]).to(rewards.device)
    outcomes = Outcomes.of(rewards.sum(dim=1), complete.bool(), lengths, groups)
    advantage = group_advantages(
        outcomes.correct,
        outcomes.lengths,
        groups,
        settings.length_penalty,
        settings.length_coef,
        settings.target_length,
    )
    spans = steps[..., :2].long().to(rewards.device)
    scores = steps[..., 2].float().to(rewards.device)
    scores = scores.masked_fill(spans[..., 1] <= spans[..., 0], torch.nan)
    return credit_tokens(
        scores,
        spans,
        answer_tokens,
        total_tokens,
        advantage,
        outcomes.correct,
        outcomes.p,
        step,
        settings.rescaling,
        mask.shape[1],
    )


class StepEstimator:
    """verl's advantage estimator `attnpo` (3). verl gives one rewards, mask and groups; the rest
    its trainer gives for the time of the call, by `given`.
    """

    def __init__(self) -> None:
        self._given: dict[str, Any] | None = None
        self.credited: Credited | None = None  # what the last call did

    @contextmanager
    def given(self, steps: Tensor, sizes: Tensor, settings: VerlConfig, step: int) -> Iterator:
        """In this block the estimator is called for these responses; see `row_credit`.

        Args:
            steps: `STEPS` (response, step, 3), ragged or padded with zeros.
            sizes: `SIZES` (response, 4), ragged or not.
            settings, step: see `row_credit`.
        """
        padded = [torch.nested.to_padded_tensor(t, 0) if t.is_nested else t for t in (steps, sizes)]
        self._given = {"steps": padded[0], "sizes": padded[1], "settings": settings, "step": step}
        try:
            yield self
        finally:
            self._given = None

    def __call__(
        self,
        token_level_rewards: Tensor,
        response_mask: Tensor,
        index: np.ndarray | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor]:
        """Advantages and returns, both (response, token), 0 outside the mask.

        Raises:
            ConfigError: called by another trainer than that of `rl.engines.verl_plugin`.
            DataError: see `row_credit`.
        """
        if self._given is None or index is None:
            raise ConfigError(
                f"the estimator {NAME} needs step scores: set trainer.v1.trainer_mode={NAME}, "
                "whose workers take them"
            )
        credited = row_credit(token_level_rewards, response_mask, index, **self._given)
        self.credited = credited
        advantages = credited.advantages * response_mask
        return advantages, advantages

    def figures(self) -> dict[str, float]:
        """Of the last call: steps attenuated and spared, and responses by reason."""
        counts = {} if self.credited is None else self.credited.counts()
        return {f"{NAME}/{name.replace(' ', '_')}": float(n) for name, n in counts.items()}
