"""Figures of interventions, drawn from `ablation.json`: what each change costs, with intervals.

In the look of `probing.figures.style`; arms differ in hatches or dashes, too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from probing.errors import DataError
from probing.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, plain, styled
from probing.interventions.claims import MEASURES
from probing.interventions.outcomes import NONE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


FILE = "ablation.json"
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


@dataclass(frozen=True, eq=False)
class InterventionFigures:
    """What the figures need: the summary as a table, and the content of the file."""

    summary: pd.DataFrame
    run: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> InterventionFigures:
        """From the folder of `kfh ablate`.

        Raises:
            DataError: the file is missing or damaged.
        """
        try:
            run = json.loads((folder / FILE).read_text(encoding="utf-8"))
            return cls(pd.DataFrame(run["summary"]), run)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder}: no finished ablation ({error!r}); run `kfh ablate --out {folder}` first"
            ) from error

    @styled
    def all(self) -> dict[str, Figure]:
        """Every figure that the file has outcomes for, by its file name."""
        makers = {"steps": self.steps, "heads": self.heads, "steering": self.steering}
        there = set(self.summary["part"])
        return {f"ablation-{part}": make() for part, make in makers.items() if part in there}

    def steps(self) -> Figure:
        """Bars by number of steps removed and by arm; the line is the answer to the whole trace."""
        return self._bars("steps", "dose", "steps removed", "Answers with steps removed")

    def heads(self) -> Figure:
        """Bars by way of ablation: the head set against random heads of its layers."""
        return self._bars("heads", "mode", "", "Answers with heads ablated")

    def steering(self) -> Figure:
        """Dose and response: the factor on attention to a step, and what the answer makes of it."""
        own = self.summary[self.summary["part"] == "steering"]
        figure, panels = self._panels("steering")
        for measure, axes in panels.items():
            of = own[own["measure"] == measure]
            none = of[of["arm"] == NONE]
            # Factors may lie orders of magnitude apart, and 0 is one of them: each has its place.
            doses = sorted(of["dose"].unique())
            for arm in (arm for arm in LINES if arm in set(of["arm"])):
                colour, dash, marker, name = LINES[arm]
                # At the factor 1 nothing is changed, whatever the arm.
                rows = pd.concat([of[of["arm"] == arm], none]).sort_values("dose")
                where = [doses.index(dose) for dose in rows["dose"]]
                axes.plot(
                    where, rows["value"], color=colour, ls=dash, marker=marker, ms=4, label=name
                )
                axes.fill_between(where, rows["low"], rows["high"], color=colour, alpha=0.15, lw=0)
            self._none_line(axes, of)
            axes.set_xticks(
                range(len(doses)), [f"{dose:g}" for dose in doses], fontsize=8, rotation=45
            )
            axes.set(xlabel="factor on the attention to the step", ylabel=AXES[measure])
            plain(axes)
        return self._finish(figure, "steering", "Answers under steered attention")

    def _panels(self, part: str) -> tuple[Figure, dict[str, Axes]]:
        """A panel a measure that the part has, at most two in a row."""
        there = set(self.summary[self.summary["part"] == part]["measure"])
        measures = [measure for measure in MEASURES[part] if measure in there]
        rows = -(-len(measures) // 2)
        figure = Figure(figsize=(8.4, 0.6 + 3.0 * rows))
        axes = figure.subplots(rows, 2, squeeze=False).flatten()
        for spare in axes[len(measures) :]:
            spare.set_axis_off()
        return figure, dict(zip(measures, axes, strict=False))

    def _bars(self, part: str, by: str, xlabel: str, title: str) -> Figure:
        own = self.summary[self.summary["part"] == part]
        changed = own[own["arm"] != NONE]
        groups = list(dict.fromkeys(changed[by]))
        arms = [arm for arm in BARS if arm in set(changed["arm"])]
        width = 0.84 / len(arms)
        figure, panels = self._panels(part)
        for measure, axes in panels.items():
            of = own[own["measure"] == measure]
            for place, arm in enumerate(arms):
                rows = of[of["arm"] == arm].set_index(by).reindex(groups)
                where = np.arange(len(groups)) + (place - (len(arms) - 1) / 2) * width
                reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
                colour, hatch, name = BARS[arm]
                name = f"{name} heads of the same layers" if arm + part == "randomheads" else name
                axes.bar(
                    where, rows["value"], width, yerr=reach, color=colour, hatch=hatch,
                    edgecolor="white", lw=0, error_kw={"lw": 1}, label=name,
                )  # fmt: skip
            self._none_line(axes, of)
            names = [f"{g:g}" if by == "dose" else MODE_NAMES.get(g, g) for g in groups]
            axes.set_xticks(range(len(groups)), names, fontsize=8)
            axes.set(xlabel=xlabel, ylabel=AXES[measure])
            if measure in ("accuracy", "source_kept"):
                axes.set_ylim(0, 1.04)
            plain(axes)
        return self._finish(figure, part, title)

    def _none_line(self, axes: Axes, rows: pd.DataFrame) -> None:
        """The answer where nothing is changed, with its interval."""
        none = rows[rows["arm"] == NONE]
        if none.empty:
            return
        one = none.iloc[0]
        axes.axhline(one["value"], color="black", ls=":", lw=1.4, label="nothing changed")
        axes.axhspan(one["low"], one["high"], color="black", alpha=0.08, lw=0)

    def _finish(self, figure: Figure, part: str, title: str) -> Figure:
        model = Path(self.run["head_set"]["model"]["id"]).name
        traces = self.run["counts"]["parts"][part]["traces"]
        heads = ", ".join(f"{layer}.{head}" for layer, head in self.run["head_set"]["heads"])
        figure.suptitle(
            f"{title}: {model}, head set {heads}, {traces} traces; 95 % intervals over problems",
            fontsize=10, x=0.01, ha="left",
        )  # fmt: skip
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.tight_layout(rect=(0, 0.28 / figure.get_figheight(), 1, 1))
        figure.legend(
            handles, names, loc="lower center", ncols=len(names), fontsize=8, frameon=False
        )
        return figure
