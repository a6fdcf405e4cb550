"""Figures of stability and sample size, from what their JSON files hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from probing.choices import METRIC_NAMES
from probing.figures.style import (
    AMBER,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    TITLE,
    panel_letters,
    plain,
    spell,
    styled,
    wrapped,
)
from probing.robustness.stability import chance_band

if TYPE_CHECKING:
    from matplotlib.axes import Axes


CYCLE = [
    (BLUE, "-", "o"),
    (ORANGE, "--", "s"),
    (GREEN, "-.", "^"),
    (PURPLE, ":", "D"),
    (SKY, (0, (5, 1)), "v"),
    (AMBER, (0, (3, 1, 1, 1)), "P"),
]
MOST_PAIRS = 6  # with more, single curves hide each other: their mean and range are drawn
LETTERS = 18  # of a probe's name on an axis


@styled
def stability_figure(content: dict[str, Any]) -> Figure:
    """Correlation matrix and overlap of head sets of several probes.

    Args:
        content: the content of stability.json.
    """
    count = len(content["probes"])
    side = max(3.0, 0.5 * count + 1.4)
    figure = Figure(figsize=(side + 4.6, side + 1.0))
    left, right = figure.subplots(1, 2, width_ratios=[side, 3.8])
    draw_matrix(left, content)
    draw_overlap(right, content)
    ranked = [probe["ranked"] for probe in content["probes"]]
    traces = str(ranked[0]) if len(set(ranked)) == 1 else f"{min(ranked)}–{max(ranked)}"
    title = (
        f"Are they the same heads? {METRIC_NAMES[content['metric']]} of {content['heads']} heads "
        f"in {count} probes of {traces} traces"
    )
    figure.suptitle(wrapped(title, side + 4.2), x=0.02, ha="left")
    panel_letters([left, right])
    figure.tight_layout()
    return figure


def matrix(content: dict[str, Any]) -> np.ndarray:
    """Pearson below the diagonal, Spearman above, reliability on it; NaN where unknown."""
    names = [probe["name"] for probe in content["probes"]]
    grid = np.full((len(names), len(names)), np.nan)
    for i, probe in enumerate(content["probes"]):
        grid[i, i] = np.nan if probe["reliability"] is None else probe["reliability"]
    for pair in content["pairs"]:
        i, j = names.index(pair["a"]), names.index(pair["b"])
        for place, kind in (((j, i), "pearson"), ((i, j), "spearman")):
            grid[place] = np.nan if pair[kind] is None else pair[kind]
    return grid


def draw_matrix(axes: Axes, content: dict[str, Any]) -> None:
    """The matrix of `matrix` with its numbers."""
    grid = matrix(content)
    lowest = -1.0 if np.nanmin(grid) < 0 else 0.0
    axes.imshow(grid, vmin=lowest, vmax=1, cmap="cividis", aspect="equal")
    for (row, column), value in np.ndenumerate(grid):
        text = "–" if np.isnan(value) else f"{value:.2f}"
        dark = np.isnan(value) or value > lowest + 0.6 * (1 - lowest)
        diagonal: dict[str, Any] = {"fontstyle": "italic"} if row == column else {}
        colour = BLACK if dark else "white"
        axes.text(
            column, row, text, ha="center", va="center", color=colour, fontsize=SMALL, **diagonal
        )
    names = [_short(probe["name"]) for probe in content["probes"]]
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 3 else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set_title(f"correlation of {METRIC_NAMES[content['metric']]}", loc="left")
    axes.set_xlabel("below the diagonal Pearson, above Spearman;\non it, italic: reliability")


def draw_overlap(axes: Axes, content: dict[str, Any]) -> None:
    """Heads that the top k of two probes share, by k, beside what random sets share."""
    sizes = np.array([point["k"] for point in content["pairs"][0]["top"]])
    shared = np.array(
        [[p["shared"] for p in pair["top"]] for pair in content["pairs"]], dtype=float
    )
    band = np.array([chance_band(content["heads"], int(k)) for k in sizes], dtype=float)
    axes.fill_between(sizes, *band.T, color=GREY, alpha=0.18, lw=0, label="random sets, 95 %")
    expected = sizes**2 / content["heads"]
    axes.plot(sizes, expected, color=GREY, ls=":", lw=1.4, label="random sets, mean")
    axes.plot(sizes, sizes, color=BLACK, lw=0.6, label="all shared")
    if len(shared) <= MOST_PAIRS:
        for row, pair, (colour, dash, marker) in zip(shared, content["pairs"], CYCLE, strict=False):
            label = f"{_short(pair['a'])}, {_short(pair['b'])}"
            axes.plot(sizes, row, color=colour, ls=dash, marker=marker, ms=4, lw=1.4, label=label)
    else:
        axes.fill_between(sizes, shared.min(0), shared.max(0), color=BLUE, alpha=0.15, lw=0)
        label = f"mean of {len(shared)} pairs; least to most"
        axes.plot(sizes, shared.mean(0), color=BLUE, marker="o", ms=4, label=label)
    axes.set(xlabel="heads in each top set (k)", ylabel="heads shared")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axes, "overlap of the top k")
    axes.legend(loc="upper left", fontsize=SMALL)
    top = sizes[-1]
    entries = 3 + (len(shared) if len(shared) <= MOST_PAIRS else 1)
    axes.set_ylim(-0.2, top * (1.06 + 0.09 * entries))


def _short(name: str) -> str:
    return spell(name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…")


@styled
def sample_size_figure(content: dict[str, Any]) -> Figure:
    """Figures, agreement and width of the interval against the number of problems.

    Args:
        content: the content of sample_size.json.
    """
    figure = Figure(figsize=(10.2, 3.7))
    axes = figure.subplots(1, 3)
    points = content["points"]
    n = np.array([point["problems"] for point in points], dtype=float)
    _draw_figures(axes[0], content, n)
    _draw_agreement(axes[1], content, n)
    _draw_width(axes[2], content, n)
    for each in axes:
        _problem_axis(each, n)
    name = str(content["model"]).rstrip("/").rpartition("/")[2]
    title = (
        f"How many traces are enough? {name}, {content['ranked']} ranked traces of "
        f"{points[-1]['problems']} problems, {points[0]['draws']} draws a size\n"
        f"{content['sentence']}"
    )
    figure.suptitle(wrapped(spell(title), 9.6), x=0.02, ha="left")
    panel_letters(axes)
    figure.tight_layout(w_pad=2)
    return figure


def _column(content: dict[str, Any], name: str) -> np.ndarray:
    return np.array(
        [np.nan if p[name] is None else p[name] for p in content["points"]], dtype=float
    )


def _draw_figures(axes: Axes, content: dict[str, Any], n: np.ndarray) -> None:
    layer, head = content["best_head"]
    spans = np.array([p["best_range"] for p in content["points"]], dtype=float)
    band: dict[str, Any] = {"color": BLUE, "alpha": 0.15, "lw": 0}
    axes.fill_between(n, *spans.T, label="95 % of draws", **band)
    best = _column(content, "best")
    axes.plot(n, best, color=BLUE, marker="o", ms=4, label=f"best of all: {layer}.{head}")
    look: dict[str, Any] = {"color": ORANGE, "ls": "--", "marker": "s", "ms": 4}
    axes.plot(n, _column(content, "picked"), label="best of the draw", **look)
    look = {"color": GREEN, "ls": "-.", "marker": "^", "ms": 4}
    axes.plot(n, _column(content, "held_out"), label="… on the rest", **look)
    axes.set_ylabel(METRIC_NAMES[content["metric"]])
    plain(axes, "the best head")
    axes.legend(fontsize=SMALL)


def _draw_agreement(axes: Axes, content: dict[str, Any], n: np.ndarray) -> None:
    k = content["k"]
    rows = [
        ("shared", "with the set of all problems", BLUE, "-", "o"),
        ("same", "draws with exactly that set", ORANGE, "--", "s"),
        ("disjoint", "of two disjoint draws", GREEN, "-.", "^"),
    ]
    for name, label, colour, dash, marker in rows:
        look: dict[str, Any] = {"color": colour, "ls": dash, "marker": marker, "ms": 4}
        # All problems agree with themselves: no point is drawn there.
        axes.plot(n[:-1], _column(content, name)[:-1], label=label, **look)
    chance = content["points"][0]["chance"]
    axes.axhline(chance, color=GREY, ls=":", lw=1.4, label="random sets share")
    axes.set(ylim=(-0.03, 1.03), ylabel=f"share of the {k} heads, or of draws")
    plain(axes, f"the set of {k}")
    axes.legend(fontsize=SMALL)


def _draw_width(axes: Axes, content: dict[str, Any], n: np.ndarray) -> None:
    spans = np.array([p["best_range"] for p in content["points"]], dtype=float)
    look: dict[str, Any] = {"color": BLUE, "marker": "o", "ms": 4}
    axes.plot(n, _column(content, "width"), label="bootstrap interval, mean", **look)
    look = {"color": ORANGE, "ls": "--", "marker": "s", "ms": 4}
    # A draw of most problems cannot move far from all of them: its spread is no yardstick.
    known = n <= n[-1] / 2
    axes.plot(n[known], np.diff(spans, axis=1)[known, 0], label="95 % of draws", **look)
    axes.set(ylabel=f"width in {METRIC_NAMES[content['metric']]}", ylim=(0, None))
    plain(axes, "95 % interval of the best head")
    axes.legend(fontsize=SMALL)


def _problem_axis(axes: Axes, n: np.ndarray) -> None:
    axes.set_xscale("log")
    # Where the last two sizes are close, their numbers would touch.
    shown = [v for i, v in enumerate(n) if i == len(n) - 1 or n[-1] / v > 1.5]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{v:.0f}" for v in shown])
    axes.set_xlabel("problems", fontsize=TITLE - 1)
