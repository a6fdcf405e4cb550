"""Cutting traces: the rules one by one, and what holds for any text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import probing.traces.segmenters as segmenters
from probing.errors import ConfigError, DataError
from probing.traces.file import Step
from probing.traces.phrases import Phrases, opening
from probing.traces.segmenters import Segmenter, carry_labels, segment

LONG = "x" * 90  # as long as a step may be without being merged


def pieces(text: str, **options: object) -> list[tuple[str, str | None]]:
    return [(text[s.start : s.end], s.kind) for s in segment(text, **options)]


def test_confused_phrases_cut_anywhere_forward_ones_after_a_newline() -> None:
    text = f"{LONG} Wait, {LONG} So {LONG}\nSo {LONG}"
    assert [kind for _, kind in pieces(text)] == ["forward", "confused", "backward"]


def test_longest_phrase_wins_and_takes_its_characters() -> None:
    # "Hmm, wait" is confused; "Hmm" alone would be forward, and count only after a newline.
    assert [kind for _, kind in pieces(f"{LONG} Hmm, wait {LONG}")] == ["forward", "confused"]
    # "Hmm, so" does not count within a line, and hides nothing but itself.
    assert [kind for _, kind in pieces(f"{LONG} Hmm, so But {LONG}")] == ["forward", "confused"]
    # "So, is" takes the characters of "So": one cut.
    assert len(pieces(f"{LONG}\nSo, is {LONG}")) == 2


def test_phrase_at_the_very_start() -> None:
    assert pieces(f"So {LONG}") == [(f"So {LONG}", "forward")]
    assert pieces(f"Wait {LONG}") == [(f"Wait {LONG}", "confused")]


def test_branching_counts_as_confused() -> None:
    assert pieces(f"{LONG} Alternatively {LONG}")[1][1] == "confused"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        # A short confused piece goes right.
        (f"{LONG} Wait, no. \nSo {LONG}", ["forward", "confused"]),
        # … but not into a special one.
        (f"{LONG} Wait, no. **Final Answer {LONG}", ["forward", "confused", "special"]),
        # A short forward piece before a confused one that is not the last goes left.
        (f"{LONG}\nNow yes. Wait, {LONG}\nSo {LONG}", ["forward", "confused", "backward"]),
        # … before the last one it goes right.
        (f"{LONG}\nNow yes. Wait, {LONG}", ["forward", "forward"]),
        # A short backward piece with a tail of at most 15 characters goes right.
        (f"{LONG}\nSo yes.\nNow {LONG}", ["forward", "backward"]),
        # … with a longer one left.
        (f"{LONG}\nSo this is what I think.\nNow {LONG}", ["forward", "forward"]),
        # A short special piece stays, and takes a later piece that goes left.
        (
            f"{LONG} **Final Answer\nSo this is what I think.\nNow {LONG}",
            ["forward", "special", "forward"],
        ),
    ],
)
def test_merging(text: str, kinds: list[str]) -> None:
    assert [kind for _, kind in pieces(text)] == kinds


def test_min_chars_is_a_setting() -> None:
    text = "One. Wait, two. But three."
    assert len(pieces(text, min_chars=0)) == 3
    # The first piece is forward before a confused one, and has nothing to its left.
    assert [t for t, _ in pieces(text)] == ["One. ", "Wait, two. But three."]
    assert Segmenter(min_chars=7).to_json()["min_chars"] == 7
    with pytest.raises(ConfigError, match="negative"):
        Segmenter(min_chars=-1)


def test_simple_segmenters() -> None:
    text = "Take 3.5 of it. Is it J. Smith? Yes!\nNext line\n\nNew part."
    assert [t for t, _ in pieces(text, segmenter="line")] == [
        "Take 3.5 of it. Is it J. Smith? Yes!\n",
        "Next line\n\n",
        "New part.",
    ]
    assert [t for t, _ in pieces(text, segmenter="paragraph")] == [
        "Take 3.5 of it. Is it J. Smith? Yes!\nNext line\n\n",
        "New part.",
    ]
    assert [t for t, _ in pieces(text, segmenter="sentence")] == [
        "Take 3.5 of it. ",
        "Is it J. Smith? ",
        "Yes!\n",
        "Next line\n\n",
        "New part.",
    ]
    assert segment("", "line") == []
    with pytest.raises(ConfigError, match="unknown segmenter 'words'"):
        segment("a", "words")


LOOSE = [
    ("    So", "backward"),
    ("\u00a0\u3000So", "backward"),
    ("*   Then", "forward"),
    ("- So", "backward"),
    ("• So", "backward"),
    ("1. Now", "forward"),
    ("  2)  **So", "backward"),
    ("> ### So", "backward"),
    ("Let’s", "forward"),
]


@pytest.mark.parametrize(("opening", "kind"), LOOSE)
def test_loose_openings_skip_blanks_and_list_marks(opening: str, kind: str) -> None:
    text = f"{LONG}\n{opening} {LONG}"
    assert len(pieces(text)) == 1, "the paper's rule stays the default"
    assert pieces(text, openings="loose") == [
        (f"{LONG}\n", "forward"),
        (f"{opening} {LONG}", kind),  # with what stands before the phrase
    ]


def test_loose_openings_take_whole_words() -> None:
    for word in ("\nSolving", "\nSome", " Butter", " NoWait", "\nLet’spin"):
        assert len(pieces(f"{LONG}{word} {LONG}", openings="loose")) == 1, word
    # The paper's rules know no words: R1's "\nSolving for" opens a backward step.
    assert [kind for _, kind in pieces(f"{LONG}\nSolving {LONG}")] == ["forward", "backward"]
    # Where words have no space between them, the edge of a word is not known.
    assert len(pieces(f"{LONG}是Wait不{LONG}", openings="loose")) == 2
    # Behind a part of a word its end is looked for again: here "So", not "xHold on".
    assert [k for _, k in pieces(f"{LONG} xHold on\nSo {LONG}", openings="loose")][1] == "backward"


def test_loose_openings_at_the_start_and_within_a_line() -> None:
    kinds = ["forward", "confused"]
    assert [k for _, k in pieces(f"{LONG} Wait, {LONG} So {LONG}", openings="loose")] == kinds
    for start in ("So", "  So", "\n\n*  So", "\n   "):
        text = f"{start} {LONG}\n    Wait, {LONG}"
        assert [kind for _, kind in pieces(text, openings="loose")] == kinds, start
    text = f"\n  Wait, {LONG}"
    assert pieces(text, openings="loose") == [(text, "confused")], "no blank step before it"


def test_openings_are_a_setting() -> None:
    assert "openings" not in Segmenter().to_json(), "as older files have it"
    assert Segmenter(openings="loose").to_json()["openings"] == "loose"
    with pytest.raises(ConfigError, match="unknown openings 'lose'; did you mean loose"):
        Segmenter(openings="lose")
    for name in ("line", segment_halves):
        with pytest.raises(ConfigError, match="openings loose are for phrases"):
            Segmenter.parse(name, openings="loose")


def segment_halves(text: str) -> list[Step]:
    return [Step(0, len(text))]


def test_what_a_step_opens_with_is_seen_behind_list_marks() -> None:
    phrases = Phrases.load(Segmenter().phrase_path)
    for text, found in (
        ("*  Let’s check", ("confused", "Let’s check")),
        ("  Wait", ("confused", "Wait")),
        ("- **Final Answer", ("special", "**Final Answer")),
        ("Butter is", (None, None)),
    ):
        assert opening(text, Step(0, len(text)), phrases) == found


@pytest.mark.parametrize(
    ("name", "text", "steps"),
    [
        ("paragraph", "a\r\n\r\nb", ["a\r\n\r\n", "b"]),
        ("paragraph", "a\n\u00a0\nb\n\u3000\nc", ["a\n\u00a0\n", "b\n\u3000\n", "c"]),
        ("paragraph", "a\nb\u2029c", ["a\nb\u2029", "c"]),
        ("paragraph", "\n\n  a\n\nb\n\n", ["\n\n  a\n\n", "b\n\n"]),
        ("line", "a\r\n\r\nb\r\n", ["a\r\n\r\n", "b\r\n"]),
        ("line", "\r\na\r\n \u00a0\r\nb", ["\r\na\r\n \u00a0\r\n", "b"]),
        ("line", "a\rb\u2028c\n  ", ["a\r", "b\u2028", "c\n  "]),
        ("sentence", "1. First. 2. Then it. ", ["1. First. ", "2. Then it. "]),
        (
            "sentence",
            "So:\r\n- 3.1. It is.\r\n(4) No. ",
            ["So:\r\n", "- 3.1. It is.\r\n", "(4) No. "],
        ),
        ("sentence", "It is 5. Then ii. is.", ["It is 5. ", "Then ii. ", "is."]),
        ("sentence", "他说“好。”然后。", ["他说“好。”", "然后。"]),
        ("sentence", "He said “yes.” Then.", ["He said “yes.” ", "Then."]),
    ],
)
def test_simple_segmenters_on_any_newline(name: str, text: str, steps: list[str]) -> None:
    assert [t for t, _ in pieces(text, segmenter=name)] == steps


def test_phrase_file_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "de.json"
    kinds = {"confused": ["Moment"], "backward": ["Also"]}
    path.write_text(json.dumps({"name": "de", "kinds": kinds}), encoding="utf-8")
    text = f"{LONG} Moment, {LONG}\nAlso {LONG} Wait"
    assert [k for _, k in pieces(text, segmenter=str(path))] == ["forward", "confused", "backward"]
    assert Segmenter.parse(str(path)).to_json()["phrases_hash"].startswith("sha256:")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no phrase file"),
        ("[]", "no phrase file"),
        ('{"kinds": {"odd": ["a"]}}', "unknown kind 'odd'"),
        ('{"kinds": {"confused": [""]}}', "phrases are texts"),
        ('{"kinds": {"confused": ["a"], "forward": ["a"]}}', "both confused and forward"),
        ('{"kinds": {}}', "holds no phrase"),
    ],
)
def test_bad_phrase_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        Phrases.load(path)
    assert str(path) in str(error.value)
    with pytest.raises(DataError, match="no phrase file"):
        Phrases.load(tmp_path / "none.json")


def test_labels_are_carried_by_characters() -> None:
    old = (Step(0, 10, "essential"), Step(10, 14, "redundant"), Step(15, 20, None))
    new = [Step(0, 12, kind="forward"), Step(12, 14), Step(14, 20)]
    assert [s.label for s in carry_labels(old, new)] == ["essential", "redundant", None]
    assert carry_labels(old, new)[0].kind == "forward"
    tie = (Step(0, 5, "essential"), Step(5, 10, "redundant"))
    assert carry_labels(tie, [Step(0, 10)])[0].label is None


def tiles(steps: list[Step], text: str) -> bool:
    limits = [s.start for s in steps] + [len(text)]
    return limits[0] == 0 and all(
        s.end == nxt > s.start for s, nxt in zip(steps, limits[1:], strict=True)
    )


WORDS = ["Wait", "So", "\n", " ", "x" * 30, "**Final Answer", "Hmm", ", but", "Now", ".", "I ", "é"]
WORDS += ["\r\n", "\u00a0", "\u3000", "* ", "1. ", "’", "\u2029", "。"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(WORDS)).map("".join) | st.text(), st.integers(0, 200))
@example("I \u3000. So", 0)
@example("I \x85.", 0)
def test_any_text_is_tiled(text: str, min_chars: int) -> None:
    for name in ("attnpo", "line", "sentence", "sentencex", "paragraph"):
        steps = segment(text, name, min_chars=min_chars)
        assert tiles(steps, text) if text else steps == []
        if name != "attnpo" and text.strip():
            assert all(text[step.start : step.end].strip() for step in steps), "a blank step"
    loose = segment(text, min_chars=min_chars, openings="loose")
    assert tiles(loose, text) if text else loose == []


def test_sentences_of_the_library() -> None:
    """It knows abbreviations, in the text's language; blanks and numbers of a list are no step."""
    text = "By Dr. Smith, x = 3.14 (e.g. here) holds! Is it so?\n\n1. First, add. Then 5."
    found = [text[step.start : step.end] for step in segment(text, "sentencex")]
    first = ["By Dr. Smith, x = 3.14 (e.g. here) holds! ", "Is it so?", "\n\n1. First, add. "]
    assert found == [*first, "Then 5."]
    chinese = "先算二加三。等等，检查！答案是五。"
    assert [s.start for s in segment(chinese, "sentencex")] == [0, 6, 12]
    assert Segmenter("sentencex").to_json().keys() == {"name", "version"}


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenters, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"kfh\[sentences\]"):
        Segmenter("sentencex")


def test_ten_thousand_generated_traces_are_tiled() -> None:
    rng = random.Random(0)
    for _ in range(10_000):
        text = "".join(rng.choices(WORDS, k=rng.randint(1, 40)))
        steps = segment(text)
        assert tiles(steps, text)
        # A piece that is still short had no neighbour to go to: that is rare among long texts.
        assert len(steps) <= len(text)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=5, unique=True),
    st.text(max_size=200),
)
def test_any_phrase_file(phrases: list[str], text: str) -> None:
    found = Phrases("any", dict.fromkeys(phrases, "confused"), "sha256:0")
    from probing.traces.segmenters import _cut_at_phrases

    if text:
        cut = _cut_at_phrases(text, found)
        assert tiles([Step(p.start, p.end) for p in cut], text)
