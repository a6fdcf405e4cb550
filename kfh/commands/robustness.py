"""`kfh stability` and `kfh sample-size`: what was measured, written, printed and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from kfh.commands.show import Formats, Traces, checked_formats, save_all
from kfh.console import console, print_tables, progress_bar
from probing.choices import Metric


def run_stability(
    folders: Sequence[Path], names: str | None, metric: str, out: Path, formats: str, seed: int
) -> None:
    """`kfh stability`: see `probing.robustness.stability`.

    Raises:
        KfhError: bad settings, no finished probe, or models of different shapes.
    """
    from kfh.findings.robustness import stability_caveats, stability_tables
    from probing.figures.robustness import stability_figure
    from probing.robustness.stability import compare_probes, write_stability

    kinds = checked_formats(formats)
    listed = [name.strip() for name in names.split(",")] if names else None
    with progress_bar("comparing", len(folders) * (len(folders) - 1) // 2) as advance:
        content = compare_probes(folders, listed, metric, seed, lambda: advance(1, 0))
    print_tables(stability_tables(content), stability_caveats(content))
    console.print(f"→ {write_stability(content, out)}", soft_wrap=True)
    save_all({"stability": stability_figure(content)}, out, kinds)


def run_sample_size(
    folder: Path,
    traces: Path | None,
    metric: str | None,
    top: int | None,
    sizes: str,
    draws: int,
    out: Path | None,
    formats: str,
    seed: int,
) -> None:
    """`kfh sample-size`: see `probing.robustness.sample_size`.

    Raises:
        KfhError: bad settings, no finished probe, or a trace file that has moved.
    """
    from kfh.findings.robustness import sample_size_caveats, sample_size_table
    from probing.errors import ConfigError
    from probing.figures.robustness import sample_size_figure
    from probing.robustness.sample_size import measure_folder, write_sample_size

    kinds = checked_formats(formats)
    try:
        ladder = sorted({int(part) for part in sizes.split(",") if part.strip()})
    except ValueError as error:
        raise ConfigError(f"--sizes takes numbers with commas between, not {sizes!r}") from error
    if not ladder or ladder[0] < 1:
        raise ConfigError(f"--sizes takes numbers of problems from 1 on, not {sizes!r}")
    with progress_bar("drawing", 0) as advance:
        content = measure_folder(
            folder, traces, top, metric, draws, seed, ladder, lambda: advance(1, 0)
        )
    print_tables([sample_size_table(content)], sample_size_caveats(content))
    if content["enough"] is not None:  # else the caveat says it
        console.print(content["sentence"], style="bold", soft_wrap=True)
    place = out or folder
    console.print(f"→ {write_sample_size(content, place)}", soft_wrap=True)
    save_all({"sample_size": sample_size_figure(content)}, place, kinds)


def stability(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR DIR...", help="Folders that kfh probe wrote.")
    ],
    names: Annotated[
        str | None, typer.Option(help="Of the probes, comma between; default: their folders'.")
    ] = None,
    metric: Annotated[Metric, typer.Option(help="Of the heads.")] = "sra",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/stability"),
    formats: Formats = "png,svg,pdf",
    seed: Annotated[int, typer.Option(help="Of bootstrap and halves.")] = 0,
) -> None:
    """Hold probes of one model's shape against each other: are they the same heads?"""
    run_stability(folders, names, metric, out, formats, seed)


def sample_size(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that kfh probe wrote.")],
    traces: Traces = None,
    metric: Annotated[
        Metric | None, typer.Option(help="Of the heads; default: the probe's --by.")
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
    run_sample_size(folder, traces, metric, top, sizes, draws, out, formats, seed)
