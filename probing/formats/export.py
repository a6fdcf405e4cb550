"""The way back: labels and scores of steps in tables, in the source's own records, for trainers.

1. The traces with steps and labels: of a trace file, or of a finished probe with its step scores.
2. Rows of the form that is asked for; what does not fit it is left out, and counted.
3. Written as Parquet, JSON lines or CSV, whole or not at all.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probing.errors import ConfigError, DataError
from probing.files.headers import HEADER, json_number, kind_of, refuse_overwriting, whole_file
from probing.files.reading import BadLine
from probing.files.tables import WRITTEN
from probing.formats.job import source_hash
from probing.formats.records import source_records
from probing.settings import check, choice
from probing.traces.file import Trace, header_of
from probing.traces.source import (
    SourceReport,
    StepCutting,
    TraceChoosing,
    TraceReading,
    TraceSource,
    cut_traces,
    trace_path,
)

if TYPE_CHECKING:
    from probing.folder import ProbeResult

Form = Literal["steps", "traces", "records", "trl"]
Row = dict[str, Any]
Scored = tuple[Trace, "list[float | None] | None"]  # a trace; a score a step, where there is one
GROUP = 1000  # rows of a row group
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".csv")


@dataclass(frozen=True)
class ExportConfig(TraceReading, StepCutting, TraceChoosing):
    """What is exported, and in which form. Of a probe's folder its own traces and labels count.

    Raises:
        ConfigError: a value that is no choice.
    """

    path: Path = choice(help="A probe's folder, or a trace file.", argument="FOLDER|TRACES")
    out: Path = choice(Path("steps.parquet"), f"File to write: {', '.join(SUFFIXES)}.")
    to: Form = choice(
        "steps",
        "A row a step; a row a trace (Hugging Face datasets); the source's records with a column "
        "more; TRL's stepwise supervision.",
    )
    source: str | None = choice(
        None, "With --to records: the source, where it is not where it was imported from."
    )

    def __post_init__(self) -> None:
        """Check what can be known before anything is read."""
        check(self)
        for name in ("path", "out"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        if not self.out.name.endswith(SUFFIXES):
            raise ConfigError(f"{self.out}: write {', '.join(SUFFIXES)}")
        if self.out.suffix == ".csv" and self.to != "steps":
            raise ConfigError(f"--to {self.to} has lists in its rows: write Parquet or JSON lines")

    @property
    def traces(self) -> TraceSource:
        """The trace file and how it is read."""
        parts = (TraceReading, StepCutting, TraceChoosing)
        names = [name for part in parts for name in part.__dataclass_fields__]
        return TraceSource(trace_path(self.path), **{name: getattr(self, name) for name in names})


@dataclass
class ExportReport:
    """What an export came to: rows, and what was left out, by reason."""

    rows: int = 0
    traces: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    source: SourceReport | None = None


def export(config: ExportConfig) -> ExportReport:
    """Write labels and scores of steps in a form of others.

    Raises:
        ConfigError: the source is not the one that was imported, or would be overwritten.
        DataError: traces, scores or the source are missing or damaged, or there is no row.
    """
    from probing.folder import ProbeResult  # pandas and torch are not loaded for the settings

    report = ExportReport()
    result = ProbeResult.load(config.path) if "probe" in kind_of(config.path) else None
    if result is None and config.path.is_dir():
        raise DataError(f"{config.path}: no finished probe; give its folder, or a trace file")
    file = result.trace_file if result else config.traces.path
    refuse_overwriting(config.out, file, config.source)
    scored = probed(result) if result else given(config, report)  # 1
    forms: dict[str, Callable[..., Iterator[Row]]] = {
        "steps": step_rows,
        "traces": trace_rows,
        "trl": trl_rows,
    }
    if config.to == "records":
        about = header_of(file).get("imported")
        rows = record_rows(scored, report, about, config.source, str(file))
    else:
        rows = forms[config.to](scored, report)  # 2
    report.rows = write_rows(config.out, rows)  # 3
    return report


def probed(result: ProbeResult) -> Iterator[Scored]:
    """The traces of a probe, with S_k/S_base of each step by the mean of its head set (no unit)."""
    heads = result.head_set.pairs
    for trace in result.traces():
        yield trace, [json_number(value) for value in result.ratios(trace, heads)]


def given(config: ExportConfig, report: ExportReport) -> Iterator[Scored]:
    """The traces of a trace file, labelled or not; `report` counts what is left out of it."""
    report.source = SourceReport()
    for trace in cut_traces(config.traces, report.source):
        yield trace, None


def steps_json(trace: Trace, scores: list[float | None] | None) -> list[Row]:
    """The steps of a trace: place, kind, label, the label's score (nats by cause), heads' score."""
    return [
        {
            "start": step.start,
            "end": step.end,
            "kind": step.kind,
            "label": step.label,
            "label_score": _number(step.extra.get("score")),
            "head_score": scores[number] if scores else None,
        }
        for number, step in enumerate(trace.steps)
    ]


def _number(value: Any) -> float | None:
    return json_number(value) if type(value) in (int, float) else None


def step_rows(traces: Iterable[Scored], report: ExportReport) -> Iterator[Row]:
    """A row a step, with its text; for a data frame `pandas.DataFrame(step_rows(…))`."""
    for trace, scores in traces:
        report.traces += 1
        if not trace.steps:
            report.left_out["no steps"] += 1
        for number, step in enumerate(steps_json(trace, scores)):
            text = trace.response[step["start"] : step["end"]]
            about = {"id": trace.id, "problem": trace.problem, "correct": trace.correct}
            yield {**about, "step": number, **step, "text": text}


def trace_rows(traces: Iterable[Scored], report: ExportReport) -> Iterator[Row]:
    """A row a trace, its steps as a list of objects: what `datasets` reads from Parquet."""
    for trace, scores in traces:
        report.traces += 1
        yield {
            "id": trace.id,
            "prompt": trace.prompt,
            "response": trace.response,
            "problem": trace.problem,
            "correct": trace.correct,
            "steps": [
                {**step, "text": trace.response[step["start"] : step["end"]]}
                for step in steps_json(trace, scores)
            ],
        }


def trl_rows(traces: Iterable[Scored], report: ExportReport) -> Iterator[Row]:
    """TRL's stepwise supervision: `prompt`, `completions[]` and `labels[]`, true for essential.

    The form is that of TRL's page on dataset formats. A step without a label goes to the one
    before it; traces whose first step has none, or that have none at all, are left out.
    """
    for trace, _ in traces:
        spans: list[list[int]] = []
        labels: list[bool] = []
        for step in trace.steps:
            if step.label is not None:
                spans.append([step.start, step.end])
                labels.append(step.label == "essential")
            elif not spans:
                break
            spans[-1][1] = step.end
        if not spans:
            report.left_out["no label on the first step"] += 1
            continue
        report.traces += 1
        texts = [trace.response[start:end] for start, end in spans]
        yield {"prompt": trace.prompt, "completions": texts, "labels": labels}


def record_rows(
    traces: Iterable[Scored],
    report: ExportReport,
    imported: Any,
    source: str | None,
    file: str,
) -> Iterator[Row]:
    """The records of the source, each with `kfh`: id, verdict and steps of its responses.

    Args:
        traces: those that were imported from it.
        report: counts.
        imported: what the header of the trace file says of the import.
        source: where it is now; None: where it was.
        file: the trace file, for messages.

    Raises:
        ConfigError: the source is another than was imported.
        DataError: the traces were not imported.
    """
    if not isinstance(imported, Mapping) or not isinstance(imported.get("source"), str):
        raise DataError(f"{file}: was not made by kfh import, so that no records belong to it")
    source = source or imported["source"]
    if (now := source_hash(source)) is None and imported.get("hash"):
        raise DataError(f"{source}: no such file or folder; say with --source where it is")
    if now != imported.get("hash"):
        raise ConfigError(f"{source} is not what {file} was imported from: its hash differs")
    found: dict[int, list[Row]] = {}
    for trace, scores in traces:
        place = trace.extra.get("source")
        number = place.get("record") if isinstance(place, Mapping) else None
        if not isinstance(place, Mapping) or type(number) is not int:
            report.left_out["no place in the source"] += 1
            continue
        report.traces += 1
        about = {"response": place.get("response"), "id": trace.id, "correct": trace.correct}
        found.setdefault(number, []).append({**about, "steps": steps_json(trace, scores)})
    for number, (_, record) in enumerate(source_records(source)):
        if isinstance(record, BadLine):
            report.left_out["record that cannot be read"] += 1
            continue
        yield {**record, HEADER: found.get(number, [])}


def write_rows(path: Path, rows: Iterator[Row]) -> int:
    """Write rows by the suffix of the file; return their number.

    Raises:
        DataError: there is none, or Parquet cannot hold them.
    """
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path}: no row to write: no trace has what this form needs")
    rows, count = chain([first], rows), 0
    with whole_file(path) as temporary:
        if path.suffix == ".parquet":
            return _parquet(temporary, rows)
        opened: Any = gzip.open if path.suffix == ".gz" else open
        with opened(temporary, "wt", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(first)) if path.suffix == ".csv" else None
            if table:
                table.writeheader()
            for count, row in enumerate(rows, 1):  # noqa: B007  # the last one is their number
                if table:
                    table.writerow(row)
                else:
                    file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    return count


def _parquet(path: Path, rows: Iterator[Row]) -> int:
    """Rows in groups of 1,000, all with the columns that the first group has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count, writer = 0, None
    try:
        while group := list(islice(rows, GROUP)):
            table = pa.Table.from_pylist(group, writer.schema if writer else _schema(group))
            writer = writer or pq.ParquetWriter(path, table.schema, **WRITTEN)
            writer.write_table(table)
            count += len(group)
    except (pa.ArrowException, TypeError) as error:
        raise DataError(f"rows of different forms ({error!s:.200}): write JSON lines") from error
    finally:
        if writer:
            writer.close()
    return count


def _schema(group: list[Row]) -> Any:
    """The columns of a group; a column that is null in all of it holds what ours hold."""
    import pyarrow as pa

    step: Any = {"start": 0, "end": 0, "kind": "", "label": "", "label_score": 0.0}
    step |= {"head_score": 0.0, "text": ""}
    ours = {"problem": "", "correct": True, **step}
    table = pa.Table.from_pylist(group)
    for place, entry in enumerate(table.schema):
        if pa.types.is_null(entry.type) and entry.name in ours:
            kind = pa.array([ours[entry.name]]).type
            table = table.set_column(place, entry.name, pa.nulls(len(table), kind))
    schema = table.schema
    if "steps" in schema.names and schema.field("steps").type != pa.null():
        names = [n for n in step if any(n in s for row in group for s in row["steps"])]
        kind = pa.list_(pa.array([{n: step[n] for n in names}]).type)
        schema = schema.set(schema.get_field_index("steps"), pa.field("steps", kind))
    return schema
