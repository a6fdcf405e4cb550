"""What a probe, and labelling by cause before it, will take on this machine.

1. The traces as the probe reads them: their number and steps. The first 200 are tokenised; what
   the others come to follows from their characters.
2. Forward passes: the probe's batches; of labelling a context a trace and its steps in rows.
3. Seconds: traces of middle length go through the model, and the time of a token holds for all.
4. Memory: the weights, and the peak of a pass as `probing.attention.memory` reckons it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from probing.answers.context import CauseTrace, encode_causes
from probing.answers.hiding import StepHiding
from probing.attention.memory import BatchSize, PassBytes, free_bytes
from probing.attention.scores import Capture, batches_by_length, open_capture, score_traces
from probing.config import ProbeConfig
from probing.errors import DataError
from probing.labelling.cause import CauseConfig
from probing.models.front import trunk_of
from probing.traces.file import Trace
from probing.traces.source import SourceReport, cut_traces
from probing.traces.tokens import EncodedTrace, encode_trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENISED = 200  # traces, the first of the file
MEASURED = 3  # traces that go through the model, of middle length


@dataclass(frozen=True, kw_only=True)
class Work:
    """Forward passes, the tokens in them, padding included, and the seconds that they take."""

    passes: int
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a probe will take.

    Args:
        traces, steps, tokens: of what is read; `longest`: tokens of the longest that was tokenised.
        tokenised: traces whose tokens were counted; the rest is reckoned.
        left_out: traces, by reason.
        labelling: by cause; None where labels are there.
        probing: the scoring of the heads.
        weights, peak, free: bytes: of the model, of a pass beside it, of the device.
        device: its name.
    """

    traces: int
    steps: int
    tokens: int
    longest: int
    tokenised: int
    left_out: dict[str, int]
    labelling: Work | None
    probing: Work
    weights: int
    peak: int
    free: int
    device: str

    @property
    def fits(self) -> bool:
        """Whether a pass fits beside the weights, which are loaded."""
        return self.peak <= self.free


@dataclass
class _Read:
    """The traces that were read, and the first of them as tokens."""

    report: SourceReport
    encoded: list[EncodedTrace] = field(default_factory=list)
    causes: list[CauseTrace] = field(default_factory=list)
    traces: int = 0
    steps: int = 0
    characters: int = 0
    tokenised: int = 0  # of the characters

    @property
    def scale(self) -> float:
        """How much more all traces are than those that were tokenised."""
        return self.characters / max(1, self.tokenised)

    def take(
        self, trace: Trace, config: ProbeConfig, tokenizer: Any, cause: CauseConfig | None
    ) -> None:
        if not trace.steps:
            self.report.left_out["no steps"] += 1
            return
        size, rule = len(trace.prompt) + len(trace.response), config.source.rule
        self.traces, self.steps = self.traces + 1, self.steps + len(trace.steps)
        self.characters += size
        if self.traces > TOKENISED:
            return
        self.tokenised += size
        self.encoded.append(encode_trace(tokenizer, trace, rule=rule, answer=config.answer))
        if cause:
            options: dict[str, Any] = {"answer": cause.answer, "limit": cause.answer_limit or None}
            self.causes.append(encode_causes(tokenizer, trace, rule=rule, **options))


def cost_of(
    config: ProbeConfig,
    model: PreTrainedModel,
    tokenizer: Any,
    cause: CauseConfig | None = None,
    report: SourceReport | None = None,
) -> Cost:
    """What a probe of these settings will take; nothing is written.

    Args:
        config: with a trace file that has steps, or is cut into them.
        model, tokenizer: loaded.
        cause: how steps are labelled first; None: labels are there.
        report: is told of the traces as they are read.

    Raises:
        DataError: a bad trace, or none with a step.
    """
    read = _Read(report or SourceReport())
    for trace in cut_traces(config.source, read.report):  # 1
        read.take(trace, config, tokenizer, cause)
    encoded, scale = read.encoded, read.scale
    if not encoded:
        raise DataError(f"{config.traces}: no trace with a step; cut them with --segmenter attnpo")
    capture = open_capture(model, config.backend)
    given = config.batch_tokens
    size = BatchSize.auto_of(model, capture).tokens if given == "auto" else given
    longest = max(map(len, encoded))
    place, heads = next(model.parameters()), len(capture.heads)
    lens = config.backend == "transformer-lens"
    costs = [(PassBytes.of(model.config, place.dtype, heads, patterns=lens), max(size, longest))]
    if cause:
        answered = PassBytes.of(model.config, place.dtype, answered=True)
        costs.append((answered, longest))
    return Cost(
        traces=read.traces,
        steps=read.steps,
        tokens=round(sum(map(len, encoded)) * scale),
        longest=longest,
        tokenised=len(encoded),
        left_out=dict(read.report.left_out),
        labelling=_labelling(model, read.causes, scale, cause) if cause else None,
        probing=_probing(capture, encoded, scale, size, place.device),
        weights=sum(p.numel() * p.element_size() for p in model.parameters()),
        peak=max(cost.token * tokens + cost.pair * longest**2 for cost, tokens in costs),
        free=free_bytes(trunk_of(model)),
        device=str(place.device),
    )


def middle(traces: Sequence[Any]) -> list[Any]:
    """Some traces of middle length."""
    ordered = sorted(traces, key=len)
    first = max(0, (len(ordered) - MEASURED) // 2)
    return ordered[first : first + MEASURED]


def _probing(
    capture: Capture, traces: list[EncodedTrace], scale: float, size: int, device: Any
) -> Work:
    """The work of scoring: its batches, and the time of a token in a pass (2, 3)."""
    tried = middle(traces)
    options: dict[str, Any] = {"device": device, "batch_tokens": size}
    list(score_traces(capture, tried[:1], **options))  # what is made ready once
    started = time.perf_counter()
    list(score_traces(capture, tried, **options))
    seconds = time.perf_counter() - started
    batches = list(batches_by_length(traces, size, lengths=capture.lengths))
    padded = [len(batch) * max(map(len, batch)) for batch in batches]
    rate = seconds / (len(tried) * max(map(len, tried)))
    return Work(
        passes=math.ceil(len(batches) * scale),
        tokens=round(sum(padded) * scale),
        seconds=sum(padded) * scale * rate,
    )


def _labelling(
    model: PreTrainedModel, traces: list[CauseTrace], scale: float, cause: CauseConfig
) -> Work:
    """The work of hiding steps: contexts and rows, and the time of a token in them (2, 3)."""
    hiding, tried, tokens = StepHiding(model), middle(traces), [0]

    def count(number: int) -> None:
        tokens[0] += number

    hiding.drops(tried[0], deletion=cause.deletion)  # what is made ready once
    started = time.perf_counter()
    for trace in tried:
        hiding.drops(trace, deletion=cause.deletion, advance=count)
    seconds = time.perf_counter() - started
    # Passes and tokens of a trace; a step that is deleted is a pass from there on, half of all.
    made = []
    for trace in traces:
        rows, queries = len(trace.spans), len(trace) - trace.context
        passes = 1 + math.ceil((rows + 1) / hiding.rows_at_once(trace)) + rows * cause.deletion
        deleted = rows * (queries + trace.context // 2) * cause.deletion
        made.append((passes, trace.context + (rows + 1) * queries + deleted))
    whole = fmean(total for _, total in made) * len(made) * scale
    return Work(
        passes=math.ceil(sum(passes for passes, _ in made) * scale),
        tokens=round(whole),
        seconds=whole * seconds / tokens[0],
    )
