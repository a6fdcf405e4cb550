"""Question sets, verifiers with their pitfalls, and prompts."""

from __future__ import annotations

import gzip
import json
import random
import threading
from pathlib import Path

import pytest
from helpers import byte_tokenizer, write_lines

from probing.errors import ConfigError, DataError
from probing.models.decode import encode_prompt
from probing.traces.text import last_box
from rl.chains.questions import MEASURE_SEED, Chains
from rl.pocket.levels import LEVELS
from rl.pocket.parse import parse_problem
from rl.pocket.task import make_problem, shortest_trace
from rl.pocket.tokens import build_tokenizer
from rl.pocket.traces import held_out_problems
from rl.tasks.gym import gym_answer
from rl.tasks.maths import maths_correct, maths_readable
from rl.tasks.prompts import MATHS_INSTRUCTION, render_prompt
from rl.tasks.questions import load_questions, trained_on, write_trained_on

SUMS = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(5)]


def responds(answer: str) -> str:
    return f"Let me see.</think>\n\n{answer}"


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [
        ("\\frac{1}{2}", "\\boxed{0.5}", True),
        ("0.5", "\\boxed{\\dfrac{1}{2}}", True),
        ("\\frac{1}{3}", "\\boxed{0.333}", False),
        ("1000", "\\boxed{1,000}", True),
        ("1,000", "\\boxed{1000}", True),
        ("1000", "\\boxed{1}", False),
        ("12\\%", "\\boxed{12}", True),
        ("12", "\\boxed{12\\%}", True),
        ("12\\%", "\\boxed{13\\%}", False),
        ("5", "\\boxed{5\\text{ cm}}", True),
        ("5", "\\boxed{6\\text{ cm}}", False),
        ("18", "\\boxed{\\$18.00}", True),
        ("\\{1,2\\}", "\\boxed{2, 1}", True),
        ("1,2,3", "\\boxed{1,2,4}", False),
        ("(1,2)", "\\boxed{(2,1)}", False),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\boxed{(3, \\frac{\\pi}{2})}", True),
        ("x=5", "\\boxed{5}", True),
        ("027", "\\boxed{27}", True),
        ("18", "The answer is 18.", True),
        ("18", "The answer is 17.", False),
        ("18", "\\boxed{17}, no: \\boxed{18}", True),
        ("18", "\\boxed{18}, no: \\boxed{17}", False),
        ("18", "\\boxed{18} \\boxed{", True),
        ("\\text{Evelyn}", "\\boxed{Evelyn}", True),
        ("\\text{Evelyn}", "\\boxed{nylevE}", False),
        ("east", "\\boxed{\\text{East}}", True),
        ("east", "\\boxed{seat}", False),
        ("\\text{(C)}", "\\boxed{C}", True),
        ("\\text{(C)}", "\\boxed{D}", False),
        ("18", "", False),
    ],
)
def test_pitfalls_of_maths(reference: str, answer: str, right: bool) -> None:
    assert maths_correct(reference, responds(answer)) == right


def test_only_what_stands_after_the_reasoning_counts() -> None:
    assert not maths_correct("18", "It is \\boxed{18}")
    assert not maths_correct("18", "It is \\boxed{18}</think> I do not know.")
    assert maths_correct("18", "It is \\boxed{17}</think> \\boxed{18}")
    assert maths_correct("18", "\\boxed{18}", think_end="")


def test_last_box_takes_nested_and_escaped_braces() -> None:
    assert last_box("\\boxed{1} \\boxed{\\frac{1}{\\{2\\}}} and \\boxed{3") == "\\frac{1}{\\{2\\}}"
    assert last_box("none") is None


def test_verifier_works_in_a_thread_where_signals_cannot() -> None:
    found: list[bool] = []
    check = lambda: found.append(  # noqa: E731
        maths_correct("\\frac{1}{2}", responds("\\boxed{0.5}"))
    )
    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert found == [True]


def test_file_with_header_ids_and_other_fields(tmp_path: Path) -> None:
    lines = [{"kfh": {"kind": "questions"}}, {**SUMS[0], "id": "a", "level": 3}, SUMS[1]]
    path = tmp_path / "sums.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    found = load_questions(str(path))
    assert (found.name, found.task.name, len(found)) == ("sums", "maths", 2)
    assert [q.id for q in found.questions] == ["a", "sums/1"]
    assert found.questions[0].meta == {"level": 3}
    assert found.source["hash"].startswith("sha256:") and found.source["questions"] == 2
    assert found.correct(found.questions[1], responds("\\boxed{2}"))
    assert not found.correct(found.questions[1], responds("\\boxed{3}"))
    assert len(load_questions(str(path), limit=1)) == 1


def test_final_answers_of_solutions(tmp_path: Path) -> None:
    lines = [
        {"question": "a", "answer": "He has 2 * 3 = <<2*3=6>>6.\n#### 6"},
        {"problem": "b", "solution": "So $x$ is $\\boxed{\\frac{1}{2}}$, as said."},
        {"prompt": "c", "answer": 7},
    ]
    found = load_questions(str(write_lines(tmp_path / "x.jsonl", lines)))
    assert [q.answer for q in found.questions] == ["6", "\\frac{1}{2}", "7"]
    assert found.unverified == ()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([SUMS[0], {"question": "x"}], r"line 2: no answer \(answer, .*\) among question"),
        ([{"answer": "x"}], r"line 1: no question"),
        ([SUMS[0], {"question": "x", "answer": " "}], r"line 2: answer must be a text"),
        ([{"question": None, "answer": "1"}], r"line 1: question must be a text"),
        (
            [{**SUMS[0], "id": "a"}, {**SUMS[1], "id": "a"}],
            r"line 2: the id 'a' stands on an earlier",
        ),
        ([], r"holds no question"),
        (["{"], r"line 1: not JSON .* --skip-bad"),
        (["3"], r"line 1: a line must be a JSON object"),
        ([{**SUMS[0], "id": [1]}], r"line 1: id \[1\] is neither text nor number"),
        ([{"question": "x", "answer": float("nan")}], r"line 1: answer must be a text"),
        (["[", json.dumps(SUMS[0]), "]"], r"a JSON array, not JSON lines"),
        ([{"question": "x", "answer": "\\frac{"}], r"accepts none of the 1 reference"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, lines: list, says: str) -> None:
    with pytest.raises(DataError, match=says):
        load_questions(str(write_lines(tmp_path / "bad.jsonl", lines)))


def test_bad_lines_may_be_left_out_and_are_named(tmp_path: Path) -> None:
    bad = ["{", {"question": "x"}, {**SUMS[1], "id": "a"}]
    path = write_lines(tmp_path / "x.jsonl", [{**SUMS[0], "id": "a"}, *bad, SUMS[2]])
    found = load_questions(str(path), skip_bad=True)
    assert [q.question for q in found.questions] == [SUMS[0]["question"], SUMS[2]["question"]]
    assert found.source["bad_lines"] == {"not JSON": 1, "missing field": 1, "duplicate id": 1}
    assert len(found.left_out) == 3 and f"{path}, line 2" in found.left_out[0]
    assert "x: left out 1 × not JSON, first " in found.left_out[0]
    assert "bad_lines" not in load_questions(str(write_lines(path, SUMS)), skip_bad=True).source


def test_references_that_cannot_be_verified_are_counted(tmp_path: Path) -> None:
    lines = [*SUMS, {"question": "x", "answer": "\\frac{", "id": "odd"}]
    found = load_questions(str(write_lines(tmp_path / "x.jsonl", lines)))
    assert found.unverified == ("odd",) and found.source["unverified"] == 1 and len(found) == 6
    assert maths_readable("\\frac{1}{2}") and not found.verifies(found.questions[5])


@pytest.mark.parametrize(
    "spec",
    ["nothing", "pocket:", "pocket-held-out@3", "pocket-held-out:9999", "pocket-long-held-out@3"],
)
def test_specs_that_mean_nothing(spec: str) -> None:
    with pytest.raises(DataError, match=spec):
        load_questions(spec)
    with pytest.raises(DataError, match="cannot be read"):
        load_questions("absent.jsonl")
    with pytest.raises(DataError, match="leaves no question"):
        load_questions("pocket", limit=0)


def test_data_set_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "sums"
    folder.mkdir()
    write_lines(folder / "test.jsonl", SUMS)
    found = load_questions(f"hub:{folder}:test", limit=3)
    assert (found.name, found.task.name, len(found)) == ("sums", "maths", 3)
    assert found.source["fingerprint"]
    write_lines(folder / "train.jsonl", SUMS)
    with pytest.raises(DataError, match="which split"):
        load_questions(f"hub:{folder}")
    other = tmp_path / "other"
    other.mkdir()
    write_lines(other / "test.jsonl", [{"question": "x", "label": "y"}])
    with pytest.raises(DataError, match=r"no answer .* among question, label"):
        load_questions(f"hub:{other}:test")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_questions(f"hub:{tmp_path / 'absent'}:test")


def test_reasoning_gym_with_its_own_verifier() -> None:
    found = load_questions("rg:chain_sum", limit=5, seed=7)
    again = load_questions("rg:chain_sum", limit=5, seed=7)
    assert found.questions == again.questions and found.unverified == ()
    assert found.questions != load_questions("rg:chain_sum", limit=5, seed=8).questions
    question = found.questions[0]
    for text in ("\\boxed{%s}", "So.\nAnswer: %s", "<answer>%s</answer>", "%s"):
        assert found.correct(question, responds(text % question.answer))
        assert not found.correct(question, responds(text % (int(question.answer) + 1)))
    assert not found.correct(question, f"\\boxed{{{question.answer}}}")
    with pytest.raises(DataError, match=r"did you mean .*chain_sum"):
        load_questions("rg:chainsum")


def test_tasks_of_many_right_answers_are_tried_on_their_example() -> None:
    for task in ("graph_color", "rubiks_cube", "propositional_logic"):
        found = load_questions(f"rg:{task}", limit=3)
        assert found.unverified == () and all(q.answer for q in found.questions), task
        assert found.questions[0].meta["answer"] is None
    with pytest.raises(DataError, match="gives no reference answer"):
        load_questions("rg:rush_hour", limit=3)


def test_partial_credit_is_not_correct() -> None:
    from reasoning_gym import get_score_answer_fn

    found = load_questions("rg:letter_counting", limit=3)
    question = found.questions[0]
    wordy = f"It is {question.answer}, I think"
    assert 0 < get_score_answer_fn("letter_counting")(wordy, question.meta) < 1
    assert not found.correct(question, responds(wordy))
    assert gym_answer("Answer: 3, or rather \\boxed{4}") == "4"


@pytest.mark.parametrize("level", LEVELS)
def test_pocket_sets_are_apart_from_what_is_measured(level: str) -> None:
    found = load_questions(f"{level}:300@5")
    held = load_questions(f"{level}-held-out")
    texts = {q.question for q in found.questions}
    assert len(texts) == len(found) == 300 and len(held) == 600
    assert not texts & {q.question for q in held.questions}
    assert [q.question for q in held.questions] == [
        problem.text for problem in held_out_problems(600, MEASURE_SEED, level)
    ]
    assert {q.meta["path"] for q in held.questions} == {*LEVELS[level].task.path_lengths}
    assert texts != {q.question for q in load_questions(f"{level}:300@6").questions}
    assert load_questions(level, limit=300, seed=5).questions == found.questions


def test_pocket_sets_leave_held_out_problems_out(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [parse_problem(q.question) for q in load_questions("pocket:20").questions]
    monkeypatch.setattr(Chains, "held_out", lambda self, n, level: drawn[::2])
    found = [q.question for q in load_questions("pocket:20").questions]
    assert found[:10] == [problem.text for problem in drawn[1::2]]


def test_pocket_verifier() -> None:
    found = load_questions("pocket:3")
    problem = held_out_problems(1, MEASURE_SEED)[0]
    question = load_questions("pocket-held-out:1").questions[0]
    right = shortest_trace(problem).response
    assert question.answer == problem.answer and found.correct(question, right)
    assert not found.correct(question, right.replace("\\boxed{", "\\boxed{1"))
    assert found.correct(question, right.replace("</think>", "[/END]"), think_end="[/END]")


# Prompts

USER = "{{ bos_token }}{% for m in messages %}<user>{{ m['content'] }}{% endfor %}"
OPENS = USER + "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
BARE = USER + "{% if add_generation_prompt %}<assistant>{% endif %}"
QWEN3 = BARE + "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
DEEPSEEK31 = BARE + "{% if thinking %}<think>{% else %}</think>{% endif %}"
CLOSES = BARE + "<think>\n\n</think>\n\n"


def chat_tokenizer(template: str):
    tokenizer = byte_tokenizer(special=True)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (OPENS, "<assistant><think>\n"),
        (BARE, "<assistant><think>\n"),
        (QWEN3, "<assistant><think>\n"),
        (DEEPSEEK31, "<assistant><think>"),
    ],
)
def test_every_family_ends_in_the_reasoning_opened_once(template: str, end: str) -> None:
    tokenizer = chat_tokenizer(template)
    text = render_prompt(tokenizer, "2 + 2?", instruction=MATHS_INSTRUCTION)
    assert text == f"<s><user>2 + 2?\n{MATHS_INSTRUCTION}{end}"


def test_a_template_is_chosen_by_what_the_tokenizer_is() -> None:
    problem = make_problem(random.Random(0))
    assert render_prompt(build_tokenizer(), problem.text) == problem.prompt
    assert render_prompt(byte_tokenizer(), "2?") == "2?\n<think>\n"
    bare = chat_tokenizer(BARE)
    assert render_prompt(bare, "2?", "chat-no-think") == "<s><user>2?<assistant>"
    assert render_prompt(bare, "2?", think_start="<r>").endswith("<assistant><r>")


def test_prompts_that_cannot_be_right_are_refused() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        render_prompt(byte_tokenizer(), "2?", "chat")
    with pytest.raises(ConfigError, match="unknown template"):
        render_prompt(byte_tokenizer(), "2?", "chatty")
    with pytest.raises(ConfigError, match="turns the reasoning off"):
        render_prompt(chat_tokenizer(CLOSES), "2?")
    for mark in ("<|channel|>", "[THINK]"):
        with pytest.raises(ConfigError, match="chat-no-think"):
            render_prompt(chat_tokenizer(BARE + mark), "2?")


def test_a_model_is_trained_on_what_its_base_was_trained_on_too(tmp_path: Path) -> None:
    base, model = tmp_path / "base", tmp_path / "model"
    write_trained_on(base, load_questions("pocket:3@1").problems, "pocket")
    write_trained_on(model, load_questions("pocket:2@2").problems, str(base))
    both = {*load_questions("pocket:3@1").problems, *load_questions("pocket:2@2").problems}
    assert trained_on(model) == both and len(both) == 5
    assert trained_on("pocket", None) is None and trained_on("pocket", base) < both


def test_exactly_one_bos_and_no_eos() -> None:
    tokenizer = chat_tokenizer(BARE)  # sets BOS and EOS itself
    ids = encode_prompt(tokenizer, render_prompt(tokenizer, "2?"))
    assert ids.count(tokenizer.bos_token_id) == 1 and tokenizer.eos_token_id not in ids
    plain = encode_prompt(tokenizer, "2?\n<think>\n")
    assert plain.count(tokenizer.bos_token_id) == 1 and plain[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids) == render_prompt(tokenizer, "2?")
    without = byte_tokenizer()  # has a BOS, but does not set it
    assert without.bos_token_id not in encode_prompt(without, "2?")
