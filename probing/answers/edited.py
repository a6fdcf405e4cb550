"""Answers under an edit: their log-probabilities, and what is decoded greedily.

A batch of traces is laid out so that all contexts (prompt and reasoning) end in one column: padded
on the left before them, on the right behind the answers. The contexts go through the model once;
their keys and values are kept, and each answer is computed over a fork of this cache. An edit from
the answer to the steps leaves the context as it was, so that all such edits share one reading of
it; an edit at all positions needs its own. The edited queries are Q, the tokens from the first of
`</think>` on (docs/PAPER.md, section 4): from the last of them the answer's first is predicted.

Mean outputs of heads over reference traces: what a mean edit writes in their place.
"""

from __future__ import annotations

import copy
import inspect
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
from probing.attention.call import AttentionCall, Workspace
from probing.choices import Head
from probing.errors import ModelError
from probing.models.decode import token_log_probabilities, up_to_end

# Called with the real tokens that go in and the edited columns, before a pass under it.
Observe = Callable[[Tensor, Tensor | None], AbstractContextManager[None]]
Spans = Sequence[Int[np.ndarray, "_ 2"]]  # of each trace: half open, in tokens of its context


@dataclass(frozen=True, eq=False)
class Reading:
    """Contexts that went through the model; `cache` is never changed, only forked."""

    traces: Sequence[PreparedTrace]
    cache: Any
    mask: Int[Tensor, "batch context"]

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
        for row, (trace, of) in enumerate(zip(self.traces, spans, strict=True)):
            pad = self.width - trace.context
            for start, end in of:
                chosen[row, pad + int(start) : pad + int(end)] = True
        return chosen.to(self.mask.device)

    def layers_of(self, row: int) -> list[tuple[Tensor, Tensor]] | None:
        """Keys and values of one trace, layer by layer; None where a window has dropped some."""
        trace, found = self.traces[row], []
        for layer in self.cache.layers:
            if layer.keys.shape[2] != self.width:
                return None
            place = (slice(row, row + 1), slice(None), slice(self.width - trace.context, None))
            found.append((layer.keys[place], layer.values[place]))
        return found


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
        self.ends = torch.tensor(sorted(ends), dtype=torch.long)
        self.device = next(model.parameters()).device
        takes = inspect.signature(model.forward).parameters
        self._last: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._places = "position_ids" in takes

    @property
    def layers(self) -> dict[int, int]:
        """Heads of each attention layer."""
        return self.edits.layers

    def check(self, heads: Sequence[Head]) -> None:
        """Raise ModelError for a head that the model has not."""
        self.edits.check(heads)

    def means(
        self,
        traces: Sequence[PreparedTrace],
        heads: Sequence[Head],
        where: str,
        *,
        batch_tokens: int,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> dict[Head, Tensor]:
        """Mean outputs of heads over traces, see `probing.answers.edited.head_means`."""

        return head_means(self, traces, heads, where, batch_tokens=batch_tokens, advance=advance)

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

        width = max(trace.context for trace in traces)
        ids = torch.zeros((len(traces), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, trace in enumerate(traces):
            ids[row, width - trace.context :] = torch.from_numpy(trace.ids[: trace.context])
            mask[row, width - trace.context :] = 1
        cache = DynamicCache(config=self.model.config)
        mask = mask.to(self.device)
        manager = observe(mask.bool(), None) if observe else self.edits.under(edit)
        with manager:
            self._forward(ids.to(self.device), mask, cache, **self._last)
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
        own = [trace.ids[trace.context :] for trace in reading.traces]
        tails = own if tails is None else tails
        longest = max(map(len, tails)) - 1  # the last token predicts nothing
        ids = torch.zeros((len(tails), longest), dtype=torch.long)
        real = torch.zeros((len(tails), longest), dtype=torch.bool)
        for row, tail in enumerate(tails):
            ids[row, : len(tail) - 1] = torch.from_numpy(tail[:-1])
            real[row, : len(tail) - 1] = True
        ids, real = ids.to(self.device), real.to(self.device)
        columns = reading.columns(spans or every_step(reading.traces), longest)
        mask = torch.cat([reading.mask, real.long()], dim=1)
        manager = observe(real, columns) if observe else self.edits.under(edit, real, columns)
        with manager:
            logits = self._forward(ids, mask, reading.fork()).logits
        found = []
        for row, tail in enumerate(tails):
            found.append(token_log_probabilities(logits[row, : len(tail) - 1], tail[1:]))
        return found

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
        mask, cache = reading.mask, reading.fork()
        steps = reading.columns(spans or every_step(traces), 0)
        ends, new = self.ends.to(self.device), []
        going = torch.ones(len(traces), dtype=torch.bool, device=self.device)
        for _ in range(max_tokens):
            queries = torch.ones_like(ids, dtype=torch.bool)
            mask = torch.cat([mask, queries.long()], dim=1)
            steps = torch.cat([steps, ~queries], dim=1)
            with self.edits.under(edit, queries, steps):
                logits = self._forward(ids, mask, cache, **self._last).logits[:, -1]
            ids = logits.argmax(-1, keepdim=True)
            new.append(ids)
            going = going & ~torch.isin(ids[:, 0], ends)
            if not going.any():
                break
        rows = torch.cat(new, dim=1).tolist() if new else [[] for _ in traces]
        return [up_to_end(row, set(self.ends.tolist())) for row in rows]

    def _forward(self, ids: Tensor, mask: Tensor, cache: Any, **options: Any) -> Any:
        if self._places:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return self.model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options
        )


def batches(
    traces: Sequence[PreparedTrace], batch_tokens: int
) -> Iterator[Sequence[PreparedTrace]]:
    """Neighbours in batches of at most `batch_tokens` tokens, padding included.

    A batch has equally many tokens between context and answer, so that decoding begins together.
    A longer trace goes alone.
    """
    batch: list[PreparedTrace] = []
    for trace in traces:
        widest = max(map(len, [*batch, trace]))
        same = not batch or trace.answer - trace.context == batch[0].answer - batch[0].context
        if batch and (not same or (len(batch) + 1) * widest > batch_tokens):
            yield batch
            batch = []
        batch.append(trace)
    if batch:
        yield batch


Means = dict[Head, Float[Tensor, "dim"]]


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

    def _add(self, layer: int, heads: list[int], found: Float[Tensor, "head token dim"]) -> None:
        for head, of in zip(heads, found.double().sum(1), strict=True):
            key = layer, head
            self.sums[key] = self.sums[key] + of if key in self.sums else of
            self.counts[key] = self.counts.get(key, 0) + found.shape[1]

    def means(self) -> Means:
        """The mean of each head, in float32."""
        return {head: (of / self.counts[head]).float() for head, of in self.sums.items()}


def head_means(
    answers: EditedAnswers,
    traces: Sequence[PreparedTrace],
    heads: Sequence[Head],
    where: str,
    *,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Means:
    """Means over the traces, each token of them weighing the same.

    At all positions: over every token of prompt, reasoning and correct answer (the last token is
    not read). From the answer to the steps: over the queries Q of every trace, of the part of z
    that comes from the steps.
    """
    observer = MeanObserver(heads, where)

    def observe(queries: Tensor, columns: Tensor | None) -> AbstractContextManager[None]:
        observer.queries, observer.columns = queries, columns
        return answers.edits.following(observer)

    for batch in batches(traces, batch_tokens):
        reading = answers.read(batch, observe=observe if where != ANSWER else None)
        answers.log_probabilities(reading, observe=observe)
        advance(sum(map(len, batch)))
    return observer.means()
