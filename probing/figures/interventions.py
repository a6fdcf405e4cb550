"""Figures of interventions: what each change costs, with intervals.

In the look of `probing.figures.style`; arms differ in hatches or dashes, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from probing.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, plain, styled
from probing.interventions.claims import MEASURES
from probing.interventions.outcomes import NONE
from probing.interventions.result import InterventionResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


BARS = {  # arm → colour, hatch, name
    "chosen": (ORANGE, "", "the head set"),
    "high": (ORANGE, "", "highest scores"),
    "matched": (PURPLE, "xx", "random, as many tokens"),
    "random": (GREY, "..", "random"),
    "recent": (GREEN, "\\\\", "most recent"),
    "low": (BLUE, "//", "lowest scores"),
}
LINES = {
    "chosen": (ORANGE, "-", "o", "head set, to the step"),
    "random": (GREY, "--", "s", "random heads, to the step"),
    "other-step": (BLUE, ":", "^", "head set, to another step"),
}
MODE_NAMES = {
    "zero/all": "zero,\nall positions",
    "mean/all": "mean,\nall positions",
    "zero/answer-to-steps": "zero,\nanswer to\nsteps",
    "mean/answer-to-steps": "mean,\nanswer to\nsteps",
    "block/answer-to-steps": "blocked,\nanswer to\nsteps",
}
AXES = {
    "accuracy": "accuracy of the new answer",
    "logprob": "log-probability of the\ncorrect answer (nats)",
    "source_kept": "values copied from the\nsame step as before (share)",
    "follow": "how far the answer follows\nan altered step (nats)",
}


@styled
def intervention_figures(result: InterventionResult) -> dict[str, Figure]:
    """Every figure of the parts that there are outcomes of, by its file name."""
    draw = {"steps": removed_steps, "heads": silenced_heads, "steering": steered_heads}
    there = set(result.table["part"])
    return {f"ablation-{part}": make(result) for part, make in draw.items() if part in there}


@styled
def removed_steps(result: InterventionResult) -> Figure:
    """Bars by number of steps removed and by arm; the line is the answer to the whole trace."""
    return _bars(result, "steps", "dose", "steps removed", "Answers with steps removed")


@styled
def silenced_heads(result: InterventionResult) -> Figure:
    """Bars by way of silencing: the head set against random heads of its layers."""
    return _bars(result, "heads", "mode", "", "Answers with heads ablated")


@styled
def steered_heads(result: InterventionResult) -> Figure:
    """Dose and response: the factor on attention to a step, and what the answer makes of it."""
    table = result.table[result.table["part"] == "steering"]
    figure, panels = _panels(table, "steering")
    for measure, axes in panels.items():
        rows = table[table["measure"] == measure]
        unchanged = rows[rows["arm"] == NONE]
        # Factors may lie orders of magnitude apart, and 0 is one of them: each has its place.
        doses = sorted(rows["dose"].unique())
        for arm in (arm for arm in LINES if arm in set(rows["arm"])):
            colour, dash, marker, name = LINES[arm]
            # At the factor 1 nothing is changed, whatever the arm.
            line = pd.concat([rows[rows["arm"] == arm], unchanged]).sort_values("dose")
            where = [doses.index(dose) for dose in line["dose"]]
            axes.plot(where, line["value"], color=colour, ls=dash, marker=marker, ms=4, label=name)
            axes.fill_between(where, line["low"], line["high"], color=colour, alpha=0.15, lw=0)
        _unchanged_line(axes, unchanged)
        names = [f"{dose:g}" for dose in doses]
        axes.set_xticks(range(len(doses)), names, fontsize=8, rotation=45)
        axes.set(xlabel="factor on the attention to the step", ylabel=AXES[measure])
        plain(axes)
    return _finish(figure, result, "steering", "Answers under steered attention")


def _panels(table: pd.DataFrame, part: str) -> tuple[Figure, dict[str, Axes]]:
    """A panel a measure that the part has, at most two in a row."""
    there = set(table["measure"])
    measures = [measure for measure in MEASURES[part] if measure in there]
    rows = -(-len(measures) // 2)
    figure = Figure(figsize=(8.4, 0.6 + 3.0 * rows))
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    for spare in axes[len(measures) :]:
        spare.set_axis_off()
    return figure, dict(zip(measures, axes, strict=False))


def _bars(result: InterventionResult, part: str, by: str, xlabel: str, title: str) -> Figure:
    table = result.table[result.table["part"] == part]
    changed = table[table["arm"] != NONE]
    groups = list(dict.fromkeys(changed[by]))
    arms = [arm for arm in BARS if arm in set(changed["arm"])]
    width = 0.84 / len(arms)
    figure, panels = _panels(table, part)
    for measure, axes in panels.items():
        measured = table[table["measure"] == measure]
        for place, arm in enumerate(arms):
            rows = measured[measured["arm"] == arm].set_index(by).reindex(groups)
            where = np.arange(len(groups)) + (place - (len(arms) - 1) / 2) * width
            reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
            colour, hatch, name = BARS[arm]
            name = f"{name} heads of the same layers" if arm + part == "randomheads" else name
            axes.bar(
                where, rows["value"], width, yerr=reach, color=colour, hatch=hatch,
                edgecolor="white", lw=0, error_kw={"lw": 1}, label=name,
            )  # fmt: skip
        _unchanged_line(axes, measured[measured["arm"] == NONE])
        names = [f"{g:g}" if by == "dose" else MODE_NAMES.get(g, g) for g in groups]
        axes.set_xticks(range(len(groups)), names, fontsize=8)
        axes.set(xlabel=xlabel, ylabel=AXES[measure])
        if measure in ("accuracy", "source_kept"):
            axes.set_ylim(0, 1.04)
        plain(axes)
    return _finish(figure, result, part, title)


def _unchanged_line(axes: Axes, rows: pd.DataFrame) -> None:
    """The answer where nothing is changed, with its interval."""
    for row in rows.itertuples():
        axes.axhline(row.value, color="black", ls=":", lw=1.4, label="nothing changed")
        axes.axhspan(row.low, row.high, color="black", alpha=0.08, lw=0)


def _finish(figure: Figure, result: InterventionResult, part: str, title: str) -> Figure:
    traces = result.counts["parts"][part]["traces"]
    heads = ", ".join(f"{layer}.{head}" for layer, head in result.heads)
    figure.suptitle(
        f"{title}: {Path(result.head_set['model']['id']).name}, head set {heads}, {traces} traces; "
        "95 % intervals over problems",
        fontsize=10, x=0.01, ha="left",
    )  # fmt: skip
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.28 / figure.get_figheight(), 1, 1))
    figure.legend(handles, names, loc="lower center", ncols=len(names), fontsize=8, frameon=False)
    return figure
