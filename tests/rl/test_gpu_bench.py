"""The script for a GPU runs where there is none, on tiny shapes, so that it does not rot."""

from __future__ import annotations

import re
from typing import Any

import pytest
from bench import gpu


def test_small_shapes_run_and_print_one_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py", "--small"])
    gpu.main()
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("| small")]
    assert len(rows) == 1 + 3 + 3  # a row of what the kernels did: nothing, here
    difference = re.search(r"rows against eager.*\| ([\d.e-]+) relative", said)
    assert difference and float(difference[1]) < 1e-5
    assert re.search(r"step of attnpo .* × TRL, .* × tlmre; scoring [1-9]", said)


def test_without_trl_the_rest_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpu.find_spec

    def without(name: str) -> Any:
        return None if name == "trl" else found(name)

    monkeypatch.setattr(gpu, "find_spec", without)
    assert list(gpu.step_part(gpu.setting(small=True, shapes=None))) == [
        ("", "training step", 0, "", "", "left out: TRL is not installed")
    ]
