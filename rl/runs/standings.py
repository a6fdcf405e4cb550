"""Where the methods of a comparison stand: from the courses of its runs to figures with intervals.

The rules of a fair trial: every run has the same budget of steps; pressures are chosen on problems
that no figure uses; two methods are held against each other over as many settings each, and only
the one that is to be beaten may have had more (`alike`); a run that collapses counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probing.errors import DataError
from probing.files.headers import read_object
from probing.intervals import Estimate
from rl.runs.folders import CURVE_FILE, INITIAL, PARTS, RESULT_FILE, Course, read_course
from rl.runs.frontier import (
    Contender,
    FrontierPoint,
    SpeedUp,
    frontier,
    frontier_gap,
    length_gap,
    speed_up,
    steps_until,
)
from rl.runs.intervals import hierarchical_bootstrap, share

BASELINE = "tlmre"
# What a head set must beat: other heads, position, and the words of the answer without attention.
CONTROLS = ("random-heads", "all-heads", "recency", "overlap")
# What `attnpo` is held against, beside the baseline: true labels, its two halves, and these.
YARDSTICKS = ("oracle", "pa", "na", *CONTROLS)
# Its rule changed in one thing: each must beat it, and come up to true labels.
VARIANTS = ("attnpo-hard", "attnpo-checks", "attnpo-answer")
# Lengths that are reported, as shares of the redundant tokens before training.
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
LEVELS = (0.80, 0.85, 0.90, 0.95)  # accuracies at which lengths are compared


@dataclass(frozen=True)
class Until:
    """Steps until one length is reached, where each of the seeds does; and how many of them do."""

    length: float
    reaching: int
    steps: Estimate


@dataclass(frozen=True)
class Standing:
    """One method under one pressure: until each length, and when its budget is spent."""

    method: str
    pressure: float | None
    seeds: int
    accuracy: Estimate
    redundant: Estimate
    collapsed: int  # runs less accurate at their end than before training
    until: tuple[Until, ...]


@dataclass(frozen=True)
class Against:
    """One method against another, and the `seeds` that both have."""

    method: str
    against: str
    settings: int  # pressures that it was tried with
    others: int  # that the other was tried with
    seeds: int
    speed_ups: tuple[SpeedUp, ...]
    gap: Estimate | None  # accuracy at equal length, a mean over the lengths that both reach
    tokens: dict[str, Estimate]  # redundant tokens at equal accuracy, ours less theirs


@dataclass(frozen=True)
class Standings:
    """All that the courses of a comparison say."""

    start: tuple[float, float]  # accuracy and redundant tokens before training
    lengths: tuple[float, ...]
    steps: int
    every: int
    frontiers: dict[str, list[FrontierPoint]]
    ends: list[Standing]
    pairs: list[Against]
    notes: list[str]


def read_contenders(folders: Iterable[Path]) -> list[Contender]:
    """The courses of these runs, each with the policy before training as its first checkpoint.

    Seeds that not every pressure of a method has are left out. Without a validation there are none
    where a method has several pressures, among which nothing can choose.

    Raises:
        DataError: a damaged course, none of the initial policy, or other problems or budgets in
            one folder than in another.
    """
    found: dict[str, dict[float | None, dict[int, dict[str, Course]]]] = {}
    start: dict[str, Course] | None = None
    first: tuple[Path, Any] | None = None
    blind = False
    for folder in folders:
        if not (folder / CURVE_FILE).exists():
            continue
        result, course = read_object(folder / RESULT_FILE), read_course(folder)
        if PARTS[1] not in course:
            if all(result["problems"]):
                raise DataError(f"{folder / CURVE_FILE}: lacks the problems of the validation")
            blind, course[PARTS[1]] = True, course[PARTS[0]]
        if result["method"] == INITIAL:
            start = course
            continue
        made = result["problems"], result["made_with"]
        first = first or (folder, made)
        if made != first[1]:
            raise DataError(f"{folder} and {first[0]} were made with other settings or problems")
        pressures = found.setdefault(result["method"], {})
        pressures.setdefault(result["pressure"], {})[result["seed"]] = course
    if found and start is None:
        raise DataError(f"no course of the policy before training beside {next(iter(found))}")
    if blind and any(len(pressures) > 1 for pressures in found.values()):
        return []
    return [
        Contender.of(method, _common(pressures, start or {}), _seeds(pressures))
        for method, pressures in found.items()
        if _seeds(pressures)
    ]


def _seeds(pressures: dict[float | None, dict[int, Any]]) -> tuple[int, ...]:
    return tuple(sorted(set.intersection(*({*seeds} for seeds in pressures.values()))))


def _common(
    pressures: dict[float | None, dict[int, dict[str, Course]]], start: dict[str, Course]
) -> dict[float | None, list[dict[str, Course]]]:
    """Pressures in order, of each the runs of the common seeds, the initial policy before each."""
    return {
        pressure: [
            {part: course.after(start[part]) for part, course in pressures[pressure][seed].items()}
            for seed in _seeds(pressures)
        ]
        for pressure in sorted(pressures, key=lambda value: value or 0.0)
    }


def stand(contenders: Sequence[Contender]) -> Standings:
    """Every figure of the trial.

    Raises:
        DataError: there is no course.
    """
    if not contenders:
        raise DataError("no run was measured along its way: nothing to draw a frontier of")
    one = contenders[0]
    start = float(one.correct[0, 0, 0].mean()), float(one.redundant[0, 0, 0].mean())
    lengths = tuple(round(start[1] * part, 1) for part in SHARES)
    named = {contender.method: contender for contender in contenders}
    wanted = [(method, BASELINE) for method in named if method != BASELINE]
    wanted += [("attnpo", other) for other in YARDSTICKS]
    wanted += [(variant, other) for variant in VARIANTS for other in ("attnpo", "oracle")]
    notes: list[str] = []
    pairs = []
    for method, against in wanted:
        if method in named and against in named:
            pair = alike(named[method], named[against])
            if pair is None:
                notes.append(
                    f"{method} and {against} share no setting and were tried with another number "
                    "of them: not held against each other."
                )
            else:
                pairs.append(_against(*pair, lengths))
    return Standings(
        start,
        lengths,
        int(one.steps[-1]),
        int(one.steps[1] - one.steps[0]),
        {c.method: frontier(c, lengths) for c in contenders},
        [_end(c, i, lengths) for c in contenders for i in range(len(c.pressures))],
        pairs,
        notes,
    )


def alike(ours: Contender, theirs: Contender) -> tuple[Contender, Contender] | None:
    """The two with the settings that are fair, and the seeds that both have; None: that cannot be.

    Those that both were tried with, where numbers differ. But where ours were several, all of
    theirs count: more tries can but help them. (One setting is no tuning: there the same one.)
    """
    own, others = len(ours.pressures), len(theirs.pressures)
    if own > others or own == 1 < others:
        both = [pressure for pressure in ours.pressures if pressure in theirs.pressures]
        if not both:
            return None
        ours, theirs = ours.only(both), theirs.only(both)
    seeds = [seed for seed in ours.seeds if seed in theirs.seeds]
    return (ours.of_seeds(seeds), theirs.of_seeds(seeds)) if seeds else None


def _against(ours: Contender, theirs: Contender, lengths: Sequence[float]) -> Against:
    ups = [speed_up(ours, theirs, length) for length in lengths]
    tokens = {f"{least:.2f}": length_gap(ours, theirs, least) for least in LEVELS}
    return Against(
        ours.method,
        theirs.method,
        len(ours.pressures),
        len(theirs.pressures),
        len(ours.seeds),
        tuple(up for up in ups if up is not None),
        frontier_gap(ours, theirs, lengths),
        {level: figure for level, figure in tokens.items() if figure is not None},
    )


def _end(contender: Contender, index: int, lengths: Sequence[float]) -> Standing:
    right, long = contender.correct[index], contender.redundant[index]
    fallen = right[:, -1].mean(axis=1) < right[:, 0].mean(axis=1)
    return Standing(
        contender.method,
        contender.pressures[index],
        len(contender.seeds),
        share(right[:, -1]),
        hierarchical_bootstrap(lambda mean: mean, long[:, -1]),
        int(np.sum(fallen)),
        tuple(
            Until(x, contender.reaching(index, x), steps_until(contender, index, x))
            for x in lengths
        ),
    )
