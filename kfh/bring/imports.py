"""`kfh import`: data sets and logs of others to a trace file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from kfh.console import console, progress_bar, report_left_out, report_reading, say, warn
from kfh.options import options
from probing.files.reading import BadLine
from probing.formats.drafts import Render, plain_prompt
from probing.formats.job import UNKNOWN, ImportConfig, ImportReport, import_traces
from probing.numbers import plural


@options
def bring(
    config: ImportConfig,
    *,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Run code that comes with the tokenizer.")
    ] = False,
) -> None:
    """Make a trace file of a data set of reasoning traces, a log of an API or an evaluation."""
    run_import(config, trust_remote_code)


def run_import(config: ImportConfig, trust_remote_code: bool = False) -> ImportReport:
    """`kfh import`: see `probing.formats.job`.

    Args:
        trust_remote_code: run code that comes with the tokenizer.
    """
    from rl.tasks.maths import maths_verdict

    asked = [0]
    render: Render = plain_prompt
    if config.tokenizer:
        from probing.models.load import load_tokenizer

        render = rendered(load_tokenizer(config.tokenizer, trust_remote_code=trust_remote_code))

    def counted(messages: Sequence[dict[str, str]], start: str) -> str:
        asked[0] += 1
        return render(messages, start)

    report = import_traces(
        config, verdict=maths_verdict, render=counted, progress=progress_bar, show=say
    )
    print_report(config, report)
    if asked[0] and not config.tokenizer:
        warn(
            f"{asked[0]} prompts are the plain text of their messages: --tokenizer MODEL gives "
            "them the model's chat template"
        )
    return report


def rendered(tokenizer: Any) -> Render:
    """Prompts by the chat template of a tokenizer; what the template refuses is a loss."""

    def render(messages: Sequence[dict[str, str]], start: str) -> str:
        from jinja2 import TemplateError

        from rl.tasks.prompts import render_messages

        try:
            return render_messages(tokenizer, messages, start)
        except TemplateError as error:
            raise BadLine("chat template", f"the chat template refuses it ({error})") from error

    return render


def print_report(config: ImportConfig, report: ImportReport) -> None:
    """What was read, what was left out and why, and who says what is right."""
    report_reading(report.reading)
    report_left_out(report.left_out, f" (--keep {config.keep})")
    for text in report.marks(config.think_end or "</think>"):
        warn(text)
    if report.renamed:
        warn(f"{report.renamed} traces have the id of another, and got one of their own (~2, ~3)")
    said = ", ".join(f"{count} {who}" for who, count in report.verdicts.most_common())
    read = f"{plural(report.records, 'record')}, {plural(report.traces, 'trace')} ({said})"
    console.print(f"{read} → {config.out}", soft_wrap=True)
    if report.with_steps:
        console.print(f"{report.with_steps} of them with the source's steps", soft_wrap=True)
    if unknown := report.verdicts[UNKNOWN]:
        warn(
            f"Of {unknown} responses nobody says whether they are right: a probe uses them "
            "(--keep known leaves them out)"
        )
