"""kfh study: stages run once, in order; what is finished stays; what is wrong is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from helpers import trace_line, write_lines

from kfh.cli import app
from kfh.study.job import StudyConfig, run_study
from kfh.study.plan import PLANS, Plan
from probing.errors import ConfigError, KfhError
from probing.traces.file import read_traces


def a_plan(folder: Path, **changes: Any) -> str:
    """Cut traces twice, the second cut made of the first."""
    write_lines(folder / "t.jsonl", [trace_line(5)])
    cut = "kfh segment {from} --segmenter line --out {out}/one.jsonl"
    again = "kfh segment {out}/one.jsonl --segmenter {how} --out {out}/two.jsonl"
    plan = {
        "about": "cut and cut again",
        "vars": {"from": str(folder / "t.jsonl"), "how": "line"},
        "small": {"how": "sentence"},
        "keeps": ["t*.jsonl"],
        "stages": [
            {"name": "first", "run": cut, "minutes": {"minutes": 2, "small": 1}},
            {"name": "second", "run": [again], "minutes": 1},
        ],
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump({**plan, **changes}))
    return str(folder / "plan.yaml")


def test_stages_are_done_once_and_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, out = a_plan(tmp_path), tmp_path / "out"
    config = {"plan": plan, "out": out}
    assert run_study(StudyConfig(**config, dry_run=True)) and not out.exists()
    assert "about 2:00" in capsys.readouterr().out
    assert not run_study(StudyConfig(**config, minutes=0))  # out of time at once
    assert "0 minutes are over, in stage first" in capsys.readouterr().err
    begun = json.loads((out / "stages/first.json").read_text())
    assert not begun["finished"] and begun["seconds"] > 0
    assert run_study(StudyConfig(**config, keep=tmp_path / "kept"))
    one, two = out / "one.jsonl", out / "two.jsonl"
    assert [t.steps for t in read_traces(one)] == [t.steps for t in read_traces(two)]
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["two.jsonl"]
    marked = json.loads((out / "stages/first.json").read_text())
    assert marked["seconds"] > begun["seconds"]  # of both calls
    times = one.stat().st_mtime_ns, two.stat().st_mtime_ns
    assert run_study(StudyConfig(**config))
    assert (one.stat().st_mtime_ns, two.stat().st_mtime_ns) == times
    piece = {"again": "second", "minutes": 0, "keep": tmp_path / "piece"}
    assert not run_study(StudyConfig(**config, **piece))  # out of time, what is there is kept
    assert [p.name for p in (tmp_path / "piece").iterdir()] == ["two.jsonl"]
    assert run_study(StudyConfig(**config))
    with pytest.raises(ConfigError, match=r"done by other commands.*--again second"):
        run_study(StudyConfig(**config, small=True))
    capsys.readouterr()
    assert run_study(StudyConfig(**config, small=True, again="second"))
    assert one.stat().st_mtime_ns == times[0] and two.stat().st_mtime_ns != times[1]
    assert "done" in capsys.readouterr().out
    wrong = a_plan(tmp_path, vars={"from": "nothing.jsonl", "how": "line"})
    with pytest.raises(KfhError, match=r"stage first failed \(exit 1\)"):
        run_study(StudyConfig(plan=wrong, out=tmp_path / "other"))


@pytest.mark.slow
def test_a_signal_reaches_the_command_at_work_and_nothing_is_lost(tmp_path: Path) -> None:
    """Also where both started with the signal ignored, as in the background of a script."""
    plan = a_plan(
        tmp_path, stages=[{"name": "slow", "run": "kfh import {from} --out {out}/t.jsonl"}]
    )
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: the import waits
    words = ["study", plan, "--out", str(tmp_path / "out"), "--set", f"from={tmp_path / 'pipe'}"]
    for sign in (signal.SIGINT, signal.SIGTERM):
        study = subprocess.Popen(
            [sys.executable, "-m", "kfh", *words],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )
        assert study.stderr is not None
        assert study.stderr.readline().startswith("slow: kfh import")
        study.send_signal(sign)
        assert study.wait(60) == 130 and "the same" in study.stderr.read()
        assert not json.loads((tmp_path / "out/stages/slow.json").read_text())["finished"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": []}, "stages must be a list"),
        ({"stages": [{"name": "a", "run": "rm -r x"}]}, "a command of kfh is wanted"),
        ({"stages": [{"name": "a", "rum": "kfh x"}]}, "unknown setting 'rum'; did you mean run"),
        ({"stages": [{"name": "a b", "run": "kfh x"}]}, "name must be one word"),
        ({"stages": [{"name": "a", "run": "kfh x", "minutes": "ten"}]}, "minutes must be a number"),
        ({"stages": [{"name": "a", "run": "kfh {hwo}"}]}, "unknown value 'hwo'; did you mean how"),
        ({"stages": [{"name": "a", "run": "kfh x"}] * 2}, "two stages have one name"),
        ({"small": {"who": 1}}, "unknown value 'who'"),
        ({"vars": {"from": "package:no_such/*.x", "how": ""}, "needs": "pip it"}, "there. pip it"),
        ({"stage": 1}, "unknown setting 'stage'; did you mean stages"),
        ({"vars": [1]}, "a mapping of names"),
    ],
)
def test_what_is_wrong_in_a_plan_is_said(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan.load(a_plan(tmp_path, **changes)).filled(tmp_path, False, ())


def test_names_and_values_that_are_not_there_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown study 'pockt'; did you mean pocket"):
        Plan.load("pockt")
    for changes, message in (
        ({"only": ("frist",)}, "did you mean first"),
        ({"again": "sec"}, "did you mean second"),
        ({"settings": ("hwo=1",)}, "did you mean how"),
        ({"settings": ("how",)}, "write key=value"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_study(StudyConfig(plan=a_plan(tmp_path), out=tmp_path / "out", **changes))


@pytest.mark.parametrize("name", sorted(path.stem for path in PLANS.glob("*.yaml")))
@pytest.mark.parametrize("small", [False, True])
def test_commands_of_the_shipped_plans_can_be_parsed(
    name: str, small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each option exists and takes its value; nothing is run."""
    plan = Plan.load(name)
    there = {key: value for key, value in plan.vars.items() if value.startswith("package:")}
    settings = [f"{key}=model.gguf" for key in there]
    group = typer.main.get_command(app)
    for commands in plan.filled(tmp_path, small, settings).values():
        for words in commands:
            context = click.Context(group, info_name="kfh")
            command, rest = group, words[1:]
            while isinstance(command, click.Group):
                found = command.get_command(context, rest[0])
                assert found, words
                command, rest = found, rest[1:]
            command.make_context(command.name, list(rest), parent=context)
