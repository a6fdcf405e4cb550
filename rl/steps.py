"""Sampled token ids → text, steps and answer tokens, with the offsets of the ids themselves.

The ids are decoded once, one by one, so that each knows its characters; no text is tokenised
again, and nothing is searched for after the cut.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from probing.errors import ModelError
from probing.segmenters import Segmenter
from probing.tokens import answer_tokens, decode_with_offsets, token_spans
from probing.traces import Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Response:
    """A sampled response, cut into steps.

    `ids` are the tokens as sampled, without the end token and what follows it; `length` counts
    the end token. `spans` are token spans of the steps, half open; a response without the end of
    its reasoning has no step and no answer.
    """

    ids: Int[np.ndarray, "token"]
    length: int
    finished: bool  # ended by itself, not at the limit of tokens
    text: str
    steps: tuple[Step, ...]  # in characters of `text`
    spans: Int[np.ndarray, "step 2"]
    answer: Bool[np.ndarray, "token"]  # F
    reasoned: bool  # the reasoning has an end

    @property
    def complete(self) -> bool:
        """Whether the reasoning ends and the response ends: only then can it be correct."""
        return self.finished and self.reasoned


@dataclass(frozen=True)
class Cutter:
    """Cuts responses; everything about it is stored in the head set or the recipe.

    Args:
        tokenizer: a fast one.
        end_ids: ids that end a response.
        segmenter: cuts the reasoning.
        rule: how steps take tokens, `start` or `overlap`.
        answer: which tokens after the reasoning are F, `all`, `values` or `boxed`.
        think_end: the text that ends the reasoning.

    Raises:
        ModelError: the tokenizer is a slow one, which knows no offsets.
    """

    tokenizer: PreTrainedTokenizerBase
    end_ids: Collection[int]
    segmenter: Segmenter
    rule: str = "start"
    answer: str = "all"
    think_end: str = "</think>"

    def __post_init__(self) -> None:
        """Refuse a tokenizer that cannot give offsets."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(self.tokenizer).__name__} is a slow tokenizer without offsets; load the "
                "fast one (use_fast=True), or a model that has one"
            )

    def __call__(self, ids: Sequence[int]) -> Response:
        """Cut one response; `ids` may go on after the end token."""
        ends = np.flatnonzero(np.isin(ids, list(self.end_ids)))
        finished = len(ends) > 0
        kept = np.asarray(ids[: ends[0]] if finished else ids, dtype=np.int64)
        text, offsets = decode_with_offsets(self.tokenizer, kept)
        end = text.find(self.think_end)
        steps = tuple(self.segmenter.cut(text[:end])) if end >= 0 else ()
        answer = np.zeros(len(kept), dtype=bool)
        if end >= 0:
            answer = answer_tokens(offsets, text, end + len(self.think_end), self.answer)
        spans = token_spans(offsets, [(step.start, step.end) for step in steps], self.rule)
        return Response(
            kept, len(kept) + int(finished), finished, text, steps, spans, answer, end >= 0
        )
