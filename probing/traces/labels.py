"""Label files: labels kept apart from traces, so that several labellings live side by side.

A line is `{"id", "step", "label"}`: the label of one step, counted from 0, of the steps that the
segmenter named in the header (or on the line) cuts. Where known it also holds `score` (a number,
higher is more essential), `source` (what gave the label) and `votes` (`{judge: label}`, null where
a judge gave none); these go with the step where the file is applied to a trace.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from probing.choices import LABELS
from probing.errors import ConfigError, DataError
from probing.files.headers import HEADER, file_header, whole_file
from probing.files.reading import BadLine, line_id, parse_line, text_lines
from probing.traces.file import Trace, header_in, is_header
from probing.traces.marks import EndMark
from probing.traces.reports import ReadReport

DETAILS = ("score", "source", "votes")


@dataclass
class LabelFile:
    """The labels of a file, and what it says of where they come from, by trace id and step."""

    path: Path
    segmenter: dict[str, Any] | None
    labels: dict[str, dict[int, str | None]] = field(default_factory=dict)
    details: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    mark: EndMark | None = None  # before which the steps lie, where the header says so

    def apply(self, trace: Trace) -> Trace:
        """The trace with this file's labels; steps without one become unlabelled.

        Raises:
            DataError: the file labels a step that the trace does not have.
        """
        own = self.labels.get(trace.id, {})
        beyond = [step for step in own if not 0 <= step < len(trace.steps)]
        if beyond:
            raise DataError(
                f"{self.path}: labels step {max(beyond)} of trace {trace.id}, which has "
                f"{len(trace.steps)} steps; was it labelled with another segmenter?"
            )
        details = self.details.get(trace.id, {})
        steps = [
            replace(step, label=own.get(n), extra={**step.extra, **details.get(n, {})})
            for n, step in enumerate(trace.steps)
        ]
        return trace.with_steps(steps)


def read_labels(
    path: Path, *, skip_bad: bool = False, report: ReadReport | None = None
) -> LabelFile:
    """Read and check a label file.

    Args:
        path: the file (JSONL, `.gz` too).
        skip_bad: go on after a bad line; it is counted in `report`.
        report: filled.

    Raises:
        DataError: it cannot be read or holds no label; or, without `skip_bad`, with file and line,
            where one lacks a field, names an unknown label, or labels a step twice in different
            ways; or its header names no end mark.
    """
    found, report = LabelFile(path, None), report if report is not None else ReadReport()
    for number, text in text_lines(path):
        try:
            _take(found, parse_line(text))
        except BadLine as error:
            kind = BadLine(f"label line: {error.kind}", str(error))
            report.bad_line(kind, f"{path}, line {number}", skip_bad)
    if not found.labels:
        raise DataError(f"{path}: holds no label")
    return found


def _take(found: LabelFile, line: dict[str, Any]) -> None:
    """Enter a line, or what the header says.

    Raises:
        BadLine: what is wrong with it.
    """
    of_header = is_header(line)
    about = line[HEADER] if of_header else line
    segmenter = about.get("segmenter", found.segmenter) if isinstance(about, dict) else None
    if not isinstance(segmenter or {}, dict):
        raise BadLine("wrong type", f"segmenter {segmenter!r:.60} is no object")
    if of_header:
        found.mark = _mark(header_in(line))
    else:
        _enter(found, line)
    found.segmenter = segmenter


def _mark(header: dict[str, Any]) -> EndMark | None:
    """The end mark that a header says, or its settings; None where it says none."""
    settings = header.get("settings")
    said = {**(settings if isinstance(settings, dict) else {}), **header}
    try:
        return EndMark.chosen(said) if said.get("think_end") is not None else None
    except (ConfigError, DataError) as error:
        raise BadLine("wrong header", str(error)) from error


def _enter(found: LabelFile, line: dict[str, Any]) -> None:
    """Enter the label of a line; errors as for `_take`."""
    if missing := [name for name in ("id", "step", "label") if name not in line]:
        raise BadLine("missing field", f'needs {{"id", "step", "label"}}, has no {missing[0]}')
    trace_id, step, label = line_id(line), line["step"], line["label"]
    if type(step) is not int:
        raise BadLine("wrong type", f"step {step!r:.40} is no whole number")
    if label not in LABELS:
        raise BadLine("unknown label", f"label {label!r:.40}; essential, redundant or null")
    if found.labels.get(trace_id, {}).get(step, label) != label:
        raise BadLine("two labels", f"step {step} of {trace_id} has two labels")
    details = _details(line)
    found.labels.setdefault(trace_id, {})[step] = label
    if details:
        found.details.setdefault(trace_id, {})[step] = details


def _details(line: dict[str, Any]) -> dict[str, Any]:
    """Score, source and votes of a line, checked; those that it has. Errors as for `_take`."""
    details = {name: line[name] for name in DETAILS if line.get(name) is not None}
    score, votes = details.get("score", 0), details.get("votes", {})
    if type(score) not in (int, float) or not abs(score) < math.inf:
        raise BadLine("wrong type", f"score {score!r:.40} is no number")
    if not isinstance(details.get("source", ""), str):
        raise BadLine("wrong type", f"source {details['source']!r:.40} is no text")
    if not isinstance(votes, dict) or any(vote not in LABELS for vote in votes.values()):
        raise BadLine("wrong type", f"votes {votes!r:.60} are no {{judge: label}}")
    return details


def write_labels(
    path: Path, labels: Iterable[dict[str, Any]], segmenter: dict[str, Any], **inputs: Any
) -> int:
    """Write label lines with a header that names their segmenter; return their number."""
    count = 0
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        header = file_header("labels", segmenter=segmenter, **inputs)
        file.write(json.dumps({HEADER: header}) + "\n")
        for line in labels:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count
