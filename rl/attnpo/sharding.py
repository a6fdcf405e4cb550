"""Parameters spread over processes: may they be so, and how are forward passes made then?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


def sharding_reasons(args: Any, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Why parameters cannot be sharded as FSDP is set up, in the settings or by the launcher."""
    if not uses_fsdp(args, environment):
        return []
    settings = dict(args.fsdp_config or {}) if args.fsdp else {}
    given = settings.get("version", 2) if args.fsdp else environment.get("FSDP_VERSION", "1")
    version = str(given)
    loading = environment.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false").lower()
    reasons = [
        (args.device.type == "cpu", "FSDP on CPU: accelerate would silently run DDP instead"),
        (
            version != "2",
            f"FSDP version {version}: scoring is proven with version 2 (fsdp_version: 2)",
        ),
        (
            loading == "true",
            "fsdp_cpu_ram_efficient_loading: processes but the first would hold no weights when "
            "the capture proves itself (set it to false)",
        ),
    ]
    return [reason for applies, reason in reasons if applies]


def uses_fsdp(args: Any, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether FSDP is on, by the settings or by the launcher's environment."""
    return bool(args.fsdp) or environment.get("ACCELERATE_USE_FSDP", "").lower() == "true"


@dataclass(frozen=True)
class Passes:
    """Forward passes where parameters are spread over processes (FSDP2, DeepSpeed ZeRO-3).

    `wrapped` is the wrapped model, whose hooks must see the whole forward.
    """

    wrapped: Any
    device: Any

    @classmethod
    def of(cls, wrapped: Any, device: Any) -> Passes | None:
        """None where every process has all parameters."""
        from torch.distributed.tensor import DTensor

        sharded = any(isinstance(parameter, DTensor) for parameter in wrapped.parameters())
        return cls(wrapped, device) if sharded or zero3() else None

    def forward(self, **inputs: Any) -> Any:
        """One pass through the wrapped model."""
        return self.wrapped(**inputs, logits_to_keep=1)

    def most(self, needed: int) -> int:
        """The number of passes that the process with most to do needs: all must make as many."""
        import torch
        from accelerate.utils import gather

        return int(gather(torch.tensor([needed], device=self.device)).max())


@contextmanager
def whole_parameters(model: Any) -> Iterator[None]:
    """All parameters in every process, where DeepSpeed ZeRO-3 loads a part into each."""
    if not zero3():
        yield
        return
    from deepspeed.zero import GatheredParameters

    with GatheredParameters(list(model.parameters())):
        yield


def zero3() -> bool:
    """Whether DeepSpeed ZeRO-3 is on."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    return bool(is_deepspeed_zero3_enabled())


def compact_reason(args: Any) -> str | None:
    """Why these rollouts cannot be used with these settings; None where they can."""
    if args.use_vllm:
        return "vLLM samples"
    if uses_fsdp(args) or getattr(args, "deepspeed_plugin", None):
        return "the parameters are sharded"
    others = {"top_k": (0, None), "min_p": (None, 0), "repetition_penalty": (1.0,)}
    others["use_transformers_continuous_batching"] = (False,)
    changed = [name for name, values in others.items() if getattr(args, name) not in values]
    return f"{', '.join(changed)} set" if changed else None
