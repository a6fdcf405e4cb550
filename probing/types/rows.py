"""What the published types need of a trace's rows, in one pass and without a T × T matrix.

The steps of `StepRows`, with the same numbers in the code:
1. Rows are computed, a chunk at a time, of the steps (all their tokens, or so many of each, evenly
   spread), of the answer, and of the tokens that wrote the answer.
2. Of each chunk, rows of one step are averaged and summed by the step of their key: M_ij. The
   answer's own rows and that of the end mark's last token are summed in the same way.
3. Each row says how far back it looks and what it gives the first token; rows before a token of
   the answer, which key they look at most.
4. Each row's last keys, a band along the diagonal, give the windowed distance of its token and,
   added up by key, the influence on later tokens.
Where the answer ends the trace, its rows times the values are the rest of the layer's output, as in
the capture of a probe (`probing.models.split`). What is left of a layer is (head, step, step) at
most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attention.capture import AttentionCapture, CapturePass
from probing.attention.rows import Chunk, Rows, weigh
from probing.choices import Head
from probing.models.front import AttentionCall
from probing.models.identity import shortest_window
from probing.models.split import SplitOutput
from probing.traces.tokens import EncodedTrace
from probing.types.formulas import FUTURE, WINDOW


@dataclass(frozen=True, eq=False)
class StepFigures:
    """What one pass says of the heads of a trace.

    Args:
        attention: M_ij, mean attention from a token of step i (of its rows) to one of step j; 0
            of a step without a token.
        mark: attention of the last token before the answer to a token of each step.
        span: mean tokens looked back by the answer, per unit of attention.
        sink: share of the answer's attention on the first token.
        distance: as `span`, of all rows.
        waad: mean windowed distance of a step's tokens.
        fai: mean influence of a step's tokens on later ones, of those that a row can say it of.
        looked_at: the key that was looked at most when each token of the answer was written.
    """

    attention: Float[np.ndarray, "head step step"]
    mark: Float[np.ndarray, "head step"]
    span: Float[np.ndarray, "head"]
    sink: Float[np.ndarray, "head"]
    distance: Float[np.ndarray, "head"]
    waad: Float[np.ndarray, "head step"]
    fai: Float[np.ndarray, "head step"]
    looked_at: Int[np.ndarray, "head answer"]


@dataclass(frozen=True, eq=False)
class RowPlan:
    """Which rows are computed of a trace, and what for (1).

    Args:
        at: their positions, ascending.
        steps: for each step which of the rows are its own.
        answer: which are F; all of it.
        before: which stand before a token of F.
        mark: which is the last token of the end mark.
        spans: of the steps.
    """

    at: Int[Tensor, "row"]
    steps: list[Int[Tensor, "_"]]
    answer: Int[Tensor, "answer"]
    before: Int[Tensor, "answer"]
    mark: Int[Tensor, "1"]
    spans: Int[np.ndarray, "step 2"]

    @classmethod
    def of(cls, trace: EncodedTrace, most: int | None, behind: int) -> RowPlan:
        """The plan for a trace with an answer; of each step `most` rows, None: all of it.

        Every row from the answer's first on is taken; without a bound every one from the first
        step on. `behind` is the first token behind the end mark.
        """
        own = [spread(int(first), int(last), most) for first, last in trace.spans]
        answer = np.flatnonzero(trace.answer)
        every = int(answer[0])
        if most is None:
            every = int(trace.spans[:, 0].min(initial=every))
        wanted = [*own, answer - 1, np.array([behind - 1]), np.arange(every, len(trace))]
        at = np.unique(np.concatenate(wanted))

        def places(of: np.ndarray) -> Tensor:
            return torch.from_numpy(np.searchsorted(at, of))

        steps = [places(rows) for rows in own]
        mark = places(np.array([behind - 1]))
        before = places(answer - 1)
        return cls(torch.from_numpy(at), steps, places(answer), before, mark, trace.spans)


def spread(first: int, last: int, most: int | None) -> Int[np.ndarray, "row"]:
    """At most so many positions of a span, evenly spread; the middle of each part.

    Example:
        >>> spread(10, 20, 2).tolist(), spread(10, 12, 4).tolist()
        ([12, 17], [10, 11])
    """
    size = last - first
    count = size if most is None else min(most, size)
    return first + (np.arange(count) * 2 + 1) * size // max(2 * count, 1)


class StepPass(CapturePass):
    """Collects `StepFigures` of all heads of one trace, layer by layer.

    Args:
        plan: of the trace.
        answer: F of the trace, in a batch of one.
        capture: proven.
    """

    def __init__(
        self, plan: RowPlan, answer: Bool[Tensor, "1 token"], capture: AttentionCapture
    ) -> None:
        super().__init__(answer, capture.heads, capture._workspace, split=capture.split)
        self.plan = plan
        self.found: list[dict[str, Tensor]] = []

    def add(self, layer: int, call: AttentionCall, split: SplitOutput | None = None) -> None:
        """Rows of all heads of this layer; those of the answer give their part of its output."""
        rows, at = Rows(call, None, self.workspace), self.plan.at
        sums = _LayerSums(self.plan, self.tokens, rows)
        before = len(at) if split is None else int((at < split.cut).sum())
        for chunk in rows.chunks(0, at[:before]) if before else ():
            sums.add(chunk)
        if split is not None:
            for chunk in rows.chunks(0, at[before:]):
                weigh(chunk, split.values[0], split.output[0, split.cut :])
                first, last = before + chunk.rows.start, before + chunk.rows.stop
                sums.add(chunk._replace(rows=slice(first, last)))
        self.found.append(sums.figures())

    def figures(self) -> StepFigures:
        """Of all layers, in the order of the heads."""
        names = [item.name for item in fields(StepFigures)]
        return StepFigures(**{n: torch.cat([f[n] for f in self.found]).numpy() for n in names})


class _LayerSums:
    """The sums of one layer."""

    def __init__(self, plan: RowPlan, tokens: int, rows: Rows) -> None:
        self.plan, device = plan, rows.query.device
        self.at = plan.at.to(device)
        self.looks = rows.sinks is not None  # rows need not sum to one
        kv, group, steps = rows.key.shape[1], rows.group, len(plan.spans)
        self.members = torch.zeros((tokens, steps), device=device)  # of steps, by key
        for step, (first, last) in enumerate(plan.spans):
            self.members[first:last, step] = 1 / max(int(last - first), 1)

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros((kv, group, *shape), dtype=dtype, device=device)

        self.blocks = empty(steps + 1, steps)  # the last: of the end mark
        self.far, self.first, self.total, self.waad = (empty(len(plan.at)) for _ in range(4))
        self.later = empty(tokens)
        self.looked_at = empty(len(plan.before), dtype=torch.long)
        # Classes of rows: each step, and the end mark; and by row which of them, for `add`.
        self.classes = [*plan.steps, plan.mark]

    def add(self, chunk: Chunk) -> None:
        """Rows of some heads."""
        begin, end = chunk.rows.start, chunk.rows.stop
        at, length = self.at[chunk.rows], chunk.probs.shape[-1]
        self._by_step(chunk, begin, end, length)  # 2
        keys = torch.zeros((length, 3), device=at.device)
        keys[:, 0], keys[:, 1], keys[0, 2] = 1, torch.arange(length, device=at.device), 1
        total, place, first = (chunk.probs @ keys).movedim(1, 2).unbind(-1)  # 3
        there = (chunk.kv, slice(None), chunk.rows)
        self.far[there], self.first[there] = at * total - place, first
        self.total[there] = total
        wanted = (self.plan.before >= begin) & (self.plan.before < end)
        if wanted.any():
            rows = self.plan.before[wanted] - begin
            most = chunk.probs[:, rows].max(dim=-1).indices.transpose(1, 2)
            self.looked_at[chunk.kv, :, wanted] = most
        self._band(chunk, at, total, there)  # 4

    def _by_step(self, chunk: Chunk, begin: int, end: int, length: int) -> None:
        """Mean rows of each class, summed by the step of the key."""
        inside = []
        for number, own in enumerate(self.classes):
            mine = own[(own >= begin) & (own < end)] - begin
            if len(mine):
                inside.append((number, chunk.probs[:, mine].sum(dim=1) / len(own)))
        if inside:
            numbers = torch.tensor([number for number, _ in inside], device=chunk.probs.device)
            rows = torch.stack([row for _, row in inside], dim=2)  # kv, group, class, key
            self.blocks[chunk.kv].index_add_(2, numbers, rows @ self.members[:length])

    def _band(self, chunk: Chunk, at: Tensor, total: Tensor, there: Any) -> None:
        """The last keys of each row: the windowed distance, and what is given to each of them."""
        back = torch.arange(FUTURE[1] + 1, device=at.device)
        keys = at[:, None] - back
        real = keys >= 0
        index = keys.clamp(min=0)[None, :, None].expand(*chunk.probs.shape[:3], -1)
        band = chunk.probs.gather(-1, index) * real[:, None]
        near = (WINDOW - back).clamp(min=0).float()
        self.waad[there] = WINDOW * total - (band @ near).movedim(1, 2)
        late = band[..., FUTURE[0] :].transpose(1, 2).flatten(2)
        to = keys.clamp(min=0)[:, FUTURE[0] :].flatten()
        self.later[chunk.kv].index_add_(2, to, late)

    def figures(self) -> dict[str, Tensor]:
        """(head, …) of this layer, on the CPU."""
        plan, steps = self.plan, len(self.plan.spans)
        answer = plan.answer
        looked = self.total[..., answer].sum(-1)
        found = {
            "attention": self.blocks[..., :steps, :],
            "mark": self.blocks[..., steps, :],
            "span": self.far[..., answer].sum(-1) / looked,
            "sink": self.first[..., answer].sum(-1) / looked,
            "distance": self.far.sum(-1) / self.total.sum(-1),
            "waad": self._mean_rows(self.waad),
            "fai": self._influence(),
            "looked_at": self.looked_at,
        }
        return {name: value.flatten(0, 1).cpu() for name, value in found.items()}

    def _mean_rows(self, values: Float[Tensor, "kv group row"]) -> Float[Tensor, "kv group step"]:
        """The mean over the rows of each step; 0 without one."""
        means = [values[..., own].sum(-1) / max(len(own), 1) for own in self.plan.steps]
        return torch.stack(means, dim=-1) if means else values[..., :0]

    def _influence(self) -> Float[Tensor, "kv group step"]:
        """What later rows give to a step's tokens, by row that could give, then by token."""
        tokens = self.later.shape[-1]
        count = torch.zeros(tokens + 1, device=self.at.device)
        ones = torch.ones(len(self.at), device=self.at.device)
        low, high = (self.at - FUTURE[1]).clamp(min=0), (self.at - FUTURE[0] + 1).clamp(min=0)
        count.index_add_(0, low, ones).index_add_(0, high, -ones)
        count = count.cumsum(0)[:tokens].round()
        known = (count > 0).float()
        share = self.members * known[:, None]
        share = share / share.sum(dim=0).clamp(min=1e-12)
        return (self.later / count.clamp(min=1)) @ share


class StepRows(AttentionCapture):
    """Takes `StepFigures` of traces, all heads; proves itself as a capture does.

    Args:
        model: a loaded transformers model.
        most: rows of each step, evenly spread; None: all rows.
        chunk_bytes: memory of a chunk of rows, see `AttentionCapture`.

    Raises:
        ModelError: the model's attention cannot be captured.
    """

    def __init__(
        self, model: torch.nn.Module, most: int | None = None, *, chunk_bytes: int | None = None
    ) -> None:
        super().__init__(model, chunk_bytes=chunk_bytes)
        self.most = most

    def figures(
        self, trace: EncodedTrace, behind: int | None = None, cache: Any = None
    ) -> tuple[StepFigures, Float[Tensor, "token hidden"]]:
        """One forward pass, within a `with` block; with the last hidden state.

        Args:
            trace: with an answer that does not stand at its very beginning.
            behind: the first token behind the end mark; None: the first of F.
            cache: keeps keys and values for `mass_behind`; None: nothing is kept.

        Raises:
            ValueError: it has no such answer.
        """
        if not trace.answer.any() or trace.answer[0]:
            raise ValueError(f"trace {trace.id}: an answer with a token before it is needed")
        behind = int(trace.answer.argmax()) if behind is None else behind
        answer = torch.from_numpy(trace.answer)[None]
        collected = StepPass(RowPlan.of(trace, self.most, behind), answer, self)
        ids = torch.from_numpy(trace.ids)[None].to(self._device())
        hidden = self._run(collected, ids, None, self._keeping(cache))
        return collected.figures(), hidden[0]

    def new_cache(self) -> Any:
        """A cache for a pass; None where it would not serve a shorter context.

        So it is where layers look through a window, or the RoPE changes with the length.
        """
        from transformers import DynamicCache

        if self.lengths or shortest_window(self.model.config) is not None:
            return None
        return DynamicCache()

    def mass_behind(
        self, ids: Int[np.ndarray, "token"], behind: int, others: Int[np.ndarray, "_"], cache: Any
    ) -> Float[np.ndarray, "head token"]:
        """The masses of another answer in the answer's place, within a `with` block.

        Args:
            ids: of the trace.
            behind: the first token that is left away.
            others: what stands there.
            cache: of the pass over the trace, which is cut there; None: the context goes through
                the model once more.
        """
        answer = torch.from_numpy(others)[None].to(self._device())
        if cache is None:
            context = torch.from_numpy(ids[:behind])[None].to(self._device())
            whole = torch.cat([context, answer], dim=1)
            at = torch.arange(whole.shape[1], device=whole.device)[None] >= behind
            return np.asarray(self(whole, at)[0].cpu().numpy())
        cache.crop(behind - len(ids))  # so many fewer
        collected = BehindPass(len(others), behind, self)
        self._run(collected, answer, None, self._keeping(cache))
        return np.asarray(collected.mass()[0].cpu().numpy())

    def _keeping(self, cache: Any) -> Callable[..., Any]:
        """The trunk, with this cache."""
        if cache is None:
            return self.trunk

        def forward(**given: Any) -> Any:
            return self.trunk(**{**given, "use_cache": True, "past_key_values": cache})

        return forward


class BehindPass(CapturePass):
    """Sums the rows of tokens behind a context that lies in a cache, for all heads."""

    def __init__(self, tokens: int, context: int, capture: AttentionCapture) -> None:
        answer = torch.ones((1, tokens), dtype=torch.bool)
        super().__init__(answer, capture.heads, capture._workspace)
        self.tokens = context + tokens  # of the keys

    def enter_layer(self, call: AttentionCall) -> int:
        """The number of the layer of a call; its queries are the last of its keys."""
        layer = len(self.layers)
        self.layers[layer] = call.query.shape[1]
        return int(getattr(call.module, "layer_idx", layer))


def heads_below(heads: Sequence[Head]) -> Bool[np.ndarray, "head"]:
    """Which heads are of the lower half of the layers (TRAAC, arXiv 2510.01581)."""
    layers = sorted({layer for layer, _ in heads})
    return np.array([layer in layers[: max(1, len(layers) // 2)] for layer, _ in heads])
