"""What interventions find: outcomes, the file that they grow in, and their summary.

An outcome is what became of one trace's answer under one change. Summaries average the random
draws within a trace first, then over traces; intervals are bootstraps over groups (problems), and
differences are paired within traces.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from probing.errors import DataError
from probing.files.headers import HEADER, file_header
from probing.files.jsonl import refuse_other_settings

NONE = "none"  # the arm in which nothing is changed
RANDOM = "random"  # the control


@dataclass(frozen=True)
class Outcome:
    """The answer to one trace under one change.

    Args:
        part: `steps`, `heads` or `steering`.
        arm: `none` (nothing changed), `random` (the control), and the part's own: of steps
            `high`, `low`, `recent`, `matched`; of heads and steering `chosen`.
        mode: how, where a part has several ways (`zero/all`, `mean/answer-to-steps`, …).
        dose: steps: how many are removed; heads: how many heads; steering: the factor. The arm
            `none` has the dose that changes nothing (0, 0, 1).
        draw: which random draw; 0 where nothing is drawn.
        trace: its id.
        group: the problem; groups are what the bootstrap resamples.
        correct: the verdict on the greedy answer; None where none was decoded.
        logprob: of the counted tokens of the correct answer, their sum in nats; None where the
            trace's own answer is not correct.
        tokens: how many tokens count.
        extra: further measures (removed tokens, share of copies from …), summarised as these are.
    """

    part: str
    arm: str
    mode: str
    dose: float
    draw: int
    trace: str
    group: str
    correct: bool | None
    logprob: float | None
    tokens: int
    extra: dict[str, float] = field(default_factory=dict)


class OutcomeStore:
    """Outcomes on disk as soon as they are there: a line a part and trace.

    Args:
        path: the file (JSONL).
        settings: all that decides the outcomes; JSON types.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.outcomes: dict[tuple[str, str], list[Outcome]] = {}  # by part and trace

    def open(self, resume: bool) -> None:
        """Read what is there, or begin anew. A line that a kill cut short is cut off.

        Raises:
            ConfigError: it holds outcomes of other settings; the message says which.
            DataError: a line that is not the last cannot be read.
        """
        self.outcomes = {}
        if resume and self.path.exists() and (good := self._read()):
            os.truncate(self.path, good)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = {HEADER: file_header("outcomes", settings=self.settings)}
        self.path.write_text(json.dumps(header, ensure_ascii=False) + "\n", encoding="utf-8")

    def done(self, part: str) -> set[str]:
        """Ids of the traces whose outcomes of this part are there."""
        return {trace for of, trace in self.outcomes if of == part}

    def add(self, part: str, trace: str, outcomes: Sequence[Outcome]) -> None:
        """Append all outcomes of one trace in one part; they may be none.

        Raises:
            ValueError: one of them is of another part or trace.
        """
        if any((outcome.part, outcome.trace) != (part, trace) for outcome in outcomes):
            raise ValueError(f"these are not the outcomes of {part} on {trace}")
        line = {"part": part, "trace": trace, "outcomes": [asdict(o) for o in outcomes]}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.outcomes[part, trace] = list(outcomes)

    def _read(self) -> int:
        """Fill `outcomes`; the bytes up to the end of the last whole line."""
        good = 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("it has no end")
                row = json.loads(line)
                if number == 1:
                    held = row[HEADER]["settings"]
                    refuse_other_settings(self.path, "outcomes", held, self.settings)
                else:
                    found = [Outcome(**outcome) for outcome in row["outcomes"]]
                    self.outcomes[row["part"], row["trace"]] = found
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):
                    break
                raise DataError(
                    f"{self.path}, line {number}: damaged ({error!r}); remove the file or use "
                    "--no-resume"
                ) from error
            good += len(line)
        return good
