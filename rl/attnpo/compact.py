"""Less padding, for CPU: rollouts whose finished rows leave the batch, which otherwise waits for
its longest response; and forward passes over rows sorted by length and trimmed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad

from probing.errors import ConfigError
from probing.models.decode import Draws, Sampling, decode, encode_prompt
from probing.models.lengths import Lengths

# Log-probabilities and entropies (row, token), and a scalar loss; what is not asked for is None.
Logps = tuple[Tensor, Tensor | None, Tensor | None]


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


def in_trimmed_rows(
    forward: Callable[[list[int], Tensor, Tensor, int], Logps],
    ids: Int[Tensor, "row token"],
    mask: Int[Tensor, "row token"],
    keep: int,
    rows: int,
) -> Logps:
    """What `forward` gives for all rows, which it gets a few at a time: sorted by length, and
    without the columns that are padding in each of them.

    Args:
        forward: (numbers of the rows, their ids, their mask, how many columns from the right to
            keep) → log-probabilities and entropies of these columns.
        ids: prompts padded on the left, responses on the right.
        mask: 1 for real tokens.
        keep: columns of the responses.
        rows: at most so many at a time.

    Returns:
        Both (row, keep), in the order of `ids`, 0 where a column was cut; the mean of the scalars.
    """
    order = mask.sum(dim=1).argsort(descending=True, stable=True)
    parts: list[Logps] = []
    for chunk in order.split(rows):
        left, right = margins(mask[chunk], keep)
        columns = slice(left, ids.shape[1] - right)
        trimmed = ids[chunk, columns], mask[chunk, columns], keep - right
        logps, entropies, aux = forward(chunk.tolist(), *trimmed)
        entropies = None if entropies is None else pad(entropies, (0, right))
        parts.append((pad(logps, (0, right)), entropies, aux))
    back = order.argsort()
    every_logps, every_entropies, every_aux = zip(*parts, strict=True)
    return (
        torch.cat(every_logps)[back],
        None if every_entropies[0] is None else torch.cat(every_entropies)[back],
        None if every_aux[0] is None else torch.stack(every_aux).mean(),
    )


def margins(mask: Int[Tensor, "row token"], keep: int) -> tuple[int, int]:
    """Columns without a token in any row: on the left of the prompts, on the right at the end.

    At least one of the `keep` columns of the responses stays: there must be something to compute.
    """
    used = mask.any(dim=0).nonzero()[:, 0]
    if not len(used):
        return 0, 0
    right = mask.shape[1] - 1 - int(used[-1])
    return int(used[0]), min(right, keep - 1)


def refuse_longer(lengths: Lengths, tokens: int) -> None:
    """Refuse passes of the policy that reach beyond a length at which its attention changes.

    The rows of such a pass would change each other's log-probabilities: its width, padding
    included, decides for all of them.

    Args:
        lengths: of the policy.
        tokens: width of the pass.

    Raises:
        ConfigError: it is too wide.
    """
    if lengths and tokens > lengths.first:
        raise ConfigError(
            f"prompts and responses are up to {tokens} tokens wide, and the model's RoPE changes "
            f"beyond {lengths.first}: a response's log-probability would depend on what it is "
            "batched with. Lower max_completion_length (and the length of prompts)"
        )
