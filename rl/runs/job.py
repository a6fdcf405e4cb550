"""A comparison, all but its table: train every arm, and measure each along its way.

1. Hold the results that are there against the settings.
2. Measure the policy before training.
3. Train: each arm is a process `kfh train`; its output goes to OUT/logs.
4. Measure the checkpoints of an arm that has ended, on the reported problems and on those of the
   validation; at the end greedily, too. Write curve.parquet and result.json.

Interrupted, the same call goes on: measured arms are kept, others start from their checkpoints.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probing.errors import ConfigError, DataError, KfhError
from probing.files.headers import HEADER, data_path, file_header, read_object, write_json
from probing.models.load import load_frozen
from rl.pocket.decode import Decoding
from rl.pocket.levels import level_of
from rl.pocket.measure import Answers, answer
from rl.pocket.task import Problem, shortest_trace
from rl.pocket.traces import MEASURE_SEED, held_out_problems
from rl.runs.course import course_rows, write_course
from rl.runs.folders import RESULT_FILE, read_run
from rl.runs.trial import START, Arm, CompareConfig

PACE = 2.0  # seconds between two looks at how far the runs are
PATIENCE = 60.0  # seconds for an interrupted run to write its checkpoint
VALIDATION_SEED = 9_000_000  # above the other seeds of the task


def run_arms(
    config: CompareConfig, show: Callable[[Mapping[Arm, int]], None] = lambda steps: None
) -> dict[Arm, str]:
    """Measure the initial policy, train and measure every arm.

    Args:
        show: is given the steps done of the arms at work, now and then.

    Returns:
        Why arms failed.

    Raises:
        ConfigError: results of other settings are in the way.
        KeyboardInterrupt: after the processes have been stopped.
    """
    check_results(config)  # 1
    problems = Problems.of(config)
    if not (config.folder(START) / RESULT_FILE).exists():
        measure_arm(config, START, problems)  # 2
    return train_all(config, lambda arm: measure_arm(config, arm, problems), show)  # 3, 4


@dataclass(frozen=True, eq=False)
class Problems:
    """Held-out problems of a level: those that are reported, and others to choose constants on."""

    reported: list[Problem]
    validation: list[Problem]

    @classmethod
    def of(cls, config: CompareConfig) -> Problems:
        """As many as the settings say; the two share none."""
        reported = held_out_problems(config.problems, MEASURE_SEED, config.model)
        known = {problem.text for problem in reported}
        # So many that enough are left, if every reported one were among them.
        drawn = held_out_problems(
            config.validation + config.problems, VALIDATION_SEED, config.model
        )
        fresh = [problem for problem in drawn if problem.text not in known]
        return cls(reported, fresh[: config.validation])


def measure_arm(config: CompareConfig, arm: Arm, problems: Problems) -> None:
    """Measure one arm that has ended, or the initial policy, and write its two files.

    Answers are drawn at temperature 1 by the arm's seed, by the same streams at each checkpoint;
    at the end greedily, too. Checkpoints are deleted once the result is there.

    Raises:
        DataError: the run has not reached its last step, or lacks a model.
    """
    folder = config.folder(arm)
    if arm == START:
        places, sampled, seconds = {0: data_path(config.model)}, {0: 0.0}, None
    else:
        places, sampled, seconds = _places(config, arm)
    everything, n = [*problems.reported, *problems.validation], len(problems.reported)
    most = level_of(config.model).max_tokens
    sampling = Decoding(1.0, seed=MEASURE_SEED + arm.seed, max_new_tokens=most)
    checkpoints: list[pd.DataFrame] = []
    for step, place in places.items():
        model, tokenizer = load_frozen(place)
        if not checkpoints:
            shortest = [shortest_trace(problem).response for problem in everything]
            floor = np.array([len(ids) + 1 for ids in tokenizer(shortest)["input_ids"]])
        drawn = answer(model, tokenizer, everything, sampling)
        right, tokens = drawn.correct, drawn.tokens
        checkpoints.append(course_rows(step, sampled[step], right, tokens, floor, n))
    greedy = answer(model, tokenizer, problems.reported, Decoding(max_new_tokens=most))
    write_course(folder, checkpoints)
    content = {
        HEADER: file_header("comparison result"),
        "method": arm.method,
        "pressure": arm.pressure,
        "seed": arm.seed,
        "steps": max(places),
        "seconds": seconds,
        "made_with": config.made_with(arm),
        "problems": config.measured_on(),
        "shortest_each": floor[:n].tolist(),
        "greedy": figures(greedy, floor[:n]),
        "sampled": figures(drawn.first(n), floor[:n]),
    }
    write_json(folder / RESULT_FILE, content)
    for place in folder.glob("checkpoint-*"):
        shutil.rmtree(place)


def figures(answers: Answers, floor: np.ndarray) -> dict[str, Any]:
    """What a set of answers shows, a number a problem.

    Tokens count the end token; redundant tokens are those beyond the shortest correct response.
    Responses that cannot be read are counted, and have null redundant steps.

    Args:
        floor: tokens of the shortest correct response to each problem.
    """
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


def _places(
    config: CompareConfig, arm: Arm
) -> tuple[dict[int, Path], dict[int, float], float | None]:
    """Of an arm that has ended: models and tokens sampled by step, and seconds of training."""
    folder = config.folder(arm)
    run = read_run(folder)
    if (run.method, run.seed) != (arm.method, arm.seed):
        raise DataError(f"{folder}: holds {run.method}, seed {run.seed}")
    if (done := last_step(folder)) < config.steps:
        raise DataError(f"{folder}: ended at step {done} of {config.steps}")
    steps = range(config.every, config.steps, config.every)
    places = {step: folder / f"checkpoint-{step}" for step in steps}
    places[config.steps] = folder / "model"
    for place in places.values():
        if not (place / "config.json").is_file():
            raise DataError(f"{place}: no trained model (config.json)")
    tokens = (run.metrics["tokens"] * int(run.info["responses"])).cumsum()
    seconds = run.seconds if np.isfinite(run.seconds) else None
    return places, {step: float(tokens[step]) for step in places}, seconds


def check_results(config: CompareConfig) -> None:
    """Hold the results that are there against the settings.

    Raises:
        ConfigError: one was made with others.
    """
    for arm in (START, *config.arms):
        path = config.folder(arm) / RESULT_FILE
        if not path.exists():
            continue
        result = read_object(path)
        wanted, problems = config.made_with(arm), config.measured_on()
        if result.get("made_with") != wanted or result.get("problems") != problems:
            raise ConfigError(
                f"{path} was made with {result.get('made_with')} on {result.get('problems')}, now "
                f"it is {wanted} on {problems}: take another --out, or remove it"
            )


def start(config: CompareConfig, arm: Arm) -> subprocess.Popen[bytes]:
    """Start one training run as a process of its own group, on one thread, its output logged."""
    log = config.log(arm)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            config.train(arm),
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
    measure: Callable[[Arm], None],
    show: Callable[[Mapping[Arm, int]], None] = lambda steps: None,
) -> dict[Arm, str]:
    """Train and measure what has no result yet, `jobs` at a time; returns why arms failed.

    Args:
        measure: measures one trained arm; while it works it takes the place of a job.
        show: is given the steps done of the arms at work.

    Raises:
        KeyboardInterrupt: after the processes have been stopped.
    """
    waiting = [arm for arm in config.arms if not (config.folder(arm) / RESULT_FILE).exists()]
    running: dict[Arm, subprocess.Popen[bytes]] = {}
    failed: dict[Arm, str] = {}
    shown = -np.inf
    try:
        while waiting or running:
            for arm in [arm for arm, process in running.items() if process.poll() is not None]:
                code = running.pop(arm).returncode
                if code:
                    failed[arm] = f"ended with {code}, see {config.log(arm)}"
                    continue
                try:
                    measure(arm)
                except KfhError as error:
                    failed[arm] = f"{error}; see {config.log(arm)}"
            while waiting and len(running) < config.jobs:
                arm = waiting.pop(0)
                running[arm] = start(config, arm)
            if time.monotonic() - shown > PACE:
                show({arm: last_step(config.folder(arm)) for arm in running})
                shown = time.monotonic()
            time.sleep(0.3)
    finally:
        stop(list(running.values()))
    return failed


def last_step(folder: Path) -> int:
    """The last step in a run's metrics; 0 where there is none yet."""
    try:
        metrics = read_run(folder).metrics
    except DataError:
        return 0
    return int(metrics.index.max()) if len(metrics) else 0
