"""Figures of a probe, as functions that return a matplotlib figure, or draw on given axes.

The look is that of `probing.figures.style`; one trace alone is drawn by `probing.figures.trace`.
"""

from __future__ import annotations

from dataclasses import dataclass
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

from probing.choices import SCALES
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
from probing.figures.style import FORMATS as FORMATS
from probing.figures.style import save_figure as save_figure
from probing.figures.trace import step_strip as step_strip
from probing.folder import read_tables
from probing.settings import unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probing.folder import ProbeResult


CLASSES = (0.0, 0.60, 0.75, 0.90, 1.0)  # the paper's colour classes of SRA
CHANCE = 0.5  # of every metric
BEST = 5  # heads that a heatmap names, beside those of the set
NO_HEAD = "#b8b8b8"
LEAST_SPAN = 0.2  # of the scale to either side of chance: less would paint noise in full colour
# Blue below chance, orange above, each darker the further away: told apart by any colour vision.
DIVERGING = LinearSegmentedColormap.from_list(
    "kfh", ["#00385c", BLUE, "#f7f6f2", ORANGE, "#6e2a00"]
)
NAMES = {"sra": "SRA", "balanced": "balanced SRA", "gating": "gating accuracy"}
_STYLE = {"top": (BLUE, "-", "o"), "greedy": (ORANGE, "--", "s")}


@dataclass(frozen=True, eq=False)
class RunFigures:
    """What the figures of one run need: the head table, and the run file's content."""

    table: pd.DataFrame
    run: dict[str, Any]

    @classmethod
    def of(cls, result: ProbeResult) -> RunFigures:
        """From a result in memory."""
        from probing.folder import run_json

        return cls(result.table, run_json(result))

    @classmethod
    def load(cls, folder: Path) -> RunFigures:
        """From the folder of a finished probe.

        Raises:
            DataError: a file is missing or damaged.
        """
        return cls(*read_tables(folder))

    def all(self, metric: str = "sra", scale: str = "continuous") -> dict[str, Figure]:
        """Every figure by its file name; `scale` is the heatmap's."""
        return {
            "heatmap": self.heatmap(metric, scale),
            "layers": self.layers(metric),
            "heads": self.heads(metric),
            "ensembles": self.ensembles(),
        }

    def title(self, metric: str) -> str:
        """Model, traces and metric, in two lines."""
        counts, config = self.run["counts"], self.run["config"]
        model, traces = Path(self.run["model"]["id"]).name, Path(config["traces"]).name
        answer = "" if config["answer"] == "all" else f", answer tokens: {config['answer']}"
        return (
            f"{NAMES[metric]} by layer and head: {model}\n"
            f"{counts['ranked']} traces, {counts['pairs']:,} pairs of {traces}{answer}"
        )

    def grid(self, metric: str) -> np.ndarray:
        """The metric as layer × head; not a number where a layer has no such head."""
        table = self.table
        grid = np.full((int(table["layer"].max()) + 1, int(table["head"].max()) + 1), np.nan)
        grid[table["layer"], table["head"]] = table[metric]
        return grid

    def chosen(self) -> list[tuple[int, int]]:
        """The heads of the set, as `(layer, head)`."""
        config = self.run["config"]
        points = self.run["curves"][config["select"]][: config["top"]]
        return [(int(layer), int(head)) for layer, head in (p["added"] for p in points)]

    @styled
    def heatmap(self, metric: str = "sra", scale: str = "continuous") -> Figure:
        """Layer × head by colour, the best heads and the set named.

        Args:
            metric: sra, balanced or gating.
            scale: continuous, from blue by way of chance (0.5) to orange; or the paper's classes.

        Raises:
            ConfigError: an unknown scale.
        """
        layers, heads = self.grid(metric).shape
        wide = min(0.36 * max(heads, 10), 15)
        figure = Figure(figsize=(1.9 + wide, 2.1 + 0.18 * max(layers, 8)))
        axes = figure.subplots()
        self.draw_heatmap(axes, metric, scale)
        best = ", ".join(
            f"{layer}.{head} ({self.grid(metric)[layer, head]:.2f})"
            for layer, head in self.best(metric)
        )
        chosen = ", ".join(f"{layer}.{head}" for layer, head in self.chosen())
        title = f"{self.title(metric)}\nbest: {best or 'none'}; outlined: the head set, {chosen}"
        figure.suptitle(wrapped(spell(title), 1.7 + wide), fontsize=TITLE, x=0.02, ha="left")
        figure.tight_layout()
        return figure

    def draw_heatmap(self, axes: Axes, metric: str = "sra", scale: str = "continuous") -> None:
        """Layer × head on given axes, the head set outlined, the best heads named where they fit.

        Args:
            axes: to draw on; a colour bar is put beside them.
            metric, scale: as for `heatmap`.
        """
        grid = self.grid(metric)
        colours, norm = heat_colours(grid, scale)
        image = axes.imshow(grid, aspect="auto", origin="lower", cmap=colours, norm=norm)
        key = axes.figure.colorbar(image, ax=axes, fraction=0.06, pad=0.03)
        key.ax.tick_params(labelsize=TICK)
        key.set_label(NAMES[metric], fontsize=LABEL)
        ticks = list(CLASSES)
        if isinstance(norm, CenteredNorm):
            gap = 0.1 if norm.halfrange < 0.36 else 0.25
            reach = round(norm.halfrange / gap - 0.499)  # gaps to either side of chance
            ticks = [CHANCE + gap * place for place in range(-reach, reach + 1)]
        key.set_ticks(ticks, labels=[f"{v:.2f}{' = chance' * (v == CHANCE)}" for v in ticks])
        self._mark_cells(axes, image.to_rgba(grid), metric)
        axes.set(xlabel="head", ylabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))

    def best(self, metric: str) -> list[tuple[int, int]]:
        """The best heads by a metric as `(layer, head)`, the best first."""
        known = self.table.dropna(subset=[metric])
        rows = known.sort_values(metric, ascending=False, kind="stable").head(BEST)
        return [(int(row.layer), int(row.head)) for row in rows.itertuples()]

    def _mark_cells(self, axes: Axes, colours: np.ndarray, metric: str) -> None:
        """Outline the set; write LAYER.HEAD on its heads and the best, if the cells hold that."""
        box, (rows, columns) = axes.get_window_extent(), colours.shape[:2]
        wide = 72 * box.width / axes.figure.dpi / columns  # of a cell, in points
        high = 72 * box.height / axes.figure.dpi / rows
        thick = min(1.6, high / 7)
        for layer, head in self.chosen():  # black on white: seen on every colour
            for colour, width in (("white", 2.1 * thick), ("black", thick)):
                corner = (head - 0.5, layer - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=colour, lw=width, zorder=3))
        pairs = dict.fromkeys([*self.best(metric), *self.chosen()])
        names = {(layer, head): f"{layer}.{head}" for layer, head in pairs}
        if 0.64 * SMALL * max(map(len, names.values())) > wide or high < 1.2 * SMALL:
            return
        for (layer, head), name in names.items():
            light = colours[layer, head, :3] @ (0.299, 0.587, 0.114) > 0.5
            axes.text(
                head, layer, name, fontsize=SMALL, ha="center", va="center",
                color="black" if light else "white", zorder=4,
            )  # fmt: skip

    @styled
    def layers(self, metric: str = "sra") -> Figure:
        """Per-layer profile: best head, mean, and the span of all heads of the layer."""
        by_layer = self.table.groupby("layer")[metric]
        figure = Figure(figsize=(6.4, 3.6))
        axes = figure.subplots()
        axes.fill_between(
            by_layer.min().index, by_layer.min(), by_layer.max(), color=BLUE, alpha=0.15, lw=0
        )
        axes.plot(by_layer.max(), color=BLUE, marker="o", ms=3.5, label="best head")
        axes.plot(by_layer.mean(), color=ORANGE, ls="--", marker="s", ms=3, label="mean of heads")
        self._controls(axes, metric)
        axes.set(xlabel="layer", ylabel=NAMES[metric])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return self._finish(figure, axes, self.title(metric))

    @styled
    def heads(self, metric: str = "sra") -> Figure:
        """All heads from best to worst, with intervals; what the best reaches by chance."""
        table = self.table.sort_values(metric, ascending=False, kind="stable")
        figure = Figure(figsize=(6.4, 3.6))
        axes = figure.subplots()
        rank = np.arange(1, len(table) + 1)
        axes.fill_between(
            rank,
            table[f"{metric}_low"],
            table[f"{metric}_high"],
            color=BLUE,
            alpha=0.2,
            lw=0,
            label="95 % interval over traces",
        )
        axes.plot(rank, table[metric], color=BLUE, label="single heads")
        if metric in self.run["null"]:
            null = self.run["null"][metric]["q95"]
            axes.axhline(null, color=GREEN, ls="-.", lw=1.2, label="best head by chance (95 %)")
        self._controls(axes, metric)
        axes.set(xlabel="rank of the head", ylabel=NAMES[metric])
        return self._finish(figure, axes, self.title(metric))

    @styled
    def ensembles(self) -> Figure:
        """Held-out figure of ensembles of 1 … 10 heads, chosen as the top k and greedily."""
        metric = self.run["config"]["by"]
        figure = Figure(figsize=(6.4, 3.6))
        axes = figure.subplots()
        self.draw_ensembles(axes)
        title = self.title(metric).replace("by layer and head", "of ensembles")
        return self._finish(figure, axes, title)

    def draw_ensembles(self, axes: Axes) -> None:
        """The curves of `ensembles` on given axes, with the best trivial scorer."""
        metric = self.run["config"]["by"]
        for how, points in self.run["curves"].items():
            colour, dash, marker = _STYLE[how]
            curve = pd.DataFrame(points).astype({"heads": int})
            values = curve[[metric, f"{metric}_low", f"{metric}_high"]].astype(float)
            look: dict[str, Any] = {"color": colour, "ls": dash, "marker": marker, "ms": 4}
            axes.plot(curve["heads"], values[metric], label=how, **look)
            axes.fill_between(
                curve["heads"], values.iloc[:, 1], values.iloc[:, 2], color=colour, alpha=0.13, lw=0
            )
        self._controls(axes, metric, " (all traces)")
        held = len(self.run["counts"]["held_out_traces"])
        axes.set(xlabel="heads in the ensemble", ylabel=f"{NAMES[metric]}, {held} held-out traces")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    def _controls(self, axes: Axes, metric: str, note: str = "") -> None:
        """A line for the best trivial scorer, and one for chance."""
        rows = [row for row in self.run["controls"] if row[metric] is not None]
        trivial = [row for row in rows if row["control"] not in ("uniform", "all heads")]
        if trivial:
            best = max(trivial, key=lambda row: row[metric])
            label = f"control: {best['control']}{note}"
            axes.axhline(best[metric], color=GREY, ls=":", lw=1.6, label=label)
        axes.axhline(0.5, color=GREY, lw=0.7)

    def _finish(self, figure: Figure, axes: Axes, title: str) -> Figure:
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
