"""A labelling job: every step of every trace judged once, and the label file.

1. Read and check the traces; no judge is asked before the file is known to be good.
2. Ask every judge for every trace, `concurrency` requests at a time; answers are kept on disk as
   they come (`rl.judges.client`).
3. Consensus and agreement; write the label file, whole. Nothing in it depends on the order in
   which the answers came.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from probing.errors import DataError
from probing.files.headers import file_hash, refuse_overwriting
from probing.settings import Progress, no_progress
from probing.traces.file import Trace
from probing.traces.labels import write_labels
from probing.traces.reports import ReadReport
from probing.traces.source import StepSource
from rl.judges.client import AnswerCache, JudgeClient, NoVerdict
from rl.judges.config import JudgingConfig
from rl.judges.panel import Panel
from rl.judges.votes import consensus_label, essential_share, fleiss_agreement

TOO_LONG = "longer than max_chars"
NO_STEPS = "without steps"
NO_VOTES = "without an answer of any judge"


@dataclass(frozen=True)
class _Job:
    """What is judged, by whom, and how."""

    source: StepSource
    panel: Panel
    config: JudgingConfig
    cache: Path

    def traces(self, report: ReadReport | None = None) -> Iterator[Trace]:
        """The traces with the steps that are judged; `report` counts bad lines."""
        return islice(self.source.traces(report), self.config.limit)


@dataclass
class JudgingReport:
    """What became of the traces and of the requests."""

    reading: ReadReport = field(default_factory=ReadReport)
    traces: int = 0  # read, without bad lines
    labelled: int = 0  # in the label file
    left_out: Counter[str] = field(default_factory=Counter)
    incomplete: int = 0  # in the file, but without the votes of all judges
    labels: Counter[str] = field(default_factory=Counter)
    agreement: dict[str, Any] = field(default_factory=dict)
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)  # by judge, of this run

    @property
    def failed(self) -> int:
        """Answers that are missing; the same command asks for them again."""
        return sum(sum(counts["failed"].values()) for counts in self.requests.values())

    def to_json(self) -> dict[str, Any]:
        """Counts for the header."""
        return {
            "traces": self.traces,
            "labelled": self.labelled,
            "left_out": dict(self.left_out),
            "incomplete": self.incomplete,
            "labels": dict(self.labels),
            "bad_lines": dict(self.reading.bad),
        }


def judge_traces(
    source: StepSource,
    panel: Panel,
    out: Path,
    config: JudgingConfig | None = None,
    progress: Progress = no_progress,
) -> JudgingReport:
    """Have the steps of a trace file judged, and write the label file.

    Args:
        source: the trace file, and how it is cut; labels that it holds are not shown to a judge.
        panel: the judges.
        out: the label file.
        config: default `JudgingConfig()`.
        progress: shows answers and their tokens.

    Raises:
        KfhError: a bad trace or setting; a judge that cannot be asked. Answers that came before
            are kept, and are not asked for again.
    """
    refuse_overwriting(out, source.path)
    config = config or JudgingConfig()
    job = _Job(source, panel, config, config.cache_beside(out))
    report = JudgingReport()
    asked = list(_judged_ids(job, report))  # 1
    votes = asyncio.run(_ask_all(job, set(asked), report, progress))  # 2
    lines = list(_lines(job, asked, votes, report))  # 3
    if not lines:
        reasons = {name: counts["failed"] for name, counts in report.requests.items()}
        raise DataError(f"{source.path}: no judge gave a usable answer: {reasons}")
    report.agreement = fleiss_agreement([line["votes"] for line in lines])
    write_labels(
        out,
        lines,
        source.segmenter_json(),
        source="judges",
        traces=str(source.path),
        traces_hash=file_hash(source.path),
        **source.mark.to_json(),
        consensus=config.consensus,
        **panel.to_json(),
        counts=report.to_json(),
        agreement=report.agreement,
        requests=report.requests,
    )
    return report


def _judged_ids(job: _Job, report: JudgingReport) -> Iterator[str]:
    """Ids of the traces that are judged; the others are counted."""
    for trace in job.traces(report.reading):
        report.traces += 1
        if not trace.steps:
            report.left_out[NO_STEPS] += 1
        elif job.panel.too_long(trace):
            report.left_out[TOO_LONG] += 1
        else:
            yield trace.id
    if report.traces == sum(report.left_out.values()):
        reasons = ", ".join(f"{number} {why}" for why, number in report.left_out.items())
        raise DataError(f"{job.source.path}: no trace can be judged ({reasons}); see --segmenter")


Votes = dict[str, dict[str, list[str] | None]]  # trace → judge → labels


async def _ask_all(job: _Job, ids: set[str], report: JudgingReport, progress: Progress) -> Votes:
    """Ask every judge for every trace; the first error that stops the job stops all requests."""
    votes: Votes = {}
    cache = AnswerCache(job.cache)
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(JudgeClient(judge, cache, job.config.rate))
            for judge in job.panel.judges
        ]
        with progress("judging", len(ids) * len(clients)) as advance:
            jobs = _jobs(job, ids, clients, votes, advance)
            try:
                await _work(jobs, job.config.concurrency)
            finally:
                report.requests = {c.judge.name: c.counts.to_json() for c in clients}
    return votes


def _jobs(
    job: _Job, ids: set[str], clients: list[JudgeClient], votes: Votes, advance: Any
) -> Iterator[tuple[JudgeClient, str, Trace, dict[str, list[str] | None], Any]]:
    """What has to be asked; what is on disk becomes a vote at once."""
    for trace in job.traces():
        if trace.id not in ids:
            continue
        prompt = job.panel.ask(trace)
        by_judge = votes.setdefault(trace.id, dict.fromkeys((c.judge.name for c in clients), None))
        for client in clients:
            labels = client.cached(prompt, len(trace.steps))
            if labels is not None:
                by_judge[client.judge.name] = labels
                advance(1, 0)
            else:
                yield client, prompt, trace, by_judge, advance


async def _work(jobs: Iterator[Any], concurrency: int) -> None:
    """Workers that take jobs from one iterator, so that few traces are in memory."""

    async def worker() -> None:
        for client, prompt, trace, by_judge, advance in jobs:
            before = sum(client.counts.tokens.values())
            with suppress(NoVerdict):  # counted by the client, with its reason
                by_judge[client.judge.name] = await client.ask(prompt, len(trace.steps))
            advance(1, sum(client.counts.tokens.values()) - before)

    tasks = [asyncio.create_task(worker()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _lines(
    job: _Job, ids: list[str], votes: Votes, report: JudgingReport
) -> Iterator[dict[str, Any]]:
    """A line a step, in the order of the traces."""
    for trace_id in ids:
        by_judge = votes[trace_id]
        given = [labels for labels in by_judge.values() if labels is not None]
        if not given:
            report.left_out[NO_VOTES] += 1
            continue
        report.labelled += 1
        report.incomplete += len(given) < len(by_judge)
        for step in range(len(given[0])):
            of_step = {name: labels[step] if labels else None for name, labels in by_judge.items()}
            label = consensus_label(list(of_step.values()), job.config.consensus)
            report.labels[label or "without consensus"] += 1
            yield {
                "id": trace_id,
                "step": step,
                "label": label,
                "score": essential_share(list(of_step.values())),
                "source": f"judges, {job.config.consensus}",
                "votes": of_step,
            }
