"""Read the folders that training and evaluation write: run, metrics, probe, evaluation, course.

A run that is still being written can be read: a torn last line is left out and counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probing.errors import ConfigError, DataError
from probing.files.headers import HEADER, file_header, kind_of, read_object, whole_file
from probing.files.jsonl import read_lines
from probing.files.tables import WRITTEN, damaged, read_columns
from probing.intervals import Estimate
from rl.attnpo.methods import pressure_key

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float, Int

RUN_FILE, METRICS_FILE, PROBE_FILE = "run.json", "metrics.jsonl", "probe.jsonl"
RESULT_FILE, EVAL_FILE = "result.json", "eval.json"
CURVE_FILE = "curve.parquet"
PARTS = ("reported", "validation")
_ADVICE = "remove it and result.json, and measure the run again"
PHRASES = ("confused", "branching", "backward", "forward", "special")
DRAWN = {"training", "comparison result", "evaluation"}  # kinds of results of a policy
INITIAL = "initial"  # stands where a method's name would: the policy before training


@dataclass(frozen=True, eq=False)
class Run:
    """One training run, finished or not.

    `metrics` has a row a step, in order, phrases as columns `phrases.confused`, …; what the file
    gives as null is not a number. `probe` are the lines of probe.jsonl by step. `torn` counts
    files whose last line is cut, `repeated` step lines that a later one replaces.
    """

    folder: Path
    method: str
    seed: int
    status: str
    info: dict[str, Any]
    metrics: pd.DataFrame
    probe: list[dict[str, Any]]
    torn: int = 0
    repeated: int = 0

    @property
    def pressure(self) -> float | None:
        """Its constant that trades accuracy for length; None where it has none, or is unknown."""
        try:
            value = (self.info.get("settings") or {}).get(pressure_key(self.method))
        except ConfigError:
            return None
        return float(value) if isinstance(value, int | float) else None

    @property
    def seconds(self) -> float:
        """Seconds that the steps took, all resumed parts together."""
        return float(self.metrics["seconds"].sum()) if "seconds" in self.metrics else float("nan")


def find_runs(folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Run folders and folders with an evaluation alone, among the given ones and their children.

    Raises:
        DataError: a folder that does not exist, or that holds neither.
    """
    runs: list[Path] = []
    evaluations: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder")
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
        places = [path for path in [folder] if DRAWN & {*kind_of(path)}]
        places = places or [path for path in inside if DRAWN & {*kind_of(path)}]
        if not places:
            raise DataError(
                f"{folder}: no finished probe (sra.parquet), no run of `kfh train` "
                f"({METRICS_FILE}) and no evaluation ({EVAL_FILE}, {RESULT_FILE}), here or one "
                f"folder below; run `kfh probe --out {folder}` or `kfh train --out {folder}` first"
            )
        for path in places:
            (runs if "training" in kind_of(path) else evaluations).append(path)
    return list(dict.fromkeys(runs)), list(dict.fromkeys(evaluations))


def read_run(folder: Path) -> Run:
    """Read one run folder.

    Raises:
        DataError: a file that is missing, or that is damaged elsewhere than in its last line.
    """
    info = read_object(folder / RUN_FILE)
    for key, kind in (("method", str), ("seed", int)):
        if not isinstance(info.get(key), kind):
            raise DataError(f"{folder / RUN_FILE}: no `{key}`; is this a folder of `kfh train`?")
    lines, torn = read_lines(folder / METRICS_FILE)
    probe, torn_probe = (
        read_lines(folder / PROBE_FILE) if (folder / PROBE_FILE).exists() else ([], False)
    )
    by_step = _by_step(lines, folder / METRICS_FILE)
    return Run(
        folder=folder,
        method=info["method"],
        seed=info["seed"],
        status=str(info.get("status", "unknown")),
        info=info,
        metrics=_frame(by_step),
        probe=_by_step(probe, folder / PROBE_FILE),
        torn=torn + torn_probe,
        repeated=len(lines) - len(by_step),
    )


def _by_step(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Rows in the order of their steps; of several with one step, the last."""
    last: dict[int, dict[str, Any]] = {}
    for row in rows:
        if not isinstance(row.get("step"), int):
            raise DataError(f"{path}: a line without a whole number `step`: {str(row)[:80]}")
        last[row["step"]] = row
    return [last[step] for step in sorted(last)]


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a step, indexed by it; nested objects as `outer.inner`, numbers only."""
    import pandas as pd

    flat = pd.json_normalize(rows) if rows else pd.DataFrame({"step": []})
    frame = flat.set_index("step").apply(pd.to_numeric, errors="coerce").astype(float)
    frame.index = frame.index.astype(int)
    return frame


def group(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by method, in order of first appearance, seeds in order.

    Where runs of a method have several pressures, each is a method of its own, `tlmre@0.3`.

    Raises:
        DataError: two folders hold the same method and seed, which an average would count twice.
    """
    methods: dict[str, dict[int, Run]] = {}
    runs = list(runs)
    pressures: dict[str, set[float | None]] = {}
    for run in runs:
        pressures.setdefault(run.method, set()).add(run.pressure)
    for run in runs:
        several = len(pressures[run.method]) > 1
        name = labelled({"method": run.method, "pressure": run.pressure if several else None})
        seeds = methods.setdefault(name, {})
        if run.seed in seeds:
            raise DataError(
                f"{seeds[run.seed].folder} and {run.folder} both hold {name}, seed "
                f"{run.seed}: leave one out"
            )
        seeds[run.seed] = run
    return {method: [seeds[s] for s in sorted(seeds)] for method, seeds in methods.items()}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of one policy: a value a problem.

    `decoding` is "greedy" or "sampled". Besides accuracy (0 or 1) and tokens there are redundant
    tokens (all of them, where the task knows no shortest response) and redundant steps; not a
    number where there is none.
    """

    folder: Path
    method: str
    seed: int
    decoding: str
    values: dict[str, np.ndarray]


def read_evaluations(folder: Path) -> list[Evaluation]:
    """The evaluations of result.json: one a way of decoding. None where the file is not there.

    Raises:
        DataError: a damaged file, or one whose arrays differ in length.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        return []
    result = read_object(path)
    evaluations = []
    for decoding in ("greedy", "sampled"):
        part = result.get(decoding)
        if part is None:
            continue
        try:
            values = {
                "accuracy": np.array(part["correct"], dtype=float),
                "tokens": np.array(part["tokens_each"], dtype=float),
            }
            n = len(values["tokens"])
            shortest = result.get("shortest_each", [np.nan] * n)
            values["redundant_tokens"] = values["tokens"] - np.array(shortest, dtype=float)
            steps = part.get("redundant_steps_each", [np.nan] * n)
            values["redundant_steps"] = np.array(steps, dtype=float)
            method, seed = labelled(result), int(result["seed"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: `{decoding}` is damaged ({error})") from error
        if n == 0 or {len(column) for column in values.values()} != {n}:
            raise DataError(f"{path}: `{decoding}` has arrays of different lengths, or empty ones")
        evaluations.append(Evaluation(folder, method, seed, decoding, values))
    return evaluations


def labelled(result: Mapping[str, Any]) -> str:
    """A method with its pressure, where it was chosen for the comparison.

    Example:
        >>> labelled({"method": "tlmre", "pressure": 0.3}), labelled({"method": "grpo"})
        ('tlmre@0.3', 'grpo')
    """
    pressure = result.get("pressure")
    return str(result["method"]) if pressure is None else f"{result['method']}@{pressure:g}"


@dataclass(frozen=True)
class PolicyPoint:
    """One policy in the plane of accuracy against tokens, on one set of problems."""

    name: str
    panel: str
    tokens: Estimate
    accuracy: Estimate


def read_points(folder: Path) -> list[PolicyPoint]:
    """The benchmarks of an eval.json, named by the folder. None where the file is not there.

    Raises:
        DataError: a file that `kfh eval` did not write.
    """
    path = folder / EVAL_FILE
    if not path.exists():
        return []
    try:
        return [
            PolicyPoint(
                folder.name, panel, Estimate(**figures["tokens"]), Estimate(**figures["accuracy"])
            )
            for panel, figures in read_object(path)["benchmarks"].items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no evaluation of `kfh eval` ({error!r})") from error


def table(evaluations: Iterable[Evaluation], method: str, decoding: str, value: str) -> np.ndarray:
    """(seed, problem) of one value; seeds in order. (0, 0) where there is no evaluation.

    Raises:
        DataError: evaluations on different numbers of problems.
    """
    chosen = sorted(
        (e for e in evaluations if (e.method, e.decoding) == (method, decoding)),
        key=lambda e: e.seed,
    )
    if not chosen:
        return np.zeros((0, 0))
    if len({len(e.values[value]) for e in chosen}) > 1:
        folders = ", ".join(str(e.folder) for e in chosen)
        raise DataError(f"{folders}: evaluated on different numbers of problems")
    return np.array([e.values[value] for e in chosen])


@dataclass(frozen=True, eq=False)
class Course:
    """One part of the problems along one run, first checkpoint first.

    Args:
        steps: training steps done at each checkpoint.
        sampled: tokens that training has sampled up to there.
        correct: whether each answer is right.
        redundant: tokens of each answer beyond the shortest correct response.
    """

    steps: Int[np.ndarray, "checkpoint"]
    sampled: Float[np.ndarray, "checkpoint"]
    correct: Bool[np.ndarray, "checkpoint problem"]
    redundant: Int[np.ndarray, "checkpoint problem"]

    @property
    def accuracy(self) -> Float[np.ndarray, "checkpoint"]:
        """Share of right answers."""
        return self.correct.mean(axis=1)

    @property
    def length(self) -> Float[np.ndarray, "checkpoint"]:
        """Mean redundant tokens."""
        return self.redundant.mean(axis=1)

    def after(self, start: Course) -> Course:
        """This course with another's checkpoints before it.

        Raises:
            DataError: of other problems.
        """
        if start.correct.shape[1] != self.correct.shape[1]:
            raise DataError("two courses on different problems cannot be joined")
        pairs = ((getattr(start, name), getattr(self, name)) for name in self.__annotations__)
        return Course(*(np.concatenate(pair) for pair in pairs))


def course_rows(
    step: int,
    sampled: float,
    part: str,
    correct: Float[np.ndarray, "problem"],
    tokens: Int[np.ndarray, "problem"],
    shortest: Int[np.ndarray, "problem"],
) -> pd.DataFrame:
    """The rows of one part of the problems at one checkpoint.

    Args:
        step: training steps done.
        sampled: tokens sampled in training up to there.
        part: one of `PARTS`.
        correct, tokens, shortest: of each response, and of the shortest correct one.
    """
    import pandas as pd

    return pd.DataFrame(
        {
            "step": np.int32(step),
            "sampled": sampled,
            "part": part,
            "problem": np.arange(len(tokens), dtype=np.int32),
            "correct": correct.astype(bool),
            "tokens": tokens.astype(np.int32),
            "redundant": (tokens - shortest).astype(np.int32),
        }
    )


def write_course(folder: Path, checkpoints: Sequence[pd.DataFrame]) -> None:
    """Write the rows of all checkpoints to `curve.parquet`, whole or not at all.

    Its columns are step, sampled (tokens sampled in training up to there), part (`PARTS`),
    problem, correct, tokens, and redundant (tokens beyond the shortest correct response).
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(pd.concat(checkpoints, ignore_index=True), preserve_index=False)
    table = table.replace_schema_metadata({HEADER: json.dumps(file_header("course of a run"))})
    with whole_file(folder / CURVE_FILE) as temporary:
        pq.write_table(table, temporary, compression="zstd", **WRITTEN)


def read_course(folder: Path) -> dict[str, Course]:
    """The course of one run, by part of the problems; only reported ones where no others are.

    Raises:
        DataError: there is none, or a damaged one.
    """
    path = folder / CURVE_FILE
    frame = read_columns(path, _ADVICE)
    with damaged(path, _ADVICE):
        rows = {part: frame[frame["part"] == part] for part in PARTS}
        return {part: _course(rows[part]) for part in PARTS if part == PARTS[0] or len(rows[part])}


def _course(rows: pd.DataFrame) -> Course:
    def grid(column: str) -> Any:
        return rows.pivot(index="step", columns="problem", values=column).to_numpy()

    import pandas as pd

    at = rows.groupby("step")["sampled"].first()
    if rows.empty or pd.isna(redundant := grid("redundant")).any():
        raise ValueError("a checkpoint lacks a problem")
    return Course(at.index.to_numpy(), at.to_numpy(), grid("correct").astype(bool), redundant)
