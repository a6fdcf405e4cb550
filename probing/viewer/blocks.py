"""The data blocks of a page: an index of models and traces, and a block a trace; see data.js."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt

from probing.attention.scores import ScoredTrace
from probing.files.headers import HEADER, file_header
from probing.folder import ProbeResult
from probing.ranking.metrics import ranked_trace, step_ranking_accuracy
from probing.traces.file import Trace
from probing.traces.phrases import Phrases, opening
from probing.traces.segmenters import Segmenter
from probing.viewer.pack import STEP_SCALE, TOKEN_SCALE, pack_codes, utf16_offsets
from probing.viewer.views import ShownProbe, Views

PAIR_BYTES = 16 << 20  # of the comparisons that are held at once


def index_of(
    shown: Sequence[ShownProbe], traces: Sequence[Trace], alone: int = 0
) -> dict[str, Any]:
    """The page's first block: models, their heads, and a line a trace for the list.

    Args:
        shown: the probes.
        traces: of the page, in its order.
        alone: traces that are not there since not every probe scored them.
    """
    folders = [str(item.probe.folder) for item in shown]
    return {
        HEADER: file_header("trace viewer", probe=folders[0], beside=folders[1:]),
        "title": title_of(shown),
        "alone": alone,
        "scales": {"step": STEP_SCALE.to_json(), "token": TOKEN_SCALE.to_json()},
        "models": [_model(item) for item in shown],
        "traces": [_line(trace, shown) for trace in traces],
    }


def title_of(shown: Sequence[ShownProbe]) -> str:
    """Models and traces, in a line."""
    traces = shown[0].probe.config.traces
    return f"{' and '.join(item.name for item in shown)} on {Path(traces).name}"


def _model(item: ShownProbe) -> dict[str, Any]:
    probe, views = item.probe, item.views
    table = probe.table.set_index(["layer", "head"])
    names = ("sra", "sra_low", "sra_high", "balanced", "gating")
    return {
        "name": item.name,
        "answer": probe.config.answer,
        "ranked": probe.counts["ranked"],
        "scored": len(probe.scored),
        "set": views.set_size,
        "setSra": _set_sra(probe),
        "tokenViews": views.token_views,
        "heads": [
            {
                "layer": layer,
                "head": head,
                **{name: _number(table.loc[(layer, head), name]) for name in names},
            }
            for layer, head in views.heads
        ],
        "grid": [
            [layer, head, _number(sra)]
            for (layer, head), sra in zip(probe.pairs, probe.table["sra"], strict=True)
        ],
    }


def _line(trace: Trace, shown: Sequence[ShownProbe]) -> dict[str, Any]:
    labels = [step.label for step in trace.steps]
    return {
        "id": trace.id,
        "problem": trace.problem or trace.prompt,
        "correct": trace.correct,
        "steps": len(trace.steps),
        "essential": labels.count("essential"),
        "redundant": labels.count("redundant"),
        "models": [_scored_line(trace, item.probe, item.views) for item in shown],
    }


def _scored_line(trace: Trace, probe: ProbeResult, views: Views) -> dict[str, Any]:
    scored = probe.scored[trace.id]
    line = {"tokens": scored.total_tokens, "answerTokens": scored.answer_tokens, "pairs": 0}
    sra = trace_sra(trace, scored, probe, views)
    if sra is None:
        return line
    values, pairs = sra
    # As codes from 1, since a list of numbers would take five times the room.
    codes = 1 + np.rint(values * 65534)
    return {**line, "pairs": pairs, "sra": pack_codes(codes.astype(np.uint16))}


def trace_sra(
    trace: Trace, scored: ScoredTrace, probe: ProbeResult, views: Views
) -> tuple[Float[np.ndarray, "view"], int] | None:
    """SRA of one trace by each view (eq. 2), and its number of pairs; None without a pair."""
    ranked = ranked_trace(trace, scored, probe.config.answer)
    if ranked is None:
        return None
    scores = views.means(ranked.scores[probe.places(views.heads)])
    essential = ranked.essential
    pairs = int(essential.sum() * (~essential).sum())
    size = max(1, PAIR_BYTES // (8 * pairs))
    parts = [
        step_ranking_accuracy(scores[at : at + size], essential)
        for at in range(0, len(scores), size)
    ]
    return np.concatenate(parts), pairs


def _set_sra(probe: ProbeResult) -> float:
    """SRA of the set's mean over all ranked traces, as the table has it for single heads."""
    only_set = Views(tuple(probe.head_set.pairs), len(probe.head_set.pairs), ())
    values = [trace_sra(t, probe.scored[t.id], probe, only_set) for t in probe.traces()]
    return float(np.mean([sra[0][0] for sra in values if sra is not None]))


def trace_block(trace: Trace, shown: Sequence[ShownProbe], phrases: Phrases) -> dict[str, Any]:
    """What the page holds of a trace without its tokens; offsets count UTF-16 units."""
    text = trace.response
    places = np.array([[step.start, step.end] for step in trace.steps])
    units = utf16_offsets(text, places).tolist()
    think, answer = utf16_offsets(text, np.array([trace.reasoning_end, trace.answer_start]))
    return {
        "text": text,
        "think": int(think),
        "answer": int(answer),
        "steps": [
            [*span, step.label, *opening(text, step, phrases)]
            for span, step in zip(units, trace.steps, strict=True)
        ],
        "models": [
            {
                "tokens": item.probe.scored[trace.id].tokens.tolist(),
                "scores": pack_codes(step_codes(trace, item.probe, item.views)),
            }
            for item in shown
        ],
    }


def step_codes(trace: Trace, probe: ProbeResult, views: Views) -> UInt[np.ndarray, "view step"]:
    """Codes of S_k / S_base by each view."""
    scored = probe.scored[trace.id]
    scores = views.means(scored.scores[probe.places(views.heads)].astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):  # a trace without answer token has no base
        return STEP_SCALE.encode(scores / scored.base)


def phrase_path(probe: ProbeResult) -> Path:
    """The file of the phrases by which a probe's steps were cut, or the shipped one."""
    cutter = probe.source.cutter
    return (cutter if cutter and cutter.name == "attnpo" else Segmenter()).phrase_path


def _number(value: Any) -> float | None:
    """A float for JSON, rounded to what is shown."""
    return None if np.isnan(value) else round(float(value), 5)
