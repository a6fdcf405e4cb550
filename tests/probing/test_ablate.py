"""Steps removed: selection, deletion, answers, judging; `kfh ablate` from end to end."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tiny
from helpers import byte_tokenizer, model_folder, trace_line, write_lines

from kfh.commands.ablate import ablate
from kfh.commands.show import plot_runs
from probing.answers.context import PreparedTrace
from probing.answers.removal import Answerer, without
from probing.attention.scores import open_capture, score_batch
from probing.errors import ConfigError, DataError, ModelError
from probing.files.headers import data_path
from probing.headset import HeadFigures, HeadSet
from probing.interventions.job import intervene, prepare_answers
from probing.interventions.result import InterventionResult
from probing.interventions.setup import (
    ChosenTraces,
    InterventionConfig,
    Setup,
    TraceChoice,
)
from probing.interventions.steps import removals, remove_steps
from probing.models.identity import ModelCard
from probing.models.load import ModelSource, load_tokenizer
from probing.ranking.select import halves
from probing.traces.file import parse_trace, read_traces
from probing.traces.tokens import encode_trace
from rl.tasks.verdicts import AnswerVerifier

CONTEXT, MARKER, LENGTH = 40, 3, 52
SPANS = np.array([[6, 12], [10, 20], [20, 21], [30, 30], [32, 40]])
SCORES = np.array([0.2, 0.9, 0.5, np.nan, 0.1])


def prepared(seed: int = 0, boxed: bool = False, **changes: object) -> PreparedTrace:
    """Random ids; steps that overlap, have one token, none, and reach the end marker."""
    behind = CONTEXT + MARKER
    counted = np.arange(LENGTH) >= behind
    counted[behind + 3] = False
    if boxed:
        counted[: behind + 2] = False
    trace = PreparedTrace(
        id="x",
        ids=np.random.default_rng(seed).integers(3, 101, LENGTH),
        context=CONTEXT,
        spans=SPANS,
        counted=counted,
        behind=behind,
        group="problem",
        prompt_tokens=6,
        answer=int(counted.argmax()) if boxed else behind,
        scores=SCORES,
        labels=("redundant", "essential", None, "essential", "redundant"),
    )
    return replace(trace, **changes)


def test_which_steps_go() -> None:
    plan = removals(prepared(), (1, 2, 3, 4), draws=6, seed=0)
    assert plan["none", 0, 0] == ()
    assert (plan["high", 1, 0], plan["high", 3, 0]) == ((1,), (0, 1, 2))
    assert (plan["low", 1, 0], plan["low", 2, 0]) == ((4,), (0, 4))
    assert (plan["recent", 1, 0], plan["recent", 2, 0]) == ((4,), (2, 4))
    assert not any(k == 4 for _, k, _ in plan), "four steps have tokens: one must remain"
    drawn = {plan["random", 2, draw] for draw in range(6)}
    assert len(drawn) > 1 and all(3 not in steps and len(set(steps)) == 2 for steps in drawn)
    # The high step has 10 tokens; of the others, step 4 (8 tokens) comes nearest.
    assert {plan["matched", 1, draw] for draw in range(6)} == {(4,)}
    assert not any(arm == "matched" and k == 3 for arm, k, _ in plan), "one step is not high"
    again = removals(prepared(), (2,), draws=3, seed=0)
    assert all(plan[key] == steps for key, steps in again.items()), "draws stand on their own"
    assert removals(prepared(), (2,), draws=6, seed=1) != removals(prepared(), (2,), 6, seed=0)
    evenly = [removals(prepared(), (1,), 1, seed)["random", 1, 0][0] for seed in range(400)]
    assert np.allclose([evenly.count(step) for step in (0, 1, 2, 4)], 100, atol=30)


def test_what_goes_is_exactly_the_tokens_of_the_spans() -> None:
    trace = prepared()
    gone = without(trace, (0, 1))
    kept = np.delete(trace.ids[:CONTEXT], range(6, 20))
    assert trace.ids[:CONTEXT][~gone].tolist() == kept.tolist()
    assert not without(trace, ()).any() and not without(trace, (3,)).any()


def plainly(model: torch.nn.Module, trace: PreparedTrace, steps: tuple[int, ...], most: int):
    """Log-probability and greedy answer of one row by whole forward passes, without a cache."""
    places = [n for step in steps for n in range(*trace.spans[step])]
    ids, counted = np.delete(trace.ids, places), np.delete(trace.counted, places)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0]
        chances = logits[:-1].log_softmax(-1).gather(-1, torch.from_numpy(ids)[1:, None])[:, 0]
        answer = ids[: trace.answer - len(set(places))].tolist()
        start = len(answer)
        while len(answer) < start + most and (len(answer) == start or answer[-1] != 2):
            logits = model(input_ids=torch.tensor([answer]), use_cache=False).logits[0, -1]
            answer.append(int(logits.argmax()))
    return float(chances[torch.from_numpy(counted[1:])].sum()), tuple(answer[start:])


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
@pytest.mark.parametrize("boxed", [False, True])
def test_answers_equal_those_to_the_text_without_the_steps(family: str, boxed: bool) -> None:
    model, trace = tiny(family), prepared(boxed=boxed)
    rows = [(), (1,), (0, 4), (4,), (0, 1, 2), (3,)]
    gone = np.stack([without(trace, steps) for steps in rows])
    ends = {n for steps in rows for n in plainly(model, trace, steps, 6)[1][2:3]}
    # An end token that some rows meet on their way, so that rows leave the batch.
    end = sorted(ends)[0]
    for batch_tokens in (4 * LENGTH, 8192):
        answers = Answerer(model, frozenset([end]), max_tokens=6, batch_tokens=batch_tokens)(
            trace, gone
        )
        for steps, answer in zip(rows, answers, strict=True):
            logprob, ids = plainly(model, trace, steps, 6)
            assert answer.logprob == pytest.approx(logprob, abs=2e-4)
            assert answer.ids == (ids[: ids.index(end) + 1] if end in ids else ids)
    values = [answer.logprob for answer in answers]
    assert len({round(value, 3) for value in values}) == 5, "each removal must matter here"
    assert Answerer(model, frozenset([end]), max_tokens=0)(trace, gone)[0].ids is None


def test_windows_are_refused_where_they_would_cut_and_used_where_not() -> None:
    trace, none = prepared(), np.zeros((1, CONTEXT), bool)
    with pytest.raises(ModelError, match="window of 9 tokens"):
        Answerer(tiny("mistral-window"), frozenset([2]))(trace, none)
    model = tiny("mistral-window", sliding_window=100)
    rows = np.stack([without(trace, (1,)), without(trace, (4,))])
    answers = Answerer(model, frozenset([2]), max_tokens=4)(trace, rows)
    for steps, answer in zip([(1,), (4,)], answers, strict=True):
        assert answer.logprob == pytest.approx(plainly(model, trace, steps, 4)[0], abs=2e-4)


def test_outcomes_say_what_was_removed() -> None:
    model = tiny("llama")
    card = ModelCard.of("tiny", model.config)
    config = InterventionConfig(remove=(2, 9), draws=2, max_answer_tokens=3)
    wrong = prepared(id="y", own_correct=False)
    traces = [prepared(), wrong]
    heads = HeadSet((HeadFigures(0, 0),), card)
    judged = []

    def judge(trace: PreparedTrace, ids: object) -> bool:
        judged.append(ids)
        return trace.id == "x"

    setup = Setup(model, None, heads, traces, traces, config, judge, frozenset([2]))
    first, second = remove_steps(setup)
    assert {(o.arm, o.dose, o.draw) for o in first} == {
        ("none", 0, 0), ("high", 2, 0), ("low", 2, 0), ("recent", 2, 0),
        ("random", 2, 0), ("random", 2, 1), ("matched", 2, 0), ("matched", 2, 1),
    }  # fmt: skip
    by_arm = {o.arm: o for o in first}
    assert by_arm["none"].extra["removed_tokens"] == 0 and "essential" not in by_arm["none"].extra
    assert by_arm["high"].extra["removed_tokens"] == 11  # steps 1 and 2
    assert by_arm["high"].extra["essential"] == 1.0  # step 2 has no label
    assert by_arm["low"].extra["essential"] == 0.0
    assert all(o.correct and o.logprob is not None for o in first)
    assert all(o.correct is False and o.logprob is None for o in second)
    assert len(judged) == len(first) + len(second)
    assert all(1 <= len(ids) <= 3 for ids in judged)


def test_traces_are_prepared_as_the_head_set_says(tmp_path: Path) -> None:
    lines = [trace_line(n, steps=4 + n) for n in range(3)]
    lines += [trace_line(7, correct=False), {**trace_line(8), "steps": []}]
    path = write_lines(tmp_path / "traces.jsonl", lines)
    tokenizer = byte_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    card = ModelCard.of("tiny", model.config)
    pairs = [(1, 2), (3, 0)]
    heads = HeadSet(
        tuple(HeadFigures(*pair) for pair in pairs), card, {"name": "given"}, answer="values"
    )
    source = TraceChoice(path).source(heads)
    assert (source.segmenter, source.rule) == ("given", "overlap")
    choice = TraceChoice(path, only="all").choose(heads)
    assert choice.rule == "overlap" and choice.report.left_out == {"wrong answer": 1, "no steps": 1}
    config = InterventionConfig(answer="boxed")
    setup = Setup(model, tokenizer, heads, (), (), config, lambda trace, ids: True)
    found = list(prepare_answers(setup, choice))
    capture = open_capture(model)
    for trace in found:
        raw = parse_trace(json.dumps(lines[int(trace.id[2:])]))
        encoded = encode_trace(tokenizer, raw, rule="overlap", answer="values")
        with capture:
            scored = score_batch(capture, [encoded], torch.device("cpu"))[0]
        places = [layer * 4 + head for layer, head in pairs]
        assert trace.scores == pytest.approx(scored.scores[places].mean(0), rel=1e-4)
        assert tokenizer.decode(trace.ids[trace.context : trace.behind]) == "</think>"
        assert tokenizer.decode(trace.ids[trace.behind : trace.answer]) == " \\boxed{"
        assert trace.group == raw.problem_key and len(trace.labels) == len(raw.steps)
    other = tiny("llama", vocab_size=len(tokenizer), num_hidden_layers=2)
    with pytest.raises(ModelError, match="does not fit"):
        next(prepare_answers(replace(setup, model=other), choice))


def test_traces_that_the_heads_were_chosen_on_are_left_out(tmp_path: Path) -> None:
    heads, path = HeadSet.load("pocket"), data_path("pocket", "traces.jsonl")
    choice = TraceChoice(path).choose(heads)
    left_out = {"the heads were chosen on its problem": 225, "wrong answer": 50}
    assert choice.report.left_out == left_out
    assert len(choice.traces) == 225 and choice.held_out.startswith("yes")
    every = TraceChoice(path, only="all").choose(heads)
    assert len(every.traces) == 450
    assert every.held_out == "no: the heads were chosen on the problems of 225 of these 450 traces"
    again = TraceChoice(path, limit=3).choose(heads)
    assert [t.id for t in again.traces] == [t.id for t in choice.traces[:3]]
    ranked = [t for t in read_traces(path) if t.correct]
    split = halves([t.id for t in ranked], [t.problem or "" for t in ranked])  # as the probe does
    assert [t.id for t in choice.traces] == [ranked[place].id for place in split[1]]
    held = [trace.id for trace in choice.traces]
    named = HeadSet.load("pocket").selection or {}
    marks = {mark for trace in choice.traces for mark in trace.problem_marks}
    assert marks == {*named["problems_held_out"]} and not marks & (heads.chosen_on or marks)
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    changed = [json.loads(line) for line in lines]
    for line in changed:
        line["problem"] = line["problem"].replace(" ", " \u00a0\n")
    bare = [{k: v for k, v in json.loads(line).items() if k != "problem"} for line in lines]
    files = {
        "less.jsonl": lines[:1] + lines[2:],  # without its header and a line
        "packed.jsonl.gz": lines,
        "spaces.jsonl": changed,
        "bare.jsonl": bare,  # known by their prompts
    }
    for name, content in files.items():
        file = tmp_path / name
        text = "\n".join(x if isinstance(x, str) else json.dumps(x) for x in content)
        file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
        found = [trace.id for trace in TraceChoice(file).choose(heads).traces]
        assert (
            found == [name for name in held if name != json.loads(lines[1])["id"]] or found == held
        )


@pytest.mark.parametrize("selection", [None, {"by": "sra"}, {"select_traces": 225}])
def test_nothing_is_held_out_where_the_head_set_does_not_say_what(selection: object) -> None:
    heads = replace(HeadSet.load("pocket"), selection=selection)
    path = data_path("pocket", "traces.jsonl")
    with pytest.raises(DataError, match=r"does not say on which problems .* --only all"):
        TraceChoice(path).choose(heads)
    chosen = TraceChoice(path, only="all", limit=5).choose(heads)
    assert len(chosen.traces) == 5 and chosen.held_out.startswith("unknown")
    assert ChosenTraces.of(chosen.traces, heads).held_out.startswith("unknown")
    assert ChosenTraces.of(chosen.traces, HeadSet.load("pocket")).held_out.startswith("no: ")


def test_answers_are_judged_by_the_task() -> None:
    tokenizer = byte_tokenizer()
    raw = parse_trace(json.dumps(trace_line(4, ground_truth="0.5")))
    bare = parse_trace(json.dumps(trace_line(4)))

    def said(judge: AnswerVerifier, text: str, **changes: object) -> bool:
        trace = prepared(id="t/4", behind=43, answer=43, **changes)
        return judge(trace, tokenizer(text, add_special_tokens=False)["input_ids"])

    judge = AnswerVerifier(tokenizer, [raw])
    assert said(judge, "it is \\boxed{3}, no, \\boxed{\\frac{1}{2}}</s>")
    assert not said(judge, "it is \\boxed{4}")
    assert said(AnswerVerifier(tokenizer, [bare]), " \\boxed{4}"), "its own box is the reference"
    opening = np.array([0] * 43 + tokenizer(" \\boxed{", add_special_tokens=False)["input_ids"])
    inside = {"ids": opening, "counted": opening > 0, "answer": len(opening)}
    boxed = AnswerVerifier(tokenizer, [bare], boxed=True)
    trace = prepared(id="t/4", behind=43, **inside)
    for text, right in (("4} or \\boxed{5}", True), ("5} or \\boxed{4}", False), ("4", False)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert boxed(trace, ids) is right, text
    wrong = parse_trace(json.dumps(trace_line(4, correct=False)))
    assert AnswerVerifier(tokenizer, [wrong]).without_reference() == ["t/4"]
    pocket = load_tokenizer(str(data_path("pocket")))
    with pytest.raises(DataError, match="none of the pocket task"):
        AnswerVerifier(pocket, [raw])


def ablated(out: Path, *, config: dict | None = None, **changes: object) -> dict:
    """Run `kfh ablate` in this process; the content of its result without the header."""
    settings = {"remove": (1, 2), "draws": 2, "max_answer_tokens": 24, **(config or {})}
    names = [item.name for item in fields(TraceChoice)]
    choice = TraceChoice(**{name: changes.pop(name) for name in names if name in changes})
    source = ModelSource(changes.pop("model", "pocket"), device="cpu")
    ablate(out, InterventionConfig(**settings), choice, source=source, **changes)
    content = json.loads((out / "ablation.json").read_text(encoding="utf-8"))
    del content["kfh"]
    return content


@pytest.mark.slow
def test_on_the_pocket_model_high_scores_matter_and_low_ones_do_not(tmp_path: Path) -> None:
    """The claim of the paper's figure on 25 held-out traces; more in docs/LOG.md. Then resumed."""
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    content = ablated(whole, limit=25)
    assert content["counts"]["parts"]["steps"] == {
        "traces": 25, "outcomes": 25 * 15, "too_few_steps": {"1": 0, "2": 0},
    }  # fmt: skip
    holds = {(v["claim"], v["measure"]): v["holds"] for v in content["verdicts"]}
    for measure in ("accuracy", "logprob"):
        assert holds[f"removing high-score steps lowers {measure}", measure]
        assert holds["… more than removing random steps", measure]
        assert not holds[f"removing low-score steps lowers {measure}", measure]
        assert holds["… less than removing random steps", "logprob"]
    rows = {(r["arm"], r["dose"], r["measure"]): r["value"] for r in content["summary"]}
    assert rows["none", 0, "accuracy"] > 0.95 and rows["high", 1, "accuracy"] < 0.7
    assert rows["low", 2, "accuracy"] > 0.95
    assert rows["high", 1, "essential"] > 0.9 > 0.1 > rows["low", 1, "essential"]
    plot_runs([whole], formats=("png",))
    assert (whole / "ablation-steps.png").stat().st_size > 10_000
    lines = (whole / "outcomes.jsonl").read_bytes().splitlines(keepends=True)
    torn.mkdir()
    (torn / "outcomes.jsonl").write_bytes(b"".join(lines[:20]) + lines[20][:99])
    assert ablated(torn, limit=25) == content
    assert (torn / "outcomes.jsonl").read_bytes() == b"".join(lines)


def test_interventions_in_memory_are_those_of_the_folder(tmp_path: Path) -> None:
    lines = [trace_line(n, steps=4 + n) for n in range(3)]
    traces = [parse_trace(json.dumps(line)) for line in lines]
    tokenizer = byte_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    card = ModelCard.of("tiny", model.config)
    heads = HeadSet((HeadFigures(1, 2),), card, {"name": "given"}, rule="overlap")

    def even(trace: PreparedTrace, ids: object) -> bool:
        return int(trace.id[2:]) % 2 == 0

    both = {"config": InterventionConfig(remove=(1,), draws=1, max_answer_tokens=2)}
    with pytest.raises(ConfigError, match="looks back from bare answers"):
        intervene(model, tokenizer, replace(heads, answer="bare"), traces, even, **both)
    result = intervene(model, tokenizer, heads, traces, even, **both)
    accuracy = result.table[result.table["measure"] == "accuracy"]
    assert accuracy["value"].to_numpy() == pytest.approx(2 / 3), "the verdict is the caller's"
    assert {o.trace for o in result.outcomes} == {"t/0", "t/1", "t/2"}
    out = tmp_path / "out"
    again = intervene(model, tokenizer, heads, traces, even, out=out, **both)
    assert again.to_json() == result.to_json() == InterventionResult.load(out).to_json()
    assert "3 problems are few: the intervals are rough." in result.caveats
    assert "3 problems are few" in result._repr_html_() and "matched" in result._repr_html_()
    path = write_lines(tmp_path / "traces.jsonl", lines)
    choice = TraceChoice(path, only="all").choose(heads)
    of_file = intervene(model, tokenizer, heads, choice, even, **both)
    assert of_file.table.equals(result.table)
    with pytest.raises(ConfigError, match=r"holds outcomes made with .*traces"):
        intervene(model, tokenizer, heads, traces[:2], even, out=out, **both)


def test_labels_and_answers_may_be_missing(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    tokenizer = load_tokenizer(str(folder))
    card = ModelCard.of("tiny", tiny("llama", vocab_size=len(tokenizer)).config)
    heads = HeadSet((HeadFigures(0, 1),), card, {"name": "given"})
    heads.save(tmp_path / "heads.json")
    lines = [trace_line(n, steps=3 + n) for n in range(3)]
    for line in lines:
        line["steps"] = [{"start": s["start"], "end": s["end"]} for s in line["steps"]]
    lines[2]["response"] = lines[2]["response"].split("</think>")[0] + "</think> so it is two."
    own = {
        "model": str(folder),
        "heads": str(tmp_path / "heads.json"),
        "traces": write_lines(tmp_path / "traces.jsonl", lines),
        "only": "all",
    }
    with pytest.raises(DataError, match=r"no right answer is known of 1 traces, first t/2"):
        ablated(tmp_path / "out", **own)
    lines[2]["ground_truth"] = "2"
    write_lines(tmp_path / "traces.jsonl", lines)
    config = {"remove": (3,), "max_answer_tokens": 0, "answer": "boxed"}
    content = ablated(tmp_path / "out", config=config, **own)
    assert content["counts"]["left_out"] == {"no answer token counts (boxed)": 1}
    assert content["counts"]["parts"]["steps"]["too_few_steps"] == {"3": 1}
    assert {row["measure"] for row in content["summary"]} == {"logprob", "removed_tokens"}
    assert content["counts"]["held_out"].startswith("unknown")


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = json.loads(data_path("pocket", "traces.jsonl").read_text().splitlines()[1])
    wrong = write_lines(tmp_path / "wrong.jsonl", [{**line, "correct": False}])
    short = write_lines(tmp_path / "short.jsonl", [line])
    for changes, error, said in (
        ({"parts": ("steps", "stears")}, ConfigError, "unknown part .*did you mean steps or steer"),
        ({"parts": ()}, ConfigError, "unknown part"),
        ({"only": "some"}, ConfigError, "unknown only"),
        ({"limit": 0}, ConfigError, "limit must be at least 1"),
        ({"model": "x"}, ConfigError, "needs --heads and --traces"),
        ({"config": {"remove": (0,)}}, ConfigError, "at least 1"),
        ({"config": {"draws": 0}}, ConfigError, "draws must be"),
        ({"config": {"answer": "some"}}, ConfigError, "unknown answer"),
        ({"traces": wrong}, DataError, "no trace is left .*1 wrong answer"),
        ({"heads": "deepseek-r1-distill-qwen-1.5b"}, DataError, "say on which problems"),
        ({"heads": "deepseek-r1-distill-qwen-1.5b", "only": "all"}, ModelError, "does not fit"),
        (
            {"traces": short, "only": "all", "config": {"remove": (99,)}},
            DataError,
            "more than 99 steps",
        ),
    ):
        with pytest.raises(error, match=said):
            ablated(out, **changes)


def test_the_command_reads_its_options(tmp_path: Path) -> None:
    arguments = ["--remove", "1,x", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "kfh", "ablate", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "--remove '1,x': write numbers" in done.stderr
    assert "Traceback" not in done.stderr
    settings = InterventionConfig().to_json()
    assert settings["remove"] == (1, 2, 3)
    assert settings["backend"] == "transformers", "older outcomes name it, and are gone on with"
