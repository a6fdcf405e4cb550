"""A task and a model of one's own, by the commands: trained, evaluated, asked, compared, probed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import gpt2_folder
from helpers import kfh, model_folder, said, write_lines
from transformers import AutoModelForCausalLM

import rl.runs.job
from probing.errors import ConfigError, ModelError
from probing.models.decode import Sampling, decode
from probing.models.load import ModelSource, load_model
from probing.traces.file import read_traces
from rl.evaluation.config import EvalConfig
from rl.runs.folders import read_course

pytest.importorskip("peft")

# Names a number; without labels, with them, and as the reader of a file of questions.
MODULE = """
from rl.tasks import Question, QuestionSet, Task
from rl.tasks.questions import Maths
from probing.traces.file import Step


class Bare(Task):
    name = "naming"
    instruction = "Name it."

    def questions(self, spec, limit, seed):
        parts = {"checked": (4, 5), "reported": (6, 7)}
        numbers = parts.get(spec, range(limit or 4))
        asked = tuple(Question(f"n/{n}", f"{n}?", "19") for n in numbers)
        return QuestionSet("naming", asked, self, {"spec": spec})

    def correct(self, question, answer):
        return question.answer in answer


class Full(Bare):
    def label(self, question, response):
        reasoning = response.partition("</think>")[0]
        middle = reasoning.index("\\n") + 1
        ends = (0, middle, "essential"), (middle, len(reasoning), "redundant")
        return [Step(*end) for end in ends]

    def readable(self, question, response):
        return response.count("\\n") == 2

    def shortest(self, question):
        return "12 + 7\\n</think>19"


class Loose(Maths):
    def correct(self, question, answer):
        return question.answer in answer
"""
RESPONSE = "12 + 7\nHm.\n</think> 19"
ENDS = ("--template", "plain")
ASKED = ("--temperature", 1, "--top-p", 1, "--max-tokens", 40, *ENDS)
RUN = {
    "lora_r": 2,
    "learning_rate": 0.01,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_generations": 2,
    "max_completion_length": 24,
    "gradient_checkpointing": "false",
    "segmenter": "line",
    "template": "plain",
    "schedule_steps": 0,
}
SETS = [word for name, value in RUN.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learnt one response, and wavers now and then."""
    torch.manual_seed(0)
    folder = model_folder(tmp_path_factory.mktemp("own") / "base")
    model, tokenizer = ModelSource(str(folder), device="cpu").load()
    rows = [
        tokenizer(f"{n}?\nName it.\n<think>\n{RESPONSE}</s>", return_tensors="pt")["input_ids"]
        for n in range(8)
    ]
    ids = torch.cat(rows)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(40):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    return folder


def done(*words: Any) -> str:
    result = kfh(*words)
    assert result.exit_code == 0, said(result)
    return str(result.output)


def at_once(config: Any, arm: Any) -> Any:
    """A training run of a comparison, in this process."""
    done("train", *config.train(arm)[len(config.command) :])
    return SimpleNamespace(poll=lambda: 0, returncode=0)


@pytest.mark.parametrize(("name", "method"), [("Bare", "grpo"), ("Full", "oracle")])
def test_an_own_task_and_model_go_through_every_command(
    name: str, method: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_task.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    full, made = name == "Full", ("--model", base, "--task", f"own_task:{name}")
    monkeypatch.setattr(rl.runs.job, "start", at_once)
    out = tmp_path / "compare"
    pressed = ("--validation", "checked") if full else ()
    where = ("--reported", "reported", *pressed, "--max-tokens", 24, "--out", out)
    steps = ("--steps", 1, "--every", 1, "--seeds", 1, "--methods", method)
    for option, used in (("--validation", "--validation"), ("--data", "the training set")):
        refused = kfh("compare", *made, *where, *steps, *SETS, option, "reported")
        assert f"{used} reported has 2 of the 2 questions of --reported" in said(refused)
    done("compare", *made, *where, *steps, *SETS)
    table = (out / "table.md").read_text()
    counted = "redundant tokens" if full else "tokens are all of a response"
    assert counted in table and "(the frontier)" in table
    assert ("redundant tokens" in table) == full
    assert "could not be read" not in table or full
    course = read_course(out / f"{method}-0")
    assert course["reported"].steps.tolist() == [1] and ("validation" in course) == full
    run = out / f"{method}-0"
    content = json.loads((run / "run.json").read_text())
    assert content["settings"]["recipe"].startswith("any ")
    assert content["settings"]["data"] == f"own_task:{name}" and content["method"] == method
    assert content["data"]["task"]["name"] == f"own_task:{name}"
    assert (run / "model" / "adapter_config.json").is_file()

    lora = ("--adapter", run / "model")
    shown = done("eval", *made, *lora, *ASKED, "--samples", 2, "--out", tmp_path / "eval")
    found = json.loads((tmp_path / "eval" / "eval.json").read_text())["benchmarks"]["naming"]
    assert found["accuracy"]["value"] > 0.2 and bool(found["pocket"]) == full
    assert found["trained_on"] == 4 and "4 of its 4 questions are among those trained on" in shown
    assert ("redundant steps" in shown) == ("redundant tokens" in shown) == full

    traces = tmp_path / "traces.jsonl"
    cut = ("--segmenter", "task") if full else ("--segmenter", "line")
    done("rollout", *made, *ASKED, *cut, "--samples", 8, "--easy", 0, "--out", traces)
    kept = list(read_traces(traces))
    assert kept and all(trace.prompt.endswith("?\nName it.\n<think>\n") for trace in kept)
    assert {step.label for trace in kept for step in trace.steps} == (
        {"essential", "redundant"} if full else {None}
    )
    if not full:
        refused = kfh("rollout", *made, *ASKED, "--segmenter", "task", "--out", tmp_path / "x")
        assert "does not know the labels" in said(refused)


def test_a_file_is_read_by_another_task_and_asked_otherwise(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verifier and the instruction of a file of questions are chosen beside it."""
    (tmp_path / "loose_task.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    data = write_lines(tmp_path / "q.jsonl", [{"question": "0?", "answer": "19"}])
    asked = ("--model", base, "--data", data, *ASKED, "--samples", 20)
    figures = {}
    for verifier in ((), ("--task", "loose_task:Loose")):
        out = tmp_path / f"out{len(verifier)}"
        done("eval", *asked, *verifier, "--instruction", "Name it.", "--out", out)
        figures[len(verifier)] = json.loads((out / "eval.json").read_text())["benchmarks"]["q"]
    assert figures[2]["source"]["instruction"] == "Name it."
    assert figures[2]["source"]["task"]["name"] == "loose_task:Loose"
    assert figures[2]["accuracy"]["value"] >= figures[0]["accuracy"]["value"] > 0
    changed = kfh("eval", *asked, "--instruction", "", "--out", tmp_path / "out0")
    assert "holds responses made with" in said(changed)
    absent = kfh("eval", *asked, "--task", "loose_task:Absent", "--out", tmp_path / "out0")
    assert "cannot be imported" in said(absent)


def test_an_adapter_stands_beside_its_model(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base)
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    torch.nn.init.normal_(
        lora.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.lora_B.default").weight
    )
    lora.peft_config["default"].base_model_name_or_path = "nobody/knows"
    lora.save_pretrained(tmp_path / "lora")
    given = {"adapter": str(tmp_path / "lora"), "device": "cpu"}
    merged, _ = ModelSource(str(base), **given).load()
    ids = torch.tensor([[5, 9, 11]])
    torch.testing.assert_close(merged(ids).logits, lora(ids).logits)
    assert (merged(ids).logits - load_model(str(base), device="cpu")(ids).logits).abs().max() > 0.01
    assert merged.config.adapter_hash
    with pytest.raises(ModelError, match="no adapter there"):
        ModelSource(str(base), adapter=str(base)).load()
    with pytest.raises(ConfigError, match="merged here; backend openai"):
        EvalConfig("x", data=("y",), out=tmp_path, adapter="z", backend="openai")


def test_a_wrapped_model_is_told_the_positions_as_its_base_is(tmp_path: Path) -> None:
    """Its own signature hides them; positions of a table differ where a row is padded."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(gpt2_folder(tmp_path / "gpt2", 64)).eval()
    prompts, settings = [[5, 9, 11, 17, 4, 8], [7]], Sampling.greedy(8)
    before = decode(model, prompts, settings, None, frozenset())
    assert before[1] == decode(model, prompts[1:], settings, None, frozenset())[0]
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    assert decode(wrapped, prompts, settings, None, frozenset()) == before
