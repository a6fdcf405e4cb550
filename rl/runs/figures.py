"""Figures of training runs, as functions that return a matplotlib figure.

The look is that of `probing.figures.style`; a method keeps its colour, dash and marker in every
figure. Runs of one method are averaged over seeds, over the steps that all of its seeds have
reached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from probing.figures.style import (
    AMBER,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    TITLE,
    plain,
    spell,
    styled,
    wrapped,
)
from probing.numbers import plural
from rl.runs.folders import INITIAL, PHRASES, Evaluation, PolicyPoint, Run, group, table
from rl.runs.intervals import Curve, averaged, hierarchical_bootstrap, share, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes


LOOKS = {
    INITIAL: (BLACK, "-", "o"),
    "attnpo": (BLUE, "-", "o"),
    "tlmre": (ORANGE, "--", "s"),
    "grpo": (GREY, "-.", "^"),
    "pa": (SKY, ":", "v"),
    "na": (PURPLE, (0, (5, 1)), "D"),
    "random-heads": (AMBER, (0, (3, 1, 1, 1)), "P"),
    "recency": (GREEN, (0, (1, 1)), "X"),
    "oracle": (BLACK, (0, (6, 2)), "*"),
}
# For methods without a look of their own, in the order in which they come; then with other markers.
SPARE = [
    ("#882255", "-", "h"),
    ("#44AA99", "--", "<"),
    ("#999933", "-.", ">"),
    ("#332288", ":", "p"),
    ("#AA4499", (0, (4, 1, 1, 1)), "d"),
]
DASHES = ["-", "--", "-.", ":", (0, (4, 1, 1, 1))]  # of single heads
PANELS = {
    "tokens": "tokens per response",
    "accuracy": "accuracy",
    "reward": "reward",
    "attenuated": "share of steps attenuated",
    "redundant_steps": "redundant steps per response",
    "seconds": "seconds per step",
}
MOST_COLUMNS = 3
MOST_SINGLE = 3  # runs; with more, the single heads hide the rest
Look = tuple[str, object, str]


def all_figures(
    runs: Sequence[Run],
    evaluations: Sequence[Evaluation] = (),
    smooth: int = 1,
    points: Sequence[PolicyPoint] = (),
) -> dict[str, Figure]:
    """Every figure that the runs have data for, by its file name."""
    drawn = {
        "training": training(runs, smooth),
        "tradeoff": tradeoff(evaluations, points),
        "stability": stability(runs),
        "phrases": phrases(runs, smooth),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


@styled
def training(runs: Sequence[Run], smooth: int = 1) -> Figure | None:
    """Tokens, accuracy, reward, attenuated share, redundant steps and seconds over the steps.

    A panel that no run has values for is left out. None where no run has finished a step.
    """
    return _over_steps(runs, PANELS, "Training", smooth)


@styled
def phrases(runs: Sequence[Run], smooth: int = 1) -> Figure | None:
    """Transition phrases by kind, per 1,000 tokens, over the steps; None without data."""
    panels = {f"phrases.{kind}": f"{kind}, per 1,000 tokens" for kind in PHRASES}
    return _over_steps(runs, panels, "Transition phrases", smooth)


@styled
def stability(runs: Sequence[Run]) -> Figure | None:
    """SRA of the head set, and correlation of all head scores with step 0, over the steps.

    Thin lines are single heads, drawn for up to three runs, named for one alone. None where no
    run was probed.
    """
    probed = [run for run in runs if run.probe]
    if not probed:
        return None
    methods = group(probed)
    frames = {id(run): pd.DataFrame(run.probe).set_index("step") for run in probed}
    names = {"sra": "SRA of the head set", "correlation": "correlation with step 0"}

    def singles(axes: Axes) -> None:
        for run in probed:
            colour = looks_of(methods)[run.method][0]
            for number, (name, curve) in enumerate(_heads(run).items()):
                dash, label = DASHES[number % len(DASHES)], f"head {name}"
                (line,) = axes.plot(*curve, color=colour, lw=0.8, alpha=0.5)
                if len(probed) == 1:
                    line.set(linestyle=dash, label=label)

    def column(run: Run, name: str) -> pd.Series:
        frame = frames[id(run)]
        return frame[name].astype(float) if name in frame else pd.Series(dtype=float)

    few = len(probed) <= MOST_SINGLE
    names = {
        n: text for n, text in names.items() if any(column(r, n).notna().any() for r in probed)
    }
    if not names:
        return None
    title = f"The head set during training{' (thin: single heads)' if few else ''}"
    return _draw(
        methods,
        names,
        column,
        f"{title}; {_seeds(methods)}",
        {"sra": singles} if few else None,
    )


def points_of(evaluations: Sequence[Evaluation]) -> list[PolicyPoint]:
    """A point a method and decoding, with 95 % intervals over seeds and problems."""
    points = []
    for decoding in dict.fromkeys(e.decoding for e in evaluations):
        for method in dict.fromkeys(e.method for e in evaluations):
            tables = [table(evaluations, method, decoding, v) for v in ("tokens", "accuracy")]
            if tables[0].size:
                tokens = hierarchical_bootstrap(lambda mean: mean, tables[0])
                points.append(PolicyPoint(method, decoding, tokens, share(tables[1])))
    return points


@styled
def tradeoff(
    evaluations: Sequence[Evaluation], points: Sequence[PolicyPoint] = ()
) -> Figure | None:
    """Accuracy against tokens with both 95 % intervals, a panel a decoding or benchmark.

    Arrows lead from the initial policy, where it was evaluated. None without evaluations.

    Args:
        evaluations: of several seeds, averaged by method.
        points: policies that were evaluated by themselves.
    """
    drawn = [*points_of(evaluations), *points]
    if not drawn:
        return None
    looks = looks_of(list(dict.fromkeys(point.name for point in drawn)))
    panels = list(dict.fromkeys(point.panel for point in drawn))
    columns = min(len(panels), MOST_COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns + 0.4, 3.2 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        here = [point for point in drawn if point.panel == panel]
        _points(axes, here, looks)
        counts = sorted({point.accuracy.n for point in here})
        problems = "–".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        plain(axes, f"{panel}, {problems} problems")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    seeds = {
        e.method: len({o.seed for o in evaluations if o.method == e.method}) for e in evaluations
    }
    trained = {method: n for method, n in seeds.items() if method != INITIAL}
    bars = "seeds and problems" if trained else "problems"
    note = f"\n{_count_seeds(trained)}" if trained else ""
    title = f"Accuracy against length; bars: 95 % over {bars}{note}"
    return titled(figure, title)


def _points(axes: Axes, points: Sequence[PolicyPoint], looks: dict[str, Look]) -> None:
    """Draw the points of one panel, and arrows from the initial policy."""
    start = next((point for point in points if point.name == INITIAL), None)
    for point in points:
        colour, _, marker = looks[point.name]
        x, y = point.tokens, point.accuracy
        axes.errorbar(
            x.value,
            y.value,
            xerr=[[x.value - x.low], [x.high - x.value]],
            yerr=[[y.value - y.low], [y.high - y.value]],
            color=colour,
            marker=marker,
            ms=9 if marker == "*" else 6.5,
            mfc="white" if point is start else colour,
            ls="none",
            label=spell(point.name),
            elinewidth=0.9,
            capsize=2,
        )
        if start is not None and point is not start:
            arrow = {"arrowstyle": "->", "color": colour, "lw": 0.8, "alpha": 0.35}
            axes.annotate(
                "",
                (x.value, y.value),
                (start.tokens.value, start.accuracy.value),
                arrowprops={**arrow, "shrinkA": 6, "shrinkB": 6},
            )
    axes.margins(x=0.14, y=0.2)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.04), min(high, 1.04))
    axes.set(xlabel="tokens per response", ylabel="accuracy")
    axes.grid(color="0.92", lw=0.6)
    axes.set_axisbelow(True)


def _heads(run: Run) -> dict[str, tuple[list[int], list[float]]]:
    """Of each head of the set, by its name `layer.head`: steps and SRA."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for row in run.probe:
        for head in row.get("heads") or []:
            steps, values = curves.setdefault(f"{head['layer']}.{head['head']}", ([], []))
            steps.append(row["step"])
            values.append(head["sra"])
    return curves


def _over_steps(
    runs: Sequence[Run], panels: dict[str, str], name: str, smooth: int
) -> Figure | None:
    """Panels of metrics.jsonl columns, those with data."""
    methods = group(runs)

    def column(run: Run, key: str) -> pd.Series:
        frame = run.metrics
        return smoothed(frame[key], smooth) if key in frame else pd.Series(dtype=float)

    there = {
        key: text for key, text in panels.items() if any(column(r, key).notna().any() for r in runs)
    }
    if not there:
        return None
    note = f", moving mean of {smooth} steps" if smooth > 1 else ""
    return _draw(methods, there, column, f"{name}{note}; {_seeds(methods)}")


def _draw(
    methods: dict[str, list[Run]],
    panels: dict[str, str],
    column: Callable[[Run, str], pd.Series],
    title: str,
    before: dict[str, Callable[[Axes], None]] | None = None,
) -> Figure:
    """A panel a value, two a row; each method's mean and band."""
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(8.6, 1.1 + 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False)
    looks = looks_of(methods)
    for axes, (key, text) in zip(grid.flat, panels.items(), strict=False):
        if before and key in before:
            before[key](axes)
        for number, (method, seeds) in enumerate(methods.items()):
            curve = averaged([column(run, key) for run in seeds])
            if len(curve.steps):
                _line(axes, curve, looks[method], number, method)
        plain(axes, text)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.01)
        if all(y == 0 for line in axes.lines for y in line.get_ydata()):
            axes.set_ylim(0, 1)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, len(panels) - 2) : len(panels)]:  # the lowest of each column
        axes.set_xlabel("training step")
    return titled(figure, title)


def titled(figure: Figure, title: str) -> Figure:
    """The figure with its title above, and one legend of all its panels below."""
    figure.suptitle(wrapped(title, figure.get_figwidth()), fontsize=TITLE, x=0.02, ha="left")
    entries = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    columns = max(1, int(figure.get_figwidth() / (0.8 + 0.075 * max(map(len, entries)))))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower left", ncols=columns, handlelength=3
    )
    return figure


def _line(axes: Axes, curve: Curve, look: Look, number: int, label: str) -> None:
    """Markers start later for each further line, so that they do not hide each other."""
    colour, dash, marker = look
    axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.13, lw=0)
    every = max(1, len(curve.steps) // 8)
    axes.plot(
        curve.steps,
        curve.mean,
        color=colour,
        ls=dash,
        lw=1.4,
        label=spell(label),
        marker=marker,
        markevery=(number * every // 4 % every, every),
        ms=4,
        mec="white",
        mew=0.4,
    )


def looks_of(methods: Sequence[str] | dict[str, list[Run]]) -> dict[str, Look]:
    """Colour, dash and marker of each method; the known ones keep theirs in every figure."""
    looks: dict[str, Look] = {method: LOOKS[method] for method in methods if method in LOOKS}
    markers = [marker for _, _, marker in SPARE]
    for number, method in enumerate(m for m in methods if m not in LOOKS):
        turn, place = divmod(number, len(SPARE))
        colour, dash, _ = SPARE[place]
        looks[method] = colour, dash, markers[(place + turn) % len(SPARE)]
    return looks


def _seeds(methods: dict[str, list[Run]]) -> str:
    """How many seeds the curves average, and what the bands are."""
    counts = {method: len(seeds) for method, seeds in methods.items()}
    bands = []
    if any(n >= 3 for n in counts.values()):
        bands.append("95 % t-interval over seeds")
    if 2 in counts.values():
        few = [method for method, n in counts.items() if n == 2]
        bands.append(f"least to greatest of 2 seeds ({', '.join(few)})")
    text = _count_seeds(counts) + (f"\nbands: {'; '.join(bands)}" if bands else "")
    short = [f"{m} ({_reached(r)})" for m, r in methods.items() if len({*map(_last, r)}) > 1]
    return text + (f"; cut at the step of the shortest seed: {', '.join(short)}" if short else "")


def _count_seeds(counts: dict[str, int]) -> str:
    if len({*counts.values()}) == 1:
        n = next(iter(counts.values()))
        return "one seed a method" if n == 1 else f"{n} seeds a method"
    return "seeds: " + ", ".join(f"{method} {n}" for method, n in counts.items())


def _last(run: Run) -> int:
    return int(run.metrics.index.max()) if len(run.metrics) else 0


def _reached(runs: list[Run]) -> str:
    return f"{min(map(_last, runs))} of {max(map(_last, runs))}"


def draw_correlation(axes: Axes, runs: Sequence[Run]) -> None:
    """Pearson correlation of all head scores with step 0, on given axes, a curve a method.

    Args:
        axes: with a legend when done.
        runs: those with probes of the policy.
    """
    methods = group(runs)
    looks = looks_of(methods)
    for number, (method, seeds) in enumerate(methods.items()):
        columns = [
            pd.DataFrame(run.probe).set_index("step")["correlation"].astype(float) for run in seeds
        ]
        curve = averaged(columns)
        name = f"{method}, {plural(len(seeds), 'seed')}"
        _line(axes, curve, looks[method], number, name)
    lowest = min(float(np.min(line.get_ydata())) for line in axes.lines)
    axes.set(xlabel="training step", ylabel="Pearson of head scores with step 0")
    axes.set_ylim(min(0.8, lowest - 0.05), 1.02)
    axes.axhline(0.85, color=GREY, ls=":", lw=1.2, label="0.85 (the paper: above)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower left")
