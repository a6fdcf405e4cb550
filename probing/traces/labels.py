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
from probing.errors import DataError
from probing.files.headers import HEADER, file_header, whole_file
from probing.traces.file import Trace
from probing.traces.marks import EndMark

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


def read_labels(path: Path) -> LabelFile:
    """Read and check a label file.

    Raises:
        DataError: with file and line, where it cannot be read, lacks a field, names an unknown
            label, or labels a step twice in different ways; or its header is none.
    """
    found = LabelFile(path, None)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if HEADER in line:
                found.segmenter = line[HEADER].get("segmenter")
                said = {**(line[HEADER].get("settings") or {}), **line[HEADER]}
                found.mark = EndMark.chosen(said, where=str(path)) if "think_end" in said else None
                continue
            trace_id, step, label = str(line["id"]), int(line["step"]), line["label"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f'{path}, line {number}: needs {{"id", "step", "label"}} ({error!r})'
            ) from error
        if label not in LABELS:
            raise DataError(f"{path}, line {number}: label {label!r}; essential, redundant or null")
        if found.labels.setdefault(trace_id, {}).setdefault(step, label) != label:
            raise DataError(f"{path}, line {number}: step {step} of {trace_id} has two labels")
        if details := _details(line, f"{path}, line {number}"):
            found.details.setdefault(trace_id, {})[step] = details
        found.segmenter = line.get("segmenter", found.segmenter)
    if not found.labels:
        raise DataError(f"{path}: holds no label")
    return found


def _details(line: dict[str, Any], where: str) -> dict[str, Any]:
    """Score, source and votes of a line, checked; those that it has."""
    details = {name: line[name] for name in DETAILS if line.get(name) is not None}
    score, votes = details.get("score", 0), details.get("votes", {})
    if type(score) not in (int, float) or not math.isfinite(score):
        raise DataError(f"{where}: score {score!r:.40} is no number")
    if not isinstance(details.get("source", ""), str):
        raise DataError(f"{where}: source {details['source']!r:.40} is no text")
    if not isinstance(votes, dict) or any(vote not in LABELS for vote in votes.values()):
        raise DataError(f"{where}: votes {votes!r:.60} are no {{judge: label}}")
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
