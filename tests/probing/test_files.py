"""Files: the append-only store; no input is overwritten; a failed write leaves no half."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import trace_file, write_lines

from kfh.cli import main
from probing.errors import ConfigError, DataError
from probing.files.headers import data_path, json_number, refuse_overwriting, whole_file
from probing.files.jsonl import LineStore, read_lines

SETTINGS = {"settings": {"k": [1, 2], "model": {"id": "here", "layers": 3}}}


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: writing stops in the middle."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def pairs(row: dict) -> bool:
    """Groups are of two lines."""
    return bool(row["n"] % 2)


def store_at(path: Path, groups: int = 2) -> LineStore:
    store = LineStore(path, "pairs", SETTINGS)
    assert not store.open(resume=True)
    for n in range(groups):
        store.add([{"n": 2 * n, "text": "ä"}, {"n": 2 * n + 1}])
    return store


def test_a_store_goes_on_from_its_last_whole_group(tmp_path: Path) -> None:
    path = tmp_path / "new" / "pairs.jsonl"
    store_at(path)
    whole = path.read_bytes()
    header, *rows = map(json.loads, whole.splitlines())
    assert header["kfh"]["kind"] == "pairs" and header["kfh"]["settings"] == SETTINGS["settings"]
    assert [row["n"] for row in rows] == [0, 1, 2, 3]
    for rest, lines in (
        (b"", 0),
        (b'{"n": 4, "te', 1),
        (b'{"n": 4}\n', 1),
        (b'{"n": 4}\n{"n": 5}', 2),
        (b'{"n": 4}\n{"n": 5, "text": "\xc3', 2),
    ):
        path.write_bytes(whole + rest)
        taken: list[dict] = []
        again = LineStore(path, "pairs", SETTINGS)
        assert again.open(True, lambda row, into=taken: [into.append(row), pairs(row)][1])
        assert taken[:4] == rows and again.cut == lines and path.read_bytes() == whole
    again.add([{"n": 4}, {"n": 5}])
    assert read_lines(path) == ([*rows, {"n": 4}, {"n": 5}], False)
    again.open(resume=False)
    assert read_lines(path) == ([], False)


def test_a_moved_model_is_the_same_and_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    store_at(path)
    moved = {"settings": {"k": (1, 2), "model": {"layers": 3}}}
    assert LineStore(path, "pairs", moved).open(resume=True)
    other = {"settings": {"k": [3], "model": {"id": "here", "layers": 3}}}
    with pytest.raises(ConfigError, match=r"pairs made with k \[1, 2\]; now asked for k \[3\]"):
        LineStore(path, "pairs", other).open(resume=True)
    assert len(read_lines(path)[0]) == 4


def test_what_is_no_file_of_the_store_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    for content in ('{"a": 1}\n', "my notes", '{"kfh": {"kind": "labels"}}\n'):
        path.write_text(content)
        with pytest.raises(DataError, match="holds no pairs"):
            LineStore(path, "pairs", SETTINGS).open(resume=True)
        assert path.read_text() == content
    for content in ("", '{"kfh": {"ki'):
        path.write_text(content)
        assert not LineStore(path, "pairs", SETTINGS).open(resume=True)
    path.unlink()
    store_at(path).add([{"m": 1}])
    with pytest.raises(DataError, match=r"line 6: damaged \(KeyError\('n'\)\)"):
        LineStore(path, "pairs", SETTINGS).open(True, pairs)
    path.write_bytes(path.read_bytes().replace(b'{"n": 1}', b'{"n" 1}'))
    with pytest.raises(DataError, match="line 3: damaged"):
        LineStore(path, "pairs", SETTINGS).open(True, pairs)


def test_a_full_disk_leaves_whole_groups(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    store = store_at(path)
    whole = path.read_bytes()
    with full_disk(len(whole) + 10), pytest.raises(OSError, match="too large"):
        store.add([{"n": 4}, {"n": 5}])
    assert path.read_bytes() == whole
    store.add([{"n": 4}, {"n": 5}])
    assert len(read_lines(path)[0]) == 6
    path.unlink()
    with full_disk(10), pytest.raises(OSError, match="too large"):
        store.open(resume=True)
    assert list(tmp_path.iterdir()) == []


def test_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    first = store_at(path)
    second = LineStore(path, "pairs", SETTINGS)
    assert second.open(True, pairs)
    second.add([{"n": 4}, {"n": 5}])
    with pytest.raises(DataError, match="something else writes to it"):
        first.add([{"n": 4}, {"n": 5}])


def test_numbers_that_json_has_no_word_for() -> None:
    given = (1, float("nan"), float("inf"), None)
    assert [json_number(value) for value in given] == [1.0, None, None, None]
    assert json_number(1 / 3, digits=2) == 0.33


def called(*arguments: object) -> object:
    """Run `kfh` in this process; what it exits with."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run `kfh` where it must fail; the one line that it says."""
    assert called(*arguments) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("kfh: ")
    return said


def test_no_command_overwrites_what_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    traces, out = trace_file(tmp_path / "traces.jsonl", 2), tmp_path / "out"
    question = {"id": "1", "question": "1 + 1?", "answer": "2"}
    questions = write_lines(tmp_path / "questions.jsonl", [question])
    out.mkdir()
    base = write_lines(out / "eval.json", ['{"benchmarks": {}, "settings": {}}'])
    judges = tmp_path / "judges.yaml"
    judges.write_text("judges:\n- {name: a, base_url: http://localhost, model: m}\n")
    links = []
    for name in ("link.jsonl", "strip.png", "page.html", "out/outcomes.jsonl"):
        links.append(tmp_path / name)
        links[-1].symlink_to(traces)
    link, strip, page, _ = links
    before = {path: path.read_bytes() for path in (traces, questions, base, judges)}
    label = ("label", "--traces", traces, "--by")
    for arguments in (
        ("segment", traces, "--out", traces),
        ("segment", traces, "--out", link),
        (*label, "rules", "--out", link),
        (*label, "cause", "--device", "cpu", "--out", traces),
        (*label, "judges", "--judges", judges, "--out", traces),
        (*label, "judges", "--judges", judges, "--out", judges),
        ("rollout", "--data", questions, "--out", questions),
        ("eval", "--data", questions, "--base", out, "--out", out),
        ("ablate", "--traces", traces, "--out", out),
        ("plot", "trace", out, "--traces", traces, "--out", strip),
        ("plot", "trace", out, "--traces", traces, "--html", "--out", page),
    ):
        assert "would be overwritten" in refused(capsys, *arguments), arguments
        assert {path: path.read_bytes() for path in before} == before
        assert all(path.is_symlink() for path in links)
    (tmp_path / "hard").hardlink_to(traces)
    with pytest.raises(ConfigError, match="would be overwritten"):
        refuse_overwriting(tmp_path / "hard", None, "no file", traces)
    refuse_overwriting(tmp_path / "new", traces)


def test_what_cannot_be_written_is_one_line_and_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with data_path("pocket", "traces.jsonl").open(encoding="utf-8") as file:
        lines = [next(file).strip() for _ in range(4)]
    traces = write_lines(tmp_path / "traces.jsonl", lines)
    out = tmp_path / "out" / "out.jsonl"
    cause = ("label", "--by", "cause", "--device", "cpu", "--traces", traces, "--out", out)
    for command in (("segment", traces), ("label", "--by", "rules", "--traces", traces)):
        with full_disk(700):
            assert "too large" in refused(capsys, *command, "--out", out)
        assert list(out.parent.iterdir()) == [], "neither a half nor a temporary file"
        said = refused(capsys, *command, "--out", traces / "x.jsonl")
        assert said == f"kfh: {traces}: is a file, not a folder"
        said = refused(capsys, *command, "--out", tmp_path)
        assert said == f"kfh: {tmp_path}: is a folder, not a file"
    assert called(*cause) == 0
    content = out.read_bytes()
    rows = content.splitlines()[1:]
    with full_disk(len(content) - 50):
        assert "too large" in refused(capsys, *cause, "--no-resume")
    some = out.read_bytes().splitlines()[1:]
    whole = [n for n in range(len(rows)) if b'"step": 0,' in rows[n]]
    assert some == rows[: whole[-1]], "whole traces"
    cause = [word if word != "cause" else "ablation" for word in cause]  # as it is called, too
    assert called(*cause) == 0
    assert out.read_bytes().splitlines()[1:] == rows, "and it goes on from there"


def test_what_is_no_file_is_not_replaced_and_a_link_stays(tmp_path: Path) -> None:
    pipe, link, file = (tmp_path / name for name in ("pipe", "link", "file"))
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="is a device or a pipe"), whole_file(pipe):
        pass
    assert pipe.is_fifo()
    file.write_text("old")
    link.symlink_to(file)
    with whole_file(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink() and file.read_text() == "new"
    assert {*tmp_path.iterdir()} == {pipe, link, file}
