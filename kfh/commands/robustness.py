"""`kfh stability` and `kfh sample-size`: what was measured, written, printed and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kfh.commands.show import Formats, Traces, save_all
from kfh.console import console, print_tables, progress_bar
from kfh.options import options
from probing.choices import DRAWS, FORMATS, LADDER, Metric
from probing.errors import ConfigError


@options
def stability(
    folders: Annotated[
        tuple[Path, ...], typer.Argument(metavar="DIR", help="Folders that kfh probe wrote.")
    ],
    names: Annotated[
        tuple[str, ...], typer.Option(help="Of the probes, comma between; default: their folders'.")
    ] = (),
    metric: Annotated[Metric, typer.Option(help="Of the heads.")] = "sra",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/stability"),
    formats: Formats = FORMATS,
    seed: Annotated[int, typer.Option(help="Of bootstrap and halves.")] = 0,
) -> None:
    """Hold probes of one model's shape against each other: are they the same heads?"""
    from kfh.findings.robustness import stability_caveats, stability_tables
    from probing.figures.robustness import stability_figure
    from probing.robustness.stability import compare_probes, write_stability

    with progress_bar("comparing", len(folders) * (len(folders) - 1) // 2) as advance:
        content = compare_probes(folders, names or None, metric, seed, lambda: advance(1, 0))
    print_tables(stability_tables(content), stability_caveats(content))
    console.print(f"→ {write_stability(content, out)}", soft_wrap=True)
    save_all({"stability": stability_figure(content)}, out, formats)


@options
def sample_size(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that kfh probe wrote.")],
    traces: Traces = None,
    metric: Annotated[
        Metric | None, typer.Option(help="Of the heads; default: the probe's --by.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="Heads in a set; default: the probe's.")] = None,
    sizes: Annotated[
        tuple[int, ...], typer.Option(help="Numbers of problems to draw, comma between.")
    ] = LADDER,
    draws: Annotated[int, typer.Option(help="Subsets of each size.")] = DRAWS,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default: DIR.")] = None,
    formats: Formats = FORMATS,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Rank the heads again on fewer problems: how many traces are enough?"""
    from kfh.findings.robustness import sample_size_caveats, sample_size_table
    from probing.figures.robustness import sample_size_figure
    from probing.robustness.sample_size import measure_folder, write_sample_size

    if not sizes or min(sizes) < 1:
        raise ConfigError(f"--sizes takes numbers of problems from 1 on, not {sizes}")
    ladder = sorted(set(sizes))
    with progress_bar("drawing", 0) as advance:
        content = measure_folder(
            folder, traces, top, metric, draws, seed, ladder, lambda: advance(1, 0)
        )
    print_tables([sample_size_table(content)], sample_size_caveats(content))
    if content["enough"] is not None:  # else the caveat says it
        console.print(content["sentence"], style="bold", soft_wrap=True)
    place = out or folder
    console.print(f"→ {write_sample_size(content, place)}", soft_wrap=True)
    save_all({"sample_size": sample_size_figure(content)}, place, formats)
