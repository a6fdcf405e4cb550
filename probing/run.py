"""The probe: from a trace file and a model to the ranking of its heads.

1. Read and check the traces; nothing is loaded before the file is known to be good.
2. Load the model and prove the capture on it.
3. Score: each trace's steps for every head, stored one by one (`probing.attention.store`).
4. Rank: SRA, balanced SRA and the gate, with intervals, controls and the null of the maximum.
5. Select heads on one half of the traces and report them on the other.
6. Write `scores.parquet`, `sra.parquet`, `heads.json` and `run.json`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.attention.scores import open_capture, score_traces
from probing.attention.store import ScoreStore
from probing.choices import Head
from probing.config import ProbeConfig
from probing.files.headers import file_hash
from probing.folder import ProbeResult, write_result
from probing.models.identity import (
    ModelCard,
    context_limit,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from probing.models.load import load_model, load_tokenizer
from probing.models.processes import Processes
from probing.ranking.metrics import RankedTrace, ranked_trace
from probing.ranking.rank import rank_heads
from probing.settings import Progress, no_progress
from probing.traces.file import Trace
from probing.traces.source import SourceReport, prepare_traces
from probing.traces.tokens import EncodedTrace, SampledIds, encode_trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def probe(
    config: ProbeConfig,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: Any = None,
    progress: Progress = no_progress,
) -> ProbeResult | None:
    """Rank the heads of a model on a trace file and save what was found in `config.out`.

    Args:
        config: the settings.
        model, tokenizer: loaded ones, instead of loading `config.model` (which still names them).
        progress: makes progress bars, see `kfh.console`.

    Returns:
        The result; None in processes other than the first.

    Raises:
        KfhError: a bad setting, trace, label or model; the message says where and what to do.
    """
    processes = Processes(config.device)
    report = SourceReport()
    ids = [trace.id for trace in prepare_traces(config.source, report)]  # 1
    tokenizer = tokenizer or load_tokenizer(
        config.model, trust_remote_code=config.trust_remote_code
    )
    model = model or load_model(  # 2
        config.model,
        device=config.device,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
    )
    card = ModelCard.of(config.model, model.config)
    store = ScoreStore(Path(config.out), _score_settings(config, card, model))
    if processes.rank == 0:
        store.open(config.resume)
    processes.wait()
    speed, heads = _score_all(config, model, tokenizer, store, ids, processes, progress)  # 3
    processes.wait()
    if processes.rank != 0:
        return None
    loaded = store.load()
    scored = {trace_id: loaded[trace_id] for trace_id in ids}
    limit = context_limit(model.config)
    ranked: list[RankedTrace] = []
    fingerprint = tokenizer_fingerprint(tokenizer)

    def labelled() -> Iterator[Trace]:
        """The traces once more, one in memory at a time; what is ranked of them is kept."""
        for trace in prepare_traces(config.source):
            if sampled := SampledIds.of(trace):
                ours = sampled.tokenizer in (None, fingerprint)
                report.as_sampled += ours
                report.other_tokenizer += not ours
            found = ranked_trace(trace, scored[trace.id], report, limit)
            ranked.extend([found] if found else [])
            yield trace

    with progress("writing scores", len(ids)) as advance:
        store.finish(labelled(), scored, heads, lambda: advance(1, 0))
    result = rank_heads(config, card, heads, ranked, report, progress)  # 4, 5
    result = replace(result, speed=speed)
    write_result(result)  # 6
    return result


def _score_settings(config: ProbeConfig, card: ModelCard, model: Any) -> dict[str, Any]:
    """All that decides the scores of a trace, for resuming."""
    return {
        "model": asdict(card),
        "weights": weights_fingerprint(model),
        "dtype": str(next(model.parameters()).dtype),
        "backend": config.backend,
        "traces": file_hash(Path(config.traces)),
        "keep": config.keep,
        "segmenter": config.source.segmenter_json(),
        "rule": config.source.rule,
        "answer": config.answer,
        "think_end": config.think_end,
    }


def _score_all(
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
    started, tokens = time.perf_counter(), 0

    def encoded() -> Iterator[EncodedTrace]:
        for trace in prepare_traces(config.source):
            if trace.id in mine:
                yield encode_trace(tokenizer, trace, rule=config.source.rule, answer=config.answer)

    with progress("scoring", len(mine)) as advance:

        def count(traces: int, number: int) -> None:
            nonlocal tokens
            tokens += number
            advance(traces, number)

        for trace in score_traces(
            capture,
            encoded() if mine else (),
            device=next(model.parameters()).device,
            batch_tokens=config.batch_tokens,
            advance=count,
        ):
            store.add(trace)
    seconds = time.perf_counter() - started
    speed = {"traces": len(mine), "tokens": tokens, "seconds": seconds, "resumed": len(done)}
    return speed, capture.heads
