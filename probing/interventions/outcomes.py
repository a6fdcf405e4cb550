"""What interventions find: outcomes, the file that they grow in, and their summary.

An outcome is what became of one trace's answer under one change. Summaries average the random
draws within a trace first, then over traces; intervals are bootstraps over groups (problems), and
differences are paired within traces.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from probing.files.jsonl import LineStore

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
    """Outcomes by part and trace; with a file they are on disk as soon as they are there.

    Args:
        path: the file (JSONL), a line a part and trace; None: they are kept in memory alone.
        settings: all that decides the outcomes; JSON types.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.outcomes: dict[tuple[str, str], list[Outcome]] = {}
        self.file = LineStore(path, "outcomes", {"settings": settings}) if path else None

    def open(self, resume: bool) -> None:
        """Read what is there, or begin anew. A line that a kill cut short is cut off.

        Raises:
            ConfigError: it holds outcomes of other settings; the message says which.
            DataError: a line that is not the last cannot be read.
        """
        self.outcomes = {}
        if self.file:
            self.file.open(resume, self._take)

    def _take(self, row: dict[str, Any]) -> bool:
        self.outcomes[row["part"], row["trace"]] = [Outcome(**each) for each in row["outcomes"]]
        return True

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
        if self.file:
            row = {"part": part, "trace": trace, "outcomes": [asdict(each) for each in outcomes]}
            self.file.add([row])
        self.outcomes[part, trace] = list(outcomes)
