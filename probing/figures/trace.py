"""One trace and the scores of its steps: a bar a step, or, for long traces, a band over tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from probing.errors import DataError
from probing.figures.style import BLUE, GREY, ORANGE, SMALL, plain, spell, styled, wrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from probing.choices import Head
    from probing.folder import ProbeResult
    from probing.traces.file import Trace


LABEL_LOOK = {"essential": (ORANGE, ""), "redundant": (BLUE, "//"), None: (GREY, "..")}
MOST_BARS = 60  # steps; more are drawn as a band, all of them
SHOWN = 54  # letters of a step's text
NAMED = 6  # highest steps of a band whose text is written


@styled
def step_strip(
    trace: Trace, ratios: np.ndarray, title: str = "", tokens: np.ndarray | None = None
) -> Figure:
    """One trace: how far the score of each step lies above or below the baseline.

    Up to 60 steps are a bar each, with their text; more are a curve over the trace and a band
    coloured by label, with the texts of the highest. No step is left out of either.

    Args:
        trace: with its steps.
        ratios: (step,) score of each step over S_base (no unit); the line at 1 is what uniform
            attention would give.
        title: above the figure.
        tokens: (step,) tokens of each step, as widths of the band; without it, characters.

    Raises:
        DataError: not as many ratios as steps, or no step.
    """
    if len(ratios) != len(trace.steps) or not trace.steps:
        raise DataError(
            f"trace {trace.id}: {len(ratios)} scores for {len(trace.steps)} steps; score it with "
            "the steps that are drawn"
        )
    draw = _bars if len(trace.steps) <= MOST_BARS else _band
    return draw(trace, np.asarray(ratios, dtype=float), title, tokens)


def strip_of(
    result: ProbeResult, trace_id: str | None = None, heads: Sequence[Head] | None = None
) -> Figure:
    """The strip of one ranked trace by some heads of a finished probe.

    Args:
        result: of a probe, whose traces are still there.
        trace_id: default: the trace with most steps.
        heads: whose mean is drawn; default: the head set.

    Raises:
        DataError, ConfigError: no such trace, no such head.
    """
    trace = result.longest([trace_id] if trace_id else None)
    chosen = list(heads or result.chosen)
    names = ", ".join(f"{layer}.{head}" for layer, head in chosen)
    title = f"{trace.id}: how much the answer looks back at each step (heads {names})"
    return step_strip(trace, result.ratios(trace, chosen), title, result.scored[trace.id].tokens)


def step_text(trace: Trace, number: int) -> str:
    """The text of a step in one line, cut after 54 letters."""
    step = trace.steps[number]
    text = " ".join(trace.response[step.start : step.end].split())
    return spell(text if len(text) <= SHOWN + 1 else f"{text[:SHOWN]}…")


def _legend(axes: Axes, trace: Trace, hatched: bool, **options: Any) -> None:
    labels = [step.label for step in trace.steps]
    patches = [
        Patch(facecolor=colour, hatch=hatch * hatched, edgecolor="white", lw=0, label=name)
        for label, (colour, hatch) in LABEL_LOOK.items()
        for name in [f"{label or 'no label'} ({labels.count(label)})"]
        if label in labels
    ]
    axes.legend(handles=patches, **options)


def _bars(trace: Trace, ratios: np.ndarray, title: str, tokens: np.ndarray | None) -> Figure:
    figure = Figure(figsize=(8, 1.4 + 0.24 * len(trace.steps)))
    axes = figure.subplots()
    for row, (step, ratio) in enumerate(zip(trace.steps, ratios, strict=True)):
        colour, hatch = LABEL_LOOK[step.label]
        axes.barh(row, ratio, color=colour, hatch=hatch, edgecolor="white", lw=0)
    texts = [step_text(trace, number) for number in range(len(trace.steps))]
    axes.set_yticks(range(len(texts)), texts, fontsize=SMALL)
    axes.set_ylim(len(texts) - 0.4, -0.6)
    axes.axvline(1, color=GREY, ls=":", lw=1.4)
    axes.set_xlabel("step score / S_base (dotted: uniform attention)")
    plain(axes)
    _legend(axes, trace, True, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(wrapped(spell(title), 7.6), x=0.02, ha="left")
    figure.tight_layout()
    return figure


def _band(trace: Trace, ratios: np.ndarray, title: str, tokens: np.ndarray | None) -> Figure:
    """A curve of the score over the trace, a band of labels below, the highest steps in words."""
    widths = np.array([s.end - s.start for s in trace.steps]) if tokens is None else tokens
    edges = np.concatenate([[0], np.cumsum(np.maximum(widths, 0))]).astype(float)
    figure = Figure(figsize=(8, 5.2))
    upper, band, words = figure.subplots(
        3, 1, height_ratios=[5, 0.55, 0.3 + 0.42 * NAMED], gridspec_kw={"hspace": 0.12}
    )
    upper.stairs(ratios, edges, color=GREY, lw=0.7, baseline=None)
    for label, (colour, _) in LABEL_LOOK.items():
        mine = np.array([step.label == label for step in trace.steps])
        upper.bar(
            edges[:-1][mine], ratios[mine], np.diff(edges)[mine], align="edge", color=colour, lw=0
        )
        band.bar(edges[:-1][mine], 1, np.diff(edges)[mine], align="edge", color=colour, lw=0)
    upper.axhline(1, color=GREY, ls=":", lw=1.4)
    top = _highest(ratios)
    upper.set(
        xlim=(0, edges[-1]),
        ylim=(min(0.0, float(np.nanmin(ratios))), 1.25 * max(1.0, float(np.nanmax(ratios)))),
    )
    band.set(xlim=(0, edges[-1]), ylim=(0, 1), yticks=[])
    unit = "character" if tokens is None else "token"
    band.set_xlabel(f"{unit} of the reasoning ({len(trace.steps)} steps)")
    upper.tick_params(labelbottom=False)
    upper.set_ylabel("step score / S_base")
    plain(upper)
    band.spines[["top", "right", "left"]].set_visible(False)
    _legend(
        upper, trace, False, loc="lower right", ncols=3, bbox_to_anchor=(1.0, 1.0), borderaxespad=0
    )
    _number(upper, top, edges, ratios)
    words.set_axis_off()
    lines = [f"{i + 1}  ({ratios[n]:.2f})  {step_text(trace, n)}" for i, n in enumerate(top)]
    words.text(0, 0.72, "\n".join(lines), fontsize=SMALL, va="top", transform=words.transAxes)
    figure.suptitle(wrapped(spell(title), 7.6), x=0.02, ha="left")
    figure.subplots_adjust(left=0.09, right=0.98, top=0.84, bottom=0.02)
    return figure


def _highest(ratios: np.ndarray) -> list[int]:
    """Places of the highest steps, in the order of the trace."""
    top = np.argsort(-np.nan_to_num(ratios, nan=-np.inf), kind="stable")[:NAMED]
    return sorted(int(place) for place in top)


def _number(axes: Axes, top: list[int], edges: np.ndarray, ratios: np.ndarray) -> None:
    """Numbers of the highest steps in a row above the curve, each with a line to its step."""
    low, high = axes.get_ylim()
    row, gap = low + 0.93 * (high - low), 0.03 * edges[-1]
    middles = [float(edges[place] + edges[place + 1]) / 2 for place in top]
    for i, (place, x) in enumerate(zip(top, apart(middles, gap, edges[-1]), strict=True)):
        axes.annotate(
            str(i + 1),
            (middles[i], ratios[place]),
            (x, row),
            fontsize=SMALL,
            ha="center",
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 1, "shrinkB": 1},
        )


def apart(wanted: list[float], gap: float, end: float) -> list[float]:
    """Rising places at least `gap` apart and, where they fit, below `end`, pushed to the right.

    Example: (1, 2, 9) with a gap of 3 below 10: (1, 4, 9).
    """
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap) if places else place)
    for i in reversed(range(len(places))):
        limit = end if i == len(places) - 1 else places[i + 1] - gap
        places[i] = min(places[i], limit)
    return places
