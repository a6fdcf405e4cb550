"""The answer's attention mass on a GPU in half precision, without a row in memory.

The float32 rows of `probing.attention.rows` go through a GPU's memory half a dozen times: products,
scaling, mask, softmax, sum. Two kernels (`probing.attention.kernels`) keep them on the chip:
1. For blocks of the answer's rows: log Σ exp of each row over the keys that it sees, in spans of
   keys, which are then put together.
2. For blocks of keys: Σ over the rows of exp(score − log Σ exp) is the mass.
The products are made twice, of the same half-precision queries and keys, summed in float32 as in
the rows; queries and keys are read where they lie.

`fused_rows` says which calls can take this way. The first of a layer that takes it is held against
the float32 rows, and again the first of several blocks, and of several spans (`FusedMasses`).
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import e, log2
from subprocess import SubprocessError
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.attention.rows import Rows
from probing.models.front import AttentionCall, Workspace

WIDEST = 256  # numbers of a head
SPAN = 4096  # keys of a span, whole blocks
REACHES = (128, SPAN)  # tokens up to which a pass has one block of keys; one span
# Largest difference that is accepted. The products of half-precision numbers are the same in both
# ways; the order of sums in float32 is not, and a score may be a small difference of large ones.
FUSED_TOLERANCE = {torch.bfloat16: 5e-3, torch.float16: 5e-3}


class Blocks(NamedTuple):
    """How the kernels cut their work; a block has tokens of one head."""

    held: int = 128  # kept in place: rows of the answer for (1), keys for (2)
    passed: int = 64  # read at a time: keys for (1), rows for (2)
    warps: int = 8
    stages: int = 3  # blocks on their way from memory
    span: int = SPAN


# By the numbers of a head, up to the next power of two. What is held and on its way must fit the
# shared memory of a multiprocessor: 80 KB (128) to 96 KB (256) of the 99 KB that the smallest have.
# Those of 128 are the fastest of thirteen on an H200 (docs/LOG.md); the others are not tuned.
BLOCKS = dict.fromkeys((16, 32, 64), Blocks(warps=4))
BLOCKS |= {128: Blocks(stages=2), 256: Blocks(64, 64, 4, 2)}


@dataclass(eq=False)
class AnswerRows:
    """Where the answers of a batch stand, as the kernels read it; made once a pass and device.

    Args:
        answers: positions of the answer of each trace, ascending; on the CPU.
        tokens: of the batch.
    """

    answers: Sequence[Int[Tensor, "_"]]
    tokens: int
    _tables: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    _heads: dict[tuple[torch.device, tuple[int, ...]], Tensor] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Tokens of the longest answer."""
        return max(map(len, self.answers), default=0)

    def tables(
        self, device: torch.device
    ) -> tuple[Int[Tensor, "batch width"], Int[Tensor, "batch"], Int[Tensor, "batch token+1"]]:
        """Positions, padded on the right; how many; how many stand before each token."""
        if device not in self._tables:
            positions = torch.zeros((len(self.answers), self.width), dtype=torch.int32)
            before = torch.zeros((len(self.answers), self.tokens + 1), dtype=torch.int32)
            for trace, at in enumerate(self.answers):
                positions[trace, : len(at)] = at
                before[trace, at + 1] = 1
            before = before.cumsum(1, dtype=torch.int32)
            counts = before[:, -1].contiguous()
            self._tables[device] = (positions.to(device), counts.to(device), before.to(device))
        return self._tables[device]

    def heads(self, device: torch.device, chosen: Sequence[int]) -> Int[Tensor, "head"]:
        """The chosen heads of a layer; layers with the same ones share them."""
        key = (device, tuple(chosen))
        if key not in self._heads:
            self._heads[key] = torch.tensor(chosen, dtype=torch.int32, device=device)
        return self._heads[key]


def fused_rows(call: AttentionCall) -> Rows | None:
    """The settings of a layer's attention where the kernels can do it; None: its rows are computed.

    They can where all of this holds:
    - `probing.models.front.fusible` says so of the queries, of whoever asks.
    - The attention is a causal softmax over the keys, in a window perhaps, with a mask of tokens
      (batch, token) or none: no soft-cap, sinks, position bias, nor a mask by query and key.
    - A head has a multiple of 16 numbers, at most 256.

    Raises:
        ModelError: as `Rows` does.
    """
    rows = Rows(call, None, Workspace())
    plain = rows.softcap is None and rows.bias is None and rows.sinks is None
    masked = rows.mask is not None and rows.mask.ndim != 2
    dim = call.query.shape[-1]
    fits = dim % 16 == 0 and dim <= WIDEST and rows.offset == 0
    return rows if plain and fits and not masked else None


def fused_mass(
    call: AttentionCall,
    rows: Rows,
    heads: Sequence[int],
    answers: AnswerRows,
    blocks: Blocks | None = None,
) -> Float[Tensor, "batch head token"]:
    """Σ_{m ∈ F} a_{m→n} of each trace, for the chosen heads, in float32: both kernels.

    Args:
        call: the arguments of a layer.
        rows: what `fused_rows` gives for it.
        heads: which query heads.
        answers: of the batch.
        blocks: how the work is cut; by default as `BLOCKS` says.
    """
    from probing.attention.kernels import sum_columns, sum_rows

    query, key = call.query, call.key
    (batch, _, tokens, dim), device = query.shape, query.device
    width, wide = answers.width, max(16, 1 << (dim - 1).bit_length())
    held, passed, warps, stages, span = blocks or BLOCKS[wide]
    shape = (batch, len(heads), tokens)
    if not width:
        return torch.zeros(shape, device=device)
    positions, counts, before = answers.tables(device)
    mask = counts[:, None] if rows.mask is None else rows.mask  # not read where there is none
    mask = mask.view(torch.uint8) if mask.dtype == torch.bool else mask
    own, spans = batch * len(heads), -(-tokens // span)
    sizes = (len(heads), width, tokens, rows.group, rows.window or 0, rows.scaling * log2(e))
    given = (query, key, mask, answers.heads(device, heads), positions, counts, before)
    numbers = (*query.stride(), *key.stride(), *mask.stride(), *sizes)
    kinds = {"DIM": dim, "WIDE": wide, "num_warps": warps, "num_stages": stages}
    kinds |= {"WINDOWED": rows.window is not None, "MASKED": rows.mask is not None, "SPAN": span}
    parts, mass = (torch.empty(size, device=device) for size in ((spans, own, width), shape))
    with torch.cuda.device_of(query):  # Triton launches on the current one
        launch = sum_rows[(-(-width // held), spans, own)]
        launch(*given, parts, *numbers, **kinds, ROWS=held, KEYS=passed)
        sums = parts[0] if spans == 1 else parts.logsumexp(0)
        launch = sum_columns[(-(-tokens // held), own)]
        launch(*given, sums, mass, *numbers, **kinds, ROWS=passed, KEYS=held)
    return mass


@dataclass(eq=False)
class FusedMasses:
    """Masses by the kernels, in the layers where they have proven themselves.

    The first call of a layer that they can do, the first of several blocks and that of several
    spans of keys are held against the float32 rows. Where they do not hold, or cannot be built
    here, the rows stay, in all layers, and `refused` says why.
    """

    refused: str | None = None
    # (layer, how many of `REACHES` are passed, with a mask) → the largest difference from the rows
    differences: dict[tuple[int, int, bool], float] = field(default_factory=dict)

    @property
    def layers(self) -> frozenset[int]:
        """The layers that were proven with their masses from the kernels."""
        return frozenset() if self.refused else frozenset(layer for layer, *_ in self.differences)

    def mass(
        self,
        layer: int,
        call: AttentionCall,
        heads: Sequence[int],
        answers: AnswerRows,
        by_rows: Callable[[], Tensor],
    ) -> Float[Tensor, "batch head token"]:
        """Masses of a layer, by the kernels or by the rows.

        Args:
            layer: its number.
            call: its arguments.
            heads: which query heads.
            answers: of the batch.
            by_rows: gives the same masses from float32 rows.
        """
        rows = None if self.refused else fused_rows(call)
        if rows is None:
            return by_rows()
        kind = (layer, bisect_left(REACHES, answers.tokens), rows.mask is not None)
        if kind in self.differences or not answers.width:
            return fused_mass(call, rows, heads, answers)
        expected = by_rows()
        found = self._built(lambda: fused_mass(call, rows, heads, answers))
        if found is None or not expected.isfinite().all():  # the model's numbers prove nothing
            return expected
        difference = mass_difference(found, expected)
        if not difference <= FUSED_TOLERANCE[call.query.dtype]:
            self.refused = f"layer {layer}: they differ by {difference:.2g} from the rows"
            return expected
        self.differences[kind] = difference
        return found

    def _built(self, work: Callable[[], Tensor]) -> Tensor | None:
        """What the kernels give; None where they cannot be compiled or loaded on this machine."""
        try:
            return work()
        except torch.OutOfMemoryError:
            raise
        except _build_errors() as error:
            self.refused = f"the kernels cannot be built here: {type(error).__name__}: {error}"
        return None


def _build_errors() -> tuple[type[Exception], ...]:
    """What is raised where a kernel cannot be built: no compiler, too little shared memory, …"""
    triton: Any = sys.modules.get("triton.errors")  # loaded with it, if at all
    own = (triton.TritonError,) if triton else ()
    return (ImportError, RuntimeError, OSError, SubprocessError, *own)


def mass_difference(
    found: Float[Tensor, "batch head token"], expected: Float[Tensor, "batch head token"]
) -> float:
    """max |found − expected| / (expected + its mean over the tokens): relative to a token's mass,
    or to that of a token on which a head looks as on any other. NaN where either is not a number.

    Example:
        >>> mass_difference(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[3.0, 1.0]]]))
        0.3333333432674408
    """
    scale = expected + expected.mean(-1, keepdim=True)
    return float(((found - expected).abs() / scale.clamp_min(1e-30)).max())
