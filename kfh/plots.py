"""`kfh plot`: figures of a probe, of interventions, or of training runs together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kfh.console import console, talk

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rl.runs import Run


def run_plot(
    folders: Sequence[Path],
    metric: str,
    smooth: int,
    formats: str,
    out: Path | None,
    traces: Path | None = None,
    trace: str | None = None,
) -> None:
    """Draw what the folders hold: see `probing.figures` and `rl.figures`.

    The figures of one folder go into it, those of several into `figures` beside the first.

    Raises:
        ConfigError: unknown formats or metric, or probes together with other folders.
        DataError: a folder that holds nothing to draw, or damaged files.
    """
    from probing.errors import ConfigError
    from probing.selection import check_metric
    from rl.runs import is_probe

    check_metric(metric)
    kinds = checked_formats(formats)
    if smooth < 1:
        raise ConfigError(f"--smooth is a number of steps, at least 1, not {smooth}")
    alone = [folder for folder in folders if is_probe(folder) or is_ablation(folder)]
    if alone and len(folders) > 1:
        raise ConfigError(
            f"{alone[0]} holds a probe or an ablation: it is drawn alone; give it by itself, and "
            "training runs by themselves"
        )
    if (traces or trace) and not (alone and is_probe(alone[0])):
        raise ConfigError("--traces and --trace are of a probe; there is none in these folders")
    if alone and is_ablation(alone[0]):
        drawn = ablation_figures(alone[0])
    elif alone:
        drawn = probe_figures(folders[0], metric, traces, trace)
    else:
        drawn = training_figures(folders, smooth)
    save_all(
        drawn, out or (folders[0] if len(folders) == 1 else folders[0].parent / "figures"), kinds
    )


def checked_formats(formats: str) -> list[str]:
    """The formats of an option such as `png,svg`.

    Raises:
        ConfigError: none, or an unknown one.
    """
    from probing.errors import ConfigError
    from probing.style import FORMATS

    kinds = [kind.strip() for kind in formats.split(",") if kind.strip()]
    if not kinds or set(kinds) - set(FORMATS):
        raise ConfigError(f"unknown formats {formats!r}; choose of {', '.join(FORMATS)}")
    return kinds


def save_all(drawn: dict[str, Figure], place: Path, kinds: Sequence[str]) -> None:
    """Write figures by their names in each format, and say where."""
    from probing.style import save_figure

    for name, figure in drawn.items():
        for kind in kinds:
            path = place / f"{name}.{kind}"
            save_figure(figure, path)
            console.print(f"→ {path}")


def probe_figures(
    folder: Path, metric: str, traces: Path | None = None, trace: str | None = None
) -> dict[str, Figure]:
    """Every figure of a finished probe by its file name.

    The strip of one trace needs the trace file and the step scores; where they have gone the
    strip is left out, and that is said, unless a trace was asked for.

    Raises:
        DataError: no finished probe, or a trace that was asked for and cannot be drawn.
    """
    from probing.errors import DataError
    from probing.figures import RunFigures
    from probing.files import read_object
    from probing.finished import FinishedProbe
    from probing.stability_figures import sample_size_figure
    from probing.strips import strip_of

    figures = RunFigures.load(folder).all(metric)
    try:
        figures["strip"] = strip_of(FinishedProbe.load(folder, traces), trace)
    except DataError as error:
        if traces or trace:
            raise
        talk.print(f"[yellow]no strip of a trace:[/yellow] {error}")
    if (folder / "sample_size.json").is_file():
        figures["sample_size"] = sample_size_figure(read_object(folder / "sample_size.json"))
    return figures


def is_ablation(folder: Path) -> bool:
    """Whether `kfh ablate` wrote its result there."""
    return (folder / "ablation.json").is_file()


def ablation_figures(folder: Path) -> dict[str, Figure]:
    """Every figure of an ablation by its file name."""
    from probing.intervention_figures import InterventionFigures

    return InterventionFigures.load(folder).all()


def training_figures(folders: Sequence[Path], smooth: int) -> dict[str, Figure]:
    """Every figure of these training runs and evaluations by its file name.

    Raises:
        DataError: nothing to draw: no run, or none that has finished a step.
    """
    from probing.errors import DataError
    from rl.figures import all_figures
    from rl.runs import find_runs, read_evaluations, read_points, read_run

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
            talk.print(f"[yellow]{run.folder}: left out {run.torn} cut last line(s)[/yellow]")
        if run.repeated:
            talk.print(f"{run.folder}: {run.repeated} step lines replaced by later ones (resumed)")
        if run.status != "done":
            talk.print(f"{run.folder}: {run.status}, {len(run.metrics)} steps so far")
