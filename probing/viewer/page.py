"""One HTML file that shows the traces of finished probes: text, scores, labels, heads, tokens.

1. The probes are read again and checked against their trace files, and against each other where
   several stand side by side (`probing.viewer.views`).
2. Heads are chosen of each: the set, its mean, and as many others as the size allows.
3. The attention of single tokens is captured for a few of them (`probing.viewer.masses`).
4. Everything is packed (`probing.viewer.blocks`) into data blocks, one a trace, that the page reads
   when the trace is shown; template, style and scripts go in beside them.

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

from probing.files.headers import refuse_overwriting, whole_file
from probing.folder import ProbeResult
from probing.settings import Progress, no_progress
from probing.traces.file import Trace
from probing.traces.phrases import Phrases
from probing.viewer.blocks import index_of, phrase_path, title_of, trace_block
from probing.viewer.config import ViewerConfig
from probing.viewer.masses import TraceMasses, token_masses
from probing.viewer.pack import TOKEN_SCALE, json_for_html, pack_cells, pack_codes, token_cells
from probing.viewer.views import (
    ShownProbe,
    choose_views,
    load_probes,
    probe_names,
    shared_traces,
)

HERE = Path(__file__).parent / "assets"
# By subject; each names only what comes before it, but for calls once the page stands.
SCRIPTS = (
    "data.js", "views.js", "scale.js", "page.js", "list.js", "steps.js", "tokens.js", "find.js",
    "heads.js", "export.js", "events.js",
)  # fmt: skip


@dataclass(frozen=True)
class ModelInPage:
    """What a page holds of one probe, in numbers."""

    name: str
    scored: int  # traces that the probe scored
    heads: int  # whose step scores are there
    all_heads: int
    token_heads: int  # whose tokens are there


@dataclass(frozen=True)
class Page:
    """What was written, for the command to say."""

    path: Path
    traces: int
    alone: int  # traces that are not there since not every probe scored them
    models: tuple[ModelInPage, ...]
    size: int  # bytes


def write_page(config: ViewerConfig, progress: Progress = no_progress) -> Page:
    """Write the page, whole or not at all.

    Raises:
        KfhError: no finished probe, changed files, an unknown trace or head, a changed model,
            probes of other traces or steps, or more traces than a page can hold.
    """
    refuse_overwriting(config.page, config.traces)
    probes = load_probes([config.folder, *config.beside], config.traces)  # 1
    traces, alone = shared_traces(probes, config.ids or None, config.most)
    shown = []
    for name, probe in zip(probe_names(probes), probes, strict=True):  # 2
        heads = config.heads or None if _same_shape(probe, probes[0]) else None
        views = choose_views(probe, traces, heads, config.tokens, len(probes))
        shown.append(ShownProbe(name, probe, views))
    masses: list[Iterable[TraceMasses]] = [  # 3
        token_masses(
            item.probe, traces, item.views.token_heads, device=config.device, progress=progress
        )
        if item.views.token_heads
        else ()
        for item in shown
    ]
    return pack_page(shown, traces, masses, config.page, alone)  # 4


def _same_shape(probe: ProbeResult, other: ProbeResult) -> bool:
    return probe.pairs == other.pairs


def pack_page(
    shown: Sequence[ShownProbe],
    traces: Sequence[Trace],
    masses: Sequence[Iterable[TraceMasses]],
    path: Path,
    alone: int = 0,
) -> Page:
    """Pack what is known and write it.

    Args:
        shown: the probes.
        traces: in the order of the page, scored by each of them.
        masses: for each probe, of the tokens of these traces for its `token_heads`, in any order.
        path: the file to write.
        alone: traces left out since not every probe scored them, to be said in the page.
    """
    tokens = [pack_tokens(item, masses[place]) for place, item in enumerate(shown)]
    phrases = Phrases.load(phrase_path(shown[0].probe))
    blocks = [json_for_html(index_of(shown, traces, alone))]
    for trace in traces:
        content = trace_block(trace, shown, phrases)
        for model, packed in zip(content["models"], tokens, strict=True):
            model.update(packed.get(trace.id, {}))
        blocks.append(json_for_html(content))
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(page_parts(title_of(shown), blocks))
    models = tuple(
        ModelInPage(
            item.name,
            len(item.probe.scored),
            len(item.views.heads),
            len(item.probe.table),
            len(item.views.token_heads),
        )
        for item in shown
    )
    return Page(path, len(traces), alone, models, path.stat().st_size)


def pack_tokens(item: ShownProbe, masses: Iterable[TraceMasses]) -> dict[str, dict[str, str]]:
    """Cells and codes of the tokens of each trace by its id."""
    packed = {}
    for trace, offsets, mass in masses:
        cells = token_cells(offsets, len(trace.response))
        ratios = cells.means(item.views.means(mass)) / item.probe.scored[trace.id].base
        packed[trace.id] = {
            "cells": pack_cells(trace.response, cells),
            "mass": pack_codes(TOKEN_SCALE.encode(ratios)),
        }
    return packed


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
