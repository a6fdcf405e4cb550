"""`kfh rollout`: its settings from the command line, and the counts that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kfh.console import console, progress_bar, warn

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


def rollout(
    data: Annotated[
        list[str],
        typer.Option(help="Question set, repeatable: as for kfh eval."),
    ],
    out: Annotated[Path, typer.Option(help="Trace file to write (JSONL, .gz too).")],
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder; default: the pocket model.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Responses a problem.")] = 8,
    keep: Annotated[
        str, typer.Option(help="correct responses, or all that ended by themselves.")
    ] = "correct",
    easy: Annotated[
        float, typer.Option(help="Keep problems of which this share of samples is correct.")
    ] = 0.9,
    per_problem: Annotated[
        int | None, typer.Option(help="At most so many traces of a problem; default all.")
    ] = None,
    segmenter: Annotated[
        str, typer.Option(help="attnpo, line, sentence, paragraph, *.json; none: cut no steps.")
    ] = "attnpo",
    min_chars: Annotated[
        int, typer.Option(help="Steps shorter than this are merged (attnpo).")
    ] = 80,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Share of the chances that is sampled from.")] = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Longest response.")] = 4096,
    limit: Annotated[int | None, typer.Option(help="Questions of each set; default all.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampling and of generated questions.")] = 0,
    backend: Annotated[
        str, typer.Option(help="transformers, vllm, or openai: any compatible endpoint.")
    ] = "transformers",
    base_url: Annotated[
        str | None, typer.Option(help="Of the endpoint; its key is in OPENAI_API_KEY.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Rendered prompts to the endpoint's completions.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Hub id or folder, to render an endpoint's prompts.")
    ] = None,
    template: Annotated[
        str, typer.Option(help="auto, pocket, chat, chat-no-think or plain.")
    ] = "auto",
    think_end: Annotated[str, typer.Option(help="The text that ends the reasoning.")] = "</think>",
    batch: Annotated[int, typer.Option(help="Responses, or requests, at a time.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    resume: Annotated[bool, typer.Option(help="Go on with the responses beside --out.")] = True,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the model's.")] = False,
) -> None:
    """Sample and verify responses; keep those to problems solved nearly always, as traces."""
    settings = dict(locals())
    run_rollout(**settings)
