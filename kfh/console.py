"""What the commands print: progress, tables, caveats. Data goes to files, talk to stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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
from rich.text import Text

from kfh.tables import Table, terminal
from probing.numbers import plural
from probing.traces.reports import CutReport, ReadReport

console = Console()
talk = Console(stderr=True)
EVERY = 15.0  # seconds between lines of progress where there is no terminal


@contextmanager
def progress_bar(name: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Progress over traces: a bar in a terminal, else a line now and then.

    `advance(traces, tokens)` moves it; tokens per second are shown where there are tokens.

    Args:
        total: number of traces; 0 where it is not known.
    """
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
        disable=not talk.is_terminal,
    )
    with bar:
        task = bar.add_task(name, total=total or None, speed="")
        due = every()
        started, done, tokens = time.perf_counter(), 0, 0

        def advance(traces: int, number: int) -> None:
            nonlocal done, tokens
            done, tokens = done + traces, tokens + number
            seconds = max(time.perf_counter() - started, 1e-9)
            speed = f"{tokens / seconds:,.0f} tokens/s" if tokens else ""
            bar.update(task, advance=traces, speed=speed)
            if not talk.is_terminal and due():
                say(progress_line(name, done, total, seconds, speed))

        yield advance


def every() -> Callable[[], bool]:
    """Whether `EVERY` seconds have passed since it was last so, or since now."""
    last = time.perf_counter()

    def due() -> bool:
        nonlocal last
        now = time.perf_counter()
        if now - last < EVERY:
            return False
        last = now
        return True

    return due


def progress_line(name: str, done: int, total: int, seconds: float, speed: str = "") -> str:
    """How far a long work has come, in one line.

    Example:
        >>> progress_line("scoring", 20, 100, 30.0, "900 tokens/s")
        'scoring: 20 of 100, 900 tokens/s, 0:30 so far, about 2:00 left'
    """
    parts = [f"{name}: {done}{f' of {total}' if total else ''}", speed, f"{clock(seconds)} so far"]
    if 0 < done < total:
        parts.append(f"about {clock(seconds * (total - done) / done)} left")
    return ", ".join(filter(None, parts))


def clock(seconds: float) -> str:
    """A time as people read it.

    Example:
        >>> clock(75.4), clock(7200)
        ('1:15', '2:00:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def say(text: str) -> None:
    """A plain line to stderr; nothing in it is taken for markup."""
    talk.print(text, markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """A line to stderr that should be seen: what was left out, what went wrong."""
    talk.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_tables(tables: Iterable[Table], caveats: Iterable[str] = ()) -> None:
    """Print tables and caveats of a result; tables fit the width of the terminal or pipe."""
    for table in tables:
        console.print(terminal(table, console.width))
    for text in caveats:
        console.print(Text.assemble(("Caveat:", "yellow"), f" {text}"), soft_wrap=True)


def report_reading(report: ReadReport) -> None:
    """Say what a reader left out, by reason, with the first of each; what is odd; how it cut."""
    _report_lines(report.bad, report.first_bad, report.remarks())
    report_cut(report.cut)


def report_counts(counts: Mapping[str, Any]) -> None:
    """As `report_reading`, from the counts of a run file (`SourceReport.to_json`)."""
    _report_lines(counts["bad_lines"], counts["first_bad_lines"], counts.get("remarks", ()))
    if cut := counts.get("cut"):
        report_cut(CutReport.from_json(cut))


def report_left_out(left_out: Mapping[str, int], hint: str = "") -> None:
    """Warn of traces that were left out, by reason."""
    for reason, count in left_out.items():
        warn(f"left out {plural(count, 'trace')}: {reason}{hint}")


def _report_lines(bad: Mapping[str, int], first: Mapping[str, str], remarks: Iterable[str]) -> None:
    for kind, count in bad.items():
        warn(f"left out {count} × {kind}, first {first[kind]}")
    for text in remarks:
        warn(text)


def report_cut(report: CutReport) -> None:
    """Say how many steps a cut gave and of which kinds, and where that is to be doubted."""
    if line := str(report):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    for text in report.warnings:
        warn(text)
