"""Intervals over seeds and problems at once: training has two sources of chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import t

from probing.intervals import TAILS, Estimate, estimate_share, resampled, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray


DRAWS = 4000
SEEDS, PROBLEMS = (0, 4), (0, 7)  # streams of random numbers: drawn independently


def seed_spread(seeds: int) -> float:
    """Factor on the deviations between seeds that makes a bootstrap of few seeds honest.

    That of `probing.intervals.spread`. One seed says nothing: 1.
    """
    return spread(seeds) if seeds > 1 else 1.0


def hierarchical_bootstrap(
    statistic: Callable[..., NDArray[np.float64]],
    *tables: NDArray[np.float64],
    draws: int = DRAWS,
    spread: float | None = None,
) -> Estimate:
    """A statistic of means over seeds and problems, with its 95 % percentile interval.

    Each draw resamples the seeds, then the problems, which all seeds share; the same seeds and
    problems are drawn for every table, so that differences between tables are paired. Deviations
    between seeds are widened by `seed_spread`. Simulated, 93 to 95 % of the intervals of 3 to 8
    seeds hold the truth where seeds differ (76 to 90 % without the widening); where they hardly
    differ and single answers are noisy, the interval is too wide (98 to 100 %), since problems
    and seeds cross (Owen, Annals of Applied Statistics 2007).

    Args:
        statistic: maps the mean of each table (arrays of one shape) to an array of that shape.
        tables: (seed, problem) each, all of one shape; not a number: no value, left out of the
            mean of its seed. With one row the interval is over problems alone.
        spread: in place of `seed_spread`.

    Raises:
        ValueError: no table, or tables of different shapes, or without a value.
    """
    if not tables or len({table.shape for table in tables}) != 1 or tables[0].size == 0:
        raise ValueError(f"tables must share one shape: {[table.shape for table in tables]}")
    seeds, problems = tables[0].shape
    spread = seed_spread(seeds) if spread is None else spread
    of_seed = 1 / seeds + spread * (resampled(seeds, draws, SEEDS) / seeds - 1 / seeds)
    of_problem = resampled(problems, draws, PROBLEMS) / problems
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = statistic(*(_means(table, of_seed, of_problem) for table in tables))
        even = np.full((1, seeds), 1 / seeds), np.full((1, problems), 1 / problems)
        value = statistic(*(_means(table, *even) for table in tables))[0]
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, TAILS) if len(drawn) else (np.nan, np.nan)
    return Estimate(float(value), float(low), float(high), problems)


def _means(
    table: NDArray[np.float64], of_seed: NDArray[np.float64], of_problem: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean over problems, then over seeds, in each draw; weights are (draw, seed or problem)."""
    there = np.isfinite(table)
    # The problems first: the widened weights of seeds may be negative, and no ratio bears that.
    of_each = (of_problem @ np.where(there, table, 0.0).T) / (of_problem @ there.T.astype(float))
    return np.asarray((of_each * of_seed).sum(axis=1))


def seedwise(
    statistic: Callable[..., NDArray[np.float64]],
    *tables: NDArray[np.float64],
    draws: int = DRAWS,
) -> Estimate:
    """A statistic made within a seed, from means over problems; its mean over seeds.

    As `hierarchical_bootstrap`, for statistics that are no function of the means over seeds, such
    as the step at which a course reaches a length.

    Args:
        statistic: maps means over problems, (draw, …, seed, checkpoint) each, to (draw, seed).
        *tables: (…, seed, checkpoint, problem) each, of the same problems and seeds.

    Returns:
        Not a number where a seed has no value. Draws without one are left out; no interval where
        they are more than a twentieth, since then it would be one of the lucky draws.
    """
    problems, seeds = tables[0].shape[-1], tables[0].shape[-3]
    even = np.full((1, problems), 1 / problems)
    of_problem = resampled(problems, draws, PROBLEMS) / problems
    each = statistic(*(_over_problems(table, even) for table in tables))
    if not np.isfinite(value := float(each.mean())):
        return Estimate(np.nan, np.nan, np.nan, problems)
    of_seed = 1 / seeds + seed_spread(seeds) * (resampled(seeds, draws, SEEDS) / seeds - 1 / seeds)
    drawn = statistic(*(_over_problems(table, of_problem) for table in tables))
    sums = (drawn * of_seed).sum(axis=1)
    there = sums[np.isfinite(sums)]
    known = len(there) >= 0.95 * draws
    low, high = np.quantile(there, TAILS) if known else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), problems)


def _over_problems(table: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over problems in each draw, (draw, …), of a table (…, problem)."""
    flat = weights @ table.reshape(-1, table.shape[-1]).T
    return np.asarray(flat.reshape(len(weights), *table.shape[:-1]))


def share(right: NDArray[np.float64]) -> Estimate:
    """A share of right answers (seed, problem), 0 or 1, over seeds and problems.

    Where there is one seed, or all answers agree, problems alone leave doubt:
    `probing.intervals.estimate_share`. Else as `hierarchical_bootstrap`, within 0 to 1.
    """
    if len(right) == 1 or np.ptp(right) == 0:
        return estimate_share(right.T.tolist())
    return within(hierarchical_bootstrap(lambda mean: mean, right))


def within(interval: Estimate, most: float = 1.0) -> Estimate:
    """An interval of what lies in 0 to `most`, without what it cannot be; an unknown end stays so.

    Args:
        interval: of a share, or of a time or a number, which have no greatest value.
        most: the greatest value.
    """
    low, high = (float(np.clip(end, 0, most)) for end in (interval.low, interval.high))
    return replace(interval, low=low, high=high)


def over_seeds(values: NDArray[np.float64]) -> Estimate:
    """Mean of one value a seed with its t-interval; fewer than 3 seeds: their least and greatest.

    Example: 1, 2, 3: 2 ± 4.303 · 1 / sqrt(3) = -0.484 to 4.484.
    """
    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    mean = float(values.mean())
    if n < 3:
        return Estimate(mean, float(values.min()), float(values.max()), n)
    reach = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - reach, mean + reach, n)


@dataclass(frozen=True)
class Curve:
    """A value by step: mean over seeds, and the ends of its band (equal to it for one seed)."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, steps: np.ndarray, figures: Sequence[Estimate]) -> Curve:
        """A figure a step."""
        names = "value", "low", "high"
        return cls(steps, *(np.array([getattr(each, name) for each in figures]) for name in names))


def smoothed(values: pd.Series, width: int) -> pd.Series:
    """Centred moving mean over `width` steps; at the ends over the steps that there are."""
    return values if width <= 1 else values.rolling(width, center=True, min_periods=1).mean()


def averaged(columns: Sequence[pd.Series]) -> Curve:
    """Mean over seeds with its band (see `over_seeds`), over the steps that all seeds have."""
    joined = pd.concat([column.dropna() for column in columns], axis=1, join="inner").sort_index()
    figures = [over_seeds(row) for row in joined.to_numpy(dtype=float)]
    return Curve.of(joined.index.to_numpy(), figures)


def averaged_courses(values: NDArray[np.float64], *, shares: bool = False) -> Curve:
    """A value at each checkpoint: mean and band over seeds and problems.

    Args:
        values: (seed, checkpoint, problem).
        shares: they are of right answers; so the band ends at 0 and 1.
    """
    found = [
        seedwise(lambda mean: mean[..., 0], values[:, [place]]) for place in range(values.shape[1])
    ]
    found = [within(figure) for figure in found] if shares else found
    return Curve.of(np.arange(len(found)), found)
