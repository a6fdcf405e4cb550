"""Batched decoding from the pocket reasoner, greedy or sampled, with checks forbidden or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rl.pocket.task import Problem
from rl.pocket.tokens import EOS, vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


Forbidden = Literal["none", "all", "easy"]


@dataclass(frozen=True)
class Decoding:
    """How to decode: temperature 0 is greedy; `forbid` names the checks that may not begin.

    Only checks begin with "Wait", so forbidding the token forbids the check: "all" of them, or
    those of "easy" operations (where the last derivation line adds).

    Raises:
        ValueError: a negative temperature, an empty batch, or an unknown kind of check.
    """

    temperature: float = 0.0
    forbid: Forbidden = "none"
    seed: int = 0
    batch: int = 128
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.batch < 1 or self.max_new_tokens < 1:
            raise ValueError(f"temperature must not be negative, sizes must be positive: {self}")
        if self.forbid not in ("none", "all", "easy"):
            raise ValueError(f"forbid must be none, all or easy, not {self.forbid!r}")


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    decoding: Decoding | None = None,
) -> list[str]:
    """One response a problem, in order, without the end token; one that hit the limit is cut."""
    import torch

    decoding = decoding or Decoding()
    generator = torch.Generator().manual_seed(decoding.seed)
    responses: list[str] = []
    for start in range(0, len(problems), decoding.batch):
        prompts = [problem.prompt for problem in problems[start : start + decoding.batch]]
        tokens = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        new = _decode(model, tokens["input_ids"], tokens["attention_mask"], decoding, generator)
        responses += tokenizer.batch_decode(new, skip_special_tokens=True)
    return responses


def _decode(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    decoding: Decoding,
    generator: torch.Generator,
) -> list[list[int]]:
    """New token ids of each row up to the end token; ids and mask are [rows, longest prompt]."""
    import torch
    from transformers import DynamicCache

    end = vocabulary()[EOS]
    rows = torch.arange(len(ids))  # the unfinished ones; finished rows leave the batch
    output: list[list[int]] = [[] for _ in range(len(ids))]
    guard = _Guard(decoding.forbid, len(ids))
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        for _ in range(decoding.max_new_tokens):
            places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            token = _choose(guard.apply(logits), decoding.temperature, generator)
            for row, value in zip(rows.tolist(), token.tolist(), strict=True):
                output[row].append(value)
            going = token != end
            if not going.any():
                break
            if going.float().mean() < 0.75:
                kept = going.nonzero().flatten()
                cache.batch_select_indices(kept)
                rows, token, mask = rows[kept], token[kept], mask[kept]
                guard.keep(kept)
            guard.see(token)
            ids = token[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return [new[: new.index(end)] if end in new else new for new in output]


def _choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """One token id a row of logits [rows, vocabulary]."""
    import torch

    if temperature == 0:
        return logits.argmax(-1)
    chances = torch.softmax(logits.float() / temperature, -1)
    return torch.multinomial(chances, 1, generator=generator).flatten()


class _Guard:
    """Takes the token that opens a check out of the logits where checks are forbidden."""

    def __init__(self, forbid: Forbidden, rows: int) -> None:
        import torch

        ids = vocabulary()
        self.forbid, self.opens = forbid, ids["Wait"]
        self.plus, self.times, self.gives = ids[" +"], ids[" *"], ids[" gives"]
        self.operator = torch.zeros(rows, dtype=torch.long)
        self.easy = torch.zeros(rows, dtype=torch.bool)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self.forbid == "all":
            logits[:, self.opens] = float("-inf")
        elif self.forbid == "easy":
            logits[self.easy, self.opens] = float("-inf")
        return logits

    def see(self, token: torch.Tensor) -> None:
        """A derivation is the one line with "gives"; the operator stands before that word."""
        import torch

        is_operator = (token == self.plus) | (token == self.times)
        self.operator = torch.where(is_operator, token, self.operator)
        self.easy = torch.where(token == self.gives, self.operator == self.plus, self.easy)

    def keep(self, rows: torch.Tensor) -> None:
        self.operator, self.easy = self.operator[rows], self.easy[rows]
