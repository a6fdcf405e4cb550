"""Rollouts of a training step on CPU: finished rows leave the batch, which otherwise waits for its
longest response.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from trl.data_utils import is_conversational

from probing.answers.hiding import token_log_probabilities
from probing.errors import ConfigError
from probing.models.decode import Draws, Sampling, decode, encode_prompt
from probing.models.lengths import in_eval

# What else TRL's settings say of sampling, with the values that change nothing.
_UNHEEDED = {
    "top_k": (0, None),
    "min_p": (None, 0),
    "repetition_penalty": (1.0, None),
    "cache_implementation": (None,),
    "use_transformers_continuous_batching": (False,),
}
_AS_IT_IS = {**_UNHEEDED, "use_cache": (True,), "do_sample": (True,), "num_beams": (1,)}


def unheeded(args: Any) -> list[str]:
    """The settings of sampling, as they are given, that these rollouts would not heed.

    Args:
        args: a `trl.GRPOConfig`.
    """
    names = [name for name, without in _UNHEEDED.items() if getattr(args, name) not in without]
    more = args.generation_kwargs or {}
    changed = [name for name, value in more.items() if value not in _AS_IT_IS.get(name, ())]
    return names + [f"generation_kwargs ({name})" for name in changed]


class RoundedRollouts:
    """The same under `bf16: true`: from a copy in bfloat16, whose weights are rounded once a step.

    Autocast would round them at every token. What samples is not quite what is trained, and nothing
    corrects that: `sampling_gap` in the metrics is the mean of |log p rounded − log p| over the
    tokens of one response, in nats.
    """

    __name__ = "rounded_rollouts"

    def __init__(self) -> None:
        self.copy: Any = None

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """As `compact_rollouts`."""
        policy = trainer.accelerator.unwrap_model(trainer.model)
        first = self.copy is None
        if first:
            self.copy = copy.deepcopy(policy).requires_grad_(False).eval()
            for module in self.copy.modules():  # accelerate's and TRL's, which call the policy
                vars(module).pop("forward", None)
        for mine, own in zip(self.copy.parameters(), policy.parameters(), strict=True):
            if first or own.requires_grad:
                mine.data = own.data.bfloat16()
        found = compact_rollouts(prompts, trainer, self.copy)
        mode = "train" if policy.training else "eval"
        pair = found["prompt_ids"][0], found["completion_ids"][0]
        with in_eval(policy):
            gap = (_chances(self.copy, *pair) - _chances(policy, *pair)).abs().mean()
        trainer._metrics[mode]["sampling_gap"].append(float(gap))
        return found


@torch.inference_mode()
def _chances(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """log p of the tokens of a response, in nats."""
    ids = torch.tensor([prompt + response], device=next(model.parameters()).device)
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return token_log_probabilities(logits, ids[0, len(prompt) :])


def compact_rollouts(prompts: Sequence[Any], trainer: Any, sampler: Any = None) -> dict[str, Any]:
    """TRL's `rollout_func`: one response to each prompt (a group is a prompt repeated).

    The random streams of the rows come from torch's generator, whose state a checkpoint keeps,
    so that a resumed run samples what the uninterrupted one does.

    Args:
        prompts: texts, or lists of messages, which TRL renders by the chat template.
        trainer: a `trl.GRPOTrainer`.
        sampler: what samples; default its policy.

    Raises:
        ConfigError: messages with images.
        DataError: a token for which the model has no embedding.
    """
    args = trainer.args
    model = trainer.accelerator.unwrap_model(trainer.model) if sampler is None else sampler
    if is_conversational({"prompt": prompts[0]}):
        ids, images, _ = trainer._tokenize_prompts(prompts)
        if images:
            raise ConfigError("messages with images are not supported: rollouts are of text alone")
    else:
        ids = [encode_prompt(trainer._tokenizer, prompt) for prompt in prompts]
    seeds = torch.randint(2**62, (len(ids),)).tolist()
    settings = Sampling(
        temperature=args.temperature, top_p=args.top_p, max_tokens=args.max_completion_length
    )
    with in_eval(model), trainer.accelerator.autocast() if sampler is None else nullcontext():
        new = decode(model, ids, settings, Draws(seeds), frozenset(trainer.eos_token_ids))
    return {"prompt_ids": ids, "completion_ids": new, "logprobs": None}
