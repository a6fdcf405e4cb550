"""The concept figure: what it draws is what the head does, and its caption is true."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import check_texts, trace_line
from matplotlib.patches import FancyArrowPatch, Rectangle

from probing.errors import DataError
from probing.figures.concept import TRACE, concept_figure, pocket_concept
from probing.traces.file import Trace, parse_trace, read_traces
from probing.traces.source import pocket_traces


@pytest.mark.pocket
def test_caption_is_true_of_the_pocket_head() -> None:
    """Every essential step stands above uniform attention, every redundant one below it."""
    trace = next(trace for trace in read_traces(pocket_traces()) if trace.id == TRACE)
    figure = pocket_concept()
    bars = [patch for patch in figure.axes[1].patches if isinstance(patch, Rectangle)]
    above = [bar.get_width() > 1 for bar in bars]
    assert above == [step.label == "essential" for step in trace.steps]
    assert "head 2.3" in figure.get_suptitle()
    check_texts(figure)


def made_up_trace() -> Trace:
    return parse_trace(json.dumps(trace_line(1, steps=5)))


def test_arrows_are_as_wide_as_the_scores() -> None:
    ratios = np.array([0.1, 2.0, 0.5, 1.0, 0.3])
    figure = concept_figure(made_up_trace(), ratios, "a title")
    arrows = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == 5
    widths = sorted(arrow.get_linewidth() for arrow in arrows)
    expected = np.sort(0.5 + 3.2 * ratios / 2.0)
    np.testing.assert_allclose(widths, expected)
    check_texts(figure)


def test_another_trace_than_was_scored_is_refused() -> None:
    with pytest.raises(DataError, match="2 scores for 5 steps"):
        concept_figure(made_up_trace(), np.ones(2), "")
    with pytest.raises(DataError, match="no trace 'x'"):
        pocket_concept("x")
