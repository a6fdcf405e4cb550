"""The README's form. Its commands are run as they are written by `make readme`, as CI does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import run_readme

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


def test_blocks_are_found_and_ci_runs_them() -> None:
    runs = [text for _, elsewhere, text in run_readme.blocks() if not elsewhere]
    assert len(runs) >= 4 and any("kfh probe" in text for text in runs)
    assert any(line.strip() == "python tests/run_readme.py" for line in CI)


def test_blocks_run_elsewhere_are_lines_of_ci() -> None:
    elsewhere = [text for _, marked, text in run_readme.blocks() if marked]
    assert elsewhere
    for line in "".join(elsewhere).splitlines():
        command = line.split("  #")[0].strip()
        assert any(there.strip() == command for there in CI), f".ci/run does not run {command!r}"


def test_every_block_is_run_or_output() -> None:
    """A block of another kind, such as `sh`, would not be run."""
    assert {*re.findall(r"^```(.+)$", README, re.M)} <= {"bash", "bash ci-run", "python", "bibtex"}


def test_a_failing_block_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [("bash", False, "echo first\nfalse\n"), ("bash", False, "echo never\n")]
    monkeypatch.setattr(run_readme, "blocks", lambda: wrong)
    assert run_readme.main() == 1
    captured = capsys.readouterr()
    assert "first" in captured.err and "never" not in captured.out + captured.err


def test_readme_is_two_screens() -> None:
    assert len(README.splitlines()) <= 190
    tree = README.split("## The rooms")[1].split("```")[1]
    assert len(tree.strip().splitlines()) <= 25
