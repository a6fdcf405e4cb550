"""Traces: one line of JSON for one sampled response, its steps and their labels.

A line holds `id`, `prompt` (the exact text given to the model) and `response` (the reasoning,
`</think>`, the final answer); and, where known, `model`, `problem`, `ground_truth`, `correct`
and `steps`. Fields that kfh does not know survive a round trip. The header says by which mark the
reasoning ends (`probing.traces.marks`), for all that read the file later.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from probing.choices import LABELS, THINK_END
from probing.errors import DataError
from probing.files.headers import HEADER, file_header, normal_text, problem_hash, whole_file
from probing.files.reading import BadLine, line_id, parse_line, text_lines
from probing.traces.marks import BLANK_ANSWER, STARTS, EndMark, oddities, proposal
from probing.traces.offsets import checked_spans
from probing.traces.reports import ReadReport
from probing.traces.text import FIND_END, whole_box

TOKEN_IDS = "token_ids"  # the field with the ids as sampled
MOST_IDS = 2**31  # no vocabulary is larger
LOOKED_AT = 1000  # lines of a file in which known end marks are looked for


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
    think_end_at: str = "first"  # which mark it is where there are several: first or last

    @property
    def reasoning_end(self) -> int:
        """Character of the response at which the end marker starts.

        Raises:
            ValueError: there is none.
        """
        end = FIND_END[self.think_end_at](self.response, self.think_end)
        if end < 0:
            raise ValueError(f"trace {self.id}: the response has no {self.think_end}")
        return end

    @property
    def answer_start(self) -> int:
        """Character of the response at which the final answer starts."""
        return self.reasoning_end + len(self.think_end)

    def answer_text(self, bare: bool = False) -> str:
        """The final answer; `bare`: its last box alone, with nothing where it has none."""
        start = self.answer_start
        span = whole_box(self.response, start) if bare else (start, len(self.response))
        return self.response[slice(*span)] if span else ""

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


def _typed(line: dict[str, Any], name: str, kind: type, required: bool) -> Any:
    value = line.get(name)
    if value is None:
        if required:
            hint = "; kfh import makes traces of records of other forms"
            raise BadLine("missing field", f"the field {name!r} is missing{hint}")
        return None
    if not isinstance(value, kind):
        raise BadLine("wrong type", f"{name!r} must be {kind.__name__}, is {value!r:.40}")
    return value


def _parse_steps(
    items: list[Any], response: str, reasoning_end: int, unit: str
) -> tuple[Step, ...]:
    steps: list[Step] = []
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise BadLine("wrong type", f"step {number} must be an object, is {item!r:.40}")
        if type(item.get("start")) is not int or type(item.get("end")) is not int:
            raise BadLine("missing field", f"step {number} needs whole numbers start and end")
    spans = [(item["start"], item["end"]) for item in items]
    if unit != "characters" or any("text" in item for item in items):
        spans = checked_spans(spans, [item.get("text") for item in items], response, unit)
    for number, ((start, end), item) in enumerate(zip(spans, items, strict=True)):
        if not 0 <= start < end <= reasoning_end:
            raise BadLine(
                "offsets out of range",
                f"step {number} is {start}–{end}, but the reasoning is 0–{reasoning_end}"
                f"{_in_bytes(response[:reasoning_end], end)}",
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


def _in_bytes(reasoning: str, end: int) -> str:
    """A hint where an offset leaves the characters of a reasoning, but not its bytes."""
    size = len(reasoning.encode())
    return f", in bytes 0–{size}: see --offsets" if len(reasoning) < end <= size else ""


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


def parse_trace(
    text: str | bytes,
    think_end: str = THINK_END,
    think_end_at: str = "first",
    offsets: str = "characters",
) -> Trace:
    """Parse and check one line of a trace file.

    Args:
        text: the line.
        think_end, think_end_at: where the reasoning ends, see `probing.traces.marks.EndMark`.
        offsets: what the offsets of its steps count; the trace's count characters.

    Raises:
        BadLine: with the reason, where the line is not JSON in UTF-8, lacks a field, has offsets
            that leave the reasoning, overlap, or do not hold the text that a step brings, has no
            end marker, or an empty answer.
    """
    return trace_of(parse_line(text), EndMark(think_end, think_end_at), offsets)


def trace_of(line: dict[str, Any], mark: EndMark, offsets: str = "characters") -> Trace:
    """The trace that a line's object holds, checked; arguments and errors as for `parse_trace`."""
    texts = {name: _typed(line, name, str, True) for name in ("prompt", "response")}
    response: str = texts["response"]
    end = FIND_END[mark.at](response, mark.text)
    if end < 0:
        raise BadLine(f"no {mark.text}", f"the response has no {mark.text} (--think-end)")
    if BLANK_ANSWER.fullmatch(response, end + len(mark.text)):
        raise BadLine("empty answer", f"nothing follows {mark.text}")
    names = ("id", "prompt", "response", "steps", "correct", "problem")
    check_token_ids(line.get(TOKEN_IDS))
    items = _typed(line, "steps", list, False) or []
    return Trace(
        line_id(line),
        **texts,
        steps=_parse_steps(items, response, end, offsets),
        correct=_typed(line, "correct", bool, False),
        problem=_typed(line, "problem", str, False),
        extra={k: v for k, v in line.items() if k not in names},
        think_end=mark.text,
        think_end_at=mark.at,
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
    think_end: str | None = None,
    think_end_at: str | None = None,
    offsets: str = "characters",
    anew: bool = False,
    report: ReadReport | None = None,
) -> Iterator[Trace]:
    """Stream the traces of a JSONL file (or `.jsonl.gz`), checked, in order.

    Args:
        path: the trace file. One line is in memory at a time.
        skip_bad: go on after a bad line; it is counted in `report`.
        think_end: the text that ends the reasoning; None: what the file's header says, else
            `</think>`.
        think_end_at: which one, `first` or `last`; None: as the header says, else the first.
        offsets: what the offsets of its steps count: `characters`, `bytes` or `utf-16`.
        anew: the steps will be cut anew; the mark may then be another than the header's.
        report: filled while the caller iterates.

    Raises:
        ConfigError: the mark contradicts the file's header.
        DataError: the file is missing or holds no trace; or, without `skip_bad`, the first
            `BadLine`, named by file, line number and id.
    """
    path, report = Path(path), report if report is not None else ReadReport()
    seen: set[str] = set()
    chosen = partial(end_mark, path, think_end=think_end, think_end_at=think_end_at, anew=anew)
    mark = chosen({})
    for number, text in text_lines(path):
        try:
            line = parse_line(text)
            if is_header(line):
                mark = chosen(header_in(line))
                continue
            trace = trace_of(line, mark, offsets)
            if trace.id in seen:
                raise BadLine("duplicate id", "this id stands on an earlier line too")
        except BadLine as error:
            hint = "" if skip_bad else _proposal(path, mark, {error.kind})
            where = f"{path}, line {number}, id {_id_of(text)}"
            report.bad_line(error, where, skip_bad, hint)
            continue
        for what in _oddities(trace.response, mark):
            report.remark(what, trace.id)
        seen.add(trace.id)
        report.read += 1
        yield trace
    if not report.read:
        left_out = f" ({report.bad.total()} bad lines left out)" if report.bad else ""
        hint = _proposal(path, mark, report.bad)
        raise DataError(f"{path}: no usable trace in this file{left_out}. {hint}".rstrip())


def header_of(path: Path) -> dict[str, Any]:
    """The header of a file of lines; empty where it has none, or cannot be read."""
    try:
        for _, text in text_lines(path):
            return header_in(parse_line(text))
    except DataError:
        pass
    return {}


def header_in(line: dict[str, Any]) -> dict[str, Any]:
    """The header that a line's object holds; empty where it is none."""
    header = line[HEADER] if is_header(line) else {}
    return header if isinstance(header, dict) else {}


def end_mark(
    path: Path,
    header: dict[str, Any],
    *,
    think_end: str | None = None,
    think_end_at: str | None = None,
    anew: bool = False,
) -> EndMark:
    """What ends the reasoning in a file with this header; arguments as for `read_traces`.

    Raises:
        ConfigError: what is given contradicts the header, and steps are not cut anew.
        DataError: what the header says is no mark.
    """
    said = (think_end, think_end_at, header.get("think_end"), header.get("think_end_at"))
    if not any(value is not None for value in said):
        return EndMark()
    return EndMark.chosen(header, think_end, think_end_at, anew=anew, where=str(path))


def _oddities(response: str, mark: EndMark) -> Iterable[str]:
    """What is odd about the marks of a response; looked into where there may be something."""
    starts = STARTS.get(mark.text, ())
    odd = response.count(mark.text) > 1 or any(start in response for start in starts)
    return oddities(response, mark) if odd else ()


def _proposal(path: Path, mark: EndMark, kinds: Container[str]) -> str:
    """The known end mark that the responses of a file hold, as a sentence; where one is missing.

    Args:
        kinds: of the bad lines.
    """
    if f"no {mark.text}" not in kinds:
        return ""

    def responses() -> Iterator[str]:
        for _, text in islice(text_lines(path), LOOKED_AT):
            with suppress(BadLine):
                if isinstance(response := parse_line(text).get("response"), str):
                    yield response

    hint = proposal(responses(), mark.text)
    return f"{hint[0].upper()}{hint[1:]}. " if hint else ""


def write_traces(path: Path, traces: Iterable[Trace], **inputs: Any) -> int:
    """Write traces to a JSONL file (or `.jsonl.gz`), whole or not at all; return their number.

    The header names the mark that ends their reasoning, by which the file is read again.

    Args:
        path: the file to write.
        traces: consumed lazily, so that a file larger than memory can be rewritten.
        inputs: what the header is to say of where they come from.

    Raises:
        DataError: the reasoning of some ends by another mark than that of the others.
    """
    count = 0
    rest = iter(traces)
    first = next(rest, None)
    mark = EndMark(first.think_end, first.think_end_at) if first else EndMark()
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with whole_file(path) as temporary, opened(temporary, "wt", encoding="utf-8") as file:
        header = file_header("traces", **inputs, **(mark.to_json() if first else {}))
        file.write(json.dumps({HEADER: header}) + "\n")
        for trace in chain([first] if first else [], rest):
            if (trace.think_end, trace.think_end_at) != (mark.text, mark.at):
                raise DataError(
                    f"{path}: the reasoning of trace {trace.id} ends at the {trace.think_end_at} "
                    f"{trace.think_end}, that of others at the {mark.at} {mark.text}: write a "
                    "file for each"
                )
            file.write(json.dumps(trace.to_json(), ensure_ascii=False) + "\n")
            count += 1
    return count
