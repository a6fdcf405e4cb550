"""Runs that go on: bit for bit, after SIGKILL and SIGINT, with the settings they began with."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
import types

import numpy as np
import pytest
import torch
from families import tiny
from helpers import byte_tokenizer, trace_line, write_lines
from pocket_runs import SMALL, config, make_trainer, resumable, step_lines
from tokenizers.processors import ByteLevel

from kfh.commands.train import run_train
from probing.config import ProbeConfig
from probing.errors import ConfigError, DataError
from probing.files.headers import data_path
from probing.headset import HeadSet
from probing.models.load import load_model
from probing.run import probe
from probing.traces.segmenters import Segmenter
from rl.attnpo.completions import Cutter
from rl.training.callbacks import Reprobe
from rl.training.job import train

pytestmark = pytest.mark.pocket


def losses(folder):
    return {
        line["step"]: (line["loss"], line["tokens"], line["gamma"]) for line in step_lines(folder)
    }


@pytest.mark.slow
def test_resumed_run_is_the_uninterrupted_run(tmp_path):
    """Bit for bit, from the middle of the second epoch (2 steps an epoch at 2 prompts a step)."""
    whole = train(resumable(tmp_path / "whole", max_steps=4, data="pocket:4"))
    train(resumable(tmp_path / "parts", max_steps=3, data="pocket:4"))
    parts = train(resumable(tmp_path / "parts", max_steps=4, data="pocket:4"), resume=True)
    assert whole["status"] == parts["status"] == "done"
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    a, b = (load_model(str(tmp_path / name / "model")) for name in ("whole", "parts"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_prompts_are_shuffled_anew_in_each_epoch(tmp_path):
    sampler = make_trainer(tmp_path, "tlmre")._get_train_sampler()
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    assert orders[0] == orders[2]


# A run that is killed


def kfh_train(out, more):
    """`kfh train` in this process, which the tests fork: what it imports is here already."""
    from kfh.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["kfh", "train", "--out", str(out), *more]
    with (out.parent / "stderr").open("a") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    main()


def start(out, *more):
    values = {**SMALL, "save_strategy": "steps", "save_steps": 1, "max_steps": 400}
    sets = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    arguments = ["--method", "attnpo", *sets] if not more else list(more)
    process = multiprocessing.get_context("fork").Process(target=kfh_train, args=(out, arguments))
    process.start()
    return process


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.is_alive(), (path.parent.parent / "stderr").read_text()[-3000:]
        assert time.monotonic() < deadline, f"{path} was never made"
        time.sleep(0.002)


@pytest.mark.slow
def test_sigkill_while_saving_leaves_the_checkpoint_before(tmp_path):
    """`--resume` alone goes on from it, with the settings of the first call; SIGINT saves."""
    out = tmp_path / "run"
    process = start(out)
    wait_for(out / "checkpoint-1", process)
    wait_for(out / "_saving", process)  # the next one is being written
    process.kill()
    process.join()
    whole = sorted(out.glob("checkpoint-*"))
    assert whole
    for folder in whole:
        names = {path.name for path in folder.iterdir()}
        assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= names
    last = max(int(folder.name.split("-")[1]) for folder in whole)
    resumed = start(out, "--resume")
    wait_for(out / f"checkpoint-{last + 1}", resumed)
    os.kill(resumed.pid, signal.SIGINT)  # saves and leaves
    resumed.join(120)
    assert resumed.exitcode == 130, (tmp_path / "stderr").read_text()[-3000:]
    content = json.loads((out / "run.json").read_text())
    assert (content["status"], content["steps"]) == ("interrupted", 400)
    steps = [line["step"] for line in step_lines(out)]
    assert (out / f"checkpoint-{steps[-1]}").is_dir() and steps[-1] > last
    assert steps == list(range(1, steps[-1] + 1))


# Settings of a run that goes on


def sets(**values):
    return [f"{key}={value}" for key, value in {**SMALL, **values}.items()]


def resume(out, *changes, recipe=None, **options):
    nothing = dict.fromkeys(("method", "model", "heads", "data", "seed"))
    return run_train(out, recipe, list(changes), True, **{**nothing, **options})


def test_resuming_keeps_the_settings_of_the_first_call(tmp_path):
    """`--set max_steps=1` of the first call is not given again; a longer run is."""
    nothing = dict.fromkeys(("method", "model", "heads", "data", "seed"))
    few = sets(max_steps=1, save_strategy="steps", save_steps=1, max_completion_length=120)
    first = run_train(tmp_path, "tlmre", few, False, **nothing)
    assert (first["status"], first["steps"]) == ("done", 1)
    for recipe in (None, "tlmre"):
        assert resume(tmp_path, recipe=recipe) == first
    with pytest.raises(ConfigError, match=r"another run \(learning_rate = 0.001, not 0.5\)"):
        resume(tmp_path, "learning_rate=0.5")
    with pytest.raises(ConfigError, match="method = 'tlmre', not 'attnpo'"):
        resume(tmp_path, method="attnpo")
    with pytest.raises(ConfigError, match=r"recipe = 'tlmre sha256:.*, not 'rloo sha256:"):
        resume(tmp_path, recipe="rloo")
    with pytest.raises(ConfigError, match=r"another run \(beta = None, not 0.1\)"):
        resume(tmp_path, "beta=0.1")
    longer = resume(tmp_path, "max_steps=2", "beta=0.0")  # beta: as it is by default
    assert (longer["status"], longer["steps"]) == ("done", 2)
    assert [line["step"] for line in step_lines(tmp_path)] == [1, 2]
    assert longer["settings"]["max_completion_length"] == 120
    assert longer["settings"]["recipe"] == first["settings"]["recipe"]


def test_the_library_keeps_them_too(tmp_path):
    """A setting of the trainer that is left out is the run's."""
    former = config(tmp_path, "tlmre", max_steps=7, seed=3).to_json()
    given = config(tmp_path, "tlmre", seed=3)
    trainer = {key: value for key, value in given.trainer.items() if key != "max_steps"}
    again = type(given)(given.model, given.data, given.out, given.heads, trainer=trainer)
    assert again.going_on(former).to_json() == former
    with pytest.raises(ConfigError, match="limit = None, not 5"):
        config(tmp_path, "tlmre", seed=3, limit=5).going_on(former)


def test_a_folder_with_another_run_is_not_touched(tmp_path):
    (tmp_path / "run.json").write_text(
        json.dumps({"settings": config(tmp_path, "tlmre").to_json(), "status": "interrupted"})
    )
    with pytest.raises(ConfigError, match="holds a run"):
        train(config(tmp_path, "attnpo"))
    with pytest.raises(ConfigError, match=r"another run \(.*method = 'tlmre', not 'attnpo'"):
        train(config(tmp_path, "attnpo"), resume=True)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DataError, match="not the file of a training run"):
        train(config(tmp_path, "attnpo"), resume=True)


# The probe during training


@pytest.mark.slow
def test_policy_is_probed_again(tmp_path):
    """Before training the probe gives what `kfh probe` gives; resuming keeps the start."""
    stored = data_path("pocket", "traces.jsonl").read_text().splitlines()[:21]
    traces = write_lines(tmp_path / "traces.jsonl", stored)
    probed = probe(ProbeConfig("pocket", traces, tmp_path / "probe", permutations=2))
    settings = {"probe_every": 1, "probe_traces": str(traces), "learning_rate": 0.02}
    out = tmp_path / "run"
    train(config(out, save_strategy="steps", save_steps=1, max_steps=1, **settings))
    train(config(out, save_strategy="steps", save_steps=1, max_steps=2, **settings), resume=True)
    lines = [json.loads(line) for line in (out / "probe.jsonl").open()][1:]
    assert [line["step"] for line in lines] == [0, 1, 2]
    np.testing.assert_allclose(lines[0]["all_sra"], probed.table["sra"], atol=1e-6)
    assert lines[0]["correlation"] == pytest.approx(1.0)
    assert all(abs(line["correlation"]) < 1 - 1e-6 for line in lines[1:])
    pairs = [(head["layer"], head["head"]) for head in lines[2]["heads"]]
    assert pairs == HeadSet.load("pocket").pairs
    changed = np.corrcoef(lines[2]["all_sra"], lines[0]["all_sra"])[0, 1]
    assert lines[2]["correlation"] == pytest.approx(changed)


def test_traces_left_with_one_kind_of_step_are_left_out(tmp_path):
    """A step without a token has no score; the trace whose one redundant step it is has no pair."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    model = tiny("llama", vocab_size=len(tokenizer))
    whole, broken = trace_line(0, steps=4), trace_line(1, steps=3)
    first, second, third = broken["steps"]
    first |= {"start": first["end"] - 1, "label": "redundant"}  # a space alone
    broken["response"] = (
        broken["response"][: first["start"]] + " " + broken["response"][first["end"] :]
    )
    second["label"] = third["label"] = "essential"
    cutter = Cutter(tokenizer, (1,), Segmenter("line"))
    state = types.SimpleNamespace(is_world_process_zero=True, global_step=0)
    path = write_lines(tmp_path / "traces.jsonl", [whole, broken])
    probed = Reprobe(tmp_path, path, None, cutter)
    probed.on_train_begin(None, state, None, model=model)
    line = json.loads((tmp_path / "probe.jsonl").read_text().splitlines()[1])
    assert (line["traces"], line["traces_left_out"]) == (1, 1)
    alone = Reprobe(tmp_path / "a", write_lines(tmp_path / "one.jsonl", [whole]), None, cutter)
    alone.on_train_begin(None, state, None, model=model)
    np.testing.assert_array_equal(alone.start, probed.start)
    path = write_lines(tmp_path / "broken.jsonl", [broken])
    with pytest.raises(DataError, match=r"broken\.jsonl: no trace has both"):
        Reprobe(tmp_path / "b", path, None, cutter).on_train_begin(None, state, None, model=model)
