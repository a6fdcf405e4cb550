"""What a cut says of itself, the same in commands, counts and Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import kfh, said, text_line, write_lines

from probing.errors import ConfigError
from probing.traces.file import header_of, read_traces
from probing.traces.reports import CutReport, ReadReport
from probing.traces.source import StepSource, TraceSource

LONG = "and so on and so forth and once more " * 3


def test_a_cut_says_what_it_did(tmp_path: Path) -> None:
    report = CutReport.of([["forward", "confused"], ["forward"], [], ["forward"] * 3])
    assert str(report) == (
        "4 traces cut: 1.5 steps a trace (median; 0–3), 1 of one step, 1 without a step; 83 % "
        "forward, 17 % confused"
    )
    assert CutReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert not CutReport.of([["forward", "confused"]] * 4 + [["backward"]]).warnings, "a fifth"
    attnpo = {"name": "attnpo"}
    (one_kind,) = CutReport.of([["forward"] * 19 + ["confused"]], attnpo).warnings
    assert one_kind.startswith("19 of 20 steps are of one kind (forward): try --openings loose")
    assert not CutReport.of([["forward"] * 18 + ["confused"] * 2], attnpo).warnings
    assert CutReport.of([[None] * 9]).warnings == [], "steps without a kind are of none"


BULLETS = f"Here it is. {LONG}\n    So 5. {LONG}\n*   Then 6. {LONG}\n1.  Let’s see. {LONG}\n"


def test_commands_say_what_the_cut_did_and_what_to_try(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "t.jsonl", [text_line(str(n), f"{BULLETS}</think>6") for n in range(3)]
    )
    out = tmp_path / "s.jsonl"
    done = kfh("segment", path, "--out", out)
    assert "3 traces cut: 1 steps a trace (median; 1–1), 3 of one step; 100 % forward" in said(done)
    assert "3 of 3 traces were not cut (one step)" in said(done)
    assert "try --openings loose, which" in said(done)
    done = kfh("segment", path, "--openings", "loose", "--out", out)
    assert "3 traces cut: 4 steps a trace (median; 4–4); 75 % forward, 25 % backward" in said(done)
    assert "try" not in said(done)
    assert header_of(out)["segmenter"]["openings"] == "loose"
    assert str(CutReport.of(read_traces(out))).startswith("3 traces cut: 4 steps a trace")
    report = ReadReport()
    list(StepSource(path, segmenter="sentence").traces(report))
    assert report.cut.steps == sum(size * n for size, n in report.cut.sizes.items()) > 6
    for words in (("--segmenter", "line"), ("--segmenter", "given")):
        done = kfh("segment", path, "--openings", "loose", *words, "--out", out)
        assert "openings loose are for phrases" in said(done) or "cuts nothing" in said(done)


def test_a_label_file_of_other_openings_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [text_line("1", f"{BULLETS}</think>6")])
    labels = {}
    for openings in ("strict", "loose"):
        labels[openings] = tmp_path / f"{openings}.jsonl"
        words = ("--segmenter", "attnpo", "--openings", openings, "--out", labels[openings])
        assert kfh("label", "--by", "rules", "--traces", path, *words).exit_code == 0
    for openings, other in (("strict", "loose"), ("loose", "strict")):
        source = TraceSource(path, segmenter="attnpo", openings=openings, labels=str(labels[other]))
        with pytest.raises(ConfigError, match=f"openings '{other}'; here openings is '{openings}'"):
            source.label_file()
