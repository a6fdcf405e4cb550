"""`kfh study`: run the stages of a plan in turn, each once.

1. Fill the plan with its values; hold finished stages against it.
2. Say what is to be done, and how long it will take.
3. Run each stage that is not finished: its commands one by one, as processes, their output shown.
   A stage that ends well leaves a mark; its commands go on by themselves with what they have.
4. Copy what is to be kept.
"""

from __future__ import annotations

import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from kfh.console import clock, console, print_tables, say
from kfh.options import options
from kfh.study.plan import Plan, Stage
from kfh.tables import Table
from probing.errors import ConfigError, KfhError
from probing.files.headers import HEADER, file_header, read_object, write_json
from probing.settings import check, choice, unknown

MARKS = "stages"  # folder of a study that says which stages are finished
PACE = 0.2  # seconds between two looks at a command
INTERRUPTED = 130  # what a command of kfh ends with after Ctrl-C


@dataclass(frozen=True)
class StudyConfig:
    """What study, where, and how much of it. Each field's help says what it is."""

    plan: str = choice(help="Name of a study that comes with kfh, or a YAML file.", argument="PLAN")
    out: Path | None = choice(None, "Folder of the study; default: runs/NAME, or runs/NAME-small.")
    small: bool = choice(False, "The small study: every stage, with little in it.")
    only: tuple[str, ...] = choice((), "These stages alone; default: all.")
    again: str | None = choice(None, "Do this stage and all behind it again.")
    minutes: float | None = choice(
        None, "Stop after so long, in the middle of a stage, too; the same call goes on.", least=0
    )
    keep: Path | None = choice(None, "Copy what the plan keeps of the study into this folder.")
    settings: tuple[str, ...] = choice(
        (), "key=value, of the plan's values; repeatable.", option="--set", repeat=True
    )
    dry_run: bool = choice(False, "Say what is to be done, with its commands, and end.")

    def __post_init__(self) -> None:
        """Check, and name the folder."""
        check(self)
        if self.out is None:
            name = f"{Path(self.plan).stem}{'-small' if self.small else ''}"
            object.__setattr__(self, "out", Path("runs") / name)


class OutOfTime(Exception):
    """The minutes that were given are over."""


@dataclass(eq=False)
class Study:
    """A plan with its values, and the folder that it is done in."""

    config: StudyConfig

    def __post_init__(self) -> None:
        """Fill the plan in (1).

        Raises:
            ConfigError: see `Plan`; a stage that it does not have, or one that is finished was
                done with other commands.
        """
        config = self.config
        assert config.out is not None
        self.out, self.plan = config.out, Plan.load(config.plan)
        self.commands = self.plan.filled(self.out, config.small, config.settings)
        for name in (*config.only, *([config.again] if config.again else ())):
            if name not in self.commands:
                raise ConfigError(unknown("stage", name, self.commands))
        if config.again and not config.dry_run:
            names = list(self.commands)
            for name in names[names.index(config.again) :]:
                self.mark(name).unlink(missing_ok=True)
        for name in self.commands:
            done = self.done(name)
            if done and done["commands"] != self.commands[name]:
                raise ConfigError(
                    f"{self.mark(name)}: the stage was done by other commands "
                    f"({done['commands']}): --again {name} does it anew, or take another --out"
                )

    def mark(self, name: str) -> Path:
        """The file that says that a stage is finished."""
        return self.out / MARKS / f"{name}.json"

    def read(self, name: str) -> dict[str, Any]:
        """What the mark of a stage says: commands, seconds, whether it is finished."""
        path = self.mark(name)
        return read_object(path) if path.is_file() else {"seconds": 0.0, "finished": False}

    def done(self, name: str) -> dict[str, Any] | None:
        """The same of a finished stage; None of another."""
        content = self.read(name)
        return content if content["finished"] else None

    def expected(self, stage: Stage) -> float:
        """Seconds that a stage will take, by how fast the finished ones were here."""
        rates = [
            done["seconds"] / (60 * other.minutes[self.config.small])
            for other in self.plan.stages
            if (done := self.done(other.name)) and other.minutes[self.config.small] >= 0.5
        ]
        pace = statistics.median(rates) if rates else 1.0
        return 60 * stage.minutes[self.config.small] * pace

    def table(self) -> Table:
        """The stages, what they are for, and how long they took or will take (2)."""
        rows = []
        for number, stage in enumerate(self.plan.stages, 1):
            done = self.done(stage.name)
            state = f"{clock(done['seconds'])}, done" if done else "to do"
            left = "" if done else f"about {clock(self.expected(stage))}"
            rows.append((str(number), stage.name, stage.about, state, left))
        return Table(self.plan.about, ("", "stage", "what", "state", "will take"), rows)

    def run(self, stage: Stage, deadline: float | None) -> None:
        """Run the commands of a stage, and mark it as finished (3).

        Raises:
            KfhError: a command failed.
            OutOfTime: the deadline has passed; the command was asked to stop.
            KeyboardInterrupt: likewise.
        """
        started, finished = time.monotonic() - self.read(stage.name)["seconds"], False
        try:
            for command in self.commands[stage.name]:
                self._run(stage.name, command, deadline)
            finished = True
        finally:
            content = {
                HEADER: file_header("study stage"),
                "commands": self.commands[stage.name],
                "seconds": round(time.monotonic() - started, 3),
                "finished": finished,
            }
            write_json(self.mark(stage.name), content)

    def _run(self, name: str, command: list[str], deadline: float | None) -> None:
        """One command, as a process of its own group; see `run`."""
        from rl.runs.job import stop

        say(f"{name}: {' '.join(command)}")
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            while process.poll() is None:
                if deadline is not None and time.monotonic() > deadline:
                    raise OutOfTime
                time.sleep(PACE)
        finally:
            if process.poll() is None:
                stop([process])
        if process.returncode in (INTERRUPTED, -signal.SIGINT):  # from outside, the command alone
            raise KeyboardInterrupt(f"stage {name} was interrupted; the same call goes on")
        if process.returncode:
            raise KfhError(
                f"stage {name} failed (exit {process.returncode}), see above; mended, the same "
                f"call goes on. The command: {' '.join(command)}"
            )

    def keep(self, folder: Path) -> list[Path]:
        """Copy the files that the plan keeps (4); returns them, below the folder."""
        found = sorted({path for each in self.plan.keeps for path in self.out.glob(each)})
        kept = [path.relative_to(self.out) for path in found if path.is_file()]
        for path in kept:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.out / path, folder / path)
        return kept


def run_study(config: StudyConfig) -> bool:
    """`kfh study`: see the module.

    Returns:
        Whether all stages that were asked for are finished.

    Raises:
        KfhError: a plan that cannot be filled in, or a stage that failed.
    """
    study = Study(config)
    wanted = [stage for stage in study.plan.stages if stage.name in (config.only or study.commands)]
    print_tables([study.table()])
    if config.dry_run:
        for stage in wanted:
            for command in study.commands[stage.name]:
                console.print(" ".join(command), markup=False, highlight=False, soft_wrap=True)
        return True
    deadline = None if config.minutes is None else time.monotonic() + 60 * config.minutes
    in_time = True
    for stage in wanted:
        if study.done(stage.name):
            continue
        try:
            study.run(stage, deadline)
        except OutOfTime:
            say(
                f"{config.minutes:g} minutes are over, in stage {stage.name}: the same call goes on"
            )
            in_time = False
            break
    if config.keep:  # of a piece, too: the machine may be gone before the next
        for path in study.keep(config.keep):
            say(f"kept {config.keep / path}")
    console.print(f"→ {study.out}", soft_wrap=True)
    return in_time


@options
def study(config: StudyConfig) -> None:
    """Run a study: a chain of commands, each stage kept, skipped when done, gone on with."""
    # A shell that starts it in the background has SIGINT ignored.
    for ends in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ends, signal.default_int_handler)
    if not run_study(config):
        raise typer.Exit(3)
