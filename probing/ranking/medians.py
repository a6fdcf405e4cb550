"""Medians over the steps of all traces, by head: exact, in bounded memory.

1. As scores go by, ratios S / S_base are counted in classes: 16 to each power of two.
2. The middle ratios lie in known classes now; as scores go by once more, the few ratios of these
   are kept, and their middle is the median. Where they are too many, heads take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from probing.ranking.metrics import RankedTrace

CLASSES = 1 << 13  # sign, 8 bits of exponent, 4 of fraction of a float32
KEPT = 1 << 26  # ratios that are kept at once: 256 MB


def contrast(
    traces: Sequence[RankedTrace],
) -> tuple[Float[np.ndarray, "head"], Float[np.ndarray, "head"]]:
    """Median S / S_base over the essential and over the redundant steps of all traces, by head."""
    counted = Contrast()
    for trace in traces:
        counted.add(trace)
    parts = counted.parts()
    for part in parts:
        part.collect(traces)
    return medians(parts)


class Contrast:
    """Counts of S / S_base by class, head and label; see the top of this module."""

    def __init__(self) -> None:
        self.counts: Int[np.ndarray, "label head class"] = np.zeros((2, 0, CLASSES), np.uint32)

    def add(self, trace: RankedTrace) -> None:
        """Count a trace's steps."""
        n_heads = len(trace.scores)
        if not self.counts.shape[1]:
            self.counts = np.zeros((2, n_heads, CLASSES), np.uint32)
        for counts, ratios in zip(self.counts, _ratios(trace), strict=True):
            flat = classes(ratios) + np.arange(n_heads)[:, None] * CLASSES
            np.add.at(counts.reshape(-1), flat.reshape(-1), np.uint32(1))

    def parts(self, kept: int = KEPT) -> list[Part]:
        """The heads in runs, of each of which the ratios of the middle classes can be kept.

        Args:
            kept: ratios at once; a single head may have more.
        """
        middles = [_Middle.of(counts) for counts in self.counts]
        sizes = np.sum([middle.sizes for middle in middles], axis=0)
        ends, held = [0], 0
        for head, size in enumerate(sizes):
            if held and held + size > kept:
                ends.append(head)
                held = 0
            held += int(size)
        ends.append(len(sizes))
        runs = [slice(start, end) for start, end in pairwise(ends)]
        return [Part(heads, [middle[heads] for middle in middles]) for heads in runs]


class Part:
    """The ratios of the middle classes of a run of heads, of the two labels."""

    def __init__(self, heads: slice, middles: list[_Middle]) -> None:
        self.heads, self.middles = heads, middles

    def add(self, trace: RankedTrace) -> None:
        """Keep what a trace has of them."""
        for middle, ratios in zip(self.middles, _ratios(trace, self.heads), strict=True):
            middle.add(ratios)

    def collect(self, traces: Iterable[RankedTrace]) -> None:
        """`add` for all traces."""
        for trace in traces:
            self.add(trace)


def medians(parts: Sequence[Part]) -> tuple[Float[np.ndarray, "head"], Float[np.ndarray, "head"]]:
    """The medians of all heads over essential and over redundant steps, from parts that are full.

    Args:
        parts: of `Contrast.parts`, after all traces that were counted.
    """
    essential, redundant = zip(*([m.median() for m in part.middles] for part in parts), strict=True)
    return np.concatenate(essential), np.concatenate(redundant)


class _Middle:
    """The one or two middle ones of each head's ratios: which classes they are in, and who is."""

    def __init__(
        self,
        lower: Int[np.ndarray, "head"],
        upper: Int[np.ndarray, "head"],
        below: Int[np.ndarray, "head"],
        sizes: Int[np.ndarray, "head"],
        total: int,
    ) -> None:
        """Args: the classes of both; ratios below them, in them, and in all."""
        self.lower, self.upper, self.below, self.sizes = lower, upper, below, sizes
        self.total = total
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.filled = self.starts[:-1].copy()
        self.kept = np.empty(0)

    @classmethod
    def of(cls, counts: Int[np.ndarray, "head class"]) -> _Middle:
        upto = np.cumsum(counts, axis=1, dtype=np.int64)
        total = int(upto[0, -1])  # every head has the same steps
        lower, upper = ((upto > k).argmax(axis=1) for k in ((total - 1) // 2, total // 2))
        heads = np.arange(len(counts))
        of_lower = counts[heads, lower].astype(np.int64)
        sizes = of_lower + np.where(upper > lower, counts[heads, upper], 0)
        return cls(lower, upper, upto[heads, lower] - of_lower, sizes, total)

    def __getitem__(self, heads: slice) -> _Middle:
        lower, upper, below, sizes = (
            each[heads] for each in (self.lower, self.upper, self.below, self.sizes)
        )
        return _Middle(lower, upper, below, sizes, self.total)

    def add(self, ratios: Float[np.ndarray, "head step"]) -> None:
        if not self.kept.size:
            self.kept = np.empty(self.starts[-1], dtype=ratios.dtype)
        of = classes(ratios)
        inside = (of == self.lower[:, None]) | (of == self.upper[:, None])
        found = inside.sum(axis=1)
        offsets = self.filled - np.cumsum(found) + found
        self.kept[np.repeat(offsets, found) + np.arange(found.sum())] = ratios[inside]
        self.filled += found

    def median(self) -> Float[np.ndarray, "head"]:
        ranks = [(self.total - 1) // 2, self.total // 2]
        values = np.empty(len(self.below), dtype=self.kept.dtype)
        for head, below in enumerate(self.below):
            own = self.kept[self.starts[head] : self.starts[head + 1]]
            places = [rank - below for rank in ranks]
            values[head] = np.partition(own, places)[places].mean()
        return values


def _ratios(
    trace: RankedTrace, heads: slice = slice(None)
) -> Iterator[Float[np.ndarray, "head step"]]:
    """S / S_base of the essential and of the redundant steps."""
    ratios = trace.scores[heads] / trace.base
    return (ratios[:, chosen] for chosen in (trace.essential, ~trace.essential))


def classes(ratios: Float[np.ndarray, "*any"]) -> Int[np.ndarray, "*any"]:
    """The class of each ratio, 0 to CLASSES − 1: of two ratios the larger has no lower one.

    Example:
        >>> (classes(np.array([-1.0, 0.0, 1.0, 1.06, 1.07, 2.0])) - CLASSES // 2).tolist()
        [-2033, 0, 2032, 2032, 2033, 2048]
    """
    with np.errstate(over="ignore"):  # of float64
        bits = ratios.astype(np.float32).view(np.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats count down
    return (ordered >> 19) + CLASSES // 2
