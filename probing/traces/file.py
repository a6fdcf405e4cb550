"""Traces: one line of JSON for one sampled response, its steps and their labels.

A line holds `id`, `prompt` (the exact text given to the model) and `response` (the reasoning,
`</think>`, the final answer); and, where known, `model`, `problem`, `ground_truth`, `correct`
and `steps`. Fields that kfh does not know survive a round trip.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from probing.choices import LABELS, THINK_END
from probing.errors import DataError
from probing.files.headers import HEADER, file_header, normal_text, problem_hash, whole_file
from probing.files.reading import BadLine, line_id, parse_line, text_lines

TOKEN_IDS = "token_ids"  # the field with the ids as sampled
MOST_IDS = 2**31  # no vocabulary is larger


@dataclass(frozen=True)
class Step:
    """A span of the reasoning: characters `start` to `end` (half open) of the response."""

    start: int
    end: int
    label: str | None = None  # essential, redundant, or None: left out of the ranking
    kind: str | None = None  # of the phrase that opens it, where a segmenter made it
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The step as it stands in a trace line."""
        kind = {} if self.kind is None else {"kind": self.kind}
        return {"start": self.start, "end": self.end, "label": self.label, **kind, **self.extra}


@dataclass(frozen=True)
class Trace:
    """One response of a model, with the place where its reasoning ends."""

    id: str
    prompt: str
    response: str
    steps: tuple[Step, ...] = ()
    correct: bool | None = None
    problem: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # every other field of the line
    think_end: str = THINK_END

    @property
    def reasoning_end(self) -> int:
        """Character of the response at which the end marker starts."""
        return self.response.index(self.think_end)

    @property
    def answer_start(self) -> int:
        """Character of the response at which the final answer starts."""
        return self.reasoning_end + len(self.think_end)

    @property
    def problem_key(self) -> str:
        """The hash of its problem; of its prompt, where the file names no problem."""
        return problem_hash(self.problem or self.prompt)

    @property
    def problem_marks(self) -> set[str]:
        """All that its problem can be known by: the hashes of problem and prompt.

        A file that has lost its field `problem` is known by the prompt. A prompt that does not
        hold the problem that the file names (the same for all, say) tells nothing, and is left out.
        """
        prompt, problem = normal_text(self.prompt), normal_text(self.problem or "")
        return {problem_hash(text) for text in {problem, prompt} if text and problem in text}

    def with_steps(self, steps: Iterable[Step], **extra: Any) -> Trace:
        """The same trace with other steps (and extra fields added)."""
        return replace(self, steps=tuple(steps), extra={**self.extra, **extra})

    def to_json(self) -> dict[str, Any]:
        """The trace as a line of a trace file."""
        known = {"id": self.id, "prompt": self.prompt, "response": self.response}
        optional = {"problem": self.problem, "correct": self.correct}
        line = {**known, **{k: v for k, v in optional.items() if v is not None}, **self.extra}
        return {**line, "steps": [step.to_json() for step in self.steps]}


FIRST = 3  # messages of a kind that are kept


@dataclass
class ReadReport:
    """What a reader saw: lines used, and lines left out by reason."""

    read: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    first_bad: dict[str, str] = field(default_factory=dict)

    def note(self, kind: str, message: str) -> None:
        """Count a line left out, and keep the first messages of its kind."""
        self.bad[kind] += 1
        if self.bad[kind] <= FIRST:
            before = f"{self.first_bad[kind]}; " if kind in self.first_bad else ""
            self.first_bad[kind] = before + message

    def bad_json(self) -> dict[str, Any]:
        """The bad lines as they stand in a header; empty where there is none."""
        return {"bad_lines": dict(self.bad), "first_bad_lines": self.first_bad} if self.bad else {}

    def bad_line(self, error: BadLine, where: str, skip: bool) -> None:
        """Count a bad line, or refuse it.

        Args:
            error: what is wrong with it.
            where: file, line and what else names it.
            skip: whether the reader goes on after it.

        Raises:
            DataError: it does not.
        """
        if not skip:
            raise DataError(f"{where}: {error}. Mend it, or pass --skip-bad.") from error
        self.note(error.kind, f"{where}: {error}")


def _typed(line: dict[str, Any], name: str, kind: type, required: bool) -> Any:
    value = line.get(name)
    if value is None:
        if required:
            raise BadLine("missing field", f"the field {name!r} is missing")
        return None
    if not isinstance(value, kind):
        raise BadLine("wrong type", f"{name!r} must be {kind.__name__}, is {value!r:.40}")
    return value


def _parse_steps(items: list[Any], reasoning_end: int) -> tuple[Step, ...]:
    steps: list[Step] = []
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise BadLine("wrong type", f"step {number} must be an object, is {item!r:.40}")
        start, end = item.get("start"), item.get("end")
        if type(start) is not int or type(end) is not int:
            raise BadLine("missing field", f"step {number} needs whole numbers start and end")
        if not 0 <= start < end <= reasoning_end:
            raise BadLine(
                "offsets out of range",
                f"step {number} is {start}–{end}, but the reasoning is 0–{reasoning_end}",
            )
        if steps and start < steps[-1].end:
            raise BadLine(
                "offsets overlap",
                f"step {number} starts at {start}, before step {number - 1} ends ({steps[-1].end})",
            )
        if item.get("label") not in LABELS:
            raise BadLine(
                "unknown label",
                f"step {number} is labelled {item['label']!r:.40}; essential, redundant or null",
            )
        _typed(item, "kind", str, False)
        extra = {k: v for k, v in item.items() if k not in ("start", "end", "label", "kind")}
        steps.append(Step(start, end, item.get("label"), item.get("kind"), extra))
    return tuple(steps)


def is_header(line: dict[str, Any]) -> bool:
    """Whether a line is a header of kfh: the first, or another where files were put together."""
    return HEADER in line and "id" not in line


def check_token_ids(field: Any) -> None:
    """Check the form of the field `token_ids`; None is none.

    Raises:
        BadLine: it is not what `probing.traces.tokens.SampledIds` reads.
    """
    if field is None:
        return
    try:
        end = field.get("end")
        parts = [field["prompt"], field["response"], [] if end is None else [end]]
        good = all(isinstance(part, list) for part in parts) and all(
            type(token) is int and 0 <= token < MOST_IDS for part in parts for token in part
        )
        good = good and isinstance(field.get("tokenizer", ""), (str, type(None)))
    except (KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise BadLine(
            "wrong token_ids",
            f'{TOKEN_IDS} must be {{"prompt": [id, …], "response": [id, …]}}, ids whole numbers '
            f"from 0 to {MOST_IDS - 1}, is {field!r:.60}",
        )


def parse_trace(text: str | bytes, think_end: str = THINK_END) -> Trace:
    """Parse and check one line of a trace file.

    Raises:
        BadLine: with the reason, where the line is not JSON in UTF-8, lacks a field, has offsets
            that leave the reasoning or overlap, has no end marker, or an empty answer.
    """
    return trace_of(parse_line(text), think_end)


def trace_of(line: dict[str, Any], think_end: str = THINK_END) -> Trace:
    """The trace that a line's object holds, checked; errors as for `parse_trace`."""
    texts = {name: _typed(line, name, str, True) for name in ("prompt", "response")}
    response: str = texts["response"]
    end = response.find(think_end)
    if end < 0:
        raise BadLine(f"no {think_end}", f"the response has no {think_end}")
    if not response[end + len(think_end) :].strip():
        raise BadLine("empty answer", f"nothing follows {think_end}")
    names = ("id", "prompt", "response", "steps", "correct", "problem")
    check_token_ids(line.get(TOKEN_IDS))
    return Trace(
        line_id(line),
        **texts,
        steps=_parse_steps(_typed(line, "steps", list, False) or [], end),
        correct=_typed(line, "correct", bool, False),
        problem=_typed(line, "problem", str, False),
        extra={k: v for k, v in line.items() if k not in names},
        think_end=think_end,
    )


def _id_of(text: bytes) -> str:
    try:
        return line_id(parse_line(text))
    except BadLine:
        return "unknown"


def read_traces(
    path: str | Path,
    *,
    skip_bad: bool = False,
    think_end: str = THINK_END,
    report: ReadReport | None = None,
) -> Iterator[Trace]:
    """Stream the traces of a JSONL file (or `.jsonl.gz`), checked, in order.

    Args:
        path: the trace file. One line is in memory at a time.
        skip_bad: go on after a bad line; it is counted in `report`.
        think_end: the text that ends the reasoning.
        report: filled while the caller iterates.

    Raises:
        DataError: the file is missing or holds no trace; or, without `skip_bad`, the first
            `BadLine`, named by file, line number and id.
    """
    path, report = Path(path), report if report is not None else ReadReport()
    seen: set[str] = set()
    for number, text in text_lines(path):
        try:
            line = parse_line(text)
            if is_header(line):
                continue
            trace = trace_of(line, think_end)
            if trace.id in seen:
                raise BadLine("duplicate id", "this id stands on an earlier line too")
        except BadLine as error:
            report.bad_line(error, f"{path}, line {number}, id {_id_of(text)}", skip_bad)
            continue
        seen.add(trace.id)
        report.read += 1
        yield trace
    if not report.read:
        left_out = f" ({sum(report.bad.values())} bad lines left out)" if report.bad else ""
        raise DataError(f"{path}: no usable trace in this file{left_out}.")


def write_traces(path: Path, traces: Iterable[Trace], **inputs: Any) -> int:
    """Write traces to a JSONL file (or `.jsonl.gz`), whole or not at all; return their number.

    Args:
        path: the file to write.
        traces: consumed lazily, so that a file larger than memory can be rewritten.
        inputs: what the header is to say of where they come from.
    """
    count = 0
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with whole_file(path) as temporary, opened(temporary, "wt", encoding="utf-8") as file:
        file.write(json.dumps({HEADER: file_header("traces", **inputs)}) + "\n")
        for trace in traces:
            file.write(json.dumps(trace.to_json(), ensure_ascii=False) + "\n")
            count += 1
    return count
