"""A finished probe, read again: its traces as they were scored, or an error that says why not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from probing.errors import ConfigError, DataError
from probing.files import HEADER, file_hash
from probing.folder import ProbeFolder
from probing.passes import Head
from probing.prepare import TraceSource, prepare_traces
from probing.scoring import ScoredTrace
from probing.traces import Trace


@dataclass(frozen=True, eq=False)
class FinishedProbe(ProbeFolder):
    """What `kfh probe` left in a folder, with the traces and labels that it was made from.

    `settings` is all that decided the scores.
    """

    settings: dict[str, Any]
    scored: dict[str, ScoredTrace]
    source: TraceSource

    @classmethod
    def load(cls, folder: Path, traces: Path | None = None) -> FinishedProbe:
        """Read a folder, and check it against its traces, labels and phrases.

        Args:
            folder: of a finished probe.
            traces: its trace file, where that has moved.

        Raises:
            DataError: no finished probe, or traces, labels or phrases that are missing or not
                those of the probe.
        """
        plain = ProbeFolder.load(folder)
        if not plain.has_scores:
            raise DataError(
                f"{folder / 'scores.parquet'} is missing: run `kfh probe --out {folder}` again"
            )
        config = plain.run["config"]
        own = ("segmenter", "min_chars", "labels", "keep", "skip_bad", "think_end")
        found = cls(
            folder,
            plain.table,
            plain.run,
            plain.head_set,
            _settings(folder / "scores.parquet"),
            plain.stored_scores,
            TraceSource(plain.trace_file(traces), **{name: config[name] for name in own}),
        )
        found._check_sources()
        return found

    def places(self, heads: Sequence[Head]) -> list[int]:
        """Rows of these heads in the scores.

        Raises:
            ConfigError: a head that the model does not have.
        """
        rows = {pair: row for row, pair in enumerate(self.pairs)}
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

    def longest(self, ids: Sequence[str] | None = None) -> Trace:
        """The trace with most steps; of several the last by id."""
        return max(self.traces(ids), key=lambda trace: (len(trace.steps), trace.id))

    def _check_sources(self) -> None:
        """Raise DataError where labels or phrases are not those of the probe."""
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
            raise DataError(
                f"{self.source.path}: steps were cut by {then}, now by {now}; probe again"
            )


def _settings(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        header = json.loads(pq.read_schema(path).metadata[HEADER.encode()])
        settings: dict[str, Any] = header["settings"]
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the scores of a probe, or damaged ({error!r})") from error
    return settings
