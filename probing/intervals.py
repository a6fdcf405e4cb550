"""Estimates with intervals: means, rates and shares over groups, each group drawn as a whole.

The samples of one question, the traces of one problem are not independent: a group is one entry
of the bootstrap. `resampled` draws the groups for every interval of the project, and `tails` says
which quantiles of the draws are its ends: of few groups wider ones. One group leaves no interval.
Beside them stand medians of more values than fit into memory (`Medians`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.95  # of intervals
TAILS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]  # of draws whose spread is the estimate's
RESAMPLES = 2000
FEW_PROBLEMS = 20  # fewer give rough intervals
Rows = Sequence[Sequence[float]]  # a row a group, such as a question; a value a sample
Seed = int | tuple[int, ...]
CLASSES = 1 << 13  # of values, for medians: sign, 8 bits of exponent, 4 of fraction of a float32
KEPT = 1 << 26  # values that a median keeps at once: 256 MB


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval, and the number of groups behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@lru_cache(maxsize=64)
def spread(groups: int) -> float:
    """Factor by which a percentile bootstrap of few groups is too narrow.

    It takes the variance with n in place of n − 1, and normal in place of t quantiles (Hesterberg,
    The American Statistician 2015, section 4.1): t(n − 1, 97.5 %) / z(97.5 %) · √(n / (n − 1)).

    Args:
        groups: n, at least 2.

    Example: 5 groups: 2.776 / 1.960 · √(5 / 4).
        >>> round(spread(5), 3)
        1.584
    """
    from scipy.stats import norm, t

    widened = t.ppf(TAILS[1], groups - 1) / norm.ppf(TAILS[1])
    return float(widened * np.sqrt(groups / (groups - 1)))


@lru_cache(maxsize=64)
def tails(groups: int) -> tuple[float, float]:
    """Which quantiles of bootstrap draws are the ends of a 95 % interval over so many groups.

    Hesterberg's expanded percentile interval (2015, section 5.3): Φ(± z · `spread`).

    Example: of 20 problems wider than the plain 0.025, of 20,000 about that.
        >>> round(tails(20)[0], 4), round(tails(20_000)[0], 4)
        (0.0159, 0.025)
    """
    from scipy.stats import norm

    low = float(norm.cdf(norm.ppf(TAILS[0]) * spread(groups)))
    return low, 1 - low


def ends(draws: Float[np.ndarray, "*row resample"], groups: int) -> Float[np.ndarray, "2 *row"]:
    """Low and high ends of the 95 % interval, from the draws over so many groups (see `tails`).

    Not numbers where there is one group, or no draw with a figure.
    """
    if groups < 2:
        return np.full((2, *draws.shape[:-1]), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows of no figure at all
        return np.asarray(np.nanquantile(draws, tails(groups), axis=-1))


@lru_cache(maxsize=4)
def resampled(
    count: int, resamples: int = RESAMPLES, seed: Seed = 0
) -> Float[np.ndarray, "resample group"]:
    """How often each of `count` groups is drawn in each resample, with replacement.

    The same call gives the same draws: figures of the same groups stay paired.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), resamples).astype(np.float64)


def mean_over_traces(values: Float[np.ndarray, "*row trace"]) -> Float[np.ndarray, "*row"]:
    """Mean over the traces for which the figure exists; not a number where there is none."""
    valid = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(valid, values, 0.0).sum(-1) / valid.sum(-1))


def _drawn(
    sums: Float[np.ndarray, "row group"],
    sizes: Float[np.ndarray, "#row group"],
    resamples: int,
    seed: Seed,
) -> Float[np.ndarray, "row resample"]:
    """Σ sums / Σ sizes over the groups of each resample; not a number where sizes are all 0."""
    weights = resampled(sums.shape[1], resamples, seed)
    with np.errstate(invalid="ignore"):
        return np.asarray((sums @ weights.T) / (sizes @ weights.T))


def by_group(
    values: Float[np.ndarray, "*row trace"], groups: Sequence[str]
) -> Float[np.ndarray, "*row group"]:
    """Σ over the traces of each group, in the order in which the groups first appear.

    Example:
        >>> by_group(np.array([1.0, 2.0, 4.0]), ["p", "q", "p"]).tolist()
        [5.0, 2.0]
    """
    places = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    of = np.array([places[name] for name in groups])
    if len(places) == len(of):  # each group has one trace
        return np.array(values, dtype=float)
    order = np.argsort(of, kind="stable")
    starts = np.searchsorted(of[order], np.arange(len(places)))
    return np.asarray(np.add.reduceat(values[..., order], starts, axis=-1, dtype=float))


def bootstrap_interval(
    values: Float[np.ndarray, "row trace"],
    groups: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: Seed = 0,
) -> Float[np.ndarray, "row 2"]:
    """Bootstrap interval of each row's mean over the traces that have a value.

    Whole groups are drawn: a problem with all its traces. All rows see the same draws, so that
    differences between heads stay paired.

    Args:
        values: not a number where a trace has none.
        groups: the problem of each trace.
        resamples, seed: of the bootstrap.

    Returns:
        Low and high end; not numbers where fewer than two groups have a value.
    """
    there = by_group((~np.isnan(values)).astype(float), groups)
    sums = by_group(np.nan_to_num(values), groups)
    limits = np.empty((len(values), 2))
    counted = (there > 0).sum(axis=1)
    for count in np.unique(counted):  # nearly always one number, that of all groups
        rows = counted == count
        sizes = there[rows]
        if (sizes == sizes[0]).all():  # as a rule: a trace has a figure for all heads or for none
            sizes = sizes[:1]
        limits[rows] = ends(_drawn(sums[rows], sizes, resamples, seed), int(count)).T
    return limits


def few_problems(count: int) -> list[str]:
    """What to hold against intervals over so many problems, in a sentence; nothing where enough.

    Example:
        >>> few_problems(20), few_problems(7)
        ([], ['7 problems are few: the intervals are rough.'])
    """
    few = count < FEW_PROBLEMS
    return [f"{count} problems are few: the intervals are rough."] if few else []


def next_below(values: Float[np.ndarray, "draw"]) -> float:
    """What one more draw stays below in 97.5 % of cases: mean + t(n − 1, 97.5 %) · s · √(1 + 1/n).

    The upper end of a prediction interval for normal draws (Hahn and Meeker, Statistical Intervals,
    1991, section 4.7). Not a number for fewer than two draws.

    Example: 1, 2, 3: 2 + 4.303 · 1 · √(4/3).
        >>> round(next_below(np.array([1.0, 2.0, 3.0])), 3)
        6.968
    """
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return float("nan")
    reach = t.ppf(TAILS[1], n - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / n)
    return float(values.mean() + reach)


def estimate_rate(
    over: Rows, under: Rows, *, per: float | int = 1, resamples: int = RESAMPLES, seed: Seed = 0
) -> Estimate:
    """Σ over / Σ under, times `per`, with the bootstrap interval over groups.

    Example:
        >>> estimate_rate([[1], [2]], [[500], [500]], per=1000).value
        3.0
    """
    sums, sizes = (np.array([[np.sum(row) for row in rows]], dtype=float) for rows in (over, under))
    low, high = ends(per * _drawn(sums, sizes, resamples, seed)[0], len(over))
    return Estimate(float(per * sums.sum() / sizes.sum()), float(low), float(high), sums.shape[1])


def estimate_mean(*sets: Rows, resamples: int = RESAMPLES, seed: Seed = 0) -> Estimate:
    """Mean over all samples, with the bootstrap interval over groups.

    Of several sets (benchmarks): the mean of their means; the groups of each are drawn apart.

    Example:
        >>> estimate_mean([[1, 0], [1, 1]]).value
        0.75
        >>> estimate_mean([[1], [0]], [[1]]).value
        0.75
    """
    start = seed if isinstance(seed, tuple) else (seed,)
    values, drawn = [], []
    for number, rows in enumerate(sets):
        sums = np.array([[np.sum(row) for row in rows]], dtype=float)
        sizes = np.array([[len(row) for row in rows]], dtype=float)
        values.append(sums.sum() / sizes.sum())
        drawn.append(_drawn(sums, sizes, resamples, (*start, number) if number else start)[0])
    groups = sum(map(len, sets))
    low, high = ends(np.mean(drawn, axis=0), groups)
    return Estimate(float(np.mean(values)), float(low), float(high), groups)


def estimate_share(
    rows: Rows, *, difference: bool = False, resamples: int = RESAMPLES, seed: Seed = 0
) -> Estimate:
    """A share of right answers with its interval, by one rule.

    1. Where all answers agree, resampling would show no doubt: what n groups that agree leave
       open, 1 − 0.025^(1/n) (Clopper and Pearson 1934, Biometrika 26, 404–413).
    2. Where each group is one trial, with one answer: Wilson's interval (Wilson 1927, JASA 22,
       209–212), which holds near 0 and 1 too.
    3. Else the bootstrap over groups.

    Args:
        rows: right (1) or wrong (0), or means over draws of these.
        difference: values are differences of shares, −1 to 1: 3 in place of 2, and 1 reaches to
            both sides.
        resamples, seed: of the bootstrap.

    Example: 10 of 10 right: 0.025^(1/10) = 0.692 to 1.
    """
    from scipy.stats import binomtest

    values, n = np.concatenate([np.asarray(row, dtype=float) for row in rows]), len(rows)
    trials = len(values) == n and bool(np.isin(values, (0, 1)).all())
    value = float(values.mean())
    if np.ptp(values) == 0:
        value = float(values[0])
        reach = 1 - binomtest(n, n).proportion_ci(LEVEL, "exact").low
        low, high = value - reach, value + reach
    elif trials and not difference:
        low, high = binomtest(int(values.sum()), n).proportion_ci(LEVEL, "wilson")
    else:
        resampled_share = estimate_mean(rows, resamples=resamples, seed=seed)
        low, high = resampled_share.low, resampled_share.high
    least = -1.0 if difference else 0.0
    if np.isnan(low):  # one group, of several answers that differ: all is possible
        low, high = least, 1.0
    return Estimate(value, max(least, float(low)), min(1.0, float(high)), n)


class Medians:
    """The median of each row over values that go by twice: exact, in bounded memory.

    1. The values of each row are counted by class, 16 to a power of two (`add`).
    2. The middle ones lie in known classes now. The few values in these are kept (`turns`, `Turn`),
       and the middle of them is the median. Where they are too many, rows take turns.

    Args:
        rows: how many.
    """

    def __init__(self, rows: int) -> None:
        self.counts = np.zeros((rows, CLASSES), dtype=np.uint32)

    def add(self, first: int, values: Float[np.ndarray, "row value"]) -> None:
        """Count values of the rows from `first` on."""
        places = classes(values) + np.arange(first, first + len(values))[:, None] * CLASSES
        np.add.at(self.counts.reshape(-1), places.reshape(-1), np.uint32(1))

    def turns(self, kept: int = KEPT) -> list[Turn]:
        """Rows in runs of which the middle classes can be kept, at most so many values each.

        Each is given all values once more; a single row may keep more.
        """
        upto = np.cumsum(self.counts, axis=1, dtype=np.int64)
        total, rows = upto[:, -1], np.arange(len(upto))
        middles = np.stack([(total - 1) // 2, total // 2])  # ranks
        low, high = (np.argmax(upto > ranks[:, None], axis=1) for ranks in middles)
        inside = self.counts[rows, low].astype(np.int64)
        below = upto[rows, low] - inside
        sizes = inside + np.where(high > low, self.counts[rows, high], 0)
        ends, held = [0], 0
        for row, size in enumerate(sizes.tolist()):
            if held and held + size > kept:
                ends.append(row)
                held = 0
            held += size
        runs = [slice(*ends) for ends in pairwise([*ends, len(sizes)])]
        return [Turn(r, low[r], high[r], middles[:, r] - below[r], sizes[r]) for r in runs]


class Turn:
    """A run of rows whose middle values are kept, see `Medians.turns`.

    Args:
        rows: the run.
        low, high: classes of the two middle values of each row, which may be one.
        ranks: of the two among those kept.
        sizes: number of values to keep.
    """

    def __init__(
        self,
        rows: slice,
        low: Int[np.ndarray, "row"],
        high: Int[np.ndarray, "row"],
        ranks: Int[np.ndarray, "2 row"],
        sizes: Int[np.ndarray, "row"],
    ) -> None:
        self.rows, self.low, self.high, self.ranks = rows, low[:, None], high[:, None], ranks
        self.ends = np.cumsum(sizes)
        self.filled = self.ends - sizes
        self.starts = self.filled.copy()
        self.kept: np.ndarray = np.empty(0)

    def add(self, first: int, values: Float[np.ndarray, "row value"]) -> None:
        """Keep what these values of the rows from `first` on hold of the middle ones."""
        start, end = max(first, self.rows.start), min(first + len(values), self.rows.stop)
        if start >= end:
            return
        if not len(self.kept):
            self.kept = np.empty(self.ends[-1], dtype=values.dtype)
        values = values[start - first : end - first]
        mine = slice(start - self.rows.start, end - self.rows.start)
        of = classes(values)
        middle = (of == self.low[mine]) | (of == self.high[mine])
        found = middle.sum(axis=1)
        offsets = self.filled[mine] - np.cumsum(found) + found
        self.kept[np.repeat(offsets, found) + np.arange(found.sum())] = values[middle]
        self.filled[mine] += found

    def medians(self) -> Float[np.ndarray, "row"]:
        """Of the rows, once all values went by; every row has one."""
        runs = zip(self.starts, self.ends, self.ranks.T, strict=True)
        parts = [np.partition(self.kept[a:b], ranks)[ranks] for a, b, ranks in runs]
        return np.asarray(np.stack(parts).mean(axis=1))


def classes(values: Float[np.ndarray, "*any"]) -> Int[np.ndarray, "*any"]:
    """The class of each value, 0 to CLASSES − 1: of two values the larger has no lower one.

    Example:
        >>> (classes(np.array([-1.0, 0.0, 1.0, 1.06, 1.07, 2.0])) - CLASSES // 2).tolist()
        [-2033, 0, 2032, 2032, 2033, 2048]
    """
    with np.errstate(over="ignore"):  # of float64
        bits = values.astype(np.float32).view(np.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats count down
    return np.asarray((ordered >> 19) + CLASSES // 2)
