"""What the tests of the viewer share: probes, their pages, a browser, and how a page is read.

A plugin of pytest (`pytest_plugins` in each module that uses it), so that all of them share the
probes and the browser.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from families import tiny
from helpers import model_folder, trace_line, write_lines
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from probing.attention.scores import ScoredTrace
from probing.config import ProbeConfig
from probing.folder import ProbeResult
from probing.headset import HeadFigures, HeadSet
from probing.models.identity import ModelCard
from probing.run import probe
from probing.viewer.pack import STEP_SCALE
from probing.viewer.page import Page, ViewerConfig, pack_page, write_page
from probing.viewer.views import ShownProbe, choose_views

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
    return probe_traces(traces, model_folder(place / "model"), place / "probe")


def make_other_probe(place: Path, traces: Path) -> Path:
    """A probe of the same traces by a model of another shape, whose every byte is a token."""
    model = place / "other"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(model)
    changes = {"vocab_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 512}
    tiny("qwen2", **changes).save_pretrained(model)
    return probe_traces(traces, model, place / "other-probe")


def probe_traces(traces: Path, model: Path, out: Path) -> Path:
    probe(
        ProbeConfig(
            model=str(model), traces=traces, out=out, keep="all", permutations=20, device="cpu"
        )
    )
    return out


@pytest.fixture(scope="session")
def viewer_probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished probe."""
    return make_probe(tmp_path_factory.mktemp("viewer"))


@pytest.fixture(scope="session")
def page_file(viewer_probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its page."""
    return write_page(ViewerConfig(viewer_probe, tmp_path_factory.mktemp("page") / "x.html")).path


@pytest.fixture(scope="session")
def other_probe(viewer_probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a probe of the same traces by another model."""
    return make_other_probe(tmp_path_factory.mktemp("other"), viewer_probe.parent / "traces.jsonl")


@pytest.fixture(scope="session")
def two_file(
    viewer_probe: Path, other_probe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The page of both probes."""
    out = tmp_path_factory.mktemp("two") / "two.html"
    return write_page(ViewerConfig(viewer_probe, out, beside=(other_probe,))).path


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


def large_probe(place: Path) -> ProbeResult:
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
    config = ProbeConfig("large", write_lines(place / "large.jsonl", lines), place)
    result = ProbeResult(
        folder=place,
        config=config,
        card=card,
        table=table,
        controls=pd.DataFrame(),
        curves={},
        chosen=[(head.layer, head.head) for head in chosen],
        set_caveats=[],
        scorers={},
        null={},
        counts={"ranked": 200},
    )
    # What would be read from the folder.
    vars(result).update(head_set=HeadSet(chosen, card), scored=scored, source=config.source)
    return result


def large_page(place: Path) -> Page:
    probed = large_probe(place)
    shown = list(probed.traces())
    views = choose_views(probed, shown)
    length = len(shown[0].response)
    cuts = np.linspace(0, length, 4961).astype(np.int64)
    prompt = np.zeros((40, 2), dtype=np.int64)
    offsets = np.concatenate([prompt, np.stack([cuts[:-1], cuts[1:]], axis=1)])
    mass = np.random.default_rng(0).lognormal(-7, 1, (len(views.token_heads), 5000))
    masses = ((trace, offsets, mass.astype(np.float32)) for trace in shown)
    item = ShownProbe("large", probed, views)
    return pack_page([item], shown, [masses], place / "large.html")


# ---- the page in a browser


def chromium() -> str:
    """The browser, or a skip; an error where the environment says that there must be one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("KFH_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found:
        return found
    if os.environ.get("KFH_NEED_BROWSER"):
        pytest.fail("KFH_NEED_BROWSER is set, but there is no chromium on PATH")
    pytest.skip("no chromium on PATH (KFH_CHROMIUM names one)")


# Of a module, not of the session: playwright keeps an event loop running, in which no other test
# could run one of its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = chromium()
    sync_api = pytest.importorskip("playwright.sync_api")
    flags = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    flags += " disable-component-update disable-sync"
    with sync_api.sync_playwright() as p:
        made = p.chromium.launch(executable_path=path, args=[f"--{f}" for f in flags.split()])
        yield made
        made.close()


class Opened:
    """A page with all that it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, scheme: str = "light", address: str = "") -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(
            color_scheme=scheme, viewport={"width": 1280, "height": 900}
        )
        self.page = self.context.new_page()
        self.page.on("console", lambda m: self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.metrics = self.context.new_cdp_session(self.page)
        self.metrics.send("Performance.enable", {"timeDomain": "threadTicks"})
        started = time.perf_counter()
        self.page.goto(path.as_uri() + address)
        self.page.wait_for_selector("body[data-ready]")
        self.page.evaluate("() => new Promise(requestAnimationFrame)")
        self.seconds = time.perf_counter() - started

    def close(self) -> None:
        assert self.complaints == []
        # What is saved is read from the page itself.
        asked = [
            url.split("#")[0] for url in self.requests if not url.startswith(("blob:", "data:"))
        ]
        assert asked == [self.requests[0]]
        self.context.close()

    def cpu(self) -> float:
        """CPU seconds of the page's main thread so far."""
        metrics = self.metrics.send("Performance.getMetrics")["metrics"]
        return next(float(m["value"]) for m in metrics if m["name"] == "TaskDuration")

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.page.eval_on_selector_all(
            selector, "nodes => nodes.map(n => n.textContent)"
        )
        return found


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Opened]:
    made = Opened(browser, page_file)
    yield made
    made.close()


def exact_ratios(page_file: Path, trace: int, view: int, model: int = 0) -> np.ndarray:
    """Scores of a trace's steps by a view of a model, as the page holds them."""
    found = blocks(page_file)
    rows = len(found["index"]["models"][model]["heads"]) + 1
    block = found[f"trace-{trace}"]["models"][model]
    exact: np.ndarray = STEP_SCALE.decode(codes(block["scores"], "u2", rows))[view]
    return exact


def ratios_of(page_file: Path, trace: int, view: int) -> list[str]:
    exact = exact_ratios(page_file, trace, view)
    assert exact.min() > 0.095  # smaller ones are written with two digits
    return [f"{ratio:.2f}" for ratio in exact]
