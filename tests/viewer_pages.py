"""What the tests of the viewer share: probes, a page of 200 long traces, and how to read a page."""

from __future__ import annotations

import base64
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from helpers import model_folder, trace_line, write_lines

import probing.viewer.page as viewer
from probing.attention.scores import ScoredTrace
from probing.config import ProbeConfig
from probing.folder import FinishedProbe
from probing.headset import HeadFigures, HeadSet
from probing.models.identity import ModelCard
from probing.run import probe
from probing.traces.source import TraceSource
from probing.viewer.page import ViewerConfig, pack_page

HOSTILE = [
    "First, <script>window.pwned=1</script> is text.\n",
    "Wait, </script><img src=x onerror='window.pwned=2'> &amp; &lt;b&gt;.\n",
    "So 😀 is one, שלום עולם is two 👩‍👩‍👧 <!-- \u2028 {{script}}.\n\n",
    "Alternatively, ]]> `${window.pwned=3}` \\u003c is nothing.\n",
]


def hostile_line() -> dict:
    starts = np.cumsum([0, *map(len, HOSTILE)]).tolist()
    spans = [
        {"start": a, "end": b, "label": ("redundant", "essential")[n % 2]}
        for n, (a, b) in enumerate(pairwise(starts))
    ]
    markup = "<b onclick=window.pwned=4>7</b> 😀 \\boxed{7}"
    text = "".join(HOSTILE)
    return {
        "id": "t/<i>x</i>",
        "prompt": "Add.\n<think>\n",
        "response": f"{text}</think> {markup}",
        "problem": "<script>window.pwned=5</script> & שלום",
        "correct": False,
        "steps": spans,
    }


def make_probe(place: Path) -> Path:
    """A finished probe of a tiny random model; the last trace is full of markup."""
    lines = [trace_line(n, steps=4 + n % 4) for n in range(6)]
    traces = write_lines(place / "traces.jsonl", [*lines, hostile_line()])
    model = str(model_folder(place / "model"))
    out = place / "probe"
    config = ProbeConfig(
        model=model, traces=traces, out=out, keep="all", permutations=20, device="cpu"
    )
    probe(config)
    return out


def blocks(path: Path) -> dict[str, Any]:
    """Every data block of a page, by its id."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', text, re.S)
    return {name: json.loads(block) for name, block in found}


def codes(text: str, kind: str, rows: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=f"<{kind}").reshape(rows, -1)


def unpack(text: str) -> list[tuple[int, int, int]]:
    """What data.js does, once more: start, end and number of tokens of each cell."""
    numbers, value, shift = [], 0, 0
    for byte in base64.b64decode(text):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    cells, at = [], 0
    queue = iter(numbers)
    for head in queue:
        at += next(queue) if head & 1 else 0
        at, start = at + head // 4, at
        cells.append((start, at, next(queue) if head & 2 else 1))
    return cells


def large_probe(place: Path) -> FinishedProbe:
    """A probe of 200 long traces with random scores, as it would be read from a folder."""
    rng = np.random.default_rng(0)
    lines, scored = [], {}
    heads = [(layer, head) for layer in range(28) for head in range(12)]
    for n in range(200):
        text = " ".join(["Wait, the sum of 12 and 7 is 19. 😀"] * 4) + "\n"
        ends = (len(text) * np.arange(1, 91)).tolist()
        spans = [
            {"start": end - len(text), "end": end, "label": ("essential", "redundant")[k % 2]}
            for k, end in enumerate(ends)
        ]
        response = text * 90 + "</think> It is 19."
        lines.append(trace_line(n, steps=4) | {"response": response, "steps": spans})
        scores = rng.lognormal(-5, 1, (len(heads), 90)).astype(np.float32)
        scored[f"t/{n}"] = ScoredTrace(f"t/{n}", scores, np.full(90, 55), 10, 5000)
    table = pd.DataFrame(heads, columns=["layer", "head"])
    for name in ("sra", "sra_low", "sra_high", "balanced", "gating"):
        table[name] = rng.uniform(0.3, 0.9, len(heads))
    best = table.sort_values("sra", ascending=False).head(3)
    chosen = tuple(HeadFigures(int(r.layer), int(r.head)) for r in best.itertuples())
    card = ModelCard("large", "qwen2", 28, 12, None)
    run = {
        "config": {"answer": "all", "traces": "large.jsonl"},
        "model": {"id": "large"},
        "counts": {"ranked": 200},
    }
    source = TraceSource(write_lines(place / "large.jsonl", lines))
    return FinishedProbe(place, table, run, HeadSet(chosen, card), {}, scored, source)


def large_page(place: Path) -> viewer.Page:
    probed = large_probe(place)
    shown = list(probed.traces())
    config = ViewerConfig(place, place / "large.html")
    views = viewer.choose_views(probed, shown, config)
    length = len(shown[0].response)
    cuts = np.linspace(0, length, 4961).astype(np.int64)
    prompt = np.zeros((40, 2), dtype=np.int64)
    offsets = np.concatenate([prompt, np.stack([cuts[:-1], cuts[1:]], axis=1)])
    mass = np.random.default_rng(0).lognormal(-7, 1, (len(views.token_heads), 5000))
    masses = ((trace, offsets, mass.astype(np.float32)) for trace in shown)
    return pack_page(probed, shown, views, masses, config.path)
