"""From characters to tokens: offsets, spans, answer tokens."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import byte_tokenizer, trace_line
from hypothesis import given, settings
from hypothesis import strategies as st

from probing.errors import ConfigError
from probing.traces.file import Trace, parse_trace
from probing.traces.segmenters import Segmenter, segment_trace
from probing.traces.text import boxes, last_box
from probing.traces.tokens import answer_tokens, encode_trace, token_offsets, token_spans
from probing.viewer.masses import response_offsets
from rl.chains.reading import boxed_value
from rl.tasks.maths import maths_correct

TOKENIZER = byte_tokenizer()


def a_trace(reasoning: str, answer: str = "\n\n= 7") -> Trace:
    import json

    line = {"id": "a", "prompt": "Q\n", "response": f"{reasoning}</think>{answer}"}
    return parse_trace(json.dumps(line))


def test_tokens_that_straddle_a_border() -> None:
    offsets = np.array([[0, 3], [3, 4], [4, 9], [9, 10]])
    spans = [(0, 5), (5, 8), (8, 10)]
    assert token_spans(offsets, spans, "overlap").tolist() == [[0, 3], [2, 3], [2, 4]]
    # By start, the token 4–9 goes to the span that starts last within it.
    assert token_spans(offsets, spans, "start").tolist() == [[0, 2], [2, 2], [2, 4]]
    with pytest.raises(ConfigError, match="unknown rule"):
        token_spans(offsets, spans, "middle")


def test_special_tokens() -> None:
    with_special = byte_tokenizer(special=True)
    ids, offsets = token_offsets(with_special, "ab c")
    assert offsets[0].tolist() == [0, 0] and offsets[-1].tolist() == [4, 4]
    assert (np.diff(offsets[:, 0]) >= 0).all()
    # A BOS in the text itself is not doubled.
    ids, _ = token_offsets(with_special, "<s>ab")
    assert (ids == with_special.bos_token_id).sum() == 1


def test_answer_is_what_starts_after_the_end_marker() -> None:
    trace = a_trace("So 3 + 4 = 7.\n", " It = 7, \\boxed{7} or \\boxed{8}.")
    encoded = encode_trace(TOKENIZER, trace)
    text = trace.prompt + trace.response
    _, offsets = token_offsets(TOKENIZER, text)
    start = len(trace.prompt) + trace.answer_start
    assert encoded.answer.tolist() == (offsets[:, 0] >= start).tolist()
    assert len(encoded) == len(offsets)
    assert encoded.prompt_tokens == (offsets[:, 0] < 2).sum()

    def shown(which: str) -> str:
        chosen = answer_tokens(offsets, text, start, which)
        return "".join(text[a:b] for a, b in offsets[chosen])

    assert shown("all") == text[start:]
    assert shown("boxed") == "8"
    assert set(shown("values")) <= set(" 78,=") and shown("values").count("7") == 2
    with pytest.raises(ConfigError, match="unknown answer tokens"):
        shown("none")


def test_a_bare_answer_is_the_trace_with_the_rest_of_it_taken_out() -> None:
    for answer, box in (
        (" It = 7, \\boxed{1} or \\boxed{8}. So.", " \\boxed{8}"),
        ("\\boxed 5, since = 5", "\\boxed 5"),
    ):
        whole, cut = a_trace("So 3.\nOr 4.\n", answer), a_trace("So 3.\nOr 4.\n", box)
        whole, cut = (segment_trace(trace, Segmenter("line")) for trace in (whole, cut))
        expected = encode_trace(TOKENIZER, cut)
        ids = {"prompt": [*TOKENIZER(whole.prompt)["input_ids"]]}
        ids["response"] = [*TOKENIZER(whole.response)["input_ids"]]
        for trace in (whole, whole.with_steps(whole.steps, token_ids=ids)):  # text, sampled ids
            bare = encode_trace(TOKENIZER, trace, answer="bare")
            assert bare.sampled == ("token_ids" in trace.extra)
            for name in ("ids", "spans", "answer"):
                assert getattr(bare, name).tolist() == getattr(expected, name).tolist(), name
            assert (bare.prompt_tokens, bare.behind) == (expected.prompt_tokens, expected.behind)
            places = response_offsets(TOKENIZER, trace, bare)  # in the whole response
            assert "".join(whole.response[a:b] for a, b in places[bare.answer]) == box
        assert whole.answer_text(bare=True) == cut.answer_text().strip() == box.strip()
    none = a_trace("So.\n", " it is 7")
    assert not encode_trace(TOKENIZER, none, answer="bare").answer.any()
    assert none.answer_text(bare=True) == "" and none.answer_text() == " it is 7"


def test_boxed_braces() -> None:
    assert boxes(r"\boxed{\frac{1}{2}} \boxed{open") == [(7, 18)]
    assert boxes(r"\boxed{a} \boxed{b}", 5) == [(17, 18)]


def test_a_number_or_a_capital_needs_no_braces() -> None:
    for text, inside in (
        (r"\boxed 5.", "5"),
        (r"$\boxed12,$", "12"),
        (r"\boxed -1/2 ", "-1/2"),
        (r"\boxed A", "A"),
        (r"\boxed {7}", "7"),
    ):
        assert [text[slice(*span)] for span in boxes(text)] == [inside]
    for text in (r"in \boxed notation", r"use \boxed A1", r"\boxed", r"\boxed 5x", r"\boxed ("):
        assert boxes(text) == []


def chosen_box(text: str) -> str:
    """What `--answer boxed` chooses, character by character."""
    places = np.arange(len(text))
    chosen = answer_tokens(np.stack([places, places + 1], axis=1), text, 0, "boxed")
    return "".join(text[place] for place in places[chosen])


def closed_boxes(text: str) -> list[str]:
    """Every box by its depth alone, brace by brace."""
    found = []
    for start in (at + 7 for at in range(len(text)) if text.startswith("\\boxed{", at)):
        depth, end = 1, start
        while end < len(text) and depth:
            if text[end] == "\\" and not text.startswith("\\boxed{", end + 1):
                end += 1  # what is escaped is no brace
            elif text[end] in "{}":
                depth += 1 if text[end] == "{" else -1
            end += 1
        if not depth:
            found.append(text[start : end - 1])
    return found


TEX = ["\\boxed{", "\\left\\{", "\\right.", "\\}", "\\\\", "{", "}", "\\frac{1}{2}", "x", "7", " "]


def test_the_verifier_and_the_answer_tokens_see_the_same_box() -> None:
    """An escaped brace has no partner; neither reader may wait for one."""
    right = r"\left\{ x \right."
    answer = f"It is 3, so \\boxed{{{right}}} it is. " + "Now let us see. " * 400
    assert chosen_box(answer) == right
    assert maths_correct(right, "</think>" + answer)
    assert not maths_correct(right, "</think>" + answer.replace("x", "y"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(TEX), max_size=24).map("".join))
def test_any_tex_has_one_last_box(text: str) -> None:
    expected = closed_boxes(text)
    assert [text[a:b] for a, b in boxes(text)] == expected
    assert chosen_box(text) == (expected[-1] if expected else "")
    assert last_box(text) == (expected[-1].strip() if expected else None)
    boxed = boxed_value("</think>" + text)
    assert boxed == (expected[0] if len(expected) == 1 else None)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab \nWait,So é中😀.", max_size=80), st.integers(0, 20))
def test_steps_of_any_text_tile_its_tokens(reasoning: str, min_chars: int) -> None:
    """By start, each token of the reasoning has one step; by overlap at least one.

    A reasoning of blanks alone has no step.
    """
    steps = 1 if reasoning.strip() else 0
    trace = segment_trace(a_trace(reasoning), Segmenter(min_chars=min_chars))
    text = trace.prompt + trace.response
    _, offsets = token_offsets(TOKENIZER, text)
    shift = len(trace.prompt)
    inside = (offsets[:, 1] > shift) & (offsets[:, 0] < shift + trace.reasoning_end)
    for rule in ("start", "overlap"):
        spans = encode_trace(TOKENIZER, trace, rule=rule).spans
        count = np.zeros(len(offsets), dtype=int)
        for first, last in spans:
            count[first:last] += 1
        straddles = offsets[:, 1] > shift + trace.reasoning_end
        if rule == "start":
            assert (count[inside & ~straddles] == steps).all() and (count[~inside] == 0).all()
        elif len(spans):
            assert (count[inside] >= 1).all()


def test_given_spans_overlap_tokens() -> None:
    import json

    trace = parse_trace(json.dumps(trace_line(3)))
    encoded = encode_trace(TOKENIZER, trace, rule="overlap")
    assert len(encoded.spans) == len(trace.steps)
    assert (encoded.spans[:, 1] > encoded.spans[:, 0]).all()
