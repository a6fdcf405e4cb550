"""A task from outside the package: loaded, evaluated, trained with, spoken by a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import byte_tokenizer, model_folder

import rl.training.job
from probing.errors import ConfigError, DataError
from probing.files.headers import data_path
from probing.traces.file import Step, Trace
from rl.evaluation.config import EvalConfig
from rl.evaluation.job import evaluate
from rl.evaluation.summary import set_figures
from rl.sampling.responses import Response
from rl.tasks.base import TASKS, Question, QuestionSet, Task, load_task, speaker
from rl.tasks.prompts import render_prompt
from rl.tasks.questions import load_questions
from rl.tasks.verdicts import AnswerVerifier
from rl.training.recipe import TrainConfig


class Doubling(Task):
    """Twice a number; of its lines those with a sum are essential."""

    name = "doubling"
    instruction = "Answer with a number."

    def questions(self, spec: str, limit: int | None, seed: int) -> QuestionSet:
        first = int(spec.partition(":")[2] or seed)
        asked = tuple(
            Question(f"d/{n}", f"2 * {n}?", str(2 * n)) for n in range(first, first + (limit or 9))
        )
        return QuestionSet(self.name, asked, self, {"spec": spec, "seed": seed})

    def correct(self, question: Question, answer: str) -> bool:
        return int(answer) == int(question.answer)

    def reference(self, question: Question) -> str:
        return question.answer

    def label(self, question: Question, response: str) -> list[Step]:
        steps, start = [], 0
        for line in response.partition("</think>")[0].splitlines(keepends=True):
            label = "essential" if "+" in line else "redundant"
            steps.append(Step(start, start + len(line), label))
            start += len(line)
        return steps

    def readable(self, question: Question, response: str) -> bool:
        return "</think>" in response

    def shortest(self, question: Question) -> str:
        return f"</think>{question.answer}"


class Spoken(Doubling):
    """The same, for a model that knows nothing else."""

    name = "spoken"

    def speaks(self, tokenizer: Any) -> bool:
        return len(tokenizer) < 310 and tokenizer.eos_token == "</s>"

    def prompt(self, question: str, think_start: str) -> str:
        return f"Double {question} {think_start}"

    def check(self, question: str) -> None:
        if not question.startswith("2 * "):
            raise ValueError("it doubles nothing")


@pytest.fixture
def doubling(monkeypatch: pytest.MonkeyPatch) -> QuestionSet:
    monkeypatch.setitem(TASKS, "doubling", Doubling)
    return load_questions("doubling:4", limit=3)


def test_it_is_loaded_and_verifies(doubling: QuestionSet) -> None:
    assert [q.answer for q in doubling.questions] == ["8", "10", "12"]
    assert doubling.instruction == "Answer with a number." and doubling.unverified == ()
    first = doubling.questions[0]
    assert doubling.correct(first, "4 + 4\n</think> 8")
    assert not doubling.correct(first, "8") and not doubling.correct(first, "</think>9")
    assert doubling.faults == {}
    assert not doubling.correct(first, "</think>eight") and doubling.faults == {"ValueError": 1}
    assert doubling.source["task"]["name"] == f"{__name__}:Doubling"
    assert doubling.source["task"]["hash"].startswith("sha256:")
    assert doubling.source["questions"] == 3
    assert "task" not in load_questions("pocket:2").source


def test_it_is_evaluated(tmp_path: Path, doubling: QuestionSet) -> None:
    model = str(model_folder(tmp_path / "model"))
    settings = {"limit": 2, "max_tokens": 4, "temperature": 0.0, "out": tmp_path / "out"}
    result = evaluate(EvalConfig(model=model, data=("doubling",), **settings))  # type: ignore[arg-type]
    assert result.sets[0].accuracy.value == 0 and result.sampled == 2
    written = json.loads((tmp_path / "out/eval.json").read_text())["benchmarks"]["doubling"]
    assert written["source"] == result.sets[0].source and written["no_answer"] == 2
    assert written["pocket"]["unreadable"] == 2  # the key of old files: redundancy of any task


def test_its_redundant_steps_and_tokens_are_counted(doubling: QuestionSet) -> None:
    tokenizer = byte_tokenizer()
    texts = ("Hm.\n4 + 4\nSo.\n[END]8", "4 + 4\n[END]8", "Hm.\n")
    responses = {
        q.id: [Response(q.id, n, text, 40, True, True) for n, text in enumerate(texts)]
        for q in doubling.questions
    }
    found = set_figures(doubling, responses, think_end="[END]", tokenizer=tokenizer).redundancy
    assert found is not None and found.redundant_steps is not None
    assert found.redundant_steps.value == 1.0 and found.unreadable == 3
    assert found.unreadable_steps == 3  # a task that does not tell steps from answers says as much
    shortest = sum(len(tokenizer(f"</think>{n}")["input_ids"]) + 1 for n in (8, 10, 12)) / 3
    assert found.redundant_tokens.value == pytest.approx(40 - shortest)


def test_training_gets_its_labels(
    tmp_path: Path, doubling: QuestionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(Exception):
        pass

    given: dict[str, Any] = {}

    def capture(**options: Any) -> None:
        given.update(options)
        raise Reached

    monkeypatch.setattr(rl.training.job, "AttnPOTrainer", capture)
    config = TrainConfig(
        model=str(data_path("pocket")),
        data="doubling:4",
        out=tmp_path / "run",
        limit=2,
        template="plain",
        trainer={"method": "oracle", "bf16": False},
    )
    with pytest.raises(Reached):
        rl.training.job.train(config)
    steps = given["label_func"]({"question_index": 1}, "5 + 5\nHm.\n</think>10")
    assert [(s.start, s.end, s.label) for s in steps] == [
        (0, 6, "essential"),
        (6, 10, "redundant"),
    ]
    assert given["train_dataset"]["prompt"][0] == "2 * 4?\nAnswer with a number.\n<think>\n"
    assert load_questions("rg:chain_sum", limit=2).label_func is None


def test_a_model_that_speaks_it_is_asked_and_verified_in_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = byte_tokenizer()
    assert speaker(tokenizer) is None
    monkeypatch.setitem(TASKS, "spoken", Spoken)
    assert speaker(tokenizer) == "spoken"
    assert render_prompt(tokenizer, "2 * 3?", instruction="Hm.") == "Double 2 * 3? <think>\n"
    trace = Trace("t", "p", "3 + 3\n</think>6", problem="2 * 3?", extra={"ground_truth": "6"})
    verifier = AnswerVerifier(tokenizer, [trace])
    assert verifier.verifies("t", " 6 ") and not verifier.verifies("t", "6 cm")
    assert verifier.faults == {"ValueError": 1}
    other = Trace("u", "p", "</think>6", problem="3 * 2?")
    with pytest.raises(DataError, match="trace u: its problem is none of the spoken task"):
        AnswerVerifier(tokenizer, [other])


def test_a_task_of_a_module_is_named_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halves_task.py").write_text(
        "from rl.tasks import Question, QuestionSet, Task\n"
        "class Halves(Task):\n"
        "    name = 'halves'\n"
        "    def questions(self, spec, limit, seed):\n"
        "        asked = (Question('h/0', '4 / 2?', '2'),)\n"
        "        return QuestionSet('halves', asked, self, {'spec': spec})\n"
        "    def correct(self, question, answer):\n"
        "        return question.answer in answer\n"
        "class Unfinished(Task):\n"
        "    name = 'unfinished'\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = load_questions("halves_task:Halves")
    assert found.source["task"]["name"] == "halves_task:Halves" and len(found) == 1
    for name, says in (("Unfinished", "gives no"), ("number", "no fun"), ("Absent", "imported")):
        with pytest.raises(DataError, match=f"no question set .halves_task:{name}.* {says}"):
            load_questions(f"halves_task:{name}")
    with pytest.raises(DataError, match="'pockte:5' is no question set; did you mean pocket"):
        load_questions("pockte:5")
    with pytest.raises(ConfigError, match="which is no rl"):
        load_task(dict)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean plain"):
        render_prompt(byte_tokenizer(), "2?", "plian")
