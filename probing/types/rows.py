"""What the published types need of the rows of a batch, in the pass that scores it.

The steps of `StepRows`, with the same numbers in the code:
1. Rows are computed, a chunk at a time, of the steps (all their tokens, or so many of each, evenly
   spread), of the answer, and of the tokens that wrote the answer. Those of the answer are the
   rows that a probe computes anyway: its masses come from them, to the same figures.
2. Of each chunk, rows of one step are averaged and summed by the step of their key: M_ij. That of
   the end mark's last token is summed in the same way.
3. Each row says how far back it looks; rows before a token of the answer, which key most.
4. Each row's last keys, a band along the diagonal, give the windowed distance of its token and,
   added up by key, the influence on later tokens.
5. An answer without content goes along behind each trace, at the places of the answer: its rows
   do not see the answer, and their products with the values stand in the layer's output.
Where the answer ends the trace, its rows times the values are the rest of the layer's output, as in
the capture of a probe (`probing.models.split`). What is left of a layer is (head, step, step) at
most; of a branch (5), masses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attention.capture import AttentionCapture, CapturePass
from probing.attention.rows import Rows, weigh
from probing.attention.scores import pad_batch
from probing.choices import Head
from probing.models.front import AttentionCall
from probing.models.identity import shortest_window
from probing.models.proof import PROOF_TOLERANCE, proof_input, relative
from probing.models.split import SplitOutput, split_at
from probing.traces.tokens import EncodedTrace
from probing.types.formulas import FUTURE, WINDOW
from probing.types.plan import RowPlan, taken, within


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


class Read(NamedTuple):
    """What a pass gives of one of its traces."""

    mass: Float[np.ndarray, "head token"]  # as `AttentionCapture` gives it
    figures: StepFigures
    null: Float[np.ndarray, "head token"] | None  # the masses of an answer without content
    hidden: Float[Tensor, "token hidden"]  # the last hidden state


class StepPass(CapturePass):
    """Collects masses and `StepFigures` of all heads of a batch, layer by layer.

    Args:
        plans: of the traces.
        answer: F of each, padded.
        capture: proven.
        null: tokens behind each trace that are another answer (5).
    """

    def __init__(
        self,
        plans: Sequence[RowPlan],
        answer: Bool[Tensor, "batch token"],
        capture: AttentionCapture,
        null: int,
    ) -> None:
        super().__init__(answer, capture.heads, capture._workspace, split=capture.split)
        self.plans, self.null = plans, null
        self.found: list[list[dict[str, Tensor]]] = []  # by layer, by trace
        self.nulls: list[Float[Tensor, "batch head token"]] = []

    def cut_of(self, layer: int, call: AttentionCall) -> int | None:
        """As where every row from the earliest answer on is wanted."""
        first = min(
            int(plan.at[plan.answer[0]]) if len(plan.answer) else plan.length for plan in self.plans
        )
        start = (first, 1.0) if first else None
        return split_at(call, start, call.query.shape[1]) if layer in self.split else None

    def add(self, layer: int, call: AttentionCall, split: SplitOutput | None = None) -> None:
        """Rows of all heads of this layer; those of the answer give their part of its output."""
        rows, found = Rows(call, None, self.workspace), []
        for place, plan in enumerate(self.plans):
            sums = _LayerSums(plan, self.tokens, rows)
            before = len(plan.at) if split is None else int(np.searchsorted(plan.at, split.cut))
            for chunk in rows.chunks(place, torch.from_numpy(plan.at[:before])) if before else ():
                sums.add(chunk.probs, chunk.kv, chunk.rows.start, chunk.rows.stop)
            if split is not None:
                output = split.output[place, split.cut :]
                output[plan.length - split.cut :] = 0  # padding, which nobody looks at
                at = torch.arange(split.cut, plan.length)
                for chunk in rows.chunks(place, at) if len(at) else ():
                    weigh(chunk, split.values[place], output)
                    ends = chunk.rows.start + split.cut, chunk.rows.stop + split.cut
                    begin, end = np.searchsorted(plan.at, ends)
                    own = taken(chunk.probs, plan.at[begin:end] - ends[0])
                    sums.add(own, chunk.kv, int(begin), int(end))
            found.append(sums.figures())
        self.found.append(found)

    def branch(self, call: AttentionCall, value: Tensor, output: Tensor) -> None:
        """The rows behind each trace see what stands before the answer, and themselves (5)."""
        rows = Rows(call, None, self.workspace)
        shape = (len(self.plans), rows.key.shape[1], rows.group, self.tokens)
        mass = torch.zeros(shape, device=output.device)
        for place, plan in enumerate(self.plans):
            unseen = torch.zeros(self.tokens, device=output.device)
            unseen[plan.behind : plan.length] = -torch.inf
            at = torch.arange(plan.length, plan.length + self.null)
            values, own = value[place].float(), output[place, plan.length :]
            for chunk in rows.chunks(place, at, unseen):
                weigh(chunk, values, own)
                mass[place, chunk.kv, :, : chunk.probs.shape[-1]] += chunk.probs.sum(dim=1)
        self.nulls.append(mass.flatten(1, 2).cpu())

    def read(self, hidden: Float[Tensor, "batch token hidden"]) -> Iterator[Read]:
        """Of all layers, in the order of the heads, trace by trace."""
        nulls = torch.cat(self.nulls, dim=1).numpy() if self.nulls else None
        for place, plan in enumerate(self.plans):
            layers = [found[place] for found in self.found]
            of = {name: torch.cat([f[name] for f in layers]).numpy() for name in layers[0]}
            mass = of.pop("mass")[:, : plan.length]
            null = None if nulls is None else nulls[place, :, : plan.behind]
            yield Read(mass, StepFigures(**of), null, hidden[place, : plan.length])


class _LayerSums:
    """The sums of one layer of one trace."""

    def __init__(self, plan: RowPlan, tokens: int, rows: Rows) -> None:
        self.plan, device = plan, rows.query.device
        self.sinks = rows.sinks is not None  # rows need not sum to one
        kv, group, steps = rows.key.shape[1], rows.group, len(plan.spans)
        self.limits = torch.from_numpy(plan.spans).to(device)

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros((kv, group, *shape), dtype=dtype, device=device)

        self.blocks = empty(steps + 1, steps, dtype=torch.float64)  # the last: of the end mark
        self.far, self.total, self.waad = (empty(len(plan.at)) for _ in range(3))
        self.mass, self.later = empty(tokens), empty(tokens)
        self.looked_at = empty(len(plan.before), dtype=torch.long)

    def add(
        self, probs: Float[Tensor, "kv row group key"], kv: slice, begin: int, end: int
    ) -> None:
        """Rows begin … end − 1 of the plan, of some heads."""
        if begin == end:
            return
        plan, device, length = self.plan, probs.device, probs.shape[-1]
        at = torch.from_numpy(plan.at[begin:end]).to(device)
        answer, before = (within(rows, begin, end) for rows in (plan.answer, plan.before))
        if answer.stop > answer.start:
            own = taken(probs, plan.answer[answer] - begin)
            self.mass[kv, :, :length] += own.sum(dim=1)
        self._by_step(probs, kv, begin, end)  # 2
        there = (kv, slice(None), slice(begin, end))
        # Distances from the chunk's first row: small where a row looks at what is near.
        back = at[0] - torch.arange(length, device=device)
        total = probs.sum(-1) if self.sinks else torch.ones(probs.shape[:-1], device=device)
        far = probs @ back.float() + (at - at[0])[:, None] * total  # 3
        self.far[there], self.total[there] = far.transpose(1, 2), total.transpose(1, 2)
        if before.stop > before.start:
            own = taken(probs, plan.before[before] - begin)
            # numpy's is the faster by far on a CPU
            most = own.max(-1)[1] if own.is_cuda else torch.from_numpy(own.numpy().argmax(axis=-1))
            self.looked_at[kv, :, before] = most.transpose(1, 2)
        self._band(probs, at, kv, there)  # 4

    def _by_step(self, probs: Tensor, kv: slice, begin: int, end: int) -> None:
        """Sums of the rows of each class, by the step of the key; by prefix sums in float64."""
        pairs = within(self.plan.rows, begin, end)
        if pairs.stop == pairs.start:
            return
        names, local = np.unique(self.plan.classes[pairs], return_inverse=True)
        own = taken(probs, self.plan.rows[pairs] - begin)
        rows = probs.new_zeros((len(probs), len(names), *probs.shape[2:]))
        rows.index_add_(1, torch.from_numpy(local).to(probs.device), own)
        prefix = torch.nn.functional.pad(rows.cumsum(-1, dtype=torch.float64), (1, 0))
        limits = self.limits.clamp(max=probs.shape[-1])
        sums = (prefix[..., limits[:, 1]] - prefix[..., limits[:, 0]]).transpose(1, 2)
        self.blocks[kv].index_add_(2, torch.from_numpy(names).to(probs.device), sums)

    def _band(self, probs: Tensor, at: Tensor, kv: slice, there: Any) -> None:
        """The last keys of each row: the windowed distance, and what is given to each of them."""
        back = torch.arange(FUTURE[1] + 1, device=at.device)
        keys = at[:, None] - back
        index = keys.clamp(min=0)[None, :, None].expand(*probs.shape[:3], -1)
        band = probs.gather(-1, index) * (keys >= 0)[:, None]
        near = (WINDOW - back).clamp(min=0).float()
        self.waad[there] = WINDOW * self.total[there] - (band @ near).transpose(1, 2)
        late = band[..., FUTURE[0] :].transpose(1, 2).flatten(2)
        self.later[kv].index_add_(2, keys.clamp(min=0)[:, FUTURE[0] :].flatten(), late)

    def figures(self) -> dict[str, Tensor]:
        """(head, …) of this layer, on the CPU."""
        plan, steps = self.plan, len(self.plan.spans)
        sizes = (torch.from_numpy(n) for n in (plan.sizes, np.diff(plan.spans, axis=1)[:, 0]))
        rows, keys = (n.clamp(min=1).to(self.blocks.device) for n in sizes)
        blocks = (self.blocks / rows[:, None] / keys).float()
        answer = torch.from_numpy(plan.answer)
        looked = self.total[..., answer].sum(-1)
        found = {
            "mass": self.mass,
            "attention": blocks[..., :steps, :],
            "mark": blocks[..., steps, :],
            "span": self.far[..., answer].sum(-1) / looked,
            "sink": self.mass[..., 0] / looked,
            "distance": self.far.sum(-1) / self.total.sum(-1),
            "waad": self._mean_rows(self.waad),
            "fai": self._influence(),
            "looked_at": self.looked_at,
        }
        return {name: value.flatten(0, 1).cpu() for name, value in found.items()}

    def _mean_rows(self, values: Float[Tensor, "kv group row"]) -> Float[Tensor, "kv group step"]:
        """The mean over the rows of each step; 0 without one."""
        plan, device = self.plan, values.device
        rows, classes, sizes = map(torch.from_numpy, (plan.rows, plan.classes, plan.sizes))
        sums = values.new_zeros((*values.shape[:2], len(sizes)))
        sums.index_add_(-1, classes.to(device), values[..., rows.to(device)])
        return (sums / sizes.clamp(min=1).to(device))[..., :-1]

    def _influence(self) -> Float[Tensor, "kv group step"]:
        """What later rows give to a step's tokens, by row that could give, then by token."""
        tokens, at = self.later.shape[-1], self.plan.at
        edges = np.bincount(np.maximum(at - FUTURE[1], 0), minlength=tokens + 1)
        edges[:tokens] -= np.bincount(np.maximum(at - FUTURE[0] + 1, 0), minlength=tokens)[:tokens]
        count = edges.cumsum()[:tokens]
        share = (self.later / torch.from_numpy(np.maximum(count, 1)).to(self.later.device)).double()
        prefix = torch.nn.functional.pad(share.cumsum(-1), (1, 0))
        known = np.concatenate([[0], (count > 0).cumsum()])
        first, last = self.plan.spans.T
        size = torch.from_numpy(np.maximum(known[last] - known[first], 1)).to(self.later.device)
        return ((prefix[..., last] - prefix[..., first]) / size).float()


class StepRows(AttentionCapture):
    """Takes masses and `StepFigures` of batches, all heads; proves itself as a capture does.

    Args:
        model: a loaded transformers model.
        most: rows of each step, evenly spread; None: all rows.
        null: ids of an answer without content, whose masses are taken too; None: no such answer.
        chunk_bytes: memory of a chunk of rows, see `AttentionCapture`.

    Attributes:
        branches: whether that answer goes along in the same pass (5); else its context goes
            through the model once more. So it is where a layer looks through a window, the RoPE
            changes with the length, or a proof shows that the masses are not the same.

    Raises:
        ModelError: the model's attention cannot be captured.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        most: int | None = None,
        null: Int[np.ndarray, "token"] | None = None,
        *,
        chunk_bytes: int | None = None,
    ) -> None:
        super().__init__(model, chunk_bytes=chunk_bytes)
        self.most, self.null = most, null
        plain = not self.lengths and shortest_window(model.config) is None
        self.branches = null is not None and plain and self._prove_branch()

    def read(self, traces: Sequence[EncodedTrace]) -> list[Read]:
        """One forward pass over the traces of a batch, within a `with` block."""
        extra = 0 if self.null is None or not self.branches else len(self.null)
        plans = [RowPlan.of(trace, self.most) for trace in traces]
        tails = np.zeros(extra, dtype=np.int64) if self.null is None else self.null[:extra]
        ids = pad_batch([np.concatenate([trace.ids, tails]) for trace in traces])
        off = np.zeros(extra, dtype=bool)
        answer = pad_batch([np.concatenate([trace.answer, off]) for trace in traces])
        collected = StepPass(plans, answer, self, extra)
        forward: Callable[..., Any] = self.trunk
        if extra:
            places = torch.arange(ids.shape[1]).repeat(len(ids), 1)
            for row, plan in zip(places, plans, strict=True):
                row[plan.length :] -= plan.length - plan.behind
            # A mask of ones says that these places are no second sequence.
            given = {"position_ids": places, "attention_mask": torch.ones_like(ids)}
            moved = {name: value.to(self._device()) for name, value in given.items()}

            def forward(**own: Any) -> Any:
                return self.trunk(**{**own, **moved})

        found = list(collected.read(self._run(collected, ids.to(self._device()), None, forward)))
        if self.null is None or extra:
            return found
        nulls = [
            self._alone(trace.ids[: plan.behind]) for trace, plan in zip(traces, plans, strict=True)
        ]
        return [read._replace(null=null) for read, null in zip(found, nulls, strict=True)]

    def _alone(self, context: Int[np.ndarray, "token"]) -> Float[np.ndarray, "head token"]:
        """The masses of the answer without content behind its context, in a pass of their own."""
        assert self.null is not None
        whole = torch.from_numpy(np.concatenate([context, self.null]))[None].to(self._device())
        at = torch.arange(whole.shape[1], device=whole.device)[None] >= len(context)
        return self(whole, at)[0, :, : len(context)].cpu().numpy()

    def _prove_branch(self) -> bool:
        """Whether an answer that goes along has the masses of one that stands alone."""
        ids = proof_input(self._vocabulary(), torch.device("cpu"))[0][0].numpy()
        answer = np.arange(len(ids)) >= len(ids) // 2
        trace = EncodedTrace("proof", ids, 0, np.array([[0, len(ids) // 2]]), answer)
        self.branches = True
        with self:
            found = self.read([trace])[0].null
            alone = self._alone(ids[: len(ids) // 2])
        difference = relative(torch.from_numpy(found), torch.from_numpy(alone))
        return difference <= PROOF_TOLERANCE.get(self.dtype, 1e-4)

    def _attend(
        self, call: AttentionCall, value: Tensor, stock: Callable[..., Any] | None
    ) -> Tensor:
        output = super()._attend(call, value, stock)
        if isinstance(self._pass, StepPass) and self._pass.null:
            self._pass.branch(call, value, output)
        return output


def heads_below(heads: Sequence[Head]) -> Bool[np.ndarray, "head"]:
    """Which heads are of the lower half of the layers (TRAAC, arXiv 2510.01581, and its code: the
    mean over their heads of the attention from the last token `</think>` to a step's tokens)."""
    layers = sorted({layer for layer, _ in heads})
    return np.array([layer in layers[: max(1, len(layers) // 2)] for layer, _ in heads])
