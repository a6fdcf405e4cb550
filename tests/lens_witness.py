"""The same edits of heads by hooks of TransformerLens: an independent witness.

`hook_pattern` takes edits from the answer to the steps, `hook_z` those at all positions and means.
Every pass computes whole sequences anew, padded on the right, with full patterns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probing.answers.context import PreparedTrace
from probing.answers.edits import ALL, ANSWER, HeadEdit, scaled_weights
from probing.attention.lens import open_bridge
from probing.attention.scores import pad_batch
from probing.choices import Head

Act = Callable[[Tensor], Tensor]


class LensWitness:
    """Answers under edits by TransformerLens; the edited columns are all steps of a trace.

    Args:
        model: a loaded transformers model; a copy of it is rebuilt, it stays as it is.
        ends: tokens that end an answer.
    """

    def __init__(self, model: torch.nn.Module, ends: frozenset[int]) -> None:
        self.bridge: Any = open_bridge(copy.deepcopy(model))
        self.ends = ends

    def log_probabilities(
        self, traces: Sequence[PreparedTrace], edit: HeadEdit | None
    ) -> list[np.ndarray]:
        """log p of each token behind the first of Q, for each trace."""
        logits = self.logits(traces, [trace.ids[:-1] for trace in traces], edit)
        found = []
        for row, trace in zip(logits, traces, strict=True):
            targets = torch.from_numpy(trace.ids[trace.context + 1 :])[:, None]
            chances = row[trace.context : len(trace) - 1].log_softmax(-1)
            found.append(chances.gather(-1, targets)[:, 0].double().numpy())
        return found

    def greedy(
        self, traces: Sequence[PreparedTrace], edit: HeadEdit | None, max_tokens: int
    ) -> list[list[int]]:
        """The ids decoded behind `ids[:answer]`, up to the end token, which is one of them."""
        new: list[list[int]] = [[] for _ in traces]
        for _ in range(max_tokens):
            texts = [
                np.append(trace.ids[: trace.answer], row).astype(np.int64)
                for trace, row in zip(traces, new, strict=True)
            ]
            logits = self.logits(traces, texts, edit)
            for row, text in enumerate(texts):
                if not self.ends & set(new[row]):
                    new[row].append(int(logits[row, len(text) - 1].argmax()))
        return new

    def means(
        self, traces: Sequence[PreparedTrace], heads: Sequence[Head], where: str
    ) -> dict[Head, Tensor]:
        """As `probing.answers.edited.head_means`, a trace and a layer at a time."""
        sums = {head: torch.zeros(()).double() for head in heads}
        count = 0
        for trace in traces:
            ids, queries, columns = placed([trace], [trace.ids[:-1]])
            chosen = queries[0] if where == ANSWER else torch.ones_like(queries[0])
            for layer in sorted({layer for layer, _ in heads}):
                z = self.outputs(layer, ids, [])
                if where == ANSWER:  # what the answer takes from the steps: all less the rest
                    there = tuple(head for head in heads if head[0] == layer)
                    z = z - self.outputs(
                        layer, ids, hooks_of(HeadEdit("zero", there, ANSWER), queries, columns)
                    )
                for head in (head for head in heads if head[0] == layer):
                    sums[head] = sums[head] + z[0, chosen, head[1]].double().sum(0)
            count += int(chosen.sum())
        return {head: (total / count).float() for head, total in sums.items()}

    @torch.no_grad()
    def logits(
        self,
        traces: Sequence[PreparedTrace],
        texts: Sequence[np.ndarray],
        edit: HeadEdit | None,
    ) -> Tensor:
        """Logits (row, token, vocabulary) of whole texts; each hook must have been called."""
        ids, queries, columns = placed(traces, texts)
        hooks = [] if edit is None or edit.idle else hooks_of(edit, queries, columns)
        fired: set[str] = set()

        def watched(name: str, act: Act) -> Callable[..., Tensor]:
            def call(value: Tensor, hook: Any) -> Tensor:
                fired.add(name)
                return act(value)

            return call

        watching = [(name, watched(name, act)) for name, act in hooks]
        out: Tensor = self.bridge.run_with_hooks(ids, fwd_hooks=watching, return_type="logits")
        assert fired == {name for name, _ in hooks}, "TransformerLens did not call every hook"
        return out

    @torch.no_grad()
    def outputs(self, layer: int, ids: Tensor, hooks: list[tuple[str, Act]]) -> Tensor:
        """hook_z (batch, token, head, dim) of a layer under hooks."""
        kept: list[Tensor] = []
        acting = [(name, lambda value, hook, act=act: act(value)) for name, act in hooks]
        keeping = (f"blocks.{layer}.attn.hook_z", lambda z, hook: kept.append(z.detach().clone()))
        self.bridge.run_with_hooks(ids, fwd_hooks=[*acting, keeping], return_type=None)
        return kept[0]


def hooks_of(edit: HeadEdit, queries: Tensor, columns: Tensor) -> list[tuple[str, Act]]:
    """The hooks of an edit: names of hook points, and what they do to the value there."""
    hooks: list[tuple[str, Act]] = []
    for layer in sorted({layer for layer, _ in edit.heads}):
        heads = edit.of_layer(layer)
        means = None
        if edit.kind == "mean" and edit.means is not None:
            means = torch.stack([edit.means[layer, head] for head in heads])
        where = f"blocks.{layer}.attn"
        if edit.where == ALL:
            hooks.append((f"{where}.hook_z", _set(heads, means)))
            continue
        factor = edit.factor if edit.kind == "scale" else None
        hooks.append((f"{where}.hook_pattern", _look(heads, queries, columns, factor)))
        if means is not None:
            hooks.append((f"{where}.hook_z", _add(heads, queries, means)))
    return hooks


def _set(heads: list[int], means: Tensor | None) -> Act:
    def act(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, :, heads] = 0 if means is None else means.to(z)
        return z

    return act


def _add(heads: list[int], queries: Tensor, means: Tensor) -> Act:
    def act(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, :, heads] += queries[:, :, None, None] * means.to(z)
        return z

    return act


def _look(heads: list[int], queries: Tensor, columns: Tensor, factor: float | None) -> Act:
    def act(pattern: Tensor) -> Tensor:
        pattern = pattern.clone()
        old, keys = pattern[:, heads], columns[:, None, None, :]
        new = old.masked_fill(keys, 0) if factor is None else scaled_weights(old, keys, factor)
        pattern[:, heads] = torch.where(queries[:, None, :, None], new, old)
        return pattern

    return act


def placed(
    traces: Sequence[PreparedTrace], texts: Sequence[np.ndarray]
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids padded on the right, the queries Q, and the columns of the steps."""
    ids = pad_batch(texts)
    queries, columns = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids).bool()
    for row, (trace, text) in enumerate(zip(traces, texts, strict=True)):
        queries[row, trace.context : len(text)] = True
        for start, end in trace.spans:
            columns[row, start:end] = True
    return ids, queries, columns
