"""The figure of head types: how they go together, and other scorers beside the head set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from probing.choices import METRIC_NAMES
from probing.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    SMALL,
    panel_letters,
    plain,
    spell,
    styled,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def types_figure(content: dict[str, Any]) -> Figure:
    """Spearman's ρ between types, and SRA of step scorers on problems not chosen on.

    Args:
        content: the content of types.json.
    """
    names, scorers = content["correlations"]["names"], _known(content)
    height = max(0.42 * len(names), 0.25 * len(scorers)) + 1.6
    figure = Figure(figsize=(10.4, height))
    left, right = figure.subplots(1, 2, width_ratios=[5, 4])
    draw_correlations(left, content)
    draw_scorers(right, content)
    counts, name = content["counts"], str(content["model"]["id"]).rstrip("/").rpartition("/")[2]
    chosen = ", ".join(f"{layer}.{head}" for layer, head in content["set"])
    title = (
        f"What else are the heads of {name}? {counts['heads']} heads, {counts['traces']} traces of "
        f"{counts['problems']} problems; the set: {chosen}"
    )
    figure.suptitle(wrapped(spell(title), 9.8), x=0.02, ha="left")
    panel_letters([left, right])
    figure.tight_layout()
    return figure


def draw_correlations(axes: Axes, content: dict[str, Any]) -> None:
    """Spearman's ρ over heads of every type with every other, as numbers on colours."""
    names = content["correlations"]["names"]
    grid = np.array(content["correlations"]["matrix"], dtype=float)
    axes.imshow(grid, vmin=-1, vmax=1, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        text = "–" if np.isnan(value) else f"{value:.2f}"
        colour = BLACK if np.isnan(value) or value > 0.2 else "white"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=SMALL)
    shown = [METRIC_NAMES.get(name, name) for name in names]
    axes.set_xticks(range(len(names)), shown, rotation=90)
    axes.set_yticks(range(len(names)), shown)
    axes.set_title("Spearman's ρ over heads", loc="left")


def _known(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The scorers, the best on top."""
    rows = [row for row in content["scorers"] if row["sra"] is not None]
    return sorted(rows, key=lambda row: row["sra"])


def draw_scorers(axes: Axes, content: dict[str, Any]) -> None:
    """SRA of each scorer with its interval, the head set's in another colour."""
    rows = _known(content)
    for place, row in enumerate(rows):
        kind = GREY if row.get("control") else BLUE
        colour = GREEN if row["scorer"] == "head set" else kind
        marker = "s" if row.get("control") else "o"
        if row["sra_low"] is not None:
            axes.plot([row["sra_low"], row["sra_high"]], [place, place], color=colour, lw=1.6)
        axes.plot(row["sra"], place, color=colour, marker=marker, ms=5, ls="")
    axes.axvline(0.5, color=GREY, ls=":", lw=1)
    axes.set_yticks(range(len(rows)), [spell(row["scorer"]) for row in rows])
    axes.set(xlabel="SRA, all traces (95 % over problems); squares: controls", xlim=(0, 1.02))
    plain(axes, "scorers of steps")
