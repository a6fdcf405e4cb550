"""Rollouts in this process, with finished rows leaving the batch: on CPU a batch otherwise waits
for its longest response. TRL's own ways (generate, vLLM) stay the default elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from probing.models.decode import Draws, Sampling, decode, encode_prompt


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
