"""`kfh stability` and `kfh sample-size`: tables of what was measured, and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kfh.commands.show import Formats, Traces, checked_formats, save_all
from kfh.console import console, plain_table, progress_bar, talk
from probing.choices import Metric

if TYPE_CHECKING:
    from rich.table import Table


POOR = 0.7  # reliability below which a probe is called noisy


def run_stability(
    folders: Sequence[Path], names: str | None, metric: str, out: Path, formats: str, seed: int
) -> None:
    """`kfh stability`: see `probing.robustness.stability`.

    Raises:
        KfhError: bad settings, no finished probe, or models of different shapes.
    """
    from probing.figures.robustness import stability_figure
    from probing.robustness.stability import stability, write_stability

    kinds = checked_formats(formats)
    listed = [name.strip() for name in names.split(",")] if names else None
    with progress_bar("comparing", len(folders) * (len(folders) - 1) // 2) as advance:
        found = stability(folders, listed, metric, seed, lambda: advance(1, 0))
    for probe in found["probes"]:
        if probe["resampled"] != "problems":
            talk.print(f"[yellow]{probe['name']} resamples {probe['resampled']}[/yellow]")
    for table in (probes_table(found), pairs_table(found)):
        console.print(table)
    for text in notes(found):
        console.print(f"[yellow]Caveat:[/yellow] {text}")
    console.print(f"→ {write_stability(found, out)}")
    save_all({"stability": stability_figure(found)}, out, kinds)


def probes_table(found: dict[str, Any]) -> Table:
    """A row a probe: traces, reliability, head set."""
    title = f"{found['metric']} of {found['heads']} heads; reliability: by halves of the problems"
    table = plain_table(title, "probe", "traces", "halves r", "reliability", "head set")
    for probe in found["probes"]:
        heads = ", ".join(f"{layer}.{head}" for layer, head in probe["chosen"])
        half, whole = (_number(probe[key]) for key in ("halves", "reliability"))
        table.add_row(probe["name"], str(probe["ranked"]), half, whole, heads)
    return table


def pairs_table(found: dict[str, Any]) -> Table:
    """A row a pair: correlations beside their ceiling, shared heads beside chance."""
    title = (
        "Correlation of head figures (r Pearson, ρ Spearman); ceiling: by reliability; corrected: "
        f"free of noise; heads shared by sets of {_sizes(found)}, and by chance"
    )
    interval = "[dim]95 %[/dim]"
    names = (f"r {interval}", "ρ", "ceiling", f"corrected {interval}", "shared", "p")
    table = plain_table(title, "pair", *names)
    for pair in found["pairs"]:
        sets = pair["chosen"]
        table.add_row(
            f"{pair['a']}, {pair['b']}",
            interval_text(pair, "pearson"),
            _number(pair["spearman"]),
            _number(pair["ceiling"]),
            interval_text(pair, "corrected"),
            f"{sets['shared']} [dim]{sets['expected']:.2f}[/dim]",
            f"{sets['p']:.1g}",
        )
    return table


def _sizes(found: dict[str, Any]) -> str:
    sizes = sorted({len(probe["chosen"]) for probe in found["probes"]})
    return " and ".join(map(str, sizes))


def notes(found: dict[str, Any]) -> list[str]:
    """In words, what the figures do not allow to say."""
    texts = []
    known = [p for p in found["probes"] if p["reliability"] is not None]
    low = [p["name"] for p in known if p["reliability"] < POOR]
    if low:
        texts.append(
            f"{', '.join(low)}: reliability below {POOR}, much of the head figures is noise; more "
            "traces would raise the ceiling."
        )
    for pair in found["pairs"]:
        if pair["chosen"]["p"] > 0.05:
            texts.append(
                f"{pair['a']} and {pair['b']} share {pair['chosen']['shared']} chosen heads, which "
                f"random sets do as well (p = {pair['chosen']['p']:.2f})."
            )
    configs = {p["config"] for p in found["probes"]}
    if len(configs) > 1:
        texts.append(
            "the models are of one shape but of different configurations: places of heads mean the "
            "same only in checkpoints or fine-tunes of one model."
        )
    return texts


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
        found = measure_folder(
            folder, traces, top, metric, draws, seed, ladder, lambda: advance(1, 0)
        )
    console.print(sample_table(found))
    if found["probe_selection"] != "top":
        console.print(
            f"The probe chose its heads by {found['probe_selection']} selection; here each draw "
            "takes its top heads."
        )
    console.print(f"[bold]{found['sentence']}[/bold]")
    place = out or folder
    console.print(f"→ {write_sample_size(found, place)}")
    save_all({"sample_size": sample_size_figure(found)}, place, kinds)


def sample_table(found: dict[str, Any]) -> Table:
    """A row a number of problems."""
    best = "{}.{}".format(*found["best_head"])
    title = (
        f"{found['metric']} on fewer problems, {found['points'][0]['draws']} draws a size; sets of "
        f"{found['k']}, by chance {found['points'][0]['chance']:.2f} shared"
    )
    names = ("problems", f"{best} [dim]95 % of draws[/dim]", "interval", "picked → rest")
    table = plain_table(title, *names, "shared", "same", "disjoint")
    for point in found["points"]:
        low, high = point["best_range"]
        last = point["held_out"] is None
        table.add_row(
            str(point["problems"]),
            f"{point['best']:.3f} [dim]{low:.2f}–{high:.2f}[/dim]",
            f"±{point['width'] / 2:.3f}",
            f"{point['picked']:.3f} → {_number(point['held_out'], 3)}",
            "–" if last else f"{point['shared']:.2f}",
            "–" if last else f"{point['same']:.2f}",
            _number(point["disjoint"]),
        )
    return table


def _number(value: float | None, places: int = 2) -> str:
    return "–" if value is None else f"{value:.{places}f}"


def interval_text(pair: dict[str, Any], key: str) -> str:
    value, low, high = (pair[f"{key}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    return f"{value:.3f}" if low is None else f"{value:.3f} [dim]{low:.2f}–{high:.2f}[/dim]"


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
