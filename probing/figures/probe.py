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
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from probing.figures.style import (
    BLUE,
    GREEN,
    GREY,
    LABEL,
    ORANGE,
    RED,
    TICK,
    TITLE,
    legend_above,
    plain,
    styled,
)
from probing.figures.style import FORMATS as FORMATS
from probing.figures.style import save_figure as save_figure
from probing.figures.trace import step_strip as step_strip
from probing.folder import read_tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probing.folder import ProbeResult


CLASSES = (0.0, 0.60, 0.75, 0.90, 1.0)  # the paper's colour classes of SRA
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

    def all(self, metric: str = "sra") -> dict[str, Figure]:
        """Every figure by its file name."""
        return {
            "heatmap": self.heatmap(metric),
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
    def heatmap(self, metric: str = "sra") -> Figure:
        """Layer × head: the paper's colour classes on the left, continuous on the right."""
        layers, heads = self.grid(metric).shape
        figure = Figure(figsize=(2.6 + 0.36 * max(heads, 8), 1.8 + 0.17 * max(layers, 10)))
        left, right = figure.subplots(1, 2, sharey=True)
        self.draw_heatmap(left, metric)
        self.draw_heatmap(right, metric, classes=False)
        left.set_title("classes", fontsize=LABEL)
        right.set(title="continuous", ylabel="")
        figure.suptitle(f"{self.title(metric)}; red: the head set", fontsize=TITLE)
        figure.tight_layout()
        return figure

    def draw_heatmap(self, axes: Axes, metric: str = "sra", classes: bool = True) -> None:
        """Layer × head on given axes, the head set ringed; by classes, or continuous."""
        grid = self.grid(metric)
        if classes:
            colours = colormaps["cividis"](np.linspace(0.08, 1.0, len(CLASSES) - 1))
            norm = BoundaryNorm(CLASSES, len(CLASSES) - 1)
            colouring: dict[str, Any] = {"norm": norm, "cmap": ListedColormap(colours)}
        else:
            ends = {"vmin": np.nanmin(grid), "vmax": np.nanmax(grid)}
            colouring = {**ends, "cmap": "cividis"}
        image = axes.imshow(grid, aspect="auto", origin="lower", **colouring)
        bar = axes.figure.colorbar(image, ax=axes, fraction=0.06, pad=0.03)
        bar.ax.tick_params(labelsize=TICK)
        if classes:
            bar.set_ticks(CLASSES, labels=[f"{value:.2f}" for value in CLASSES])
        for layer, head in self.chosen():
            axes.plot(head, layer, "o", mfc="none", mec=RED, mew=1.4, ms=7)
        axes.set(xlabel="head", ylabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))

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
