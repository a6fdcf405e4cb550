"""The command line as a whole: its help, mistyped words, completion, errors, interruptions."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import trace_file
from typer.testing import CliRunner

import kfh.commands.train
from kfh.cli import COMMANDS, app, main, whole

# As the console script does it.
RUN = "import sys; sys.argv[0] = 'kfh'; from kfh.cli import main; main()"
HEAVY = "torch transformers trl pandas scipy matplotlib openai"
# What there was before options were made from settings classes; all of it is still there.
OPTIONS = {
    "ablate": "out model heads traces parts remove modes factors draws answer answer-limit "
    "max-answer-tokens keep only limit labels skip-bad think-end device dtype "
    "batch-tokens resume trust-remote-code seed",
    "stability": "names metric out formats seed",
    "sample-size": "traces metric top sizes draws out formats seed",
    "report": "out title",
    "segment": "out segmenter min-chars skip-bad think-end",
    "probe": "out model traces segmenter min-chars labels keep skip-bad think-end answer select "
    "top by null permutations control control-draws backend device device-map dtype batch-tokens "
    "resume trust-remote-code seed",
    "rollout": "data out model samples keep easy per-problem segmenter min-chars temperature top-p "
    "max-tokens limit seed backend base-url raw tokenizer template think-end batch device "
    "dtype resume trust-remote-code",
    "label": "by compare traces out segmenter min-chars skip-bad think-end model answer "
    "answer-limit high low deletion device dtype resume judges consensus concurrency rate "
    "cache limit show",
    "train": "out method recipe model heads data seed set resume",
    "eval": "data out model samples temperature top-p max-tokens limit seed preset budgets base "
    "backend base-url raw tokenizer template think-end batch device dtype resume "
    "trust-remote-code",
    "demo": "out",
    "plot runs": "metric smooth traces trace formats out",
    "plot trace": "html traces ids limit heads tokens formats device out",
    "plot paper": "ablation train stability formats out",
}


def kfh_process(*arguments: str, code: str = RUN, **changes: Any) -> subprocess.Popen[str]:
    """`kfh` as a process of its own."""
    changes["env"] = {**os.environ, **changes.get("env", {})}
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", code, *arguments], text=True, **pipes, **changes)


def walk(name: str = "kfh", command: Any = None) -> Iterator[tuple[str, Any]]:
    """Every command, and those below it."""
    command = command or whole()
    yield name, command
    for part, child in getattr(command, "commands", {}).items():
        yield from walk(f"{name} {part}", child)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run `kfh` where it must fail: its status, and what it says, on one line."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0), " ".join(
        re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().err).split()
    )


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["probe", "--traces", f"{tmp_path}/a\nb.jsonl", "--model", "x", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(words)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("kfh: ") and "no such trace file" in said


def test_no_help_loads_what_is_heavy() -> None:
    code = "import sys; from kfh.cli import whole; whole(); print(*{*sys.modules} & {*sys.argv})"
    assert kfh_process(*HEAVY.split(), code=code).communicate()[0].strip() == ""


def test_help_fits_eighty_columns_with_every_name_and_choice_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    for name, command in walk():
        text = CliRunner().invoke(app, [*name.split()[1:], "--help"], env={"COLUMNS": "80"}).output
        lines = text.splitlines()
        assert max(map(len, lines)) <= 80, name
        words = {word for line in lines for word in re.split(r"[\s│,|<>]+", line)}
        for option in command.params:
            if getattr(option, "hidden", False):
                continue
            names = [*option.opts, *option.secondary_opts]
            assert option.param_type_name == "argument" or {*names} <= words, (name, names)
            choices = {str(value) for value in option.type_descriptor.choices or ()}
            text = text.replace(".\n", "\n")
            assert choices <= {word.rstrip(".") for word in words}, (name, names)
            assert getattr(option, "help", "x"), (name, names)


def test_commands_stand_in_panels_in_the_order_of_the_work() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    names = re.findall(r"^│ ([a-z][a-z-]+) ", text, re.MULTILINE)
    assert names == [*COMMANDS]
    assert all(command.help in text and command.panel in text for command in COMMANDS.values())
    about = dict(walk())
    assert all(about[f"kfh {name}"].help for name in COMMANDS)


def test_every_option_of_before_is_there() -> None:
    commands = dict(walk())
    for name, options in OPTIONS.items():
        names = {n for option in commands[f"kfh {name}"].params for n in option.opts}
        assert {f"--{option}" for option in options.split()} <= names, name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("prob", "No such command 'prob'. Did you mean 'probe'?"),
        ("probe --lables x", "No such option: --lables; did you mean --labels"),
        ("probe --by sar", "unknown --by 'sar'; did you mean sra? Choose sra, balanced, gating"),
        ("probe --batch-tokens no", "unknown --batch-tokens 'no'; choose auto, a number"),
        ("ablate --out x --batch-tokens aut", "unknown --batch-tokens 'aut'; did you mean auto?"),
        ("probe --segmenter lin", "unknown segmenter 'lin'; did you mean line?"),
        ("plot trac", "unknown command or folder 'trac'; did you mean trace?"),
        ("plot x --formats pgn", "unknown --formats 'pgn'; did you mean png?"),
        ("ablate --out x --modes zero/al", "unknown --modes 'zero/al'; did you mean zero/all"),
        ("ablate --out x --heads poket-3", "unknown head set 'poket-3'; did you mean pocket-3"),
        ("train --out x --method atnpo", "unknown method 'atnpo'; did you mean attnpo"),
        ("train --out x --recipe atnpo", "unknown recipe 'atnpo'; did you mean attnpo"),
        ("train --out x --set max_step=3", "unknown setting 'max_step'; did you mean max_steps"),
        ("train --out x --set signal=recncy", "unknown signal 'recncy'; did you mean recency"),
        ("compare --methods atnpo", "unknown method 'atnpo'; did you mean attnpo"),
        ("eval --data q --out x --template cat", "unknown --template 'cat'; did you mean chat"),
        ("rollout --data q --out x --backend vlm", "unknown --backend 'vlm'; did you mean vllm"),
        ("label --by judge --traces x", "unknown --by 'judge'; did you mean judges"),
    ],
)
def test_what_was_mistyped_is_answered_with_the_nearest(
    words: str, message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    status, said = refused(capsys, *words.split())
    assert status in (1, 2) and message in said
    assert not [*tmp_path.iterdir()], "nothing is begun"


@pytest.mark.parametrize(
    ("words", "there"),
    [
        ("kfh s", ["study", "segment", "stability", "sample-size", "sft", "shrink"]),
        ("kfh probe --se", ["--segmenter", "--select", "--seed"]),
        ("kfh probe --by ", ["sra", "balanced", "gating"]),
        ("kfh plot tr", ["trace"]),
        ("kfh train --method re", ["recency"]),
    ],
)
def test_the_shell_completes_commands_options_and_choices(words: str, there: list[str]) -> None:
    place = str(len(words.split(" ")) - 1)
    asked = {"_KFH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
    assert kfh_process(env=asked).communicate()[0].split() == there


def test_completion_can_be_installed(tmp_path: Path) -> None:
    shell = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = kfh_process("--show-completion", "bash", env=shell).communicate()[0]
    assert "complete -o default -F _kfh_completion kfh" in script
    assert "installed" in kfh_process("--install-completion", "bash", env=shell).communicate()[0]
    assert (tmp_path / ".bash_completions" / "kfh.sh").read_text().strip() == script.strip()


def test_what_the_system_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces, nowhere = trace_file(tmp_path / "traces.jsonl", 2), tmp_path / "nowhere"
    for arguments in (
        ["segment", str(nowhere), "--out", str(tmp_path / "x.jsonl")],
        ["label", "--by", "rules", "--traces", str(nowhere), "--out", str(tmp_path / "x.jsonl")],
        ["label", "--compare", str(nowhere), str(nowhere)],
        ["probe", "--model", "x", "--traces", str(nowhere), "--out", str(tmp_path / "x")],
        ["ablate", "--traces", str(nowhere), "--out", str(tmp_path / "x")],
        ["eval", "--data", str(nowhere / "q.jsonl"), "--out", str(tmp_path / "x")],
        ["train", "--recipe", str(nowhere / "a.yaml"), "--out", str(tmp_path / "x")],
        *(["plot", *kind, str(nowhere)] for kind in ([], ["trace"], ["paper"])),
        ["stability", str(nowhere), str(nowhere)],
        ["sample-size", str(nowhere)],
        ["report", str(nowhere)],
    ):
        status, said = refused(capsys, *arguments)
        assert status == 1 and said.startswith("kfh: ") and "nowhere" in said, arguments

    def read_only(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    status, said = refused(capsys, "segment", str(traces), "--out", str(tmp_path / "out" / "x"))
    assert (status, said) == (1, f"kfh: {tmp_path / 'out'}: Permission denied")


def test_a_full_disk_and_a_closed_pipe_under_what_is_printed(tmp_path: Path) -> None:
    process = kfh_process("probe", "--help")
    process.stdout.close()  # type: ignore[union-attr]
    assert process.wait() and "Traceback" not in process.stderr.read()  # type: ignore[union-attr]
    if Path("/dev/full").is_char_device():
        traces = trace_file(tmp_path / "traces.jsonl", 2)
        command = [sys.executable, "-c", RUN, "segment", traces, "--out", tmp_path / "x.jsonl"]
        with Path("/dev/full").open("w") as full:
            ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert (ended.returncode, ended.stderr) == (1, "kfh: No space left on device\n")


@pytest.mark.parametrize(
    ("command", "said"),
    [("probe", "interrupted; the same command goes on from here"), ("report", "interrupted")],
)
def test_an_interruption_says_how_to_go_on(command: str, said: str) -> None:
    module, _, name = COMMANDS[command].home.partition(":")
    work = (
        f"import signal, time, kfh.commands.{module} as module\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def work():\n    print('at work', flush=True)\n    time.sleep(60)\n"
        f"module.{name} = work\n"
    )
    process = kfh_process(command, code=work + RUN)
    assert process.stdout.readline() == "at work\n"  # type: ignore[union-attr]
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", f"kfh: {said}\n") and process.returncode == 130


def test_an_interrupted_training_run_is_gone_on_with_by_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(kfh.commands.train, "run_train", lambda *a, **k: {"status": "interrupted"})
    status, said = refused(capsys, "train", "--out", "x")
    assert status == 130 and "the same command with --resume goes on from here" in said
