"""Answers to a context from which tokens were taken out: log-probabilities, and greedy decoding.

1. The context goes through the model once, unchanged; its keys and values are kept.
2. Rows are variants of it, each without some of its tokens. What stands before the first token
   that a row of the batch lacks is as it was: its keys and values are taken over, and the rest of
   each row goes through the model, padded on the left.
3. The end marker's last token and the correct answer follow as one block, the same in all rows:
   their logits give the log-probability of the answer, and the first greedy token.
4. The cache is cut back to where the model answers from, and greedy decoding goes on from there.

A row is a text of its own: later tokens are computed without what was taken out, at positions
that close up, as if the step had never been written.
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
from probing.answers.hiding import StepHiding

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Layers = list[tuple[Tensor, Tensor]]


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
        self.ablation = StepHiding(model)
        self.model = model
        self.device = self.ablation.device
        self.stop = torch.tensor(sorted(ends), dtype=torch.long, device=self.device)
        self.max_tokens, self.batch_tokens, self.advance = max_tokens, batch_tokens, advance

    @torch.inference_mode()
    def __call__(self, trace: PreparedTrace, gone: Bool[np.ndarray, "row context"]) -> list[Answer]:
        """The answers to the trace's context without the tokens that are `gone`, row by row.

        Raises:
            ModelError: a window shorter than the trace, or layers that are no plain attention.
        """
        head = trace.behind - 1  # the marker's last token opens the answer's block (3)
        layers = self.ablation.context(trace, head)  # 1
        self.advance(head)
        vocabulary = self.model.config.get_text_config().vocab_size
        by_memory = self.ablation.batch_bytes // (4 * vocabulary * (int(trace.counted.sum()) + 1))
        rows = int(max(1, min(self.batch_tokens // max(1, len(trace)), by_memory)))
        found: list[Answer] = []
        for start in range(0, len(gone), rows):
            found += self._batch(trace, layers, gone[start : start + rows])
        return found

    def _batch(
        self, trace: PreparedTrace, layers: Layers, gone: Bool[np.ndarray, "row context"]
    ) -> list[Answer]:
        cache, mask = self._prefill(trace, layers, gone)  # 2
        block = torch.from_numpy(trace.ids[trace.behind - 1 : -1]).to(self.device)
        mask = torch.cat([mask, mask.new_ones((len(gone), len(block)))], dim=1)
        counted = np.flatnonzero(trace.counted[trace.behind :])
        first = trace.answer - trace.behind
        wanted = torch.from_numpy(np.append(counted, first)).to(self.device)
        logits = self._forward(block.expand(len(gone), -1), mask, cache, wanted)  # 3
        chances = logits[:, :-1].float().log_softmax(-1)
        targets = torch.from_numpy(trace.ids[trace.behind + counted]).to(self.device)
        picked = chances.gather(-1, targets[None, :, None].expand(len(gone), -1, 1))[..., 0]
        sums = picked.double().sum(-1).tolist()
        if not self.max_tokens:
            return [Answer(value, None) for value in sums]
        behind = len(block) - first - 1  # fed tokens that stand behind the place of answering
        for layer in cache.layers:
            layer.crop(-behind)
        ids = self._greedy(logits[:, -1].argmax(-1), mask[:, : mask.shape[1] - behind], cache)  # 4
        return [Answer(value, tuple(row)) for value, row in zip(sums, ids, strict=True)]

    def _prefill(
        self, trace: PreparedTrace, layers: Layers, gone: Bool[np.ndarray, "row context"]
    ) -> tuple[Any, Int[Tensor, "row token"]]:
        """Cache and mask of each row's context, the marker's last token left out (2)."""
        from transformers import DynamicCache

        lacking = gone.any(axis=0)
        head = trace.behind - 1
        shared = int(lacking.argmax()) if lacking.any() else head
        kept = [
            np.concatenate([~row, np.ones(head - trace.context, bool)])[shared:] for row in gone
        ]
        width = max(int(row.sum()) for row in kept)
        ids = torch.zeros((len(gone), width), dtype=torch.long)
        mask = torch.ones((len(gone), shared + width), dtype=torch.long)
        for row, keep in enumerate(kept):
            rest = trace.ids[shared:head][keep]
            ids[row, width - len(rest) :] = torch.from_numpy(rest)
            mask[row, shared : shared + width - len(rest)] = 0
        cache = DynamicCache(
            [
                (
                    part[0][:, :, :shared].expand(len(gone), -1, -1, -1),
                    part[1][:, :, :shared].expand(len(gone), -1, -1, -1),
                )
                for part in layers
            ]
        )
        mask = mask.to(self.device)
        if width:
            self._forward(ids.to(self.device), mask, cache, torch.tensor([width - 1]))
        return cache, mask

    def _greedy(
        self, token: Int[Tensor, "row"], mask: Int[Tensor, "row token"], cache: Any
    ) -> list[list[int]]:
        """Greedy ids of each row, `token` the first; rows that ended leave the batch."""
        rows = torch.arange(len(token), device=self.device)
        output: list[list[int]] = [[] for _ in rows]
        while True:
            for row, value in zip(rows.tolist(), token.tolist(), strict=True):
                output[row].append(value)
            going = ~torch.isin(token, self.stop)
            if not going.any() or max(map(len, output)) >= self.max_tokens:
                return output
            if not going.all():
                kept = going.nonzero().flatten()
                cache.batch_select_indices(kept)
                rows, token, mask = rows[kept], token[kept], mask[kept]
            mask = torch.cat([mask, mask.new_ones((len(rows), 1))], dim=1)
            logits = self._forward(token[:, None], mask, cache, torch.tensor([0]))
            token = logits[:, -1].argmax(-1)

    def _forward(
        self,
        ids: Int[Tensor, "row token"],
        mask: Int[Tensor, "row all"],
        cache: Any,
        wanted: Int[Tensor, "place"],
    ) -> Tensor:
        """Logits at the wanted places of the new tokens; the cache grows by these."""
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        self.advance(ids.numel())
        logits: Tensor = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=wanted.to(self.device),
        ).logits
        return logits


def without(trace: PreparedTrace, steps: Sequence[int]) -> Bool[np.ndarray, "context"]:
    """The context's tokens that are gone with these steps: those of their spans."""
    return np.asarray(trace.hidden[list(steps)].any(axis=0))
