"""Answers to a context from which tokens were taken out: log-probabilities, and greedy decoding.

1. The context goes through the model once, unchanged; its keys and values are kept.
2. Rows are variants of it, each without some of its tokens. What stands before the first token
   that a row of the batch lacks is as it was: its keys and values are taken over, and the rest of
   each row goes through the model, padded on the left.
3. The end marker's last token and the correct answer follow as one block, the same in all rows:
   their logits give the log-probability of the answer.
4. The cache is cut back to before the token that the model answers from, and greedy decoding goes
   on from there (`probing.models.decode`).

A row is a text of its own: later tokens are computed without what was taken out, at positions
that close up, as if the step had never been written. Where the model's RoPE changes with the
length, all rows are rotated as the whole trace is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probing.answers.context import PreparedTrace
from probing.answers.hiding import Layers, StepHiding, token_log_probabilities
from probing.errors import in_trace
from probing.models.decode import (
    Sampling,
    Start,
    cached_logits,
    decode_from,
    pad_left,
)
from probing.models.lengths import held_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Answer:
    """What one row gives: `logprob` of the counted tokens in nats, and the greedy token ids (the
    end token included; None where none were asked for)."""

    logprob: float
    ids: tuple[int, ...] | None


class Answerer:
    """Answers of a model to contexts with tokens taken out.

    Args:
        model: a causal language model with sdpa or eager attention, in eval mode.
        ends: the tokens that end an answer.
        max_tokens: longest greedy answer; 0: none.
        batch_tokens: tokens in a forward pass, padding included.
        advance: called with the number of tokens that went through the model.

    Raises:
        ModelError: see `probing.answers.hiding.StepHiding`; its budget of memory holds for logits
            here.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ends: frozenset[int],
        *,
        max_tokens: int = 64,
        batch_tokens: int = 8192,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        self.hiding = StepHiding(model)
        self.model, self.ends = model, ends
        self.device = self.hiding.device
        self.max_tokens, self.batch_tokens, self.advance = max_tokens, batch_tokens, advance

    @torch.inference_mode()
    def __call__(self, trace: PreparedTrace, gone: Bool[np.ndarray, "row context"]) -> list[Answer]:
        """The answers to the trace's context without the tokens that are `gone`, row by row.

        Raises:
            ModelError: a window shorter than the trace, or layers that are no plain attention; a
                NotFiniteError where log-probabilities are not finite.
        """
        with held_at(self.model, len(trace)), in_trace(trace.id):
            return self._answers(trace, gone)

    def _answers(self, trace: PreparedTrace, gone: Bool[np.ndarray, "row context"]) -> list[Answer]:
        before = trace.behind - 1  # the marker's last token opens the answer's block (3)
        layers = self.hiding.context(trace, before)  # 1
        self.advance(before)
        vocabulary = self.model.config.get_text_config().vocab_size
        by_memory = self.hiding.batch_bytes // (4 * vocabulary * (int(trace.counted.sum()) + 1))
        rows = int(max(1, min(self.batch_tokens // max(1, len(trace)), by_memory)))
        answers: list[Answer] = []
        for start in range(0, len(gone), rows):
            answers += self._batch(trace, layers, gone[start : start + rows])
        return answers

    def _batch(
        self, trace: PreparedTrace, layers: Layers, gone: Bool[np.ndarray, "row context"]
    ) -> list[Answer]:
        cache, mask = self._prefill(trace, layers, gone)  # 2
        ids = torch.from_numpy(trace.ids).to(self.device)
        block = ids[trace.behind - 1 : -1].expand(len(gone), -1)
        mask = torch.cat([mask, torch.ones_like(block)], dim=1)
        counted = torch.from_numpy(np.flatnonzero(trace.counted[trace.behind :])).to(self.device)
        logits = cached_logits(self.model, block, mask, cache, keep=counted)  # 3
        self.advance(block.numel())
        chances = token_log_probabilities(logits, ids[trace.behind + counted])
        sums = chances.double().sum(-1).tolist()
        if not self.max_tokens:
            return [Answer(value, None) for value in sums]
        first = trace.answer - trace.behind  # place in the block of the token answered from
        for layer in cache.layers:  # 4
            layer.crop(first - block.shape[1])
        mask = mask[:, : mask.shape[1] - block.shape[1] + first + 1]
        start = Start(block[:, first : first + 1], mask, cache)
        settings = Sampling.greedy(self.max_tokens)
        decoded = decode_from(self.model, start, settings, self.ends)
        self.advance(sum(map(len, decoded)))
        return [Answer(value, tuple(row)) for value, row in zip(sums, decoded, strict=True)]

    def _prefill(
        self, trace: PreparedTrace, layers: Layers, gone: Bool[np.ndarray, "row context"]
    ) -> tuple[Any, Int[Tensor, "row token"]]:
        """Cache and mask of each row's context, the marker's last token left out (2)."""
        from transformers import DynamicCache

        lacking = gone.any(axis=0)
        before = trace.behind - 1
        shared = int(lacking.argmax()) if lacking.any() else before
        marker = np.ones(before - trace.context, dtype=bool)
        rests = [trace.ids[shared:before][np.append(~row, marker)[shared:]] for row in gone]
        ids, mask = (part.to(self.device) for part in pad_left(rests))
        mask = torch.cat([mask.new_ones((len(gone), shared)), mask], dim=1)
        taken = [
            tuple(part[:, :, :shared].expand(len(gone), -1, -1, -1) for part in layer)
            for layer in layers
        ]
        cache = DynamicCache(taken)
        if ids.shape[1]:
            cached_logits(self.model, ids, mask, cache, keep=1)
            self.advance(ids.numel())
        return cache, mask


def without(trace: PreparedTrace, steps: Sequence[int]) -> Bool[np.ndarray, "context"]:
    """The context's tokens that are gone with these steps: those of their spans."""
    return np.asarray(trace.hidden[list(steps)].any(axis=0))
