"""The same edits of heads by hooks of TransformerLens: an independent witness.

`hook_pattern` takes edits from the answer to the steps, `hook_z` those at all positions and means.
Every pass computes whole sequences anew, with full patterns: it is slow, and for small models.
Copy sources are not looked for here, since the bridge takes no mask that hides single tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.answers.context import PreparedTrace
from probing.answers.edited import Means, Spans, every_step
from probing.answers.edits import ALL, ANSWER, HeadEdit, scaled_weights
from probing.attention.lens import open_bridge
from probing.choices import Head
from probing.errors import ModelError
from probing.models.decode import token_log_probabilities, up_to_end

Hook = tuple[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True, eq=False)
class LensReading:
    """The traces to answer; TransformerLens keeps nothing of their contexts."""

    traces: Sequence[PreparedTrace]


class LensAnswers:
    """As `probing.answers.edited.EditedAnswers`, by TransformerLens.

    Args:
        model: a loaded transformers model; a copy of it is rebuilt, it stays as it is.
        ends: tokens that end an answer.

    Raises:
        ModelError: TransformerLens does not know the architecture, or its hooks move nothing.
    """

    def __init__(self, model: Any, ends: frozenset[int] = frozenset()) -> None:
        self.bridge = open_bridge(copy.deepcopy(model))
        self.device = next(model.parameters()).device
        self.ends = ends
        heads = int(self.bridge.cfg.n_heads)
        self.layers = dict.fromkeys(range(int(self.bridge.cfg.n_layers)), heads)
        self._prove()

    def check(self, heads: Sequence[Head]) -> None:
        """Raise ModelError for a head that the model has not."""
        for layer, head in heads:
            if not 0 <= head < self.layers.get(layer, 0):
                raise ModelError(f"the model has no head {layer}.{head}")

    @torch.no_grad()
    def logits(
        self,
        ids: Int[Tensor, "batch token"],
        edit: HeadEdit | None = None,
        queries: Bool[Tensor, "batch token"] | None = None,
        columns: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token vocabulary"]:
        """Logits of whole sequences, padded on the right, under an edit.

        Args:
            ids: token ids.
            edit: what is done to which heads.
            queries, columns: the edited ones, as in `HeadEdits.under`.
        """
        hooks = [] if edit is None or edit.idle else edit_hooks(edit, queries, columns)
        fired: set[str] = set()

        def watched(name: str, act: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
            def call(value: Tensor, hook: Any) -> Tensor:
                fired.add(name)  # the hook itself may go by another name
                return act(value)

            return call

        watching = [(name, watched(name, act)) for name, act in hooks]
        out: Tensor = self.bridge.run_with_hooks(ids, fwd_hooks=watching, return_type="logits")
        if missing := {name for name, _ in hooks} - fired:
            raise ModelError(f"TransformerLens fired no {', '.join(sorted(missing))}")
        return out

    def read(self, traces: Sequence[PreparedTrace], edit: HeadEdit | None = None) -> LensReading:
        """Nothing is computed: every pass sees whole sequences."""
        return LensReading(traces)

    def log_probabilities(
        self,
        reading: LensReading,
        edit: HeadEdit | None = None,
        *,
        spans: Spans | None = None,
        tails: Sequence[Int[np.ndarray, "token"]] | None = None,
    ) -> list[Float[np.ndarray, "token"]]:
        """As `EditedAnswers.log_probabilities`."""
        traces = reading.traces
        own = [trace.ids[trace.context :] for trace in traces]
        whole = [
            np.concatenate([trace.ids[: trace.context], tail])
            for trace, tail in zip(traces, tails or own, strict=True)
        ]
        logits = self._run(traces, [ids[:-1] for ids in whole], edit, spans)
        found = []
        for row, (trace, ids) in enumerate(zip(traces, whole, strict=True)):
            own_logits = logits[row, trace.context : len(ids) - 1]
            found.append(token_log_probabilities(own_logits, ids[trace.context + 1 :]))
        return found

    def greedy(
        self,
        reading: LensReading,
        edit: HeadEdit | None = None,
        *,
        spans: Spans | None = None,
        max_tokens: int = 64,
    ) -> list[list[int]]:
        """As `EditedAnswers.greedy`, a whole pass a token."""
        traces = reading.traces
        texts = [trace.ids[: trace.answer].tolist() for trace in traces]
        starts = list(map(len, texts))
        for _ in range(max_tokens):
            logits = self._run(traces, [np.asarray(ids) for ids in texts], edit, spans)
            for row, ids in enumerate(texts):
                ids.append(int(logits[row, len(ids) - 1].argmax()))
            new = [ids[start:] for ids, start in zip(texts, starts, strict=True)]
            if all(self.ends & set(of) for of in new):
                break
        new = [ids[start:] for ids, start in zip(texts, starts, strict=True)]
        return [up_to_end(of, self.ends) for of in new]

    def means(
        self,
        traces: Sequence[PreparedTrace],
        heads: Sequence[Head],
        where: str,
        *,
        batch_tokens: int = 0,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> Means:
        """As `probing.answers.edited.head_means`, a trace at a time."""
        sums: Means = {}
        count = 0
        layers = sorted({layer for layer, _ in heads})
        for trace in traces:
            ids, queries, columns = _placed([trace], [trace.ids[:-1]], every_step([trace]))
            chosen = queries[0] if where == ANSWER else torch.ones_like(queries[0])
            edit = HeadEdit("zero", tuple(heads), ANSWER) if where == ANSWER else None
            z = self._z(ids, layers, None, queries, columns)
            without = self._z(ids, layers, edit, queries, columns) if edit else {}
            for layer, head in heads:
                part = z[layer][0, chosen, head].double()
                if edit:
                    part = part - without[layer][0, chosen, head]
                sums[layer, head] = sums.get((layer, head), torch.zeros(())) + part.sum(0)
            count += int(chosen.sum())
            advance(len(trace))
        return {head: (of / count).float() for head, of in sums.items()}

    @torch.no_grad()
    def _z(
        self,
        ids: Tensor,
        layers: Sequence[int],
        edit: HeadEdit | None,
        queries: Tensor,
        columns: Tensor,
    ) -> dict[int, Tensor]:
        """hook_z of some layers, each with the edit of this layer alone."""
        found: dict[int, Tensor] = {}
        for layer in layers:
            hooks: list[Any] = []
            if edit is not None:
                own = HeadEdit("zero", tuple(h for h in edit.heads if h[0] == layer), ANSWER)
                hooks = [
                    (name, lambda value, hook, act=act: act(value))
                    for name, act in edit_hooks(own, queries, columns)
                ]

            def keep(value: Tensor, hook: Any, layer: int = layer) -> None:
                found[layer] = value.detach().clone()

            hooks.append((f"blocks.{layer}.attn.hook_z", keep))
            self.bridge.run_with_hooks(ids, fwd_hooks=hooks, return_type=None)
        return found

    def _run(
        self,
        traces: Sequence[PreparedTrace],
        texts: Sequence[Int[np.ndarray, "token"]],
        edit: HeadEdit | None,
        spans: Spans | None,
    ) -> Tensor:
        ids, queries, columns = _placed(traces, texts, spans or every_step(traces))
        to = (part.to(self.device) for part in (ids, queries, columns))
        ids, queries, columns = to
        return self.logits(ids, edit, queries, columns)

    def _prove(self) -> None:
        """Both hooks must move the logits."""
        ids = torch.arange(3, 11, device=self.device)[None] % int(self.bridge.cfg.d_vocab)
        queries = torch.arange(8, device=self.device)[None] >= 4
        heads = tuple((layer, head) for layer, n in self.layers.items() for head in range(n))
        plain = self.logits(ids)
        for edit in (HeadEdit("zero", heads), HeadEdit("scale", heads, ANSWER, 0.0)):
            if torch.allclose(self.logits(ids, edit, queries, ~queries), plain, atol=1e-4):
                raise ModelError(
                    f"hooks of TransformerLens move nothing ({edit.kind}/{edit.where})"
                )


def edit_hooks(edit: HeadEdit, queries: Tensor | None, columns: Tensor | None) -> list[Hook]:
    """The hooks of an edit: names of hook points, and what they do to the value there."""
    hooks: list[Hook] = []
    for layer in sorted({layer for layer, _ in edit.heads}):
        heads = edit.of_layer(layer)
        means = None
        if edit.kind == "mean" and edit.means is not None:
            means = torch.stack([edit.means[layer, head] for head in heads])
        where = f"blocks.{layer}.attn"
        if edit.where == ALL:
            hooks.append((f"{where}.hook_z", _set_z(heads, means)))
            continue
        if queries is None or columns is None:
            raise ValueError("an edit from the answer to steps needs queries and columns")
        factor = edit.factor if edit.kind == "scale" else None
        hooks.append((f"{where}.hook_pattern", _set_pattern(heads, queries, columns, factor)))
        if means is not None:
            hooks.append((f"{where}.hook_z", _add_z(heads, queries, means)))
    return hooks


def _set_z(heads: list[int], means: Tensor | None) -> Callable[[Tensor], Tensor]:
    def hook(z: Float[Tensor, "batch token head dim"]) -> Tensor:
        z = z.clone()
        z[:, :, heads] = 0 if means is None else means.to(z)
        return z

    return hook


def _add_z(heads: list[int], queries: Tensor, means: Tensor) -> Callable[[Tensor], Tensor]:
    def hook(z: Float[Tensor, "batch token head dim"]) -> Tensor:
        z = z.clone()
        z[:, :, heads] += queries[:, :, None, None] * means.to(z)
        return z

    return hook


def _set_pattern(
    heads: list[int], queries: Tensor, columns: Tensor, factor: float | None
) -> Callable[[Tensor], Tensor]:
    def hook(pattern: Float[Tensor, "batch head query key"]) -> Tensor:
        pattern = pattern.clone()
        old = pattern[:, heads]
        keys = columns[:, None, None, :]
        new = old.masked_fill(keys, 0) if factor is None else scaled_weights(old, keys, factor)
        pattern[:, heads] = torch.where(queries[:, None, :, None], new, old)
        return pattern

    return hook


def _placed(
    traces: Sequence[PreparedTrace], texts: Sequence[Int[np.ndarray, "token"]], spans: Spans
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids padded on the right, the queries Q, and the columns of the spans."""
    width = max(map(len, texts))
    ids = torch.zeros((len(texts), width), dtype=torch.long)
    queries = torch.zeros((len(texts), width), dtype=torch.bool)
    columns = torch.zeros_like(queries)
    for row, (trace, text, of) in enumerate(zip(traces, texts, spans, strict=True)):
        ids[row, : len(text)] = torch.from_numpy(text)
        queries[row, trace.context : len(text)] = True
        for start, end in of:
            columns[row, int(start) : int(end)] = True
    return ids, queries, columns
