"""Softmax rows of a layer's attention, from the arguments of its attention function.

`Rows` computes them exactly: same queries, keys, mask, scaling, window, soft-cap, position bias
and attention sinks as the kernel, in float32 whatever the model's precision. A sink (gpt-oss) is
one more logit of a head, without a key: it takes a part of each row, which then sums to less than
one. Which rows are wanted is decided by who stands in front of the attention
(`probing.attention.capture`, `probing.answers.edits`).

Their proof: rows times values are what the model's own kernel gives (`probing.models.proof` says
how closely).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from probing.errors import ModelError, NotFiniteError
from probing.models.front import (
    AttentionCall,
    Workspace,
    chunk_rows,
    eager_of,
    of_queries,
    sinks_of,
)
from probing.models.proof import Difference, relative
from probing.models.split import SplitOutput, part_of


class Chunk(NamedTuple):
    """Softmax rows of some heads of one trace, in the order key-value head, row, head, key."""

    probs: Float[Tensor, "kv row group key"]
    kv: slice  # of the layer's key-value heads (or of the chosen heads, in groups of one)
    rows: slice  # of the positions asked for


def weigh(
    chunk: Chunk, values: Float[Tensor, "kv key dim"], onto: Float[Tensor, "row head dim"]
) -> None:
    """Write Σ_n a_{m→n} v_n of a chunk to its rows and heads; of all heads of a layer."""
    group = chunk.probs.shape[2]
    weights = chunk.probs.flatten(1, 2)
    product = torch.bmm(weights, values[chunk.kv, : weights.shape[-1]])
    heads = onto.unflatten(1, (-1, group)).transpose(0, 1)
    heads[chunk.kv, chunk.rows] = product.unflatten(1, (-1, group))


class Rows:
    """Softmax rows of one layer in one pass, from the arguments of its attention function.

    Args:
        call: these arguments.
        heads: which query heads; None takes all.
        workspace: where chunks are computed.

    Raises:
        ModelError: a mask of an unknown kind, or attention that looks ahead.
    """

    def __init__(self, call: AttentionCall, heads: list[int] | None, workspace: Workspace) -> None:
        name, module, query, key, mask, options = call
        group = query.shape[1] // key.shape[1]
        self.heads = heads
        if heads is not None:  # one key-value head for each chosen head
            chosen = torch.tensor(heads, device=query.device)
            query, key, group = query[:, chosen], key[:, chosen // group], 1
        if query.dtype != torch.float32 and not query.is_cuda:
            key = key.float()
        self.query, self.key, self.mask, self.group = query, key, mask, group
        # With a cache the queries are the last of the keys' tokens.
        self.offset = key.shape[2] - query.shape[2]
        self.workspace = workspace
        scaling = options.get("scaling")
        self.scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        self.softcap = options.get("softcap")
        # sdpa and eager find the window in the mask; the flash kernels take it as an argument.
        self.window = options.get("sliding_window") if "flash" in name else None
        self.bias = options.get("position_bias")
        self.sinks = sinks_of(options)
        is_causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim in (2, 4)):
            raise ModelError(f"attention mask of an unknown kind ({type(mask).__name__})")
        if not causal and (mask is None or mask.ndim == 2):
            raise ModelError("attention that looks ahead (not causal) cannot be probed")

    def chunks(
        self, trace: int, at: Int[Tensor, "row"], shift: Tensor | None = None
    ) -> Iterator[Chunk]:
        """The rows of one trace, a chunk at a time; a chunk's memory is used again for the next.

        Args:
            trace: its place in the batch.
            at: positions of the rows among the queries, ascending; best on the CPU, where the
                chunks are planned.
            shift: (key,), added to the scores of each key before the softmax.
        """
        n_kv, device = self.key.shape[1], self.query.device
        planned, at = at.cpu(), at.to(device)
        # On CPU one key-value head at a time: the product of one pair of matrices is fastest.
        together = 1 if device.type == "cpu" else n_kv
        keys = self.offset + int(planned[-1]) + 1
        size = chunk_rows(self.workspace.budget(device), together * self.group * keys)
        queries = self._queries(trace, at)
        for start in range(0, len(at), size):
            rows = slice(start, min(start + size, len(at)))
            first, last = (self.offset + int(planned[row]) for row in (start, rows.stop - 1))
            # A length in whole cache lines is faster; the causal mask hides the keys too many.
            length = min(self.key.shape[2], -(-(last + 1) // 16) * 16)
            low, hidden = self._hidden(trace, at[rows], first, length)
            for begin in range(0, n_kv, together):
                kv = slice(begin, begin + together)
                logits = self._logits(queries[kv, rows], self.key[trace, kv, :length])
                if self.softcap is not None:
                    logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
                mask = hidden[kv] if len(hidden) > 1 else hidden
                if mask.dtype == torch.bool:
                    logits[..., low:].masked_fill_(mask, float("-inf"))
                else:
                    logits[..., low:].add_(mask)
                if self.bias is not None:
                    logits.add_(self._of_rows(self.bias, trace, at[rows], kv)[..., :length])
                if shift is not None:
                    logits.add_(shift[:length])
                kept = None
                if self.sinks is not None:
                    sinks = self._of_rows(self.sinks, trace, at[rows], kv)
                    kept = torch.sigmoid(logits.logsumexp(-1, keepdim=True) - sinks)
                # On CPU in place: half of the memory to go through.
                probs = logits
                if device.type != "cpu":
                    probs = self.workspace.take("probs", tuple(logits.shape), device)
                torch.softmax(logits, dim=-1, out=probs)
                if kept is not None:
                    probs.mul_(kept)
                yield Chunk(probs, kv, rows)

    def _of_rows(
        self,
        given: Float[Tensor, "#batch #head #query any"],
        trace: int,
        at: Int[Tensor, "row"],
        kv: slice,
    ) -> Float[Tensor, "#kv #row #group any"]:
        """What the model gives for each head and query, for the rows of a chunk, in float32."""
        own = given[trace if len(given) > 1 else 0]
        own = own[:, at] if own.shape[1] > 1 else own
        grouped = self._grouped(own).float()
        return grouped[kv] if len(grouped) > 1 else grouped

    def _grouped(
        self, own: Shaped[Tensor, "#head row any"]
    ) -> Shaped[Tensor, "#kv row #group any"]:
        """The chosen heads in the order of a chunk."""
        if len(own) == 1:  # the same for all heads
            return own[:, :, None]
        own = own if self.heads is None else own[self.heads]
        return own.unflatten(0, (-1, self.group)).transpose(1, 2)

    def _queries(self, trace: int, at: Int[Tensor, "row"]) -> Float[Tensor, "kv row group dim"]:
        """The queries of the rows, those of a group side by side: they share their keys."""
        queries = self.query[trace][:, at].unflatten(0, (-1, self.group)).transpose(1, 2)
        if queries.dtype != torch.float32 and queries.is_cuda:
            return queries.contiguous()
        return (queries.float() * self.scaling).contiguous()

    def _logits(
        self, queries: Float[Tensor, "kv row group dim"], keys: Float[Tensor, "kv key dim"]
    ) -> Float[Tensor, "kv row group key"]:
        """Scaled dot products, in float32 whatever the model's precision."""
        n_kv, n_rows, group, _ = queries.shape
        left, right = queries.flatten(1, 2), keys.transpose(1, 2)
        if left.dtype != torch.float32:  # on CUDA alone, see `_queries`
            product = torch.bmm(left, right, out_dtype=torch.float32).mul_(self.scaling)
        else:
            shape = (n_kv, n_rows * group, right.shape[2])
            product = self.workspace.take("logits", shape, left.device)
            torch.bmm(left, right, out=product)
        return product.view(n_kv, n_rows, group, right.shape[2])

    def additive_mask(self, trace: int, at: Int[Tensor, "row"]) -> Float[Tensor, "1 #head row key"]:
        """What is added to the scores of some rows of a trace, for a kernel that is given these
        rows alone; of all heads."""
        if self.mask is not None and self.mask.ndim == 4:
            own = self.mask[trace if len(self.mask) > 1 else 0][None, :, at]
            if own.dtype != torch.bool:
                return own.float()
            hidden = ~own
        else:
            low, rest = self._hidden(trace, at, self.offset + int(at[0]), self.key.shape[2])
            hidden = pad(rest[:, :, 0], (low, 0))[None]
        return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(
            hidden, torch.finfo(torch.float32).min
        )

    def _hidden(
        self, trace: int, at: Int[Tensor, "row"], first: int, length: int
    ) -> tuple[int, Tensor]:
        """What the model's own mask hides from the rows: the first key concerned, and from there
        on True where a key is hidden (or numbers to add), in the order kv, row, group, key."""
        if self.mask is not None and self.mask.ndim == 4:
            mask = self._grouped(self.mask[trace if len(self.mask) > 1 else 0][:, at, :length])
            return 0, ~mask if mask.dtype == torch.bool else mask
        # Keys before the first row are seen by all rows: only the rest needs the comparison.
        at = at + self.offset
        low = 0 if self.window is not None or self.mask is not None else first
        keys = torch.arange(low, length, device=at.device)
        hidden = keys > at[:, None]
        if self.window is not None:
            hidden |= keys <= at[:, None] - self.window
        if self.mask is not None:
            hidden |= ~self.mask[trace, low:length].bool()
        return low, hidden[None, :, None]


def answer_mass(
    rows: Rows, answers: Sequence[Int[Tensor, "_"]], tokens: int, split: SplitOutput | None = None
) -> Float[Tensor, "batch head token"]:
    """Σ_{m ∈ F} a_{m→n} of each trace, for the heads of the rows, in float32.

    Args:
        rows: of a layer; of all its heads where its output is split.
        answers: positions of F of each trace.
        tokens: of the batch.
        split: an output whose queries from the cut on get rows × values on the way.
    """
    begin = split.cut if split else 0
    shape = (len(answers), rows.key.shape[1], rows.group, tokens)
    mass = torch.zeros(shape, device=rows.query.device)
    for trace, answer in enumerate(answers):
        at = torch.arange(begin, tokens) if split else answer
        if not len(at):
            continue
        for chunk in rows.chunks(trace, at):
            probs = chunk.probs
            if split:
                weigh(chunk, split.values[trace], split.output[trace, begin:])
                first, end = begin + chunk.rows.start, begin + chunk.rows.stop
                probs = probs[:, part_of(answer, first, end)]
            mass[trace, chunk.kv, :, : probs.shape[-1]] += probs.sum(dim=1)
    return mass.flatten(1, 2)


def rows_against_kernel(
    layer: int,
    call: AttentionCall,
    value: Float[Tensor, "batch kv token dim"],
    output: Float[Tensor, "batch token head dim"],
    stock: Callable[..., Any] | None,
    wanted: Sequence[Int[Tensor, "_"]],
    workspace: Workspace,
) -> Difference:
    """The differences of one layer, over all heads and the wanted rows of each trace.

    Args:
        layer: its number, for messages.
        call: its arguments.
        value: the values that go with them.
        output: what the model's kernel gave.
        stock: this kernel; None: the eager one of the module's file.
        wanted: positions of each trace.
        workspace: where rows are computed.

    Raises:
        NotFiniteError: the kernel's output is not finite.
    """
    rows = Rows(call, None, workspace)
    exactly = call.query.dtype != torch.float32
    ours, theirs, copies = [], [], []
    for trace, at in enumerate(wanted):
        if not len(at):
            continue
        there = at.to(output.device)
        own = output.new_empty((len(at), *output.shape[2:]), dtype=torch.float32)
        values = value[trace].float()
        for chunk in rows.chunks(trace, at):
            weigh(chunk, values, own)
        ours.append(own.flatten())
        theirs.append(output[trace, there].float().flatten())
        if exactly:
            copies.append(kernel_on_copies(rows, call, value, stock, trace, there).flatten())
    kernel = torch.cat(theirs)
    if not kernel.isfinite().all():
        what = f"the output of the attention in layer {layer} is"
        raise NotFiniteError.of(what, call.query.dtype)
    rough = relative(torch.cat(ours), kernel)
    exact = relative(torch.cat(ours), torch.cat(copies)) if exactly else rough
    return Difference(rough, exact, sinks_of(call.options) is not None)


def kernel_on_copies(
    rows: Rows,
    call: AttentionCall,
    value: Tensor,
    stock: Callable[..., Any] | None,
    trace: int,
    at: Int[Tensor, "row"],
) -> Float[Tensor, "row head dim"]:
    """What the model's kernel gives for rows of a trace, on float32 copies of what goes in.

    Raises:
        ModelError: the kernel takes no float32, and the family has no eager one.
    """
    if stock is None or "flash" in call.implementation:
        stock = eager_of(call.module)
    own = slice(trace, trace + 1)
    query, key, values = call.query[own][:, :, at], call.key[own], value[own]
    options = {
        name: given.float() if isinstance(given, Tensor) and given.is_floating_point() else given
        for name, given in of_queries(call.options, at).items()
    }
    for name in ("position_bias", "sinks"):
        given = options.get(name)
        if isinstance(given, Tensor) and given.ndim == 4 and len(given) > 1:
            options[name] = given[own]
    mask = rows.additive_mask(trace, at)
    found = stock(call.module, query.float(), key.float(), values.float(), mask, **options)
    output: Tensor = found[0][0]
    return output
