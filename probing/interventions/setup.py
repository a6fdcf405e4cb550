"""What an intervention is set up with: settings, the traces it may use, what a part is given.

A part (`steps`, `heads`, `steering`) is a function of a `Setup` that gives, for each trace of it
and in their order, the list of its outcomes. Parts need not know of files, bars or verifiers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from probing.answers.context import PreparedTrace
from probing.choices import BATCH_TOKENS, MIN_CHARS, Answer, BatchTokens, Mode
from probing.errors import ConfigError, DataError
from probing.headset import HeadSet
from probing.interventions.outcomes import Outcome
from probing.settings import check, choice, to_json
from probing.traces.file import Trace, header_of
from probing.traces.source import (
    SourceReport,
    TraceChoosing,
    TraceList,
    TraceReading,
    TraceSource,
    cut_traces,
    trace_path,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Only = Literal["held-out", "all"]

# verdict(trace, ids): whether the ids generated behind `trace.ids[:trace.answer]` (the end token
# may be the last of them) give the right answer.
Verdict = Callable[[PreparedTrace, Sequence[int]], bool]

# Panels of the command line.
TRACES, STEPS, HEADS, STEERING = "Which traces", "Part: steps", "Part: heads", "Part: steering"
ANSWERS, CONTROLS = "Answers", "Controls"


@dataclass(frozen=True)
class InterventionConfig:
    """What is done and measured, checked on creation.

    Raises:
        ConfigError: a value that is no choice or out of bounds.
    """

    remove: tuple[int, ...] = choice((1, 2, 3), "How many steps to remove.", least=1, panel=STEPS)
    modes: tuple[Mode, ...] = choice(
        ("zero/all", "mean/all", "zero/answer-to-steps"),
        "zero or mean, then /all positions or /answer-to-steps.",
        panel=HEADS,
    )
    factors: tuple[float, ...] = choice(
        (0.0, 0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 8.0),
        "Factors on the attention to a step.",
        panel=STEERING,
    )
    draws: int = choice(5, "Random draws of each control.", least=1, panel=CONTROLS)
    seed: int = choice(0, "Of random draws and bootstrap.", panel=CONTROLS)
    answer: Answer = choice(
        "all",
        "Answer tokens that count; boxed: the model answers from the opened box.",
        panel=ANSWERS,
    )
    answer_limit: int = choice(
        0, "The first so many answer tokens count; 0: all.", least=0, panel=ANSWERS
    )
    max_answer_tokens: int = choice(
        64, "Longest greedy answer; 0: log-probabilities alone.", least=0, panel=ANSWERS
    )
    batch_tokens: BatchTokens = choice(
        BATCH_TOKENS,
        "Tokens in a forward pass; auto: as many as memory holds.",
        least=1,
        panel="Model",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self)
        if not self.remove or len(set(self.remove)) < len(self.remove):
            raise ConfigError(f"--remove takes numbers of steps, none twice, not {self.remove}")

    def to_json(self) -> dict[str, Any]:
        """The settings as they stand in headers, with the one thing that edits heads today."""
        return {**to_json(self), "backend": "transformers"}


@dataclass(frozen=True)
class TraceChoice(TraceReading, TraceChoosing):
    """Which traces are intervened on: a file, and which of it."""

    traces: Path = choice(
        Path("pocket"),
        "Trace file (JSONL, .gz too); pocket: the embedded model's.",
        panel=TRACES,
    )
    only: Only = choice(
        "held-out", "Leave out the problems that the heads were chosen on.", panel=TRACES
    )
    limit: int | None = choice(None, "The first so many; default all.", least=1, panel=TRACES)

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self)

    @property
    def is_pocket(self) -> bool:
        """Whether they are the embedded model's own."""
        return self.traces == Path("pocket")

    def source(self, heads: HeadSet) -> TraceSource:
        """The file cut as the head set's traces were; a published set: by the paper's rules."""
        cut, reading = heads.segmenter or {}, self.reading
        if "think_end" not in header_of(trace_path(self.traces)):
            for name in ("think_end", "think_end_at"):
                reading[name] = reading[name] or getattr(heads, name)
        return TraceSource(
            self.traces,
            **reading,
            segmenter=cut.get("phrases") or cut.get("name", "attnpo"),
            min_chars=cut.get("min_chars", MIN_CHARS),
            openings=cut.get("openings", "strict"),
            labels=self.labels,
            keep=self.keep,
        )

    def choose(self, heads: HeadSet) -> ChosenTraces:
        """The traces to intervene on, cut into steps; labels may be missing.

        Traces of the problems that the heads were chosen on are left out, whatever file they
        stand in, unless `only` is `all`.

        Raises:
            DataError: a bad line; no trace is left; or the head set does not say on which problems
                its heads were chosen, so that none can be left out.
        """
        source = self.source(heads)
        report = SourceReport()
        traces: list[Trace] = []
        used = heads.chosen_on if self.only == "held-out" else frozenset()
        if used is None:
            raise DataError(
                f"the head set of {heads.model.describe()} does not say on which problems its "
                "heads were chosen (it is an older or a published one): nothing can be held out. "
                "Probe again for a set that does, or take every trace with --only all"
            )
        for trace in cut_traces(source, report):
            if not trace.steps:
                report.left_out["no steps"] += 1
            elif used and used & trace.problem_marks:
                report.left_out["the heads were chosen on its problem"] += 1
            elif self.limit is not None and len(traces) >= self.limit:
                report.left_out["beyond --limit"] += 1
            else:
                traces.append(trace)
        report.used = len(traces)
        if not traces:
            reasons = ", ".join(f"{n} {why}" for why, n in report.left_out.items())
            raise DataError(
                f"{source.path}: no trace is left to intervene on ({reasons}). Interventions need "
                "correct traces with steps; see --keep and --only."
            )
        settings = {
            **source.settings(),
            "keep": self.keep,
            "labels": source.label_json(),
            "only": self.only,  # both decide what means of heads are taken over
            "limit": self.limit,
        }
        words = held_out(traces, heads)
        return ChosenTraces(
            traces, source.rule, settings, words, report, str(source.path), self.skip_bad
        )


@dataclass(frozen=True, eq=False)
class ChosenTraces:
    """The traces that are used, and what became of the others.

    Args:
        traces: with their steps.
        rule: how steps take tokens, see `probing.traces.tokens.token_spans`.
        settings: what of them decides an outcome; JSON types.
        held_out: whether they are held out from the choice of heads, in words.
        report: counts.
        name: for messages.
        skip_bad: leave out, and count, traces whose attention is not finite.
    """

    traces: Sequence[Trace]
    rule: str
    settings: dict[str, Any]
    held_out: str
    report: SourceReport
    name: str
    skip_bad: bool = False

    @classmethod
    def of(cls, traces: Iterable[Trace], heads: HeadSet) -> ChosenTraces:
        """Traces in memory, all of them; steps take tokens as the head set's did."""
        given = TraceList(tuple(traces), heads.rule)
        report = SourceReport(used=len(given.given))
        words = held_out(given.given, heads)
        return cls(given.given, given.rule, given.settings(), words, report, "the given traces")

    def to_json(self) -> dict[str, Any]:
        """Counts for the result's file."""
        return {**self.report.to_json(), "held_out": self.held_out}


def held_out(traces: Iterable[Trace], heads: HeadSet) -> str:
    """Whether traces are held out from the choice of heads, in words: compared by problem."""
    if heads.chosen_on is None:
        return "unknown: the head set does not say on which problems its heads were chosen"
    seen = [bool(heads.chosen_on & trace.problem_marks) for trace in traces]
    if any(seen):
        return (
            f"no: the heads were chosen on the problems of {sum(seen)} of these {len(seen)} traces"
        )
    return "yes: the heads were chosen on none of these problems"


def generator(trace: str, *before: int, after: Sequence[int] = ()) -> np.random.Generator:
    """Random numbers of a trace, by its id: they do not depend on what was drawn before.

    Args:
        before, after: numbers that tell draws apart: seed, number of steps, draw.
    """
    digest = hashlib.sha256(trace.encode()).digest()
    return np.random.default_rng([*before, int.from_bytes(digest[:8], "big"), *after])


@dataclass(frozen=True, eq=False)
class Setup:
    """What a part is given; `auto` of the settings' `batch_tokens` becomes a number.

    Args:
        model: in eval mode, on its device.
        tokenizer: the model's.
        heads: the head set.
        traces: those still to be done.
        reference: all of them, done or not: what means are taken over.
        config: what is done.
        verdict: on an answer.
        ends: the tokens that end an answer.
        advance: called with the number of tokens that went through the model.
    """

    model: PreTrainedModel
    tokenizer: Any
    heads: HeadSet
    traces: Sequence[PreparedTrace]
    reference: Sequence[PreparedTrace]
    config: InterventionConfig
    verdict: Verdict
    ends: frozenset[int] = frozenset()
    advance: Callable[[int], None] = field(default=lambda tokens: None)

    def __post_init__(self) -> None:
        """Find the number of tokens."""
        if self.config.batch_tokens == "auto":
            from probing.attention.memory import BatchSize

            tokens = BatchSize.auto_of(self.model).tokens
            object.__setattr__(self, "config", replace(self.config, batch_tokens=tokens))

    @property
    def batch_tokens(self) -> int:
        """Tokens of a forward pass."""
        assert self.config.batch_tokens != "auto"
        return self.config.batch_tokens


Part = Callable[[Setup], Iterator[list[Outcome]]]  # one list a trace, in the order of the traces
