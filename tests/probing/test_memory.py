"""Batches as large as memory holds: what a token takes, what is free, what becomes of too large."""

from __future__ import annotations

import doctest
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny
from helpers import byte_tokenizer, kfh, model_folder, said, trace_file
from torch.profiler import ProfilerActivity, profile

import probing.attention.memory as memory
import probing.errors
from probing.attention.capture import AttentionCapture
from probing.attention.memory import (
    BatchSize,
    PassBytes,
    control_group_room,
    free_bytes,
    measured_bytes,
    tokens_that_fit,
)
from probing.attention.scores import open_capture, score_traces
from probing.config import ProbeConfig
from probing.errors import ConfigError
from probing.folder import ProbeResult
from probing.headset import HeadFigures, HeadSet
from probing.interventions.job import intervene
from probing.interventions.setup import InterventionConfig, Setup
from probing.models.front import CPU_CHUNK
from probing.models.identity import ModelCard
from probing.models.load import load_model
from probing.run import probe
from probing.traces.file import read_traces
from probing.traces.tokens import encode_trace


def test_worked_examples() -> None:
    for module in (memory, probing.errors):
        result = doctest.testmod(module)
        assert result.attempted and not result.failed


@pytest.mark.parametrize("pair", [0, 3])
def test_as_many_tokens_as_fit_and_no_more(pair: int) -> None:
    cost = PassBytes(700, pair)
    for free in (0, -5, 600, 10**5, 10**7 + 1, 10**9):
        n = tokens_that_fit(free, cost, 2**20)
        assert n == 1 or 700 * n + pair * n * n <= free
        assert 700 * 2 * n + pair * 4 * n * n > free
    assert tokens_that_fit(1e15, cost, 4096) == 4096


def peak(work: Any) -> int:
    """Bytes that torch holds at most on the CPU while it does the work, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(np.cumsum(sizes).max())


SHAPES: dict[str, dict] = {
    "llama": {"intermediate_size": 1024},
    "mistral-window": {},
    "gemma2": {},  # eager, with two kinds of mask
    "gpt_oss": {"num_experts_per_tok": 2, "intermediate_size": 128},
}


@pytest.mark.parametrize("family", SHAPES)
def test_a_pass_takes_no_more_than_was_reckoned(family: str) -> None:
    """Nor far less: the slope of the peak, from one pass to one of twice the tokens."""
    model = tiny(family, **SHAPES[family])
    capture = AttentionCapture(model, chunk_bytes=1 << 15)
    cost = PassBytes.of(model.config, torch.float32, len(capture.heads))
    peaks = []
    with capture:
        for tokens in (256, 128):  # the longer one first: its buffers serve both
            ids = torch.randint(3, 101, (4, tokens))
            answer = torch.arange(tokens).expand(4, -1) >= tokens * 7 // 8
            peaks.append(peak(lambda ids=ids, answer=answer: capture(ids, answer)))
    found = (peaks[0] - peaks[1]) / (4 * 128)
    reckoned = cost.token + cost.pair * (256**2 - 128**2) / 128
    assert 0.4 * reckoned < found <= reckoned, (found, reckoned)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_is_measured() -> None:
    # Heads as wide as real ones: narrower ones get a kernel that keeps whole patterns.
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "head_dim": 64}
    model = tiny("llama", intermediate_size=4096, max_position_embeddings=4096, **sizes).to("cuda")
    capture = open_capture(model)
    cost = PassBytes.of(model.config, torch.float32, len(capture.heads))
    assert 0.3 * cost.token < measured_bytes(capture, model) <= 1.1 * cost.token
    assert 8192 <= BatchSize.auto_of(model, capture).tokens <= memory.GPU_MOST


def group(path: Path, **files: object) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(f"{content}\n")


def test_control_groups_of_either_version_count(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "groups"
    assert control_group_room(own, root) is None
    own.write_text("0::/job/step\n")
    assert control_group_room(own, root) is None, "the groups cannot be read"
    group(root / "job", memory__max=1000, memory__current=700, memory__stat="inactive_file 50")
    group(root / "job/step", memory__max="max", memory__current=600, memory__stat="anon 600")
    assert control_group_room(own, root) == 350, "a group above sets the limit"
    group(root / "job/step", memory__max=620)
    assert control_group_room(own, root) == 20
    group(root / "job/step", memory__max=500)
    assert control_group_room(own, root) == 0
    # Version 1; a container sees its own group as the root, whatever the path says.
    own.write_text("3:cpu,cpuacct:/job\n2:memory:/docker/abc\n0::/elsewhere\n")
    group(
        root / "memory", memory__limit_in_bytes=900, memory__usage_in_bytes=500,
        memory__stat="inactive_file 7\ntotal_inactive_file 100",
    )  # fmt: skip
    assert control_group_room(own, root) == 500


def test_the_least_of_what_is_free_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Machine:
        available = 9000

    monkeypatch.setattr(psutil, "virtual_memory", Machine)
    monkeypatch.setattr(memory, "control_group_room", lambda: None)
    model = torch.nn.Linear(2, 2)
    assert free_bytes(model) == 9000
    monkeypatch.setattr(memory, "control_group_room", lambda: 5000)
    assert free_bytes(model) == 5000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_bytes(model) == 2500, "two processes share the machine"
    for name, value in (
        ("mem_get_info", (100, 900)),
        ("memory_reserved", 50),
        ("memory_allocated", 30),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory._free_on(torch.device("cuda")) == 120, "with what torch keeps unused"


def test_auto_is_a_safe_power_of_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llama")
    capture = open_capture(model)
    sizes = []
    for free in (1e12, leaving(2.5e6), leaving(6.5e5), 1):
        monkeypatch.setattr(memory, "free_bytes", lambda trunk, free=free: free)
        sizes.append(BatchSize.auto_of(model, capture))
    assert all(size.auto for size in sizes)
    found = [size.tokens for size in sizes]
    assert found[0] == 8192, "no more on a CPU than what is the default"
    assert found == sorted(found, reverse=True) and found[1] > found[2] > found[3] == 1
    assert all(np.log2(found) % 1 == 0)
    assert BatchSize.auto_of(model).tokens == 1, "nor for kept contexts"


def leaving(room: float) -> float:
    """Free memory on a CPU of which so many bytes are left for tokens."""
    return (room + memory.CHUNKS * CPU_CHUNK) / memory.SHARE


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("given")
    return str(model_folder(folder / "model")), trace_file(folder / "traces.jsonl", 8)


class Small:
    """A capture on a device that holds so many tokens."""

    def __init__(self, capture: Any, holds: int) -> None:
        self.capture, self.holds, self.passes = capture, holds, []
        # Of its own: from Python 3.12 on a protocol sees no `__getattr__`.
        self.heads, self.lengths = capture.heads, capture.lengths

    def __getattr__(self, name: str) -> Any:
        return getattr(self.capture, name)

    def __enter__(self) -> None:
        self.capture.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.capture.__exit__(*error)

    def __call__(self, ids: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        self.passes.append(tuple(ids.shape))
        if ids.numel() > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self.capture(ids, answer)


def test_a_batch_too_large_is_made_in_halves(given: tuple[str, Path]) -> None:
    tokenizer = byte_tokenizer()
    capture = open_capture(tiny("llama", vocab_size=len(tokenizer)))
    traces = [encode_trace(tokenizer, trace) for trace in read_traces(given[1])]
    longest = max(map(len, traces))
    whole = list(score_traces(capture, traces, batch_tokens=10**5))
    small, size, moved = Small(capture, 3 * longest), BatchSize(10**5, auto=True), []
    with pytest.warns(UserWarning, match=r"the GPU's memory is too small for a batch of .* tokens"):
        scored = list(
            score_traces(small, traces, batch_tokens=size, advance=lambda *n: moved.append(n))
        )
    assert [one.id for one in scored] == [one.id for one in whole]
    for one, other in zip(scored, whole, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
    assert size.halved == 2 and size.tokens == 8 * longest // 4
    assert [rows for rows, _ in small.passes] == [8, 4, 2, 2, 2, 2]
    assert np.sum(moved, axis=0).tolist() == [8, sum(map(len, traces))]
    # Not where the number was given, a trace is alone, or something else is wrong.
    for wrong, holds in ((BatchSize(10**5), longest), (BatchSize(10**5, auto=True), longest - 1)):
        with pytest.raises(torch.OutOfMemoryError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            list(score_traces(Small(capture, holds), traces, batch_tokens=wrong))
    assert not size.halve(RuntimeError("shapes differ"), 100, 4) and size.halved == 2


def test_a_probe_goes_on_where_auto_is_another_number(
    given: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, traces = given
    names = []

    @contextmanager
    def stopped(name: str, total: int) -> Iterator[Callable[[int, int], None]]:
        def advance(traces: int, tokens: int) -> None:
            names.append(name)
            raise KeyboardInterrupt

        yield advance

    config = ProbeConfig(model, traces, tmp_path, batch_tokens="auto", device="cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda trunk: leaving(6.5e5))
    with pytest.raises(KeyboardInterrupt):
        probe(config, progress=stopped)
    assert names == ["scoring, batches of 256 tokens"]
    monkeypatch.setattr(memory, "free_bytes", lambda trunk: 1e10)
    words = ["--model", model, "--traces", traces, "--permutations", 5, "--device", "cpu"]
    done = kfh("probe", *words, "--out", tmp_path, "--batch-tokens", "auto")
    assert done.exit_code == 0 and "in batches of 8,192 tokens" in " ".join(said(done).split())
    run = json.loads((tmp_path / "run.json").read_text())
    speed = {"batch_tokens": 8192, "batches_halved": 0, "resumed": 8 - run["speed"]["traces"]}
    assert run["config"]["batch_tokens"] == "auto" and 0 < speed["resumed"] < 8
    assert run["speed"] == {**run["speed"], **speed}
    tokenizer = byte_tokenizer()
    encoded = (encode_trace(tokenizer, trace, rule="overlap") for trace in read_traces(traces))
    alone = score_traces(open_capture(load_model(model)), encoded, batch_tokens=1)
    stored = ProbeResult.load(tmp_path).scored
    for trace in alone:
        np.testing.assert_allclose(stored[trace.id].scores, trace.scores, atol=1e-6)


def test_outcomes_are_gone_on_with_whatever_the_number(
    given: tuple[str, Path], tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    heads = HeadSet((HeadFigures(1, 1),), ModelCard.of("tiny", model.config))
    traces = list(read_traces(given[1]))[:2]
    config = InterventionConfig(remove=(1,), draws=1, max_answer_tokens=0)
    setup = Setup(model, tokenizer, heads, (), (), replace(config, batch_tokens="auto"), bool)
    assert setup.batch_tokens == setup.config.batch_tokens > 1
    found = []
    for tokens in ("auto", 256):
        result = intervene(
            model, tokenizer, heads, traces, lambda trace, ids: True, ends=frozenset([1]),
            config=replace(config, batch_tokens=tokens), out=tmp_path,
        )  # fmt: skip
        found.append((result.counts.pop("batch_tokens"), result.counts, result.table))
    assert found[0][0] == setup.batch_tokens and found[1][0] == 256
    assert found[0][1] == found[1][1] and found[0][2].equals(found[1][2])
    with pytest.raises(ConfigError, match="unknown batch_tokens 'aut'; did you mean auto"):
        replace(config, batch_tokens="aut")
    with pytest.raises(ConfigError, match="must be at least 1"):
        replace(config, batch_tokens=0)
