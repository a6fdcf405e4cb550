"""Read the folder of a finished probe again: head table, run file, head set, ranked traces."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from probing.errors import DataError
from probing.files import file_hash
from probing.headset import HeadSet
from probing.models import ModelCard
from probing.ranking import RankedTrace
from probing.scoring import ScoredTrace
from probing.store import ScoreStore
from probing.traces import read_traces


def read_tables(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The head table and the run file of a finished probe.

    Raises:
        DataError: a file is missing or damaged.
    """
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return pd.read_parquet(folder / "sra.parquet"), run
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: no finished probe ({error}); run `kfh probe --out {folder}` first"
        ) from error


@dataclass(frozen=True, eq=False)
class ProbeFolder:
    """A finished probe as it lies on disk.

    `table` has a row a head, in the order of layers and heads.
    """

    folder: Path
    table: pd.DataFrame
    run: dict[str, Any]
    head_set: HeadSet

    @classmethod
    def load(cls, folder: Path) -> ProbeFolder:
        """Read and check.

        Raises:
            DataError: no finished probe, or a damaged one.
        """
        table, run = read_tables(folder)
        missing = [key for key in ("config", "model", "counts", "curves") if key not in run]
        if missing or not {"layer", "head", "sra"} <= set(table):
            raise DataError(f"{folder}: damaged; probe again (missing: {', '.join(missing)})")
        return cls(folder, table, run, HeadSet.load(folder / "heads.json"))

    @property
    def card(self) -> ModelCard:
        """The model that was probed."""
        return ModelCard(**self.run["model"])

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Every head as `(layer, head)`, in the order of the table and of the scores."""
        return [(int(layer), int(head)) for layer, head in self.table[["layer", "head"]].to_numpy()]

    @property
    def ranked(self) -> list[str]:
        """Ids of the traces that were ranked, sorted."""
        counts = self.run["counts"]
        return sorted([*counts["select_traces"], *counts["held_out_traces"]])

    def figures(self, metric: str) -> Float[np.ndarray, "head"]:
        """A metric of each head over all ranked traces.

        Raises:
            DataError: the metric does not exist on these traces.
        """
        values = self.table[metric].to_numpy(float)
        if np.isnan(values).any():
            raise DataError(
                f"{self.folder}: no {metric} figure for every head (no trace has pairs of both "
                "orders); choose another --metric"
            )
        return values

    def problems(self, traces: Path | None = None) -> dict[str, str]:
        """The problem of each trace by id: traces of one problem are no independent draws.

        Args:
            traces: the trace file, where it is no longer at the place that the run file names.

        Raises:
            DataError: the file is not there, or is another one.
        """
        path, config = self.trace_file(traces), self.run["config"]
        found = read_traces(path, skip_bad=config["skip_bad"], think_end=config["think_end"])
        return {trace.id: trace.problem or trace.prompt for trace in found}

    def trace_file(self, traces: Path | None = None) -> Path:
        """The trace file that was probed, checked; errors as in `problems`."""
        path = traces or Path(self.run["config"]["traces"])
        if not path.is_file():
            raise DataError(
                f"{path}: the trace file of the probe in {self.folder} is not there; say with "
                "--traces where it is"
            )
        held = (self.head_set.traces or {}).get("hash")
        if held and file_hash(path) != held:
            raise DataError(f"{path}: not the trace file that {self.folder} was probed on")
        return path

    def ranked_traces(self, problems: dict[str, str] | None = None) -> list[RankedTrace]:
        """The labelled steps of each ranked trace with their scores, as the probe ranked them.

        Args:
            problems: of each trace by id; without it each trace stands for a problem of its own.

        Raises:
            DataError: `scores.parquet` is missing, or does not hold what the run file says.
        """
        if not self.stored_scores:
            raise DataError(
                f"{self.folder / 'scores.parquet'}: no step scores; probe again, or copy the file"
            )
        found = []
        for name in self.ranked:
            if name not in self.stored_scores:
                raise DataError(f"{self.folder}: scores.parquet has no trace {name}; probe again")
            scored, labels = self.stored_scores[name], self._labels[name]
            chosen = (labels != "") & (scored.tokens > 0)
            found.append(
                RankedTrace(
                    name,
                    problems[name] if problems else name,
                    scored.scores[:, chosen],
                    labels[chosen] == "essential",
                    scored.tokens[chosen],
                    scored.base,
                )
            )
        return found

    @property
    def has_scores(self) -> bool:
        """Whether the step scores are there: without them nothing can be resampled."""
        return (self.folder / "scores.parquet").is_file()

    @cached_property
    def stored_scores(self) -> dict[str, ScoredTrace]:
        """Step scores of each trace by id, of all heads."""
        return dict(ScoreStore(self.folder, {}).load())

    @cached_property
    def _labels(self) -> dict[str, np.ndarray]:
        """Labels of the steps of each trace in scores.parquet; empty text where there is none."""
        import pyarrow.parquet as pq

        file = pq.ParquetFile(self.folder / "scores.parquet")
        found = {}
        for number in range(file.num_row_groups):
            group = file.read_row_group(number, columns=["trace", "step", "label"])
            steps = int(group["step"][-1].as_py()) + 1
            rows = group["label"].to_pandas().astype(object).fillna("").to_numpy(str)
            found[str(group["trace"][0].as_py())] = rows.reshape(steps, -1)[:, 0]
        return found
