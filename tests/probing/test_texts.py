"""Texts of other models and languages: end marks, empty answers, numbers, offsets, rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import byte_tokenizer, kfh, said, text_line, trace_file, trace_line, write_lines

from probing.config import ProbeConfig
from probing.errors import ConfigError, DataError
from probing.headset import HeadSet
from probing.interventions.setup import TraceChoice
from probing.labelling.cause import label_by_cause
from probing.labelling.rules import no_rules, numbers, results, rule_labels
from probing.models.load import load_model, load_tokenizer, pocket_model
from probing.run import probe
from probing.traces.file import Step, Trace, header_of, parse_trace, read_traces, write_traces
from probing.traces.marks import BLANK_REASONING, STYLES, EndMark, blank_answer, proposal
from probing.traces.offsets import to_characters
from probing.traces.reports import ReadReport
from probing.traces.segmenters import Segmenter, segment_trace
from probing.traces.source import SourceReport, StepSource, TraceSource, prepare_traces
from probing.traces.text import answer_part, value_spans
from probing.traces.tokens import encode_trace

LONG = "and so on and so forth and once more " * 3


TWICE = f"First 1. {LONG}</think><tool_call>\n<think>\nWait, 90. {LONG}</think>\\boxed{{90}}"
QUOTED = f"It is the tag </think>. Then {LONG}</think>7"
ONCE = f"Now 2. {LONG}</think>2"


# Where the reasoning ends


def test_several_end_marks_are_counted_named_and_chosen_from(tmp_path: Path) -> None:
    lines = [text_line(name, TWICE) for name in "abcd"] + [
        text_line("q", QUOTED),
        text_line("o", ONCE),
    ]
    path = write_lines(tmp_path / "t.jsonl", lines)
    report = ReadReport()
    first = {trace.id: trace for trace in read_traces(path, report=report)}
    assert report.remarked.most_common() == [
        (
            "hold more than one </think>: the first ends the reasoning (--think-end-at last takes "
            "the last)",
            5,
        ),
        ("hold <think> inside the reasoning or the answer", 4),
    ]
    assert report.remarks()[0].startswith("5 traces (a, b, c, …) hold more than one")
    last = {t.id: t for t in read_traces(path, think_end_at="last")}
    assert first["a"].reasoning_end == TWICE.index("</think>")
    assert last["a"].response[last["a"].answer_start :] == "\\boxed{90}"
    assert last["o"].reasoning_end == first["o"].reasoning_end
    assert answer_part(QUOTED, at="last") == "7" != answer_part(QUOTED)
    # The start of a response may be the start mark.
    opened = write_lines(tmp_path / "o.jsonl", [text_line("1", f"\n<think>\n{ONCE}")])
    quiet = ReadReport()
    assert len(list(read_traces(opened, report=quiet))) == 1 and not quiet.remarked
    with pytest.raises(ConfigError, match="unknown think_end_at 'lats'; did you mean last"):
        list(read_traces(path, think_end_at="lats"))


def test_commands_say_so_and_the_choice_travels(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [text_line("a", TWICE), text_line("o", ONCE)])
    out, labels = tmp_path / "steps.jsonl", tmp_path / "labels.jsonl"
    done = kfh("segment", path, "--out", out)
    assert "1 traces (a) hold more than one </think>: the first ends" in said(done)
    done = kfh("segment", path, "--think-end-at", "last", "--out", out)
    assert "the last ends the reasoning" in said(done)
    assert header_of(out)["think_end_at"] == "last"
    steps = next(iter(read_traces(out))).steps
    assert TWICE[steps[-1].start : steps[-1].end].startswith("Wait, 90.")
    done = kfh("label", "--by", "rules", "--traces", out, "--out", labels)
    assert done.exit_code == 0 and "hold more than one" in said(done)
    assert header_of(labels)["settings"]["think_end_at"] == "last"
    # Labels of steps before the last mark do not fit steps before the first.
    cut = {"segmenter": "attnpo", "think_end_at": "last"}
    rules = tmp_path / "rules.jsonl"
    kfh("label", "--by", "rules", "--traces", path, "--segmenter", "attnpo", "--out", rules)
    with pytest.raises(ConfigError, match=r"before the first </think>; here .* the last </think>"):
        TraceSource(path, labels=str(rules), **cut).label_file()
    with pytest.raises(ConfigError, match=r"ends at 'last', --think-end-at says 'first'"):
        list(StepSource(out, think_end_at="first").traces())
    kfh("segment", path, "--out", out)  # cut anew, a file may be read otherwise
    anew = StepSource(out, think_end_at="last", segmenter="attnpo")
    assert next(anew.traces()).steps == steps


def test_an_empty_block_has_no_step() -> None:
    for block, end in (("<think>\n\n", "</think>"), ("\n \n", "</think>"), ("[THINK]", "[/THINK]")):
        assert BLANK_REASONING.fullmatch(block) and not BLANK_REASONING.fullmatch(f"{block}x")
        trace = Trace("1", "q", f"{block}{end}7", think_end=end)
        for name in ("attnpo", "line", "sentence", "paragraph"):
            assert segment_trace(trace, Segmenter(name)).steps == ()
    assert segment_trace(Trace("1", "q", "<think>So.</think>7"), Segmenter()).steps != ()


@pytest.mark.parametrize(
    "answer", ["</s>", "\n<|im_end|>\n", "<｜end▁of▁sentence｜>", "<|return|>", "<end_of_turn>"]
)
def test_an_answer_of_an_end_token_alone_is_empty(tmp_path: Path, answer: str) -> None:
    assert blank_answer(answer) and not blank_answer(f"7{answer}")
    lines = [trace_line(1), {**trace_line(2), "response": f"So 3 = 3.\n</think>{answer}"}]
    lines[1]["steps"] = lines[1]["steps"][:1] and [{"start": 0, "end": 10}]
    path = write_lines(tmp_path / "t.jsonl", lines)
    with pytest.raises(DataError, match=r"line 2, id t/2: nothing follows </think>.*--skip-bad"):
        list(read_traces(path))
    done = kfh("label", "--by", "rules", "--skip-bad", "--traces", path, "--out", path.parent / "l")
    assert "left out 1 × empty answer" in said(done)
    empty = Trace("e", "q", f"So 3 = 3. Wait.</think>{answer}", (Step(0, 10), Step(10, 15)))
    assert rule_labels(empty) == [None, None] and no_rules(empty) == "the answer is empty"


def test_labels_by_cause_leave_an_empty_answer_out(tmp_path: Path) -> None:
    """Also where only the tokenizer knows that it is one."""
    model, tokenizer = (
        load_model(str(pocket_model()), device="cpu"),
        load_tokenizer(str(pocket_model())),
    )
    (good,) = read_traces(trace_file(tmp_path / "t.jsonl", 1))
    text = good.response[: good.answer_start]
    empty = [
        replace(good, id=token, response=text + token) for token in ("</s>", tokenizer.eos_token)
    ]
    report = label_by_cause(model, tokenizer, [good, *empty], tmp_path / "l.jsonl")
    assert report.traces == 1
    assert all("empty answer" in report.left_out[trace.id] for trace in empty)


# Marks of other styles


def test_every_style_is_recognised_and_proposed(tmp_path: Path) -> None:
    for style in STYLES[1:]:
        texts = [f"{style.start}\nSo. {style.end}7"] * 12 + ["So"] * 8
        path = write_lines(
            tmp_path / "t.jsonl", [text_line(str(n), t) for n, t in enumerate(texts)]
        )
        with pytest.raises(DataError) as error:
            list(read_traces(path))
        hint = str(error.value)
        assert f"12 of 20 traces hold `{style.end}`" in hint and "--think-end " in hint
        assert len(list(read_traces(path, think_end=style.end, skip_bad=True))) == 12
        with pytest.raises(DataError, match=r"no usable trace .* try --think-end"):
            list(read_traces(path, skip_bad=True))
    unknown = write_lines(tmp_path / "u.jsonl", [text_line("1", "So. ~~~ 7")])
    with pytest.raises(DataError, match=r"has no </think> \(--think-end\). Mend it"):
        list(read_traces(unknown))
    assert "</think>" in proposal([ONCE], "[/THINK]") and proposal([ONCE], "</think>") == ""


def test_the_mark_given_to_segment_need_not_be_repeated(tmp_path: Path) -> None:
    lines = []
    for n in range(6):
        of = trace_line(n)
        lines.append({**of, "response": of["response"].replace("</think>", "[/THINK]")})
    path, out = write_lines(tmp_path / "t.jsonl", lines), tmp_path / "s.jsonl"
    done = kfh("segment", path, "--out", out)
    assert "6 of 6 traces hold `[/THINK]` (Magistral): try --think-end '[/THINK]'" in said(done)
    words = ("--segmenter", "line", "--think-end", "[/THINK]", "--out", out)
    assert kfh("segment", path, *words).exit_code == 0
    labels = tmp_path / "labels.jsonl"
    assert kfh("label", "--by", "rules", "--traces", out, "--out", labels).exit_code == 0
    assert header_of(labels)["settings"]["think_end"] == "[/THINK]"
    config = ProbeConfig(traces=out, model=str(pocket_model()), out=tmp_path / "p", permutations=5)
    result = probe(config)
    assert result.counts["used"] == 6
    assert (result.head_set.think_end, result.head_set.think_end_at) == ("[/THINK]", "first")
    assert set(result.problems()) == {f"t/{n}" for n in range(6)}
    # The head set tells interventions where the reasoning of traces without a header ends.
    heads = replace(result.head_set, segmenter={"name": "line"})
    heads.save(tmp_path / "heads.json")
    source = TraceChoice(traces=path).source(HeadSet.load(tmp_path / "heads.json"))
    assert len(list(source.traces())) == 6
    done = kfh(
        "label", "--by", "rules", "--traces", out, "--out", labels, "--think-end", "</think>"
    )
    assert "header says that the reasoning ends at '[/THINK]'" in said(done)
    with pytest.raises(DataError, match=r"that of others at the first \[/THINK\]"):
        write_traces(tmp_path / "m.jsonl", [*read_traces(out), Trace("x", "q", ONCE)])
    bad = write_lines(tmp_path / "bad.jsonl", [{"kfh": {"think_end": 3}}, text_line("1", ONCE)])
    with pytest.raises(DataError, match="its header gives"):
        list(read_traces(bad))


# Numbers and words of other scripts


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("答案是92。", ["92"]),
        ("所以x=92。因此", ["92"]),
        ("面积＝１２平方米", ["１２"]),
        ("答えは92です", ["92"]),
        ("ответ92, а не х=7см", ["92,", "7см"]),
        ("γωνία90°", ["90"]),
        ("x2 and a_3 and v1.5", []),
        ("温度−5度", ["−5"]),
        ("x = y, so 12", [" y,", "12"]),
    ],
)
def test_values_beside_letters_of_any_script(text: str, values: list[str]) -> None:
    assert [text[start:end] for start, end in value_spans(text)] == values


def test_answer_values_are_found_in_any_script() -> None:
    for answer in ("答案是92。", "Ответ92", "答えは92です", "γωνία92"):
        trace = Trace("1", "q", f"So.</think>{answer}")
        encoded = encode_trace(byte_tokenizer(), trace, answer="values")
        assert byte_tokenizer().decode(encoded.ids[encoded.answer]) == "92"


def test_rules_read_other_scripts() -> None:
    assert numbers("共０９２个，x2") == ["92"] and results("甲=5乙＝7") == ["7"]
    assert numbers("Итого1,024руб") == ["1024"] and numbers("٤٢") == ["42"]
    chinese = ["先算四十加五十二，得到92个苹果。", "另外想想别的办法会得到17。"]
    assert rule_labels(two_steps(*chinese, "答案是92。")) == ["essential", "redundant"]
    # Other words with the same four numbers do not repeat a step; the same words do.
    russian = ["Берём 40, 52, 3 и 8 яблок.", "Делим 40 груш между 52 детьми, по 3 или 8."]
    assert rule_labels(two_steps(*russian, "Ответ: 92")) == ["essential", None]
    assert rule_labels(two_steps(russian[0], russian[0], "92"))[1] == "redundant"
    other = ["把3个和5个加到7个和9个里面。", "从9块钱中拿走7块，剩下5或3。"]
    assert rule_labels(two_steps(*other, "答案是92。"))[1] is None
    assert rule_labels(two_steps(other[0], other[0], "92"))[1] == "redundant"


def two_steps(first: str, second: str, answer: str) -> Trace:
    ends = (len(first), len(first) + len(second))
    steps = (Step(0, ends[0]), Step(*ends))
    return Trace("1", "?", f"{first}{second}</think>{answer}", steps)


# Offsets


ACCENTS = "Über é: 1. Dann 🙂 2. Also 3. "


def in_unit(unit: str, **more: Any) -> dict:
    """A trace of three steps with their texts, whose offsets count `unit`."""
    ends, steps = [11, 19, 29], []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        text = ACCENTS[start:end]
        size = {
            "bytes": lambda t: len(t.encode()),
            "utf-16": lambda t: len(t.encode("utf-16-le")) // 2,
        }
        count = size.get(unit, len)
        steps.append({"start": count(ACCENTS[:start]), "end": count(ACCENTS[:end]), "text": text})
    return text_line("1", f"{ACCENTS}{LONG}</think>3", steps=steps, **more)


@pytest.mark.parametrize("unit", ["characters", "bytes", "utf-16"])
def test_offsets_of_every_unit_are_read_and_told(tmp_path: Path, unit: str) -> None:
    path = write_lines(tmp_path / "t.jsonl", [in_unit(unit)])
    (trace,) = StepSource(path, offsets=unit).traces()
    assert [(s.start, s.end) for s in trace.steps] == [(0, 11), (11, 19), (19, 29)]
    for other in {"characters", "bytes", "utf-16"} - {unit}:
        with pytest.raises(DataError, match=f"they fit in {unit}: --offsets {unit}"):
            list(StepSource(path, offsets=other).traces())
    out = tmp_path / "o.jsonl"
    write_traces(out, [trace])
    assert next(iter(read_traces(out))).steps == trace.steps, "written as characters"


def test_offsets_that_fit_nowhere_or_bring_no_text(tmp_path: Path) -> None:
    bad = in_unit("characters")
    bad["steps"][1]["text"] = "Dann 2"
    report = ReadReport()
    path = write_lines(tmp_path / "t.jsonl", [bad, trace_line(2)])
    with pytest.raises(DataError, match=r"step 1 brings the text 'Dann 2', but its offsets in"):
        list(read_traces(path))
    assert len(list(read_traces(path, skip_bad=True, report=report))) == 1
    assert report.bad == {"text of a step not at its offsets": 1}
    tidied = in_unit("characters")
    tidied["steps"][0]["text"] = " Über é:  1."  # blanks do not count
    assert parse_trace(json.dumps(tidied)).steps[0].extra == {"text": " Über é:  1."}
    bare = text_line("1", "éééé</think>3", steps=[{"start": 0, "end": 8}])
    with pytest.raises(DataError, match=r"reasoning is 0–4, in bytes 0–8: see --offsets"):
        parse_trace(json.dumps(bare))
    with pytest.raises(ValueError, match="inside a character"):
        to_characters("é", [(0, 1)], "bytes")
    with pytest.raises(ValueError, match="leaves the text, which has 2 bytes"):
        to_characters("é", [(-1, 2)], "bytes")


# Labels that do not fit


def test_rules_leave_answers_without_a_number_alone(tmp_path: Path) -> None:
    steps = [{"start": 0, "end": 12}, {"start": 12, "end": 24}]
    lines = [
        text_line("w", "So 1 + 2 = 3Wait, 3 it isn</think>The answer is (B).", steps=steps),
        text_line("n", "So 1 + 2 = 3Wait, 3 it isn</think>3", steps=steps),
    ]
    out = tmp_path / "rules.jsonl"
    path = write_lines(tmp_path / "t.jsonl", lines)
    done = kfh("label", "--by", "rules", "--traces", path, "--out", out)
    assert "the answer states no number in 1 traces, whose steps have no label; first w" in said(
        done
    )
    found = [json.loads(text) for text in out.read_text().splitlines()[1:]]
    assert [row["label"] for row in found] == [None, None, "essential", "redundant"]


def test_ids_that_only_one_of_both_files_knows_are_said(tmp_path: Path) -> None:
    traces = trace_file(tmp_path / "t.jsonl", 3)
    known = [
        {"id": "t/0", "step": step, "label": label}
        for step, label in enumerate(["essential", "redundant"])
    ]
    gone = [{"id": f"old/{n}", "step": 0, "label": "essential"} for n in range(5)]
    path = write_lines(tmp_path / "labels.jsonl", [*known, *gone])
    report = SourceReport()
    assert len(list(prepare_traces(TraceSource(traces, labels=str(path)), report))) == 1
    assert report.left_out == {"no label in the label file": 2}
    expected = f"{path} labels 5 traces that are not there, such as old/0, old/1, old/2"
    assert report.to_json()["remarks"] == [expected]
    write_lines(path, gone)
    with pytest.raises(DataError, match=r"3 no label in the label file.*such as old/0, old/1"):
        list(prepare_traces(TraceSource(traces, labels=str(path))))


def test_end_marks_of_headers() -> None:
    assert EndMark.chosen({"think_end": "X"}) == EndMark("X") == EndMark.chosen(None, "X")
    assert EndMark.chosen({"think_end": "X"}, "X", "first") == EndMark("X")
    assert EndMark.chosen({}, None, "last").to_json() == {
        "think_end": "</think>",
        "think_end_at": "last",
    }
    with pytest.raises(ConfigError, match="think_end is empty"):
        EndMark.chosen(None, "")
