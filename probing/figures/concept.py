"""The concept in one picture: a trace, its steps, and the answer looking back by one head.

`python -m probing.figures.concept FILE.png` draws it from a shipped trace of the pocket reasoner.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Patch

from probing.errors import DataError
from probing.figures.style import (
    BLACK,
    GREY,
    LABEL,
    SMALL,
    TITLE,
    plain,
    save_figure,
    spell,
    styled,
)
from probing.figures.trace import LABEL_LOOK, step_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probing.choices import Head
    from probing.traces.file import Trace

TRACE = "pocket-00045"  # three definitions on the path, no correction: nine steps that fit a page
HEAD = (2, 3)  # the head that the shipped set `pocket` trains with
ROOM = 0.31  # of the left panel, for the arrows at its right


@styled
def concept_figure(trace: Trace, ratios: np.ndarray, title: str) -> Figure:
    """A trace as lines, arrows from its answer to its steps, and beside them the step scores.

    An arrow is the wider the more attention per token the step gets.

    Args:
        trace: with its steps; a few, since each is a line.
        ratios: (step,) score of each step over S_base (no unit).
        title: above the figure.

    Raises:
        DataError: not as many ratios as steps, or no step.
    """
    if len(ratios) != len(trace.steps) or not trace.steps:
        raise DataError(f"trace {trace.id}: {len(ratios)} scores for {len(trace.steps)} steps")
    rows = len(trace.steps)
    figure = Figure(figsize=(8.6, 1.5 + 0.26 * rows))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2.1, 1])
    _write_trace(left, trace)
    _draw_arrows(left, ratios)
    for row, (step, ratio) in enumerate(zip(trace.steps, ratios, strict=True)):
        colour, hatch = LABEL_LOOK[step.label]
        right.barh(row, ratio, 0.62, color=colour, hatch=hatch, edgecolor="white", lw=0)
    right.plot([1, 1], [-0.6, rows - 0.4], color=GREY, ls=":", lw=1.4)
    right.set_xlabel("step score / S_base\n(dotted: uniform attention)")
    right.set_ylim(rows + 0.75, -1.5)
    right.set_xlim(0, None)
    right.set_facecolor("none")
    right.tick_params(left=False, labelleft=False)
    plain(right)
    right.spines["left"].set_bounds(-0.5, rows - 0.5)
    _legend(right, trace)
    figure.suptitle(title, x=0.02, ha="left", fontsize=TITLE)
    figure.subplots_adjust(left=0.02, right=0.98, top=0.93, bottom=0.17, wspace=0.06)
    return figure


def _write_trace(axes: Axes, trace: Trace) -> None:
    """Problem, steps and answer, a line each, in the left panel (x from 0 to 1)."""
    rows = len(trace.steps)
    axes.set_xlim(0, 1)
    axes.set_axis_off()
    mono: dict[str, Any] = {"fontsize": LABEL, "va": "center", "family": "DejaVu Sans Mono"}
    problem = " ".join((trace.problem or trace.prompt).split())
    axes.text(0.022, -1, spell(f"Problem: {problem}"), color=GREY, **mono)
    for row, step in enumerate(trace.steps):
        colour, _ = LABEL_LOOK[step.label]
        axes.barh(row, 0.009, 0.8, color=colour)
        axes.text(0.022, row, step_text(trace, row), **mono)
    answer = " ".join(trace.answer_text().split())
    box = {"boxstyle": "round,pad=0.35", "fc": "#F2F2F2", "ec": BLACK, "lw": 0.8}
    axes.plot([0.1, 1 - ROOM + 0.02], [rows + 0.1] * 2, color=BLACK, lw=1.6)  # to the arrows' foot
    axes.text(0.022, rows + 0.1, spell(f"Answer: {answer}"), bbox=box, **mono)


def _draw_arrows(axes: Axes, ratios: np.ndarray) -> None:
    """From the answer, at the foot of the left panel, up to each step: wide where it looks."""
    rows, start = len(ratios), 1 - ROOM
    share = ratios / np.nanmax(ratios)
    for row in np.argsort(share):  # the widest last, over the others
        arrow = FancyArrowPatch(
            (start + 0.02, rows + 0.1),
            (start, row),
            connectionstyle="arc3,rad=0.55",
            arrowstyle="-|>",
            mutation_scale=7 + 5 * share[row],
            lw=0.5 + 3.2 * share[row],
            color=BLACK,
            alpha=0.18 + 0.72 * share[row],
        )
        axes.add_patch(arrow)


def _legend(axes: Axes, trace: Trace) -> None:
    labels = {step.label for step in trace.steps}
    patches = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", lw=0, label=label or "no label")
        for label, (colour, hatch) in LABEL_LOOK.items()
        if label in labels
    ]
    axes.legend(handles=patches, loc="upper right", fontsize=SMALL, ncols=len(patches))


def pocket_concept(trace_id: str = TRACE, head: Head = HEAD) -> Figure:
    """The picture of a shipped trace of the pocket reasoner, scored by one of its heads.

    Args:
        trace_id: of a trace that is shipped with the model.
        head: (layer, head), counted from 0.

    Raises:
        DataError: no such trace.
    """
    from probing.attention.capture import AttentionCapture
    from probing.attention.scores import score_traces
    from probing.models.load import load_model, load_tokenizer, pocket_model
    from probing.traces.file import read_traces
    from probing.traces.source import pocket_traces
    from probing.traces.tokens import encode_trace

    trace = next((trace for trace in read_traces(pocket_traces()) if trace.id == trace_id), None)
    if trace is None:
        raise DataError(f"the pocket traces hold no trace {trace_id!r}")
    folder = str(pocket_model())
    encoded = encode_trace(load_tokenizer(folder), trace)
    capture = AttentionCapture(load_model(folder, device="cpu"), [head])
    scored = next(score_traces(capture, [encoded]))
    layer, place = head
    title = (
        f"While it writes its answer, head {layer}.{place} of this model looks back at the steps "
        "that the answer follows from"
    )
    return concept_figure(trace, scored.scores[0] / scored.base, title)


if __name__ == "__main__":
    save_figure(pocket_concept(), Path(sys.argv[1]))
