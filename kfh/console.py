"""What the commands print: progress bars and tables. Data goes to files, talk to stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from kfh.findings.base import probe_caveats
from probing.choices import METRICS

if TYPE_CHECKING:
    import pandas as pd

    from probing.folder import ProbeResult
    from probing.traces.file import ReadReport


console = Console()
talk = Console(stderr=True)


@contextmanager
def progress_bar(name: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar over traces; `advance(traces, tokens)` moves it and shows tokens per second."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=talk,
        transient=True,
    )
    with bar:
        task = bar.add_task(name, total=total, speed="")
        started, tokens = time.perf_counter(), 0

        def advance(traces: int, number: int) -> None:
            nonlocal tokens
            tokens += number
            rate = tokens / max(time.perf_counter() - started, 1e-9)
            bar.update(task, advance=traces, speed=f"{rate:,.0f} tokens/s" if tokens else "")

        yield advance


def _figure(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or value != value:  # the figure does not exist for this row
        return "–"
    return f"{value:.3f} [dim]{low:.2f}–{high:.2f}[/dim]"


def _cell(row: pd.Series, metric: str) -> str:
    return _figure(row[metric], row[f"{metric}_low"], row[f"{metric}_high"])


def plain_table(title: str, *columns: str) -> Table:
    """An empty table in the style of all of them."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for column in columns:
        table.add_column(column, overflow="fold")  # a narrow terminal cuts no figure off
    return table


def heads_table(result: ProbeResult, count: int = 10) -> Table:
    """The best heads by the chosen metric, with intervals, p-values and held-out figures."""
    by = result.config.by
    p = "balanced_p" if by == "balanced" else "sra_p"
    others = [metric for metric in METRICS if metric != by]
    best = result.table.sort_values(by, ascending=False, kind="stable").head(count)
    table = plain_table(
        f"Best heads by {by} on {result.counts['ranked']} traces; * in the set; "
        "p: against the best head by chance",
        "head",
        f"{by} [dim]95 %[/dim]",
        *others,
        "p",
        "S/base e|r",
        "half → held out",
    )
    chosen = set(result.head_set.pairs)
    for _, row in best.iterrows():
        pair = (int(row["layer"]), int(row["head"]))
        table.add_row(
            f"{pair[0]}.{pair[1]}{' *' if pair in chosen else ''}",
            _cell(row, by),
            *(f"{row[metric]:.3f}" for metric in others),
            f"{row[p]:.3f}",
            f"{row['contrast_essential']:.2f}|{row['contrast_redundant']:.2f}",
            f"{row[by + '_select']:.3f} → {row[by + '_held_out']:.3f}",
        )
    return table


def controls_table(result: ProbeResult) -> Table:
    """Trivial scorers, and what the best of all heads reaches by chance."""
    table = plain_table(
        "Controls", "scorer", "SRA [dim]95 %[/dim]", "balanced [dim]95 %[/dim]", "gating"
    )
    for _, row in result.controls.iterrows():
        name = "mean of all heads" if row["control"] == "all heads" else row["control"]
        gating = f"{row['gating']:.3f}" if row["gating"] == row["gating"] else "–"
        table.add_row(name, _cell(row, "sra"), _cell(row, "balanced"), gating)
    null = result.null
    chance = [f"{null[m]['mean']:.3f} [dim]95 % {null[m]['q95']:.2f}[/dim]" for m in null]
    table.add_row(f"best head by chance ({result.config.null})", *chance, "–")
    return table


def ensemble_table(result: ProbeResult) -> Table:
    """Ensembles of 1 … 10 heads on the held-out half, by both ways of selection."""
    by = result.config.by
    chosen_on, held = (len(result.counts[f"{k}_traces"]) for k in ("select", "held_out"))
    columns = [name for how in result.curves for name in (how, "added")]
    title = f"Ensembles: chosen by {by} on {chosen_on} traces, {by} on the other {held}"
    table = plain_table(title, "heads", *columns)
    names = [f"{r.layer}.{r.head}" for r in result.table.itertuples()]
    for points in zip(*result.curves.values(), strict=True):
        cells = []
        for point in points:
            value = _figure(*(point[by + end] for end in ("", "_low", "_high")))
            cells += [value, names[point["added"]]]
        table.add_row(str(points[0]["heads"]), *cells)
    return table


def caveats(result: ProbeResult) -> list[str]:
    """In words, where a control is not beaten."""
    from probing.folder import run_json

    return probe_caveats(result.table, run_json(result))


def print_result(result: ProbeResult) -> None:
    """The tables of a probe, and its caveats."""
    for table in (heads_table(result), controls_table(result), ensemble_table(result)):
        console.print(table)
    heads = ", ".join(f"{layer}.{head}" for layer, head in result.head_set.pairs)
    console.print(
        f"[bold]Head set[/bold] (*): {heads}, by {result.config.select} {result.config.by}"
    )
    for text in caveats(result):
        console.print(f"[yellow]Caveat:[/yellow] {text}")


def report_bad_lines(report: ReadReport) -> None:
    """Say what a reader left out, by reason, with the first of each."""
    for kind, count in report.bad.items():
        talk.print(f"[yellow]left out {count} × {kind}[/yellow], first {report.first_bad[kind]}")
