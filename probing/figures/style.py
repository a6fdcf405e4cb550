"""One look for all figures: sizes, colours, letters of panels, and how they are saved.

Colours are the Okabe–Ito set and `cividis`, which readers with any colour vision can tell apart;
lines differ in dashes and markers too. Nothing here touches pyplot or matplotlib's settings
beyond the figure that is being drawn: see `styled`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text

from probing.files.headers import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes


P = ParamSpec("P")
R = TypeVar("R")

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
SKY, PURPLE, AMBER, BLACK = "#56B4E9", "#CC79A7", "#E69F00", "#000000"
TITLE, LABEL, TICK, SMALL = 10.0, 9.0, 8.0, 7.5  # points; nothing is smaller than 7
RC: Any = {  # matplotlib's own type is the list of all its settings
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same on every machine
    "font.size": LABEL,
    "axes.titlesize": TITLE,
    "axes.labelsize": LABEL,
    "axes.linewidth": 0.8,
    "xtick.labelsize": TICK,
    "ytick.labelsize": TICK,
    "legend.fontsize": TICK,
    "legend.frameon": False,
    "figure.titlesize": TITLE,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "pdf.fonttype": 42,  # text stays text
    "svg.hashsalt": "kfh",  # the same drawing gives the same file
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw with these settings, whatever the caller's are; the caller's stay as they are."""

    @wraps(draw)
    def inner(*args: P.args, **options: P.kwargs) -> R:
        with rc_context(RC):
            return draw(*args, **options)

    return inner


@styled
def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's ending, whole or not at all."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight")


def plain(axes: Axes, title: str = "") -> None:
    """The look that all curves share: title at the left, no frame above and to the right."""
    axes.set_title(title, fontsize=TITLE, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def legend_above(axes: Axes, columns: int = 3) -> None:
    """The legend between title and axes, where it hides no curve. Call it after `plain`."""
    entries = len(axes.get_legend_handles_labels()[0])
    if not entries:
        return
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, borderaxespad=0.2,
        columnspacing=1.2, handlelength=2.4,
    )  # fmt: skip
    rows = -(-entries // columns)
    axes.set_title(
        axes.get_title(loc="left"), fontsize=TITLE, loc="left", pad=6 + (TICK + 5.5) * rows
    )


def panel_letters(panels: Iterable[Axes]) -> None:
    """(a), (b), … before the title of each panel, in bold; the title stays where it is."""
    for letter, axes in zip("abcdefgh", panels, strict=False):
        title = axes.get_title(loc="left")
        text = next(t for t in axes.findobj(Text) if t.get_text() == title and t.axes is axes)
        text.set_text(f"$\\bf{{({letter})}}$ {title}")


def wrapped(title: str, inches: float) -> str:
    """The title in lines that so many inches can hold; a longer one would widen the picture."""
    letters = int(13 * inches)  # of 10 points
    return "\n".join(line for text in title.split("\n") for line in wrap(text, letters))


def spell(text: str) -> str:
    """Text from a file as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")
