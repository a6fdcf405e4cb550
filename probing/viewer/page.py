"""One HTML file that shows the traces of a finished probe: text, scores, labels, heads, tokens.

1. The probe is read again and checked against its trace file (`probing.folder`).
2. Heads are chosen: the set, its mean, and as many others as the size allows.
3. The attention of single tokens is captured for a few of them (`probing.viewer.masses`).
4. Everything is packed (`probing.viewer.pack`) into data blocks, one a trace, that the page reads
   when the trace is shown; template, style and script go in beside them.

The page loads nothing. Its Content-Security-Policy allows this one script and this one style, by
their hashes; the text of traces is data to it, never markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt

from probing.attention.scores import ScoredTrace
from probing.choices import Head
from probing.errors import ConfigError
from probing.files.headers import HEADER, file_header, whole_file
from probing.folder import FinishedProbe
from probing.ranking.metrics import ranked_trace, step_ranking_accuracy
from probing.settings import Progress, no_progress
from probing.traces.file import Trace
from probing.traces.phrases import Phrases, opening
from probing.traces.segmenters import Segmenter
from probing.traces.source import SourceReport
from probing.viewer.masses import TraceMasses, token_masses
from probing.viewer.pack import (
    STEP_SCALE,
    TOKEN_SCALE,
    json_for_html,
    pack_cells,
    pack_codes,
    token_cells,
    utf16_offsets,
)

HERE = Path(__file__).parent / "assets"
SCRIPTS = ("data.js", "viewer.js", "events.js")
# What a page may hold, before base64 adds a third: 28 × 12 heads of 200 traces of 90 steps fit.
STEP_BYTES = 12 << 20
TOKEN_BYTES = 16 << 20
PAIR_BYTES = 16 << 20  # of the comparisons that are held at once
LIMIT = 200
OTHERS = 4


@dataclass(frozen=True)
class ViewerConfig:
    """What a page is to show.

    Args:
        folder: of a finished probe.
        out: the HTML file to write; None: `trace.html` in the folder.
        traces: the probe's trace file, where that has moved.
        ids: traces to show; None: the first `limit` of the file.
        limit: most traces; 0: all.
        heads: heads beside the set whose tokens are shown; None: the `OTHERS` best by SRA.
        tokens: capture the attention of single tokens; without, no model is loaded.
        device: for that.
    """

    folder: Path
    out: Path | None = None
    traces: Path | None = None
    ids: tuple[str, ...] | None = None
    limit: int = LIMIT
    heads: tuple[Head, ...] | None = None
    tokens: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        """Check what can be known before anything is read."""
        if self.limit < 0:
            raise ConfigError(f"--limit is a number of traces, or 0 for all, not {self.limit}")
        if self.out is not None and self.out.suffix not in (".html", ".htm"):
            raise ConfigError(f"--out {self.out}: the page is written to a file NAME.html")

    @property
    def path(self) -> Path:
        """The file to write."""
        return self.out or self.folder / "trace.html"


@dataclass(frozen=True)
class Page:
    """What was written, for the command to say."""

    path: Path
    traces: int
    scored: int  # traces that the probe scored
    heads: int  # whose step scores are there
    all_heads: int
    token_heads: int  # whose tokens are there
    size: int  # bytes


@dataclass(frozen=True)
class Views:
    """What the head picker offers: the mean of the set, then heads, those of the set first."""

    heads: tuple[Head, ...]
    set_size: int
    token_heads: tuple[Head, ...]  # a beginning of `heads`, or empty

    @property
    def token_views(self) -> int:
        """How many of the views hold tokens: the mean and these heads."""
        return len(self.token_heads) + 1 if self.token_heads else 0

    def means(self, values: Float[np.ndarray, "head *any"]) -> Float[np.ndarray, "view *any"]:
        """The mean of the set's heads, put before the heads' own values."""
        return np.concatenate([values[: self.set_size].mean(axis=0, keepdims=True), values])


def write_page(config: ViewerConfig, progress: Progress = no_progress) -> Page:
    """Write the page, whole or not at all.

    Raises:
        KfhError: no finished probe, changed files, an unknown trace or head, a changed model, or
            more traces than a page can hold.
    """
    probe = FinishedProbe.load(config.folder, config.traces)  # 1
    shown = list(_first(probe.traces(config.ids), config.limit))
    views = choose_views(probe, shown, config)  # 2
    masses: Iterable[TraceMasses] = ()
    if views.token_heads:  # 3
        masses = token_masses(
            probe, shown, views.token_heads, device=config.device, progress=progress
        )
    return pack_page(probe, shown, views, masses, config.path)  # 4


def pack_page(
    probe: FinishedProbe,
    shown: Sequence[Trace],
    views: Views,
    masses: Iterable[TraceMasses],
    path: Path,
) -> Page:
    """Pack what is known and write it.

    Args:
        probe: the finished probe.
        shown: traces, in the order of the page.
        views: what the head picker offers.
        masses: of the tokens of these traces for `views.token_heads`, in any order.
        path: the file to write.
    """
    packed: dict[str, dict[str, str]] = {}
    for trace, offsets, mass in masses:
        cells = token_cells(offsets, len(trace.response))
        ratios = cells.means(views.means(mass)) / probe.scored[trace.id].base
        packed[trace.id] = {
            "cells": pack_cells(trace.response, cells),
            "mass": pack_codes(TOKEN_SCALE.encode(ratios)),
        }
    phrases = Phrases.load(_phrase_path(probe))
    blocks = [json_for_html(index_of(probe, shown, views))]
    for trace in shown:
        content = trace_block(trace, probe.scored[trace.id], probe, views, phrases)
        blocks.append(json_for_html({**content, **packed.get(trace.id, {})}))
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(page_parts(_title(probe), blocks))
    return Page(
        path,
        len(shown),
        len(probe.scored),
        len(views.heads),
        len(probe.table),
        len(views.token_heads),
        path.stat().st_size,
    )


def _first(traces: Iterator[Trace], limit: int) -> Iterator[Trace]:
    for number, trace in enumerate(traces):
        if limit and number >= limit:
            return
        yield trace


def choose_views(probe: FinishedProbe, shown: Sequence[Trace], config: ViewerConfig) -> Views:
    """The set, the heads asked for, and the best others, as many as the size allows.

    Raises:
        ConfigError: an unknown head, or not even the set (and the heads asked for) fits.
    """
    ranked = probe.table.sort_values("sra", ascending=False, kind="stable")
    best = [(int(row.layer), int(row.head)) for row in ranked.itertuples()]
    chosen = list(probe.head_set.pairs)
    probe.places(config.heads or ())
    asked = [head for head in dict.fromkeys(config.heads or ()) if head not in chosen]
    order = [*chosen, *asked]
    order += [head for head in best if head not in order]
    sizes = [probe.scored[trace.id] for trace in shown]
    steps = 2 * sum(len(own.tokens) for own in sizes)
    tokens = sum(own.total_tokens for own in sizes)
    needed = len(chosen) + len(asked)
    most = min(len(order), STEP_BYTES // max(steps, 1) - 1)
    wanted = needed if config.heads is not None else min(needed + OTHERS, len(order))
    with_tokens = min(wanted, TOKEN_BYTES // max(tokens, 1) - 1, most) if config.tokens else 0
    if most < needed or (config.tokens and with_tokens < needed):
        raise ConfigError(
            f"{len(shown)} traces of {tokens:,} tokens are too much for one page "
            f"({STEP_BYTES >> 20} MB of step scores, {TOKEN_BYTES >> 20} MB of tokens, for "
            f"{needed} heads and their mean); show fewer with --limit or --ids, or leave the "
            "tokens out (--no-tokens)"
        )
    return Views(tuple(order[:most]), len(chosen), tuple(order[:with_tokens]))


def index_of(probe: FinishedProbe, shown: Sequence[Trace], views: Views) -> dict[str, Any]:
    """The page's first block: the model, its heads, and a line a trace for the list."""
    table = probe.table.set_index(["layer", "head"])
    names = ("sra", "sra_low", "sra_high", "balanced", "gating")
    heads = []
    for layer, head in views.heads:
        figures = {name: _number(table.loc[(layer, head), name]) for name in names}
        heads.append({"layer": layer, "head": head, **figures})
    settings = probe.run["config"]
    return {
        HEADER: file_header("trace viewer", probe=str(probe.folder)),
        "title": _title(probe),
        "answer": settings["answer"],
        "ranked": probe.run["counts"]["ranked"],
        "scored": len(probe.scored),
        "scales": {"step": STEP_SCALE.to_json(), "token": TOKEN_SCALE.to_json()},
        "set": views.set_size,
        "setSra": _set_sra(probe),
        "tokenViews": views.token_views,
        "heads": heads,
        "grid": [
            [layer, head, _number(sra)]
            for (layer, head), sra in zip(probe.pairs, probe.table["sra"], strict=True)
        ],
        "traces": [_index_line(trace, probe.scored[trace.id], probe, views) for trace in shown],
    }


def _index_line(
    trace: Trace, own: ScoredTrace, probe: FinishedProbe, views: Views
) -> dict[str, Any]:
    labels = [step.label for step in trace.steps]
    sra = trace_sra(trace, own, probe, views)
    line = {
        "id": trace.id,
        "problem": trace.problem or trace.prompt,
        "correct": trace.correct,
        "steps": len(trace.steps),
        "essential": labels.count("essential"),
        "redundant": labels.count("redundant"),
        "tokens": own.total_tokens,
        "answerTokens": own.answer_tokens,
        "pairs": 0,
    }
    if sra is None:
        return line
    values, pairs = sra
    # As codes from 1, since a list of numbers would take five times the room.
    codes = 1 + np.rint(values * 65534)
    return {**line, "pairs": pairs, "sra": pack_codes(codes.astype(np.uint16))}


def trace_sra(
    trace: Trace, own: ScoredTrace, probe: FinishedProbe, views: Views
) -> tuple[Float[np.ndarray, "view"], int] | None:
    """SRA of one trace by each view (eq. 2), and its number of pairs; None without a pair."""
    ranked = ranked_trace(trace, own, SourceReport())
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


def _set_sra(probe: FinishedProbe) -> float:
    """SRA of the set's mean over all ranked traces, as the table has it for single heads."""
    only_set = Views(tuple(probe.head_set.pairs), len(probe.head_set.pairs), ())
    found = [trace_sra(t, probe.scored[t.id], probe, only_set) for t in probe.traces()]
    return float(np.mean([own[0][0] for own in found if own is not None]))


def trace_block(
    trace: Trace, own: ScoredTrace, probe: FinishedProbe, views: Views, phrases: Phrases
) -> dict[str, Any]:
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
            [*span, step.label, *opening(text, step, phrases), int(tokens)]
            for span, step, tokens in zip(units, trace.steps, own.tokens, strict=True)
        ],
        "scores": pack_codes(step_codes(own, probe, views)),
    }


def step_codes(
    own: ScoredTrace, probe: FinishedProbe, views: Views
) -> UInt[np.ndarray, "view step"]:
    """Codes of S_k / S_base by each view."""
    scores = views.means(own.scores[probe.places(views.heads)].astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):  # a trace without answer token has no base
        return STEP_SCALE.encode(scores / own.base)


def _phrase_path(probe: FinishedProbe) -> Path:
    source = probe.source
    cut = Segmenter.parse(source.segmenter) if source.segmenter.endswith(".json") else Segmenter()
    return cut.phrase_path


def _title(probe: FinishedProbe) -> str:
    model, traces = probe.run["model"]["id"], probe.run["config"]["traces"]
    return f"{Path(model).name} on {Path(traces).name}"


def _number(value: Any) -> float | None:
    """A float for JSON, rounded to what is shown."""
    return None if np.isnan(value) else round(float(value), 5)


def page_parts(title: str, blocks: Sequence[str]) -> Iterator[str]:
    """The page, in parts to be written one after another.

    Args:
        title: as text.
        blocks: JSON that is safe within a <script> (`json_for_html`): the index, then the traces.
    """
    style = (HERE / "viewer.css").read_text(encoding="utf-8")
    script = "".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    values = {"title": html.escape(title), "policy": policy, "style": style, "script": script}
    template = (HERE / "viewer.html").read_text(encoding="utf-8")
    # One pass over the template alone: what is put in is not looked at again.
    for number, part in enumerate(re.split(r"\{\{(\w+)\}\}", template)):
        if number % 2 == 0:
            yield part
        elif part != "data":
            yield values[part]
        else:
            for place, block in enumerate(blocks):
                name = f"trace-{place - 1}" if place else "index"
                yield f'<script type="application/json" id="{name}">{block}</script>\n'


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
