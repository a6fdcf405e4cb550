"""Numbers that are not finite: told with their trace, layer and cause, or counted; never ranked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tiny
from helpers import byte_tokenizer, trace_line, write_lines

from probing.answers.edited import EditedAnswers
from probing.answers.edits import HeadEdits
from probing.answers.removal import Answerer, without
from probing.attention.scores import ScoredTrace, open_capture, score_traces
from probing.config import ProbeConfig
from probing.errors import DataError, NotFiniteError
from probing.headset import HeadFigures, HeadSet
from probing.interventions.job import prepare_answers
from probing.interventions.setup import InterventionConfig, Setup, TraceChoice
from probing.labelling.cause import label_by_cause
from probing.models.decode import Sampling, decode
from probing.models.identity import ModelCard
from probing.models.load import load_model, load_tokenizer
from probing.models.proof import proof_input
from probing.run import probe
from probing.traces.segmenters import Segmenter
from probing.traces.source import StepSource
from probing.traces.tokens import EncodedTrace
from rl.attnpo.completions import Batch, Cutter
from rl.attnpo.signals import StepScorer

BAD = "Z"  # a text with this letter overflows in float16
NAMED = r"trace t/5: .*not finite in float16.*bfloat16 or float32"


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A model in which one letter overflows in half precision, and eight traces, two with it."""
    folder = tmp_path_factory.mktemp("overflow")
    tokenizer = byte_tokenizer()
    letter = tokenizer(BAD)["input_ids"][0]
    for family in ("llama", "mistral-window"):
        model = tiny(family, vocab_size=len(tokenizer))
        assert letter not in proof_input(len(tokenizer), torch.device("cpu"))[0]
        with torch.no_grad():
            model.model.embed_tokens.weight[letter] = 65504  # the largest number of float16
            model.model.layers[0].mlp.down_proj.weight.mul_(100)
        model.save_pretrained(folder / family)
        tokenizer.save_pretrained(folder / family)
    lines = [trace_line(n, steps=4 + n % 4) for n in range(8)]
    for number in (2, 5):
        lines[number]["prompt"] = f"Add {BAD}.\n<think>\n"
    return {
        "model": str(folder / "llama"),
        "window": str(folder / "mistral-window"),
        "traces": write_lines(folder / "traces.jsonl", lines),
    }


@pytest.mark.parametrize("family", ["model", "window"])
def test_a_probe_names_the_trace_or_counts_it(setting: dict, family: str, tmp_path: Path) -> None:
    options = {"model": setting[family], "traces": setting["traces"], "permutations": 20}
    options |= {"device": "cpu", "dtype": "float16", "out": tmp_path, "batch_tokens": 10**5}
    with pytest.raises(NotFiniteError, match=r"trace t/[25]: .*layer \d.*not finite in float16"):
        probe(ProbeConfig(**options))
    result = probe(ProbeConfig(**options, skip_bad=True))
    assert result is not None
    assert result.counts["left_out"] == {"attention that is not finite": 2}
    assert result.counts["used"] == result.counts["ranked"] == 6
    assert set(result.scored) == {f"t/{n}" for n in range(8)} - {"t/2", "t/5"}
    assert np.isfinite(result.table["sra"]).all()
    exact = probe(ProbeConfig(**{**options, "dtype": "float32", "out": tmp_path / "32"}))
    assert exact is not None and exact.counts["ranked"] == 8


def test_shards_count_what_is_not_finite(setting: dict, tmp_path: Path) -> None:
    options = {"model": setting["model"], "traces": setting["traces"], "permutations": 20}
    options |= {"device": "cpu", "dtype": "float16", "skip_bad": True, "batch_tokens": 300}
    whole = probe(ProbeConfig(**options, out=tmp_path / "whole"))
    for shard in ("1/2", "2/2"):
        assert probe(ProbeConfig(**options, out=tmp_path / "out", shards=shard)) is None
    joined = probe(ProbeConfig(**options, out=tmp_path / "out", merge=True))
    assert whole is not None and joined is not None
    assert joined.counts == whole.counts and joined.table.equals(whole.table)
    assert joined.counts["left_out"] == {"attention that is not finite": 2}


def test_scores_that_are_not_finite_are_no_scores() -> None:
    scores = np.array([[1.0, np.nan]])
    assert ScoredTrace("x", scores, np.array([3, 0]), 5, 40).tokens[1] == 0  # no token, no score
    with pytest.raises(DataError, match="trace x: scores that are not finite"):
        ScoredTrace("x", scores, np.array([3, 1]), 5, 40)


def test_labels_by_cause_name_the_trace_or_count_it(setting: dict, tmp_path: Path) -> None:
    model = load_model(setting["model"], device="cpu", dtype="float16")
    tokenizer = load_tokenizer(setting["model"])
    path, out = setting["traces"], tmp_path / "labels.jsonl"
    with pytest.raises(NotFiniteError, match=r"trace t/2: .*not finite in float16"):
        label_by_cause(model, tokenizer, path, out)
    report = label_by_cause(model, tokenizer, StepSource(path, skip_bad=True), out)
    assert set(report.left_out) == {"t/2", "t/5"} and report.traces == 6
    assert "not finite" in report.left_out["t/5"]
    rows = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert len({row["id"] for row in rows}) == 6 and None not in {row["label"] for row in rows[:1]}


def test_interventions_name_the_trace_or_count_it(setting: dict) -> None:
    model = load_model(setting["model"], device="cpu", dtype="float16")
    tokenizer = load_tokenizer(setting["model"])
    heads = HeadSet((HeadFigures(1, 2),), ModelCard.of("tiny", model.config), {"name": "given"})
    config = InterventionConfig()
    setup = Setup(model, tokenizer, heads, (), (), config, lambda trace, ids: True)
    with pytest.raises(NotFiniteError, match=r"trace t/[25]: .*not finite in float16"):
        list(prepare_answers(setup, TraceChoice(setting["traces"], only="all").choose(heads)))
    choice = TraceChoice(setting["traces"], skip_bad=True, only="all").choose(heads)
    assert len(list(prepare_answers(setup, choice))) == 6 == choice.report.used
    assert choice.report.left_out == {"attention that is not finite": 2}

    single = load_model(setting["model"], device="cpu", dtype="float32")
    scored = prepare_answers(
        Setup(single, tokenizer, heads, (), (), config, lambda trace, ids: True),
        TraceChoice(setting["traces"], only="all").choose(heads),
    )
    bad = next(trace for trace in scored if trace.id == "t/5")
    with pytest.raises(NotFiniteError, match=NAMED):
        Answerer(model, frozenset([2]), max_tokens=4)(bad, np.stack([without(bad, [])]))
    with HeadEdits(model) as edits:
        answers = EditedAnswers(model, edits)
        with pytest.raises(NotFiniteError, match=NAMED):
            answers.log_probabilities(answers.read([bad]))


def test_training_names_the_response(setting: dict) -> None:
    model = load_model(setting["model"], device="cpu", dtype="float16")
    tokenizer = load_tokenizer(setting["model"])
    cutter = Cutter(tokenizer, (1,), Segmenter("line"))
    texts = ["So it is 3.\n</think> \\boxed{3}", f"So {BAD}.\n</think> \\boxed{{3}}"]
    responses = [cutter(tokenizer(text)["input_ids"]) for text in texts]
    one = torch.ones(2)
    longest = max(len(each.ids) for each in responses)
    batch = Batch(
        prompts=[tokenizer("Add.")["input_ids"]] * 2,
        responses=responses,
        mask=torch.ones((2, longest), dtype=torch.bool),
        advantage=one,
        correct=one.bool(),
        p=one,
        needs_scores=one.bool(),
    )
    signal = StepScorer(model, [(2, 1)])
    with pytest.raises(NotFiniteError, match=r"response 1 of the batch: .*head 2.1.* not finite"):
        signal(batch)
    batch.needs_scores[1] = False
    assert np.isfinite(signal(batch)[0]).all()


def test_decoding_does_not_draw_from_what_is_no_number(setting: dict) -> None:
    model = load_model(setting["model"], device="cpu", dtype="float16")
    tokenizer = load_tokenizer(setting["model"])
    good, bad = (tokenizer(text)["input_ids"] for text in ("So 3", f"So {BAD}"))
    settings = Sampling.greedy(4)
    assert len(decode(model, [good], settings, None, frozenset([1]))) == 1
    with pytest.raises(NotFiniteError, match="logits of the next token are not finite in float16"):
        decode(model, [good, bad], settings, None, frozenset([1]))


def test_a_longest_trace_without_answer_tokens_is_proven_and_scored() -> None:
    """`--answer boxed` with no box in the longest trace, in a model with windows."""
    rng = np.random.default_rng(0)

    def trace(name: str, length: int, answer: int) -> EncodedTrace:
        places = np.arange(length) >= length - answer
        return EncodedTrace(
            name, rng.integers(3, 101, length), 4, np.array([[length - 7, length - 4]]), places
        )

    capture = open_capture(tiny("mistral-window"))
    found = {t.id: t for t in score_traces(capture, [trace("a", 30, 3), trace("b", 60, 0)])}
    assert found["b"].answer_tokens == 0 and not found["b"].scores.any()
    assert found["a"].scores.any() and capture.proven == 60
