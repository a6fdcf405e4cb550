"""What one forward pass of a capture collects: positions of the answer, masses, proofs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attention.rows import Difference, Rows, Workspace, relative, rows_against_kernel
from probing.attention.split import SplitOutput, part_of, split_at, split_start
from probing.choices import Head
from probing.errors import ModelError
from probing.models.front import AttentionCall


class CapturePass:
    """What one forward pass collects: positions of the answer, masses, proofs.

    Args:
        answer: the answer tokens of each trace.
        heads: `(layer, head)` in the order of the result; none: only learn the layers.
        workspace: where chunks are computed.
        early_exit: stop after the deepest layer needed.
        verify: hold each layer's rows against the kernel's output.
        split: layers whose output may be split, see `probing.attention.split`.
    """

    def __init__(
        self,
        answer: Bool[Tensor, "batch token"],
        heads: Sequence[Head],
        workspace: Workspace | None = None,
        *,
        early_exit: bool = False,
        verify: bool = False,
        split: frozenset[int] = frozenset(),
    ) -> None:
        self.heads = heads
        self.workspace = workspace or Workspace()
        self.early_exit = early_exit and bool(heads)
        self.verifying = verify
        self.layers: dict[int, int] = {}  # those entered, and the number of their heads
        self.differences: dict[int, Difference] = {}
        self.shape = answer.shape
        # Positions of the answer of each trace; planned on the CPU, whatever the device.
        self.rows: list[Int[Tensor, "row"]] = [row.nonzero()[:, 0] for row in answer.cpu()]
        self.chosen: dict[int, list[int]] = {}  # layer → places in `heads`
        for place, (layer, _) in enumerate(heads):
            self.chosen.setdefault(layer, []).append(place)
        self.masses: dict[int, Tensor] = {}
        self.split = split
        self.start = split_start(self.rows, answer.shape[1]) if split else None
        self.cuts: frozenset[int] = frozenset()  # layers that were split

    def enter_layer(self, layer: int, query: Tensor, key: Tensor) -> None:
        """Note a layer and its heads.

        Raises:
            ModelError: a second call in the same layer, for which the layer × head table has no
                place; or keys that are not the tokens (compressed ones, or those of a cache).
        """
        if layer in self.layers:
            raise ModelError(
                f"layer {layer} calls its attention more than once in a pass (cross-attention or "
                "shared layers): this family cannot be probed"
            )
        if query.shape[2] != key.shape[2]:
            raise ModelError(
                f"layer {layer} has {query.shape[2]} queries and {key.shape[2]} keys: the capture "
                "needs a key for every token of the sequence, in one pass and without a cache"
            )
        self.layers[layer] = query.shape[1]

    def finished(self, layer: int) -> bool:
        """Whether no later layer is needed."""
        return self.early_exit and layer >= max(self.chosen)

    def cut_of(self, layer: int, call: AttentionCall) -> int | None:
        """The query from which on this layer's output is split; None: it is not."""
        if layer not in self.split:
            return None
        return split_at(call, self.start, len(self.chosen.get(layer, ())))

    def add(self, layer: int, call: AttentionCall, split: SplitOutput | None = None) -> None:
        """Sum the answer's softmax rows of the chosen heads of this layer; fill its output."""
        places = self.chosen.get(layer)
        if not places:
            return
        heads = [self.heads[place][1] for place in places]
        # All heads in order need no copy of queries and keys.
        everything = heads == list(range(self.layers[layer]))
        rows = Rows(call, None if everything or split else heads, self.workspace)
        (batch, tokens), begin = self.shape, split.cut if split else 0
        mass = torch.zeros((batch, rows.key.shape[1], rows.group, tokens), device=rows.query.device)
        for trace, answer in enumerate(self.rows):
            at = torch.arange(begin, tokens) if split else answer
            if not len(at):
                continue
            for chunk in rows.chunks(trace, at):  # 2
                wanted = slice(None)
                if split:
                    split.add(trace, chunk)
                    wanted = part_of(answer, begin + chunk.rows.start, begin + chunk.rows.stop)
                probs = chunk.probs[:, wanted]
                mass[trace, chunk.kv, :, : probs.shape[-1]] += probs.sum(dim=1)  # 3
        self.masses[layer] = mass.flatten(1, 2)
        if split:
            self.cuts |= {layer}
            if not everything:
                self.masses[layer] = self.masses[layer][:, heads]

    def verify(
        self,
        layer: int,
        call: AttentionCall,
        value: Tensor,
        output: Tensor,
        stock: Callable[..., Any] | None,
        split: SplitOutput | None = None,
    ) -> None:
        """Hold rows × values of all heads against the kernel; see `rows_against_kernel`. A split
        output is held against the kernel's whole one."""
        if not self.verifying:
            return
        found = rows_against_kernel(layer, call, value, output, stock, self.rows, self.workspace)
        if split is not None:
            found = found._replace(rough=max(found.rough, relative(split.output, output)))
        self.differences[layer] = found

    def mass(self) -> Float[Tensor, "batch head token"]:
        """The masses of all layers in the order of `heads`.

        Raises:
            ModelError: a layer was not reached.
        """
        missing = sorted(set(self.chosen) - set(self.masses))
        if missing:
            raise ModelError(f"layers {missing} were not reached in this pass")
        first = next(iter(self.masses.values()))
        out = first.new_empty((first.shape[0], len(self.heads), first.shape[2]))
        for layer, places in self.chosen.items():
            out[:, places] = self.masses[layer].to(out.device)
        return out
