"""What one forward pass under the capture collects: masses, and the proof that they are real."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from probing.errors import ModelError
from probing.rows import Rows, answer_positions, chunk_rows

Head = tuple[int, int]  # (layer, head), both from 0

# Bytes of one chunk of rows: on CPU it should stay within the last-level cache.
CPU_CHUNK = 8 << 20
GPU_CHUNK = 256 << 20


class CapturePass:
    """What one forward pass collects: positions of the answer, masses, proofs."""

    def __init__(
        self,
        answer: Bool[Tensor, "batch token"],
        heads: Sequence[Head],
        *,
        chunk_bytes: int | None = None,
        early_exit: bool = False,
        verify: bool = False,
    ) -> None:
        self.heads = heads
        self.chunk_bytes = chunk_bytes
        self.early_exit = early_exit and bool(heads)
        self.verifying = verify
        self.found: dict[int, int] = {}
        self.differences: dict[int, float] = {}
        self.rows, self.valid = answer_positions(answer)
        self.chosen: dict[int, list[int]] = {}  # layer → places in `heads`
        for place, (layer, _) in enumerate(heads):
            self.chosen.setdefault(layer, []).append(place)
        self.masses: dict[int, Tensor] = {}
        self.shape = answer.shape

    def budget(self, like: Tensor) -> int:
        """Bytes that a chunk of rows may take."""
        return self.chunk_bytes or (CPU_CHUNK if like.device.type == "cpu" else GPU_CHUNK)

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

    def add(self, layer: int, rows: Rows) -> None:
        """Sum the answer's softmax rows of the chosen heads of this layer (2, 3)."""
        places = self.chosen.get(layer)
        if not places:
            return
        heads = self._heads(layer, places, rows.query.device)
        mass = rows.query.new_zeros(
            (self.shape[0], len(places), self.shape[1]), dtype=torch.float32
        )
        for probs, _, valid, last in self._chunks(rows, heads, len(places)):
            if not bool(valid.all()):
                probs = probs.masked_fill(~valid[:, None, :, None], 0.0)
            mass[..., : last + 1] += probs.sum(dim=2)
        self.masses[layer] = mass

    def verify(self, layer: int, rows: Rows, value: Tensor, output: Tensor) -> None:
        """Hold rows × values against the kernel's output for the same rows."""
        if not self.verifying:
            return
        groups = rows.query.shape[1] // value.shape[1]
        value = value.repeat_interleave(groups, dim=1).float()
        batch = torch.arange(self.shape[0], device=output.device)[:, None]
        ours, theirs = [], []
        for probs, at, valid, last in self._chunks(rows, None, rows.query.shape[1]):
            mixed = (probs @ value[:, :, : last + 1]).transpose(1, 2)
            ours.append(mixed[valid])
            theirs.append(output[batch, at][valid].reshape(mixed[valid].shape).float())
        self.differences[layer] = relative(torch.cat(ours), torch.cat(theirs))

    def mass(self) -> Tensor:
        """The masses of all layers in the order of `heads`."""
        missing = sorted(set(self.chosen) - set(self.masses))
        if missing:
            raise ModelError(f"layers {missing} were not reached in this pass")
        first = next(iter(self.masses.values()))
        out = first.new_empty((first.shape[0], len(self.heads), first.shape[2]))
        for layer, places in self.chosen.items():
            out[:, places] = self.masses[layer].to(out.device)
        return out

    def _heads(self, layer: int, places: list[int], device: torch.device) -> Tensor | None:
        heads = [self.heads[place][1] for place in places]
        if heads == list(range(self.found[layer])):
            return None  # all, in order: no copy of queries and keys
        return torch.tensor(heads, device=device)

    def _chunks(
        self, rows: Rows, heads: Tensor | None, n_heads: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """Softmax rows with their positions, validity and last key, a chunk at a time."""
        if not self.rows.shape[1]:
            return
        budget = self.budget(rows.query)
        device = rows.query.device
        size = chunk_rows(budget, self.shape[0] * n_heads * self.shape[1])
        for at, valid in zip(self.rows.split(size, 1), self.valid.split(size, 1), strict=True):
            last = int(at.max())
            at = at.to(device)
            yield rows.chunk(heads, at, last), at, valid.to(device), last


def relative(a: Tensor, b: Tensor) -> float:
    """max |a − b| / max |b|, in float32; infinite where either holds something not a number."""
    a, b = a.float(), b.float()
    difference = (a - b).abs().max() / b.abs().max().clamp_min(1e-30)
    return float(difference.nan_to_num(torch.inf))
