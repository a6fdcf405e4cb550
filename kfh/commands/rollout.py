"""`kfh rollout`: the counts that it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kfh.console import console, progress_bar, report_cut, warn
from kfh.options import options
from rl.sampling.config import CollectConfig

if TYPE_CHECKING:
    from rl.sampling.collect import CollectReport


@options
def rollout(config: CollectConfig) -> None:
    """Sample and verify responses; keep those to problems solved nearly always, as traces."""
    from transformers.utils import logging

    from rl.sampling.collect import collect_traces

    logging.disable_progress_bar()  # ours are enough
    print_report(collect_traces(config, progress=progress_bar), config.easy)
    console.print(f"→ {config.out}; all responses: {config.responses}", soft_wrap=True)


def print_report(report: CollectReport, easy: float) -> None:
    """What was sampled, kept and left out."""
    lines = [
        f"{report.responses} responses to {report.problems} problems, {report.sampled} sampled in "
        f"this run; {report.easy_problems} problems solved in ≥ {easy:g} of their samples",
        *(f"{count:7} left out: {reason}" for reason, count in report.left_out.most_common()),
        f"{report.traces:7} traces, {report.with_ids} with the token ids as sampled",
    ]
    console.print("\n".join(lines), soft_wrap=True)
    report_cut(report.cut)
    if report.with_ids < report.traces:
        warn(
            f"{report.traces - report.with_ids} traces have no token ids: the backend gives none, "
            "or --tokenizer is missing; a probe will tokenise their text"
        )
    if report.prompts != "as given to the model":
        warn(f"Prompts are {report.prompts}.")
    for text in report.bad_questions:
        warn(text)
    if report.unverified:
        warn(
            f"The verifier does not accept the reference answers of {report.unverified} problems: "
            "they count as unsolved unless answered letter by letter"
        )
    for kind, count in report.faults.items():
        warn(f"verifier failed on {count} responses, counted wrong: {kind}")
