"""Rollouts in this process, with finished rows leaving the batch: on CPU a batch otherwise waits
for its longest response. TRL's own ways (generate, vLLM) stay the default elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rl.processes import uses_fsdp
from rl.prompts import encode_prompt
from rl.sampling import Draws, Sampling, decode

ROLLOUTS = ("trl", "compact")


def compact_rollouts(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
    """TRL's `rollout_func`: one response to each prompt (a group is a prompt repeated).

    The random streams of the rows come from torch's generator, whose state a checkpoint keeps,
    so that a resumed run samples what the uninterrupted one does.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    ids = [encode_prompt(trainer._tokenizer, prompt) for prompt in prompts]
    seeds = torch.randint(2**62, (len(ids),)).tolist()
    settings = Sampling(
        temperature=args.temperature, top_p=args.top_p, max_tokens=args.max_completion_length
    )
    training = model.training
    model.eval()
    try:
        with trainer.accelerator.autocast():
            new = decode(model, ids, settings, Draws(seeds), frozenset(trainer.eos_token_ids))
    finally:
        model.train(training)
    return {"prompt_ids": ids, "completion_ids": new, "logprobs": None}


def compact_reason(args: Any) -> str | None:
    """Why these rollouts cannot be used with these settings; None where they can."""
    if args.use_vllm:
        return "vLLM samples"
    if uses_fsdp(args) or getattr(args, "deepspeed_plugin", None):
        return "the parameters are sharded"
    others = {"top_k": (0, None), "min_p": (None, 0), "repetition_penalty": (1.0,)}
    changed = [name for name, values in others.items() if getattr(args, name) not in values]
    return f"{', '.join(changed)} set" if changed else None
