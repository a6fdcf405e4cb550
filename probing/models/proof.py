"""What the proof of a capture runs on, and how far two outputs of a layer may be apart.

Two differences are taken, relative to the largest output of a layer:
- `rough`: against the output that the model goes on with, in the model's precision. Half precision
  rounds values and output, so that much is allowed.
- `exact`: against the model's own kernel on float32 copies of queries, keys and values of the
  proof's rows, with their mask. Rounding hides nothing here. In float32 the two are one. The flash
  kernels take no float32: the eager one of the same family stands for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from probing.errors import ModelError
from probing.models.front import trunk_of
from probing.models.lengths import in_eval

PROOF_TOKENS = 40
# Largest relative differences that the proof accepts.
PROOF_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
EXACT_TOLERANCE = 1e-3


class Difference(NamedTuple):
    """How far the rows of a layer are from the kernel; see above."""

    rough: float
    exact: float
    sinks: bool  # whether the call has attention sinks, which a kernel may leave out

    def holds(self, dtype: torch.dtype) -> bool:
        """Whether both are within what is allowed."""
        return all(found <= allowed for found, allowed in self._limits(dtype))

    def check(self, name: str, layer: int, dtype: torch.dtype) -> None:
        """Raise ModelError where it is too large."""
        for found, allowed in self._limits(dtype):
            if not found <= allowed:
                why = (
                    "Its attention does more than a masked softmax over keys; kfh cannot probe it."
                )
                if self.sinks:
                    why = (
                        "It gives its kernel attention sinks, which sdpa leaves out: load it with "
                        'attn_implementation="eager".'
                    )
                raise ModelError(
                    f"{name}: the attention captured in layer {layer} is not the one that the "
                    f"model used (relative difference {found:.2g}, {allowed:.0e} allowed). {why}"
                )

    def _limits(self, dtype: torch.dtype) -> tuple[tuple[float, float], ...]:
        rough = PROOF_TOLERANCE.get(dtype, 1e-4)
        return (self.exact, EXACT_TOLERANCE), (self.rough, rough)


def proof_input(vocabulary: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Two random sequences, the second padded on the left; the second half of each answers."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (2, PROOF_TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, : PROOF_TOKENS // 4] = 0
    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[:, PROOF_TOKENS // 2 :] = True
    return ids.to(device), answer.to(device), mask.to(device)


def relative(a: Tensor, b: Tensor) -> float:
    """max |a − b| / max |b|, in float32; infinite where either holds something not a number."""
    a, b = a.float(), b.float()
    difference = (a - b).abs().max() / b.abs().max().clamp_min(1e-30)
    return float(difference.nan_to_num(torch.inf))


def output_head(model: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """What makes logits of a model's last hidden state: its output embedding, shown to be all.

    So that the logits of some tokens can be had of a pass through the trunk alone.

    Raises:
        ModelError: it has none, or does more (a soft-cap, a scale).
    """
    name = type(model).__name__
    head: Callable[[Tensor], Tensor] | None
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise ModelError(f"{name} has no output embedding: the chances of its tokens are not known")
    trunk = trunk_of(model)
    ids, _, _ = proof_input(_vocabulary(head), next(trunk.parameters()).device)
    with torch.no_grad(), in_eval(model):
        own = model(input_ids=ids[:1], use_cache=False).logits
        ours = head(trunk(input_ids=ids[:1], use_cache=False)[0])
    if not relative(ours, own) <= PROOF_TOLERANCE.get(own.dtype, 1e-4):
        raise ModelError(
            f"{name} does more to its logits than the output embedding (a soft-cap, a scale): the "
            "chances of its tokens are not known from its last hidden state"
        )
    return head


def _vocabulary(head: Callable[[Tensor], Tensor]) -> int:
    weight: Tensor = head.weight  # type: ignore[attr-defined]
    return len(weight)
