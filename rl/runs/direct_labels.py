"""Direct labels of curves and points that do not overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from probing.figures.style import SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SIZE = SMALL  # points
Label = tuple[float, float, str, str]  # x, y, text, colour


def text_width(texts: list[str], size: float = SIZE) -> float:
    """Width of the longest text, in inches."""
    renderer = FigureCanvasAgg(Figure()).get_renderer()
    font = FontProperties(size=size)
    widths = [renderer.get_text_width_height_descent(text, font, False)[0] for text in texts]
    return float(max(widths, default=0.0) / renderer.dpi)


def spread_out(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart and within [low, high], in the order wanted, as near to it as
    can be (least squares: neighbours that are too close share out the move).

    Where they cannot fit, they stand at equal distances.
    Example: (0, 1, 10) with a gap of 4, within -9 to 20: (-1.5, 2.5, 10).
    """
    n = len(wanted)
    gap = min(gap, (high - low) / max(1, n - 1))
    order = np.argsort(wanted, kind="stable")
    # Less its rank × gap, each place may not fall below the one before: pool those that do.
    pools: list[list[float]] = []
    for rank, index in enumerate(order):
        pools.append([wanted[index] - rank * gap])
        while len(pools) > 1 and np.mean(pools[-2]) >= np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    flat = np.array([np.mean(pool) for pool in pools for _ in pool])
    places = np.zeros(n)
    places[order] = np.clip(flat, low, high - gap * (n - 1)) + gap * np.arange(n)
    return [float(place) for place in places]


def label_ends(axes: Axes, ends: list[Label]) -> None:
    """Name curves at the right edge; `ends` are their last points.

    Call it when limits and layout are final: the places are in units of the printed page.
    """
    height = axes.get_window_extent().height * 72 / axes.figure.dpi  # points
    low, high = axes.get_ylim()
    wanted = [min(max(y, low), high) for _, y, _, _ in ends]
    places = spread_out(wanted, (SIZE + 1.5) * (high - low) / height, low, high)
    for (x, y, text, colour), place in zip(ends, places, strict=True):
        line = {"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 1, "shrinkB": 2}
        axes.annotate(
            text,
            (x, y),
            (1.05, (place - low) / (high - low)),
            textcoords="axes fraction",
            color=colour,
            fontsize=SIZE,
            va="center",
            annotation_clip=False,
            arrowprops={**line, "relpos": (0, 0.5)},
        )


def label_points(axes: Axes, points: list[Label], bars: list[tuple[float, ...]]) -> None:
    """Name points beside their markers, clear of markers and of each other and, where there is
    room, of the error bars.

    `bars` are (x low, x high, y low, y high), one a point. Call it when limits and layout are
    final.
    """
    scale = axes.figure.dpi / 72  # pixels of a point
    place = axes.transData.transform
    centres = [(float(cx), float(cy)) for cx, cy in (place(point[:2]) for point in points)]
    taken = [_box(x, y, 11 * scale, 11 * scale) for x, y in centres]
    lines = []
    for (cx, cy), (left, right, low, high) in zip(centres, bars, strict=True):
        (x0, y0), (x1, y1) = place((left, low)), place((right, high))
        lines += [Bbox([[x0, cy - 2], [x1, cy + 2]]), Bbox([[cx - 2, y0], [cx + 2, y1]])]
    frame = axes.get_window_extent()
    for (x, y, text, colour), centre in zip(points, centres, strict=True):
        width = text_width([text], SIZE + 0.5) * axes.figure.dpi + 2 * scale
        box, far = _free_place(centre, width, 11 * scale, scale, taken, lines, frame)
        taken.append(box)
        line = {"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 0, "shrinkB": 4}
        middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        axes.annotate(
            text,
            (x, y),
            tuple(axes.transAxes.inverted().transform(middle)),
            textcoords="axes fraction",
            ha="center",
            va="center",
            color=colour,
            fontsize=SIZE + 0.5,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops=line if far else None,
        )


def _free_place(
    centre: tuple[float, float],
    width: float,
    height: float,
    scale: float,
    taken: list[Bbox],
    lines: list[Bbox],
    frame: Bbox,
) -> tuple[Bbox, bool]:
    """The nearest place for a label round a point, all in pixels, and whether it needs a line."""
    best: tuple[float, Bbox, bool] | None = None
    for far in (7, 12, 18, 26, 36, 48, 62):
        for angle in np.arange(0, 360, 22.5):
            dx, dy = np.cos(np.radians(angle)), np.sin(np.radians(angle))
            x = centre[0] + dx * (far * scale + width / 2)
            y = centre[1] + dy * (far * scale + height / 2)
            box = _box(x, y, width, height)
            cost = 10.0 * sum(box.overlaps(other) for other in taken)
            cost += 2.0 * sum(box.overlaps(line) for line in lines) + far / 40
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            cost += 20.0 * (not (inside and frame.y0 <= box.y0 and box.y1 <= frame.y1))
            if best is None or cost < best[0]:
                best = (cost, box, far > 12)
    assert best is not None
    return best[1], best[2]


def _box(x: float, y: float, width: float, height: float) -> Bbox:
    return Bbox([[x - width / 2, y - height / 2], [x + width / 2, y + height / 2]])
