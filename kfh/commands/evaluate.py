"""`kfh eval`: its settings from the command line, and the table that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kfh.console import console, print_tables, progress_bar


def run_eval(*, budgets: str, data: list[str], **settings: Any) -> None:
    """`kfh eval`: see `rl.evaluation.job`. Without a model the embedded one is evaluated."""
    from transformers.utils import logging

    from kfh.findings.evaluation import evaluation_caveats, evaluation_table, how
    from probing.files.headers import read_object
    from probing.models.load import pocket_model
    from rl.evaluation.job import EvalConfig, evaluate

    logging.disable_progress_bar()  # ours are enough
    if settings["model"] is None:
        settings["model"] = str(pocket_model())
    config = EvalConfig(data=tuple(data), budgets=_numbers(budgets), **settings)
    result = evaluate(config, progress=progress_bar)
    content = read_object(Path(config.out) / "eval.json")
    name = f"{config.model}, {how(content['settings'])}"
    print_tables([evaluation_table(content, name)], evaluation_caveats(content))
    asked = sum(len(figures.correct) * figures.samples for figures in result.sets)
    console.print(
        f"{result.sampled} responses sampled in {result.seconds:.1f} s; "
        f"{asked - result.sampled} were there already\n"
        f"→ {Path(config.out)}: eval.json, responses/",
        soft_wrap=True,
    )


def _numbers(text: str) -> tuple[int, ...]:
    from probing.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"--budgets {text!r}: write numbers, comma between") from error


def evaluate(
    data: Annotated[
        list[str],
        typer.Option(
            help="Question set, repeatable: FILE.jsonl, a folder of them, "
            "hub:owner/name@config:split, rg:TASK, pocket:N@SEED, pocket-held-out:N."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder; default: the pocket model.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Responses a question.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Share of the chances that is sampled from.")] = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Longest response.")] = 4096,
    limit: Annotated[int | None, typer.Option(help="Questions of each set; default all.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampling and of generated questions.")] = 0,
    preset: Annotated[
        str | None, typer.Option(help="paper: its samples a question, by benchmark.")
    ] = None,
    budgets: Annotated[
        str, typer.Option(help="Accuracy within so many tokens, such as 2048,4096.")
    ] = "",
    base: Annotated[
        Path | None, typer.Option(help="A former evaluation (folder), to compute AES against.")
    ] = None,
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
    think_end: Annotated[
        str, typer.Option(help="The text that ends the reasoning; empty: there is none.")
    ] = "</think>",
    batch: Annotated[int, typer.Option(help="Responses, or requests, at a time.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    resume: Annotated[bool, typer.Option(help="Go on with the responses in --out.")] = True,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the model's.")] = False,
) -> None:
    """Evaluate a model on question sets: accuracy, length, budgets, phrases, AES."""
    settings = dict(locals())  # the arguments, by the names that EvalConfig gives them
    run_eval(**settings)
