"""A comparison drawn: length and accuracy over the steps, and what each method gains on another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from probing.figures.style import plain, styled
from probing.numbers import exists
from rl.runs.figures import Look, looks_of, titled
from rl.runs.folders import labelled
from rl.runs.frontier import Contender
from rl.runs.intervals import Curve, averaged_courses

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAINT, STRONG = 0.35, 1.0  # of a method's lines, from its least pressure to its greatest
SHADE, SHADES = 0.10, 0.45  # of a band, and of all together, so that lines are seen through many

SPACE = 0.15  # inches between two intervals
TIMES = (0.125, 0.25, 0.5, 1, 2, 4, 8)  # ratios that have a tick; intervals are drawn up to there


@styled
def courses(contenders: Sequence[Contender], counted: str = "redundant tokens") -> Figure | None:
    """Length (`counted`) and accuracy at each checkpoint, and one against the other.

    A line is the mean over the seeds of one method under one pressure, stronger lines are greater
    pressures; bands are 95 % over seeds and problems. None where there is no course.
    """
    if not contenders:
        return None
    figure = Figure(figsize=(11.4, 4.4), layout="constrained")
    length, accuracy, plane = figure.subplots(1, 3)
    looks = looks_of([contender.method for contender in contenders])
    shade = min(SHADE, SHADES / sum(len(contender.pressures) for contender in contenders))
    for contender in contenders:
        for index in range(len(contender.pressures)):
            long = averaged_courses(contender.redundant[index])
            right = averaged_courses(contender.correct[index], shares=True)
            _line(length, contender, index, contender.steps, long, looks, shade)
            _line(accuracy, contender, index, contender.steps, right, looks, shade)
            _line(plane, contender, index, long.mean, right, looks)
    plain(length, counted)
    plain(accuracy, "accuracy")
    plain(plane, f"accuracy against {counted}")
    for axes in (length, accuracy):
        axes.set_xlabel("training step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.01)
    plane.set_xlabel(counted)
    plane.invert_xaxis()  # training goes from left to right
    for axes in (accuracy, plane):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    seeds = sorted({len(contender.seeds) for contender in contenders})
    count = "–".join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
    problems = contenders[0].correct.shape[-1]
    return titled(
        figure,
        f"{problems} held-out problems along training, temperature 1; {count} seeds a line; bands: "
        "95 % over seeds and problems; @: pressure, the stronger the line",
    )


def _line(
    axes: Axes,
    contender: Contender,
    index: int,
    across: np.ndarray,
    curve: Curve,
    looks: dict[str, Look],
    shade: float = 0.0,
) -> None:
    colour, dash, marker = looks[contender.method]
    n = len(contender.pressures)
    alpha = FAINT + (STRONG - FAINT) * (index + 1) / n if n > 1 else STRONG
    pressure = contender.pressures[index]
    name = labelled({"method": contender.method, "pressure": pressure})
    axes.plot(
        across,
        curve.mean,
        color=colour,
        linestyle=dash,
        marker=marker,
        markersize=3,
        alpha=alpha,
        label=name,
        linewidth=1.4,
    )
    if shade:
        axes.fill_between(across, curve.low, curve.high, color=colour, alpha=shade, linewidth=0)


@styled
def gains(pairs: Sequence[Mapping[str, Any]], counted: str = "redundant tokens") -> Figure | None:
    """How much sooner the first of each pair is, and how accurate at equal length, with intervals.

    Args:
        pairs: as comparison.json has them; from top to bottom, each with its lengths from the
            longest on. Where an interval goes on beyond the axis, it ends there; a bound has an
            arrow instead of the end that is not known. Pairs without a length are left out, and
            those of which neither was tuned say so.
        counted: what lengths are of.

    Returns:
        None where no pair reaches a length.
    """
    pairs = [pair for pair in pairs if pair["speed_ups"]]
    rows = [(pair, up) for pair in pairs for up in pair["speed_ups"]]
    if not rows:
        return None
    figure = Figure(figsize=(11.4, 1.4 + SPACE * (len(rows) + len(pairs))), layout="constrained")
    sooner, accurate = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    looks = looks_of([pair["method"] for pair in pairs])
    places: list[float] = []
    at = 0
    for pair in pairs:
        colour, _, marker = looks[pair["method"]]
        look = {"color": colour, "marker": marker, "markersize": 4}
        for up in pair["speed_ups"]:
            _interval(sooner, up["steps"], at, look, bound=up.get("bound", ""))
            sooner.annotate(
                f"{up['length']:.0f}",
                (0, at),
                (4, 0),
                sooner.get_yaxis_transform(),
                "offset points",
                va="center",
                fontsize=7,
                color="0.45",
            )
            at += 1
        places.append(at - (len(pair["speed_ups"]) + 1) / 2)
        if pair["gap"] is not None:
            _interval(accurate, pair["gap"], places[-1], look, 100)
        at += 1
    plain(sooner, f"times sooner in steps, at the {counted} named")
    plain(accurate, "points more accurate at equal length")
    sooner.set(xscale="log", xlim=(TIMES[0], TIMES[-1]), ylim=(at - 1, -1))
    sooner.xaxis.set(major_locator=FixedLocator(TIMES), minor_locator=NullLocator())
    sooner.xaxis.set_major_formatter(lambda value, _: f"{value:g} ×")
    names = [f"{pair['method']}\nagainst {pair['against']}{_tries(pair)}" for pair in pairs]
    sooner.set_yticks(places, names)
    for axes, none in ((sooner, 1), (accurate, 0)):
        axes.axvline(none, color="0.6", linewidth=0.8, zorder=0)
        axes.tick_params(axis="y", length=0)
    return figure


def _tries(pair: Mapping[str, Any]) -> str:
    """Says of a pair that neither was tuned: of both one pressure was taken, the same."""
    return " (one pressure)" if pair.get("settings") == pair.get("others") == 1 else ""


def _interval(
    axes: Axes,
    figure: Mapping[str, Any],
    at: float,
    look: Mapping[str, Any],
    scale: float = 1,
    bound: str = "",
) -> None:
    """A point and the line of its interval, where that is known; of a bound, where it points."""
    point = scale * figure["value"]
    axes.plot([point], [at], linestyle="none", **look)
    if bound:
        arrow, side, align = ("→", 5, "left") if bound == "≥" else ("←", -5, "right")
        axes.annotate(
            arrow,
            (point, at),
            (side, 0),
            "data",
            "offset points",
            color=look["color"],
            va="center",
            ha=align,
        )
    known = [figure[end] if exists(figure[end]) else figure["value"] for end in ("low", "high")]
    if known[0] < known[1]:
        ends = scale * known[0], scale * known[1]
        axes.plot(ends, (at, at), color=look["color"], linewidth=1.4)
