"""Methods held against each other over whole courses: speed, accuracy at equal length, frontiers.

Length is that of redundant tokens. A course *reaches* a length where its mean first falls to it,
interpolated between checkpoints. Every figure is made within a seed, then averaged over seeds; its
interval is over seeds and problems (`rl.runs.intervals.seedwise`). Pressures are chosen on the
problems of the validation, by two rules that hold for every method alike:

- for accuracy at a length: the pressure that is most accurate there;
- for speed: the fastest of those within `SLACK` of the most accurate there; for a method that is
  held against a baseline, of those no less accurate than the baseline's choice, if there are any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from probing.errors import DataError
from probing.intervals import Estimate
from rl.runs.folders import Course
from rl.runs.intervals import seedwise, within

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import NDArray

SLACK = 0.02  # accuracy that a tuned method may give for speed
ARRAYS = ("sampled", "correct", "redundant", "accuracy", "length")
Courses = Mapping[float | None, Sequence[Mapping[str, Course]]]  # pressure → seeds → part → course


def reach(lengths: Float[np.ndarray, "*row checkpoint"], bound: float) -> Float[np.ndarray, "*row"]:
    """Where a course first falls to a length, as a place between checkpoints; NaN: nowhere.

    Example: halfway between the second and the third checkpoint.
        >>> float(reach(np.array([80.0, 60.0, 40.0, 30.0]), 50.0))
        1.5
    """
    below = lengths <= bound
    first = below.argmax(axis=-1)
    before = np.maximum(first - 1, 0)
    high = np.take_along_axis(lengths, before[..., None], -1)[..., 0]
    low = np.take_along_axis(lengths, first[..., None], -1)[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.where(first == 0, 0.0, before + (high - bound) / (high - low))
    return np.where(below.any(axis=-1), place, np.nan)


def reach_or_end(
    lengths: Float[np.ndarray, "*row checkpoint"], bound: float
) -> Float[np.ndarray, "*row"]:
    """As `reach`; the last checkpoint where a course does not come to the length.

    Example:
        >>> float(reach_or_end(np.array([80.0, 60.0, 40.0]), 30.0))
        2.0
    """
    return np.nan_to_num(reach(lengths, bound), nan=lengths.shape[-1] - 1)


def at(
    values: Float[np.ndarray, "*row checkpoint"], place: Float[np.ndarray, "*row"]
) -> Float[np.ndarray, "*row"]:
    """Values at places between checkpoints, linearly; NaN where the place is.

    Example:
        >>> float(at(np.array([0.0, 20.0, 40.0]), np.array(1.25)))
        25.0
    """
    known = np.nan_to_num(place)
    low = np.floor(known).astype(int)
    high = np.minimum(low + 1, values.shape[-1] - 1)
    first, second = (np.take_along_axis(values, i[..., None], -1)[..., 0] for i in (low, high))
    return np.where(np.isfinite(place), first + (known - low) * (second - first), np.nan)


def shortest_with(
    lengths: Float[np.ndarray, "*row point"],
    accuracy: Float[np.ndarray, "*row point"],
    least: float,
) -> Float[np.ndarray, "*row"]:
    """Least length among points of at least this accuracy, pieces between checkpoints included.

    Example: half the way from (60 tokens, .90) to (40 tokens, .80).
        >>> float(shortest_with(np.array([80.0, 60.0, 40.0]), np.array([0.7, 0.9, 0.8]), 0.85))
        50.0
    """
    enough = accuracy >= least
    left, right = accuracy[..., :-1], accuracy[..., 1:]
    crossed = enough[..., :-1] != enough[..., 1:]
    share = (left - least) / np.where(crossed, left - right, 1.0)
    between = lengths[..., :-1] + share * (lengths[..., 1:] - lengths[..., :-1])
    pieces = np.where(enough, lengths, np.inf), np.where(crossed, between, np.inf)
    shortest = np.concatenate(pieces, axis=-1).min(axis=-1)
    return np.where(np.isfinite(shortest), shortest, np.nan)


@dataclass(frozen=True, eq=False)
class Contender:
    """All courses of one method, as arrays; the problems are the same for all.

    Args:
        steps, sampled: of a checkpoint; tokens sampled differ by seed and pressure.
        correct, redundant: of the reported problems.
        accuracy, length: means over those of the validation.
    """

    method: str
    pressures: tuple[float | None, ...]
    seeds: tuple[int, ...]
    steps: Float[np.ndarray, "checkpoint"]
    sampled: Float[np.ndarray, "pressure seed checkpoint"]
    correct: Float[np.ndarray, "pressure seed checkpoint problem"]
    redundant: Float[np.ndarray, "pressure seed checkpoint problem"]
    accuracy: Float[np.ndarray, "pressure seed checkpoint"]
    length: Float[np.ndarray, "pressure seed checkpoint"]

    @classmethod
    def of(cls, method: str, courses: Courses, seeds: Sequence[int]) -> Contender:
        """The arrays of these courses.

        Raises:
            DataError: other seeds or checkpoints under one pressure than under another.
        """
        rows = [list(seeds) for seeds in courses.values()]
        first = rows[0][0]["reported"].steps
        if len({len(seeds) for seeds in rows}) > 1 or any(
            not np.array_equal(first, seed["reported"].steps) for seeds in rows for seed in seeds
        ):
            raise DataError(f"{method}: its runs have not the same seeds and checkpoints")

        def stack(part: str, name: str) -> NDArray[np.float64]:
            return np.array(
                [[getattr(seed[part], name) for seed in seeds] for seeds in rows], float
            )

        return cls(
            method,
            tuple(courses),
            tuple(seeds),
            first.astype(float),
            stack("reported", "sampled"),
            stack("reported", "correct"),
            stack("reported", "redundant"),
            stack("validation", "accuracy"),
            stack("validation", "length"),
        )

    def only(self, pressures: Sequence[float | None]) -> Contender:
        """The same with these pressures alone."""
        kept = [self.pressures.index(pressure) for pressure in pressures]
        arrays = {name: getattr(self, name)[kept] for name in ARRAYS}
        return replace(self, pressures=tuple(pressures), **arrays)

    def of_seeds(self, seeds: Sequence[int]) -> Contender:
        """The same with the runs of these seeds alone."""
        kept = [self.seeds.index(seed) for seed in seeds]
        arrays = {name: getattr(self, name)[:, kept] for name in ARRAYS}
        return replace(self, seeds=tuple(seeds), **arrays)

    def most_accurate(self, bound: float) -> int | None:
        """Index of the pressure that is most accurate at this length on the validation.

        None where none reaches it in every seed.
        """
        accuracy = at(self.accuracy, reach(self.length, bound)).mean(axis=1)
        return None if np.isnan(accuracy).all() else int(np.nanargmax(accuracy))

    def fastest(self, bound: float, least: float | None = None) -> int | None:
        """Index of the fastest pressure among those accurate enough at this length.

        Args:
            least: accuracy that is enough, if any has it; else that of the best less `SLACK`.
        """
        place = reach(self.length, bound)
        accuracy, steps = at(self.accuracy, place).mean(axis=1), place.mean(axis=1)
        if np.isnan(accuracy).all():
            return None
        if least is None or not (accuracy >= least).any():
            least = np.nanmax(accuracy) - SLACK
        return int(np.nanargmin(np.where(accuracy >= least, steps, np.nan)))

    def nearest(self, bound: float) -> int:
        """Index of the pressure that comes soonest to this length on the validation, where runs
        that end before count as being there at their end; among equals the shortest there."""
        steps = reach_or_end(self.length, bound).mean(axis=1)
        return int(np.lexsort((self.length[..., -1].mean(axis=1), steps))[0])

    def reached(self, chosen: int | None, bound: float) -> int | None:
        """The chosen pressure, if there is one under which every seed reaches this length on the
        reported problems, too."""
        if chosen is None or self.reaching(chosen, bound) < len(self.seeds):
            return None
        return chosen

    def reaching(self, chosen: int, bound: float) -> int:
        """How many seeds reach this length under a pressure on the reported problems."""
        place = reach(self.redundant[chosen].mean(axis=-1), bound)
        return int(np.isfinite(place).sum())


def steps_until(contender: Contender, chosen: int, length: float) -> Estimate:
    """Steps until the reported problems have this length under a pressure, a mean over seeds.

    Not a number where a seed does not reach it.
    """

    def until(long: NDArray[np.float64]) -> NDArray[np.float64]:
        return at(np.broadcast_to(contender.steps, long.shape), reach(long, length))

    return within(seedwise(until, contender.redundant[chosen]), np.inf)


@dataclass(frozen=True)
class SpeedUp:
    """How much sooner a method reaches a length than a baseline.

    `steps` and `tokens` are ratios, the baseline's over the method's: above 1 the method is faster;
    `accuracy` is the difference of accuracies there, as a share.

    Where one of the two alone comes to the length in every seed, the other's runs count as being
    there when their budget ends, and the ratio is a bound (`bound`): at least (≥) where the
    baseline falls short, at most (≤) where the method does. The end of the interval beyond it is
    not known, nor is a difference of accuracies.
    """

    length: float
    pressure: float | None
    against: float | None
    steps: Estimate
    tokens: Estimate
    accuracy: Estimate
    bound: str = ""


def speed_up(ours: Contender, theirs: Contender, length: float) -> SpeedUp | None:
    """The speed-up at one length; None where no method has a pressure that reaches it."""
    least = None
    if (base := theirs.reached(theirs.fastest(length), length)) is not None:
        least = float(at(theirs.accuracy[base], reach(theirs.length[base], length)).mean())
    mine = ours.reached(ours.fastest(length, least), length)
    if mine is None and base is None:
        return None
    bound = "≥" if base is None else "≤" if mine is None else ""
    mine = ours.nearest(length) if mine is None else mine
    base = theirs.nearest(length) if base is None else base
    long = ours.redundant[mine], theirs.redundant[base]
    axes = (ours.steps, theirs.steps), (ours.sampled[mine], theirs.sampled[base])
    steps, tokens = (_ratio(axis, long, length, bound) for axis in axes)

    def gap(*means: NDArray[np.float64]) -> NDArray[np.float64]:
        return _accuracy_at(length, *means[:2]) - _accuracy_at(length, *means[2:])

    accuracy = seedwise(gap, ours.correct[mine], long[0], theirs.correct[base], long[1])
    pressures = ours.pressures[mine], theirs.pressures[base]
    return SpeedUp(length, *pressures, steps, tokens, accuracy, bound)


def _ratio(
    axes: tuple[NDArray[np.float64], ...],
    long: tuple[NDArray[np.float64], ...],
    length: float,
    bound: str,
) -> Estimate:
    """Of two methods, theirs over ours: what was spent until a length, or until the budget's end
    by the one that the bound is for."""
    places = reach_or_end if bound == "≤" else reach, reach_or_end if bound == "≥" else reach

    def log_ratio(*means: NDArray[np.float64]) -> NDArray[np.float64]:
        ours, theirs = (
            at(np.broadcast_to(axis, mean.shape), place(mean, length))
            for axis, mean, place in zip(axes, means, places, strict=True)
        )
        return np.log(theirs / ours)

    figure = seedwise(log_ratio, *long)
    value, low, high = (math.exp(end) for end in (figure.value, figure.low, figure.high))
    low, high = math.nan if bound == "≤" else low, math.nan if bound == "≥" else high
    return Estimate(value, low, high, figure.n)


@dataclass(frozen=True)
class FrontierPoint:
    """A method's accuracy at one length, and the pressure that the validation chose for it."""

    length: float
    pressure: float | None
    accuracy: Estimate


def _accuracy_at(
    length: float, right: NDArray[np.float64], long: NDArray[np.float64]
) -> NDArray[np.float64]:
    return at(right, reach(long, length))


def frontier(contender: Contender, lengths: Sequence[float]) -> list[FrontierPoint]:
    """Accuracy at each length that the method reaches in every seed."""
    points = []
    for length in lengths:
        chosen = contender.reached(contender.most_accurate(length), length)
        if chosen is None:
            continue
        tables = contender.correct[chosen], contender.redundant[chosen]
        figure = seedwise(partial(_accuracy_at, length), *tables)
        points.append(FrontierPoint(length, contender.pressures[chosen], within(figure)))
    return points


def frontier_gap(ours: Contender, theirs: Contender, lengths: Sequence[float]) -> Estimate | None:
    """Mean difference of accuracy over these lengths: the area between two frontiers, by width.

    None where no length is reached by both.
    """
    pairs = [
        (mine, base, x)
        for x in lengths
        if (mine := ours.reached(ours.most_accurate(x), x)) is not None
        and (base := theirs.reached(theirs.most_accurate(x), x)) is not None
    ]
    if not pairs:
        return None

    def area(*means: NDArray[np.float64]) -> NDArray[np.float64]:
        right, long, their_right, their_long = means  # (draw, pressure, seed, checkpoint)
        gaps = [
            at(right[:, mine], reach(long[:, mine], x))
            - at(their_right[:, base], reach(their_long[:, base], x))
            for mine, base, x in pairs
        ]
        return np.mean(gaps, axis=0)

    return seedwise(area, ours.correct, ours.redundant, theirs.correct, theirs.redundant)


def length_gap(ours: Contender, theirs: Contender, least: float) -> Estimate | None:
    """Redundant tokens at an accuracy, ours less theirs: the shortest of each that has it.

    The shortest of several noisy points is a little too short, for every method of as many.
    None where a method never has this accuracy.
    """

    def shortest(right: NDArray[np.float64], long: NDArray[np.float64]) -> NDArray[np.float64]:
        each = shortest_with(long, right, least)  # (draw, pressure, seed)
        best = np.where(np.isnan(each), np.inf, each).min(axis=1)
        return np.where(np.isfinite(best), best, np.nan)

    def of(*means: NDArray[np.float64]) -> NDArray[np.float64]:
        return shortest(*means[:2]) - shortest(*means[2:])

    figure = seedwise(of, ours.correct, ours.redundant, theirs.correct, theirs.redundant)
    return figure if np.isfinite(figure.value) else None
