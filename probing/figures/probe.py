"""Figures of a probe: functions of a `ProbeResult` that return a matplotlib figure.

    heatmap(result, "sra"); layers(result); heads(result); ensembles(result)

Those named `draw_…` draw on given axes. The look is that of `probing.figures.style`; one trace
alone is drawn by `probing.figures.trace`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import (
    BoundaryNorm,
    CenteredNorm,
    Colormap,
    LinearSegmentedColormap,
    ListedColormap,
    Normalize,
)
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from probing.choices import METRIC_NAMES, SCALES, Head
from probing.errors import ConfigError
from probing.figures.style import (
    BLUE,
    GREEN,
    GREY,
    LABEL,
    ORANGE,
    SMALL,
    TICK,
    TITLE,
    legend_above,
    plain,
    spell,
    styled,
    wrapped,
)
from probing.folder import ProbeResult, heads_of
from probing.ranking.metrics import BUILT_IN
from probing.ranking.select import best_control
from probing.settings import unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


CLASSES = (0.0, 0.60, 0.75, 0.90, 1.0)  # the paper's colour classes of SRA
CHANCE = 0.5  # of every metric
BEST = 5  # heads that a heatmap names, beside those of the set
NO_HEAD = "#b8b8b8"
LEAST_SPAN = 0.2  # of the scale to either side of chance: less would paint noise in full colour
# Blue below chance, orange above, each darker the further away: told apart by any colour vision.
DIVERGING = LinearSegmentedColormap.from_list(
    "kfh", ["#00385c", BLUE, "#f7f6f2", ORANGE, "#6e2a00"]
)
LOOKS = {"top": (BLUE, "-", "o"), "greedy": (ORANGE, "--", "s")}


def figures_of(
    result: ProbeResult, metric: str = "sra", scale: str = "continuous"
) -> dict[str, Figure]:
    """Every figure of a probe by its file name; `scale` is the heatmap's."""
    return {
        "heatmap": heatmap(result, metric, scale),
        "layers": layers(result, metric),
        "heads": heads(result, metric),
        "ensembles": ensembles(result),
    }


def probe_title(result: ProbeResult, metric: str) -> str:
    """Model, traces and metric, in two lines."""
    counts, config = result.counts, result.config
    answer = "" if config.answer == "all" else f", answer tokens: {config.answer}"
    return (
        f"{METRIC_NAMES[metric]} by layer and head: {Path(result.card.id).name}\n"
        f"{counts['ranked']} traces, {counts['pairs']:,} pairs of "
        f"{Path(config.traces).name}{answer}"
    )


def head_grid(result: ProbeResult, metric: str) -> np.ndarray:
    """The metric as (layer, head); not a number where a layer has no such head."""
    table = result.table
    grid = np.full((int(table["layer"].max()) + 1, int(table["head"].max()) + 1), np.nan)
    grid[table["layer"], table["head"]] = table[metric]
    return grid


def best_heads(result: ProbeResult, metric: str) -> list[Head]:
    """The heads that a heatmap names beside those of the set, the best first."""
    known = result.table.dropna(subset=[metric])
    return heads_of(known.sort_values(metric, ascending=False, kind="stable").head(BEST))


@styled
def heatmap(result: ProbeResult, metric: str = "sra", scale: str = "continuous") -> Figure:
    """Layer × head by colour, the best heads and the set named.

    Args:
        result: of a probe.
        metric: sra, balanced or gating.
        scale: continuous, from blue by way of chance (0.5) to orange; or the paper's classes.

    Raises:
        ConfigError: an unknown scale.
    """
    grid = head_grid(result, metric)
    wide = min(0.36 * max(grid.shape[1], 10), 15)
    figure = Figure(figsize=(1.9 + wide, 2.1 + 0.18 * max(len(grid), 8)))
    axes = figure.subplots()
    draw_heatmap(axes, result, metric, scale)
    best = ", ".join(
        f"{layer}.{head} ({grid[layer, head]:.2f})" for layer, head in best_heads(result, metric)
    )
    chosen = ", ".join(f"{layer}.{head}" for layer, head in result.chosen)
    title = (
        f"{probe_title(result, metric)}\nbest: {best or 'none'}; outlined: the head set, {chosen}"
    )
    _title(figure, result, title, 1.7 + wide)
    return figure


def _title(figure: Figure, result: ProbeResult, title: str, inches: float) -> None:
    """The title of a figure that shows the head set, with what is to be held against the set."""
    text = wrapped(spell("\n".join([title, *result.set_caveats])), inches)
    figure.suptitle(text, fontsize=TITLE, x=0.02, ha="left")
    figure.tight_layout()


def draw_heatmap(
    axes: Axes, result: ProbeResult, metric: str = "sra", scale: str = "continuous"
) -> None:
    """Layer × head on given axes, the head set outlined, the best heads named where they fit.

    Args:
        axes: to draw on; a colour bar is put beside them.
        result, metric, scale: as for `heatmap`.
    """
    grid = head_grid(result, metric)
    colours, norm = heat_colours(grid, scale)
    image = axes.imshow(grid, aspect="auto", origin="lower", cmap=colours, norm=norm)
    key = axes.figure.colorbar(image, ax=axes, fraction=0.06, pad=0.03)
    key.ax.tick_params(labelsize=TICK)
    key.set_label(METRIC_NAMES[metric], fontsize=LABEL)
    ticks = list(CLASSES)
    if isinstance(norm, CenteredNorm):
        gap = 0.1 if norm.halfrange < 0.36 else 0.25
        reach = round(norm.halfrange / gap - 0.499)  # gaps to either side of chance
        ticks = [CHANCE + gap * place for place in range(-reach, reach + 1)]
    key.set_ticks(ticks, labels=[f"{v:.2f}{' = chance' * (v == CHANCE)}" for v in ticks])
    _mark_cells(axes, image.to_rgba(grid), best_heads(result, metric), result.chosen)
    axes.set(xlabel="head", ylabel="layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _mark_cells(axes: Axes, colours: np.ndarray, best: list[Head], chosen: list[Head]) -> None:
    """Outline the set; write LAYER.HEAD on its heads and the best, if the cells hold that."""
    box, (rows, columns) = axes.get_window_extent(), colours.shape[:2]
    wide = 72 * box.width / axes.figure.dpi / columns  # of a cell, in points
    high = 72 * box.height / axes.figure.dpi / rows
    thick = min(1.6, high / 7)
    for layer, head in chosen:  # black on white: seen on every colour
        for colour, width in (("white", 2.1 * thick), ("black", thick)):
            corner = (head - 0.5, layer - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=colour, lw=width, zorder=3))
    names = {(layer, head): f"{layer}.{head}" for layer, head in dict.fromkeys([*best, *chosen])}
    if 0.64 * SMALL * max(map(len, names.values())) > wide or high < 1.2 * SMALL:
        return
    for (layer, head), name in names.items():
        light = colours[layer, head, :3] @ (0.299, 0.587, 0.114) > 0.5
        axes.text(
            head, layer, name, fontsize=SMALL, ha="center", va="center",
            color="black" if light else "white", zorder=4,
        )  # fmt: skip


@styled
def layers(result: ProbeResult, metric: str = "sra") -> Figure:
    """Per-layer profile: best head, mean, and the span of all heads of the layer."""
    by_layer = result.table.groupby("layer")[metric]
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    axes.fill_between(
        by_layer.min().index, by_layer.min(), by_layer.max(), color=BLUE, alpha=0.15, lw=0
    )
    axes.plot(by_layer.max(), color=BLUE, marker="o", ms=3.5, label="best head")
    axes.plot(by_layer.mean(), color=ORANGE, ls="--", marker="s", ms=3, label="mean of heads")
    _draw_controls(axes, result, metric)
    axes.set(xlabel="layer", ylabel=METRIC_NAMES[metric])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finish(figure, axes, probe_title(result, metric))


@styled
def heads(result: ProbeResult, metric: str = "sra") -> Figure:
    """All heads from best to worst, with intervals; what the best reaches by chance."""
    table = result.table.sort_values(metric, ascending=False, kind="stable")
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    rank = np.arange(1, len(table) + 1)
    ends = table[f"{metric}_low"], table[f"{metric}_high"]
    look: dict[str, Any] = {"color": BLUE, "alpha": 0.2, "lw": 0}
    axes.fill_between(rank, *ends, label="95 % interval over problems", **look)
    axes.plot(rank, table[metric], color=BLUE, label="single heads")
    if metric in result.null:
        null = result.null[metric]["q95"]
        axes.axhline(null, color=GREEN, ls="-.", lw=1.2, label="best head by chance (95 %)")
    _draw_controls(axes, result, metric)
    axes.set(xlabel="rank of the head", ylabel=METRIC_NAMES[metric])
    return _finish(figure, axes, probe_title(result, metric))


@styled
def ensembles(result: ProbeResult) -> Figure:
    """Held-out figure of ensembles of 1 … 10 heads: the top k, and greedy ones where chosen."""
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    draw_ensembles(axes, result)
    title = probe_title(result, result.config.by).replace("by layer and head", "of ensembles")
    caveats = [wrapped(text, 6.0) for text in result.set_caveats]
    return _finish(figure, axes, "\n".join([title, *caveats]))


def draw_ensembles(axes: Axes, result: ProbeResult) -> None:
    """The curves of `ensembles` on given axes, with the best control."""
    metric = result.config.by
    for how, points in result.curves.items():
        colour, dash, marker = LOOKS[how]
        curve = pd.DataFrame(points).astype({"heads": int})
        values = curve[[metric, f"{metric}_low", f"{metric}_high"]].astype(float)
        look: dict[str, Any] = {"color": colour, "ls": dash, "marker": marker, "ms": 4}
        axes.plot(curve["heads"], values[metric], label=how, **look)
        axes.fill_between(
            curve["heads"], values.iloc[:, 1], values.iloc[:, 2], color=colour, alpha=0.13, lw=0
        )
    _draw_controls(axes, result, metric, " (all traces)")
    traces = len(result.counts["held_out_traces"])
    axes.set(
        xlabel="heads in the ensemble", ylabel=f"{METRIC_NAMES[metric]}, {traces} held-out traces"
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_controls(axes: Axes, result: ProbeResult, metric: str, note: str = "") -> None:
    """A line for the best control, one for each of the user's own, and one for chance."""
    values = result.controls.set_index("control")[metric].dropna()
    best = best_control(result.controls, metric)
    for number, name in enumerate(values.index):
        if name not in BUILT_IN or (best and name == best[0]):
            dash = ":" if name in BUILT_IN else (0, (2 + number, 1.5))
            label = f"control: {spell(name)}{note}"
            axes.axhline(values[name], color=GREY, ls=dash, lw=1.6, label=label)
    axes.axhline(CHANCE, color=GREY, lw=0.7)


def _finish(figure: Figure, axes: Axes, title: str) -> Figure:
    plain(axes, title)
    legend_above(axes, 2)
    figure.tight_layout()
    return figure


def heat_colours(values: np.ndarray, scale: str) -> tuple[Colormap, Normalize]:
    """Colours of a metric and their scale: what is not a number is grey, unlike any value.

    Args:
        values: what is drawn, from 0 to 1.
        scale: continuous: as far below chance (0.5) as above it, so that equal colours are equal
            distances from chance; classes: the paper's four.

    Raises:
        ConfigError: an unknown scale.

    Example:
        >>> _, norm = heat_colours(np.array([0.42, 0.91]), "continuous")
        >>> [round(float(norm(value)), 2) for value in (0.05, 0.5, 0.95)]
        [0.0, 0.5, 1.0]
    """
    if scale not in SCALES:
        raise ConfigError(unknown("scale", scale, SCALES))
    if scale == "classes":
        colours = colormaps["cividis"](np.linspace(0.08, 1.0, len(CLASSES) - 1))
        return ListedColormap(colours).with_extremes(bad=NO_HEAD), BoundaryNorm(
            CLASSES, len(CLASSES) - 1
        )
    furthest = float(np.nanmax(np.abs(values - CHANCE), initial=LEAST_SPAN))
    # Up to the next twentieth: the ends of the bar are round figures.
    span = min(np.ceil(20 * furthest - 1e-9) / 20, 0.5)
    return DIVERGING.with_extremes(bad=NO_HEAD), CenteredNorm(CHANCE, span)
