"""Models that cannot be used: every command that takes one ends with one clear line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import configured, faults
from families import tiny
from helpers import trace_file

from kfh.cli import main
from probing.headset import HeadFigures, HeadSet
from probing.models.identity import ModelCard

# Each command as it is called, but for the model. `{x}` stands for a path.
COMMANDS = {
    "probe": "probe --traces {traces} --out {out} --device cpu --permutations 10",
    "label": "label --traces {traces} --out {out} --device cpu",
    "ablate": "ablate --traces {traces} --only all --heads {heads} --out {out} --device cpu "
    "--limit 3 --draws 1 --max-answer-tokens 4",
    "train": "train --data pocket:64 --heads {heads} --recipe attnpo --out {out} "
    "--set max_steps=1 --set max_completion_length=4",
    "eval": "eval --data pocket:1 --max-tokens 2 --out {out} --device cpu",
    "rollout": "rollout --data pocket:1 --samples 1 --max-tokens 2 --out {out} --device cpu",
}
FAULTS = [
    "nowhere", "empty", "notes.txt", "notes.gguf", "no config", "no tokenizer", "no weights",
    "no json", "a weight missing", "other shapes", "mamba", "rwkv", "truncated", "token beyond",
    "no kernel", "no such type",
]  # fmt: skip

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    return faults(tmp_path_factory.mktemp("models"))


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture) -> Run:
    """Call a command with a model: its status, and what it says of an error."""
    heads = HeadSet(
        (HeadFigures(1, 2), HeadFigures(2, 0)), ModelCard.of("tiny", tiny("llama").config)
    )
    heads.save(tmp_path / "heads.json")
    paths = {
        "traces": trace_file(tmp_path / "traces.jsonl"),
        "heads": tmp_path / "heads.json",
        "out": tmp_path / "out",
    }

    def call(command: str, model: Any, *more: str) -> tuple[int, str]:
        words = [word.format(**paths) for word in COMMANDS[command].split()]
        capsys.readouterr()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                main([*words, "--model", str(model), *more])
        except SystemExit as left:
            return int(left.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


def test_the_faults_are_those_tried(models: dict[str, tuple[str, str]]) -> None:
    assert [*models] == FAULTS


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_cannot_be_used_is_one_clear_line(
    command: str, fault: str, models: dict[str, tuple[str, str]], run: Run, tmp_path: Path
) -> None:
    model, said = models[fault]
    status, text = run(command, model)
    lines = text.splitlines()
    assert status == 1 and len(lines) == 1, text
    assert lines[0].startswith("kfh: ") and said in lines[0] and model in lines[0]
    out = tmp_path / "out"
    assert not out.exists() or not [*out.rglob("*.json*")], "nothing is begun"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_kernel_that_is_not_there_is_chosen_over(command: str, run: Run, tmp_path: Path) -> None:
    folder = configured(tmp_path / "model", attn_implementation="flash_attention_2")
    status, text = run(command, folder, "--attention", "eager")
    # The tiny model writes no `</think>` and is never right: two commands have nothing to keep.
    assert (status, "Traceback" in text, "FlashAttention" in text) == (
        int(command in ("train", "rollout")), False, False,
    ), text  # fmt: skip
    status, text = run(command, folder, "--attention", "egaer")
    assert status == 1 and "unknown" in text and "did you mean eager" in text
