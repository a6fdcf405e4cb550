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

Formats = Annotated[str, typer.Option(help="Of png, svg, pdf; comma between.")]
Traces = Annotated[
    Path | None, typer.Option(help="Of a probe: its trace file, where it has moved.")
]


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
    traces: Traces = None,
    trace: Annotated[
        str | None, typer.Option(help="Of a probe: id of the trace to draw; default: the longest.")
    ] = None,
    formats: Formats = "png,svg,pdf",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures; default: the one DIR, or figures.")
    ] = None,
) -> None:
    """Draw a probe, an ablation, or training runs together."""
    from kfh.commands.show import run_plot

    run_plot(folders, metric, smooth, formats, out, traces, trace)


@plot.command(name="trace")
def plot_trace(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished kfh probe.")],
    html: Annotated[
        bool, typer.Option("--html", help="One page of all traces, to open in a browser.")
    ] = False,
    traces: Annotated[
        Path | None, typer.Option(help="The probe's trace file, where it has moved.")
    ] = None,
    ids: Annotated[
        str, typer.Option(help="Traces, comma between; default: the longest, or --limit of them.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(help="Page: most traces; default 200, 0 is all.")
    ] = None,
    heads: Annotated[
        str,
        typer.Option(
            help="Such as 2.3,2.1. Figure: their mean; default: the head set. Page: heads beside "
            "the set whose tokens are shown; default: the 4 best by SRA."
        ),
    ] = "",
    tokens: Annotated[
        bool, typer.Option(help="Page: attention of single tokens; loads the model.")
    ] = True,
    formats: Annotated[
        str, typer.Option(help="Figure: of png, svg, pdf; comma between.")
    ] = "png,svg,pdf",
    device: Annotated[str, typer.Option(help="Page: auto, cpu, cuda, …")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: trace.html or trace.* in DIR.")
    ] = None,
) -> None:
    """Show traces: steps by score, labels, phrase kinds, heads, tokens.

    A page holds at most 12 MB of step scores (so many heads as fit, best first) and 16 MB of
    tokens, before base64; what is left out it says.
    """
    settings = dict(locals())
    from kfh.commands.show import run_trace

    run_trace(**settings)


@plot.command(name="paper")
def plot_paper(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that kfh probe wrote.")],
    ablation: Annotated[
        Path | None, typer.Option(help="Folder of kfh ablate: the interventions.")
    ] = None,
    train: Annotated[
        list[Path] | None,
        typer.Option(help="Run of kfh train with probe_every, repeatable: stability over steps."),
    ] = None,
    stability: Annotated[
        list[Path] | None,
        typer.Option(help="Instead of runs: probes of later checkpoints, repeatable, in order."),
    ] = None,
    formats: Formats = "png,svg,pdf",
    out: Annotated[Path | None, typer.Option(help="Folder for the figure; default: DIR.")] = None,
) -> None:
    """Lay out the paper's Figure 2 for a probed model: heads, ensembles, cause, stability."""
    from kfh.commands.show import run_paper

    run_paper(folder, ablation, train or [], stability or [], formats, out)


def stability(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR DIR...", help="Folders that kfh probe wrote.")
    ],
    names: Annotated[
        str | None, typer.Option(help="Of the probes, comma between; default: their folders'.")
    ] = None,
    metric: Annotated[str, typer.Option(help="Of the heads: sra, balanced or gating.")] = "sra",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/stability"),
    formats: Formats = "png,svg,pdf",
    seed: Annotated[int, typer.Option(help="Of bootstrap and halves.")] = 0,
) -> None:
    """Hold probes of one model's shape against each other: are they the same heads?"""
    from kfh.commands.robustness import run_stability

    run_stability(folders, names, metric, out, formats, seed)


def sample_size(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that kfh probe wrote.")],
    traces: Traces = None,
    metric: Annotated[
        str | None, typer.Option(help="sra, balanced or gating; default: the probe's --by.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="Heads in a set; default: the probe's.")] = None,
    sizes: Annotated[
        str, typer.Option(help="Numbers of problems to draw, comma between.")
    ] = "5,10,20,50,100,200,500,1000,2000,5000",
    draws: Annotated[int, typer.Option(help="Subsets of each size.")] = 200,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default: DIR.")] = None,
    formats: Formats = "png,svg,pdf",
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Rank the heads again on fewer problems: how many traces are enough?"""
    from kfh.commands.robustness import run_sample_size

    run_sample_size(folder, traces, metric, top, sizes, draws, out, formats, seed)


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
    from kfh.commands.ablate import numbers, run_ablate, words

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
        },
        source={"labels": labels, "keep": keep, "skip_bad": skip_bad, "think_end": think_end},
    )


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder that holds results: of kfh probe, train, eval, …"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page (.html); default: report.html in DIR.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Its title.")] = None,
) -> None:
    """Report what was run and found, with its caveats: one HTML page, and Markdown beside it."""
    from kfh.findings.page import run_report

    run_report(folder, out, title)
