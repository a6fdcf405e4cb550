"""The course of a run: what its policy answers at each checkpoint, a row a problem.

`curve.parquet` has the columns step, sampled (tokens sampled in training up to there), part
(`reported`, `validation`), problem, correct, tokens and redundant (tokens beyond the shortest
correct response).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from probing.errors import DataError
from probing.files.headers import HEADER, file_header, whole_file
from probing.files.tables import WRITTEN, damaged, read_columns

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

CURVE_FILE = "curve.parquet"
PARTS = ("reported", "validation")
_ADVICE = "remove it and result.json, and measure the run again"


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
    correct: Float[np.ndarray, "problem"],
    tokens: Float[np.ndarray, "problem"],
    shortest: Int[np.ndarray, "problem"],
    reported: int,
) -> pd.DataFrame:
    """The rows of one checkpoint.

    Args:
        step: training steps done.
        sampled: tokens sampled in training up to there.
        correct, tokens, shortest: of each problem; those of the validation come last.
        reported: how many come first.
    """
    part = np.where(np.arange(len(tokens)) < reported, *PARTS)
    return pd.DataFrame(
        {
            "step": np.int32(step),
            "sampled": sampled,
            "part": pd.Categorical(part, PARTS),
            "problem": np.arange(len(tokens), dtype=np.int32),
            "correct": correct.astype(bool),
            "tokens": tokens.astype(np.int32),
            "redundant": (tokens - shortest).astype(np.int32),
        }
    )


def write_course(folder: Path, checkpoints: Sequence[pd.DataFrame]) -> None:
    """Write the rows of all checkpoints, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(pd.concat(checkpoints, ignore_index=True), preserve_index=False)
    table = table.replace_schema_metadata({HEADER: json.dumps(file_header("course of a run"))})
    with whole_file(folder / CURVE_FILE) as temporary:
        pq.write_table(table, temporary, compression="zstd", **WRITTEN)


def read_course(folder: Path) -> dict[str, Course]:
    """The course of one run, by part of the problems.

    Raises:
        DataError: there is none, or a damaged one.
    """
    path = folder / CURVE_FILE
    frame = read_columns(path, _ADVICE)
    with damaged(path, _ADVICE):
        return {part: _course(frame[frame["part"] == part]) for part in PARTS}


def _course(rows: pd.DataFrame) -> Course:
    def grid(column: str) -> Any:
        return rows.pivot(index="step", columns="problem", values=column).to_numpy()

    at = rows.groupby("step")["sampled"].first()
    if rows.empty or pd.isna(redundant := grid("redundant")).any():
        raise ValueError("a checkpoint lacks a problem")
    return Course(at.index.to_numpy(), at.to_numpy(), grid("correct").astype(bool), redundant)
