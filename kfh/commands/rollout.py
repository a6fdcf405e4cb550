"""`kfh rollout`: its settings from the command line, and the counts that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfh.console import console, progress_bar, warn

if TYPE_CHECKING:
    from rl.sampling.collect import CollectReport


def run_rollout(
    *,
    out: Path,
    data: list[str],
    keep: str,
    easy: float,
    segmenter: str,
    min_chars: int,
    per_problem: int | None,
    **settings: Any,
) -> None:
    """`kfh rollout`: see `rl.sampling.collect`. Without a model the embedded one is sampled."""
    from transformers.utils import logging

    from probing.models.load import pocket_model
    from rl.evaluation.job import EvalConfig
    from rl.sampling.collect import CollectConfig, collect, parse_segmenter

    logging.disable_progress_bar()  # ours are enough
    if settings["model"] is None:
        settings["model"] = str(pocket_model())
    folder = out.with_name(f"{out.name}.responses")
    config = CollectConfig(
        EvalConfig(data=tuple(data), out=folder, **settings),
        out,
        keep,
        easy,
        parse_segmenter(segmenter, min_chars),
        per_problem,
    )
    report = collect(config, progress=progress_bar)
    print_report(report, config.easy)
    console.print(f"→ {out}; all responses: {folder}", soft_wrap=True)


def print_report(report: CollectReport, easy: float) -> None:
    """What was sampled, kept and left out."""
    lines = [
        f"{report.responses} responses to {report.problems} problems, {report.sampled} sampled in "
        f"this run; {report.easy_problems} problems solved in ≥ {easy:g} of their samples",
        *(f"{count:7} left out: {reason}" for reason, count in report.left_out.most_common()),
        f"{report.traces:7} traces, {report.with_ids} with the token ids as sampled",
    ]
    console.print("\n".join(lines), soft_wrap=True)
    if report.with_ids < report.traces:
        warn(
            f"{report.traces - report.with_ids} traces have no token ids: the backend gives none, "
            "or --tokenizer is missing; a probe will tokenise their text"
        )
    if report.prompts != "as given to the model":
        warn(f"Prompts are {report.prompts}.")
    if report.unverified:
        warn(
            f"The verifier does not accept the reference answers of {report.unverified} problems: "
            "they count as unsolved unless answered letter by letter"
        )
    for kind, count in report.faults.items():
        warn(f"verifier failed on {count} responses, counted wrong: {kind}")
