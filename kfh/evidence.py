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
            help="Folder that kfh probe wrote; or folders of kfh train, or that hold such folders.",
        ),
    ],
    metric: Annotated[str, typer.Option(help="Of a probe: sra, balanced or gating.")] = "sra",
    smooth: Annotated[int, typer.Option(help="Of runs: steps of the moving mean.")] = 1,
    formats: Annotated[str, typer.Option(help="Of png, svg, pdf; comma between.")] = "png,svg,pdf",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures; default: the one DIR, or figures.")
    ] = None,
) -> None:
    """Draw a probe: heatmaps, per-layer profile, ensembles; or training runs, together."""
    from kfh.plots import run_plot

    run_plot(folders, metric, smooth, formats, out)


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
    from kfh.tracing import run_trace

    run_trace(**settings)
