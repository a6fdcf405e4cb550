"""Forward passes of the policy: over rows sorted by length and trimmed, and where parameters are
spread over processes (may they be so, and how are passes made then?).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad

from probing.errors import ConfigError
from probing.models.lengths import Lengths
from rl.sampling.rollouts import unheeded

# Log-probabilities and entropies (row, token), and a scalar loss; what is not asked for is None.
Logps = tuple[Tensor, Tensor | None, Tensor | None]


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
    changed = unheeded(args)
    return f"{', '.join(changed)} set" if changed else None


def in_trimmed_rows(
    forward: Callable[[list[int], Tensor, Tensor, int], Logps],
    ids: Int[Tensor, "row token"],
    mask: Int[Tensor, "row token"],
    keep: int,
    rows: int,
) -> Logps:
    """What `forward` gives for all rows, which it gets a few at a time: sorted by length, and
    without the columns that are padding in each of them.

    Args:
        forward: (numbers of the rows, their ids, their mask, how many columns from the right to
            keep) → log-probabilities and entropies of these columns.
        ids: prompts padded on the left, responses on the right.
        mask: 1 for real tokens.
        keep: columns of the responses.
        rows: at most so many at a time.

    Returns:
        Both (row, keep), in the order of `ids`, 0 where a column was cut; the mean of the scalars.
    """
    order = mask.sum(dim=1).argsort(descending=True, stable=True)
    parts: list[Logps] = []
    for chunk in order.split(rows):
        left, right = margins(mask[chunk], keep)
        columns = slice(left, ids.shape[1] - right)
        trimmed = ids[chunk, columns], mask[chunk, columns], keep - right
        logps, entropies, aux = forward(chunk.tolist(), *trimmed)
        entropies = None if entropies is None else pad(entropies, (0, right))
        parts.append((pad(logps, (0, right)), entropies, aux))
    back = order.argsort()
    every_logps, every_entropies, every_aux = zip(*parts, strict=True)
    return (
        torch.cat(every_logps)[back],
        None if every_entropies[0] is None else torch.cat(every_entropies)[back],
        None if every_aux[0] is None else torch.stack(every_aux).mean(),
    )


def margins(mask: Int[Tensor, "row token"], keep: int) -> tuple[int, int]:
    """Columns without a token in any row: on the left of the prompts, on the right at the end.

    At least one of the `keep` columns of the responses stays: there must be something to compute.
    """
    used = mask.any(dim=0).nonzero()[:, 0]
    if not len(used):
        return 0, 0
    right = mask.shape[1] - 1 - int(used[-1])
    return int(used[0]), min(right, keep - 1)


def refuse_longer(lengths: Lengths, tokens: int) -> None:
    """Refuse passes of the policy that reach beyond a length at which its attention changes.

    The rows of such a pass would change each other's log-probabilities: its width, padding
    included, decides for all of them.

    Args:
        lengths: of the policy.
        tokens: width of the pass.

    Raises:
        ConfigError: it is too wide.
    """
    if lengths and tokens > lengths.first:
        raise ConfigError(
            f"prompts and responses are up to {tokens} tokens wide, and the model's RoPE changes "
            f"beyond {lengths.first}: a response's log-probability would depend on what it is "
            "batched with. Lower max_completion_length (and the length of prompts)"
        )
