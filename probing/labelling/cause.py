"""Labels by cause: a step is essential where the answer suffers without it.

`label_by_cause` hides each step from the answer (`probing.answers.hiding`):
1. Settings: all that decides a label; labels of other settings are not gone on with.
2. What is missing: the traces of which not every step has its line.
3. Each trace as token ids; a trace none of whose answer tokens count is left out, and counted.
4. On the first of them the model is proven: hiding is real, and nothing else happens.
5. What the answer loses with each step hidden, in nats; the label follows from it (eq. 8).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.choices import Looking
from probing.errors import ConfigError, DataError, NotFiniteError
from probing.files.headers import json_number, refuse_overwriting
from probing.files.jsonl import LineStore
from probing.models.identity import fits, model_settings, position_limit, too_long
from probing.settings import Progress, check, choice, no_progress, to_json
from probing.traces.file import Trace
from probing.traces.reports import ReadReport
from probing.traces.source import StepSource, TraceList, step_counts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from probing.answers.context import CauseTrace
    from probing.answers.hiding import Drops

BY_CAUSE = "By cause"  # panel of the command line


def cause_label(drop: float, high: float, low: float) -> str | None:
    """Essential from `high` nats on, redundant up to `low`, between them no label (eq. 8).

    Example:
        >>> [cause_label(drop, 1.0, 0.1) for drop in (2.0, 0.5, -0.3)]
        ['essential', None, 'redundant']
    """
    if drop >= high:
        return "essential"
    return "redundant" if drop <= low else None


@dataclass(frozen=True)
class CauseConfig:
    """How steps are labelled by cause.

    Raises:
        ConfigError: a value that is no choice or out of bounds, or `low` not below `high`.
    """

    answer: Looking = choice(
        "all", "Answer tokens that count; bare: as boxed, which stands bare here.", panel=BY_CAUSE
    )
    answer_limit: int = choice(
        32, "The first so many answer tokens; 0: all.", least=0, panel=BY_CAUSE
    )
    high: float = choice(0.5, "Essential from this drop on, nats.", panel=BY_CAUSE)
    low: float = choice(0.01, "Redundant up to this drop, nats.", panel=BY_CAUSE)
    deletion: bool = choice(False, "Delete each step from the text as well.", panel=BY_CAUSE)

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self)
        if not self.low < self.high:
            raise ConfigError(f"low must lie below high: {self.low} and {self.high} nats")

    def to_json(self) -> dict[str, Any]:
        """The settings as they stand in the header of a label file."""
        settings = to_json(self)
        return {"limit": settings.pop("answer_limit"), **settings}


@dataclass
class CauseReport:
    """What labelling by cause came to.

    `labels`: number of steps by label (None: unlabelled) of all traces in the file; `traces`: how
    many these are; `resumed`: how many of them were there already; `left_out`: why, by trace id;
    `reading`: what was left out of the trace file.
    """

    labels: Counter[str | None] = field(default_factory=Counter)
    traces: int = 0
    resumed: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    reading: ReadReport = field(default_factory=ReadReport)


def label_by_cause(
    model: PreTrainedModel,
    tokenizer: Any,
    traces: StepSource | Path | str | Iterable[Trace],
    out: Path | str = "labels.jsonl",
    config: CauseConfig | None = None,
    *,
    resume: bool = True,
    progress: Progress = no_progress,
) -> CauseReport:
    """Label steps by what the answer loses without them; see above.

    Args:
        model: a causal language model with sdpa or eager attention.
        tokenizer: the model's, a fast one.
        traces: with their steps; or a trace file, or how one is cut into steps.
        out: the label file (`probing.traces.labels`); a line is on disk when its trace is done,
            and the same call goes on from there.
        config: which answer tokens count, and thresholds; default `CauseConfig()`.
        resume: False begins the file anew.
        progress: `progress(name, traces)` is a context that gives `advance(traces, tokens)`.

    Raises:
        ConfigError: `out` holds labels made with other settings.
        DataError: a bad trace, or none that can be labelled.
        ModelError: a model in which a step cannot be hidden.
    """
    if isinstance(traces, (str, Path)):
        traces = StepSource(Path(traces))
    source = traces if isinstance(traces, StepSource) else TraceList(tuple(traces))
    refuse_overwriting(out, source.path)
    config = config or CauseConfig()
    report = CauseReport()
    sizes = step_counts(source, report.reading)
    deciding = source.settings()  # 1
    segmenter = deciding.pop("segmenter")
    settings = {"by": "ablation", **config.to_json(), **model_settings(model), **deciding}
    store = LineStore(Path(out), "labels", {"segmenter": segmenter, "settings": settings})
    done = labelled_already(store, sizes, resume, report)  # 2
    missing = (trace for trace in source.traces() if trace.id in sizes.keys() - done)
    with progress("hiding steps", len(sizes) - len(done)) as advance:
        hide_steps(model, tokenizer, missing, source, config, store, report, advance)
    if not report.traces:
        first = next(iter(report.left_out.values()))
        raise DataError(f"{source.path or out}: no trace could be labelled; first {first}")
    return report


def hide_steps(
    model: PreTrainedModel,
    tokenizer: Any,
    traces: Iterable[Trace],
    source: StepSource | TraceList,
    config: CauseConfig,
    store: LineStore,
    report: CauseReport,
    advance: Any,
) -> None:
    """Label the steps of each trace, and keep the lines and the counts.

    Left out and counted: traces none of whose answer tokens count, or too long for the model;
    where the source skips what is bad, those whose log-probabilities are not finite.
    """
    from probing.answers.context import encode_causes  # torch is not loaded for the settings
    from probing.answers.hiding import StepHiding

    hiding, positions = StepHiding(model), position_limit(model)
    proven = False
    limit, skip_bad = config.answer_limit or None, getattr(source, "skip_bad", False)
    for trace in traces:
        try:
            encoded = encode_causes(
                tokenizer, trace, rule=source.rule, answer=config.answer, limit=limit
            )  # 3
            if not fits(len(encoded), positions):
                raise DataError(f"trace {trace.id}: {too_long(positions)}")
            if not proven:
                hiding.prove(encoded)  # 4
                proven = True
            drops = hiding.drops(
                encoded, deletion=config.deletion, advance=lambda tokens: advance(0, tokens)
            )  # 5
        except (DataError, NotFiniteError) as error:
            if isinstance(error, NotFiniteError) and not skip_bad:
                raise
            report.left_out[trace.id] = str(error)
            advance(1, 0)
            continue
        lines = label_lines(encoded, drops, config)
        store.add(lines)
        report.traces += 1
        report.labels.update(line["label"] for line in lines)
        advance(1, 0)


def label_lines(trace: CauseTrace, drops: Drops, config: CauseConfig) -> list[dict[str, Any]]:
    """The lines of a label file for one trace; a step without a token has neither score nor label.

    `score` is the mean drop per counted answer token, `total` their sum, by which a step is
    labelled, `deletion` the sum with the step deleted instead; all in nats.
    """
    lines = []
    for step, total in enumerate(map(json_number, drops.total)):
        line = {
            "id": trace.id,
            "step": step,
            "label": None if total is None else cause_label(total, config.high, config.low),
            "score": json_number(drops.mean[step]),
            "total": total,
            "source": "ablation",
        }
        if drops.deletion is not None:
            line["deletion"] = json_number(drops.deletion[step])
        lines.append(line)
    return lines


def labelled_already(
    store: LineStore, sizes: Mapping[str, int], resume: bool, report: CauseReport
) -> set[str]:
    """Open a label file; the ids of the traces of which every step has its line.

    Args:
        store: of the label file; the lines of a trace stand together, in the order of its steps.
        sizes: number of steps of each trace that is to be labelled, by id.
        resume: go on with what is there.
        report: counts what is there.

    Raises:
        ConfigError: it holds labels made with other settings.
        DataError: a line is damaged, or out of order.
    """
    done: set[str] = set()
    labels: list[str | None] = []  # of the trace that is being read
    reading = ""

    def take(row: dict[str, Any]) -> bool:
        nonlocal reading
        name, step = str(row["id"]), int(row["step"])
        reading = reading if labels else name
        if (name, step) != (reading, len(labels)) or name not in sizes or name in done:
            raise ValueError(f"step {step} of {name} is out of order")
        labels.append(row["label"])
        if len(labels) < sizes[name]:
            return False
        done.add(name)
        report.labels.update(labels)
        labels.clear()
        return True

    store.open(resume, take)
    report.traces = report.resumed = len(done)
    return done
