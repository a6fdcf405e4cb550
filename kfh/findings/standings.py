"""The trial of a comparison in tables and words: speed-ups, frontiers, where runs end.

In: the part `standings` of comparison.json. Out: tables, one sentence a pair, caveats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kfh.findings.base import FEW_SEEDS, Row, excludes_zero, few_seeds
from kfh.tables import Cell, Table
from probing.numbers import Number, exists, number, plural
from rl.runs.folders import labelled
from rl.runs.standings import CONTROLS


def standings_tables(content: Row) -> list[Table]:
    """All tables of the trial."""
    return [
        speed_table(content["pairs"]),
        frontier_table(content["frontiers"], content["lengths"]),
        equal_table(content["pairs"]),
        course_table(content["ends"], content["lengths"]),
        ends_table(content["ends"], content["steps"]),
    ]


def speed_table(pairs: Sequence[Row]) -> Table:
    """A row a pair and length."""
    cells: list[list[Cell]] = [
        [
            pair_name(pair),
            number(up["length"], 1),
            f"{under(up['pressure'])}, {under(up['against'])}",
            Number.of(up["steps"], 2, bound=up.get("bound", "")),
            Number.of(up["tokens"], 2, bound=up.get("bound", "")),
            Number.of(up["accuracy"], 1, signed=True, scale=100),
        ]
        for pair in pairs
        for up in pair["speed_ups"]
    ]
    title = (
        "Speed-up until a length is reached: the second's steps and sampled tokens over the "
        "first's (above 1: the first is faster; a bound where one of the two does not come to it "
        "within the budget), and the difference of accuracy there; 95 % over seeds and problems"
    )
    columns = ("pair", "redundant tokens", "pressures", "steps, ×", "tokens sampled, ×")
    return Table(title, (*columns, "accuracy, points"), cells)


def frontier_table(frontiers: Mapping[str, Sequence[Row]], lengths: Sequence[float]) -> Table:
    """A row a method: accuracy at each length, under the pressure that the validation chose."""
    rows: list[list[Cell]] = []
    for method, points in frontiers.items():
        found = {point["length"]: point for point in points}
        rows.append([method, *(_frontier_cell(found.get(length)) for length in lengths)])
    title = (
        "Accuracy at equal length (the frontier), reached within the budget by every seed; "
        "@: the pressure, chosen on the validation where there are several"
    )
    return Table(title, ("method", *(f"{number(x, 1)} redundant" for x in lengths)), rows)


def _frontier_cell(point: Row | None) -> Cell:
    if point is None:
        return "not reached"
    return f"{Number.of(point['accuracy'])} @{under(point['pressure'])}"


def equal_table(pairs: Sequence[Row]) -> Table:
    """A row a pair: accuracy at equal length, tokens at equal accuracy."""
    levels = sorted({level for pair in pairs for level in pair["tokens"]})
    cells: list[list[Cell]] = [
        [
            pair_name(pair),
            f"{pair['settings']}, {pair['others']} × {pair['seeds']}",
            Number.of(pair["gap"], 1, signed=True, scale=100),
            *(Number.of(pair["tokens"].get(level), 1, signed=True) for level in levels),
        ]
        for pair in pairs
    ]
    title = (
        "Between frontiers: accuracy at equal length (mean over the lengths that both reach), and "
        "redundant tokens at equal accuracy, first less second"
    )
    columns = ("pair", "settings × seeds", "accuracy, points")
    return Table(title, (*columns, *(f"tokens at {level}" for level in levels)), cells)


def course_table(ends: Sequence[Row], lengths: Sequence[float]) -> Table:
    """A row a method and pressure: steps until each length, or how many seeds come to it."""
    rows = [
        (labelled(end), *(_until(point, end["seeds"]) for point in end["until"])) for end in ends
    ]
    title = "Steps until a length is reached, whatever the accuracy; a mean over seeds"
    return Table(title, ("method", *(f"{number(x, 1)} redundant" for x in lengths)), rows)


def _until(point: Row, seeds: int) -> Cell:
    if point["reaching"] == seeds:
        return Number.of(point["steps"], 0)
    return f"{point['reaching']} of {plural(seeds, 'seed')}"


def ends_table(ends: Sequence[Row], steps: int) -> Table:
    """A row a method and pressure, when the budget is spent."""
    rows = [
        (
            labelled(end),
            str(end["seeds"]),
            Number.of(end["accuracy"]),
            Number.of(end["redundant"], 1),
            str(end["collapsed"]),
        )
        for end in ends
    ]
    columns = ("method", "seeds", "accuracy", "redundant tokens", "collapsed")
    title = f"After {steps} steps; collapsed: runs less accurate than before training, which count"
    return Table(title, columns, rows)


def standings_summary(content: Row) -> list[str]:
    """What the trial shows of each pair, in words that follow the intervals."""
    return [f"{pair_name(pair)}: {_verdict(pair)}." for pair in content["pairs"]]


def _verdict(pair: Row) -> str:
    ups = _met(pair)
    few = few_seeds(pair["seeds"])
    if not ups:
        text = "no length is reached by both in every seed"
        if few:
            return f"{text}; {few}"
        n, shorter = len(pair["tokens"]), len(_shorter(pair))
        text += _alone(pair)
        return f"{text}; fewer redundant tokens at equal accuracy shown at {shorter} of {n} levels"
    ratios = sorted({f"{up['steps']['value']:.2f}" for up in ups}, key=float)
    text = " to ".join(dict.fromkeys((ratios[0], ratios[-1])))
    text += f" × as fast over {plural(len(ups), 'length')}"
    if few:
        return f"{text}; {few}"
    less = [up for up in ups if exists(up["accuracy"]["high"]) and up["accuracy"]["high"] < 0]
    text += f", shown faster at {len(_faster(ups))}, slower at {len(_slower(ups))}"
    text += f", less accurate there at {len(less)}" if less else ", no loss of accuracy shown there"
    text += _alone(pair)
    gap = pair["gap"]
    if gap is None:
        return text
    shown = Number.of(gap, 1, signed=True, scale=100)
    known = "" if excludes_zero(gap) else ", no difference shown"
    return f"{text}; accuracy at equal length {shown} points{known}"


def _met(pair: Row) -> list[Row]:
    """The lengths that both come to."""
    return [up for up in pair["speed_ups"] if not up.get("bound")]


def _alone(pair: Row) -> str:
    """The lengths that one of the two alone comes to within the budget."""
    text = ""
    for bound, who, how, shown in (
        ("≥", "first", "faster", _faster),
        ("≤", "second", "slower", _slower),
    ):
        if ups := [up for up in pair["speed_ups"] if up.get("bound") == bound]:
            text += f"; {plural(len(ups), 'length')} reached by the {who} alone, "
            text += f"shown {how} at {len(shown(ups))}"
    return text


def standings_caveats(content: Row) -> list[str]:
    """What to hold against the trial: controls not beaten, accuracy lost, runs that collapsed."""
    caveats = list(content["notes"])
    for pair in content["pairs"]:
        gap, few = pair["gap"], few_seeds(pair["seeds"])
        better = gap is not None and exists(gap["low"]) and gap["low"] > 0
        beaten = better or _faster(pair["speed_ups"]) or _shorter(pair)
        if pair["against"] in CONTROLS and (few or not beaten):
            caveats.append(
                f"{pair_name(pair)}: neither sooner at a length, nor more accurate at one, nor "
                "shorter at an accuracy is shown: the control is not beaten."
            )
        if gap is not None and not few and exists(gap["high"]) and gap["high"] < 0:
            points = Number.of(gap, 1, signed=True, scale=100)
            # Accuracy rises along a run: who comes to a length later has learned for longer.
            sooner = (ups := _met(pair)) and all(up["steps"]["value"] > 1 for up in ups)
            early = ", after fewer steps" if sooner else ""
            caveats.append(
                f"{pair_name(pair)}: {points} points at equal length{early}: accuracy is lost."
            )
    for end in content["ends"]:
        if end["collapsed"]:
            caveats.append(
                f"{labelled(end)}: {end['collapsed']} of {end['seeds']} runs ended less accurate "
                "than they began."
            )
    return caveats


def _faster(ups: Sequence[Row]) -> list[Row]:
    """The lengths at which the first is shown to be sooner."""
    return [up for up in ups if exists(low := up["steps"]["low"]) and low > 1]


def _slower(ups: Sequence[Row]) -> list[Row]:
    """The lengths at which the first is shown to be later."""
    return [up for up in ups if exists(high := up["steps"]["high"]) and high < 1]


def _shorter(pair: Row) -> list[Row]:
    """The accuracies at which the first is shown to have fewer redundant tokens."""
    return [gap for gap in pair["tokens"].values() if exists(gap["high"]) and gap["high"] < 0]


def pair_name(pair: Row) -> str:
    """How a pair is called; with its seeds, where they are few."""
    few = f" ({plural(pair['seeds'], 'seed')})" if pair["seeds"] < FEW_SEEDS else ""
    return f"{pair['method']} against {pair['against']}{few}"


def under(pressure: Any) -> str:
    """A pressure as text; the recipe's own has none."""
    return "recipe" if pressure is None else f"{pressure:g}"
