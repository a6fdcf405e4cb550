"""How many traces are enough? A finished probe, ranked again on fewer of its problems.

Problems are drawn without replacement, so that a draw is what a probe with fewer problems would
have been. Heads are chosen on the draw by its top figures; what they are worth is read on the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from probing.choices import DRAWS, LADDER
from probing.errors import ConfigError, DataError
from probing.files.headers import HEADER, file_header, write_json
from probing.folder import ProbeResult
from probing.intervals import bootstrap_interval, mean_over_traces
from probing.ranking.metrics import Measured, RankedTrace
from probing.ranking.select import select_top
from probing.settings import check_metric

AGREE = 0.9  # share of draws that is called enough
WIDTH_RESAMPLES = 400


def sizes(problems: int, ladder: Sequence[int] = LADDER) -> list[int]:
    """Numbers of problems to draw: those of the ladder below all of them, and all.

    Example:
        >>> sizes(120)
        [5, 10, 20, 50, 100, 120]
    """
    return [*(n for n in ladder if n < problems), problems]


@dataclass(frozen=True)
class SizePoint:
    """What `n` problems give, over draws: means, and 2.5 to 97.5 % of the draws as (low, high).

    None stands for what does not exist: with all problems nothing is left out, and two draws of
    more than half of them are not disjoint.
    """

    problems: int
    traces: float  # mean number of traces in a draw
    draws: int
    best: float  # figure, on the draw, of the head that is best on all
    best_range: tuple[float, float]
    width: float  # mean width of that figure's 95 % bootstrap interval
    picked: float  # figure, on the draw, of the head that is best on the draw
    held_out: float | None  # figure of that head on the rest
    held_out_range: tuple[float, float] | None
    shared: float  # mean share of the chosen set that is in the set of all problems
    same: float  # share of draws that choose exactly that set
    disjoint: float | None  # mean share that two disjoint draws choose alike
    chance: float  # what sets drawn at random share: k / heads


def agreement_by_size(
    traces: Sequence[RankedTrace],
    k: int,
    metric: str = "sra",
    draws: int = DRAWS,
    seed: int = 0,
    ladder: Sequence[int] = LADDER,
    advance: Callable[[], None] = lambda: None,
) -> list[SizePoint]:
    """Figures and chosen sets against the number of problems.

    Args:
        traces: all that were ranked; `group` names the problem of each.
        k: heads in a set.
        metric: of METRICS.
        draws: subsets of each size; all problems are one draw.
        seed: of the draws.
        ladder: sizes to try.
        advance: called after each size, for a progress bar.

    Raises:
        ConfigError: fewer than one draw, or more heads in a set than there are.
        DataError: too few problems for the smallest size, or no figure on some head.
    """
    measured = Measured.of(traces)
    values = measured.values[metric]
    names, problem = np.unique(measured.groups, return_inverse=True)
    if draws < 1:
        raise ConfigError(f"--draws must be at least 1, is {draws}")
    if not 1 <= k <= len(values):
        raise ConfigError(f"a set of {k} heads of {len(values)} cannot be chosen")
    if len(names) <= min(ladder):
        raise DataError(
            f"{len(names)} problems are too few to draw subsets of: more than {min(ladder)} needed"
        )
    full = mean_over_traces(values)
    if np.isnan(full).any():
        raise DataError(f"no {metric} figure on these traces; choose another --metric")
    points = []
    for n in sizes(len(names), ladder):
        rng = np.random.default_rng([seed, n])
        orders = (rng.permutation(len(names)) for _ in range(draws if n < len(names) else 1))
        rows = [_draw(values, problem, order, n, k, full) for order in orders]
        points.append(_point(rows, n, len(full), k))
        advance()
    return points


def _draw(
    values: Float[np.ndarray, "head trace"],
    problem: np.ndarray,
    order: np.ndarray,
    n: int,
    k: int,
    full: Float[np.ndarray, "head"],
) -> dict[str, float]:
    """One draw: the first n problems in this order; the next n are a draw disjoint from it."""
    nothing = float("nan")
    inside = np.isin(problem, order[:n])
    figures = mean_over_traces(values[:, inside])
    chosen, wanted = ({*select_top(f, k)} for f in (figures, full))
    best, picked = int(full.argmax()), int(np.nan_to_num(figures, nan=-1.0).argmax())
    of_best, groups = values[best : best + 1, inside], [str(name) for name in problem[inside]]
    limits = bootstrap_interval(of_best, groups, resamples=WIDTH_RESAMPLES)[0]
    row = {
        "traces": float(inside.sum()),
        "best": float(figures[best]),
        "width": float(limits[1] - limits[0]),
        "picked": float(figures[picked]),
        "held_out": nothing,
        "shared": len(chosen & wanted) / k,
        "same": float(chosen == wanted),
        "disjoint": nothing,
    }
    if n < len(order):
        row["held_out"] = float(mean_over_traces(values[picked : picked + 1, ~inside])[0])
    if 2 * n <= len(order):
        other = mean_over_traces(values[:, np.isin(problem, order[n : 2 * n])])
        row["disjoint"] = len(chosen & {*select_top(other, k)}) / k
    return row


def _point(rows: list[dict[str, float]], n: int, heads: int, k: int) -> SizePoint:
    def column(name: str) -> np.ndarray:
        values = np.array([row[name] for row in rows])
        return values[~np.isnan(values)]

    def mean(name: str) -> float | None:
        return float(column(name).mean()) if len(column(name)) else None

    def span(name: str) -> tuple[float, float]:
        low, high = np.quantile(column(name), [0.025, 0.975])
        return float(low), float(high)

    best, held_out = mean("best"), mean("held_out")
    if best is None:
        raise DataError(f"draws of {n} problems have no figure; choose another --metric")
    return SizePoint(
        problems=n,
        traces=mean("traces") or 0.0,
        draws=len(rows),
        best=best,
        best_range=span("best"),
        width=mean("width") or 0.0,
        picked=mean("picked") or 0.0,
        held_out=held_out,
        held_out_range=None if held_out is None else span("held_out"),
        shared=mean("shared") or 0.0,
        same=mean("same") or 0.0,
        disjoint=mean("disjoint"),
        chance=k / heads,
    )


def enough(points: Sequence[SizePoint], agree: float = AGREE) -> SizePoint | None:
    """The smallest size from which on so many draws choose the set of all problems.

    All problems themselves do not count: they agree with themselves. None where no size does.
    """
    smallest = None
    for point in reversed(points[:-1]):
        if point.same < agree:
            break
        smallest = point
    return smallest


def sentence(points: Sequence[SizePoint], k: int, agree: float = AGREE) -> str:
    """What to plan with, in words."""
    everything, largest = points[-1].problems, points[-2]
    smallest = enough(points, agree)
    heads = "the best head is the same" if k == 1 else f"the {k} chosen heads are the same"
    if smallest:
        least = min(point.same for point in points[:-1] if point.problems >= smallest.problems)
        return (
            f"From {smallest.problems} problems on, {heads} as with all {everything} in "
            f"{_percent(least)} of draws or more."
        )
    return (
        f"No number of problems below {everything} is enough: with {largest.problems}, {heads} as "
        f"with all in {_percent(largest.same)} of draws ({_percent(largest.shared)} of the heads "
        f"in the mean, by chance {_percent(largest.chance)})."
    )


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def measure_folder(
    folder: Path,
    traces: Path | None = None,
    k: int | None = None,
    metric: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    ladder: Sequence[int] = LADDER,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Everything that `kfh sample-size` prints, draws and writes.

    Args:
        folder: of a finished probe.
        traces: its trace file, where it is no longer at its place.
        k: heads in a set; default: as many as the probe chose.
        metric: default: the one that the probe chose by.
        draws, seed, ladder, advance: see `agreement_by_size`.

    Raises:
        ConfigError, DataError: see `agreement_by_size` and `ProbeResult`.
    """
    result = ProbeResult.load(folder, traces)
    metric = metric or result.config.by
    check_metric(metric)
    k = k or len(result.head_set.pairs)
    ranked = result.ranked_traces(result.problems())
    points = agreement_by_size(ranked, k, metric, draws, seed, ladder, advance)
    best = result.pairs[int(result.values(metric).argmax())]
    smallest = enough(points)
    return {
        HEADER: file_header("sample size"),
        "folder": str(folder),
        "model": result.card.id,
        "traces": str(result.config.traces),
        "ranked": len(ranked),
        "metric": metric,
        "heads": len(result.pairs),
        "k": k,
        "probe_selection": result.config.select,
        "best_head": list(best),
        "seed": seed,
        "agree": AGREE,
        "enough": smallest.problems if smallest else None,
        "sentence": sentence(points, k),
        "points": [asdict(point) for point in points],
    }


def write_sample_size(content: dict[str, Any], out: Path) -> Path:
    """Write `sample_size.json` into the folder; its path."""
    path = out / "sample_size.json"
    write_json(path, content)
    return path
