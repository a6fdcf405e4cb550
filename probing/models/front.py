"""In front of a model's attention function: what goes in, and what the model makes of it.

1. `InFront` stands in front of a model's attention function, in the registry of transformers. No
   class is patched: while a `with` block runs, a local entry of the registry overrides the stock
   one under the same name (sdpa, flash_attention_2, eager). The name stays the model's own, and
   with it the mask that transformers makes for it.
2. A layer's arguments are an `AttentionCall`; the model's own kernel gives its output for them
   (`own_output`).
What stands in front computes what it wants of the same arguments (`probing.attention.rows`).
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.choices import Head
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
        try:
            embeddings = self.trunk.get_input_embeddings()  # type: ignore[operator]
            return int(embeddings.num_embeddings)
        except (NotImplementedError, AttributeError):  # a trunk that does not say (Bart's decoder)
            config: Any = self.model.config
            return int(config.get_text_config().vocab_size)


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


def fusible(query: Tensor) -> bool:
    """Whether Triton's kernels multiply such queries: in half precision, on a GPU that does so
    (NVIDIA Ampere or later), with Triton installed. Products of float32 would be TF32."""
    return query.dtype in (torch.bfloat16, torch.float16) and _has_triton(query.device)


@cache
def _has_triton(device: torch.device) -> bool:
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


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
    chunks = []
    for start in range(0, query.shape[2], size):
        rows = slice(start, start + size)
        given = of_queries(options, rows)
        chunks.append(kernel(module, query[:, :, rows], key, value, mask[:, :, rows], **given)[0])
    return torch.cat(chunks, dim=1)


def of_queries(options: dict[str, Any], rows: slice | Int[Tensor, "row"]) -> dict[str, Any]:
    """The options of a call for some of its queries: position bias and sinks may be by query."""
    cut = dict(options)
    for name in ("position_bias", "sinks"):
        given = cut.get(name)
        if isinstance(given, Tensor) and given.ndim == 4 and given.shape[2] > 1:
            cut[name] = given[:, :, rows]
    return cut


# Bytes of one chunk of rows: on CPU it should stay within the last-level cache.
CPU_CHUNK = 4 << 20  # of the rows and their product, within a share of the cache
GPU_CHUNK = 256 << 20


def chunk_rows(budget: int, row: int) -> int:
    """Rows of `row` float32 numbers that fit the budget; at least eight, for matmul's sake."""
    return max(8, budget // (4 * row))


class Workspace:
    """Buffers that all chunks of a pass share: fresh memory would cost a page fault a page."""

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


def sinks_of(options: Mapping[str, Any]) -> Float[Tensor, "#batch head #query 1"] | None:
    """The logits of a call's attention sinks; None where it has none.

    gpt-oss and its kin give `s_aux`, a number a head; Inkling gives `sinks`, one a query too.
    """
    given = options.get("s_aux")
    given = options.get("sinks") if given is None else given
    if given is None:
        return None
    sinks: Tensor = given.view(1, -1, 1, 1) if given.ndim == 1 else given
    return sinks


def check_heads(model: str, layers: Mapping[int, int], heads: Sequence[Head]) -> None:
    """Check that a model has these heads.

    Args:
        model: what the message calls it.
        layers: heads of each of its attention layers.
        heads: `(layer, head)` pairs.

    Raises:
        ModelError: a head that is not there.
    """
    for layer, head in heads:
        if not 0 <= head < layers.get(layer, 0):
            raise ModelError(
                f"{model} has no head {layer}.{head}: it has {len(layers)} attention layers of "
                f"{max(layers.values())} heads"
            )
