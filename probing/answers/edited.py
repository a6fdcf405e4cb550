"""Answers under an edit of heads: their log-probabilities, and what is decoded greedily.

1. A batch of traces is laid out so that all contexts (prompt and reasoning) end in one column,
   padded on the left. They go through the model once; their keys and values are kept (`Reading`).
2. Each answer is computed over a fork of this cache, padded on the right. The edited queries are
   Q, the tokens from the first of `</think>` on (docs/PAPER.md, section 4): from the last of them
   the answer's first is predicted. The edited columns are the steps, or some of them.
3. Decoding goes on over another fork (`probing.models.decode`), every pass under the edit.
All passes over a batch are held at the length of its traces, where the RoPE follows lengths.

An edit from the answer to the steps leaves the context as it was, so that all such edits share
one reading of it; an edit at all positions needs its own. A mean edit needs the heads' mean
outputs over reference traces: an observer sums them in the same passes (`head_means`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.answers.context import PreparedTrace
from probing.answers.edits import ANSWER, HeadEdit, HeadEdits, edited_rows, weighted_values
from probing.answers.hiding import Layers, token_log_probabilities
from probing.attention.scores import pad_batch
from probing.choices import Head
from probing.errors import ModelError, in_trace
from probing.models.decode import (
    Sampling,
    Start,
    cached_logits,
    decode_from,
    pad_left,
)
from probing.models.front import AttentionCall, Workspace, check_heads
from probing.models.lengths import Lengths, held_at

# Called with the real tokens that go in and the edited columns, before a pass under it.
Observe = Callable[[Tensor, Tensor | None], AbstractContextManager[None]]
Spans = Sequence[Int[np.ndarray, "_ 2"]]  # of each trace: half open, in tokens of its context
Means = dict[Head, Float[Tensor, "dim"]]  # of a head's output z, or of a part of it


@dataclass(frozen=True, eq=False)
class Reading:
    """Contexts that went through the model; `cache` is never changed, only forked."""

    traces: Sequence[PreparedTrace]
    cache: Any
    mask: Int[Tensor, "batch context"]

    @property
    def tokens(self) -> int:
        """Of the longest trace: at this length the RoPE is held in all passes."""
        return max(map(len, self.traces))

    @property
    def width(self) -> int:
        """Columns of the contexts, padding included."""
        return int(self.mask.shape[1])

    def fork(self) -> Any:
        """A cache that grows by itself; keys and values of the context are shared."""
        forked = copy.copy(self.cache)
        forked.layers = [copy.copy(layer) for layer in self.cache.layers]
        return forked

    def columns(self, spans: Spans, behind: int) -> Bool[Tensor, "batch token"]:
        """The columns of the spans, with `behind` tokens behind the contexts."""
        chosen = torch.zeros((len(self.traces), self.width + behind), dtype=torch.bool)
        for row, (trace, steps) in enumerate(zip(self.traces, spans, strict=True)):
            pad = self.width - trace.context
            for start, end in steps:
                chosen[row, pad + int(start) : pad + int(end)] = True
        return chosen.to(self.mask.device)

    def layers_of(self, row: int) -> Layers | None:
        """Keys and values of one trace, layer by layer; None where a window has dropped some."""
        if any(layer.keys.shape[2] != self.width for layer in self.cache.layers):
            return None
        first = self.width - self.traces[row].context
        place = (slice(row, row + 1), slice(None), slice(first, None))
        return [(layer.keys[place], layer.values[place]) for layer in self.cache.layers]


def every_step(traces: Sequence[PreparedTrace]) -> Spans:
    """The spans of all steps of each trace."""
    return [trace.spans for trace in traces]


class EditedAnswers:
    """Runs answers over their contexts.

    Args:
        model: a loaded causal language model.
        edits: of this model, entered.
        ends: tokens that end an answer.
    """

    def __init__(self, model: Any, edits: HeadEdits, ends: frozenset[int] = frozenset()) -> None:
        self.model, self.edits = model.eval(), edits
        self.ends = ends
        self.lengths = Lengths.of(model)
        self.device = next(model.parameters()).device

    @property
    def layers(self) -> dict[int, int]:
        """Heads of each attention layer."""
        return self.edits.layers

    def check(self, heads: Sequence[Head]) -> None:
        """Raise ModelError for a head that the model does not have."""
        check_heads(type(self.model).__name__, self.layers, heads)

    @torch.inference_mode()
    def read(
        self,
        traces: Sequence[PreparedTrace],
        edit: HeadEdit | None = None,
        *,
        observe: Observe | None = None,
    ) -> Reading:
        """The contexts of a batch, under an edit at all positions or none.

        Args:
            traces: with equally many tokens between context and answer (`batches`).
            edit: at all positions.
            observe: stands for the edit where it is given.

        Raises:
            ModelError: a layer keeps no plain keys and values.
        """
        from transformers.cache_utils import DynamicCache, DynamicLayer

        contexts = pad_left([trace.ids[: trace.context] for trace in traces])
        ids, mask = (part.to(self.device) for part in contexts)
        cache = DynamicCache(config=self.model.config)
        around = observe(mask.bool(), None) if observe else self.edits.under(edit)
        with held_at(self.model, max(map(len, traces))), around:
            cached_logits(self.model, ids, mask, cache, keep=1)  # 1
        for number, layer in enumerate(cache.layers):
            if not isinstance(layer, DynamicLayer):
                raise ModelError(
                    f"{type(self.model).__name__}: layer {number} keeps no plain keys and values; "
                    "answers over a kept context are not possible"
                )
        return Reading(traces, cache, mask)

    @torch.inference_mode()
    def log_probabilities(
        self,
        reading: Reading,
        edit: HeadEdit | None = None,
        *,
        spans: Spans | None = None,
        tails: Sequence[Int[np.ndarray, "_"]] | None = None,
        observe: Observe | None = None,
    ) -> list[Float[np.ndarray, "_"]]:
        """log p of each token behind the first of Q, for each trace.

        Args:
            reading: of the contexts, under the same edit where it is at all positions.
            edit: what is done to the heads.
            spans: the edited columns; default all steps.
            tails: what stands behind the context; default the trace's own.
            observe: stands for the edit where it is given.

        Returns:
            For each trace the log-probabilities of tail[1:].
        """
        if tails is None:
            tails = [trace.ids[trace.context :] for trace in reading.traces]
        # The last token of a tail predicts nothing.
        ids = pad_batch([tail[:-1] for tail in tails]).to(self.device)
        real = pad_batch([np.ones(len(tail) - 1, dtype=bool) for tail in tails]).to(self.device)
        columns = reading.columns(spans or every_step(reading.traces), ids.shape[1])
        mask = torch.cat([reading.mask, real.long()], dim=1)
        around = observe(real, columns) if observe else self.edits.under(edit, real, columns)
        with held_at(self.model, reading.tokens), around:
            logits = cached_logits(self.model, ids, mask, reading.fork())  # 2
        chances = []
        for trace, row, tail in zip(reading.traces, logits, tails, strict=True):
            targets = torch.from_numpy(tail[1:])
            with in_trace(trace.id):
                log_p = token_log_probabilities(row[: len(targets)], targets)
            chances.append(log_p.double().cpu().numpy())
        return chances

    @torch.inference_mode()
    def greedy(
        self,
        reading: Reading,
        edit: HeadEdit | None = None,
        *,
        spans: Spans | None = None,
        max_tokens: int = 64,
    ) -> list[list[int]]:
        """The ids decoded behind `ids[:answer]`, up to the end token, which is one of them."""
        traces = reading.traces
        forced = np.stack([trace.ids[trace.context : trace.answer] for trace in traces])
        ids = torch.from_numpy(forced).to(self.device)
        steps = reading.columns(spans or every_step(traces), 0)

        def under(rows: Tensor, ids: Tensor, mask: Tensor) -> AbstractContextManager[None]:
            queries = torch.ones_like(ids, dtype=torch.bool)
            behind = queries.new_zeros((len(rows), mask.shape[1] - reading.width))
            return self.edits.under(edit, queries, torch.cat([steps[rows], behind], dim=1))

        mask = torch.cat([reading.mask, torch.ones_like(ids)], dim=1)
        start, settings = Start(ids, mask, reading.fork()), Sampling.greedy(max_tokens)
        with held_at(self.model, reading.tokens):
            return decode_from(self.model, start, settings, self.ends, around=under)  # 3


def batches(
    traces: Sequence[PreparedTrace], batch_tokens: int, lengths: Lengths | None = None
) -> Iterator[Sequence[PreparedTrace]]:
    """Neighbours in batches of at most `batch_tokens` tokens, padding included.

    A batch has equally many tokens between context and answer, so that decoding begins together.
    A longer trace goes alone. No batch has traces on both sides of a length at which the model's
    attention changes (`lengths`).
    """
    lengths = lengths or Lengths()
    batch: list[PreparedTrace] = []
    for trace in traces:
        widest = max(map(len, [*batch, trace]))
        same = not batch or (
            trace.answer - trace.context == batch[0].answer - batch[0].context
            and lengths.kind(len(trace)) == lengths.kind(len(batch[0]))
        )
        if batch and (not same or (len(batch) + 1) * widest > batch_tokens):
            yield batch
            batch = []
        batch.append(trace)
    if batch:
        yield batch


class MeanObserver:
    """Sums what heads put out in the passes that it follows (`HeadEdits.following`).

    Args:
        heads: whose outputs.
        where: `all`: z of every real token; `answer-to-steps`: of the edited queries, the part of
            z that comes from the edited columns.
    """

    def __init__(self, heads: Sequence[Head], where: str) -> None:
        self.where = where
        self.chosen: dict[int, list[int]] = {}
        for layer, head in heads:
            self.chosen.setdefault(layer, []).append(head)
        self.sums: Means = {}
        self.counts: dict[Head, int] = {}
        self.workspace = Workspace()
        self.queries: Bool[Tensor, "batch query"] | None = None
        self.columns: Bool[Tensor, "batch token"] | None = None

    def apply(self, layer: int, call: AttentionCall, value: Tensor, output: Tensor) -> Tensor:
        """Add a layer's outputs to the sums; gives the output as it is."""
        heads = self.chosen.get(layer)
        if heads and self.queries is not None:
            if self.where != ANSWER:
                self._add(layer, heads, output[self.queries][:, heads].transpose(0, 1))
            elif self.columns is not None:
                for place in edited_rows(call, self.queries, self.columns):
                    part = weighted_values(
                        call, value, heads, place, self.workspace, keep=place.columns
                    )
                    self._add(layer, heads, part)
        return output

    def _add(self, layer: int, heads: list[int], z: Float[Tensor, "head token dim"]) -> None:
        for head, total in zip(heads, z.double().sum(1), strict=True):
            key = layer, head
            self.sums[key] = self.sums[key] + total if key in self.sums else total
            self.counts[key] = self.counts.get(key, 0) + z.shape[1]

    def means(self) -> Means:
        """The mean of each head, in float32."""
        return {head: (total / self.counts[head]).float() for head, total in self.sums.items()}


def head_means(
    answers: EditedAnswers,
    traces: Sequence[PreparedTrace],
    heads: Sequence[Head],
    where: str,
    *,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Means:
    """Mean outputs of heads over traces, each token weighing the same.

    At all positions: over every token of prompt, reasoning and correct answer (the last token is
    not read). From the answer to the steps: over the queries Q of every trace, of the part of z
    that comes from the steps.
    """
    observer = MeanObserver(heads, where)

    def observe(queries: Tensor, columns: Tensor | None) -> AbstractContextManager[None]:
        observer.queries, observer.columns = queries, columns
        return answers.edits.following(observer)

    for batch in batches(traces, batch_tokens, answers.lengths):
        reading = answers.read(batch, observe=observe if where != ANSWER else None)
        answers.log_probabilities(reading, observe=observe)
        advance(sum(map(len, batch)))
    return observer.means()
