"""The courses of a comparison drawn: length and accuracy over the steps, and the plane of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from probing.figures.style import plain, styled
from rl.runs.figures import Look, looks_of, titled
from rl.runs.folders import labelled
from rl.runs.frontier import Contender
from rl.runs.intervals import Curve, averaged_courses

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAINT, STRONG = 0.35, 1.0  # of a method's lines, from its least pressure to its greatest
SHADE, SHADES = 0.10, 0.45  # of a band, and of all together, so that lines are seen through many


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
