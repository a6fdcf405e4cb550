"""Sampled ids → steps and answer, cut once; the scores of a batch are those of single traces."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from pocket_runs import POCKET, pocket_model

from probing.attention.scores import step_scores
from probing.errors import ConfigError, ModelError
from probing.files.headers import data_path
from probing.headset import HeadSet
from probing.models.load import load_tokenizer
from probing.traces.file import Trace
from probing.traces.segmenters import Segmenter, segment_trace
from probing.traces.tokens import decode_with_offsets
from rl.attnpo.completions import Batch, Cutter, end_mark
from rl.attnpo.config import AttnPOConfig
from rl.attnpo.signals import StepScorer
from rl.signals.plain import overlap_scores, recency_scores


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(POCKET)


@pytest.fixture(scope="module")
def cutter(tokenizer):
    return Cutter(tokenizer, (tokenizer.eos_token_id,), Segmenter("line"))


@pytest.fixture(scope="module")
def batch(tokenizer, cutter):
    """Seven traces of the pocket model; the third needs no scores."""
    lines = [json.loads(line) for line in data_path("pocket", "traces.jsonl").open()][1:8]
    responses = [cutter(tokenizer(line["response"])["input_ids"]) for line in lines]
    one = torch.ones(len(lines))
    return Batch(
        prompts=[tokenizer(line["prompt"])["input_ids"] for line in lines],
        responses=responses,
        mask=torch.ones((len(lines), max(len(each.ids) for each in responses)), dtype=torch.bool),
        advantage=one,
        correct=one.bool(),
        p=one,
        needs_scores=torch.arange(len(lines)) != 2,
    )


def test_ids_keep_their_offsets(tokenizer):
    text = "First, 31 * 8 gives k = 48.\nWait, é 漢🙂 ok.\n</think> k 48 \\boxed{48}"
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids = np.array(encoded["input_ids"])
    decoded, offsets = decode_with_offsets(tokenizer, ids)
    assert decoded == text
    plain = list(zip(offsets.tolist(), encoded["offset_mapping"], strict=True))
    # Bytes of one character all span it; every other token agrees with the tokenizer.
    assert all(ours == list(theirs) for ours, theirs in plain if text[slice(*theirs)].isascii())
    for start, end in offsets[5:]:
        assert end > start


def test_sampled_ids_are_cut_as_the_traces_of_the_head_set_were(tokenizer):
    """Where the reasoning ends, and where a phrase opens a step, come with the set."""
    loaded = HeadSet.load("pocket", warn=False)
    text = "a 1</think> b 2\n  So " + "x " * 50 + "</think> c"
    ids = tokenizer(text)["input_ids"]
    cut = replace(loaded, segmenter={"name": "attnpo", "min_chars": 0, "openings": "loose"})
    last = replace(cut, think_end="</think>", think_end_at="last")
    first, second = (
        Cutter.like(heads, tokenizer, (tokenizer.eos_token_id,))(ids) for heads in (cut, last)
    )
    assert [first.text[s.start : s.end] for s in first.steps] == ["a 1"]
    assert [s.start for s in second.steps] == [0, text.index("  So")]
    assert tokenizer.decode(second.ids[second.answer]) == " c"
    assert (end_mark(last).at, end_mark(cut).at, end_mark(None).at) == ("last", "first", "first")
    # The very steps of the trace, by the same rules.
    trace = segment_trace(
        Trace("1", "", text, think_end_at="last"), Segmenter(min_chars=0, openings="loose")
    )
    assert trace.steps == second.steps
    given = Cutter.like(
        last, tokenizer, (), think_end_at="first", openings="strict", think_end="So"
    )
    assert (given.think_end, given.think_end_at, given.segmenter.openings) == (
        "So",
        "first",
        "strict",
    )
    # Another segmenter has no openings to keep; asked for, they are refused by name.
    assert Cutter.like(cut, tokenizer, (), segmenter="line").segmenter.openings == "strict"
    with pytest.raises(ConfigError, match="openings loose are for phrases"):
        Cutter.like(cut, tokenizer, (), segmenter="line", openings="loose")
    with pytest.raises(ConfigError, match="openings"):
        AttnPOConfig("out", method="tlmre", openings="lose")


def test_an_empty_block_of_sampled_reasoning_has_no_step(tokenizer, cutter):
    empty = cutter(tokenizer("\n\n</think> c 7")["input_ids"])
    assert empty.reasoned and len(empty.spans) == 0 and empty.answer.any()


def test_a_response_is_cut_once(tokenizer, cutter):
    text = "First, 31 * 8 gives k = 48.\nWait, ok.\n</think> k 48 \\boxed{48}"
    ids = tokenizer(text)["input_ids"]
    whole = cutter([*ids, tokenizer.eos_token_id, 5, 5])
    assert (whole.text, whole.length, whole.complete) == (text, len(ids) + 1, True)
    lines = [text[slice(*offset)] for offset in [(s.start, s.end) for s in whole.steps]]
    assert lines == ["First, 31 * 8 gives k = 48.\n", "Wait, ok.\n"]
    again = ["".join(tokenizer.decode(whole.ids[a:b])) for a, b in whole.spans]
    assert again == lines
    answer = tokenizer.decode(whole.ids[whole.answer])
    assert answer == " k 48 \\boxed{48}"
    cut_off = cutter(ids)
    assert not cut_off.finished and cut_off.reasoned and not cut_off.complete
    silent = cutter(ids[:12])
    assert len(silent.spans) == 0 and not silent.answer.any() and not silent.complete


def test_responses_are_cut_as_the_head_set_was_made(tokenizer):
    head_set = HeadSet.load("pocket")
    same = Cutter.like(head_set, tokenizer, (0,))
    assert same.segmenter == Segmenter("line") and same.answer == head_set.answer
    other = Cutter.like(head_set, tokenizer, (0,), segmenter="attnpo", min_chars=7, answer="boxed")
    assert (other.segmenter, other.answer) == (Segmenter("attnpo", 7), "boxed")
    assert Cutter.like(None, tokenizer, (0,)).segmenter == Segmenter("attnpo", 80)
    bare = replace(head_set, answer="bare")
    with pytest.raises(ConfigError, match="looks back from bare answers"):
        Cutter.like(bare, tokenizer, (0,))
    assert Cutter.like(bare, tokenizer, (0,), answer="all").answer == "all"
    given = HeadSet(head_set.heads, head_set.model, {"name": "given"})
    with pytest.raises(ConfigError, match="steps that the trace file gave"):
        Cutter.like(given, tokenizer, (0,))


def test_scores_of_a_batch_are_those_of_single_traces(batch):
    scorer = StepScorer(pocket_model(), HeadSet.load("pocket").pairs, rows=3)
    scored, capture = scorer(batch), scorer.capture
    sizes = zip(batch.prompts, batch.responses, batch.needs_scores, scored, strict=True)
    for prompt, response, wanted, scores in sizes:
        ids = torch.tensor([[*prompt, *response.ids.tolist()]])
        answer = torch.zeros_like(ids, dtype=torch.bool)
        answer[0, len(prompt) :] = torch.from_numpy(response.answer)
        with capture:
            mass = capture(ids, answer)[0].numpy()
        expected = step_scores(mass, response.spans + len(prompt)).mean(axis=0)
        expected = expected if wanted else np.full_like(expected, np.nan)
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-7)


def test_controls_are_the_baseline_on_average(batch):
    for signal in (recency_scores, overlap_scores):
        sizes = zip(signal(batch), batch.answer_tokens, batch.total_tokens, strict=True)
        for scores, answer_tokens, total_tokens in sizes:
            assert scores.mean() == pytest.approx(answer_tokens / total_tokens)
            assert signal is overlap_scores or (np.diff(scores) > 0).all()


def test_overlap_scores_steps_by_the_words_of_the_answer(batch):
    """Against the words themselves: a step without one of the answer's gets nothing."""
    seen = {False: 0, True: 0}
    for response, scores in zip(batch.responses, overlap_scores(batch), strict=True):
        known = {*re.findall(r"[a-z]+|[0-9]+", response.text.partition("</think>")[2])}
        if not any(scores) or len({*scores}) == 1:
            continue  # no word is shared: all steps are at the baseline
        for step, score in zip(response.steps, scores, strict=True):
            words = {*re.findall(r"[a-z]+|[0-9]+", response.text[step.start : step.end])}
            assert (score > 0) == bool(words & known)
            seen[bool(words & known)] += 1
    assert min(seen.values()) > 0


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="without offsets"):
        Cutter(Slow(), (0,), Segmenter("line"))
