"""In front of a layer's attention: what goes in, what the model makes of it, and its exact rows.

1. `InFront` stands in front of a model's attention function, in the registry of transformers. No
   class is patched: while a `with` block runs, a local entry of the registry overrides the stock
   one under the same name (sdpa, flash_attention_2, eager). The name stays the model's own, and
   with it the mask that transformers makes for it.
2. A layer's arguments are an `AttentionCall`; the model's own kernel gives its output for them
   (`own_output`).
3. `Rows` computes softmax rows from the same arguments, exactly: same queries, keys, mask,
   scaling, window and soft-cap as the kernel, in float32 whatever the model's precision. Which
   rows are wanted is decided by who stands in front (`probing.attention.capture`,
   `probing.answers.edits`).
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.errors import ModelError

if TYPE_CHECKING:
    from typing_extensions import Self

Attention = Callable[..., tuple[Tensor, Tensor | None]]


class AttentionCall(NamedTuple):
    """What a model gives to its attention function (2)."""

    implementation: str
    module: torch.nn.Module
    query: Float[Tensor, "batch head token dim"]
    key: Float[Tensor, "batch kv token dim"]
    mask: Tensor | None
    options: dict[str, Any]


class InFront(ABC):
    """What stands in front of the attention function of a model, and of no other model's (1).

    Args:
        model: a loaded transformers model.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.trunk = trunk_of(model)
        self._modules = {id(module) for module in self.trunk.modules()}
        self._implementations = _implementations(self.trunk)
        self._previous: dict[str, Callable[..., Any] | None] = {}

    def __enter__(self) -> Self:
        """Stand in front.

        Raises:
            RuntimeError: it stands there already.
        """
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

        if self._previous:
            raise RuntimeError(f"this {type(self).__name__} is already active")
        for name in self._implementations:
            # A local entry of the registry overrides the stock one until it is deleted.
            self._previous[name] = registry._local_mapping.get(name)
            registry[name] = self._function(name, registry.get(name))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the registry back as it was."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

        for name, previous in self._previous.items():
            if previous is None:
                del registry[name]
            else:
                registry[name] = previous
        self._previous = {}

    def _function(self, name: str, stock: Callable[..., Any] | None) -> Attention:
        """The attention function that goes into the registry under `name`.

        `stock` is the one that stood there; None where the model brings its own (eager).
        """

        def attend(
            module: torch.nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,
            **options: Any,
        ) -> tuple[Tensor, Tensor | None]:
            if not self._busy or id(module) not in self._modules:  # another model, or not our pass
                result: tuple[Tensor, Tensor | None] = (stock or eager_of(module))(
                    module, query, key, value, attention_mask, **options
                )
                return result
            call = AttentionCall(name, module, query, key, attention_mask, options)
            return self._attend(call, value, stock), None

        return attend

    @property
    @abstractmethod
    def _busy(self) -> bool:
        """Whether the present forward pass is one to stand in front of."""

    @abstractmethod
    def _attend(
        self, call: AttentionCall, value: Tensor, stock: Callable[..., Any] | None
    ) -> Tensor:
        """The output of one layer's attention, (batch, query, head, dim)."""

    def _device(self) -> torch.device:
        return next(self.trunk.parameters()).device

    def _vocabulary(self) -> int:
        embeddings = self.trunk.get_input_embeddings()  # type: ignore[operator]
        return int(embeddings.num_embeddings)


def trunk_of(model: torch.nn.Module) -> torch.nn.Module:
    """The transformer without its language-model head; through a PEFT wrapper as well."""
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    trunk: torch.nn.Module = getattr(unwrap(), "base_model", model)
    return trunk


def _implementations(trunk: torch.nn.Module) -> set[str]:
    """Names of the attention functions that the model and its parts are set to use."""
    configs = [getattr(module, "config", None) for module in trunk.modules()]
    names = {getattr(config, "_attn_implementation", None) for config in configs if config}
    names.discard(None)
    if "flex_attention" in names:
        raise ModelError(
            "flex_attention keeps its mask in a form that has no rows; load the model with another "
            "kernel: --attention sdpa (or eager)"
        )
    return {str(name) for name in names}


def own_output(
    call: AttentionCall, value: Tensor, stock: Callable[..., Any] | None, budget: int
) -> Tensor:
    """What the model's own kernel gives, (batch, query, head, dim); its eager one in chunks."""
    _, module, query, key, mask, options = call
    if stock is None:
        return eager_in_chunks(eager_of(module), module, query, key, value, mask, options, budget)
    output: Tensor = stock(module, query, key, value, mask, **options)[0]
    return output


def eager_of(module: torch.nn.Module) -> Callable[..., Any]:
    """The eager attention function of the module's own modelling file.

    Raises:
        ModelError: the file has none.
    """
    for kind in type(module).__mro__:
        file = sys.modules.get(kind.__module__)
        kernel: Callable[..., Any] | None = getattr(file, "eager_attention_forward", None)
        if kernel is not None:
            return kernel
    raise ModelError(f"{type(module).__name__}: no eager attention function found in its file")


def eager_in_chunks(
    kernel: Callable[..., Any],
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
    budget: int,
) -> Tensor:
    """The eager kernel, a chunk of query rows at a time, so that no T × T scores are made."""
    if mask is None or mask.ndim != 4 or mask.shape[2] != query.shape[2]:
        output: Tensor = kernel(module, query, key, value, mask, **options)[0]
        return output
    size = chunk_rows(budget, query.shape[0] * query.shape[1] * key.shape[2])
    chunks = [
        kernel(module, q, key, value, m, **options)[0]
        for q, m in zip(query.split(size, 2), mask.split(size, 2), strict=True)
    ]
    return torch.cat(chunks, dim=1)


# Bytes of one chunk of rows: on CPU it should stay within the last-level cache.
CPU_CHUNK = 8 << 20
GPU_CHUNK = 256 << 20


def chunk_rows(budget: int, row: int) -> int:
    """Rows of `row` float32 numbers that fit the budget; at least eight, for matmul's sake."""
    return max(8, budget // (4 * row))


class Workspace:
    """Two buffers that all chunks of a pass share: fresh memory would cost a page fault a page."""

    def __init__(self, chunk_bytes: int | None = None) -> None:
        self.chunk_bytes = chunk_bytes
        self._buffers: dict[tuple[str, torch.device], Tensor] = {}

    def budget(self, device: torch.device) -> int:
        """Bytes that a chunk may take."""
        return self.chunk_bytes or (CPU_CHUNK if device.type == "cpu" else GPU_CHUNK)

    def take(self, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The named buffer in this shape, uninitialised; what stood in it before is gone."""
        size = int(torch.Size(shape).numel())
        buffer = self._buffers.get((name, device))
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name, device] = torch.empty(size, device=device)
        return buffer[:size].view(shape)


class Chunk(NamedTuple):
    """Softmax rows of some heads of one trace, in the order key-value head, row, head, key."""

    probs: Float[Tensor, "kv row group key"]
    kv: slice  # of the layer's key-value heads (or of the chosen heads, in groups of one)
    rows: slice  # of the positions asked for


class Rows:
    """Softmax rows of one layer in one pass, from the arguments of its attention function (3).

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
        is_causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim in (2, 4)):
            raise ModelError(f"attention mask of an unknown kind ({type(mask).__name__})")
        if not causal and (mask is None or mask.ndim == 2):
            raise ModelError("attention that looks ahead (not causal) cannot be probed")

    def chunks(
        self, trace: int, at: Int[Tensor, "row"], last: int, shift: Tensor | None = None
    ) -> Iterator[Chunk]:
        """The rows of one trace, a chunk at a time; a chunk's memory is used again for the next.

        Args:
            trace: its place in the batch.
            at: positions of the rows among the queries, ascending.
            last: the last of them.
            shift: (key,), added to the scores of each key before the softmax.
        """
        n_kv, device = self.key.shape[1], self.query.device
        # On CPU one key-value head at a time: the product of one pair of matrices is fastest.
        together = 1 if device.type == "cpu" else n_kv
        size = chunk_rows(
            self.workspace.budget(device), together * self.group * (self.offset + last + 1)
        )
        # A length in whole cache lines is faster; the causal mask hides the keys too many.
        length = min(self.key.shape[2], -(-(self.offset + last + 1) // 16) * 16)
        queries = self._queries(trace, at)
        for start in range(0, len(at), size):
            rows = slice(start, min(start + size, len(at)))
            low, hidden = self._hidden(trace, at[rows], length)
            for first in range(0, n_kv, together):
                kv = slice(first, first + together)
                logits = self._logits(queries[kv, rows], self.key[trace, kv, :length])
                if self.softcap is not None:
                    logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
                mask = hidden[kv] if len(hidden) > 1 else hidden
                if mask.dtype == torch.bool:
                    logits[..., low:].masked_fill_(mask, float("-inf"))
                else:
                    logits[..., low:].add_(mask)
                if shift is not None:
                    logits.add_(shift[:length])
                probs = self.workspace.take("probs", tuple(logits.shape), device)
                yield Chunk(torch.softmax(logits, dim=-1, out=probs), kv, rows)

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

    def _hidden(self, trace: int, at: Int[Tensor, "row"], length: int) -> tuple[int, Tensor]:
        """What the model's own mask hides from the rows: the first key concerned, and from there
        on True where a key is hidden (or numbers to add), in the order kv, row, group, key."""
        if self.mask is not None and self.mask.ndim == 4:
            mask = self.mask[trace if len(self.mask) > 1 else 0][:, at, :length]
            if len(mask) > 1:  # a mask of its own for each head
                mask = mask if self.heads is None else mask[self.heads]
                mask = mask.unflatten(0, (-1, self.group)).transpose(1, 2)
            else:
                mask = mask[:, :, None]
            return 0, ~mask if mask.dtype == torch.bool else mask
        # Keys before the first row are seen by all rows: only the rest needs the comparison.
        at = at + self.offset
        low = 0 if self.window is not None or self.mask is not None else int(at[0])
        keys = torch.arange(low, length, device=at.device)
        hidden = keys > at[:, None]
        if self.window is not None:
            hidden |= keys <= at[:, None] - self.window
        if self.mask is not None:
            hidden |= ~self.mask[trace, low:length].bool()
        return low, hidden[None, :, None]


def relative(a: Tensor, b: Tensor) -> float:
    """max |a − b| / max |b|, in float32; infinite where either holds something not a number."""
    a, b = a.float(), b.float()
    difference = (a - b).abs().max() / b.abs().max().clamp_min(1e-30)
    return float(difference.nan_to_num(torch.inf))
