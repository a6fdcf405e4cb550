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
            help="Folder that kfh probe wrote; or folders of kfh train, or that hold such folders.",
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
    """Draw a probe: heatmaps, per-layer profile, ensembles; or training runs, together."""
    from kfh.plots import run_plot

    run_plot(folders, metric, smooth, formats, out, traces, trace)


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
    from kfh.paper import run_paper

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
    from kfh.stability import run_stability

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
    from kfh.stability import run_sample_size

    run_sample_size(folder, traces, metric, top, sizes, draws, out, formats, seed)


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
    from kfh.report import run_report

    run_report(folder, out, title)
