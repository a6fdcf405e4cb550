"""`kfh label --by judges`: the job of `rl.judging`, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from kfh.console import console, progress_bar, talk

if TYPE_CHECKING:
    from rl.judging import JudgingReport

CACHE = "judge-cache"


def run_judges(
    traces: Path,
    judges: Path,
    out: Path,
    consensus: str,
    segmenter: str,
    min_chars: int,
    concurrency: int,
    rate: float,
    cache: Path | None,
    limit: int | None,
) -> None:
    """Label the steps of a trace file by judges; see `rl.judging.JudgingConfig`.

    Args:
        judges: the judge file (`rl.judges`).
        cache: folder of the answers; None: `judge-cache` beside `out`, which labellings of the
            same folder share.
    """
    from rl.judges import Panel
    from rl.judging import JudgingConfig, judge_traces

    config = JudgingConfig(
        traces,
        Panel.load(judges),
        out,
        cache or out.parent / CACHE,
        consensus,
        segmenter,
        min_chars,
        concurrency,
        rate,
        limit,
    )
    report = judge_traces(config, progress=progress_bar)
    print_report(report, consensus)
    console.print(f"→ {out}; the judges' answers: {config.cache}", soft_wrap=True)


def print_report(report: JudgingReport, consensus: str) -> None:
    """The judges and their agreement, and what is missing."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("judge", "answers", "on disk", "tried again", "failed", "essential", "agrees"):
        table.add_column(name, no_wrap=True)
    rates = report.agreement["judges"]
    for name, counts in report.requests.items():
        agrees = [_share(share) for share in rates[name]["agrees_with"].values()]
        table.add_row(
            name,
            str(counts["answered"]),
            str(counts["cached"]),
            _listed(counts["tried_again"]),
            _listed(counts["failed"]),
            _share(rates[name]["essential"]),
            " ".join(agrees) or "–",
        )
    console.print(table, width=console.width if console.is_terminal else max(console.width, 120))
    kappa = report.agreement["fleiss_kappa"]
    console.print(
        f"Fleiss' κ {'does not exist' if kappa is None else f'{kappa:.3f}'} over "
        f"{report.agreement['steps']} steps; all agree on {_share(report.agreement['unanimous'])}"
    )
    labels = ", ".join(f"{number} {label}" for label, number in sorted(report.labels.items()))
    console.print(
        f"{report.labelled} of {report.traces} traces, {sum(report.labels.values())} steps "
        f"({labels}), by {consensus} consensus"
    )
    for reason, number in report.left_out.items():
        talk.print(f"[yellow]left out {number} traces:[/yellow] {reason}")
    if report.failed:
        talk.print(
            f"[yellow]{report.failed} answers are missing[/yellow], in {report.incomplete} traces "
            "some of the judges; the same command asks for them again"
        )


def _share(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} × {kind}" for kind, number in counts.items()) or "0"
