"""The task in words: writer and parser agree, checks mend slips; and the fine-tuning teaches it."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import kfh, model_folder, said, trace_file

from probing.errors import ConfigError, DataError
from probing.files.headers import problem_hash
from probing.models.load import load_model, load_tokenizer
from probing.traces.file import read_traces
from probing.traces.segmenters import Segmenter
from rl.tasks.base import Question
from rl.tasks.questions import find_task, load_questions, trained_on
from rl.training.sft import IGNORED, SftConfig, examples, freeze_lower, sharpen, taught, teach
from rl.words.parse import parse_problem, read
from rl.words.task import Problem, Sentence, WordsConfig, make_problem, make_trace, shortest_trace

TEXT = (
    "Ben has 4 coins. Mia has 6 coins. Ana has 3 more coins than Ben. "
    "Leo has 5 more coins than Ana. How many coins does Leo have?"
)
PROBLEM = parse_problem(TEXT)
CORRECTED = (
    "Okay, so I need to find Leo, and for that I go from name to name.\n"
    "First, Ana has 3 more than Ben's 4, so Ana 7.\n"
    "Wait, 3 plus 4 is 7, which is what I had there.\n"
    "Similarly, Mia counts 6 at the start, but nobody asked for that one.\n"
    "Then Leo has 5 more than Ana's 7, so Leo 11.\n"
    "Wait, 5 plus 7 is 12, not 11, so Leo 12.\n"
    "</think> Ana 7 Leo 12 \\boxed{12}"
)


def labels(response: str) -> list[str | None]:
    return [step.label for step in read(PROBLEM, response).steps]


def test_parser_reads_what_the_writer_writes_and_steps_are_lines() -> None:
    phrases, lines = Segmenter("attnpo", min_chars=0), Segmenter("line")
    for seed in range(2000):
        rng = random.Random(seed)
        problem = make_problem(rng)
        trace = make_trace(rng, problem)
        reading = read(parse_problem(problem.text), trace.response)
        assert not reading.reasons and parse_problem(problem.text) == problem
        assert [step.label for step in reading.steps] == [line.label for line in trace.lines]
        assert reading.boxed == str(trace.values[problem.query])
        assert reading.correct == (reading.boxed == problem.answer)
        if seed < 300:
            cut = [(step.start, step.end) for step in reading.steps]
            reasoning = trace.response.partition("</think>")[0]
            for segmenter in (phrases, lines):
                assert [(s.start, s.end) for s in segmenter.cut_reasoning(reasoning)] == cut
            short = read(problem, shortest_trace(problem).response)
            assert short.correct and {step.label for step in short.steps} == {"essential"}


def test_length_does_not_tell_essential_from_redundant() -> None:
    """Ranked by their number of words, numbers and marks, steps come out as by a coin."""
    ranked = []
    for seed in range(400):
        rng = random.Random(seed)
        sizes: dict[str | None, list[int]] = {"essential": [], "redundant": [], None: []}
        for line in make_trace(rng, make_problem(rng)).lines:
            sizes[line.label].append(len(re.findall(r"[A-Za-z]+|[0-9]|[^\w\s]", line.text)))
        pairs = [(one, two) for one in sizes["essential"] for two in sizes["redundant"]]
        if pairs:
            ranked.append(np.mean([(one > two) + (one == two) / 2 for one, two in pairs]))
    assert 0.3 < np.mean(ranked) < 0.6


def test_many_redundant_steps_look_like_essential_ones() -> None:
    """They derive a value that nobody asks for: that they are redundant stands in the problem."""
    redundant = apart = 0
    for seed in range(300):
        rng = random.Random(seed)
        problem = make_problem(rng)
        path = {item.name for item in problem.path}
        for step in read(problem, make_trace(rng, problem).response).steps:
            redundant += step.label == "redundant"
            apart += step.kind == "derivation" and step.name not in path
    assert apart > 0.25 * redundant


def test_labels() -> None:
    found = ["redundant", "essential", "redundant", "redundant", "redundant", "essential"]
    assert labels(CORRECTED) == found and read(PROBLEM, CORRECTED).correct
    right = CORRECTED.replace("7, so Leo 11", "7, so Leo 12")
    sure = "Wait, 5 plus 7 is 12, which is what I had there.\n"  # of a sum that carries: None, once
    twice = right.replace("Wait, 5 plus 7 is 12, not 11, so Leo 12.\n", sure * 2)
    assert labels(twice)[-3:] == ["essential", None, "redundant"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("First, Ana has", "First Ana has", "line 2 is no sentence"),
        ("Mia counts 6", "Mia counts six", "line 4 is no sentence"),
        ("is 12, not 11", "is 12 not 11", "line 6 is no sentence"),
        ("</think>", "", "there is no </think>"),
        (" Ana 7 Leo 12 ", " Leo 12 ", "the path is ['Ana', 'Leo']"),
        (" Ana 7 Leo", " Ana 8 Leo", "gives Ana as 8, the steps as 7"),
        ("boxed{12}", "boxed{11}", "gives Leo as 11, the steps as 12"),
        ("boxed{12}", "boxed{twelve}", "no recap of values"),
        ("First, Ana has 3 more than Ben's 4, so Ana 7.\n", "", "gives Ana, which no step derives"),
    ],
)
def test_what_cannot_be_read_is_reported(old: str, new: str, reason: str) -> None:
    reading = read(PROBLEM, CORRECTED.replace(old, new, 1))
    assert any(reason in found for found in reading.reasons), reading.reasons
    if "no sentence" in reason:
        assert reading.steps[int(reason.split()[1]) - 1].label is None


def test_checks_mend_slips_and_nothing_else_goes_wrong() -> None:
    config = WordsConfig()
    unchecked = replace(config, check_first_hard=0.0, check_later_hard=0.0)
    right, bare = np.zeros(600), np.zeros(600)
    for seed in range(600):
        rng = random.Random(seed)
        problem = make_problem(rng, config)
        for verdicts, drawn_by in ((right, config), (bare, unchecked)):
            trace = make_trace(rng, problem, drawn_by)
            verdicts[seed] = trace.values[problem.query] == int(problem.answer)
    assert 0.88 <= right.mean() <= 0.97 and bare.mean() <= right.mean() - 0.3
    # A wrong answer is a hard sum that slipped and was not checked: none goes wrong without.
    problem = make_problem(random.Random(1), sure := replace(config, slip=0.0))
    drawn = (make_trace(random.Random(seed), problem, sure) for seed in range(100))
    assert {trace.values[problem.query] for trace in drawn} == {int(problem.answer)}


def test_sets_are_apart_and_the_task_says_what_it_knows() -> None:
    asked, held = load_questions("words:300@5"), load_questions("words-held-out:300")
    texts = {question.question for question in asked.questions}
    assert len(texts) == 300 and not texts & {q.question for q in held.questions}
    task, question = asked.task, asked.questions[0]
    response = task.trace(question, 1)
    assert response == task.trace(question, 1) != task.trace(question, 2)
    assert task.readable(question, response) and task.labels
    assert asked.correct(question, task.shortest(question) or "")
    assert not asked.correct(question, f"</think> \\boxed{{{int(question.answer) + 1}}}")
    with pytest.raises(DataError, match="write LEVEL"):
        load_questions("words-held-out:5@1")
    with pytest.raises(ConfigError, match="no responses to learn from"):
        find_task("x.jsonl").trace(Question("q", "1 + 1", "2"), 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TEXT.replace("Mia has 6", "Mia has six"), "cannot read 'Mia has six"),
        (TEXT.replace("than Ben", "than Tom"), "what Tom is"),
        (TEXT.replace("Mia", "Ana"), "Ana stands twice"),
        (TEXT.replace("does Leo", "does Mia"), "counts from no one"),
    ],
)
def test_bad_problems_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_problem(text)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        WordsConfig(slip=1.5)
    assert Problem(0, (Sentence("Ben", None, 4), Sentence("Ana", "Ben", 9)), "Ana").answer == "13"


# Fine-tuning


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return str(model_folder(folder, max_position_embeddings=2048))


def config(model: str, out: Path, **changes: object) -> SftConfig:
    given = {"data": "words:12@1", "batch": 4, "learning_rate": 1e-2, "warmup": 0, "max_steps": 6}
    given |= {"save_steps": 2, "device": "cpu", "compute": "float32"}
    return SftConfig(model, out=out, **{**given, **changes})  # type: ignore[arg-type]


def test_the_response_alone_has_a_loss_and_its_end_is_taught(tiny: str, tmp_path: Path) -> None:
    """The first loss is that of theory: the mean of -log p over response and end token."""
    model, tokenizer = load_model(tiny, device="cpu"), load_tokenizer(tiny)
    data = trace_file(tmp_path / "t.jsonl", 2)
    settings = config(tiny, tmp_path / "run", data=str(data), batch=2, max_steps=1)
    rows, total, count = [*examples(settings, model, tokenizer)], 0.0, 0
    for row, trace in zip(rows, read_traces(data), strict=True):
        start = row["labels"].count(IGNORED)
        assert row["labels"] == [IGNORED] * start + row["input_ids"][start:]
        assert row["input_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row["input_ids"][:start]) == trace.prompt
        assert tokenizer.decode(row["input_ids"][start:-1]) == trace.response
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            chances = model(ids).logits[0, :-1].log_softmax(-1)
        total -= chances[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum().item()
        count += ids.shape[1] - start
    run = teach(settings)
    assert run["loss"][0][1] == pytest.approx(total / count, rel=1e-4)
    assert run["taught_tokens"] == count and run["status"] == "done"
    asked = load_questions("words:2@1")
    for question, (name, prompt, response, problem) in zip(
        asked.questions, taught("words:2@1", tokenizer, "auto"), strict=True
    ):
        assert name == question.id and response == asked.task.trace(question, 0)
        assert problem == problem_hash(question.question)
        assert prompt == f"{question.question}\n{asked.instruction}\n<think>\n"


def test_loss_falls_and_a_killed_run_goes_on_with_the_same_bits(tiny: str, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        """As SIGKILL behind the checkpoint of step 4: nothing is tidied up."""

        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 4:
                raise SystemExit

    data = str(trace_file(tmp_path / "t.jsonl", 12))

    def run(name: str, **changes: object) -> SftConfig:
        return config(tiny, tmp_path / name, data=data, **changes)

    whole = teach(run("whole"))
    with pytest.raises(SystemExit):
        teach(run("parts"), watch=[Kill()])
    with pytest.raises(ConfigError, match="--resume"):
        teach(run("parts"))
    with pytest.raises(ConfigError, match="another run"):
        teach(run("parts", learning_rate=1.0), resume=True)
    parts = teach(run("parts"), resume=True)
    assert parts["loss"] == whole["loss"] and parts["loss"][-1][1] < parts["loss"][0][1] - 0.5
    models = [load_model(str(tmp_path / name / "model")) for name in ("whole", "parts")]
    assert all(a.equal(b) for a, b in zip(*(m.parameters() for m in models), strict=True))
    assert not [*(tmp_path / "parts").glob("checkpoint-*")]
    assert teach(run("parts"), resume=True) == parts


def test_the_command_freezes_layers_and_takes_a_trace_file(tiny: str, tmp_path: Path) -> None:
    data, out = trace_file(tmp_path / "t.jsonl", 3), tmp_path / "run"
    done = kfh("sft", "--model", tiny, "--data", data, "--out", out, "--freeze", 1, "--batch", 2)
    assert done.exit_code == 0, said(done)
    assert re.search(r"step 2/2: loss \d", done.output) and "3 traces" in done.output
    before, after = load_model(tiny), load_model(str(out / "model"))
    frozen = freeze_lower(before, 1)
    same = {n: p.equal(after.get_parameter(n)) for n, p in before.named_parameters()}
    assert same == {n: not p.requires_grad for n, p in before.named_parameters()}
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert run["frozen_parameters"] == frozen > 0 and run["traces"] == len([*read_traces(data)])
    assert trained_on(out / "model") == {trace.problem_key for trace in read_traces(data)}
    ids = torch.arange(9)[None]
    at_half = (after(ids).logits / 0.5).softmax(-1)
    sharpen(after, 2.0)
    torch.testing.assert_close(after(ids).logits.softmax(-1), at_half)
    with pytest.raises(ConfigError, match="the model has"):
        freeze_lower(before, 99)
