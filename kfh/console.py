"""What the commands print: progress bars and tables. Data goes to files, talk to stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
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
from rich.text import Text

import kfh.tables

if TYPE_CHECKING:
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


def plain_table(title: str, *columns: str) -> Table:
    """An empty table in the style of all of them."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for column in columns:
        table.add_column(column, overflow="fold")  # a narrow terminal cuts no figure off
    return table


def print_tables(tables: Iterable[kfh.tables.Table], caveats: Iterable[str] = ()) -> None:
    """Print tables and caveats of a result; tables fit the width of the terminal or pipe."""
    for table in tables:
        console.print(kfh.tables.terminal(table, console.width))
    for text in caveats:
        console.print(Text.assemble(("Caveat:", "yellow"), f" {text}"), soft_wrap=True)


def report_bad_lines(report: ReadReport) -> None:
    """Say what a reader left out, by reason, with the first of each."""
    for kind, count in report.bad.items():
        talk.print(f"[yellow]left out {count} × {kind}[/yellow], first {report.first_bad[kind]}")
