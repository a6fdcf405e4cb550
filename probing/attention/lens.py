"""The same attention mass through TransformerLens: an independent witness, and its users' door.

`TransformerBridge` computes each layer's full pattern; a hook keeps the answer rows and lets the
rest go. It needs memory for T × T a layer, which `probing.attention.capture` does not.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.choices import Head
from probing.errors import ModelError
from probing.models.lengths import Lengths, fresh_rope


def open_bridge(model: torch.nn.Module) -> Any:
    """The TransformerBridge of a model, which is rebuilt in place.

    Raises:
        ModelError: TransformerLens does not know the architecture.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    name, config = type(model).__name__, getattr(model, "config", None)
    try:
        return build_bridge_from_module(model, name, hf_config=config)
    except (KeyError, ValueError, NotImplementedError) as error:
        raise ModelError(f"TransformerLens has no bridge for {name}: {error}") from error


class LensCapture:
    """Captures the attention mass of the answer by hooks on `hook_pattern`.

    Args:
        model: a loaded transformers model. TransformerLens rebuilds it in place: do not use it
            for anything else afterwards.

    Raises:
        ModelError: TransformerLens does not know the architecture.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.lengths = Lengths.of(model)  # which traces may share a pass
        self.bridge = open_bridge(model)
        self.dtype = next(self.bridge.parameters()).dtype
        layers, heads = int(self.bridge.cfg.n_layers), int(self.bridge.cfg.n_heads)
        self.heads: list[Head] = [(layer, head) for layer in range(layers) for head in range(heads)]
        self.layers = dict.fromkeys(range(layers), heads)

    def __enter__(self) -> LensCapture:
        """Nothing to register: hooks live for one pass."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to undo."""

    @torch.no_grad()
    def __call__(
        self, input_ids: Int[Tensor, "batch token"], answer: Bool[Tensor, "batch token"]
    ) -> Float[Tensor, "batch head token"]:
        """As `AttentionCapture.__call__`, for sequences padded on the right."""
        masses: dict[int, Tensor] = {}

        def keep(pattern: Float[Tensor, "batch head query key"], hook: Any) -> None:
            layer = int(hook.name.split(".")[1])
            rows = pattern.float().masked_fill(~answer[:, None, :, None].to(pattern.device), 0)
            masses[layer] = rows.sum(dim=2)

        hooks = [(f"blocks.{layer}.attn.hook_pattern", keep) for layer in self.layers]
        fresh_rope(self.bridge)
        self.bridge.run_with_hooks(input_ids, fwd_hooks=hooks, return_type=None)
        missing = sorted(set(self.layers) - set(masses))
        if missing:
            raise ModelError(f"TransformerLens fired no hook_pattern in layers {missing}")
        return torch.cat([masses[layer] for layer in sorted(masses)], dim=1)
