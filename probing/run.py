"""The probe: from a trace file and a model to the ranking of its heads.

1. Read and check the traces; nothing is loaded before the file is known to be good.
2. Load the model and prove the capture on it.
3. Score: each trace's steps for every head, stored one by one (`probing.attention.store`); where
   that is asked for, once more by a model of random weights, as a control. Or a shard of them,
   and no more; `--merge` joins the shards of all (`probing.attention.shards`) and goes on.
4. Rank: SRA, balanced SRA and the gate, with intervals, controls and the null of the maximum.
5. Select heads on one half of the problems and report them on the other.
6. Write `scores.parquet`, `sra.parquet`, `heads.json` and `run.json`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from probing.attention.memory import BatchSize
from probing.attention.scores import Masses, ScoredTrace, batch_masses, open_capture, score_traces
from probing.attention.shards import FOLDER, Plan, begin, join, share_settings
from probing.attention.store import ScoreStore
from probing.choices import BACKENDS, Head
from probing.config import ProbeConfig
from probing.errors import DataError, NotFiniteError
from probing.files.headers import file_header
from probing.folder import ProbeResult
from probing.models.identity import (
    ModelCard,
    context_limit,
    fits,
    model_settings,
    position_limit,
    shape_settings,
    too_long,
)
from probing.models.lengths import Lengths
from probing.models.load import load_config, load_tokenizer, with_random_weights
from probing.models.processes import Processes, Shard
from probing.ranking.metrics import Measured, Measures, RankedTrace, ReadTraces, ranked_trace
from probing.ranking.rank import Ranking, head_set_of, rank_heads
from probing.settings import Progress, no_progress
from probing.traces.file import Trace
from probing.traces.source import SourceReport, prepare_traces
from probing.traces.tokens import EncodedTrace, SampledIds, encode_trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOT_FINITE = "attention that is not finite"
NO_SETTINGS: Mapping[str, int] = MappingProxyType({})


class Beside(Protocol):
    """What takes more from the pass that scores traces; `probing.types.job.TypesBeside`."""

    masses: Masses

    def open(self, model: Any, tokenizer: Any, settings: Mapping[str, Any]) -> Any:
        """The capture whose pass it is, for scores of these settings."""

    def keep(self, scored: ScoredTrace) -> None:
        """Keep what the pass gave of a trace, before its scores are."""


def probe(
    config: ProbeConfig,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: Any = None,
    beside: Beside | None = None,
    progress: Progress = no_progress,
) -> ProbeResult | None:
    """Rank the heads of a model on a trace file and save the result in `config.out`.

    Args:
        config: the settings.
        model, tokenizer: loaded ones, instead of loading `config.model` (which still names them).
        beside: takes more in the pass that scores; not in shards, several processes, or another
            backend, where it is never opened.
        progress: makes progress bars, see `probing.settings`.

    Returns:
        The result; None of a shard (`config.shards`), and in processes other than the first.

    Raises:
        KfhError: a bad setting, trace, label or model; the message says where and what to do.
    """
    processes, report = Processes(config.device), SourceReport()
    ids = [trace.id for trace in prepare_traces(config.source, report)]  # 1
    if config.merge:
        found = _joined(config, model, tokenizer, ids) if processes.rank == 0 else None
    else:
        model, tokenizer = config.load(model, tokenizer)  # 2
        job = _Job(config, tokenizer, ids, processes, progress, beside=beside)
        found = _scored(job, model)  # 3
    if found is None or config.shards or processes.rank != 0:
        return None
    config = replace(config, merge=False)  # the result is that of one run
    return _ranked(config, found, ids, report, progress)


@dataclass(frozen=True, eq=False)
class Scored:
    """The scores of all traces, and what is still to be known of the model that gave them.

    Args:
        store: of the scores.
        random: those of untrained models, each by trace id.
        heads: in the order of the scores.
        shape: the config of the model.
        limit: tokens that the model can take at all, see `position_limit`.
        tokenizer: that the traces were encoded with.
        speed: of the scoring.
    """

    store: ScoreStore
    random: list[Mapping[str, ScoredTrace]]
    heads: list[Head]
    shape: Any
    limit: int | None
    tokenizer: Any
    speed: dict[str, float]


def _ranked(
    config: ProbeConfig, found: Scored, ids: list[str], report: SourceReport, progress: Progress
) -> ProbeResult:
    """Steps 4 to 6; `report` counts what becomes of the traces."""
    store, limit = found.store, found.limit
    if not (scored := store.load(ids)):
        why = NOT_FINITE if limit is None else too_long(limit)
        raise DataError(f"{config.traces}: every trace has {why}")
    counter = _Counter(report, found.tokenizer, context_limit(found.shape))
    measures, random = Measures(), [Measured() for _ in found.random]
    labels, marks = dict[str, list[str | None]](), dict[str, set[str]]()
    bar = progress("writing scores", len(ids))
    with store.table_writer(scored, found.heads) as write, bar as advance:
        for trace in prepare_traces(config.source):  # once more: one in memory at a time
            advance(1, 0)
            if trace.id not in scored:
                short = fits(len(encoded_as(config, found.tokenizer, trace)), limit)
                counter.lose(NOT_FINITE if short else too_long(limit))
                continue
            write(trace)
            marks[trace.id] = trace.problem_marks
            labels[trace.id] = [step.label for step in trace.steps]
            row = ranked_trace(trace, scored[trace.id], config.answer)
            counter.count(trace, scored[trace.id], row)
            if row:
                measures.add(row)
                _measure_controls(config, random, trace, found.random)
    again = _read_again(store, labels, measures.heads)
    ranking = rank_heads(config, found.heads, measures, again, progress, random)  # 4, 5
    result = _result(ranking, ModelCard.of(config.named, found.shape), report, found.speed)
    result.write(head_set_of(result, result.card, marks))  # 6
    return result


def score_settings(config: ProbeConfig, model: PreTrainedModel) -> dict[str, Any]:
    """All that decides the scores of a trace, for resuming."""
    return {**model_settings(model), **_reading_settings(config)}


def _reading_settings(config: ProbeConfig) -> dict[str, Any]:
    """What of a probe's settings decides scores, whatever the model."""
    return {
        **config.source.settings(),
        "backend": config.backend,
        "keep": config.keep,
        "answer": config.answer,
    }


def encoded_as(config: ProbeConfig, tokenizer: Any, trace: Trace) -> EncodedTrace:
    """The trace as token ids, as these settings want it; errors as for `encode_trace`."""
    rule, bad = config.source.rule, config.skip_bad
    return encode_trace(tokenizer, trace, rule=rule, answer=config.answer, skip_bad=bad)


@dataclass(frozen=True, eq=False)
class _Job:
    """What scoring needs beside a model; `plan` is that of a shard."""

    config: ProbeConfig
    tokenizer: Any
    ids: list[str]
    processes: Processes
    progress: Progress
    plan: Plan | None = None
    beside: Beside | None = None


def _scored(job: _Job, model: PreTrainedModel) -> Scored:
    """The traces, or those of the shard, scored by the model and by untrained ones (step 3)."""
    config = job.config
    if config.shards:
        job = replace(job, plan=_plan(job, model, Shard.parse(config.shards)))
    store, speed, heads = _score(job, model)
    # Untrained models, each in a folder of its own; what the first process alone needs, it reads.
    random = [
        _score(job, with_random_weights(model, settings["seed"]), place, settings)[0]
        for place, settings in _random_places(config).items()
    ]
    read = [draw.load() for draw in random] if job.processes.rank == 0 else []
    limit = position_limit(model)
    return Scored(store, [*read], heads, model.config, limit, job.tokenizer, speed)


def _random_places(config: ProbeConfig) -> dict[str, dict[str, int]]:
    """Folder in the output folder, and seed, of each untrained model; none if not asked for."""
    draws = range(config.control_draws if config.control == "random-weights" else 0)
    return {f"random-weights/{draw}": {"seed": config.seed + draw} for draw in draws}


def _score(
    job: _Job, model: PreTrainedModel, place: str = "", settings: Mapping[str, int] = NO_SETTINGS
) -> tuple[ScoreStore, dict[str, float], list[Head]]:
    """Score this process's share of the traces that are not scored yet; its speed and the heads.

    Args:
        place: of the store, in the output folder.
        settings: that the store of a shard holds, too.
    """
    config, processes, plan = job.config, job.processes, job.plan
    out, own = Path(config.out), score_settings(config, model)
    if plan:
        out, own = out / FOLDER / plan.shard.folder, {**own, **plan.settings(job.ids), **settings}
    store = ScoreStore(out / place, own)
    if processes.rank == 0:
        begin(store, config.resume) if plan else store.open(config.resume)
    processes.wait()
    done = store.done(job.ids)
    share = job.ids[processes.rank :: processes.count]
    mine = plan.left(done, processes) if plan else {*share} - done
    alone = not plan and not place and processes.count == 1 and config.backend == BACKENDS[0]
    beside = job.beside if alone else None
    capture: Any = beside and beside.open(model, job.tokenizer, own)
    capture = capture or open_capture(model, config.backend)
    given = config.batch_tokens
    size = BatchSize.auto_of(model, capture) if given == "auto" else BatchSize(given)
    started, tokens, limit = time.perf_counter(), 0, position_limit(model)

    def encoded() -> Iterator[EncodedTrace]:
        for trace in prepare_traces(config.source):
            if trace.id in mine:
                one = encoded_as(config, job.tokenizer, trace)
                if fits(len(one), limit):
                    yield one
            elif plan and trace.id in plan.lengths:
                yield plan.blank(trace.id)

    with job.progress(f"scoring, {size}" if size.auto else "scoring", len(mine)) as advance:
        for trace in score_traces(
            capture,
            encoded() if mine else (),
            device=next(model.parameters()).device,
            batch_tokens=size,
            advance=advance,
            lost=_pass_over if config.skip_bad else None,
            wanted=lambda batch: batch[0].id in mine,
            masses=beside.masses if beside else batch_masses,
        ):
            if beside:
                beside.keep(trace)
            store.add(trace)
            tokens += trace.total_tokens
    speed = {"traces": len(mine), "tokens": tokens, "seconds": time.perf_counter() - started}
    speed |= {"resumed": len(done - mine), "batch_tokens": size.tokens}
    speed["batches_halved"] = size.halved
    processes.wait()
    if plan and processes.rank == 0:
        plan.finish(store, heads=capture.heads, position_limit=limit, speed=speed)
    return store, speed, capture.heads


def _plan(job: _Job, model: PreTrainedModel, shard: Shard) -> Plan:
    """The batches of the whole run: all traces are tokenised, for their lengths."""
    config, limit = job.config, position_limit(model)
    lengths = {}
    with job.progress("measuring traces", len(job.ids)) as advance:
        for trace in prepare_traces(config.source):
            tokens = len(encoded_as(config, job.tokenizer, trace))
            if fits(tokens, limit):
                lengths[trace.id] = tokens
            advance(1, 0)
    assert config.batch_tokens != "auto"  # the settings say so
    return Plan(shard, lengths, config.batch_tokens, Lengths.of(model))


def _joined(config: ProbeConfig, model: Any, tokenizer: Any, ids: list[str]) -> Scored:
    """What the shards scored, as if one run had; no weights are loaded.

    Raises:
        ConfigError, DataError: as for `probing.attention.shards.join`.
    """
    code = config.trust_remote_code
    shape = model and model.config
    if shape is None:
        shape = load_config(config.model, adapter=config.adapter, trust_remote_code=code)
    if tokenizer is None:
        tokenizer = load_tokenizer(config.model, trust_remote_code=code)
    settings = {"model": shape_settings(shape), **_reading_settings(config)}
    settings |= share_settings(ids, config.batch_tokens)
    if config.dtype != "auto":
        settings["dtype"] = f"torch.{config.dtype}"
    places = {"": {}, **_random_places(config)}
    places = {place: {**settings, **own} for place, own in places.items()}
    found, *random = join(Path(config.out), places, ids, config.resume)
    first = found.records[0]
    read = [draw.store.load() for draw in random]
    return Scored(
        found.store, [*read], first.heads, shape, first.position_limit, tokenizer, found.speed
    )


def _pass_over(trace: EncodedTrace, error: NotFiniteError) -> None:
    """The trace is missing in the store, by which it is counted."""


def _measure_controls(
    config: ProbeConfig,
    to: list[Measured],
    trace: Trace,
    models: list[Mapping[str, ScoredTrace]],
) -> None:
    """The trace as untrained models score it; all of them or none, so that halves are alike."""
    for measured, scores in zip(to, models, strict=True):
        if trace.id not in scores:
            raise DataError(
                f"trace {trace.id}: an untrained model gives {NOT_FINITE}; --control none"
            )
        if control := ranked_trace(trace, scores[trace.id], config.answer):
            measured.add(control)


def _read_again(
    store: ScoreStore, labels: Mapping[str, list[str | None]], measured: Measured
) -> ReadTraces:
    """The ranked traces, without their texts, from the table that was just written."""
    scored, groups = store.load(measured.ids), dict(zip(measured.ids, measured.groups, strict=True))

    def read(name: str) -> RankedTrace:
        ranked = RankedTrace.of(scored[name], labels[name], groups[name])
        assert ranked  # it was ranked before
        return ranked

    return ReadTraces(measured.ids, read)


class _Counter:
    """Counts what became of each trace once it is scored."""

    def __init__(self, report: SourceReport, tokenizer: Any, limit: int | None) -> None:
        self.report, self.limit, self.tokenizer = report, limit, tokenizer

    def lose(self, reason: str) -> None:
        """Count a trace without scores."""
        self.report.used -= 1
        self.report.left_out[reason] += 1

    def count(self, trace: Trace, scored: ScoredTrace, row: RankedTrace | None) -> None:
        """Count one trace; `row` is None where no pair of its steps is left."""
        report = self.report
        if sampled := SampledIds.of(trace):
            ours = sampled.is_of(self.tokenizer)
            if ours and (fault := sampled.fault(self.tokenizer, trace)):
                report.reading.note(
                    "token_ids left out, the text tokenised", f"trace {trace.id}: they {fault}"
                )
            else:
                report.as_sampled += ours
                report.other_tokenizer += not ours
        report.beyond_context += self.limit is not None and scored.total_tokens > self.limit
        labelled = [step.label is not None for step in trace.steps]
        report.steps["without a token"] += int(((scored.tokens == 0) & labelled).sum())
        if row is None:
            self.leave_out("no answer token or no pair of steps with tokens")

    def leave_out(self, reason: str) -> None:
        """Count a trace that is not used after all."""
        self.report.used -= 1
        self.report.left_out[reason] += 1


def _result(
    ranking: Ranking, card: ModelCard, report: SourceReport, speed: dict[str, float]
) -> ProbeResult:
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    values = vars(ranking) | {"counts": {**report.to_json(), **ranking.counts}}
    header = file_header("probe run", **versions)
    folder = Path(ranking.config.out)
    return ProbeResult(**values, folder=folder, card=card, speed=speed, header=header)
