"""Kinds of results: what a folder holds, kinds from outside, and progress where nobody watches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from test_runs import add_result, run_folder

from kfh import console
from kfh.commands.show import plot_runs
from kfh.findings.base import Kind, Picture, Place, Section
from kfh.findings.kinds import KINDS
from kfh.findings.page import run_report
from kfh.tables import Table
from probing.errors import DataError
from probing.files.headers import RESULTS, file_header, kind_of, read_object
from probing.numbers import Number


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path.parent


@pytest.mark.parametrize("kind", RESULTS)
def test_the_header_says_what_a_folder_holds(tmp_path: Path, kind: str) -> None:
    """`run.json` is a probe's or a training's."""
    file, name = RESULTS[kind]
    assert kind_of(write(tmp_path / file, {"kfh": file_header(name)})) == (kind,)


def test_what_has_no_header_is_told_by_its_name_and_by_what_lies_beside(tmp_path: Path) -> None:
    assert kind_of(tmp_path) == () and kind_of(tmp_path / "nowhere") == ()
    assert kind_of(write(tmp_path / "a" / "eval.json", {"benchmarks": {}})) == ("evaluation",)
    assert kind_of(write(tmp_path / "b" / "run.json", {})) == ()
    assert kind_of(write(tmp_path / "c" / "run.json", {"method": "pa"})) == ("training",)
    run = run_folder(tmp_path / "run")
    (run / "run.json").write_text("{")  # damaged: its metrics say that it was a run
    assert kind_of(run) == ("training",)
    probe = write(tmp_path / "probe" / "sra.parquet", "")
    assert kind_of(probe) == ("probe",)
    write(probe / "sample_size.json", {})
    assert kind_of(probe) == ("probe", "sample size")


def test_every_kind_has_the_name_and_file_that_its_header_gives() -> None:
    assert [(kind.name, kind.file) for kind in KINDS] == [
        (kind.name, RESULTS[kind.name][0]) for kind in KINDS
    ]


def test_a_kind_from_outside_is_reported_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(place: Place) -> Section:
        content = read_object(place.folder / "mine.json")
        if "value" not in content:
            raise DataError(f"{place.folder}: no value")
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([0, content["value"]])
        return Section(
            "My finding",
            tables=[Table("mine", ("what", "value"), [("answer", Number(content["value"]))])],
            pictures=[Picture("mine", "a line", figure)],
            caveats=["only one value"],
        )

    monkeypatch.setattr("kfh.findings.page.DPI", 25)
    KINDS.append(Kind("mine", "mine.json", read))
    try:
        good = write(tmp_path / "good" / "mine.json", {"value": 42.0})
        write(tmp_path / "bad" / "mine.json", {})
        run_report(tmp_path, None, None)
        plot_runs([good], formats="svg")
    finally:
        KINDS.pop()
    text = (tmp_path / "report.md").read_text()
    assert "| answer | 42.000 |" in text and "only one value" in text and "no value" in text
    assert (good / "mine.svg").read_text().count("<svg") == 1


def test_stability_and_comparison_are_told_apart_from_probes_and_runs(tmp_path: Path) -> None:
    for seed in range(2):
        add_result(tmp_path / "runs" / f"pa-{seed}", "pa", seed)
    write(tmp_path / "only" / "comparison.json", {"kfh": file_header("comparison")})
    (kind,) = [kind for kind in KINDS if kind.name == "comparison"]
    folders = [tmp_path, *sorted(tmp_path.rglob("*"))]
    places = kind.places([folder for folder in folders if folder.is_dir()])
    assert [(place.folder.name, len(place.parts)) for place in places] == [("runs", 2), ("only", 0)]


def test_progress_is_a_line_now_and_then_where_nobody_watches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Piped, a long work said nothing until its end."""
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(console.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(console, "EVERY", 55.0)
    monkeypatch.setattr(console, "talk", console.Console(stderr=True, force_terminal=False))
    with console.progress_bar("scoring", 8) as advance:
        for _ in range(8):
            advance(1, 100)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 2  # of eight steps of 20 seconds
    assert lines[0].startswith("scoring: 3 of 8, ") and "tokens/s" in lines[0]
    assert "0:50 so far, about 1:23 left" in lines[0]


def test_quick_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar("scoring", 3) as advance:
        for _ in range(3):
            advance(1, 100)
    assert capsys.readouterr().err == ""
