"""A finished probe: one type, whether it comes from memory (`probe()`) or from its folder.

The folder holds `run.json` (settings, counts, controls, ensembles), `sra.parquet` (a row a head),
`heads.json` (the head set) and `scores.parquet` (the scores of all steps). The first two are read
at once. The others, and the traces and labels that the probe was made from, are read and checked
when they are asked for; an error then says which of them is missing or is not that of the probe.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from probing.attention.scores import ScoredTrace
from probing.attention.store import ScoreStore, stored_labels, stored_settings
from probing.choices import METRIC_NAMES, METRICS, Head
from probing.config import ProbeConfig
from probing.errors import DataError
from probing.files.headers import (
    HEADER,
    file_hash,
    file_header,
    json_number,
    whole_file,
    write_json,
)
from probing.files.probes import read_ranking
from probing.files.reading import BadLine, parse_line, text_lines
from probing.files.tables import WRITTEN
from probing.headset import HeadSet
from probing.models.front import check_heads
from probing.models.identity import ModelCard
from probing.ranking.caveats import label_caveats, ranking_caveats
from probing.ranking.metrics import RankedTrace, ReadTraces
from probing.ranking.rank import Ranking
from probing.ranking.select import set_caveats
from probing.traces.file import Trace, read_traces
from probing.traces.source import TraceSource, prepare_traces

BEST = 10  # heads that are shown, beside those of the set


@dataclass(frozen=True, eq=False, kw_only=True)
class ProbeResult(Ranking):
    """A finished probe: its ranking, its settings, and what lies in its folder.

    Args:
        folder: where its files are.
        card: the model that was probed.
        speed: traces, tokens and seconds of the scoring; traces scored before, as `resumed`.
        header: of run.json: versions, command, date.
        moved: its trace file, where that is no longer at the place that the settings name.

    Example:
        >>> result = ProbeResult.load("runs/x")  # doctest: +SKIP
        >>> result.table, result.controls, result.caveats  # doctest: +SKIP
        >>> probing.figures.heatmap(result, "sra")  # doctest: +SKIP
    """

    folder: Path
    card: ModelCard
    speed: dict[str, float] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    moved: Path | None = None

    @classmethod
    def load(cls, folder: str | Path, traces: Path | None = None) -> ProbeResult:
        """Read the folder of a finished probe.

        Args:
            folder: what `kfh probe --out` named.
            traces: its trace file, where that has moved.

        Raises:
            DataError: no finished probe, or a damaged one.
        """
        folder = Path(folder)
        run, config, card, table = read_ranking(folder, ProbeConfig, ModelCard)
        controls = pd.DataFrame(run["controls"]).set_index("control").astype(float).reset_index()
        points = run["curves"][config.select][: config.top]
        caveats = run.get("set_caveats")
        if caveats is None:  # older probes leave it to us
            caveats = set_caveats(controls, table, points, config.answer)
        return cls(
            config=config,
            table=table,
            controls=controls,
            curves=run["curves"],
            chosen=[(int(layer), int(head)) for layer, head in (p["added"] for p in points)],
            set_caveats=caveats,
            scorers=run.get("scorers") or {},
            null=run["null"],
            counts=run["counts"],
            folder=folder,
            card=card,
            speed=run.get("speed") or {},
            header=run.get(HEADER, {}),
            moved=traces,
        )

    def write(self, head_set: HeadSet) -> None:
        """Write `sra.parquet`, `heads.json` and `run.json` into the folder, each whole."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pandas(self.table, preserve_index=False)
        header = json.dumps(file_header("head table", model=self.card.id))
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), HEADER: header})
        with whole_file(self.folder / "sra.parquet") as temporary:
            pq.write_table(table, temporary, **WRITTEN)
        head_set.save(self.folder / "heads.json")
        write_json(self.folder / "run.json", self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The content of run.json: settings, counts, controls, null, ensembles, speed."""
        controls = [
            {name: v if isinstance(v, str) else json_number(v) for name, v in row.items()}
            for row in self.controls.to_dict("records")
        ]
        return {
            HEADER: self.header,
            "config": self.config.to_json(),
            "model": vars(self.card),
            "counts": self.counts,
            "controls": controls,
            "null": self.null,
            "curves": self.curves,
            "set_caveats": self.set_caveats,
            "scorers": self.scorers,
            "speed": self.speed,
        }

    # Heads

    @property
    def pairs(self) -> list[Head]:
        """Every head as `(layer, head)`, in the order of the table and of the scores."""
        return heads_of(self.table)

    @cached_property
    def head_set(self) -> HeadSet:
        """The head set, as `heads.json` has it."""
        return HeadSet.load(self.folder / "heads.json", warn=False)

    def best(self, count: int = BEST, by: str | None = None) -> pd.DataFrame:
        """The rows of the `count` best heads by a metric, best first, and of those of the set."""
        ordered = self.table.sort_values(by or self.config.by, ascending=False, kind="stable")
        ordered = ordered.reset_index(drop=True)
        in_set = [pair in self.chosen for pair in heads_of(ordered)]
        return ordered[(ordered.index < count) | in_set]

    def values(self, metric: str) -> Float[np.ndarray, "head"]:
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

    # What to hold against it

    @property
    def caveats(self) -> list[str]:
        """What is to be held against the figures, in sentences; empty where no rule is broken.

        On the best head, the head set, the traces and the labels: see `probing.ranking.caveats`.
        """
        return [*ranking_caveats(self), *label_caveats(self, self.label_way)]

    @cached_property
    def label_way(self) -> str | None:
        """How the label file was made: ablation, rules, judges; None where it is gone.

        Empty where it does not say, or where the labels are those of the trace file.
        """
        if self.config.labels == "steps":
            return ""
        try:
            _, first = next(text_lines(Path(self.config.labels)))
            header = parse_line(first)[HEADER]
            return str((header.get("settings") or {}).get("by") or header.get("source") or "")
        except (AttributeError, BadLine, KeyError, StopIteration, TypeError):
            return ""
        except DataError:
            return None

    # Traces and their step scores

    @property
    def ranked(self) -> list[str]:
        """Ids of the traces that were ranked, sorted."""
        return sorted([*self.counts["select_traces"], *self.counts["held_out_traces"]])

    @property
    def trace_file(self) -> Path:
        """The trace file that was probed.

        Raises:
            DataError: it is not there, or is another one.
        """
        path = self.moved or Path(self.config.traces)
        if not path.is_file():
            raise DataError(
                f"{path}: the trace file of the probe in {self.folder} is not there; say with "
                "--traces where it is"
            )
        probed = (self.head_set.traces or {}).get("hash")
        if probed and file_hash(path) != probed:
            raise DataError(f"{path}: not the trace file that {self.folder} was probed on")
        return path

    def problems(self) -> dict[str, str]:
        """What the problem of each ranked trace is known by (`Trace.problem_key`), by id.

        Traces of one problem are no independent draws. An older probe does not say it; then the
        trace file does, for all its traces.

        Raises:
            DataError: as for `trace_file`, where it is asked for.
        """
        if self.moved:
            _ = self.trace_file  # what is named must be the probe's
        if known := self.counts.get("problem_of"):
            return dict(known)
        anew = self.config.cutter is not None
        traces = read_traces(self.trace_file, **self.config.reading, anew=anew)
        return {trace.id: trace.problem_key for trace in traces}

    @property
    def has_scores(self) -> bool:
        """Whether the step scores are there: without them nothing can be resampled."""
        return (self.folder / "scores.parquet").is_file()

    @cached_property
    def scored(self) -> Mapping[str, ScoredTrace]:
        """Step scores of each trace by id, of all heads; read when they are asked for.

        Raises:
            DataError: `scores.parquet` is missing or damaged, or what it holds of a trace is.
        """
        if not self.has_scores:
            raise DataError(
                f"{self.folder / 'scores.parquet'} is missing: no step scores; run `kfh probe "
                f"--out {self.folder}` again, or copy the file"
            )
        return ScoreStore(self.folder, {}).load()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that decided the step scores, as `scores.parquet` has it; errors as for `scored`."""
        return stored_settings(self.folder / "scores.parquet")

    def labels(self) -> dict[str, list[str | None]]:
        """Labels of the steps of each scored trace, as it was ranked; errors as for `scored`."""
        return stored_labels(self.folder / "scores.parquet") if self.scored else {}

    def ranked_traces(self, problems: dict[str, str] | None = None) -> Sequence[RankedTrace]:
        """The labelled steps of each ranked trace with their scores, as the probe ranked them.

        Args:
            problems: of each trace by id; without it each trace stands for a problem of its own.

        Returns:
            Read when they are asked for, and again when they are asked for again.

        Raises:
            DataError: as for `scored`; a trace is missing. On reading one: its scores are damaged,
                or of other heads.
        """
        labels = self.labels()
        if lost := [name for name in self.ranked if name not in self.scored]:
            raise DataError(f"{self.folder}: scores.parquet has no trace {lost[0]}; probe again")

        def read(name: str) -> RankedTrace:
            scored = self.scored[name]
            if len(scored.scores) != len(self.table):
                raise DataError(f"{self.folder}: scores.parquet is of other heads; probe again")
            ranked = RankedTrace.of(scored, labels[name], problems[name] if problems else name)
            if not ranked:
                raise DataError(f"{self.folder}: scores.parquet has no trace {name}; probe again")
            return ranked

        return ReadTraces(self.ranked, read)

    @cached_property
    def source(self) -> TraceSource:
        """The traces with steps and labels, checked to be those of the probe.

        Raises:
            DataError: traces, labels or phrases are missing or are others.
        """
        source = replace(self.config, traces=self.trace_file).source
        if source.labels != "steps":
            if not Path(source.labels).is_file():
                raise DataError(f"{source.labels}: the probe's label file is not there")
            if file_hash(Path(source.labels)) != (self.head_set.labels or {}).get("hash"):
                raise DataError(
                    f"{source.labels} is not the label file of the probe (its hash differs); "
                    "probe again: it takes no scoring anew"
                )
        then, now = self.settings["segmenter"], source.segmenter_json()
        if {**then, "phrases": None} != {**now, "phrases": None}:  # the path alone may differ
            raise DataError(f"{source.path}: steps were cut by {then}, now by {now}; probe again")
        return source

    def traces(self, ids: Sequence[str] | None = None) -> Iterator[Trace]:
        """The scored traces with steps and labels, in the order of the file; or those of `ids`.

        Raises:
            DataError: as for `source`; an id that was not scored, or a trace whose steps are not
                those scored.
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
            scored = self.scored.get(trace.id)
            if scored is None or scored.scores.shape != (len(self.table), len(trace.steps)):
                raise DataError(
                    f"{self.folder}: the scores of trace {trace.id} are missing, or of other "
                    "steps or heads; probe again"
                )
            yield trace

    def longest(self, ids: Sequence[str] | None = None) -> Trace:
        """The trace with most steps; of several the last by id. Errors as for `traces`."""
        return max(self.traces(ids), key=lambda trace: (len(trace.steps), trace.id))

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
        scored = self.scored[trace.id]
        ratios: np.ndarray = scored.scores[self.places(heads)].mean(axis=0) / scored.base
        return ratios

    def _repr_html_(self) -> str:
        """For notebooks: the best heads, the controls, and the caveats."""
        metrics = [f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")]
        heads = self.best()[["layer", "head", *metrics, "sra_p", f"{self.config.by}_held_out"]]
        heads.insert(0, "set", ["*" * (pair in self.chosen) for pair in heads_of(heads)])
        parts = [
            f"<p>{html.escape(self.card.describe())}: the best heads by "
            f"{METRIC_NAMES[self.config.by]} on {self.counts['ranked']} traces; * in the set</p>",
            heads.to_html(index=False, float_format="{:.3f}".format),
            self.controls[["control", *metrics]].to_html(
                index=False, float_format="{:.3f}".format, na_rep="–"
            ),
            *(f"<p>Caveat: {html.escape(text)}</p>" for text in self.caveats),
        ]
        return "\n".join(parts)


def heads_of(table: pd.DataFrame) -> list[Head]:
    """The heads of a table's rows, as `(layer, head)`."""
    return [(int(layer), int(head)) for layer, head in table[["layer", "head"]].to_numpy()]
