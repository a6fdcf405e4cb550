"""Trace, label and head files: what is read, what is refused and with which words."""

from __future__ import annotations

import gzip
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import trace_file, trace_line, write_lines

from probing.choices import LABELS
from probing.errors import ConfigError, DataError
from probing.traces.file import read_traces, write_traces
from probing.traces.labels import read_labels, write_labels
from probing.traces.reports import ReadReport
from probing.traces.source import SourceReport, TraceSource, prepare_traces

GOOD = trace_line(1)
IDS = {"prompt": [1], "response": [2]}


def test_round_trip_keeps_unknown_fields(tmp_path: Path) -> None:
    line = {**GOOD, "tags": ["a"], "nested": {"x": None}, "ground_truth": "1"}
    line["steps"] = [{**line["steps"][0], "importance": 0.25}, *line["steps"][1:]]
    source = write_lines(tmp_path / "in.jsonl", [line])
    for name in ("out.jsonl", "out.jsonl.gz"):
        assert write_traces(tmp_path / name, read_traces(source), source="test") == 1
        again = next(read_traces(str(tmp_path / name)))
        assert again.to_json() == line
    with gzip.open(tmp_path / "out.jsonl.gz", "rt") as file:
        header = json.loads(file.readline())["kfh"]
    assert header["kind"] == "traces" and header["source"] == "test" and header["command"]


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("{no", "not JSON", "not JSON"),
        ("[1]", "not JSON", "must be a JSON object"),
        ({k: v for k, v in GOOD.items() if k != "prompt"}, "missing field", "'prompt' is missing"),
        ({**GOOD, "correct": "yes"}, "wrong type", "'correct' must be bool"),
        ({**GOOD, "steps": [1]}, "wrong type", "step 0 must be an object"),
        ({**GOOD, "steps": [{"start": 0}]}, "missing field", "step 0 needs whole numbers"),
        ({**GOOD, "steps": [{"start": 0, "end": 10**6}]}, "offsets out of range", "0–1000000"),
        ({**GOOD, "steps": [{"start": 3, "end": 3}]}, "offsets out of range", "step 0 is 3–3"),
        (
            {**GOOD, "steps": [{"start": 0, "end": 5}, {"start": 4, "end": 9}]},
            "offsets overlap",
            "step 1 starts at 4, before step 0 ends",
        ),
        ({**GOOD, "steps": [{"start": 0, "end": 5, "label": "good"}]}, "unknown label", "'good'"),
        ({**GOOD, "response": "no end"}, "no </think>", "has no </think>"),
        ({**GOOD, "response": "a</think> \n", "steps": []}, "empty answer", "nothing follows"),
        ({**GOOD, "problem": "half \ud83d"}, "invalid Unicode", "half a character"),
        ({**GOOD, "note": {"half \udc00": 1}}, "invalid Unicode", "half a character"),
        ({**GOOD, "id": True}, "wrong type", "'id' must be str"),
        ({**GOOD, "id": 1.5}, "wrong type", "'id' must be str"),
        ('{"id": ' + "[" * 100_000, "not JSON", "nested more than 100 deep"),
        ('{"id": ' + "[" * 200 + "]" * 200 + "}", "not JSON", "nested more than 100 deep"),
        ({**GOOD, "steps": [{"start": 0, "end": 5, "kind": []}]}, "wrong type", "'kind' must be"),
        *(
            ({**GOOD, "token_ids": {**IDS, **changes}}, "wrong token_ids", "token_ids must be")
            for changes in (
                {"response": [2**70]},
                {"response": [2**40]},
                {"prompt": [-1]},
                {"prompt": [True]},
                {"prompt": [1.0]},
                {"prompt": {"1": 2}},
                {"end": 2**40},
                {"tokenizer": 5},
            )
        ),
    ],
)
def test_bad_lines(tmp_path: Path, line: object, kind: str, message: str) -> None:
    path = write_lines(tmp_path / "t.jsonl", [trace_line(0), line, trace_line(2)])
    report = ReadReport()
    with pytest.raises(DataError) as error:
        list(read_traces(path))
    assert f"{path}, line 2, id" in str(error.value) and message in str(error.value)
    assert "--skip-bad" in str(error.value)
    found = list(read_traces(path, skip_bad=True, report=report))
    assert [t.id for t in found] == ["t/0", "t/2"]
    assert report.bad == {kind: 1} and report.read == 2
    assert message in report.first_bad[kind]


def test_duplicate_ids_and_unusable_files(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [GOOD, GOOD])
    with pytest.raises(DataError, match="line 2, id t/1: this id stands on an earlier line"):
        list(read_traces(path))
    with pytest.raises(DataError, match="no usable trace"):
        list(read_traces(write_lines(tmp_path / "empty.jsonl", [""])))
    with pytest.raises(DataError, match=r"no usable trace .*1 bad lines"):
        list(read_traces(write_lines(tmp_path / "bad.jsonl", ["{"]), skip_bad=True))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_traces(tmp_path / "none.jsonl"))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        list(read_traces(tmp_path / "binary.jsonl"))
    (tmp_path / "broken.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="not a text file"):
        list(read_traces(tmp_path / "broken.jsonl.gz"))


def test_bytes_that_are_no_text_are_one_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = [json.dumps(trace_line(n)).encode() for n in range(4)]
    lines[1] = lines[1][:40] + b"\xff\xfe" + lines[1][40:]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match="line 2, id unknown: not a text in UTF-8"):
        list(read_traces(path))
    report = ReadReport()
    found = [t.id for t in read_traces(path, skip_bad=True, report=report)]
    assert found == ["t/0", "t/2", "t/3"] and report.bad == {"invalid Unicode": 1}


def test_the_first_few_bad_lines_are_named(tmp_path: Path) -> None:
    path, report = write_lines(tmp_path / "t.jsonl", ["{"] * 5 + [GOOD]), ReadReport()
    assert len(list(read_traces(path, skip_bad=True, report=report))) == 1
    assert report.bad == {"not JSON": 5}
    named = [n for n in range(1, 7) if f"line {n}," in report.first_bad["not JSON"]]
    assert named == [1, 2, 3]


def test_whole_numbers_are_ids_and_a_mark_before_the_text_is_passed_over(tmp_path: Path) -> None:
    """A BOM, CRLF, several headers: of files made by other programs, or put together."""
    header = json.dumps({"kfh": {"kind": "traces"}})
    lines = [header, *(json.dumps({**trace_line(n), "id": n}) for n in range(3)), header]
    path = tmp_path / "t.jsonl"
    path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert [trace.id for trace in read_traces(path)] == ["0", "1", "2"]
    labels = [{"id": n, "step": s, "label": LABELS[s % 2]} for n in range(3) for s in range(3)]
    own = tmp_path / "labels.jsonl.gz"
    own.write_bytes(gzip.compress("\ufeff".encode() + "\n".join(map(json.dumps, labels)).encode()))
    source = TraceSource(path, segmenter="line", labels=str(own))
    assert [trace.id for trace in prepare_traces(source)] == ["0", "1", "2"]
    twice = write_lines(tmp_path / "twice.jsonl", [{**GOOD, "id": 7}, {**GOOD, "id": "7"}])
    with pytest.raises(DataError, match="line 2, id 7: this id stands on an earlier line"):
        list(read_traces(twice))


@pytest.mark.parametrize("skip_bad", [False, True])
def test_files_that_are_no_lines_of_text_say_what_they_are(tmp_path: Path, skip_bad: bool) -> None:
    whole = gzip.compress("\n".join(json.dumps(trace_line(n)) for n in range(50)).encode())
    middle = len(whole) // 2
    array = json.dumps([trace_line(n) for n in range(2)], indent=2)
    for name, content, message in (
        ("cut.jsonl.gz", whole[:middle], "damaged gzip"),
        (
            "torn.jsonl.gz",
            whole[:middle] + b"\xff\x00\xff" + whole[middle + 3 :],
            "damaged gzip|JSON",
        ),
        ("array.jsonl", array.encode(), "a JSON array, not JSON lines; write one object a line"),
        ("one.jsonl", json.dumps([GOOD]).encode(), "a JSON array, not JSON lines"),
        ("wide.jsonl", json.dumps(GOOD).encode("utf-16"), "UTF-16; save it as UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message) as error:
            list(read_traces(tmp_path / name, skip_bad=skip_bad))
        assert name in str(error.value)
    (tmp_path / "packed.jsonl").write_bytes(whole)  # gzip under another name
    assert len(list(read_traces(tmp_path / "packed.jsonl"))) == 50


def test_reading_is_lazy(tmp_path: Path) -> None:
    """The first traces come before a bad line far behind is met."""
    path = write_lines(tmp_path / "t.jsonl", [trace_line(n) for n in range(50)] + ["{"])
    assert len(list(itertools.islice(read_traces(path), 50))) == 50


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("old")
    source = write_lines(tmp_path / "t.jsonl", [GOOD, "{"])
    with pytest.raises(DataError):
        write_traces(target, read_traces(source))
    assert target.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "t.jsonl"]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    one_kind = [{**s, "label": "essential"} for s in GOOD["steps"]]
    lines = [
        trace_line(0),
        trace_line(2, correct=False),
        trace_line(3, steps=4) | {"steps": []},
        {**trace_line(4), "steps": one_kind[:1]},
        {**trace_line(5), "correct": None},
    ]
    path = write_lines(tmp_path / "t.jsonl", lines)
    report = SourceReport()
    assert [t.id for t in prepare_traces(TraceSource(path), report)] == ["t/0", "t/5"]
    counts = report.to_json()
    assert counts["left_out"] == {
        "wrong answer": 1,
        "no steps": 1,
        "labels of one kind only, or none": 1,
    }
    assert counts["read"] == 5 and counts["used"] == 2
    assert len(list(prepare_traces(TraceSource(path, keep="all")))) == 3
    bad = write_lines(tmp_path / "none.jsonl", [trace_line(2, correct=False)])
    with pytest.raises(DataError, match=r"no trace can be ranked \(1 wrong answer\)"):
        list(prepare_traces(TraceSource(bad)))
    with pytest.raises(ConfigError, match="unknown keep"):
        TraceSource(path, keep="some")
    with pytest.raises(DataError, match="no such trace file"):
        TraceSource(tmp_path / "nowhere.jsonl")


def test_label_files(tmp_path: Path) -> None:
    traces = trace_file(tmp_path / "t.jsonl", 3)
    lines = [
        {"id": f"t/{n}", "step": s, "label": ["essential", "redundant"][s % 2]}
        for n in range(3)
        for s in range(3)
    ]
    path = tmp_path / "labels.jsonl"
    assert write_labels(path, lines, {"name": "line"}, source="rules") == 9
    assert read_labels(path).segmenter == {"name": "line"}
    source = TraceSource(traces, segmenter="line", labels=str(path))
    trace = next(prepare_traces(source))
    assert [s.label for s in trace.steps][:4] == ["essential", "redundant", "essential", None]
    assert source.label_json()["hash"].startswith("sha256:")
    with pytest.raises(ConfigError, match="labels the steps of the segmenter 'line'"):
        list(prepare_traces(TraceSource(traces, labels=str(path))))
    write_labels(path, [{"id": "t/0", "step": 99, "label": "essential"}], {"name": "line"})
    with pytest.raises(DataError, match="labels step 99 of trace t/0"):
        list(prepare_traces(source))


def test_bad_label_lines_may_be_left_out(tmp_path: Path) -> None:
    traces = trace_file(tmp_path / "t.jsonl", 2)
    good = [{"id": "t/0", "step": s, "label": LABELS[s % 2]} for s in range(3)]
    bad = [
        "{",
        {"id": 1.5, "step": 0, "label": None},
        {**good[0], "step": True},
        {**good[0], "label": "?"},
    ]
    labels = write_lines(
        tmp_path / "labels.jsonl", [*good, *bad, {**good[0], "label": "redundant"}]
    )
    source = TraceSource(traces, segmenter="line", labels=str(labels))
    with pytest.raises(DataError, match=r"line 4: not JSON .* --skip-bad"):
        list(prepare_traces(source))
    report = SourceReport()
    found = list(prepare_traces(replace(source, skip_bad=True), report))
    assert [step.label for step in found[0].steps[:3]] == [line["label"] for line in good]
    assert report.to_json()["bad_lines"] == {
        "label line: not JSON": 1,
        "label line: wrong type": 2,
        "label line: unknown label": 1,
        "label line: two labels": 1,
    }
    assert "line 4" in report.to_json()["first_bad_lines"]["label line: not JSON"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1: not JSON"),
        ([{"id": "a", "step": 0}], "line 1: needs"),
        ([{"id": "a", "step": 0, "label": "good"}], "label 'good'"),
        (
            [
                {"id": "a", "step": 0, "label": "essential"},
                {"id": "a", "step": 0, "label": "redundant"},
            ],
            "two labels",
        ),
        ([""], "holds no label"),
    ],
)
def test_bad_label_files(tmp_path: Path, lines: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_labels(write_lines(tmp_path / "labels.jsonl", lines))
