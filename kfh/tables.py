"""Tables and numbers as texts, written once for the terminal, for Markdown and for HTML.

In: titles, columns, and rows whose cells are texts or `Number`. Out: what each reader is shown.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probing.numbers import Number

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

# Spaces between the columns of a terminal, and whether intervals stay on one line: what is tried.
FITS = ((2, True), (1, True), (1, False))
SHORT = 14  # characters of a text that is not broken in a terminal


Cell = str | Number


@dataclass(frozen=True)
class Table:
    """A title, columns, and rows of cells; all rows have as many as there are columns.

    Raises:
        ValueError: a row of another length, which would shift its cells under other names.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"{self.title}: rows must have {len(self.columns)} cells")

    @property
    def texts(self) -> list[list[str]]:
        """The cells as texts."""
        return [[str(cell) for cell in row] for row in self.rows]


def terminal(table: Table, width: int) -> RenderableType:
    """A table for a terminal of this many columns.

    Texts wrap between words, an interval goes below its value; where even then the columns do not
    fit, each row becomes a block with a line a column. No word and no number is broken.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    title = Text(table.title, style="italic")
    for gap, whole in FITS:
        if widths := column_widths(table, width, gap, whole):
            break
    else:
        return Group(title, *_blocks(table), "")
    # The box puts one space between columns; its edges are left away.
    grid = Grid(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for name, size in zip(table.columns, widths, strict=True):
        grid.add_column(Text(name), width=size)
    for row in table.rows:
        grid.add_row(*map(_styled, row, widths))
    return Group(title, grid, "")


def column_widths(table: Table, width: int, gap: int, whole: bool) -> list[int] | None:
    """The width of each column in a terminal; None where the longest words do not fit.

    The widest columns give way first, none below its longest word. Headings give way before cells.

    Args:
        gap: spaces between two columns.
        whole: no interval is broken into its two ends.
    """
    least, sizes = [], []
    for name, *cells in zip(table.columns, *table.rows, strict=True):
        parts = [part for cell in cells for part in _unbroken(cell, whole)]
        least.append(max(map(len, [*name.split(), *parts]), default=0))
        sizes.append(max([least[-1], *(len(str(cell)) for cell in cells)]))
    room = width - gap * (len(sizes) - 1)
    if sum(least) > room:
        return None
    while sum(sizes) > room:
        spare = [size if size > floor else 0 for size, floor in zip(sizes, least, strict=True)]
        sizes[spare.index(max(spare))] -= 1
    while sum(sizes) < room:  # what is left is for headings
        lacking = [len(name) - size for name, size in zip(table.columns, sizes, strict=True)]
        if max(lacking) <= 0:
            break
        sizes[lacking.index(max(lacking))] += 1
    return sizes


def _unbroken(cell: Cell, whole: bool) -> list[str]:
    """The parts of a cell that stay on one line."""
    if isinstance(cell, Number) and whole:
        return [cell.text, cell.interval]
    text = str(cell)
    return [text] if len(text) <= SHORT else text.split()


def _blocks(table: Table) -> list[Text]:
    """Each row as a heading and a line for each further column."""
    from rich.text import Text

    lines = []
    for first, *others in table.rows:
        lines.append(Text(f"{table.columns[0]} {first}".strip(), style="bold"))
        for name, cell in zip(table.columns[1:], others, strict=True):
            lines.append(Text.assemble(f"  {name}: ", _styled(cell)))
    return lines


def _styled(cell: Cell, width: int | None = None) -> Text:
    """A cell with its interval dimmed, below the value where the column is narrow."""
    from rich.text import Text

    if isinstance(cell, Number) and cell.interval:
        between = "\n" if width is not None and len(str(cell)) > width else " "
        return Text.assemble(cell.text, between, (cell.interval, "dim"))
    return Text(str(cell))


def markdown(table: Table) -> str:
    """The title, and the table in GitHub's Markdown; texts are escaped."""
    rows = [table.columns, *table.texts]
    lines = ["| " + " | ".join(map(markdown_text, row)) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(table.columns))
    return "\n".join([*([markdown_text(table.title), ""] if table.title else []), *lines])


def markdown_text(text: str) -> str:
    """A text as Markdown that shows it as it is: one line, no tag, no table cell, no emphasis.

    Example:
        >>> markdown_text("a|b <script> x_y *z*")
        'a\\\\|b &lt;script&gt; x_y \\\\*z\\\\*'
    """
    line = html.escape(" ".join(str(text).split()), quote=False)
    line = re.sub(r"([\\`*\[\]|])", r"\\\1", line)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)


def html_table(table: Table) -> str:
    """The table as HTML, its title as label; texts are escaped."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.columns)
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
        for row in table.texts
    )
    return (
        f'<table aria-label="{html.escape(table.title)}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table>"
    )
