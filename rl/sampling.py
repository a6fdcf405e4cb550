"""Sample responses to prompts: from a model of transformers, vLLM, or an endpoint.

Randomness: each response has a seed of its own, of (seed, prompt, number of the sample). With
transformers a response so depends on nothing else but rounding: padding and the size of the batch
change logits in their last digits, which now and then turns a token. The same call on the same
machine gives the same responses.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from probing.errors import ConfigError
from rl.prompts import encode_prompt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BACKENDS = ("transformers", "vllm", "openai")
BATCH = 64
_DRAWS = 256  # random numbers that a row draws at once


@dataclass(frozen=True)
class Sample:
    """One response.

    `text`: what was generated after the prompt, without the end token; `token_ids`: with it,
    None where the backend does not give them; `tokens`: their number, the end token counted;
    `finished`: ended by itself, not by the limit.
    """

    text: str
    token_ids: tuple[int, ...] | None
    tokens: int
    finished: bool


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


class Sampler(Protocol):
    """What gives responses.

    `rows` is how many responses it likes to be asked for at once; `rendered` whether it takes
    rendered prompts (`rl.prompts`), or bare questions as an endpoint's chat does.
    """

    rows: int
    rendered: bool

    def sample(self, prompts: Sequence[str], *, n: int, settings: Sampling) -> list[list[Sample]]:
        """n responses to each prompt, in the order of the prompts."""
        ...


def open_sampler(
    model: str,
    backend: str = "transformers",
    *,
    tokenizer: Any = None,
    base_url: str | None = None,
    raw: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    batch: int = BATCH,
    trust_remote_code: bool = False,
    keep_ids: bool = False,
) -> Sampler:
    """Open a backend.

    Args:
        model: hub id or folder; for `openai` the name by which the endpoint knows it.
        backend: `transformers`, `vllm` or `openai` (any compatible endpoint).
        tokenizer: a loaded one; default the model's.
        base_url: of the endpoint, such as `http://localhost:8000/v1`.
        raw: send rendered prompts to the endpoint's completions instead of questions to its chat.
        device, dtype: as in `probing.models.load_model`.
        batch: responses generated at a time; requests at a time.
        trust_remote_code: run code that comes with the model.
        keep_ids: ask the endpoint's completions for token ids too; other backends give them.

    Raises:
        ConfigError: unknown backend, or one that is not installed, or no address.
        ModelError: the model cannot be loaded.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}; choose {', '.join(BACKENDS)}")
    if backend == "openai":
        from rl.endpoints import EndpointSampler

        return EndpointSampler(model, base_url, raw=raw, rows=batch, ask_ids=keep_ids and raw)
    from probing.models import load_model, load_tokenizer

    tokenizer = tokenizer or load_tokenizer(model, trust_remote_code=trust_remote_code)
    if backend == "vllm":
        from rl.endpoints import VllmSampler

        return VllmSampler(model, tokenizer, dtype=dtype, trust_remote_code=trust_remote_code)
    loaded = load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    return TransformersSampler(loaded, tokenizer, batch)


def row_seed(seed: int, prompt: str, number: int) -> int:
    """The seed of one response: 63 bits of a hash, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\n{number}\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class TransformersSampler:
    """Batched decoding of any causal language model, with a cache; finished rows leave the batch.

    Args:
        model: in eval mode, on its device.
        tokenizer: the model's.
        rows: responses decoded at a time.
    """

    rendered = True

    def __init__(self, model: PreTrainedModel, tokenizer: Any, rows: int = BATCH) -> None:
        if rows < 1:
            raise ConfigError(f"a batch needs at least 1 row, not {rows}")
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.ends = end_tokens(model, tokenizer)

    def sample(self, prompts: Sequence[str], *, n: int, settings: Sampling) -> list[list[Sample]]:
        """n responses to each prompt; rows are decoded in the order of their prompts' lengths."""
        encoded = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        rows = [(place, number) for place in range(len(prompts)) for number in range(n)]
        rows.sort(key=lambda row: len(encoded[row[0]]), reverse=True)  # the largest batch first
        found: dict[tuple[int, int], Sample] = {}
        for start in range(0, len(rows), self.rows):
            chunk = rows[start : start + self.rows]
            draws = Draws([row_seed(settings.seed, prompts[p], number) for p, number in chunk])
            new = decode(self.model, [encoded[p] for p, _ in chunk], settings, draws, self.ends)
            for row, ids in zip(chunk, new, strict=True):
                found[row] = self._sample(ids)
        return [[found[place, number] for number in range(n)] for place in range(len(prompts))]

    def _sample(self, ids: list[int]) -> Sample:
        finished = bool(ids) and ids[-1] in self.ends
        # Special tokens stay: some models mark the end of their reasoning with one.
        text = self.tokenizer.decode(
            ids[:-1] if finished else ids,
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return Sample(text, tuple(ids), len(ids), finished)


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
