"""From a trace file and a head set to traces ready for interventions; every loss is counted.

What every intervention works on and with: prepared traces, settings, judge, decoder.

A part of `kfh ablate` is a function of a `Setup` that gives, for each trace of it and in their
order, the list of its outcomes. Parts need not know of files, bars or verifiers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probing.answers.context import CauseTrace, PreparedTrace, encode_causes
from probing.attention.capture import AttentionCapture
from probing.attention.scores import score_traces
from probing.choices import ANSWERS, MIN_CHARS
from probing.errors import ConfigError, DataError
from probing.files.headers import file_hash
from probing.headset import HeadSet
from probing.interventions.outcomes import Outcome
from probing.ranking.select import halves
from probing.traces.file import Trace
from probing.traces.source import SourceReport, TraceSource, cut_traces, prepare_traces
from probing.traces.tokens import EncodedTrace, encode_trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ONLY = ("held-out", "all")


@dataclass
class Choice:
    """Which traces are used, and what became of the others."""

    traces: list[Trace] = field(default_factory=list)
    report: SourceReport = field(default_factory=SourceReport)
    held_out: str = ""  # whether they are held out from the choice of heads, in words

    def to_json(self) -> dict[str, Any]:
        """Counts for the run file."""
        return {**self.report.to_json(), "held_out": self.held_out}


def source_of(heads: HeadSet, path: Path, **options: Any) -> TraceSource:
    """The trace file cut as the head set's traces were; a published set: by the paper's rules.

    Args:
        heads: the head set.
        path: the trace file.
        options: other fields of `TraceSource`.
    """
    cut = heads.segmenter or {}
    name = cut.get("phrases") or cut.get("name", "attnpo")
    return TraceSource(path, name, cut.get("min_chars", MIN_CHARS), **options)


def choose_traces(
    source: TraceSource, heads: HeadSet, only: str = "held-out", limit: int | None = None
) -> Choice:
    """The traces of the source to intervene on, cut into steps.

    Args:
        source: trace file, steps and labels; labels may be missing.
        heads: the head set; where it was chosen on half of this very file, that half is left out.
        only: `held-out`, or `all` to keep that half.
        limit: the first so many of them; None: all.

    Raises:
        DataError: a bad line, or no trace is left.
    """
    chosen = Choice()
    used, chosen.held_out = selected_on(source, heads)
    if only == "all" and used:
        used, chosen.held_out = set(), "no: the heads were chosen on some of these traces"
    for trace in cut_traces(source, chosen.report):
        if not trace.steps:
            chosen.report.left_out["no steps"] += 1
        elif trace.id in used:
            chosen.report.left_out["the heads were chosen on it"] += 1
        elif limit is not None and len(chosen.traces) >= limit:
            chosen.report.left_out["beyond --limit"] += 1
        else:
            chosen.traces.append(trace)
            chosen.report.used += 1
    if not chosen.traces:
        reasons = ", ".join(f"{n} {why}" for why, n in chosen.report.left_out.items())
        raise DataError(
            f"{source.path}: no trace is left to intervene on ({reasons}). Interventions need "
            "correct traces with steps; see --keep and --only."
        )
    return chosen


def selected_on(source: TraceSource, heads: HeadSet) -> tuple[set[str], str]:
    """Ids of the traces that the heads were chosen on, and in words what is known of it.

    A head set names its trace file by hash, and the rule that dealt the halves; the half is made
    again, and trusted if its size is the one that the set gives.
    """
    of, selection = heads.traces or {}, heads.selection or {}
    if not of.get("hash"):
        return set(), "unknown: the head set does not name its traces"
    if of["hash"] != file_hash(source.path):
        return set(), "yes: the heads were chosen on another trace file"
    if (heads.labels or {}).get("source") != source.labels:
        return set(), "unknown: the heads were chosen with other labels of this trace file"
    ranked = [(t.id, t.problem or t.prompt) for t in prepare_traces(source)]
    if not selection or len(ranked) != of.get("ranked"):
        return set(), "unknown: the half that the heads were chosen on cannot be made again"
    ids, groups = [name for name, _ in ranked], [group for _, group in ranked]
    places = halves(ids, groups)[0]
    if len(places) != selection.get("select_traces"):
        return set(), "unknown: the half that the heads were chosen on cannot be made again"
    return {ids[place] for place in places}, "yes: the half that the heads were not chosen on"


def prepare_interventions(
    model: PreTrainedModel,
    tokenizer: Any,
    choice: Choice,
    heads: HeadSet,
    config: InterventionConfig,
    *,
    rule: str,
    own_correct: Callable[[Trace], bool] = lambda trace: trace.correct is not False,
    advance: Callable[[int, int], None] = lambda traces, tokens: None,
) -> Iterator[PreparedTrace]:
    """Encode the chosen traces and score their steps by the head set, longest first.

    Left out and counted: traces none of whose answer tokens count.

    Raises:
        ModelError: the head set is of another model, or attention cannot be captured.
        DataError: no trace is left.
    """
    heads.check(model.config)
    causes: dict[str, tuple[CauseTrace, Trace, int]] = {}
    encoded: list[EncodedTrace] = []
    limit = config.answer_limit or None
    for trace in choice.traces:
        whole = encode_trace(tokenizer, trace, rule=rule, answer=heads.answer)
        try:
            cause = encode_causes(tokenizer, trace, rule=rule, answer=config.answer, limit=limit)
        except DataError:
            choice.report.left_out[f"no answer token counts ({config.answer})"] += 1
            continue
        if not whole.answer.any():
            choice.report.left_out[f"no answer token is looked from ({heads.answer})"] += 1
            continue
        causes[trace.id] = cause, trace, whole.prompt_tokens
        encoded.append(whole)
    choice.report.used = len(encoded)
    if not encoded:
        raise DataError(f"no trace has answer tokens that count (--answer {config.answer})")
    capture = AttentionCapture(model, heads.pairs)
    device = next(model.parameters()).device
    for scored in score_traces(
        capture, encoded, device=device, batch_tokens=config.batch_tokens, advance=advance
    ):
        cause, trace, prompt_tokens = causes.pop(scored.id)
        boxed = config.answer == "boxed"
        yield PreparedTrace(
            **{item.name: getattr(cause, item.name) for item in fields(cause)},
            group=trace.problem or trace.prompt,
            prompt_tokens=prompt_tokens,
            answer=int(cause.counted.argmax()) if boxed else cause.behind,
            scores=scored.scores.mean(axis=0).astype(np.float64),
            labels=tuple(step.label for step in trace.steps),
            own_correct=own_correct(trace),
        )


# judge(trace, ids): whether the ids generated behind `ids[:answer]` (the end token may be the last
# of them) give the right answer.
Verdict = Callable[[PreparedTrace, Sequence[int]], bool]


@dataclass(frozen=True)
class InterventionConfig:
    """What is done, checked on creation.

    Args:
        remove: steps part: the numbers of steps to remove.
        draws: random draws of every control (sets of steps; sets of heads).
        modes: heads part: `zero` or `mean`, then `all` (at all positions) or `answer-to-steps`.
        factors: steering part: what the chosen heads' attention to a step is multiplied by.
        answer: which tokens of the correct answer count, see `probing.answers.context`.
        answer_limit: the first so many of them only; 0: all.
        max_answer_tokens: longest greedy answer; 0: none is decoded, log-probabilities alone.
        batch_tokens: tokens in a forward pass, padding included.
        seed: of the random draws.
    """

    remove: tuple[int, ...] = (1, 2, 3)
    draws: int = 5
    modes: tuple[str, ...] = ("zero/all", "mean/all", "zero/answer-to-steps")
    factors: tuple[float, ...] = (0.0, 0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 8.0)
    answer: str = "all"
    answer_limit: int = 0
    max_answer_tokens: int = 64
    batch_tokens: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.answer not in ANSWERS:
            raise ConfigError(f"unknown answer {self.answer!r}; choose {', '.join(ANSWERS)}")
        if not self.remove or min(self.remove) < 1 or len(set(self.remove)) < len(self.remove):
            raise ConfigError(f"--remove takes numbers of steps, at least 1, not {self.remove}")
        for name, least in (
            ("draws", 1),
            ("answer_limit", 0),
            ("max_answer_tokens", 0),
            ("batch_tokens", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, is {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        """The settings as they stand in headers."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Setup:
    """What a part is given."""

    model: PreTrainedModel  # in eval mode, on its device
    tokenizer: Any
    heads: HeadSet
    traces: Sequence[PreparedTrace]  # those still to be done
    reference: Sequence[PreparedTrace]  # all of them, done or not: what means are taken over
    config: InterventionConfig
    judge: Verdict
    ends: frozenset[int] = frozenset()  # the tokens that end an answer
    advance: Callable[[int], None] = field(default=lambda tokens: None)  # tokens that went through


Part = Callable[[Setup], Iterator[list[Outcome]]]  # one list a trace, in the order of the traces
