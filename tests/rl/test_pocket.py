"""The pocket reasoner: labels, verifier, tokenizer, and the shipped model's figures."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probing.errors import ConfigError
from rl.chains.reading import boxed_value, is_correct
from rl.pocket.decode import Decoding, Guard
from rl.pocket.levels import LEVELS, PretrainConfig, level_of
from rl.pocket.parse import parse_problem, read
from rl.pocket.pretrain import STATE, build_model, pretrain
from rl.pocket.task import Definition, Problem, TaskConfig, make_problem, make_trace, shortest_trace
from rl.pocket.tokens import EOS, build_tokenizer, vocabulary, words

DATA = Path(__file__).parents[2] / "data"
MODEL = DATA / "pocket"
PROBLEM = parse_problem("n = 47 + 5 ; k = 31 * 8 ; t = n * 9 ; t ?")
CORRECTED = (
    "Okay, so I need t.\n"
    "First, 47 + 5 gives n = 52.\n"
    "Wait, check: 7 + 5 = 12, 4 + 1 = 5, had 52, ok.\n"
    "Therefore n * 9 gives t = 58.\n"
    "Wait, 18 45 46, had 58, so t = 68.\n"
    "</think> n 52 t 68 \\boxed{68}"
)


def labels(response: str) -> list[str | None]:
    return [step.label for step in read(PROBLEM, response).steps]


@pytest.mark.parametrize(("level", "traces"), [("pocket", 10_000), ("pocket-long", 300)])
def test_labels_of_generated_traces(level: str, traces: int) -> None:
    for seed in range(traces):
        rng = random.Random(seed)
        problem = make_problem(rng, LEVELS[level].task)
        trace = make_trace(rng, problem, LEVELS[level].task)
        reading = read(parse_problem(problem.prompt), trace.response)
        assert not reading.reasons
        assert [step.label for step in reading.steps] == [line.label for line in trace.lines]
        assert reading.correct == (trace.values[problem.query] == problem.values[problem.query])
        reasoning = trace.response.partition("</think>")[0]
        texts = [trace.response[step.start : step.end] for step in reading.steps]
        assert texts == [f"{line.text}\n" for line in trace.lines]
        assert "".join(texts) == reasoning


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.text(max_size=60), st.integers(0, 400))
def test_any_text_is_read_or_reported(seed: int, noise: str, place: int) -> None:
    rng = random.Random(seed)
    problem = make_problem(rng)
    response = make_trace(rng, problem).response
    damaged = response[:place] + noise + response[place:]
    reading = read(problem, damaged)
    reasoning = damaged.partition("</think>")[0]
    assert "".join(damaged[s.start : s.end] for s in reading.steps) == reasoning
    assert reading.reasons or not any(step.kind == "unreadable" for step in reading.steps)


def test_correction_is_the_source_and_the_slip_is_redundant() -> None:
    assert labels(CORRECTED) == ["redundant", "essential", "redundant", "redundant", "essential"]
    assert read(PROBLEM, CORRECTED).correct


def test_confirmation_of_a_hard_operation_is_left_out_once() -> None:
    confirmed = "Wait, 18 45 46, had 68, ok.\n"
    response = CORRECTED.replace("t = 58", "t = 68").replace(
        "Wait, 18 45 46, had 58, so t = 68.\n", confirmed * 2
    )
    assert labels(response)[-3:] == ["essential", None, "redundant"]


def test_a_repeated_value_is_no_new_source() -> None:
    again = "Therefore n * 9 gives t = 58.\n"
    found = labels(CORRECTED.replace(again, again * 2))
    assert found == ["redundant", "essential", "redundant", "redundant", "redundant", "essential"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("First, 47 + 5", "First, I add 47 + 5", "line 2 is no sentence"),
        ("</think>", "", "there is no </think>"),
        (" n 52 t 68", " t 68", "the path is ['n', 't']"),
        (" n 52", " n 51", "gives n as 51, the steps as 52"),
        ("boxed{68}", "boxed{58}", "gives t as 58, the steps as 68"),
        ("First, 47 + 5 gives n = 52.\n", "", "gives n, which no step derives"),
        ("68.\n</think>", "68.</think>", "has no end"),
    ],
)
def test_what_cannot_be_read_is_reported(old: str, new: str, reason: str) -> None:
    reading = read(PROBLEM, CORRECTED.replace(old, new, 1))
    assert any(reason in found for found in reading.reasons), reading.reasons


def test_an_unreadable_line_has_no_label() -> None:
    assert labels(CORRECTED.replace("First,", "Firstly"))[1] is None


@pytest.mark.parametrize(
    ("response", "box"),
    [
        ("</think> \\boxed{68}", "68"),
        ("</think> \\boxed{58}", "58"),
        ("</think> \\boxed{68} \\boxed{68}", None),
        ("\\boxed{68}\n</think>", None),
        ("\\boxed{68}", None),
        ("", None),
    ],
)
def test_verifier(response: str, box: str | None) -> None:
    assert boxed_value(response) == box
    assert is_correct(PROBLEM, response) == (box == "68")


def test_shortest_trace_is_correct_and_all_essential() -> None:
    for seed in range(200):
        problem = make_problem(random.Random(seed))
        reading = read(problem, shortest_trace(problem).response)
        assert reading.correct and not reading.reasons
        assert {step.label for step in reading.steps} == {"essential"}


def test_the_long_level_is_long_and_its_checks_of_products_earn_their_tokens() -> None:
    level, count = LEVELS["pocket-long"], build_tokenizer()
    unchecked = replace(level.task, check_first_hard=0.0, check_later_hard=0.0)
    tokens, shortest, steps, right, right_unchecked = (np.zeros(120) for _ in range(5))
    for seed in range(120):
        rng = random.Random(seed)
        problem = make_problem(rng, level.task)
        trace, direct = (make_trace(rng, problem, config) for config in (level.task, unchecked))
        tokens[seed] = len(count(trace.response + EOS)["input_ids"])
        shortest[seed] = len(count(shortest_trace(problem).response + EOS)["input_ids"])
        right[seed], right_unchecked[seed] = (
            drawn.values[problem.query] == int(problem.answer) for drawn in (trace, direct)
        )
        found = read(problem, trace.response).steps
        steps[seed] = len(found)
        assert not any(step.kind == "correction" and step.easy for step in found)
    assert np.mean((steps >= 20) & (steps <= 40)) >= 0.95
    assert 400 <= tokens.mean() <= 500 and tokens.max() <= level.max_tokens
    assert tokens.sum() >= 2.2 * shortest.sum()
    assert 0.70 <= right.mean() <= 0.88 and right_unchecked.mean() <= right.mean() - 0.3


def test_bad_problems_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot read the definition"):
        parse_problem("n = 47 - 5 ; n ?")
    with pytest.raises(ValueError, match="ends in `NAME \\?`"):
        parse_problem("n = 47 + 5")
    with pytest.raises(ValueError, match="defined twice"):
        Problem((Definition("n", "47", "+", 5), Definition("n", "12", "+", 5)), "n")
    with pytest.raises(ValueError, match="no earlier definition"):
        Problem((Definition("n", "t", "+", 5),), "n")
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        TaskConfig(opener=1.2)
    with pytest.raises(ValueError, match="forbid must be"):
        Decoding(forbid="some")  # type: ignore[arg-type]


def test_tokenizer_is_lossless_with_offsets() -> None:
    tokenizer = build_tokenizer()
    for seed in range(300):
        rng = random.Random(seed)
        problem = make_problem(rng)
        text = problem.prompt + make_trace(rng, problem).response
        encoded = tokenizer(text, return_offsets_mapping=True)
        tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
        assert set(tokens) <= set(words())
        assert tokenizer.decode(encoded["input_ids"]) == text
        assert [text[start:end] for start, end in encoded["offset_mapping"]] == tokens


def test_marks_are_single_tokens() -> None:
    tokenizer = build_tokenizer()
    for mark in ("<think>", "</think>", " \\boxed{"):
        assert tokenizer.tokenize(mark) == [mark]


def test_guard_forbids_checks_by_operation() -> None:
    import torch

    ids = vocabulary()
    adds, multiplies = ([ids[sign], ids[" gives"], ids[" +"]] for sign in (" +", " *"))
    written = [adds, multiplies, [*multiplies, *adds], [*adds, *multiplies], [], [ids[" +"]]]
    for forbid, expected in (("easy", [1, 0, 1, 0, 0, 0]), ("all", [1] * 6)):
        logits = Guard(forbid)(torch.zeros(6, len(ids)), written)
        assert torch.isinf(logits[:, ids["Wait"]]).int().tolist() == expected
        assert torch.isinf(logits).sum() == sum(expected)


@pytest.mark.parametrize("level", LEVELS)
def test_shipped_traces_have_the_labels_of_the_parser(level: str) -> None:
    lines = (DATA / level / "traces.jsonl").read_text(encoding="utf-8").splitlines()
    header, *rows = map(json.loads, lines)
    assert header["kfh"]["kind"] == "traces"
    assert len(rows) == LEVELS[level].traces
    assert len({row["problem"] for row in rows}) == len(rows)
    for row in rows:
        reading = read(parse_problem(row["problem"]), row["response"])
        assert not reading.reasons
        assert row["correct"] == reading.correct
        assert row["steps"] == [
            {"start": s.start, "end": s.end, "label": s.label} for s in reading.steps
        ]


@pytest.mark.parametrize("level", LEVELS)
def test_shipped_model_is_small_and_has_the_tokenizer(level: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = DATA / level
    assert (folder / "model.safetensors").stat().st_size <= 2_000_000
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == vocabulary()
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["recipe"]
    assert PretrainConfig(**{**recipe, "task": LEVELS[level].task}) == LEVELS[level].recipe


@pytest.mark.slow
def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    sizes = {"width": 16, "layers": 1, "heads": 2, "key_value_heads": 1, "mlp": 16}
    config = PretrainConfig(steps=5, batch=2, warmup=1, log_every=2, **sizes)
    pretrain(config, tmp_path / "whole", lambda line: None)

    def interrupt(line: str) -> None:
        if "step     4" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(config, tmp_path / "parts", interrupt)
    assert (tmp_path / "parts" / STATE).is_file()
    with pytest.raises(ConfigError, match="another recipe"):
        pretrain(replace(config, steps=6), tmp_path / "parts")
    pretrain(config, tmp_path / "parts", lambda line: None)
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes() and not (tmp_path / "parts" / STATE).exists()


def test_the_long_model_begins_with_the_weights_of_the_short_one() -> None:
    from probing.models.load import load_frozen

    weights = load_frozen(MODEL)[0].state_dict()
    start = build_model(LEVELS["pocket-long"].recipe).state_dict()
    assert start.keys() == weights.keys() and all(start[key].equal(weights[key]) for key in start)
    with pytest.raises(ConfigError, match="did you mean pocket-long"):
        level_of("pocket-lon")


@pytest.mark.slow
@pytest.mark.pocket
def test_shipped_model_meets_its_figures() -> None:
    import torch

    from probing.models.load import load_frozen
    from rl.pocket.measure import figures

    torch.set_num_threads(1)
    stated = json.loads((MODEL / "figures.json").read_text(encoding="utf-8"))
    found = figures(*load_frozen(MODEL), n=120)
    # A small sample: the intervals of card and test must overlap.
    for name, figure in found.items():
        assert figure.low <= stated[name]["high"] and stated[name]["low"] <= figure.high, name
    assert found["greedy_over_shortest"].value >= 2.5
    assert 0.75 <= stated["greedy_accuracy"]["value"] <= 0.90
    assert stated["no_checks_cost"]["value"] >= 0.10
    assert stated["no_easy_checks_cost"]["value"] <= 0.01


@pytest.mark.pocket
def test_shipped_long_model_meets_its_figures() -> None:
    """Sampled alone, which is what training begins with; the intervals must overlap."""
    import torch

    from probing.models.load import load_frozen
    from rl.chains.questions import MEASURE_SEED
    from rl.pocket.measure import answer
    from rl.pocket.traces import held_out_problems

    torch.set_num_threads(1)
    level, folder = LEVELS["pocket-long"], DATA / "pocket-long"
    stated = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    for name, (low, high) in level.targets.items():
        assert low <= stated[name]["value"] <= high, name
    decoding = Decoding(temperature=1.0, seed=MEASURE_SEED, max_new_tokens=level.max_tokens)
    problems = held_out_problems(20, MEASURE_SEED, "pocket-long")
    found = answer(*load_frozen(folder), problems, decoding)
    for name, values in (("accuracy", found.correct), ("tokens", found.tokens)):
        state = stated[f"sampled_{name}"]
        error = 3 * values.std(ddof=1) / len(values) ** 0.5
        assert state["low"] - error <= values.mean() <= state["high"] + error, name
    assert found.whole.mean() >= 0.85


def test_shipped_long_head_set_is_of_the_long_model() -> None:
    from probing.headset import HeadSet
    from probing.models.load import load_model

    head_set = HeadSet.load("pocket-long", load_model("pocket-long", device="cpu").config)
    held_out = (head_set.selection or {})["ensemble_held_out"]
    for metric, target in LEVELS["pocket-long"].head_targets.items():
        assert held_out[metric] >= target, metric
