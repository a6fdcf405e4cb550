"""A finished probe, read again: its traces as they were scored, or an error that says why not.

Read the folder of a finished probe again: head table, run file, head set, ranked traces.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from probing.attention.capture import check_heads
from probing.attention.scores import ScoredTrace
from probing.attention.store import ScoreStore
from probing.choices import Head
from probing.errors import DataError
from probing.files.headers import (
    HEADER,
    file_hash,
    file_header,
    json_number,
    whole_file,
    write_json,
)
from probing.headset import HeadSet
from probing.models.identity import ModelCard
from probing.ranking.metrics import RankedTrace
from probing.ranking.rank import ProbeResult as ProbeResult
from probing.traces.file import Trace, read_traces
from probing.traces.source import TraceSource, prepare_traces


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
            ModelError: a head that the model does not have.
        """
        rows = {pair: row for row, pair in enumerate(self.pairs)}
        layers = Counter(layer for layer, _ in rows)
        check_heads(f"{self.folder}: the probed model", layers, heads)
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


def write_result(result: ProbeResult) -> None:
    """Write `sra.parquet`, `heads.json` and `run.json` into the run's folder."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    out = Path(result.config.out)
    table = pa.Table.from_pandas(result.table, preserve_index=False)
    header = json.dumps(file_header("head table", model=result.card.id))
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), HEADER: header})
    with whole_file(out / "sra.parquet") as temporary:
        pq.write_table(table, temporary)
    result.head_set.save(out / "heads.json")
    write_json(out / "run.json", run_json(result))


def run_json(result: ProbeResult) -> dict[str, Any]:
    """The run file: settings, counts, controls, null, ensembles, speed."""
    import torch
    import transformers

    names = [(int(r.layer), int(r.head)) for r in result.table.itertuples()]
    curves = {
        how: [{**point, "added": list(names[point["added"]])} for point in points]
        for how, points in result.curves.items()
    }
    controls = [
        {k: v if isinstance(v, str) else json_number(v) for k, v in row.items()}
        for row in result.controls.to_dict("records")
    ]
    return {
        HEADER: file_header(
            "probe run", torch=torch.__version__, transformers=transformers.__version__
        ),
        "config": result.config.to_json(),
        "model": vars(result.card),
        "counts": result.counts,
        "controls": controls,
        "null": result.null,
        "curves": curves,
        "speed": result.speed,
    }
