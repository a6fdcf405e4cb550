"""What a report is made of: sections with facts, tables, pictures and caveats, as plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.files import HEADER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = "–"  # stands where there is no figure


@dataclass(frozen=True)
class TextTable:
    """A table of texts; all rows have as many cells as there are columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        """A row of another length would shift its cells under other names."""
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"{self.title}: rows must have {len(self.columns)} cells")


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure, its name (of a file) and what it shows."""

    name: str
    caption: str
    figure: Figure


@dataclass(eq=False)
class Section:
    """One part of a report.

    `facts` are named texts, `caveats` what to hold against the figures, `damaged` what could not
    be read, each with its reason.
    """

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    tables: list[TextTable] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where a section's results lie: its folder, and the folders that hold them."""

    folder: Path
    parts: tuple[Path, ...]


def pictures(captions: Mapping[str, str], drawn: Mapping[str, Figure | None]) -> list[Picture]:
    """Those figures that could be drawn, in the order of their captions."""
    found = ((name, text, drawn.get(name)) for name, text in captions.items())
    return [Picture(name, text, figure) for name, text, figure in found if figure is not None]


def side_by_side(parts: Sequence[Path], folders: Sequence[Path]) -> list[Place]:
    """Parts that lie side by side belong together; the top folder stands for itself."""
    places: dict[Path, list[Path]] = {}
    for part in parts:
        home = part.parent if part.parent in folders else part
        places.setdefault(home, []).append(part)
    return [Place(home, tuple(found)) for home, found in places.items()]


def first_line(path: Path) -> dict[str, Any]:
    """The header of a JSONL file; empty where it has none, or where the file is not there."""
    try:
        with path.open(encoding="utf-8") as file:
            line = json.loads(file.readline())
    except (OSError, ValueError):
        return {}
    found = line.get(HEADER) if isinstance(line, dict) else None
    return found if isinstance(found, dict) else {}


def header_facts(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Command, versions and date of a file's header; what it does not say is left out."""
    versions = [
        f"{name} {header[key]}"
        for key, name in (("version", "kfh"), ("torch", "torch"), ("transformers", "transformers"))
        if header.get(key)
    ]
    facts = [("command", str(header.get("command", NONE))), ("versions", ", ".join(versions))]
    return [*facts, ("made", str(header.get("made", NONE)))]


def number(value: Any, digits: int = 3) -> str:
    """A figure, or the sign for none."""
    return NONE if value is None or value != value else f"{value:,.{digits}f}"


def span(value: Any, low: Any, high: Any, digits: int = 3) -> str:
    """A figure with its interval: `0.714 (0.591–0.816)`."""
    if number(low) == NONE or number(high) == NONE:
        return number(value, digits)
    dash = " to " if low < 0 else "–"
    return f"{number(value, digits)} ({number(low, digits)}{dash}{number(high, digits)})"


def figure_text(figure: Mapping[str, Any] | None, digits: int = 3) -> str:
    """As `span`, of an object with `value`, `low` and `high`."""
    if figure is None:
        return NONE
    return span(figure["value"], figure["low"], figure["high"], digits)


def counted(counts: Mapping[str, Any]) -> str:
    """Counts by name in one line: `450 ranked, 50 wrong answer`."""
    return ", ".join(f"{value} {name}" for name, value in counts.items() if value) or "none"
