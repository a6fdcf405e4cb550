"""Judges: what they are asked, faults of a real server, a job that is killed, agreement."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import trace_file, trace_line, write_lines
from judge_server import FAULTS, KEY, JudgeServer, judge_file, judge_server, label_of, number_of

from kfh.commands.label import run_judges
from probing.errors import ConfigError, DataError, ModelError
from probing.traces.file import read_traces
from probing.traces.labels import read_labels
from probing.traces.source import StepSource, TraceSource, prepare_traces
from rl.judges.client import GIVE_UP, AnswerCache, RateLimit
from rl.judges.config import JudgingConfig
from rl.judges.panel import Panel

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from pathlib import Path
from rl.judges.panel import Panel
from rl.judges.config import JudgingConfig
from rl.judges.job import judge_traces
from probing.traces.source import StepSource
folder = Path(sys.argv[1])
judge_traces(StepSource(folder / "traces.jsonl"), Panel.load(folder / "judges.yaml"),
             folder / "labels.jsonl", JudgingConfig("majority", concurrency=16))
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("KFH_TEST_KEY", KEY)
    with judge_server() as running:
        yield running


def label(folder: Path, **changes: object) -> list[dict]:
    """Run the job on the folder's traces; the lines of its label file."""
    cut = {key: changes.pop(key) for key in ("segmenter", "min_chars") if key in changes}
    source = StepSource(folder / "traces.jsonl", **cut)  # type: ignore[arg-type]
    files = [folder / name for name in ("judges.yaml", "labels.jsonl")]
    run_judges(source, *files, JudgingConfig(**{"concurrency": 4, **changes}))  # type: ignore[arg-type]
    return [json.loads(line) for line in files[1].read_text(encoding="utf-8").splitlines()]


def no_key_in(folder: Path, *texts: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    for text in texts:
        assert KEY not in text


# The job


def check_labels(folder: Path, lines: list[dict], judges: str = "abc") -> None:
    """Every step once, with the votes that the judges cast and their majority."""
    expected = {}
    for trace in read_traces(folder / "traces.jsonl"):
        for step in range(len(trace.steps)):
            votes = {n: label_of(f"model-{n}", str(trace.problem), step + 1) for n in judges}
            expected[trace.id, step] = votes
    found = {(line["id"], line["step"]): line for line in lines}
    assert len(found) == len(lines) and found.keys() == expected.keys()
    for place, votes in expected.items():
        line = found[place]
        assert line["votes"] == votes
        most, count = Counter(votes.values()).most_common(1)[0]
        assert line["label"] == most and count >= 2
        assert line["score"] == list(votes.values()).count("essential") / len(votes)


@pytest.mark.slow
def test_a_job_killed_twice_labels_every_step_once_and_asks_nothing_again(
    tmp_path: Path, server: JudgeServer
) -> None:
    """200 traces, three judges, all kinds of faults, SIGKILL at rest and in full flow."""
    lines = [trace_line(n, steps=2 + n % 3) for n in range(200)]
    write_lines(tmp_path / "traces.jsonl", lines)
    judges = judge_file(tmp_path / "judges.yaml", server, timeout=4)
    panel = Panel.load(judges)
    cache = AnswerCache(tmp_path / "judge-cache")
    files = {
        (judge.model, prompt): cache.path(AnswerCache.name(judge, prompt))
        for trace in read_traces(tmp_path / "traces.jsonl")
        for prompt in [panel.ask(trace)]
        for judge in panel.judges
    }
    assert len(set(files.values())) == 600

    def plan(content: tuple[str, str]) -> list[str]:
        chance = number_of("fault", content) % 300
        kinds = [kind for kind in FAULTS if kind != "time-out"]
        return ["time-out"] if chance < 2 else [kinds[chance % 5]] if chance < 40 else []

    server.plan = plan
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start() -> subprocess.Popen[bytes]:
        log = (tmp_path / "log.txt").open("ab")
        command = [sys.executable, "-c", RUN, str(tmp_path)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def wait(until: object) -> None:
        limit = time.monotonic() + 120
        while not until():  # type: ignore[operator]
            assert time.monotonic() < limit and process.poll() is None, log_text()
            time.sleep(0.002)

    def log_text() -> str:
        return (tmp_path / "log.txt").read_text(encoding="utf-8")

    def on_disk() -> set[tuple[str, str]]:
        return {content for content, path in files.items() if path.exists()}

    # At rest: requests are in flight, but every answer that was given has been kept.
    server.hold_after = 150
    process = start()
    wait(lambda: server.answered.total() == 150 and len(on_disk()) == 150 and server.busy >= 10)
    process.kill()
    process.wait()
    server.released.set()
    assert set(server.answered) == on_disk()
    # In full flow: answers on their way to the process are lost with it, and no others.
    server.hold_after = None
    process = start()
    wait(lambda: server.answered.total() >= 400)
    process.kill()
    process.wait()
    time.sleep(0.1)
    lost = set(server.answered) - on_disk()
    assert len(lost) <= 16
    process = start()
    assert process.wait(120) == 0, log_text()

    assert server.answered.keys() == files.keys()
    assert {content for content, number in server.answered.items() if number > 1} == lost
    assert max(server.answered.values()) <= 2
    assert server.sent.keys() == set(FAULTS), server.sent
    text = (tmp_path / "labels.jsonl").read_text(encoding="utf-8")
    header, *rows = [json.loads(line) for line in text.splitlines()]
    check_labels(tmp_path, rows)
    assert header["kfh"]["counts"]["labelled"] == 200 and not header["kfh"]["counts"]["left_out"]
    assert server.keys == {f"Bearer {KEY}"}  # it was used, and it stands nowhere
    no_key_in(tmp_path)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_tried_again_and_counted(
    tmp_path: Path, server: JudgeServer, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    trace_file(tmp_path / "traces.jsonl", 2)
    file = judge_file(tmp_path / "judges.yaml", server, timeout=30.0)
    if fault == "time-out":  # of the judge that has it
        head, own, tail = file.read_text().partition("model: model-b")
        file.write_text(head + own + tail.replace("timeout: 30.0", "timeout: 1.0", 1))
    server.plan = lambda content: [fault] if content[0] == "model-b" else []
    header, *rows = label(tmp_path, consensus="majority")
    check_labels(tmp_path, rows)
    requests = header["kfh"]["requests"]
    tries = {name: counts["tried_again"] for name, counts in requests.items()}
    times = tries["b"].pop(fault)
    # On a busy machine an answer may miss the time-out of one second, too.
    assert times == 2 or (fault == "time-out" and times > 2)
    assert tries == {"a": {}, "b": {}, "c": {}} and server.sent == {fault: 2}
    assert requests["b"]["answered"] == 2 and requests["b"]["tokens"]["completion"] == 14
    told = [body for body in server.bodies if "Your last answer" in str(body["messages"])]
    assert len(told) == (2 if fault.startswith(("invalid", "wrong")) else 0)
    shown = capfd.readouterr()
    assert f"{times} × {fault}" in shown.out
    no_key_in(tmp_path, shown.out, shown.err)


def test_what_fails_is_counted_and_asked_for_again(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    trace_file(tmp_path / "traces.jsonl", 4)
    judge_file(tmp_path / "judges.yaml", server, retries=1)
    bad = "Add 2.\n"
    server.plan = lambda c: ["400"] * 9 if c[0] == "model-c" and bad in c[1] else []
    for consensus, labelled in (("unanimous", False), ("majority", True)):
        header, *rows = label(tmp_path, consensus=consensus)
        own = [row for row in rows if row["id"] == "t/2"]
        assert own and all(row["votes"]["c"] is None for row in own)
        agreed = [row["votes"]["a"] == row["votes"]["b"] for row in own]
        assert [row["label"] is not None for row in own] == [labelled and same for same in agreed]
        assert header["kfh"]["requests"]["c"]["failed"] == {"refused (400)": 1}
        assert header["kfh"]["counts"]["incomplete"] == 1
    assert "1 answers are missing" in capsys.readouterr().err
    assert max(server.answered.values()) == 1  # the second job found 11 answers on disk
    server.faults.clear()
    server.plan = lambda content: []
    _, *rows = label(tmp_path, consensus="majority")
    check_labels(tmp_path, rows)
    assert server.answered.total() == 12


@pytest.mark.parametrize(("status", "message"), [("401", r"refuses \(401\)"), ("500", "in a row")])
def test_a_judge_that_cannot_be_asked_stops_the_job(
    tmp_path: Path, server: JudgeServer, status: str, message: str
) -> None:
    trace_file(tmp_path / "traces.jsonl", 12)
    judge_file(tmp_path / "judges.yaml", server, "a", retries=1)
    server.plan = lambda content: [status] * 99
    with pytest.raises(ModelError, match=message) as caught:
        label(tmp_path)
    assert KEY not in str(caught.value) and "[key]" in str(caught.value)
    assert len(server.bodies) <= (4 if status == "401" else 2 * (GIVE_UP + 3))
    assert not (tmp_path / "labels.jsonl").exists()


def test_traces_that_a_judge_refuses_do_not_stop_it_once_it_has_answered(
    tmp_path: Path, server: JudgeServer
) -> None:
    trace_file(tmp_path / "traces.jsonl", GIVE_UP + 3)
    judge_file(tmp_path / "judges.yaml", server, "a", retries=0)
    server.plan = lambda c: [] if "Add 0.\n" in c[1] else ["400"] * 9
    header, *rows = label(tmp_path, concurrency=1)
    assert {row["id"] for row in rows} == {"t/0"}
    left_out = {"without an answer of any judge": GIVE_UP + 2}
    assert header["kfh"]["counts"]["left_out"] == left_out


def test_concurrency_is_kept(tmp_path: Path, server: JudgeServer) -> None:
    trace_file(tmp_path / "traces.jsonl", 12)
    judge_file(tmp_path / "judges.yaml", server, "a")
    server.delay = 0.05
    label(tmp_path, concurrency=3)
    assert server.most_busy == 3


def test_rate_is_kept(tmp_path: Path, server: JudgeServer) -> None:
    """Twelve starts at 40 a second: none before its time, on however busy a machine."""
    times: list[float] = []

    async def starts() -> float:
        limit, began = RateLimit(40.0), time.monotonic()

        async def start() -> None:
            await limit.wait()
            times.append(time.monotonic() - began)

        await asyncio.gather(*(start() for _ in range(12)))
        limit.hold(0.05)
        held = time.monotonic()
        await limit.wait()
        return time.monotonic() - held

    assert asyncio.run(starts()) >= 0.049  # a server that is asked too often is left alone
    assert all(at >= 0.025 * number - 0.001 for number, at in enumerate(sorted(times)))
    trace_file(tmp_path / "traces.jsonl", 12)
    judge_file(tmp_path / "judges.yaml", server, "a")
    began = time.monotonic()
    label(tmp_path, rate=40.0, concurrency=12)
    assert server.answered.total() == 12 and time.monotonic() - began >= 11 * 0.025


def test_long_traces_and_traces_without_steps_are_counted(
    tmp_path: Path, server: JudgeServer
) -> None:
    lines = [trace_line(1), trace_line(2, steps=40), {**trace_line(3), "steps": []}]
    write_lines(tmp_path / "traces.jsonl", lines)
    judges = judge_file(tmp_path / "judges.yaml", server)
    judges.write_text(judges.read_text() + "max_chars: 600\n")
    header, *rows = label(tmp_path)
    assert {row["id"] for row in rows} == {"t/1"}
    left_out = {"longer than max_chars": 1, "without steps": 1}
    assert header["kfh"]["counts"]["left_out"] == left_out
    whole = next(iter(server.answered))[1]
    for step in lines[0]["steps"]:  # type: ignore[index]
        assert lines[0]["response"][step["start"] : step["end"]].strip() in whole
    assert "FINAL ANSWER\nThe sum = 1, \\boxed{1}" in whole and 'essential"}, {' in whole
    write_lines(tmp_path / "traces.jsonl", lines[1:])
    with pytest.raises(DataError, match="1 longer than max_chars, 1 without steps"):
        label(tmp_path)


def test_the_command_takes_the_end_of_the_reasoning_and_leaves_bad_lines_out(
    tmp_path: Path, server: JudgeServer
) -> None:
    from typer.testing import CliRunner

    from kfh.cli import app

    lines = [trace_line(n, steps=2) for n in range(3)]
    for line in lines:
        line["response"] = line["response"].replace("</think>", "[/END]")
    write_lines(tmp_path / "traces.jsonl", [*lines[:2], {"id": "t/bad"}, lines[2]])
    judge_file(tmp_path / "judges.yaml", server, "a")
    words = ["label", "--by", "judges", "--skip-bad", "--think-end", "[/END]"]
    for option, name in (("traces", "traces.jsonl"), ("judges", "judges.yaml"), ("out", "l.jsonl")):
        words += [f"--{option}", str(tmp_path / name)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (result.output, result.exception)
    header, *rows = map(json.loads, (tmp_path / "l.jsonl").read_text().splitlines())
    assert {row["id"] for row in rows} == {"t/0", "t/1", "t/2"}
    assert sum(header["kfh"]["counts"]["bad_lines"].values()) == 1
    assert header["kfh"]["think_end"] == "[/END]"
    # The judge is shown what stands behind it as the answer, and not the mark.
    assert all("FINAL ANSWER\nThe sum = " in prompt for _, prompt in server.answered)


def test_a_damaged_answer_is_asked_for_again(tmp_path: Path, server: JudgeServer) -> None:
    trace_file(tmp_path / "traces.jsonl", 2)
    judge_file(tmp_path / "judges.yaml", server)
    label(tmp_path)
    file = sorted((tmp_path / "judge-cache").rglob("*.json"))[0]
    file.write_text('{"labels"')
    header, *_ = label(tmp_path)
    counts = header["kfh"]["requests"].values()
    assert sum(own["damaged_cache_files"] for own in counts) == 1
    assert sum(own["cached"] for own in counts) == 5 and server.answered.total() == 7


def test_label_files_live_side_by_side_and_a_probe_takes_any(
    tmp_path: Path, server: JudgeServer
) -> None:
    trace_file(tmp_path / "traces.jsonl", 8)
    judge_file(tmp_path / "judges.yaml", server)
    label(tmp_path, consensus="majority", segmenter="attnpo", min_chars=20)
    cut = {"segmenter": "attnpo", "labels": str(tmp_path / "labels.jsonl")}
    source = TraceSource(tmp_path / "traces.jsonl", min_chars=20, **cut)
    steps = [step for trace in prepare_traces(source) for step in trace.steps]
    assert {step.label for step in steps} == {"essential", "redundant"}
    assert all(set(step.extra["votes"]) == {*"abc"} and "score" in step.extra for step in steps)
    assert read_labels(tmp_path / "labels.jsonl").details["t/0"][0]["source"] == "judges, majority"
    with pytest.raises(ConfigError, match="min_chars 20; here min_chars is 80"):
        TraceSource(tmp_path / "traces.jsonl", **cut).label_file()
    header = json.loads((tmp_path / "labels.jsonl").read_text().partition("\n")[0])["kfh"]
    assert header["prompt_hash"].startswith("sha256:") and header["consensus"] == "majority"
    assert header["judges"][0]["key_env"] == "KFH_TEST_KEY"
    assert -1 < header["agreement"]["fleiss_kappa"] < 1


@pytest.mark.parametrize(
    "details", [{"score": "high"}, {"source": 3}, {"votes": {"a": "maybe"}}, {"votes": ["a"]}]
)
def test_bad_details_of_a_label_are_refused(tmp_path: Path, details: dict) -> None:
    line = {"id": "t/0", "step": 0, "label": "essential", **details}
    write_lines(tmp_path / "labels.jsonl", [line])
    with pytest.raises(DataError, match="line 1: " + next(iter(details))):
        read_labels(tmp_path / "labels.jsonl")


# The judge file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("judges: [", "line 1: no YAML"),
        ("a: 1", "judges is missing; unknown key 'a'"),
        ("3", "the file should be keys with values"),
        ("judges: []", "at least one judge"),
        ("judges: [3]", "judge 1: it should be keys"),
        ("judges: [{name: a}]", "judge 1: base_url is missing; judge 1: model is missing"),
        ("judges: [{name: a, base_url: u, model: m, api_key: X}]", "'api_key'.*environment"),
        ("judges: [{name: a, base_url: u, model: m, temprature: 0}]", "did you mean temperature"),
        ("judges: [{name: a, base_url: u, model: m, temperature: -1}]", "temperature should be gr"),
        ("judges: [{name: a, base_url: u, model: m, temperature: .nan}]", "temperature should be"),
        ("judges: [{name: a, base_url: u, model: m, max_tokens: KEYS}]", "max_tokens should be"),
        ("judges: [{name: a, base_url: u, model: m, max_tokens: 0}]", "max_tokens should be"),
        (
            "judges: [{name: a, base_url: u, model: m, format: KEYS}]",
            "format should be 'json_schem",
        ),
        (
            "judges: [{name: a, base_url: u, model: m, key_env: KEYS+}]",
            "key_env should be the name",
        ),
        ("judges: [{name: a, base_url: 'http://u:KEYS@h', model: m}]", "base_url holds a password"),
        ("judges: [{name: a, base_url: u, model: m, key_env: NOT_SET_ANYWHERE}]", "is not set"),
        ("judges: [{name: a, base_url: u, model: m, key_env: KFH_SHORT}]", "is no key"),
        (
            "judges: [{name: a, base_url: u, model: m, key_env: KFH_TEST_KEY}] # KEY",
            "holds the key",
        ),
        ("judges: [{name: a, base_url: u, model: m}]\nprompt: p.txt", r"must hold \$problem"),
        ("judges: [{name: a, base_url: u, model: m}]\nmax_chars: 0", "max_chars"),
        (
            "judges: [{name: a, base_url: u, model: m}, {name: a, base_url: u, model: n}]",
            "a name of its own",
        ),
    ],
)
def test_a_bad_judge_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setenv("KFH_TEST_KEY", KEY)
    monkeypatch.setenv("KFH_SHORT", "short")
    (tmp_path / "p.txt").write_text("$problem $steps for $5", encoding="utf-8")
    (tmp_path / "judges.yaml").write_text(text.replace("KEY}] # KEY", f"KEY}}] # {KEY}"))
    with pytest.raises(ConfigError, match=message) as caught:
        Panel.load(tmp_path / "judges.yaml")
    assert "judges.yaml" in str(caught.value) or "p.txt" in str(caught.value)
    assert KEY not in str(caught.value) and "KEYS" not in str(caught.value)


def test_kept_answers_are_found_as_before(tmp_path: Path) -> None:
    """The names of files that version 0.12 wrote, a whole and a broken temperature."""
    (tmp_path / "judges.yaml").write_text(
        "judges:\n"
        "- {name: a, base_url: 'http://h/v1', model: m, temperature: 0, "
        "extra: {reasoning: {effort: low}}}\n"
        "- {name: b, base_url: 'http://h/v1', model: m, temperature: 0.7, max_tokens: 100}\n"
        "- {name: c, base_url: u, model: m}\n"
    )
    names = [AnswerCache.name(j, "hello")[:8] for j in Panel.load(tmp_path / "judges.yaml").judges]
    assert names == ["421beb08", "3c22cf51", "857e8970"]


# Answers and votes
