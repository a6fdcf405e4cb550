"""The probe: from a trace file and a model to the ranking of its heads.

1. Read and check the traces; nothing is loaded before the file is known to be good.
2. Load the model and prove the capture on it.
3. Score: each trace's steps for every head, stored one by one (`probing.attention.store`); where
   that is asked for, once more by a model of random weights, as a control.
4. Rank: SRA, balanced SRA and the gate, with intervals, controls and the null of the maximum.
5. Select heads on one half of the problems and report them on the other.
6. Write `scores.parquet`, `sra.parquet`, `heads.json` and `run.json`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from probing.attention.memory import BatchSize
from probing.attention.scores import ScoredTrace, open_capture, score_traces
from probing.attention.store import ScoreStore
from probing.choices import METRICS, Head
from probing.config import ProbeConfig
from probing.errors import DataError, NotFiniteError
from probing.files.headers import file_hash, file_header, json_number
from probing.folder import ProbeResult
from probing.headset import HeadFigures, HeadSet
from probing.models.identity import (
    ModelCard,
    context_limit,
    fits,
    model_settings,
    position_limit,
    too_long,
)
from probing.models.load import with_random_weights
from probing.models.processes import Processes
from probing.ranking.metrics import Measured, Measures, RankedTrace, ReadTraces, ranked_trace
from probing.ranking.rank import Ranking, rank_heads
from probing.settings import Progress, no_progress
from probing.traces.file import Trace
from probing.traces.source import SourceReport, prepare_traces
from probing.traces.tokens import EncodedTrace, SampledIds, encode_trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOT_FINITE = "attention that is not finite"


def probe(
    config: ProbeConfig,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: Any = None,
    progress: Progress = no_progress,
) -> ProbeResult | None:
    """Rank the heads of a model on a trace file and save the result in `config.out`.

    Args:
        config: the settings.
        model, tokenizer: loaded ones, instead of loading `config.model` (which still names them).
        progress: makes progress bars, see `probing.settings`.

    Returns:
        The result; None in processes other than the first.

    Raises:
        KfhError: a bad setting, trace, label or model; the message says where and what to do.
    """
    processes, report = Processes(config.device), SourceReport()
    ids = [trace.id for trace in prepare_traces(config.source, report)]  # 1
    model, tokenizer = config.load(model, tokenizer)  # 2
    store = ScoreStore(Path(config.out), score_settings(config, model))
    if processes.rank == 0:
        store.open(config.resume)
    processes.wait()
    speed, heads = _score(config, model, tokenizer, store, ids, processes, progress)  # 3
    of_random = _random_scores(config, model, tokenizer, ids, processes, progress)
    processes.wait()
    if processes.rank != 0:
        return None
    limit = position_limit(model)
    if not (scored := store.load(ids)):
        why = NOT_FINITE if limit is None else too_long(limit)
        raise DataError(f"{config.traces}: every trace has {why}")
    counter = _Counter(report, tokenizer, context_limit(model.config))
    measures, random = Measures(), [Measured() for _ in of_random]
    labels, marks = dict[str, list[str | None]](), dict[str, set[str]]()
    with store.table_writer(scored, heads) as write, progress("writing scores", len(ids)) as bar:
        for trace in prepare_traces(config.source):  # once more: one in memory at a time
            bar(1, 0)
            if trace.id not in scored:
                short = fits(len(encoded_as(config, tokenizer, trace)), limit)
                counter.lose(NOT_FINITE if short else too_long(limit))
                continue
            write(trace)
            marks[trace.id] = trace.problem_marks
            labels[trace.id] = [step.label for step in trace.steps]
            row = ranked_trace(trace, scored[trace.id])
            counter.count(trace, scored[trace.id], row)
            if row:
                measures.add(row)
                _measure_controls(random, trace, of_random)
    again = _read_again(store, labels, measures.heads)
    ranking = rank_heads(config, heads, measures, again, progress, random)  # 4, 5
    result = _result(ranking, ModelCard.of(config.model, model.config), report, speed)
    result.write(head_set_of(result, result.card, marks))  # 6
    return result


def score_settings(config: ProbeConfig, model: PreTrainedModel) -> dict[str, Any]:
    """All that decides the scores of a trace, for resuming."""
    return {
        **model_settings(model),
        **config.source.settings(),
        "backend": config.backend,
        "keep": config.keep,
        "answer": config.answer,
    }


def encoded_as(config: ProbeConfig, tokenizer: Any, trace: Trace) -> EncodedTrace:
    """The trace as token ids, as these settings want it; errors as for `encode_trace`."""
    rule, bad = config.source.rule, config.skip_bad
    return encode_trace(tokenizer, trace, rule=rule, answer=config.answer, skip_bad=bad)


def _score(
    config: ProbeConfig,
    model: PreTrainedModel,
    tokenizer: Any,
    store: ScoreStore,
    ids: list[str],
    processes: Processes,
    progress: Progress,
) -> tuple[dict[str, float], list[Head]]:
    """Score this process's share of the traces that are not scored yet; its speed and the heads."""
    done = store.done(ids)
    mine = set(ids[processes.rank :: processes.count]) - done
    capture = open_capture(model, config.backend)
    given = config.batch_tokens
    size = BatchSize.auto_of(model, capture) if given == "auto" else BatchSize(given)
    started, tokens = time.perf_counter(), 0
    limit = position_limit(model)

    def encoded() -> Iterator[EncodedTrace]:
        for trace in prepare_traces(config.source):
            if trace.id in mine:
                one = encoded_as(config, tokenizer, trace)
                if fits(len(one), limit):
                    yield one

    with progress(f"scoring, {size}" if size.auto else "scoring", len(mine)) as advance:
        for trace in score_traces(
            capture,
            encoded() if mine else (),
            device=next(model.parameters()).device,
            batch_tokens=size,
            advance=advance,
            lost=_pass_over if config.skip_bad else None,
        ):
            store.add(trace)
            tokens += trace.total_tokens
    seconds = time.perf_counter() - started
    speed = {"traces": len(mine), "tokens": tokens, "seconds": seconds, "resumed": len(done)}
    speed |= {"batch_tokens": size.tokens, "batches_halved": size.halved}
    return speed, capture.heads


def _pass_over(trace: EncodedTrace, error: NotFiniteError) -> None:
    """The trace is missing in the store, by which it is counted."""


def _random_scores(
    config: ProbeConfig,
    model: PreTrainedModel,
    tokenizer: Any,
    ids: list[str],
    processes: Processes,
    progress: Progress,
) -> list[Mapping[str, ScoredTrace]]:
    """Scores of models of random weights, each in a folder of its own; none where not asked for."""
    found: list[Mapping[str, ScoredTrace]] = []
    for draw in range(config.control_draws if config.control == "random-weights" else 0):
        fresh = with_random_weights(model, config.seed + draw)
        folder = Path(config.out) / "random-weights" / str(draw)
        store = ScoreStore(folder, score_settings(config, fresh))
        if processes.rank == 0:
            store.open(config.resume)
        processes.wait()
        _score(config, fresh, tokenizer, store, ids, processes, progress)
        processes.wait()
        found += [store.load()] if processes.rank == 0 else []
    return found


def _measure_controls(
    to: list[Measured], trace: Trace, models: list[Mapping[str, ScoredTrace]]
) -> None:
    """The trace as untrained models score it; all of them or none, so that halves are alike."""
    for measured, scores in zip(to, models, strict=True):
        if trace.id not in scores:
            raise DataError(
                f"trace {trace.id}: an untrained model gives {NOT_FINITE}; --control none"
            )
        if control := ranked_trace(trace, scores[trace.id]):
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


def head_set_of(ranking: Ranking, card: ModelCard, marks: Mapping[str, set[str]]) -> HeadSet:
    """The chosen heads with everything needed to score steps with them in the same way.

    `marks` is what the problem of each trace is known by, by id: what other traces are held out by.
    """
    config, counts = ranking.config, ranking.counts
    rows = ranking.table.set_index(["layer", "head"], drop=False)
    figures = {k: v for k, v in ranking.set_point.items() if k not in ("heads", "added")}
    return HeadSet(
        heads=tuple(_head_figures(config, rows.loc[pair]) for pair in ranking.chosen),
        model=card,
        segmenter=config.source.segmenter_json(),
        rule=config.source.rule,
        think_end=config.source.mark.text,
        think_end_at=config.source.mark.at,
        answer=config.answer,
        traces={
            "file": str(config.traces),
            "hash": file_hash(Path(config.traces)),
            "keep": config.keep,
            "ranked": counts["ranked"],
            "pairs": counts["pairs"],
        },
        labels=config.source.label_json(),
        selection={
            "by": config.by,
            "how": config.select,
            "split": "halves by SHA-256 of the trace id, traces of one problem together",
            "unit": "problem",
            "select_traces": len(counts["select_traces"]),
            "held_out_traces": len(counts["held_out_traces"]),
            "problems_chosen_on": _marks_of(counts["select_traces"], marks),
            "problems_held_out": _marks_of(counts["held_out_traces"], marks),
            "ensemble_held_out": figures,
            "controls": {
                row["control"]: {metric: json_number(row[metric]) for metric in METRICS}
                for _, row in ranking.controls.iterrows()
            },
        },
        caveats=tuple(ranking.set_caveats),
        header=file_header("head set"),
    )


def _marks_of(ids: Iterable[str], marks: Mapping[str, set[str]]) -> list[str]:
    """The marks of these traces, each once, sorted."""
    return sorted(set().union(*(marks[name] for name in ids)))


def _head_figures(config: ProbeConfig, row: pd.Series) -> HeadFigures:
    held_out = {metric: json_number(row[f"{metric}_held_out"]) for metric in METRICS}
    return HeadFigures(
        int(row["layer"]),
        int(row["head"]),
        sra=float(row["sra"]),
        sra_interval=_interval(row, "sra"),
        balanced=json_number(row["balanced"]),
        balanced_interval=_interval(row, "balanced"),
        gating=float(row["gating"]),
        p=json_number(row.get(f"{config.by}_p")),
        held_out={metric: v for metric, v in held_out.items() if v is not None},
    )


def _interval(row: pd.Series, metric: str) -> tuple[float, float] | None:
    """The interval of a metric; None where there is none, as of a single problem."""
    low, high = (json_number(row[f"{metric}_{end}"]) for end in ("low", "high"))
    return None if low is None or high is None else (low, high)
