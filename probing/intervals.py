"""Estimates with intervals: means, shares, rates; the bootstrap over groups (problems)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.95  # of intervals
RESAMPLES = 2000
GROUP_RESAMPLES = 4000  # of whole groups
Rows = Sequence[Sequence[float | int]]  # a row a question, a value a sample


def group_interval(
    values: Float[np.ndarray, "trace"],
    groups: Int[np.ndarray, "trace"],
    *,
    seed: int = 0,
    share: bool = False,
) -> tuple[float, float, float]:
    """Mean over traces with its 95 % percentile bootstrap interval over groups.

    A group (the traces of one problem) is drawn as a whole; the mean stays one over traces.

    Args:
        values: one a trace.
        groups: the number of each trace's group, from 0.
        seed: of the bootstrap.
        share: values are right or wrong, or differences of these. Where all traces agree the
            bootstrap has no width; then the interval is widened to what n groups that agree
            leave open, 1 - 0.025^(1/n) (Clopper and Pearson 1934).

    Example: three traces 0, 0, 1 of three problems: mean 1/3, interval 0 to 1.
    """
    count = int(groups.max()) + 1
    sums = np.bincount(groups, values, minlength=count)
    sizes = np.bincount(groups, minlength=count).astype(float)
    mean = float(values.mean())
    weights = _resampled(count, seed)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile((weights @ sums) / (weights @ sizes), [tail, 1 - tail])
    if share and np.ptp(values) == 0:
        reach = 1 - tail ** (1 / count)
        low, high = low - reach, high + reach
    return mean, float(low), float(high)


@lru_cache(maxsize=16)
def _resampled(count: int, seed: int) -> Float[np.ndarray, "resample group"]:
    """How often each group is drawn in each resample; the same for every measure."""
    rng = np.random.default_rng([seed, count])
    return rng.multinomial(count, np.full(count, 1 / count), GROUP_RESAMPLES).astype(np.float64)


def mean_over_traces(values: Float[np.ndarray, "*row trace"]) -> Float[np.ndarray, "*row"]:
    """Mean over the traces for which the figure exists; not a number where there is none."""
    valid = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(valid, values, 0.0).sum(-1) / valid.sum(-1))


def bootstrap_interval(
    values: Float[np.ndarray, "row trace"],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float[np.ndarray, "row 2"]:
    """Percentile bootstrap interval of the mean over traces, resampled with replacement.

    All rows see the same resamples, so that differences between heads stay paired.
    """
    n = values.shape[1]
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    valid = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means = (np.where(valid, values, 0.0) @ weights.T) / (valid.astype(float) @ weights.T)
    tail = (1 - level) / 2
    limits: np.ndarray = np.nanquantile(means, [tail, 1 - tail], axis=1).T
    return limits


def mean_figure(rows: Rows) -> Estimate:
    """Mean over questions of the means of their samples, with the interval over questions.

    Example:
        >>> mean_figure([[1, 0], [1, 1]]).value
        0.75
    """
    means = np.array([np.mean(row) for row in rows], dtype=float)
    low, high = bootstrap_interval(means[None])[0]
    return Estimate(float(means.mean()), float(low), float(high), len(means))


def share_figure(rows: Rows) -> Estimate:
    """A share with its interval: Wilson's for one sample a question, else over questions.

    Where all questions agree (all right, all wrong) resampling them shows no doubt; Wilson's
    interval over questions does, and is taken there too.
    """
    means = np.array([np.mean(row) for row in rows], dtype=float)
    if all(len(row) == 1 for row in rows) or (np.all(means == means[0]) and means[0] in (0, 1)):
        found = proportion(means)
        # At 0 and 1 rounding may put an end on the wrong side of the value.
        low, high = max(0.0, found.low), min(1.0, found.high)
        return replace(found, low=min(low, found.value), high=max(high, found.value))
    return mean_figure(rows)


def rate_figure(counts: Rows, tokens: Rows, per: int = 1000) -> Estimate:
    """Sum of counts over sum of tokens, times `per`, with the interval over questions.

    Example:
        >>> rate_figure([[1], [2]], [[500], [500]]).value
        3.0
    """
    columns = (np.array([np.sum(row) for row in rows], dtype=float) for rows in (counts, tokens))
    return bootstrap(lambda some, all_of_them: per * some.sum() / all_of_them.sum(), *columns)


def mean_of_means(sets: Sequence[Rows], resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean over benchmarks of their means; questions are resampled within each benchmark.

    Example:
        >>> mean_of_means([[[1.0], [0.0]], [[1.0]]]).value
        0.75
    """
    rng = np.random.default_rng(seed)
    drawn, value = np.zeros(resamples), 0.0
    for rows in sets:
        means = np.array([np.mean(row) for row in rows], dtype=float)
        n = len(means)
        drawn += rng.multinomial(n, np.full(n, 1 / n), size=resamples) @ means / n / len(sets)
        value += float(means.mean()) / len(sets)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), sum(map(len, sets)))


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval, and the number of problems behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def proportion(hits: NDArray[np.float64]) -> Estimate:
    """A share with Wilson's interval, which holds near 0 and 1 too."""
    n, share, z = len(hits), float(hits.mean()), 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(share, float(middle - reach), float(middle + reach), n)


def bootstrap(
    statistic: Callable[..., float], *columns: NDArray[np.float64], draws: int = 2000
) -> Estimate:
    """A statistic of paired columns with the percentile interval over resampled problems."""
    rng = np.random.default_rng(0)
    n = len(columns[0])
    picks = (rng.integers(0, n, n) for _ in range(draws))
    values = [statistic(*(column[pick] for column in columns)) for pick in picks]
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(float(statistic(*columns)), float(low), float(high), n)
