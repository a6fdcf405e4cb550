"""Commands that show and doubt what was found; like `kfh.cli`, it imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class FolderGroup(TyperGroup):
    """`kfh plot DIR` is `kfh plot runs DIR`: what is no command is a folder, or an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in where the first word is none."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["runs", *args]
        return super().parse_args(ctx, args)


plot = typer.Typer(
    cls=FolderGroup,
    no_args_is_help=True,
    help="Draw figures. `kfh plot DIR...` draws what the folders hold; a folder by the name of a "
    "command is written ./NAME.",
)


@plot.command(name="runs")
def plot_runs(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Folder of kfh probe or kfh ablate; or folders of kfh train, or that hold such.",
        ),
    ],
    metric: Annotated[str, typer.Option(help="Of a probe: sra, balanced or gating.")] = "sra",
    smooth: Annotated[int, typer.Option(help="Of runs: steps of the moving mean.")] = 1,
    formats: Annotated[str, typer.Option(help="Of png, svg, pdf; comma between.")] = "png,svg,pdf",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures; default: the one DIR, or figures.")
    ] = None,
) -> None:
    """Draw a probe, an ablation, or training runs together."""
    from kfh.plots import run_plot

    run_plot(folders, metric, smooth, formats, out)


def ablate(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    model: Annotated[
        str | None, typer.Option(help="Hub id, folder or .gguf file; default: the pocket model.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Head file of `kfh probe`, or a shipped head set.")
    ] = None,
    traces: Annotated[Path | None, typer.Option(help="Trace file (JSONL, .gz too).")] = None,
    parts: Annotated[str, typer.Option(help="Of steps, heads, steering; comma between.")] = "steps",
    remove: Annotated[str, typer.Option(help="Steps: how many to remove.")] = "1,2,3",
    modes: Annotated[
        str,
        typer.Option(help="Heads: zero or mean, then /all positions or /answer-to-steps."),
    ] = "zero/all,mean/all,zero/answer-to-steps",
    factors: Annotated[
        str, typer.Option(help="Steering: factors on the attention to a step.")
    ] = "0,0.001,0.01,0.1,0.5,1,2,8",
    backend: Annotated[
        str, typer.Option(help="What edits heads: transformers or transformer-lens (slow).")
    ] = "transformers",
    draws: Annotated[int, typer.Option(help="Random draws of each control.")] = 5,
    answer: Annotated[
        str,
        typer.Option(
            help="Answer tokens that count: all, values or boxed. boxed: the model answers from "
            "the opened box."
        ),
    ] = "all",
    answer_limit: Annotated[
        int, typer.Option(help="The first so many answer tokens count; 0: all.")
    ] = 0,
    max_answer_tokens: Annotated[
        int, typer.Option(help="Longest greedy answer; 0: log-probabilities alone.")
    ] = 64,
    keep: Annotated[
        str, typer.Option(help="correct: leave wrong answers out; or all.")
    ] = "correct",
    only: Annotated[
        str, typer.Option(help="held-out: leave out what the heads were chosen on; or all.")
    ] = "held-out",
    limit: Annotated[
        int | None, typer.Option(help="The first so many traces; default all.")
    ] = None,
    labels: Annotated[str, typer.Option(help="steps: the file's own; or a label file.")] = "steps",
    skip_bad: Annotated[bool, typer.Option(help="Leave bad lines out (counted).")] = False,
    think_end: Annotated[str, typer.Option(help="The text that ends the reasoning.")] = "</think>",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    batch_tokens: Annotated[int, typer.Option(help="Tokens in a forward pass.")] = 8192,
    resume: Annotated[bool, typer.Option(help="Go on with the outcomes in --out.")] = True,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the model's.")] = False,
    seed: Annotated[int, typer.Option(help="Of random draws and bootstrap.")] = 0,
) -> None:
    """Remove steps or change heads, let the model answer again, and say what that costs."""
    from kfh.ablation import numbers, run_ablate, words

    run_ablate(
        model=model,
        heads=heads,
        traces=traces,
        parts=parts,
        out=out,
        only=only,
        limit=limit,
        resume=resume,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        config={
            "remove": numbers(remove, "--remove"),
            "modes": words(modes),
            "factors": numbers(factors, "--factors", float),
            "draws": draws,
            "answer": answer,
            "answer_limit": answer_limit,
            "max_answer_tokens": max_answer_tokens,
            "batch_tokens": batch_tokens,
            "seed": seed,
            "backend": backend,
        },
        source={"labels": labels, "keep": keep, "skip_bad": skip_bad, "think_end": think_end},
    )
