"""The README's commands run as they are written, in an empty folder, on the embedded model.

A block marked `ci-run` is too heavy for a test, or changes the environment: `.ci/run` runs it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(bash|python)( ci-run)?\n(.*?)^```$", re.M | re.S)
BLOCKS = [(kind, bool(mark), text) for kind, mark, text in BLOCK.findall(README)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder, with a `kfh` and a `python` that are this tree's."""
    path = tmp_path_factory.mktemp("readme")
    commands = path / "bin"
    commands.mkdir()
    for name, module in {"kfh": "-m kfh", "python": ""}.items():
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return path


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder; this tree's packages, two steps of hurry, nothing of the net."""
    (folder / "work").mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        command, cwd=folder / "work", env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.pocket
def test_commands_run_as_written(folder: Path) -> None:
    """In the README's order: later blocks may read what earlier ones wrote."""
    for kind, heavy, text in BLOCKS:
        if heavy:
            continue
        command = ["bash", "-euc", text] if kind == "bash" else ["python", "-c", text]
        done = run(folder, *command)
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (folder / "work/runs/probe/trace.html").stat().st_size > 10_000
    assert (folder / "work/heatmap.png").stat().st_size > 1_000


def test_heavy_commands_are_run_by_ci() -> None:
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    heavy = [text for _, mark, text in BLOCKS if mark]
    assert heavy
    for line in "".join(heavy).splitlines():
        command = line.split("  #")[0].strip()
        assert any(command in there for there in ci), f".ci/run does not run {command!r}"


def test_every_block_is_run_or_output() -> None:
    """A block in another shell's or file's name would escape the tests above."""
    kinds = re.findall(r"^```(.+)$", README, re.M)
    assert {*kinds} <= {"bash", "bash ci-run", "python", "bibtex"}


def test_readme_is_two_screens() -> None:
    assert len(README.splitlines()) <= 190
    tree = README.split("## The rooms")[1].split("```")[1]
    assert len(tree.strip().splitlines()) <= 25
