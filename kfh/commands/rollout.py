"""`kfh rollout`: its settings from the command line, and the counts that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfh.console import console, progress_bar, talk

if TYPE_CHECKING:
    from probing.choices import Keep
    from rl.sampling.collect import CollectReport


def run_rollout(
    *,
    out: Path,
    data: list[str],
    keep: Keep,
    easy: float,
    segmenter: str,
    min_chars: int,
    per_problem: int | None,
    **settings: Any,
) -> None:
    """`kfh rollout`: see `rl.sampling.collect`. Without a model the embedded one is sampled."""
    from transformers.utils import logging

    from probing.models.load import pocket_model
    from rl.sampling.collect import CollectConfig, collect_traces, parse_segmenter
    from rl.sampling.job import AskConfig

    logging.disable_progress_bar()  # ours are enough
    if settings["model"] is None:
        settings["model"] = str(pocket_model())
    folder = out.with_name(f"{out.name}.responses")
    config = CollectConfig(
        AskConfig(data=tuple(data), out=folder, **settings),
        out,
        keep,
        easy,
        parse_segmenter(segmenter, min_chars),
        per_problem,
    )
    report = collect_traces(config, progress=progress_bar)
    print_report(report, config.easy)
    console.print(f"→ {out}; all responses: {folder}", soft_wrap=True)


def print_report(report: CollectReport, easy: float) -> None:
    """What was sampled, kept and left out."""
    print_ = console.print
    print_(
        f"{report.responses} responses to {report.problems} problems, {report.sampled} sampled in "
        f"this run; {report.easy_problems} problems solved in ≥ {easy:g} of their samples",
        soft_wrap=True,
    )
    for reason, number in report.left_out.most_common():
        print_(f"{number:7} left out: {reason}")
    print_(f"{report.traces:7} traces, {report.with_ids} with the token ids as sampled")
    if report.with_ids < report.traces:
        talk.print(
            f"[yellow]{report.traces - report.with_ids} traces have no token ids[/yellow]: the "
            "backend gives none, or --tokenizer is missing; a probe will tokenise their text"
        )
    if report.prompts != "as given to the model":
        talk.print(f"[yellow]Prompts are {report.prompts}.[/yellow]")
    if report.unverified:
        talk.print(
            f"[yellow]The verifier does not accept the reference answers of {report.unverified} "
            "problems[/yellow]: they count as unsolved unless answered letter by letter"
        )
    for kind, number in report.faults.items():
        talk.print(f"[yellow]verifier failed on {number} responses, counted wrong[/yellow]: {kind}")
