"""A finished probe, read again: its traces as they were scored, or an error that says why not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from probing.errors import ConfigError, DataError
from probing.files import HEADER, file_hash
from probing.headset import HeadSet
from probing.passes import Head
from probing.prepare import TraceSource, prepare_traces
from probing.scoring import ScoredTrace
from probing.store import ScoreStore
from probing.traces import Trace


@dataclass(frozen=True, eq=False)
class FinishedProbe:
    """What `kfh probe` left in a folder, checked against the files that it was made from."""

    folder: Path
    run: dict[str, Any]  # run.json
    table: pd.DataFrame  # sra.parquet
    head_set: HeadSet
    settings: dict[str, Any]  # all that decided the scores
    scored: dict[str, ScoredTrace]
    source: TraceSource

    @classmethod
    def load(cls, folder: Path, traces: Path | None = None) -> FinishedProbe:
        """Read a folder.

        Args:
            folder: of a finished probe.
            traces: its trace file, where that has moved.

        Raises:
            DataError: no finished probe, or traces, labels or phrases that are missing or not
                those of the probe.
        """
        from probing.figures import RunFigures

        figures = RunFigures.load(folder)
        scores = folder / "scores.parquet"
        if not scores.is_file():
            raise DataError(f"{scores} is missing: run `kfh probe --out {folder}` again")
        found = cls(
            folder,
            figures.run,
            figures.table,
            HeadSet.load(folder / "heads.json"),
            _settings(scores),
            ScoreStore(folder, {}).load(),
            _source(folder, figures.run["config"], traces),
        )
        found._check_sources()
        return found

    @cached_property
    def heads(self) -> list[Head]:
        """All heads, in the order of the scores' rows."""
        return [
            (int(layer), int(head))
            for layer, head in zip(self.table["layer"], self.table["head"], strict=True)
        ]

    def places(self, heads: Sequence[Head]) -> list[int]:
        """Rows of these heads in the scores.

        Raises:
            ConfigError: a head that the model does not have.
        """
        rows = {pair: row for row, pair in enumerate(self.heads)}
        for layer, head in heads:
            if (layer, head) not in rows:
                raise ConfigError(f"{self.folder}: the probed model has no head {layer}.{head}")
        return [rows[pair] for pair in heads]

    def ratios(self, trace: Trace, heads: Sequence[Head]) -> Float[np.ndarray, "step"]:
        """S_k / S_base of a trace's steps by the mean of these heads (no unit)."""
        own = self.scored[trace.id]
        ratios: np.ndarray = own.scores[self.places(heads)].mean(axis=0) / own.base
        return ratios

    def traces(self, ids: Sequence[str] | None = None) -> Iterator[Trace]:
        """The scored traces with steps and labels, in the order of the file; or those of `ids`.

        Raises:
            DataError: an id that was not scored, or a trace whose steps are not those scored.
        """
        unknown = sorted(set(ids or ()) - set(self.scored))
        if unknown:
            raise DataError(
                f"{self.folder}: no scores of trace {', '.join(unknown)}; scored are "
                f"{len(self.scored)}, such as {', '.join(list(self.scored)[:3])}"
            )
        for trace in prepare_traces(self.source):
            if ids is not None and trace.id not in ids:
                continue
            own = self.scored.get(trace.id)
            if own is None or own.scores.shape != (len(self.table), len(trace.steps)):
                raise DataError(
                    f"{self.folder}: the scores of trace {trace.id} are missing, or of other "
                    "steps or heads; probe again"
                )
            yield trace

    def _check_sources(self) -> None:
        """Raise DataError where the trace file, labels or phrases are not those of the probe."""
        path = self.source.path
        if file_hash(path) != self.settings["traces"]:
            raise DataError(
                f"{path} is not the file that was probed (its hash differs): steps would not "
                "match their scores. Give the file itself with --traces, or probe again"
            )
        labels = self.head_set.labels or {}
        if self.source.labels != "steps":
            if not Path(self.source.labels).is_file():
                raise DataError(f"{self.source.labels}: the probe's label file is not there")
            if file_hash(Path(self.source.labels)) != labels.get("hash"):
                raise DataError(
                    f"{self.source.labels} is not the label file of the probe (its hash differs); "
                    "probe again: it takes no scoring anew"
                )
        then, now = self.settings["segmenter"], self.source.segmenter_json()
        if {**then, "phrases": None} != {**now, "phrases": None}:  # the path alone may differ
            raise DataError(f"{path}: steps were cut by {then}, now by {now}; probe again")


def _settings(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        header = json.loads(pq.read_schema(path).metadata[HEADER.encode()])
        settings: dict[str, Any] = header["settings"]
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the scores of a probe, or damaged ({error!r})") from error
    return settings


def _source(folder: Path, config: dict[str, Any], traces: Path | None) -> TraceSource:
    path = traces or Path(config["traces"])
    if not path.is_file():
        raise DataError(
            f"{path}: the trace file of {folder} is not there; say where it is with --traces"
        )
    names = ("segmenter", "min_chars", "labels", "keep", "skip_bad", "think_end")
    return TraceSource(path, **{name: config[name] for name in names})
