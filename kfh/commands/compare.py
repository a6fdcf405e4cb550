"""`kfh compare`: train methods under several pressures and seeds, and hold them against each other.

Each run is a process `kfh train`; what it writes to the screen goes to OUT/logs. Interrupted, the
same command goes on: measured runs are kept, others start from their checkpoints.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

import typer

from kfh.console import console, every, print_tables, progress_line, say, talk, warn
from kfh.options import options
from probing.errors import ConfigError, DataError
from probing.files.headers import read_object
from rl.runs.folders import RESULT_FILE
from rl.runs.trial import START, Arm, CompareConfig

TRAIN = (sys.executable, "-m", "kfh", "train")


def make_table(config: CompareConfig, failed: Mapping[Arm, str]) -> dict[str, Any]:
    """The comparison of what is finished, written to files; what is missing is named in notes.

    Raises:
        DataError: nothing is finished yet.
    """
    from kfh.findings.runs import write_comparison
    from rl.runs.job import last_step

    by_method = sorted(config.arms, key=lambda arm: config.methods.index(arm.method))
    done, missing = [], []
    for arm in (START, *by_method):
        folder = config.folder(arm)
        if (folder / RESULT_FILE).exists():
            done.append(folder)
            continue
        at = last_step(folder)
        why = failed.get(arm) or (f"at step {at} of {config.steps}" if at else "not begun")
        missing.append(f"{folder.name} ({why})")
    notes = [f"Missing: {'; '.join(missing)}."] if missing else []
    notes.append(f"{config.steps} steps, {config.jobs} run(s) at a time, one thread each.")
    if not config.validation and any(len(values) > 1 for values in config.pressures.values()):
        notes.append("No --validation, so no pressure is chosen and no frontier drawn.")
    if not done:
        raise DataError(f"{config.out}: no run is finished yet")
    return write_comparison(config.out, done, notes)


def run_comparison(config: CompareConfig) -> dict[Arm, str]:
    """Train and measure every run, write the table and the figures; of a shard its runs alone.

    Returns:
        Why runs failed.

    Raises:
        ConfigError: results of other settings are in the way.
    """
    from rl.runs.job import run_arms

    if not config.command:
        config = replace(config, command=TRAIN)
    with _progress(config) as advance:
        failed = run_arms(config, advance)
    if config.shard is None:
        make_table(config, failed)
    return failed


@contextmanager
def _progress(config: CompareConfig) -> Iterator[Callable[[Mapping[Arm, int]], None]]:
    """Progress over the steps of all runs, with the names of those at work."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %")
    total, started, due = len(config.arms) * config.steps, time.monotonic(), every()
    with Progress(*columns, TimeElapsedColumn(), console=talk, disable=not talk.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def advance(steps: Mapping[Arm, int]) -> None:
            done = sum((config.folder(arm) / RESULT_FILE).exists() for arm in config.arms)
            names = ", ".join(f"{arm.name} at {at}" for arm, at in steps.items())
            text = f"{done} of {len(config.arms)} runs; {names}"
            completed = done * config.steps + sum(steps.values())
            bar.update(task, completed=completed, description=text)
            if not talk.is_terminal and due():
                seconds = time.monotonic() - started
                say(f"{text}; {progress_line('steps', completed, total, seconds)}")

        yield advance


def run_compare(config: CompareConfig, *, table: bool = False) -> bool:
    """`kfh compare`: everything, or only the table of what is finished.

    Returns:
        Whether every run has ended well; a command ends with status 1 where not.

    Raises:
        KfhError: results of other settings are in the way, or nothing is finished.
        KeyboardInterrupt: after the runs at work have been stopped.
    """
    import torch

    from kfh.findings.runs import COMPARISON, comparison_caveats, comparison_tables
    from rl.runs.job import check_results

    torch.set_num_threads(1)
    # A polite end from outside is an interruption too: no run may be left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if table:
        if config.shard is not None:
            raise ConfigError("--table is made of all runs: leave --shards out")
        check_results(config)
        make_table(config, {})
        failed = {}
    else:
        failed = run_comparison(config)
    if config.shard is not None:
        _print_share(config, failed)
        return not failed
    content = read_object(config.out / COMPARISON)
    print_tables(comparison_tables(content), comparison_caveats(content))
    for note in content["notes"]:
        console.print(note, soft_wrap=True, highlight=False)
    drawn = [name for name in ("courses.png", "gains.png") if (config.out / name).exists()]
    names = ", ".join(("table.md", COMPARISON, *drawn))
    console.print(f"→ {config.out}: {names}", soft_wrap=True)
    _warn_of(failed)
    return not failed


def _warn_of(failed: Mapping[Arm, str]) -> None:
    for arm, why in failed.items():
        warn(f"{arm.name} {why}")


def _print_share(config: CompareConfig, failed: Mapping[Arm, str]) -> None:
    """What a shard has done, and what to do when all have."""
    done = len(config.arms) - len(failed)
    line = f"→ {config.out}: {done} of {len(config.arms)} runs of shard {config.shard}"
    console.print(f"{line}; the table of all: --table in place of --shards", soft_wrap=True)
    _warn_of(failed)


@options
def compare(
    config: CompareConfig,
    table: Annotated[bool, typer.Option("--table", help="Only the table of what is done.")] = False,
) -> None:
    """Train methods, pressures and seeds on one model and task; hold them against each other."""
    if not run_compare(config, table=table):
        raise typer.Exit(1)
