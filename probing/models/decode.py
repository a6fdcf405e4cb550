"""Decoding: token ids from a model, row by row, each row with its own stream of random numbers."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DRAWS = 256  # random numbers that a row draws at once


def gather_cache(
    logits: Float[Tensor, "row token vocabulary"], targets: Int[Tensor, "token"]
) -> Float[Tensor, "row token"]:
    """log softmax at the targets in float32, a row at a time: logits are what takes memory."""
    rows = []
    for row in logits:
        values = row.float()
        rows.append(values.gather(-1, targets[:, None])[:, 0] - values.logsumexp(-1))
    return torch.stack(rows)


def token_log_probabilities(
    logits: Float[Tensor, "token vocabulary"], ids: Int[np.ndarray, "token"]
) -> Float[np.ndarray, "token"]:
    """log p of each id by the logits of its place, in nats."""
    chances = logits.float().log_softmax(-1)
    targets = torch.from_numpy(ids).to(chances.device)
    found: np.ndarray = chances.gather(-1, targets[:, None])[:, 0].double().cpu().numpy()
    return found


def up_to_end(ids: list[int], ends: Collection[int]) -> list[int]:
    """The ids up to the first that ends an answer, which is one of them."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    return ids


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a rendered prompt, with exactly one BOS where the tokenizer sets one.

    A chat template often writes the BOS into the text; the tokenizer would set it once more.
    An EOS that the tokenizer sets at the end is left out: the text goes on.
    """
    ids = _ids(tokenizer, prompt, special=False)
    start = tokenizer.bos_token_id
    if start is None or ids[:1] == [start]:
        return ids
    return [start, *ids] if _ids(tokenizer, prompt, special=True)[:1] == [start] else ids


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    found: Sequence[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return list(found)


@dataclass(frozen=True)
class Sampling:
    """How to sample; temperature 0 is greedy. Other settings of a model's generation config,
    penalties for instance, are not applied.

    Raises:
        ConfigError: a value out of range.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.temperature <= 10:
            raise ConfigError(f"temperature must lie in [0, 10], is {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must lie in (0, 1], is {self.top_p}")
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, is {self.max_tokens}")


def row_seed(seed: int, prompt: str, number: int) -> int:
    """The seed of one response: 63 bits of a hash, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\n{number}\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def end_tokens(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a response: of the generation config, else of config and tokenizer."""
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        ends = getattr(holder, "eos_token_id", None)
        if ends is not None:
            return frozenset(ends if isinstance(ends, (list, tuple)) else [ends])
    raise ConfigError("neither model nor tokenizer names a token that ends a response")


class Draws:
    """Uniform random numbers, a stream a row, drawn in blocks."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.streams = [np.random.default_rng(seed) for seed in seeds]
        self.block = np.empty((0, 0))

    def take(self, step: int, rows: np.ndarray) -> np.ndarray:
        """The numbers of these rows at this step; steps are asked for in order."""
        place = step % _DRAWS
        if place == 0:
            self.block = np.stack([stream.random(_DRAWS) for stream in self.streams])
        return np.asarray(self.block[rows, place])


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Sampling,
    draws: Draws,
    ends: frozenset[int],
) -> list[list[int]]:
    """New token ids of each row, the end token included.

    A row stops at an end token, at `max_tokens`, or at the model's greatest position.
    """
    import torch
    from transformers import DynamicCache

    device = next(model.parameters()).device
    ids, mask = _pad_left(prompts, device)
    stop = torch.tensor(sorted(ends), device=device)
    rows = torch.arange(len(ids), device=device)  # the unfinished ones
    output: list[list[int]] = [[] for _ in prompts]
    cache = DynamicCache(config=model.config)
    takes = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    with torch.inference_mode():
        for step in range(_steps(model, ids.shape[1], settings.max_tokens)):
            if "position_ids" in takes:
                places = (mask.cumsum(-1) - 1).clamp(min=0)
                options["position_ids"] = places[:, -ids.shape[1] :]
            logits = model(
                input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options
            ).logits[:, -1]
            token = choose(logits, settings, lambda: draws.take(step, rows.cpu().numpy()))  # noqa: B023
            for row, value in zip(rows.tolist(), token.tolist(), strict=True):
                output[row].append(value)
            going = ~torch.isin(token, stop)
            if not going.any():
                break
            if not going.all():
                kept = going.nonzero().flatten()
                cache.batch_select_indices(kept)
                rows, token, mask = rows[kept], token[kept], mask[kept]
            ids = token[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return output


def _steps(model: PreTrainedModel, width: int, max_tokens: int) -> int:
    """Tokens that can be generated before the positions of the model end."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return max_tokens
    if width >= limit:
        raise ConfigError(f"a prompt has {width} tokens, the model's context {limit}")
    return min(max_tokens, int(limit) - width)


def _pad_left(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [row, longest prompt]; what stands in a masked place does not matter."""
    import torch

    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def choose(logits: torch.Tensor, settings: Sampling, draw: Any) -> torch.Tensor:
    """One token id a row of logits [row, vocabulary].

    Greedy at temperature 0. Else by the inverse of the cumulated chances, at `draw()` (a number
    in [0, 1) a row), among the fewest tokens whose chances reach `top_p` (Holtzman et al. 2020).
    """
    import torch

    if settings.temperature == 0:
        return logits.argmax(-1)
    chances = torch.softmax(logits.double() / settings.temperature, -1)
    order = None
    if settings.top_p < 1:
        chances, order = chances.sort(dim=-1, descending=True, stable=True)
        before = chances.cumsum(-1) - chances
        chances = chances.where(before < settings.top_p, 0.0)
    reach = chances.cumsum(-1)
    at = torch.as_tensor(draw(), dtype=reach.dtype, device=reach.device)[:, None] * reach[:, -1:]
    place = torch.searchsorted(reach, at, right=True)
    # Rounding may put the last number beyond the sum.
    place = place.clamp(max=reach.shape[-1] - 1)
    return (place if order is None else order.gather(-1, place)).flatten()
