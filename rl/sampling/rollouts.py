"""Rollouts of a training step on CPU: finished rows leave the batch, which otherwise waits for its
longest response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl.data_utils import is_conversational

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


def compact_rollouts(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
    """TRL's `rollout_func`: one response to each prompt (a group is a prompt repeated).

    The random streams of the rows come from torch's generator, whose state a checkpoint keeps,
    so that a resumed run samples what the uninterrupted one does.

    Args:
        prompts: texts, or lists of messages, which TRL renders by the chat template.
        trainer: a `trl.GRPOTrainer`.

    Raises:
        ConfigError: messages with images.
        DataError: a token for which the model has no embedding.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
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
    with in_eval(model), trainer.accelerator.autocast():
        new = decode(model, ids, settings, Draws(seeds), frozenset(trainer.eos_token_ids))
    return {"prompt_ids": ids, "completion_ids": new, "logprobs": None}
