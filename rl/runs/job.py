"""A comparison, all but its table: train every arm, and measure each along its way.

1. Hold the results that are there against the settings; what is reported on must be used for
   nothing else.
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
from jaxtyping import Float, Int

from probing.choices import Dtype
from probing.errors import ConfigError, DataError, KfhError
from probing.files.headers import HEADER, file_header, read_object, write_json
from probing.headset import HeadSet
from probing.models.decode import Sampling
from probing.models.load import ModelSource
from rl.attnpo.completions import end_mark
from rl.evaluation.job import responses_of
from rl.evaluation.summary import redundant_steps, shortest_tokens
from rl.runs.folders import PARTS, RESULT_FILE, course_rows, read_run, write_course
from rl.runs.trial import START, Arm, CompareConfig
from rl.sampling.responses import Asking
from rl.tasks.base import QuestionSet
from rl.tasks.questions import load_questions
from rl.training.recipe import (
    default_recipe,
    find_recipe,
    parse_settings,
    read_recipe,
    train_config,
)

PACE = 10.0  # seconds between two looks at how far the runs are
PATIENCE = 60.0  # seconds for an interrupted run to write its checkpoint


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
    sets = [
        load_questions(spec, task=config.task, instruction=config.instruction)
        for spec in config.measured_on()
        if spec
    ]
    check_apart(config, sets)
    if config.starts and not (config.folder(START) / RESULT_FILE).exists():
        measure_arm(config, START, sets)  # 2
    return train_all(config, lambda arm: measure_arm(config, arm, sets), show)  # 3, 4


def measure_arm(config: CompareConfig, arm: Arm, sets: Sequence[QuestionSet]) -> None:
    """Measure one arm that has ended, or the initial policy, and write its two files.

    Responses are drawn at temperature 1 by the arm's seed, by the same streams at each checkpoint;
    at the end greedily, too; in bfloat16 where the runs compute in it. Checkpoints are deleted once
    the result is there.

    Args:
        sets: the reported problems, and those of the validation.

    Raises:
        DataError: the run has not reached its last step, or lacks a model.
    """
    folder = config.folder(arm)
    if arm == START:
        places, sampled, seconds = {0: config.model}, {0: 0.0}, None
    else:
        places, sampled, seconds = _places(config, arm)
    drawn = Sampling(1.0, 1.0, config.max_tokens, arm.seed)
    settings = run_settings(config)
    code, how = bool(settings.get("trust_remote_code")), (asking_of(settings), config.batch)
    dtype: Dtype = "bfloat16" if settings.get("bf16") else "float32"
    rows: list[pd.DataFrame] = []
    for step, place in places.items():
        model, tokenizer = ModelSource(place, dtype=dtype, trust_remote_code=code).load()
        found = [answers_to(questions, model, tokenizer, drawn, *how) for questions in sets]
        rows += [
            course_rows(step, sampled[step], part, each.correct, each.tokens, each.shortest)
            for part, each in zip(PARTS, found, strict=False)
        ]
    greedy = answers_to(sets[0], model, tokenizer, Sampling.greedy(config.max_tokens), *how)
    write_course(folder, rows)
    content = {
        HEADER: file_header("comparison result"),
        "method": arm.method,
        "pressure": arm.pressure,
        "seed": arm.seed,
        "steps": max(places),
        "seconds": seconds,
        "made_with": config.made_with(arm),
        "problems": config.measured_on(),
        "shortest_each": greedy.shortest.tolist(),
        "greedy": greedy.figures(),
        "sampled": found[0].figures(),
    }
    write_json(folder / RESULT_FILE, content)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def check_apart(config: CompareConfig, sets: Sequence[QuestionSet]) -> None:
    """What figures are reported on chooses no pressure and is not trained on.

    Args:
        sets: the reported problems, and those of the validation.

    Raises:
        ConfigError: some of it does; the message says how many, and of which.
    """
    reported, *others = sets
    given = {name: getattr(config, name) for name in ("model", "data", "task", "instruction")}
    run = train_config(config.out, _recipe(config), given, parse_settings(config.settings))
    seeds = sorted({arm.seed for arm in config.arms})
    trained = (load_questions(run.data, seed=seed, **run.reading) for seed in seeds)
    used = [(f"--validation {config.validation}", each) for each in others]
    used += [(f"the training set {run.data}", each) for each in trained]
    for name, questions in used:
        if shared := len({*reported.problems} & {*questions.problems}):
            raise ConfigError(
                f"{name} has {shared} of the {len(reported)} questions of --reported "
                f"{config.reported}, on which nothing else may be tried: take others"
            )


def run_settings(config: CompareConfig) -> dict[str, Any]:
    """The settings that all runs share: the recipe's, below those that are given."""
    return {**_recipe(config), **parse_settings(config.settings)}


def _recipe(config: CompareConfig) -> dict[str, Any]:
    return read_recipe(find_recipe(config.recipe or default_recipe(config.model)))


def asking_of(settings: Mapping[str, Any]) -> Asking:
    """How a run with these settings is asked, so that it is measured as it was trained."""
    heads = HeadSet.load(settings["heads"], warn=False) if settings.get("heads") else None
    mark = end_mark(heads, settings.get("think_end"), settings.get("think_end_at"))
    given = {name: settings[name] for name in ("template", "think_start") if name in settings}
    return Asking(think_end=mark.text, think_end_at=mark.at, **given)


@dataclass(frozen=True, eq=False)
class Answers:
    """One response to each question of a set.

    Args:
        correct: 1 or 0.
        tokens: of the response, its end token among them.
        shortest: of the shortest correct response; 0 where the task does not know it.
        redundant_steps: by the task's labels; None where the response cannot be read whole, and
            no list where the task has none.
    """

    correct: Float[np.ndarray, "question"]
    tokens: Int[np.ndarray, "question"]
    shortest: Int[np.ndarray, "question"]
    redundant_steps: list[int | None] | None

    def figures(self) -> dict[str, Any]:
        """Means, and a number a question; responses that cannot be read are counted."""
        steps = self.redundant_steps or []
        read = [number for number in steps if number is not None]
        return {
            "accuracy": float(self.correct.mean()),
            "tokens": float(self.tokens.mean()),
            "redundant_tokens": float((self.tokens - self.shortest).mean()),
            "redundant_steps": sum(read) / len(read) if read else None,
            "unreadable": len(steps) - len(read),
            "correct": self.correct.astype(int).tolist(),
            "tokens_each": self.tokens.tolist(),
            "redundant_steps_each": steps or [None] * len(self.tokens),
        }


def answers_to(
    questions: QuestionSet,
    model: Any,
    tokenizer: Any,
    sampling: Sampling,
    asking: Asking,
    batch: int,
) -> Answers:
    """Sample and verify one response to each question."""
    found = responses_of(model, tokenizer, questions, sampling, 1, asking=asking, batch=batch)
    asked = questions.questions
    responses = [found[question.id][0] for question in asked]
    steps: list[int | None] | None = None
    if questions.task.labels:
        pairs = zip(asked, responses, strict=True)
        steps = [redundant_steps(questions, q, r.text, asking.think_end) for q, r in pairs]
    return Answers(
        np.array([float(response.correct) for response in responses]),
        np.array([response.tokens for response in responses]),
        np.array(shortest_tokens(questions, tokenizer) or [0] * len(asked)),
        steps,
    )


def _places(
    config: CompareConfig, arm: Arm
) -> tuple[dict[int, str], dict[int, float], float | None]:
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
        if not any((place / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise DataError(f"{place}: no trained model (config.json, or adapter_config.json)")
    tokens = (run.metrics["tokens"] * int(run.info["responses"])).cumsum()
    seconds = run.seconds if np.isfinite(run.seconds) else None
    models = {step: str(place.resolve()) for step, place in places.items()}
    return models, {step: float(tokens[step]) for step in places}, seconds


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
