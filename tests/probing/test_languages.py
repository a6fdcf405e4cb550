"""Phrases of other languages: what they cut, which is taken, and what is said where none fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import byte_tokenizer, kfh, said, text_line, write_lines

from probing.choices import LANGUAGES
from probing.errors import ConfigError, DataError
from probing.headset import HeadSet
from probing.traces.phrases import SHIPPED, Phrases
from probing.traces.reports import CutReport, ReadReport
from probing.traces.segmenters import Segmenter, segment
from probing.traces.source import StepSource
from probing.traces.text import language_of
from rl.attnpo.completions import Cutter

# The same short reasoning; `|` stands where a step starts. Words inside a sentence cut nowhere.
REASONING = {
    "en": "We add the two numbers and this is 92.\n|So the sum is 92.\n|Wait, is that the right "
    "sum of them?\n|Alternatively, we count it in another way.",
    "zh": "好的，我们来算这道题，首先把两个数相加，但不进位。|所以答案是92。|等等，让我想一想，"
    "这个因此要不要再看。|另一种方法是从后往前算。",
    "ja": "問題を読みます。二つの数をまず足します。|したがって和は92です。|しかし、これでよいので"
    "しょうか。|別の方法で数えてみます。",
    "es": "El problema pide la suma de los dos números, que es 92.\n|Por lo tanto, la suma es 92.\n"
    "|Espera, ¿es una suma con todos los números?\n|Otra forma de contar es por pares.",
    "fr": "Le problème est de calculer la somme des deux nombres, et nous avons 92.\n|Donc la "
    "somme est 92.\n|Attends, est-ce que les nombres sont dans le bon ordre ?\n|Une autre "
    "méthode est de compter.",
    "de": "Wir addieren die beiden Zahlen, und das ist nicht schwer: 92.\n|Daher ist die Summe "
    "92.\n|Moment, ist das auch mit der Probe richtig?\n|Alternativ zählen wir die Zahlen.",
}
KINDS = ["forward", "backward", "confused", "confused"]


def cut_texts(text: str, segmenter: Segmenter) -> list[str]:
    return [text[step.start : step.end] for step in segmenter.cut(text)]


@pytest.mark.parametrize("language", REASONING)
def test_each_language_is_told_and_cut_at_its_phrases(language: str) -> None:
    wanted = REASONING[language].split("|")
    text = "".join(wanted)
    assert language_of(text) == language
    cutter = Segmenter.parse(language, min_chars=0)
    assert cut_texts(text, cutter) == cut_texts(text, Segmenter.parse("auto", 0)) == wanted
    steps = cutter.cut(text)
    assert [step.kind for step in steps] == KINDS and steps[-1].end == len(text)
    phrases = Phrases.shipped(language)
    assert {"confused", "branching", "forward", "backward", "special"} == {*phrases.kinds.values()}
    assert phrases.language == language and language in SHIPPED


def test_a_character_without_spaces_counts_for_more() -> None:
    """Of 32 characters (80 / 2.5) a Chinese step is long enough, of 31 it is merged."""
    for size, count in ((32, 3), (31, 2)):
        text = f"好的。{'算' * 40}。所以{'数' * (size - 3)}。等等，{'看' * 40}。"
        assert len(segment(text, "zh")) == count


def test_the_published_list_stays_what_it_was() -> None:
    assert Segmenter.parse("en") == Segmenter() and Segmenter().to_json()["phrases"] is None
    about = Segmenter.parse("zh").to_json()
    assert about["phrases"] == "zh" and about["phrases_hash"] == Phrases.shipped("zh").file_hash
    hashes = {Segmenter.parse(name).to_json()["phrases_hash"] for name in LANGUAGES}
    assert len(hashes) == len(LANGUAGES)
    # A head set's own language cuts what is sampled in training.
    heads = replace(HeadSet.load("pocket", warn=False), segmenter=about)
    assert Cutter.like(heads, byte_tokenizer(), [1]).segmenter == Segmenter.parse("zh")


def test_traces_that_no_phrase_cuts_are_said_to_be_of_another_language(tmp_path: Path) -> None:
    texts = {name: text.replace("|", "") for name, text in REASONING.items()}
    lines = [text_line(str(n), f"{texts['en']}</think>92") for n in range(4)]
    lines += [text_line(name, f"{texts[name]}</think>92") for name in ("zh", "ja")]
    path = write_lines(tmp_path / "in.jsonl", lines)
    words = ("segment", path, "--out", tmp_path / "out.jsonl", "--min-chars", 0)
    done = said(kfh(*words))
    assert "2 of 6 traces are one step: is this the right phrase file?" in done
    assert "1 in zh, 1 in ja: try --phrases auto" in done
    report = ReadReport()
    source = StepSource(path=path, segmenter="attnpo", phrases="auto", min_chars=0)
    assert [len(trace.steps) for trace in source.traces(report)] == [4] * 6
    assert not report.cut.warnings
    again = CutReport.from_json(json.loads(json.dumps(report.cut.to_json())))
    assert again == report.cut
    for more, why in (
        (("--phrases", "zg"), "did you mean zh"),
        (("--phrases", "zh", "--segmenter", "line"), "--phrases are those of --segmenter attnpo"),
    ):
        assert why in said(kfh(*words, *more))
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"kinds": {"confused": ["x"]}, "places": "anywhere"}))
    with pytest.raises(DataError, match="unknown places"):
        Segmenter.parse(str(bad)).cut("x y")
    with pytest.raises(ConfigError, match="unknown segmenter"):
        Segmenter.parse("it")
