"""From a trace file to traces ready to be scored: filtered, cut, labelled, every loss counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from probing.choices import (
    EMBEDDED,
    GIVEN,
    LANGUAGES,
    MIN_CHARS,
    POCKET,
    EndAt,
    Keep,
    Offsets,
    Openings,
)
from probing.errors import ConfigError, DataError
from probing.files.headers import data_path, file_hash, text_hash
from probing.settings import check, choice, unknown
from probing.traces.file import Trace, end_mark, header_of, read_traces
from probing.traces.labels import LabelFile, read_labels
from probing.traces.marks import EndMark
from probing.traces.reports import FIRST, ReadReport
from probing.traces.segmenters import Segmenter, SegmentFunction, segment_trace
from probing.traces.text import language_of

STEPS = "Steps and labels"  # panel of the command line
UNLABELLED = "no label in the label file"


@dataclass(frozen=True)
class TraceReading:
    """How a trace file is read; part of the settings of all that read one."""

    _: KW_ONLY
    skip_bad: bool = choice(False, "Leave bad lines out, counted.", panel=STEPS)
    think_end: str | None = choice(
        None,
        "The text that ends the reasoning; default: as the file's header says, else </think>.",
        panel=STEPS,
    )
    think_end_at: EndAt | None = choice(
        None,
        "Which one, where there are several; default: as the header says, else first.",
        panel=STEPS,
    )
    offsets: Offsets = choice(
        "characters", "What the offsets of the file's steps count.", panel=STEPS
    )

    @property
    def reading(self) -> dict[str, Any]:
        """These settings alone, by name."""
        return {item.name: getattr(self, item.name) for item in fields(TraceReading)}


@dataclass(frozen=True)
class StepCutting:
    """How traces are cut into steps. A segmenter's labels are the file's, by their characters."""

    _: KW_ONLY
    segmenter: str | SegmentFunction = choice(
        GIVEN,
        "given: the file's steps; or attnpo, line, sentence, sentencex, paragraph, *.json, "
        "module:name.",
        panel=STEPS,
    )
    min_chars: int = choice(
        MIN_CHARS, "Steps shorter than this are merged (attnpo).", least=0, panel=STEPS
    )
    phrases: str | None = choice(
        None,
        f"Phrases that cut (attnpo): {', '.join(LANGUAGES)} (of each trace its own language), or "
        "*.json; default: the paper's, en.",
        panel=STEPS,
    )
    openings: Openings = choice(
        "strict",
        "Phrases open steps (attnpo) by the paper's rules; loose: behind blanks and list marks, "
        "too, whole words, any apostrophe.",
        panel=STEPS,
    )

    @property
    def cutter(self) -> Segmenter | None:
        """What cuts the steps anew; None: they are the file's.

        Raises:
            ConfigError: there is no such segmenter, or it has no such settings.
        """
        name = self.segmenter
        if self.phrases is not None:
            if name != "attnpo":
                raise ConfigError("--phrases are those of --segmenter attnpo, which cuts at them")
            if self.phrases not in LANGUAGES and not self.phrases.endswith(".json"):
                raise ConfigError(unknown("phrases", self.phrases, [*LANGUAGES, "a file (*.json)"]))
            name = self.phrases
        if name == GIVEN:
            return None
        return Segmenter.parse(name, self.min_chars, self.openings)


@dataclass(frozen=True)
class TraceChoosing:
    """Which traces of a file are used, and whose labels: the paper probes correct ones."""

    _: KW_ONLY
    labels: str = choice(
        "steps",
        "steps: the file's own; a label file; kfh probe: cause, made by the model itself.",
        panel=STEPS,
    )
    keep: Keep = choice("correct", "Which traces: correct answers only, or all.", panel=STEPS)


@dataclass(frozen=True)
class StepSource(TraceReading, StepCutting):
    """A trace file, and how its traces are cut into steps.

    Raises:
        ConfigError: a value that is no choice or out of bounds.
        DataError: there is no such file.
    """

    path: Path = choice(help="Trace file (JSONL, .gz too).", option="--traces")

    def __post_init__(self) -> None:
        """Check that the file is there."""
        check(self)
        object.__setattr__(self, "path", trace_path(self.path))
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such trace file")

    @property
    def rule(self) -> str:
        """How steps take tokens: given spans by overlap, tiles by where they start."""
        return "overlap" if self.segmenter == GIVEN else "start"

    @property
    def mark(self) -> EndMark:
        """What ends the reasoning of these traces.

        Raises:
            ConfigError: what is given contradicts the header of the file, whose steps are used.
        """
        return end_mark(
            self.path,
            header_of(self.path),
            think_end=self.think_end,
            think_end_at=self.think_end_at,
            anew=self.segmenter != GIVEN,
        )

    def segmenter_json(self) -> dict[str, Any]:
        """The segmenter as it stands in headers and head sets."""
        return self.cutter.to_json() if self.cutter else {"name": GIVEN}

    def settings(self) -> dict[str, Any]:
        """What of the traces decides a result made of them, for going on with it."""
        return {
            "traces": file_hash(self.path),
            "segmenter": self.segmenter_json(),
            "rule": self.rule,
            "think_end": self.mark.text,
            **({} if self.mark.at == "first" else {"think_end_at": self.mark.at}),
            **({} if self.offsets == "characters" else {"offsets": self.offsets}),
        }

    def traces(self, report: ReadReport | None = None) -> Iterator[Trace]:
        """The traces with their steps, wrong answers and traces without a step included.

        `report` counts them, and what the cut did where they are cut anew.
        """
        report = report if report is not None else ReadReport()
        cutter = self.cutter
        report.cut.segmenter = cutter.to_json() if cutter else None
        for trace in read_traces(self.path, **self.reading, anew=bool(cutter), report=report):
            if cutter:
                trace = segment_trace(trace, cutter)
                other = other_language(trace, cutter) if len(trace.steps) == 1 else None
                report.cut.add([step.kind for step in trace.steps], other)
            yield trace


def other_language(trace: Trace, cutter: Segmenter) -> str | None:
    """The language of a trace, where it is not that of the phrases that should cut it."""
    if cutter.name != "attnpo" or cutter.phrases == "auto":
        return None
    reasoning = trace.response[: trace.reasoning_end]
    language = language_of(reasoning)
    return None if cutter.phrases_of(reasoning).language in (None, language) else language


@dataclass(frozen=True, eq=False)
class TraceList:
    """Traces in memory, to be used like a `StepSource`.

    Args:
        given: the traces with their steps.
        rule: how steps take tokens: `overlap` or `start`.
    """

    given: Sequence[Trace]
    rule: str = "overlap"
    path: None = None

    def settings(self) -> dict[str, Any]:
        """What of the traces decides a result made of them, for going on with it."""
        content = json.dumps([asdict(trace) for trace in self.given], sort_keys=True, default=str)
        return {"traces": text_hash(content), "segmenter": {"name": GIVEN}, "rule": self.rule}

    def traces(self, report: ReadReport | None = None) -> Iterator[Trace]:
        """The traces, one by one; `report` counts them."""
        for trace in self.given:
            if report:
                report.read += 1
            yield trace


@dataclass(frozen=True)
class TraceSource(StepSource, TraceChoosing):
    """The traces of a probe: their steps, whose labels, and which of them."""

    def label_file(self, report: ReadReport | None = None) -> LabelFile | None:
        """The label file; None for the trace file's own labels. `report` counts its bad lines.

        Raises:
            ConfigError: it labels the steps of another segmenter.
            DataError: it cannot be read.
        """
        if self.labels == "steps":
            return None
        if self.labels == "cause" and not Path(self.labels).exists():
            raise ConfigError(
                "--labels cause is for kfh probe; make the labels with kfh label "
                "(probing.label_by_cause), and name their file"
            )
        found = read_labels(Path(self.labels), skip_bad=self.skip_bad, report=report)
        theirs, ours = found.segmenter or {}, self.segmenter_json()
        # The path of a phrase file may differ; its hash may not.
        strict = {"openings": "strict"} if theirs else {}
        theirs, ours = {**strict, **theirs}, {**strict, **ours}
        for key in ("name", "min_chars", "phrases_hash", "hash", "openings"):
            if theirs.get(key) is not None and theirs[key] != ours.get(key):
                raise ConfigError(
                    f"{self.labels} labels the steps of the segmenter {theirs.get('name')!r} with "
                    f"{key} {theirs[key]!r}; here {key} is {ours.get(key)!r} (--segmenter "
                    f"{self.segmenter})"
                )
        if found.mark is not None and found.mark != self.mark:
            raise ConfigError(
                f"{self.labels} labels steps before the {found.mark.at} {found.mark.text}; here "
                f"the reasoning ends at the {self.mark.at} {self.mark.text} (--think-end, "
                "--think-end-at)"
            )
        return found

    def label_json(self) -> dict[str, Any]:
        """Where the labels come from, for headers and head sets."""
        if self.labels == "steps":
            return {"source": "steps"}
        return {"source": self.labels, "hash": file_hash(Path(self.labels))}


@dataclass
class SourceReport:
    """What became of the lines of a trace file; nothing is dropped in silence."""

    reading: ReadReport = field(default_factory=ReadReport)
    used: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    beyond_context: int = 0  # traces longer than the model was made for; they are used
    labels: str = "steps"  # the label file, or the traces' own
    unlabelled: set[str] = field(default_factory=set)  # ids that the label file lacks
    without_trace: list[str] = field(default_factory=list)  # ids that the label file alone has
    as_sampled: int = 0  # traces scored on the very ids that were sampled
    other_tokenizer: int = 0  # traces whose ids are another tokenizer's: tokenised anew

    def remarks(self) -> list[str]:
        """What is odd about traces and labels that are used, in sentences."""
        said = self.reading.remarks() if self.reading.remarked else []
        if self.without_trace:
            said.append(
                f"{self.labels} labels {len(self.without_trace)} traces that are not there, such "
                f"as {', '.join(self.without_trace[:FIRST])}"
            )
        return said

    def to_json(self) -> dict[str, Any]:
        """Counts for the run file."""
        reading = self.reading
        return {
            "read": reading.read,
            "bad_lines": dict(reading.bad),
            "first_bad_lines": reading.first_bad,
            "remarks": self.remarks(),
            **({"cut": reading.cut.to_json()} if reading.cut.sizes else {}),
            "used": self.used,
            "left_out": dict(self.left_out),
            "steps": dict(self.steps),
            "beyond_context": self.beyond_context,
            "as_sampled": self.as_sampled,
            "other_tokenizer": self.other_tokenizer,
        }


def prepare_traces(source: TraceSource, report: SourceReport | None = None) -> Iterator[Trace]:
    """Stream the traces of a source with their final steps and labels.

    Left out and counted: wrong answers (`keep="correct"`), traces without a step, those that the
    label file does not know, and those that have not both an essential and a redundant step.

    Raises:
        DataError: a bad line (without `skip_bad`), or no trace that can be ranked.
    """
    report = report if report is not None else SourceReport()
    for ready in cut_traces(source, report):
        found = {step.label for step in ready.steps}
        if not {"essential", "redundant"} <= found:
            if not ready.steps:
                reason = "no steps"
            elif ready.id in report.unlabelled:
                reason = UNLABELLED
            else:
                reason = "labels of one kind only, or none"
            report.left_out[reason] += 1
            continue
        report.used += 1
        report.steps.update(step.label or "unlabelled" for step in ready.steps)
        yield ready
    if not report.used:
        reasons = ", ".join(f"{n} {why}" for why, n in report.left_out.items()) or "none read"
        raise DataError(
            f"{source.path}: no trace can be ranked ({reasons}). Ranking needs correct traces "
            "whose steps are labelled essential and redundant; see --keep and --labels."
            + "".join(f" {text}." for text in report.remarks())
        )


def cut_traces(source: TraceSource, report: SourceReport) -> Iterator[Trace]:
    """Stream the traces of a source with their final steps and labels, labelled or not.

    Wrong answers (`keep="correct"`) are left out and counted; so are, once all traces are read,
    ids of a label file that no trace has.

    Raises:
        DataError: a bad line (without `skip_bad`).
    """
    labels, report.labels = source.label_file(report.reading), source.labels
    unseen = dict.fromkeys(labels.labels) if labels else {}
    for trace in source.traces(report.reading):
        if labels and trace.id not in unseen:
            report.unlabelled.add(trace.id)
        unseen.pop(trace.id, None)
        if source.keep == "correct" and trace.correct is False:
            report.left_out["wrong answer"] += 1
            continue
        yield labels.apply(trace) if labels else trace
    report.without_trace = list(unseen)


def pocket_traces(name: str = POCKET) -> Path:
    """The labelled traces that were sampled from an embedded model."""
    return data_path(name, "traces.jsonl")


def trace_path(name: Path | str) -> Path:
    """The trace file of this path; `pocket`, `pocket-long`: of the embedded model."""
    return pocket_traces(str(name)) if str(name) in EMBEDDED else Path(name)


def step_counts(source: StepSource | TraceList, report: ReadReport) -> dict[str, int]:
    """Number of steps of every trace that has one, after all traces were checked.

    `report` counts what was left out, traces without a step among it.

    Raises:
        DataError: a bad line, or no trace with a step.
    """
    counts = {trace.id: len(trace.steps) for trace in source.traces(report)}
    sizes = {trace_id: steps for trace_id, steps in counts.items() if steps}
    if not sizes:
        where = source.path or "the traces"
        raise DataError(f"{where}: no trace has steps; cut them with --segmenter attnpo")
    for trace_id in counts.keys() - sizes.keys():
        report.note("trace without a step", f"trace {trace_id}")
    return sizes
