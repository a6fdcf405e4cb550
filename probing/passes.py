"""What one forward pass under the capture collects: masses, and the proof that they are real."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.errors import ModelError
from probing.rows import AttentionCall, Rows, Workspace

Head = tuple[int, int]  # (layer, head), both from 0


class CapturePass:
    """What one forward pass collects: positions of the answer, masses, proofs.

    Args:
        answer: the answer tokens of each trace.
        heads: `(layer, head)` in the order of the result; none: only learn the layers.
        workspace: where chunks are computed.
        early_exit: stop after the deepest layer needed.
        verify: hold each layer's rows against the kernel's output.
    """

    def __init__(
        self,
        answer: Bool[Tensor, "batch token"],
        heads: Sequence[Head],
        workspace: Workspace | None = None,
        *,
        early_exit: bool = False,
        verify: bool = False,
    ) -> None:
        self.heads = heads
        self.workspace = workspace or Workspace()
        self.early_exit = early_exit and bool(heads)
        self.verifying = verify
        self.found: dict[int, int] = {}  # layer → number of its heads
        self.differences: dict[int, float] = {}
        self.shape = answer.shape
        # Positions of the answer of each trace; planned on the CPU, whatever the device.
        self.rows: list[Int[Tensor, "row"]] = [row.nonzero()[:, 0] for row in answer.cpu()]
        self.chosen: dict[int, list[int]] = {}  # layer → places in `heads`
        for place, (layer, _) in enumerate(heads):
            self.chosen.setdefault(layer, []).append(place)
        self.masses: dict[int, Tensor] = {}

    def enter_layer(self, layer: int, query: Tensor, key: Tensor) -> None:
        """Note a layer; a second call within one pass has no place in the layer × head table."""
        if layer in self.found:
            raise ModelError(
                f"layer {layer} calls its attention more than once in a pass (cross-attention or "
                "shared layers): this family cannot be probed"
            )
        if query.shape[2] != key.shape[2]:
            raise ModelError("the capture needs the whole sequence in one pass, without a cache")
        self.found[layer] = query.shape[1]

    def finished(self, layer: int) -> bool:
        """Whether no later layer is needed."""
        return self.early_exit and layer >= max(self.chosen)

    def add(self, layer: int, call: AttentionCall) -> None:
        """Sum the answer's softmax rows of the chosen heads of this layer."""
        places = self.chosen.get(layer)
        if not places:
            return
        heads = [self.heads[place][1] for place in places]
        # All heads in order need no copy of queries and keys.
        everything = heads == list(range(self.found[layer]))
        rows = Rows(call, None if everything else heads, self.workspace)
        device, (batch, tokens) = rows.query.device, self.shape
        mass = torch.zeros((batch, rows.key.shape[1], rows.group, tokens), device=device)
        for trace, at in enumerate(self.rows):
            if not len(at):
                continue
            for chunk in rows.chunks(trace, at.to(device), int(at[-1])):
                mass[trace, chunk.kv, :, : chunk.probs.shape[-1]] += chunk.probs.sum(dim=1)
        self.masses[layer] = mass.flatten(1, 2)

    def verify(self, layer: int, call: AttentionCall, value: Tensor, output: Tensor) -> None:
        """Hold rows × values of all heads against the kernel's output for the same rows.

        Args:
            layer: its number.
            call: its arguments.
            value: (batch, kv, token, dim).
            output: (batch, token, head, dim), the kernel's.
        """
        if not self.verifying:
            return
        rows = Rows(call, None, self.workspace)
        ours, theirs = [], []
        for trace, at in enumerate(self.rows):
            if not len(at):
                continue
            there = at.to(output.device)
            kernel = output[trace, there].unflatten(1, (-1, rows.group)).transpose(0, 1)
            for chunk in rows.chunks(trace, there, int(at[-1])):
                probs = chunk.probs.flatten(1, 2)
                values = value[trace, chunk.kv, : probs.shape[-1]].float()
                ours.append((probs @ values).flatten())
                theirs.append(kernel[chunk.kv, chunk.rows].float().flatten())
        self.differences[layer] = relative(torch.cat(ours), torch.cat(theirs))

    def mass(self) -> Float[Tensor, "batch head token"]:
        """The masses of all layers in the order of `heads`."""
        missing = sorted(set(self.chosen) - set(self.masses))
        if missing:
            raise ModelError(f"layers {missing} were not reached in this pass")
        first = next(iter(self.masses.values()))
        out = first.new_empty((first.shape[0], len(self.heads), first.shape[2]))
        for layer, places in self.chosen.items():
            out[:, places] = self.masses[layer].to(out.device)
        return out


def relative(a: Tensor, b: Tensor) -> float:
    """max |a − b| / max |b|, in float32; infinite where either holds something not a number."""
    a, b = a.float(), b.float()
    difference = (a - b).abs().max() / b.abs().max().clamp_min(1e-30)
    return float(difference.nan_to_num(torch.inf))
