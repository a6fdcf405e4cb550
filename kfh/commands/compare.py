"""`kfh compare`: train the pocket reasoner by several methods and seeds, and make the table.

Each run is a process `kfh train`; what it writes to the screen goes to OUT/logs/METHOD-SEED.log.
Interrupted, the same command goes on: finished runs are kept, others start from their checkpoints.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from kfh.console import console, every, print_tables, progress_line, say, talk, warn
from kfh.options import options
from probing.errors import ConfigError, DataError, KfhError
from probing.files.headers import HEADER, data_path, file_header, read_object, write_json
from probing.models.load import load_frozen
from probing.settings import check, choice
from rl.attnpo.methods import method_of
from rl.pocket.decode import Decoding
from rl.pocket.measure import Answers, answer
from rl.pocket.task import Problem, shortest_trace
from rl.pocket.traces import MEASURE_SEED, held_out_problems
from rl.runs.folders import INITIAL, RESULT_FILE, read_run

METHODS = ("grpo", "tlmre", "attnpo", "pa", "na", "random-heads", "recency", "oracle")
SMALL = ("grpo", "tlmre", "attnpo")
TRAIN = (sys.executable, "-m", "kfh", "train")
PATIENCE = 60.0  # seconds for an interrupted run to write its checkpoint


@dataclass(frozen=True)
class CompareConfig:
    """What to compare; settings of `kfh compare`.

    Raises:
        ConfigError: an unknown method, or a setting that is not `key=value`.
    """

    out: Path = choice(Path("runs/compare"), "Folder of all runs, a folder each.")
    methods: tuple[str, ...] = choice((), "Methods; default: all of the table.")
    seeds: int | None = choice(None, "Seeds of each method; default 5, with --small 3.", least=1)
    steps: int = choice(60, "Training steps of each run.", least=1)
    jobs: int = choice(1, "Runs at a time.", least=1)
    problems: int = choice(500, "Held-out problems that all are measured on.", least=1)
    small: bool = choice(False, f"Only {', '.join(SMALL)}, and 3 seeds.")
    settings: tuple[str, ...] = choice(
        (), "key=value, for every run; repeatable.", option="--set", repeat=True
    )
    command: tuple[str, ...] = choice(TRAIN, "What starts a training run.", option=False)

    def __post_init__(self) -> None:
        """Put the defaults in, and check."""
        object.__setattr__(self, "methods", self.methods or (SMALL if self.small else METHODS))
        if self.seeds is None:
            object.__setattr__(self, "seeds", 3 if self.small else 5)
        check(self)
        if len({*self.methods}) < len(self.methods):
            raise ConfigError(f"--methods names one twice: {','.join(self.methods)}")
        if INITIAL in self.methods:
            raise ConfigError(f"{INITIAL!r} is no method: it is always evaluated")
        for method in self.methods:
            method_of(method)
        for setting in self.settings:
            key, equals, _ = setting.partition("=")
            if not key or not equals:
                raise ConfigError(f"--set takes key=value, not {setting!r}")
            if key == "max_steps":
                raise ConfigError("give the number of steps with --steps")

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Method and seed of every run: all methods of one seed before the next seed."""
        return [(method, seed) for seed in range(self.seeds or 0) for method in self.methods]

    def folder(self, method: str, seed: int) -> Path:
        """The folder of one run."""
        return self.out / (INITIAL if method == INITIAL else f"{method}-{seed}")

    def log(self, method: str, seed: int) -> Path:
        """The log of one run."""
        return self.out / "logs" / f"{method}-{seed}.log"

    def made_with(self) -> dict[str, Any]:
        """What must agree for a result to be kept."""
        return {"steps": self.steps, "settings": sorted(self.settings)}


def measure(folder: Path, problems: Sequence[Problem], seed: int) -> dict[str, Any]:
    """Answers of the model in this folder, greedy and at temperature 1, a number a problem.

    Tokens count the end token; redundant tokens are those beyond the shortest correct response.
    Responses that cannot be read are counted, and have null redundant steps.

    Raises:
        ModelError: the folder has no model that can be loaded.
    """
    model, tokenizer = load_frozen(folder)
    shortest = [shortest_trace(problem).response for problem in problems]
    floor = np.array([len(ids) + 1 for ids in tokenizer(shortest)["input_ids"]])
    sampling = Decoding(temperature=1.0, seed=MEASURE_SEED + seed)
    return {
        "problems": {"n": len(problems), "seed": MEASURE_SEED},
        "shortest_each": floor.tolist(),
        "greedy": _part(answer(model, tokenizer, problems, Decoding()), floor),
        "sampled": _part(answer(model, tokenizer, problems, sampling), floor),
    }


def _part(answers: Answers, floor: np.ndarray) -> dict[str, Any]:
    steps = [
        None if reading.reasons else sum(step.label == "redundant" for step in reading.steps)
        for reading in answers.readings
    ]
    read = [number for number in steps if number is not None]
    return {
        "accuracy": float(answers.correct.mean()),
        "tokens": float(answers.tokens.mean()),
        "redundant_tokens": float((answers.tokens - floor).mean()),
        "redundant_steps": sum(read) / len(read) if read else None,
        "unreadable": len(steps) - len(read),
        "correct": answers.correct.astype(int).tolist(),
        "tokens_each": answers.tokens.astype(int).tolist(),
        "redundant_steps_each": steps,
    }


def trained_model(folder: Path) -> Path:
    """The folder of the model that a run has trained.

    Raises:
        DataError: there is none.
    """
    if not (folder / "model" / "config.json").is_file():
        raise DataError(f"{folder}: no trained model (model/config.json)")
    return folder / "model"


def evaluate(config: CompareConfig, method: str, seed: int, problems: Sequence[Problem]) -> None:
    """Measure one finished run, or the initial policy, and write its result.json.

    Raises:
        DataError: the run has not reached its last step, or has no model.
    """
    folder = config.folder(method, seed)
    if method == INITIAL:
        model, steps, seconds, made_with = data_path("pocket"), 0, None, {}
    else:
        run = read_run(folder)
        if (run.method, run.seed) != (method, seed):
            raise DataError(f"{folder}: holds {run.method}, seed {run.seed}")
        steps = int(run.metrics.index.max()) if len(run.metrics) else 0
        if steps < config.steps:
            raise DataError(f"{folder}: ended at step {steps} of {config.steps}")
        model, seconds, made_with = trained_model(folder), run.seconds, config.made_with()
    content = {
        HEADER: file_header("comparison result"),
        "method": method,
        "seed": seed,
        "steps": steps,
        "seconds": seconds if seconds is None or np.isfinite(seconds) else None,
        "made_with": made_with,
        **measure(model, problems, seed),
    }
    write_json(folder / RESULT_FILE, content)


def check_results(config: CompareConfig) -> None:
    """Hold the results that are there against the settings.

    Raises:
        ConfigError: one was made with others.
    """
    for method, seed in [(INITIAL, 0), *config.runs]:
        path = config.folder(method, seed) / RESULT_FILE
        if not path.exists():
            continue
        result = read_object(path)
        wanted = {} if method == INITIAL else config.made_with()
        problems = {"n": config.problems, "seed": MEASURE_SEED}
        if result.get("made_with") != wanted or result.get("problems") != problems:
            raise ConfigError(
                f"{path} was made with {result.get('made_with')} on {result.get('problems')}, now "
                f"it is {wanted} on {problems}: take another --out, or remove it"
            )


def start(config: CompareConfig, method: str, seed: int) -> subprocess.Popen[bytes]:
    """Start one training run as a process of its own group, on one thread, its output logged."""
    log = config.log(method, seed)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [*config.command, "--method", method, "--seed", str(seed)]
    command += ["--out", str(config.folder(method, seed))]
    for setting in (f"max_steps={config.steps}", *config.settings):
        command += ["--set", setting]
    with log.open("ab") as file:
        return subprocess.Popen(
            [*command, "--resume"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # Else an interrupt at the keyboard would reach it twice.
            start_new_session=True,
        )


def stop(processes: Sequence[subprocess.Popen[bytes]], patience: float = PATIENCE) -> None:
    """Interrupt these processes, and end those that do not leave in time."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + patience
    try:
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:  # a second interrupt comes here at once
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def train_all(
    config: CompareConfig,
    evaluated: Callable[[str, int], None],
    show: Callable[[dict[tuple[str, int], int]], None] = lambda steps: None,
) -> dict[tuple[str, int], str]:
    """Train and evaluate what has no result yet, `jobs` at a time; returns why runs failed.

    Args:
        evaluated: evaluates one trained run; while it works it takes the place of a job.
        show: is given the steps done of the runs at work.

    Raises:
        KeyboardInterrupt: after the processes have been stopped.
    """
    waiting = [r for r in config.runs if not (config.folder(*r) / RESULT_FILE).exists()]
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    failed: dict[tuple[str, int], str] = {}
    try:
        while waiting or running:
            for run in [run for run, process in running.items() if process.poll() is not None]:
                code = running.pop(run).returncode
                if code:
                    failed[run] = f"ended with {code}, see {config.log(*run)}"
                    continue
                try:
                    evaluated(*run)
                except KfhError as error:
                    failed[run] = f"{error}; see {config.log(*run)}"
            while waiting and len(running) < config.jobs:
                run = waiting.pop(0)
                running[run] = start(config, *run)
            show({run: steps_done(config.folder(*run)) for run in running})
            time.sleep(0.3)
    finally:
        stop(list(running.values()))
    return failed


def steps_done(folder: Path) -> int:
    """The last step in a run's metrics; 0 where there is none yet."""
    try:
        metrics = read_run(folder).metrics
    except DataError:
        return 0
    return int(metrics.index.max()) if len(metrics) else 0


def make_table(config: CompareConfig, failed: dict[tuple[str, int], str]) -> dict[str, Any]:
    """The comparison of what is finished, written to files; what is missing is named in notes.

    Raises:
        DataError: nothing is finished yet.
    """
    from kfh.findings.runs import write_comparison
    from rl.runs.comparison import read_rows

    by_method = sorted(config.runs, key=lambda run: config.methods.index(run[0]))
    done, missing = [], []
    for run in [(INITIAL, 0), *by_method]:
        folder = config.folder(*run)
        if (folder / RESULT_FILE).exists():
            done.append(folder)
            continue
        at = steps_done(folder)
        why = failed.get(run) or (f"at step {at} of {config.steps}" if at else "not begun")
        missing.append(f"{folder.name} ({why})")
    notes = [f"Missing: {'; '.join(missing)}."] if missing else []
    notes.append(f"{config.steps} steps, {config.jobs} run(s) at a time, one thread each.")
    if not done:
        raise DataError(f"{config.out}: no run is finished yet")
    return write_comparison(config.out, *read_rows(done), notes)


def run_comparison(config: CompareConfig) -> dict[tuple[str, int], str]:
    """Measure the initial policy, train and measure every run, write the table.

    Returns:
        Why runs failed, by method and seed.

    Raises:
        ConfigError: results of other settings are in the way.
    """
    check_results(config)
    problems = held_out_problems(config.problems, MEASURE_SEED)
    if not (config.folder(INITIAL, 0) / RESULT_FILE).exists():
        evaluate(config, INITIAL, 0, problems)
    with _progress(config) as advance:
        failed = train_all(config, lambda m, s: evaluate(config, m, s, problems), advance)
    make_table(config, failed)
    return failed


@contextmanager
def _progress(config: CompareConfig) -> Iterator[Callable[[dict[tuple[str, int], int]], None]]:
    """Progress over the steps of all runs, with the names of those at work."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %")
    total, started, due = len(config.runs) * config.steps, time.monotonic(), every()
    with Progress(*columns, TimeElapsedColumn(), console=talk, disable=not talk.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def advance(steps: dict[tuple[str, int], int]) -> None:
            done = sum((config.folder(*run) / RESULT_FILE).exists() for run in config.runs)
            names = ", ".join(f"{m}-{s} at {at}" for (m, s), at in steps.items())
            text = f"{done} of {len(config.runs)} runs; {names}"
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

    torch.set_num_threads(1)
    # A polite end from outside is an interruption too: no run may be left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if table:
        check_results(config)
        make_table(config, {})
        failed = {}
    else:
        failed = run_comparison(config)
    content = read_object(config.out / COMPARISON)
    print_tables(comparison_tables(content), comparison_caveats(content))
    for note in content["notes"]:
        console.print(note, soft_wrap=True, highlight=False)
    console.print(f"→ {config.out}: table.md, {COMPARISON}", soft_wrap=True)
    for (method, seed), why in failed.items():
        warn(f"{method}-{seed} {why}")
    return not failed


@options
def compare(
    config: CompareConfig,
    table: Annotated[bool, typer.Option("--table", help="Only the table of what is done.")] = False,
) -> None:
    """Train methods by seeds on the pocket reasoner, and hold them against each other."""
    if not run_compare(config, table=table):
        raise typer.Exit(1)
