"""Figures by hand, and `kfh eval` from end to end: resumed, torn, against a base."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import model_folder, write_lines
from test_sampling import Handler, server  # noqa: F401  # a fixture
from typer.testing import CliRunner

from probing import intervals
from probing.errors import ConfigError, DataError
from probing.files.headers import data_path, read_object
from probing.models.decode import Sampling
from probing.models.load import load_model, load_tokenizer
from probing.numbers import Number
from probing.traces.phrases import phrase_counts
from rl.evaluation import measures
from rl.evaluation.config import EvalConfig
from rl.evaluation.job import evaluate, evaluate_model
from rl.evaluation.summary import set_figures
from rl.pocket.parse import parse_problem
from rl.pocket.task import shortest_trace
from rl.sampling.responses import Response
from rl.tasks.base import Question, QuestionSet
from rl.tasks.questions import Maths, load_questions

POCKET = data_path("pocket")
GREEDY = {"temperature": 0.0, "max_tokens": 400, "batch": 128}


# Figures


def test_pass_at_k_is_the_share_of_all_draws() -> None:
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if c > n or k > n:
            continue
        draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert measures.pass_at_k(n, c, k) == pytest.approx(np.mean([any(d) for d in draws]))
    for bad in ((4, 5, 1), (4, 1, 5), (4, 1, 0)):
        with pytest.raises(ValueError, match="pass@k"):
            measures.pass_at_k(*bad)


def test_efficiency_score_by_hand() -> None:
    assert measures.efficiency_score(0.5, 400, 0.5, 1000) == pytest.approx(0.6)
    assert measures.efficiency_score(0.6, 400, 0.5, 1000) == pytest.approx(0.6 + 3 * 0.2)
    assert measures.efficiency_score(0.4, 400, 0.5, 1000) == pytest.approx(0.6 - 5 * 0.2)
    assert measures.efficiency_score(0.5, 1500, 0.5, 1000) == pytest.approx(-0.5)
    # The paper's 1.5B model: accuracy 54.5 and 8005 tokens; +7.3 points, −61 % tokens.
    assert measures.efficiency_score(61.8, 0.39 * 8005, 54.5, 8005) == pytest.approx(
        1.012, abs=1e-3
    )
    with pytest.raises(ValueError, match="no AES"):
        measures.efficiency_score(0.5, 400, 0.0, 1000)


def test_phrases_are_counted_as_steps_are_cut() -> None:
    text = "So 2.\nSo 3. So 4. Wait, no. Alternatively, 5.\nFirst, 6. **Final Answer"
    assert phrase_counts(text) == {"confused": 2, "forward": 1, "summary": 2}
    # The longest match takes its characters: "Hmm, wait" is one phrase, "Wait" not another.
    assert phrase_counts("Let me double-check")["confused"] == 1
    rate = intervals.estimate_rate([[2, 0], [4, 0]], [[100, 100], [300, 500]], per=1000)
    assert rate.value == 6.0


def pocket_responses() -> tuple[QuestionSet, dict[str, list[Response]]]:
    """Two problems: the shortest response, one with a redundant line, one wrong, one cut off."""
    questions = load_questions("pocket:2")
    found: dict[str, list[Response]] = {}
    for question in questions.questions:
        text = shortest_trace(parse_problem(question.question)).response
        tokens = 1000 if found else 50
        wordy = "However, it is fine.\n" + text
        wrong = text[: text.index("\\boxed{")] + "\\boxed{xx}"
        found[question.id] = [
            Response(question.id, 0, text, tokens, True, True),
            Response(question.id, 1, wordy, tokens + 6, True, True),
            Response(question.id, 2, wrong, tokens, True, False),
            Response(question.id, 3, text[:20], tokens, False, False, "ValueError"),
        ]
    return questions, found


def test_figures_of_a_set_by_hand() -> None:
    questions, responses = pocket_responses()
    found = set_figures(questions, responses, budgets=[50, 100], think_end="</think>")
    assert found.samples == 4 and found.accuracy.value == 0.5
    assert found.pass_at[2].value == pytest.approx(5 / 6) and found.pass_at[4].value == 1.0
    assert found.budgets[50].value == 1 / 8 and found.budgets[100].value == 2 / 8
    assert found.tokens.value == pytest.approx(np.mean([50, 56, 50, 50, 1000, 1006, 1000, 1000]))
    assert found.truncated.value == 0.25 and found.no_answer == 2
    assert found.faults == {"ValueError": 2}
    assert found.redundancy is not None and found.redundancy.unreadable == 4
    assert found.redundancy.unreadable_steps == 2  # cut off in a step; a wrong answer's can be read
    assert found.redundancy.redundant_steps is not None
    assert found.redundancy.redundant_steps.value == 0.5  # of the four that can be read


# From end to end


def config(out: Path, *data: str, **changes: object) -> EvalConfig:
    settings = {"model": str(POCKET), "data": data or ("pocket-held-out:10",), "out": out}
    return EvalConfig(**{**settings, **GREEDY, **changes})  # type: ignore[arg-type]


def without_texts(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


@pytest.mark.pocket
def test_greedy_equals_the_pocket_decoder_and_in_process(tmp_path: Path) -> None:
    from probing.models.load import load_frozen
    from rl.pocket.decode import respond

    result = evaluate(config(tmp_path))
    model, tokenizer = load_frozen(POCKET)
    questions = load_questions("pocket-held-out:10")
    problems = [parse_problem(q.question) for q in questions.questions]
    texts = respond(model, tokenizer, problems)
    rows = {row["id"]: row for row in without_texts(tmp_path / "responses/pocket-held-out.jsonl")}
    assert [rows[q.id]["text"] for q in questions.questions] == texts
    lengths = [len(ids) + 1 for ids in tokenizer(texts)["input_ids"]]
    assert result.sets[0].tokens.value == np.mean(lengths)
    shortest = [len(tokenizer(shortest_trace(p).response)["input_ids"]) + 1 for p in problems]
    assert result.sets[0].redundancy is not None
    above = result.sets[0].redundancy.redundant_tokens.value
    assert above == pytest.approx(np.mean(lengths) - np.mean(shortest))
    model.train()
    inside = evaluate_model(model, tokenizer, questions, Sampling.greedy(400), 1)
    assert inside == result.sets[0]
    assert model.training


@pytest.mark.slow
@pytest.mark.pocket
def test_killed_in_the_middle_it_goes_on_to_the_same_result(tmp_path: Path) -> None:
    asked = {"temperature": 1.0, "top_p": 1.0, "samples": 2, "batch": 4, "max_tokens": 90}
    whole = evaluate(config(tmp_path / "a", "pocket:6", **asked))
    file = tmp_path / "a/responses/pocket.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 13
    for kept in (lines[0][:30], b"".join(lines[:6]) + lines[6][:40]):
        torn = tmp_path / "b/responses/pocket.jsonl"
        torn.parent.mkdir(parents=True, exist_ok=True)
        torn.write_bytes(kept)
        again = evaluate(config(tmp_path / "b", "pocket:6", **asked))
        whole_questions = max(0, kept.count(b"\n") - 1) // 2
        assert again.sampled == 12 - 2 * whole_questions
        assert repr(again.sets) == repr(whole.sets)  # nan is not nan: one group has no interval
        assert sorted(torn.read_bytes().splitlines()[1:]) == sorted(
            line.rstrip(b"\n") for line in lines[1:]
        )
    assert evaluate(config(tmp_path / "b", "pocket:6", **asked)).sampled == 0


@pytest.mark.pocket
def test_other_settings_do_not_go_on(tmp_path: Path) -> None:
    evaluate(config(tmp_path, "pocket:4", max_tokens=40))
    with pytest.raises(ConfigError, match=r"max_tokens 40; now asked for max_tokens 41"):
        evaluate(config(tmp_path, "pocket:4", max_tokens=41))
    with pytest.raises(ConfigError, match=r"questions .*'questions': 4"):
        evaluate(config(tmp_path, "pocket:5", max_tokens=40))
    anew = evaluate(config(tmp_path, "pocket:4", max_tokens=41, resume=False))
    assert anew.sampled == 4 and anew.sets[0].truncated.value == 1.0
    file = tmp_path / "responses/pocket.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join([*lines[:2], "{\n", *lines[3:]]), encoding="utf-8")
    with pytest.raises(DataError, match="line 3: damaged"):
        evaluate(config(tmp_path, "pocket:4", max_tokens=41))


@pytest.mark.pocket
def test_several_sets_against_a_base(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    for name in "ab":
        write_lines(folder / f"{name}.jsonl", [{"question": f"{name}?", "answer": "2"}] * 2)
    specs = ("pocket:8", "pocket-held-out:8")
    base = evaluate(config(tmp_path / "base", *specs))
    short = evaluate(config(tmp_path / "short", *specs, max_tokens=100, base=tmp_path / "base"))
    written = json.loads((tmp_path / "short/eval.json").read_text(encoding="utf-8"))
    assert written["kfh"]["kind"] == "evaluation" and list(written["benchmarks"]) == [
        "pocket",
        "pocket-held-out",
    ]
    assert short.base_differs == ("max_tokens 400 there, 100 here",)
    for one, before in zip(short.sets, base.sets, strict=True):
        score = measures.efficiency_score(
            one.accuracy.value, one.tokens.value, before.accuracy.value, before.tokens.value
        )
        assert one.aes == pytest.approx(score) and score < 0
        assert written["benchmarks"][one.name]["aes"] == pytest.approx(score)
    assert short.overall is not None and base.overall is not None
    both = (short.overall, base.overall)
    values = [getattr(means, key).value for means in both for key in ("accuracy", "tokens")]
    assert short.overall.aes == pytest.approx(measures.efficiency_score(*values))
    assert values[0] == pytest.approx(np.mean([one.accuracy.value for one in short.sets]))
    with pytest.raises(ConfigError, match="other questions"):
        evaluate(config(tmp_path / "x", "pocket:7", base=tmp_path / "base"))
    with pytest.raises(ConfigError, match="has no a: it has pocket"):
        evaluate(config(tmp_path / "x", str(folder), base=tmp_path / "base/eval.json"))
    with pytest.raises(DataError, match="no evaluation"):
        evaluate(config(tmp_path / "x", base=tmp_path / "short/responses/pocket.jsonl"))


def test_maths_on_a_model_that_cannot_do_it(tmp_path: Path) -> None:
    """A random model on two files of a folder: all wrong, all cut off, and it says so."""
    folder = tmp_path / "sets"
    folder.mkdir()
    for name in "ab":
        lines = [{"question": f"{name} + {n}?", "answer": str(n)} for n in range(3)]
        write_lines(folder / f"{name}.jsonl", lines)
    from kfh.findings.evaluation import evaluation_caveats, evaluation_table

    model = str(model_folder(tmp_path / "model"))
    settings = {"temperature": 1.0, "samples": 2, "max_tokens": 20, "limit": 2, "budgets": (10,)}
    result = evaluate(config(tmp_path / "out", str(folder), model=model, **settings))
    assert [(one.name, len(one.correct), one.samples) for one in result.sets] == [
        ("a", 2, 2),
        ("b", 2, 2),
    ]
    assert result.overall is not None and result.overall.accuracy.value == 0
    content = read_object(tmp_path / "out" / "eval.json")
    assert any("no response holds </think>" in text for text in evaluation_caveats(content))
    table = evaluation_table(content, "random")
    assert table.columns == ("", "a", "b", "mean") and len(table.rows) >= 7
    assert table.texts[1] == ["accuracy", *(str(Number.of(one.accuracy)) for one in result.sets),
                              str(Number.of(result.overall.accuracy))]  # fmt: skip


def test_evaluation_by_an_endpoint(tmp_path: Path, server: str) -> None:  # noqa: F811
    Handler.failures[:] = [429]
    path = write_lines(tmp_path / "x.jsonl", [{"question": f"{n}?", "answer": "5"} for n in "abc"])
    remote = {"model": "served", "backend": "openai", "base_url": server, "temperature": 1.0}
    result = evaluate(config(tmp_path / "out", str(path), samples=2, **remote))
    assert result.sampled == 6 and result.sets[0].tokens.value == 9
    asked = Handler.asked[0][1]["messages"][0]["content"]
    assert asked.endswith("within \\boxed{}.") and "<think>" not in asked


def test_settings_are_checked(tmp_path: Path) -> None:
    for changes, says in (
        ({"samples": 2}, "greedy samples are all the same"),
        ({"samples": 0}, "at least 1"),
        ({"budgets": (500,)}, "cannot be told from --max-tokens"),
        ({"preset": "paper"}, "temperature 0.6"),
        ({"preset": "mine"}, "unknown preset"),
        ({"backend": "magic"}, "unknown backend"),
        ({"backend": "openai", "template": "chat"}, "needs --raw"),
    ):
        with pytest.raises(ConfigError, match=says):
            config(tmp_path, **changes)
    with pytest.raises(ConfigError, match="one name"):
        evaluate(config(tmp_path, "pocket:3@1", "pocket:3@2"))
    with pytest.raises(DataError, match=r"no \*.jsonl"):
        evaluate(config(tmp_path, str(tmp_path)))
    paper = config(tmp_path, preset="paper", temperature=0.6)
    assert [paper.samples_of(n) for n in ("AIME_2024", "math-500", "mine")] == [16, 4, 1]


@pytest.mark.pocket
def test_the_command(tmp_path: Path) -> None:
    from kfh.cli import app

    arguments = ["eval", "--data", "pocket:6", "--temperature", "0", "--max-tokens", "300"]
    arguments += ["--budgets", "100,200", "--out", str(tmp_path / "run")]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    for text in ("accuracy ≤ 100", "redundant steps", "6 responses sampled"):
        assert text in first.output
    again = CliRunner().invoke(app, arguments)
    assert "0 responses sampled" in again.output and "6 were there already" in again.output
    wrong = CliRunner().invoke(app, [*arguments, "--budgets", "many"])
    assert isinstance(wrong.exception, ConfigError)


def test_model_in_training_is_put_back_after_an_error() -> None:
    model, tokenizer = load_model(str(POCKET)), load_tokenizer(str(POCKET))
    model.train()
    question = Question("x", "b = 1 ; b ?" * 400, "01")
    broken = QuestionSet("x", (question,), Maths(), {"spec": "x"})
    with pytest.raises(ConfigError, match="context"):
        evaluate_model(model, tokenizer, broken, Sampling.greedy(4), 1)
    assert model.training
