"""The import: records of a source to a trace file.

1. What the source is: by the fields of its first records, or as the user says.
2. Each record: the responses in it (`Draft`); what is none is counted, with the reason.
3. Each response as a line with one mark, checked as a line of a trace file is; ids made unique.
4. Whether its answer is right: by the source, else against its reference, else unknown.
5. Written whole or not at all: a killed import leaves no half file. What costs, the verdicts, is
   kept beside it on the way (`KeptVerdicts`), so that the next start does not pay for them again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from probing.choices import THINK_END
from probing.errors import DataError
from probing.files.headers import (
    file_hash,
    json_value,
    kfh_version,
    refuse_overwriting,
    text_hash,
)
from probing.files.jsonl import LineStore
from probing.files.reading import BadLine
from probing.formats.drafts import Draft, Render, plain_prompt, trace_line
from probing.formats.known import LOOKED_AT, TRACE, Format, chosen
from probing.formats.mapped import parse_map
from probing.formats.records import STDIN, hub_parts, kind_of_file, source_records
from probing.settings import Progress, check, choice, no_progress
from probing.traces.file import Trace, header_of, trace_of, write_traces
from probing.traces.marks import STYLES, EndMark
from probing.traces.reports import ReadReport

Known = Literal["all", "possible", "known", "correct"]
# (reference, response's answer) → right, wrong, or None: cannot be told.
Verdict = Callable[[str, str], bool | None]
RIGHT, WRONG, UNKNOWN = "right", "wrong", "unknown"


@dataclass(frozen=True)
class ImportConfig:
    """What is imported, and how.

    Raises:
        ConfigError: a value that is no choice, or a map that is none.
    """

    source: str = choice(
        help="File (.jsonl, .json, .parquet; .gz, .zst), folder, -, hub:owner/name@config:split.",
        argument="SOURCE",
    )
    out: Path = choice(Path("traces.jsonl"), "Trace file to write (.gz too).")
    format: str = choice("auto", "What the records are; auto: by their fields.")
    map: tuple[str, ...] = choice(
        (), "field=path, such as answer=output.text or response=choices[].text.", repeat=True
    )
    keep: Known = choice(
        "all",
        "Which: all; all but those known to be wrong; those known to be right or wrong; the "
        "correct ones.",
    )
    think_end: str | None = choice(
        None, f"The mark that ends the reasoning in the file; default {THINK_END}."
    )
    limit: int | None = choice(None, "At most so many records, the first.", least=1)
    tokenizer: str | None = choice(
        None, "The model: its chat template makes prompts of messages; default: plain text."
    )

    def __post_init__(self) -> None:
        """Check what can be known before anything is read."""
        check(self)
        object.__setattr__(self, "out", Path(self.out))
        if self.map:
            parse_map(self.map)

    @property
    def deciding(self) -> dict[str, Any]:
        """What decides the traces, for headers; `hash` is None where there is nothing to hash."""
        return {
            "source": self.source,
            "hash": source_hash(self.source),
            "format": self.format,
            "map": list(self.map),
            "keep": self.keep,
            "think_end": self.think_end,
            "limit": self.limit,
            "tokenizer": self.tokenizer,
        }


@dataclass
class ImportReport:
    """What an import came to; nothing is dropped in silence.

    `verdicts` counts traces by who said that they are right or wrong; `rewritten` responses by the
    mark that stood where the file has its own; `reading` holds the losses, by reason.
    """

    format: str = ""
    records: int = 0
    traces: int = 0
    with_steps: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # by --keep
    verdicts: Counter[str] = field(default_factory=Counter)
    rewritten: Counter[str] = field(default_factory=Counter)
    renamed: int = 0  # whose id another has, too
    reading: ReadReport = field(default_factory=ReadReport)

    def marks(self, think_end: str) -> list[str]:
        """Which marks were rewritten, in sentences."""
        names = {style.end: style.name for style in reversed(STYLES)}
        return [
            f"{count} responses end their reasoning with {mark} ({names.get(mark, 'given')}), "
            f"written as {think_end}; --think-end {mark!r} keeps it"
            for mark, count in self.rewritten.items()
        ]


def source_hash(source: str) -> str | None:
    """The hash of a file, or of those of a folder; None of a stream or a data set of the hub."""
    path = Path(source).expanduser()
    if path.is_file():
        return file_hash(path)
    if not path.is_dir():
        return None
    files = sorted(each for each in path.rglob("*") if each.is_file())
    return text_hash("".join(f"{each.relative_to(path)} {file_hash(each)}\n" for each in files))


def import_traces(
    config: ImportConfig,
    *,
    verdict: Verdict | None = None,
    render: Render = plain_prompt,
    progress: Progress = no_progress,
    show: Callable[[str], object] = lambda text: None,
) -> ImportReport:
    """Write the responses of a source as a trace file.

    Args:
        config: the settings.
        verdict: whether an answer equals its reference, where the source does not say it.
        render: makes a prompt of messages; default: their texts, without a chat template.
        progress: makes progress bars, see `probing.settings`.
        show: is told what the source is read as, before anything is written.

    Raises:
        ConfigError: a library is missing, or `out` is the source.
        DataError: the source cannot be read, no format fits, or no response is a trace.
    """
    refuse_overwriting(config.out, None if config.source == STDIN else config.source)
    found = source_records(config.source)
    if config.limit:
        found = islice(found, config.limit)
    first = list(islice(found, LOOKED_AT))
    paths = parse_map(config.map) if config.map else {}
    kind = chosen(config.format, paths, (record for _, record in first))  # 1
    show(f"read as {kind}")
    report = ImportReport(str(kind))
    with KeptVerdicts(config.out, verdict) as kept, progress("importing", 0) as advance:
        job = _Import(config, kind, kept if verdict else None, render, report)
        traces = job.traces(chain(first, found), advance)
        report.traces = write_traces(config.out, traces, imported=config.deciding)  # 5
    return report


class KeptVerdicts:
    """Verdicts that are on disk beside a trace file until it is finished.

    They are known by the texts compared, so they hold for any import to this file with this
    version of kfh.

    Args:
        out: the trace file; theirs has `.verdicts` behind its name.
        verdict: makes them.
    """

    GROUP = 50  # so many are written at once, and lost at most by a kill

    def __init__(self, out: Path, verdict: Verdict | None) -> None:
        self.path, self.verdict = out.with_name(f"{out.name}.verdicts"), verdict
        self.known: dict[str, bool | None] = {}
        self.fresh: list[dict[str, Any]] = []
        self.store: LineStore | None = None

    def __enter__(self) -> KeptVerdicts:
        """Nothing is read or written before the first verdict."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Keep what there is, or remove it where the file is finished."""
        if kind is None:
            self.path.unlink(missing_ok=True)
        elif self.store:
            self._write()

    def __call__(self, reference: str, answer: str) -> bool | None:
        """The verdict on an answer, made once."""
        assert self.verdict is not None
        if self.store is None:
            self.store = LineStore(self.path, "verdicts")
            there = self.path.exists() and header_of(self.path).get("version") == kfh_version()
            self.store.open(there, self._take)
        key = text_hash(json.dumps([reference, answer]))
        if key not in self.known:
            self.known[key] = self.verdict(reference, answer)
            self.fresh.append({"of": key, "correct": self.known[key]})
            if len(self.fresh) >= self.GROUP:
                self._write()
        return self.known[key]

    def _take(self, row: dict[str, Any]) -> bool:
        self.known[row["of"]] = row["correct"]
        return True

    def _write(self) -> None:
        assert self.store is not None
        self.store.add(self.fresh)
        self.fresh = []


def recognised(source: str) -> Format:
    """What the records of a source are, by the first of them.

    Raises:
        DataError: the source cannot be read, or no format fits.
    """
    return chosen("auto", {}, (record for _, record in islice(source_records(source), LOOKED_AT)))


@dataclass(eq=False)
class _Import:
    """One import: its settings, and the ids so far."""

    config: ImportConfig
    kind: Format
    verdict: Verdict | None
    render: Render
    report: ImportReport
    seen: dict[str, int] = field(default_factory=dict)  # id → hash of the response
    twice: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        source = Path(self.config.source)
        said = EndMark(self.config.think_end or THINK_END)
        if self.kind is TRACE and source.is_file():
            said = EndMark.chosen(header_of(source), self.config.think_end, where=str(source))
        self.mark, self.name = said, _short_name(self.config.source)

    def traces(self, found: Iterable[tuple[str, Any]], advance: Any) -> Iterator[Trace]:
        """The traces that are kept, one by one.

        Raises:
            DataError: there is none.
        """
        kept = 0
        places: dict[int, str] = {}

        def numbered() -> Iterator[tuple[int, Any]]:
            for number, (where, record) in enumerate(found):
                places.clear()  # of this record alone, unless it waits for another
                places[number] = where
                self.report.records += 1
                advance(1, 0)
                yield number, record

        joined = self.kind.joined(numbered()) if self.kind.joined else numbered()
        for number, record in joined:
            where = places.get(number, f"record {number}")
            for draft in self._drafts(record):
                try:
                    if isinstance(draft, BadLine):
                        raise draft
                    trace = self._trace(draft, number)  # 3, 4
                except BadLine as error:
                    self.report.reading.note(error.kind, f"{where}: {error}")
                    continue
                if self._keeps(trace):
                    kept += 1
                    self.report.with_steps += bool(trace.steps)
                    yield trace
        if not kept:
            losses = {**self.report.reading.bad, **self.report.left_out}
            said = ", ".join(f"{count} × {kind}" for kind, count in losses.items())
            first = next(iter(self.report.reading.first_bad.values()), "")
            raise DataError(
                f"{self.config.source}: no trace in it, read as {self.kind} "
                f"({said or 'no record'}){f'; first {first}' if first else ''}"
            )

    def _drafts(self, record: Any) -> Iterator[Draft | BadLine | dict[str, Any]]:
        """The responses of a record, and its losses (step 2)."""
        try:
            if isinstance(record, BadLine):
                raise record
            if self.kind is TRACE:
                yield dict(record)
            else:
                yield from self.kind.read(record)
        except BadLine as error:
            yield error

    def _trace(self, draft: Draft | dict[str, Any], number: int) -> Trace:
        """A response as a checked trace, with a verdict and an id of its own."""
        if isinstance(draft, Draft):
            line, stood = trace_line(draft, self.mark.text, self.render)
            name = draft.id or f"{self.name}/{number}"
            line["id"] = name if draft.number is None else f"{name}/{draft.number}"
            line["source"] = {"record": number, "response": draft.number or 0}
            if stood not in ("", self.mark.text):
                self.report.rewritten[stood] += 1
        else:
            line = draft
        trace = trace_of(json_value(line), self.mark)
        name, gold = self._own_id(trace), line.get("ground_truth")
        correct = self._verdict(trace, gold if isinstance(gold, str) else None)
        return replace(trace, id=name, correct=correct)

    def _verdict(self, trace: Trace, gold: str | None) -> bool | None:
        said = "the source"
        correct = trace.correct
        if correct is None and gold is not None and self.verdict:
            said = "comparison with the reference"
            correct = self.verdict(gold, trace.answer_text())
        if correct is None:
            self.report.verdicts[UNKNOWN] += 1
        else:
            self.report.verdicts[f"{RIGHT if correct else WRONG} by {said}"] += 1
        return correct

    def _own_id(self, trace: Trace) -> str:
        """The id of a trace, changed where an earlier one has it.

        Raises:
            BadLine: that one is the same response.
        """
        name, content = trace.id, hash((trace.prompt, trace.response))
        if self.seen.get(name) == content:
            raise BadLine("the same again", f"the response {name} was there already")
        while name in self.seen:
            self.twice[trace.id] += 1
            name = f"{trace.id}~{self.twice[trace.id] + 1}"
        self.report.renamed += name != trace.id
        self.seen[name] = content
        return name

    def _keeps(self, trace: Trace) -> bool:
        keep = self.config.keep
        if trace.correct is None and keep in ("known", "correct"):
            self.report.left_out["not known to be right or wrong"] += 1
        elif trace.correct is False and keep in ("possible", "correct"):
            self.report.left_out["wrong answer"] += 1
        else:
            return True
        return False


def _short_name(source: str) -> str:
    """What stands before the number of a record without an id."""
    if source == STDIN:
        return "stdin"
    if source.startswith("hub:"):
        return hub_parts(source)[0].rstrip("/").rpartition("/")[2].lower()
    path = Path(source).expanduser()
    name = path.resolve().name
    return name.partition(kind_of_file(path))[0] if kind_of_file(path) else name
