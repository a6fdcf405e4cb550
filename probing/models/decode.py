"""Decoding: token ids from a model, many rows at once.

1. A `Start` holds the tokens that go in first, and the cache of what stands before them. A prompt
   that several rows begin with goes in once.
2. A pass over the newest tokens gives the logits of the next one of every row. A caller may stand
   around the pass (`Around`: edits of heads) and change its logits (`Change`: tokens forbidden).
3. A token is chosen for each row: the greatest, or one drawn from the row's own stream of random
   numbers, so that a row depends on no other.
4. Rows that have ended leave the batch.
5. Where the model's RoPE changes with the length (`probing.models.lengths`), rows share a batch
   only while their texts are of one kind. A row that grows into another kind goes through the
   model anew, as a text that begins there: keys that were kept are of the old kind.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.errors import ConfigError, NotFiniteError
from probing.models.identity import check_ids, context_limit
from probing.models.lengths import Lengths, fresh_rope

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DRAWS = 256  # random numbers that a row draws at once
_CANDIDATES = 256  # tokens of a row among which its nucleus is looked for
_SURE = 1e-9  # more than rounding adds to a sum of chances

Rows = Int[Tensor, "row"]  # those not ended yet, by their places in the batch
# change(logits, written): logits of the next token of each row, which has written these ids so far
Change = Callable[[Float[Tensor, "row vocabulary"], Sequence[list[int]]], Tensor]
# around(rows, ids, mask): the context that a pass runs in; ids go in, mask is of all tokens
Around = Callable[
    [Rows, Int[Tensor, "row token"], Int[Tensor, "row all"]], AbstractContextManager[None]
]


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

    @classmethod
    def greedy(cls, max_tokens: int) -> Sampling:
        """The settings of greedy decoding."""
        return cls(temperature=0.0, top_p=1.0, max_tokens=max_tokens)


@dataclass(frozen=True, eq=False)
class Start:
    """What decoding goes on from (1).

    Args:
        ids: what goes in first.
        mask: of all tokens, those in the cache first; 0 where a token is padding.
        cache: of what stands before `ids`; decoding lets it grow. None: nothing does.
        of: with which of these each row begins; None: each of them is one.
    """

    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row all"]
    cache: Any = None
    of: Int[Tensor, "begun"] | None = None


class Draws:
    """Uniform random numbers, a stream a row, drawn in blocks."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self.streams = [np.random.default_rng(seed) for seed in seeds]
        self.drawn = np.empty((len(self.seeds), 0))

    def of(self, rows: Sequence[int]) -> Draws:
        """The streams of some rows, from their beginning."""
        return Draws([self.seeds[row] for row in rows])

    def take(
        self, step: int | Int[np.ndarray, "row"], rows: Int[np.ndarray, "row"]
    ) -> Float[np.ndarray, "row"]:
        """The numbers of these rows at this step, or each at its own, each in [0, 1)."""
        while np.max(step, initial=0) >= self.drawn.shape[1]:
            block = np.stack([stream.random(_DRAWS) for stream in self.streams])
            self.drawn = np.concatenate([self.drawn, block], axis=1)
        return np.asarray(self.drawn[rows, step])


def row_seed(seed: int, prompt: str, number: int) -> int:
    """The seed of one response: 63 bits of a hash, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\n{number}\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Sampling,
    draws: Draws | None,
    ends: frozenset[int],
    *,
    change: Change | None = None,
) -> list[list[int]]:
    """New token ids behind each prompt, the end token included.

    A row stops at an end token, at `max_tokens`, or at the model's greatest position.

    Args:
        model: a causal language model in eval mode.
        prompts: token ids, at least one a prompt.
        settings, ends: how to sample; the ids that end a row.
        draws, change: a stream a prompt (none at temperature 0); changes logits before the choice.

    Raises:
        ConfigError: a prompt fills the model's context.
        NotFiniteError: logits that are not finite.
    """
    most, limit, width = settings.max_tokens, context_limit(model.config), max(map(len, prompts))
    if limit is not None:
        if width >= limit:
            raise ConfigError(f"a prompt has {width} tokens, the model's context {limit}")
        most = min(most, limit - width)
    device, lengths = next(model.parameters()).device, Lengths.of(model)
    written: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    ended = [[end] for end in ends]
    while going:  # 5; once, where nothing changes with the length
        texts = {row: [*prompts[row], *written[row]] for row in going}
        kind = lengths.kind(len(texts[going[0]]))
        rows = [row for row in going if lengths.kind(len(texts[row])) == kind]
        rooms = [lengths.room(len(texts[row])) for row in rows]
        once = {tuple(texts[row]): None for row in rows}
        place = {text: number for number, text in enumerate(once)}
        ids, mask = pad_left([*once])
        of = torch.tensor([place[tuple(texts[row])] for row in rows])
        fresh_rope(model)
        decode_from(
            model,
            Start(ids.to(device), mask.to(device), of=of.to(device)),
            settings,
            ends,
            draws=draws and draws.of(rows),
            change=change,
            written=[written[row] for row in rows],
            most=[
                most if room is None else min(most, len(written[row]) + room)
                for row, room in zip(rows, rooms, strict=True)
            ],
        )
        going = [
            row for row in going if len(written[row]) < most and written[row][-1:] not in ended
        ]
    return written


@torch.inference_mode()
def decode_from(
    model: PreTrainedModel,
    start: Start,
    settings: Sampling,
    ends: frozenset[int],
    *,
    most: Sequence[int] | None = None,
    draws: Draws | None = None,
    change: Change | None = None,
    around: Around | None = None,
    written: list[list[int]] | None = None,
) -> list[list[int]]:
    """New token ids of each row behind a start, the end token included.

    Args:
        model: a causal language model in eval mode.
        start: on the model's device.
        settings, ends: how to sample; the ids that end a row.
        most: of each row, how many ids it may have written in the end; default `max_tokens`.
        draws, change: a stream a row (none at temperature 0); changes logits before the choice.
        around, written: context of each pass; what each row has written so far, which is added to.

    Raises:
        NotFiniteError, ValueError: logits that are not finite; a temperature above 0 without draws.
    """
    from transformers import DynamicCache

    if settings.temperature > 0 and draws is None:
        raise ValueError("sampling needs draws, a stream of random numbers a row")
    ids, mask, cache = start.ids, start.mask, start.cache
    cache = DynamicCache(config=model.config) if cache is None else cache
    stop = torch.tensor(sorted(ends), dtype=torch.long, device=ids.device)
    of = torch.arange(len(ids), device=ids.device) if start.of is None else start.of
    rows = torch.arange(len(of), device=ids.device)
    written = [[] for _ in of] if written is None else written
    most = most or [settings.max_tokens] * len(of)
    left = torch.tensor([end - len(own) for end, own in zip(most, written, strict=True)]).to(stop)
    while True:
        with around(rows, ids, mask) if around else nullcontext():  # 2
            logits = cached_logits(model, ids, mask, cache, keep=1)[:, -1]
        if len(logits) < len(rows):  # the first pass
            cache.batch_select_indices(of)
            logits, mask = logits[of], mask[of]
        own = [written[row] for row in rows.tolist()]
        steps = np.array([len(row) for row in own])
        numbers = None if draws is None else draws.take(steps, rows.cpu().numpy())
        logits = finite_logits(logits)
        token = choose(change(logits, own) if change else logits, settings, numbers)  # 3
        for row, value in zip(own, token.tolist(), strict=True):
            row.append(value)
        left -= 1
        going = ~torch.isin(token, stop) & (left > 0)
        if not going.any():
            return written
        if not going.all():  # 4
            kept = going.nonzero().flatten()
            cache.batch_select_indices(kept)
            rows, token, mask, left = rows[kept], token[kept], mask[kept], left[kept]
        ids, mask = token[:, None], torch.nn.functional.pad(mask, (0, 1), value=1)


def finite_logits(logits: Float[Tensor, "row vocabulary"]) -> Float[Tensor, "row vocabulary"]:
    """The same logits; tokens that the model rules out may stand at minus infinity.

    Raises:
        NotFiniteError: a row whose greatest logit is not finite.
    """
    if not logits.amax(-1).isfinite().all():
        raise NotFiniteError.of("the logits of the next token are", logits.dtype)
    return logits


def choose(
    logits: Float[Tensor, "row vocabulary"],
    settings: Sampling,
    draws: Float[np.ndarray, "row"] | None,
) -> Int[Tensor, "row"]:
    """A token id for each row.

    Greedy at temperature 0. Else by the inverse of the cumulated chances, at the row's number in
    [0, 1), among the fewest tokens whose chances reach `top_p` (Holtzman et al. 2020).
    """
    if settings.temperature == 0 or draws is None:
        return logits.argmax(-1)
    chances = torch.softmax(logits.double() / settings.temperature, -1)
    order = None
    if settings.top_p < 1:
        likely = _likely(chances, settings.top_p)
        chances, order = chances[:, likely].sort(dim=-1, descending=True, stable=True)
        order = likely[order]
        before = chances.cumsum(-1) - chances
        chances = chances.where(before < settings.top_p, 0.0)
    reach = chances.cumsum(-1)
    at = torch.as_tensor(draws, dtype=reach.dtype, device=reach.device)[:, None] * reach[:, -1:]
    place = torch.searchsorted(reach, at, right=True)
    # Rounding may put the last number beyond the sum.
    place = place.clamp(max=reach.shape[-1] - 1)
    return (place if order is None else order.gather(-1, place)).flatten()


def _likely(chances: Float[Tensor, "row vocabulary"], top_p: float) -> Int[Tensor, "likely"]:
    """Tokens that hold the nucleus of every row: to sort them alone, of a large vocabulary, is soon
    done, and gives the same."""
    highest = chances.topk(min(_CANDIDATES, chances.shape[-1]), dim=-1).values
    if (highest.sum(-1) <= top_p + _SURE).any():
        return torch.arange(chances.shape[-1], device=chances.device)
    return (chances >= highest[:, -1:]).any(0).nonzero().flatten()


def cached_logits(
    model: Any,
    ids: Int[Tensor, "row token"],
    mask: Int[Tensor, "row all"],
    cache: Any,
    *,
    keep: int | Int[Tensor, "kept"] = 0,
) -> Float[Tensor, "row kept vocabulary"]:
    """Logits of the tokens that go in, behind those in the cache, which grows by them.

    Args:
        model: a causal language model.
        ids: what goes in.
        mask: of all tokens, those in the cache first; 0 where a token is padding. A token's
            position counts the real ones before it.
        cache: of the tokens before.
        keep: whose logits: the last so many, 0: all; or their places among `ids`.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of an adapter
    takes = _arguments(type(inner).forward)
    options: dict[str, Any] = {}
    if "position_ids" in takes:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if "logits_to_keep" in takes:
        options["logits_to_keep"] = keep
    logits: Tensor = model(
        input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options
    ).logits
    if "logits_to_keep" in takes:
        return logits
    return logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]


@lru_cache(maxsize=16)
def _arguments(forward: Any) -> frozenset[str]:
    """Names of the arguments that a model's forward takes."""
    return frozenset(inspect.signature(forward).parameters)


def pad_left(
    rows: Sequence[Sequence[int] | Int[np.ndarray, "_"]],
) -> tuple[Int[Tensor, "row longest"], Int[Tensor, "row longest"]]:
    """Token ids of rows of different lengths that end in one column, and their mask.

    What stands in a masked place does not matter.

    Example:
        >>> pad_left([[5, 6], [7]])
        (tensor([[5, 6],
                [0, 7]]), tensor([[1, 1],
                [0, 1]]))
    """
    width = max(map(len, rows))
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, width - len(row) :] = torch.as_tensor(np.asarray(row, dtype=np.int64))
        mask[place, width - len(row) :] = 1
    return ids, mask


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a rendered prompt, with exactly one BOS where the tokenizer sets one.

    A chat template often writes the BOS into the text; the tokenizer would set it once more.
    An EOS that the tokenizer sets at the end is left out: the text goes on.

    Raises:
        DataError: a token for which the model has no embedding.
    """
    ids = _ids(tokenizer, prompt, special=False)
    check_ids(tokenizer, ids, f"the prompt {prompt!r:.60}")
    start = tokenizer.bos_token_id
    if start is None or ids[:1] == [start]:
        return ids
    return [start, *ids] if _ids(tokenizer, prompt, special=True)[:1] == [start] else ids


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def end_tokens(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a response: of the generation config, else of config and tokenizer.

    Raises:
        ConfigError: none of the three names one.
    """
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        ends = getattr(holder, "eos_token_id", None)
        if ends is not None:
            return frozenset(ends if isinstance(ends, (list, tuple)) else [ends])
    raise ConfigError("neither model nor tokenizer names a token that ends a response")
