"""Standing in front of a model's own attention function, in the registry of transformers.

No class is patched. While a `with` block runs, a local entry of the registry overrides the stock
one under the same name (sdpa, flash_attention_2, eager). The name stays the model's own, and with
it the mask that transformers makes for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probing.errors import ModelError
from probing.rows import AttentionCall, eager_of

if TYPE_CHECKING:
    from typing_extensions import Self

Attention = Callable[..., tuple[Tensor, Tensor | None]]


def trunk_of(model: torch.nn.Module) -> torch.nn.Module:
    """The transformer without its language-model head; through a PEFT wrapper as well."""
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    trunk: torch.nn.Module = getattr(unwrap(), "base_model", model)
    return trunk


class InFront(ABC):
    """What stands in front of the attention function of a model, and of no other model's.

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
        """Stand in front."""
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


def _implementations(trunk: torch.nn.Module) -> set[str]:
    """Names of the attention functions that the model and its parts are set to use."""
    configs = [getattr(module, "config", None) for module in trunk.modules()]
    names = {getattr(config, "_attn_implementation", None) for config in configs if config}
    names.discard(None)
    if "flex_attention" in names:
        raise ModelError(
            "flex_attention keeps its mask in a form that has no rows; load the model with "
            'attn_implementation="sdpa" (or "eager")'
        )
    return {str(name) for name in names}
