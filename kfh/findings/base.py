"""What findings are made of: sections with facts, tables, pictures and caveats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfh.tables import Table
from probing.files.headers import RESULTS, kind_of
from probing.numbers import NONE, exists, plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rl.runs.folders import Run


FEW_SEEDS = 3  # fewer say little of the next seed
Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure, its name (of a file) and what it shows."""

    name: str
    caption: str
    figure: Figure


@dataclass(eq=False)
class Section:
    """One part of a report.

    `summary` says in sentences what was found, for the top of the report; `facts` are named texts,
    `caveats` what to hold against the figures, `damaged` what could not be read, each with its
    reason.
    """

    title: str
    summary: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where a section's results lie: its folder, and the folders that hold them."""

    folder: Path
    parts: tuple[Path, ...]


def alone(parts: Sequence[Path], folders: Sequence[Path]) -> list[Place]:
    """Each folder by itself."""
    return [Place(part, (part,)) for part in parts]


def side_by_side(parts: Sequence[Path], folders: Sequence[Path]) -> list[Place]:
    """Parts that lie side by side belong together; the top folder stands for itself."""
    places: dict[Path, list[Path]] = {}
    for part in parts:
        home = part.parent if part.parent in folders else part
        places.setdefault(home, []).append(part)
    return [Place(home, tuple(inside)) for home, inside in places.items()]


@dataclass(frozen=True)
class Kind:
    """A kind of result: its name, the file that marks its folder, how it becomes a section.

    Args:
        name: in messages; a kind of kfh's own has the name that `kind_of` gives it.
        file: a folder that holds it holds such a result.
        read: the section of a place. It may raise DataError, which is reported.
        group: how the folders that hold the file (first argument), of all folders (second), come
            to be sections.
    """

    name: str
    file: str
    read: Callable[[Place], Section]
    group: Callable[[Sequence[Path], Sequence[Path]], list[Place]] = alone

    def lies_in(self, folder: Path) -> bool:
        """Whether the folder holds a result of this kind."""
        if self.name in RESULTS:
            return self.name in kind_of(folder)
        return (folder / self.file).is_file()

    def places(self, folders: Sequence[Path]) -> list[Place]:
        """Where results of this kind lie, among the folders."""
        return self.group([folder for folder in folders if self.lies_in(folder)], folders)


def pictures(captions: Mapping[str, str], drawn: Mapping[str, Figure | None]) -> list[Picture]:
    """Those figures that could be drawn, in the order of their captions."""
    figures = ((name, text, drawn.get(name)) for name, text in captions.items())
    return [Picture(name, text, figure) for name, text, figure in figures if figure is not None]


def header_facts(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Command, versions and date of a file's header; what it does not say is left out."""
    versions = [
        f"{name} {header[key]}"
        for key, name in (("version", "kfh"), ("torch", "torch"), ("transformers", "transformers"))
        if header.get(key)
    ]
    facts = [("command", str(header.get("command", NONE))), ("versions", ", ".join(versions))]
    return [*facts, ("made", str(header.get("made", NONE)))]


def few_seeds(seeds: int) -> str:
    """What so few seeds show, whatever an interval over problems says; '' where they are enough."""
    if seeds >= FEW_SEEDS:
        return ""
    return f"{plural(seeds, 'seed')}, so nothing is shown: the next may go another way"


def counted(counts: Mapping[str, Any]) -> str:
    """Counts by name in one line: `450 ranked, 50 wrong answer`."""
    return ", ".join(f"{value} {name}" for name, value in counts.items() if value) or "none"


def heads_text(pairs: Sequence[Sequence[int]]) -> str:
    """Heads as they are written everywhere: `2.3, 2.1`; a dash for none."""
    return ", ".join(f"{layer}.{head}" for layer, head in pairs) or NONE


def ends(run: Run, column: str) -> tuple[float, float]:
    """Means of a column over the first and the last fifth of the steps (one step at least)."""
    if column not in run.metrics or not len(run.metrics):
        return float("nan"), float("nan")
    part = max(1, len(run.metrics) // 5)
    values = run.metrics[column]
    return float(values.iloc[:part].mean()), float(values.iloc[-part:].mean())


def excludes_zero(figure: Row) -> bool:
    """Whether an interval lies on one side of zero; not where it is not known."""
    low, high = figure["low"], figure["high"]
    return exists(low) and exists(high) and bool(low > 0 or high < 0)
