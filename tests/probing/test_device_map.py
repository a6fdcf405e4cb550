"""A model that is spread over devices and a disk gives what it gives on one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import model_folder, trace_file
from typer.testing import CliRunner

from kfh.cli import app, out_of_memory
from probing.attention.capture import AttentionCapture
from probing.config import ProbeConfig
from probing.errors import ModelError
from probing.headset import HeadFigures, HeadSet
from probing.interventions.job import intervene
from probing.interventions.setup import InterventionConfig
from probing.labelling.cause import label_by_cause
from probing.models.identity import ModelCard, weights_fingerprint
from probing.models.load import load_model, load_tokenizer, with_random_weights
from probing.run import probe
from probing.traces.file import read_traces


def spread(folder: Path) -> tuple[Any, Any]:
    """A model on the CPU, and the same with half of its layers on a disk."""
    name = str(model_folder(folder / "model"))
    plain = load_model(name, device="cpu")
    where = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    layers = range(plain.config.num_hidden_layers)
    where |= {f"model.layers.{n}": "disk" if n % 2 else "cpu" for n in layers}
    return plain, load_model(name, dtype="float32", device_map=where | {"lm_head": "cpu"})


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("spread")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return spread(folder)


def test_masses_and_fingerprint_are_those_of_one_device(both: tuple[Any, Any]) -> None:
    plain, parted = both
    assert {parameter.device.type for parameter in parted.parameters()} == {"cpu", "meta"}
    ids = torch.randint(0, 200, (2, 30), generator=torch.Generator().manual_seed(0))
    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[:, -5:] = True
    masses = []
    for model in both:
        with AttentionCapture(model) as capture:
            masses.append(capture(ids, answer))
    assert torch.equal(*masses) and masses[0].abs().sum() > 0
    assert weights_fingerprint(parted) == weights_fingerprint(plain)


def test_a_spread_model_is_probed_alike(both: tuple[Any, Any], tmp_path: Path) -> None:
    traces = trace_file(tmp_path / "traces.jsonl", 6)
    name = both[0].config._name_or_path
    tables = []
    for number, model in enumerate(both):
        config = ProbeConfig(name, traces, tmp_path / str(number), permutations=20)
        result = probe(config, model=model, tokenizer=load_tokenizer(name))
        assert result is not None
        tables.append(result.table)
    assert tables[0].equals(tables[1])


def test_what_does_not_go_together_is_refused(both: tuple[Any, Any], tmp_path: Path) -> None:
    name = both[0].config._name_or_path
    with pytest.raises(ModelError, match="names one device"):
        load_model(name, device="cpu", device_map="auto")
    with pytest.raises(ModelError, match="device_map 'outo'; did you mean auto"):
        load_model(name, device_map="outo")
    with pytest.raises(ModelError, match="a model on one device"):
        with_random_weights(both[1])


def test_auto_is_offered_where_a_model_is(tmp_path: Path) -> None:
    folder = str(model_folder(tmp_path / "model"))
    traces = str(trace_file(tmp_path / "traces.jsonl", 6))
    given = ["probe", "--model", folder, "--traces", traces, "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*given, "--device-map", "auto", "--permutations", "20"])
    assert done.exit_code == 0, done.output


def test_memory_errors_say_what_to_set() -> None:
    torch_s = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. More text")
    for error in (
        torch_s,
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: x"),
    ):
        said = out_of_memory(error)
        assert "--batch-tokens" in said and "--device-map auto" in said and "More" not in said
    assert out_of_memory(RuntimeError("shapes differ")) == ""


@pytest.mark.slow
def test_labels_by_cause_and_interventions_are_alike(both: tuple[Any, Any], tmp_path: Path) -> None:
    """Hidden steps, removed steps, silenced heads, and answers decoded behind them."""
    name = both[0].config._name_or_path
    tokenizer = load_tokenizer(name)
    traces = list(read_traces(trace_file(tmp_path / "traces.jsonl", 3)))
    card = ModelCard.of(name, both[0].config)
    heads = HeadSet((HeadFigures(1, 1), HeadFigures(2, 0)), card)
    config = InterventionConfig(remove=(1,), draws=1, max_answer_tokens=4)
    labels, effects = [], []
    for number, model in enumerate(both):
        out = tmp_path / f"{number}.jsonl"
        label_by_cause(model, tokenizer, traces, out)
        labels.append([line for line in out.read_text().splitlines() if '"kfh"' not in line])
        found = intervene(
            model,
            tokenizer,
            heads,
            traces,
            lambda *_: True,
            parts=("steps", "heads"),
            config=config,
        )
        effects.append(found.table)
    assert labels[0] == labels[1] and len(labels[0]) == 15
    assert effects[0].equals(effects[1]) and set(effects[0]["part"]) == {"steps", "heads"}
