"""What ranking keeps of traces whose scores go by once, and traces whose scores are read anew.

Scores take 600 kB a trace of a 1.5B model. A ranking goes through them twice and keeps of each
trace its figures alone: values of the metrics, counts for medians.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
from jaxtyping import Float

from probing.attention.scores import Scores
from probing.ranking.medians import Contrast
from probing.ranking.metrics import CONTROLS, RankedTrace, by_metric, control_scores


class Measured:
    """The metrics of some scorers (the heads of a model, controls) on each trace."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.groups: list[str] = []  # problems
        self.pairs: list[int] = []  # of an essential and a redundant step
        self._rows: list[dict[str, Float[np.ndarray, "scorer"]]] = []

    @classmethod
    def of(cls, traces: Iterable[RankedTrace]) -> Measured:
        """All of these, by their own scores."""
        measured = cls()
        for trace in traces:
            measured.add(trace)
        return measured

    def add(self, trace: RankedTrace, scores: Scores | None = None) -> None:
        """Measure one trace, by its own scores or by others; not after `values` were asked for."""
        self.ids.append(trace.id)
        self.groups.append(trace.group)
        self.pairs.append(int(trace.essential.sum() * (~trace.essential).sum()))
        self._rows.append(trace.measure(scores))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def values(self) -> dict[str, Float[np.ndarray, "scorer trace"]]:
        """Every metric of every scorer on every trace."""
        values = by_metric(self._rows)
        self._rows.clear()
        return values


class Measures:
    """All that ranking needs from going through the traces for the first time."""

    def __init__(self) -> None:
        self.heads, self.controls = Measured(), Measured()
        self.contrast = Contrast()

    @classmethod
    def of(cls, traces: Iterable[RankedTrace]) -> Measures:
        """Of all of these."""
        measures = cls()
        for trace in traces:
            measures.add(trace)
        return measures

    def add(self, trace: RankedTrace) -> None:
        """Measure one trace.

        Raises:
            DataError: a control does not give one number a step.
        """
        self.heads.add(trace)
        controls = [control_scores(trace, name) for name in CONTROLS]
        self.controls.add(trace, np.concatenate(controls))
        self.contrast.add(trace)


class ReadTraces(Sequence[RankedTrace]):
    """Ranked traces that are read when they are asked for: none stays in memory.

    Args:
        keys: ids or places, one a trace.
        read: gives the trace of a key.
    """

    def __init__(self, keys: Sequence[Any], read: Callable[[Any], RankedTrace]) -> None:
        self.keys, self.read = keys, read

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, place: int) -> RankedTrace: ...

    @overload
    def __getitem__(self, place: slice) -> ReadTraces: ...

    def __getitem__(self, place: int | slice) -> RankedTrace | ReadTraces:
        if isinstance(place, slice):
            return ReadTraces(self.keys[place], self.read)
        return self.read(self.keys[place])

    def __iter__(self) -> Iterator[RankedTrace]:
        return map(self.read, self.keys)
