"""`kfh plot`: figures of a probe, of interventions, or of training runs together.

`kfh plot trace`: the steps of traces with their scores, as a figure or as a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from kfh.console import console, progress_bar, say, warn
from kfh.options import options
from probing.choices import FORMATS, Format, Metric, Scale
from probing.errors import ConfigError
from probing.settings import unknown
from probing.viewer.config import ViewerConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kfh.findings.base import Kind
    from rl.runs.folders import Run


class FolderGroup(TyperGroup):
    """`kfh plot DIR` is `kfh plot runs DIR`: what is no command is a folder, or an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in where the first word is none."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            near = get_close_matches(args[0], self.commands, cutoff=0.7)
            if near and not Path(args[0]).exists():
                raise ConfigError(unknown("command or folder", args[0], self.commands))
            args = ["runs", *args]
        return super().parse_args(ctx, args)


plot = typer.Typer(
    cls=FolderGroup,
    add_completion=False,
    no_args_is_help=True,
    help="Draw figures. `kfh plot DIR...` draws what the folders hold; a folder by the name of a "
    "command is written ./NAME.",
)

Formats = Annotated[tuple[Format, ...], typer.Option(help="Comma between.")]
Traces = Annotated[
    Path | None, typer.Option(help="Of a probe: its trace file, where it has moved.")
]


@plot.command(name="runs")
@options
def plot_runs(
    folders: Annotated[
        tuple[Path, ...],
        typer.Argument(
            metavar="DIR",
            help="Folder of kfh probe or kfh ablate; or folders of kfh train, or that hold such.",
        ),
    ],
    metric: Annotated[Metric, typer.Option(help="Of a probe.")] = "sra",
    scale: Annotated[
        Scale,
        typer.Option(help="Of a probe's heatmap: continuous, centred at chance, or the paper's."),
    ] = "continuous",
    smooth: Annotated[int, typer.Option(help="Of runs: steps of the moving mean.")] = 1,
    traces: Traces = None,
    trace: Annotated[
        str | None, typer.Option(help="Of a probe: id of the trace to draw; default: the longest.")
    ] = None,
    formats: Formats = FORMATS,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures; default: the one DIR, or figures.")
    ] = None,
) -> None:
    """Draw a probe, an ablation, or training runs together.

    The figures of one folder go into it, those of several into `figures` beside the first.
    """
    from probing.files.headers import kind_of

    if smooth < 1:
        raise ConfigError(f"--smooth is a number of steps, at least 1, not {smooth}")
    probes = [folder for folder in folders if "probe" in kind_of(folder)]
    alone = probes or [folder for folder in folders if finished_kinds(folder)]
    if alone and len(folders) > 1:
        raise ConfigError(
            f"{alone[0]} holds {'a probe' if probes else finished_kinds(alone[0])[0].name}: it is "
            "drawn alone; give it by itself, and training runs by themselves"
        )
    if (traces or trace) and not probes:
        raise ConfigError("--traces and --trace are of a probe; there is none in these folders")
    if probes:
        drawn = probe_figures(folders[0], metric, traces, trace, scale)
    elif alone:
        drawn = finished_figures(folders[0])
    else:
        drawn = training_figures(folders, smooth)
    beside = folders[0] if len(folders) == 1 else folders[0].parent / "figures"
    save_all(drawn, out or beside, formats)


def save_all(drawn: dict[str, Figure], place: Path, formats: Sequence[Format]) -> None:
    """Write figures by their names in each format, and say where."""
    from probing.figures.style import save_figure

    if not formats:
        raise ConfigError(f"--formats names none; choose of {', '.join(FORMATS)}")
    for name, figure in drawn.items():
        for kind in formats:
            path = place / f"{name}.{kind}"
            save_figure(figure, path)
            console.print(f"→ {path}", soft_wrap=True)


def probe_figures(
    folder: Path,
    metric: str,
    traces: Path | None = None,
    trace: str | None = None,
    scale: str = "continuous",
) -> dict[str, Figure]:
    """Every figure of a finished probe by its file name.

    The strip of one trace needs the trace file and the step scores; where they have gone the
    strip is left out, and that is said, unless a trace was asked for.

    Raises:
        DataError: no finished probe, or a trace that was asked for and cannot be drawn.
    """
    from probing.errors import DataError
    from probing.figures import probe, robustness
    from probing.figures.trace import strip_of
    from probing.figures.types import types_figure
    from probing.files.headers import read_object
    from probing.folder import ProbeResult

    result = ProbeResult.load(folder, traces)
    figures = probe.figures_of(result, metric, scale)
    for text in result.caveats:
        warn(f"Caveat: {text}")
    try:
        figures["strip"] = strip_of(result, trace)
    except DataError as error:
        if traces or trace:
            raise
        warn(f"no strip of a trace: {error}")
    if (folder / "types.json").is_file():
        figures["types"] = types_figure(read_object(folder / "types.json"))
    if (folder / "sample_size.json").is_file():
        figures["sample_size"] = robustness.sample_size_figure(
            read_object(folder / "sample_size.json")
        )
    return figures


# Training runs and what measures them are drawn together, a probe by its metric and trace.
OTHERWISE = ("probe", "training", "comparison", "evaluation")


def finished_kinds(folder: Path) -> list[Kind]:
    """The kinds of results of a folder that are drawn as a report draws them."""
    from kfh.findings.kinds import KINDS

    return [kind for kind in KINDS if kind.name not in OTHERWISE and kind.lies_in(folder)]


def finished_figures(folder: Path) -> dict[str, Figure]:
    """The pictures of the report's sections of a folder, by their file names."""
    from kfh.findings.base import Place

    sections = [kind.read(Place(folder, (folder,))) for kind in finished_kinds(folder)]
    return {picture.name: picture.figure for section in sections for picture in section.pictures}


def training_figures(folders: Sequence[Path], smooth: int) -> dict[str, Figure]:
    """Every figure of these training runs and evaluations by its file name.

    Raises:
        DataError: nothing to draw: no run, or none that has finished a step.
    """
    from probing.errors import DataError
    from rl.runs.figures import all_figures
    from rl.runs.folders import find_runs, read_evaluations, read_points, read_run

    run_folders, others = find_runs(folders)
    runs = [read_run(folder) for folder in run_folders]
    evaluations = [e for folder in [*others, *run_folders] for e in read_evaluations(folder)]
    points = [p for folder in [*others, *run_folders] for p in read_points(folder)]
    figures = all_figures(runs, evaluations, smooth, points)
    if not figures:
        raise DataError(f"{folders[0]}: no step is finished yet, so there is nothing to draw")
    _report(runs)
    return figures


def _report(runs: Sequence[Run]) -> None:
    """Say what was left out, and which runs are not finished."""
    for run in runs:
        if run.torn:
            warn(f"{run.folder}: left out {run.torn} cut last line(s)")
        if run.repeated:
            say(f"{run.folder}: {run.repeated} step lines replaced by later ones (resumed)")
        if run.status != "done":
            say(f"{run.folder}: {run.status}, {len(run.metrics)} steps so far")


@plot.command(name="trace")
@options
def plot_trace(
    config: ViewerConfig,
    html: Annotated[
        bool, typer.Option("--html", help="One page of all traces, to open in a browser.")
    ] = False,
    formats: Formats = FORMATS,
) -> None:
    """Show traces: steps by score, labels, phrase kinds, heads, tokens.

    A page holds at most 12 MB of step scores (so many heads as fit, best first) and 16 MB of
    tokens, before base64; what is left out it says.
    """
    if html:
        write_viewer(config)
        return
    if config.limit is not None or not config.tokens or config.beside:
        raise ConfigError("--limit, --no-tokens and --beside are of the page; give --html too")
    draw_strip(config, formats)


def write_viewer(config: ViewerConfig) -> None:
    """Write the page, and say what is in it."""
    from transformers.utils import logging

    from probing.viewer.page import write_page

    logging.disable_progress_bar()  # ours is enough
    page = write_page(config, progress_bar)
    for model in page.models:
        name = f"{model.name}: " if len(page.models) > 1 else ""
        with_tokens = f"tokens of the set's mean and {model.token_heads} heads"
        console.print(
            f"{name}{page.traces} of {model.scored} scored traces; step scores of {model.heads} of "
            f"{model.all_heads} heads; {with_tokens if model.token_heads else 'no tokens'}"
        )
    if page.alone:
        console.print(f"left out: {page.alone} traces that not every probe scored")
    console.print(f"→ {page.path} ({page.size / 1e6:.1f} MB)", highlight=False)


def draw_strip(config: ViewerConfig, formats: Sequence[Format]) -> None:
    """Draw one trace's steps by the mean of the heads; without an id the one of most steps."""
    from probing.figures.style import save_figure
    from probing.figures.trace import strip_of
    from probing.files.headers import refuse_overwriting
    from probing.folder import ProbeResult

    if len(config.ids) > 1:
        raise ConfigError("a figure shows one trace: give one --ids, or --html for a page of many")
    paths = [config.folder / f"trace.{kind}" for kind in formats]
    paths = [config.out] if config.out else paths
    if config.out and config.out.suffix[1:] not in FORMATS:
        raise ConfigError(unknown("--out with the ending", config.out.suffix[1:], FORMATS))
    for path in paths:
        refuse_overwriting(path, config.traces)
    trace = config.ids[0] if config.ids else None
    figure = strip_of(ProbeResult.load(config.folder, config.traces), trace, config.heads or None)
    for path in paths:
        save_figure(figure, path)
        console.print(f"→ {path}", soft_wrap=True)


@plot.command(name="paper")
@options
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
    formats: Formats = FORMATS,
    out: Annotated[Path | None, typer.Option(help="Folder for the figure; default: DIR.")] = None,
) -> None:
    """Lay out the paper's Figure 2 for a probed model: heads, ensembles, cause, stability."""
    from rl.runs.paper import paper_figure

    figure, missing = paper_figure(folder, ablation, train or [], stability or [])
    for text in missing:
        warn(f"left out: {text}")
    save_all({"paper": figure}, out or folder, formats)


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
