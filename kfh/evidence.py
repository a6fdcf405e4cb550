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
