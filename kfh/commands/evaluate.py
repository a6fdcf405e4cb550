"""`kfh eval`: its settings from the command line, and the table that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from kfh.console import console, progress_bar, talk

if TYPE_CHECKING:
    from probing.intervals import Estimate
    from rl.evaluation.job import EvalConfig, EvalResult
    from rl.evaluation.summary import SetFigures


def run_eval(*, budgets: str, data: list[str], **settings: Any) -> None:
    """`kfh eval`: see `rl.evaluation.job`. Without a model the embedded one is evaluated."""
    from transformers.utils import logging

    from probing.models.load import pocket_model
    from rl.evaluation.job import EvalConfig, evaluate

    logging.disable_progress_bar()  # ours are enough
    if settings["model"] is None:
        settings["model"] = str(pocket_model())
    config = EvalConfig(data=tuple(data), budgets=_numbers(budgets), **settings)
    result = evaluate(config, progress=progress_bar)
    console.print(
        f"{config.model}, {_how(config)}; 95 % intervals over questions",
        highlight=False,
        soft_wrap=True,
    )
    # A table cut off by the width of a pipe says nothing.
    width = console.width if console.is_terminal else max(console.width, 120)
    console.print(figures_table(result), width=width)
    for text in warnings(result):
        talk.print(f"[yellow]{text}[/yellow]")
    asked = sum(len(found.correct) * found.samples for found in result.sets)
    console.print(
        f"{result.sampled} responses sampled in {result.seconds:.1f} s; "
        f"{asked - result.sampled} were there already\n"
        f"→ {Path(config.out)}: eval.json, responses/"
    )


def _numbers(text: str) -> tuple[int, ...]:
    from probing.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"--budgets {text!r}: write numbers, comma between") from error


def figures_table(result: EvalResult) -> Table:
    """A column a benchmark, a row a figure; what no benchmark has gets no row."""
    sets, means = result.sets, result.overall
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    names = [found.name for found in sets] + (["mean"] if means else [])
    for name in ("", *names):
        table.add_column(name, no_wrap=True)
    narrow = len(names) > 2  # intervals below the values
    rows: list[tuple[str, list[str]]] = [
        ("questions × samples", [f"{len(found.correct)} × {found.samples}" for found in sets]),
        ("accuracy", [_share(found.accuracy) for found in sets]),
    ]
    for k in sorted({k for found in sets for k in found.pass_at}):
        rows.append((f"pass@{k}", [_share(found.pass_at.get(k)) for found in sets]))
    for budget in result.config.budgets:
        title = f"accuracy ≤ {budget}"
        rows.append((title, [_share(found.budgets[budget]) for found in sets]))
    rows.append(("tokens", [_size(found.tokens) for found in sets]))
    rows.append(("cut off", [_share(found.truncated) for found in sets]))
    for group in ("confused", "summary"):
        cells = [_size(found.phrases[group], 2) for found in sets]
        rows.append((f"{group} / 1k tokens", cells))
    if any(found.redundancy for found in sets):
        rows += _pocket_rows(sets)
    if result.config.base:
        rows.append(("AES", [_score(found.aes) for found in sets]))
    of_means = {
        "accuracy": _share(means.accuracy) if means else "",
        "tokens": _size(means.tokens) if means else "",
        "AES": _score(means.aes) if means else "",
    }
    for name, cells in rows:
        row = [*cells, *([of_means.get(name, "")] if means else [])]
        table.add_row(name, *(cell.replace(" [", "\n[") if narrow else cell for cell in row))
    return table


def _pocket_rows(sets: tuple[SetFigures, ...]) -> list[tuple[str, list[str]]]:
    pockets = [found.redundancy for found in sets]
    return [
        ("redundant steps", [_size(p.redundant_steps, 2) if p else "–" for p in pockets]),
        ("redundant tokens", [_size(p.redundant_tokens) if p else "–" for p in pockets]),
        ("not readable", [str(p.unreadable) if p else "–" for p in pockets]),
    ]


def warnings(result: EvalResult) -> list[str]:
    """In words, what may make a figure mean less than it seems to."""
    found = []
    if result.base_differs:
        found.append(f"The base was evaluated otherwise: {'; '.join(result.base_differs)}.")
    for one in result.sets:
        responses = len(one.correct) * one.samples
        if one.unverified:
            found.append(
                f"{one.name}: the verifier does not accept the reference answers of "
                f"{one.unverified} questions; they count as wrong unless answered letter by letter."
            )
        if one.faults:
            kinds = ", ".join(f"{number} × {kind}" for kind, number in one.faults.items())
            found.append(f"{one.name}: the verifier failed on responses, counted wrong: {kinds}.")
        if one.truncated.value > 0.05:
            found.append(
                f"{one.name}: {one.truncated.value:.0%} of the responses hit the limit of "
                f"{result.config.max_tokens} tokens: their true length is not known."
            )
        ended = responses - one.no_answer
        if not ended:
            found.append(f"{one.name}: no response holds {result.config.think_end}: all are wrong.")
    return found


def _how(config: EvalConfig) -> str:
    if config.temperature == 0:
        return "greedy"
    return f"temperature {config.temperature}, top-p {config.top_p}"


def _share(figure: Estimate | None) -> str:
    if figure is None:
        return "–"
    return f"{figure.value:.3f} [dim]{figure.low:.2f}–{figure.high:.2f}[/dim]"


def _size(figure: Estimate | None, digits: int = 0) -> str:
    if figure is None:
        return "–"
    low, high = (f"{value:,.{digits}f}" for value in (figure.low, figure.high))
    return f"{figure.value:,.{digits}f} [dim]{low}–{high}[/dim]"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


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
