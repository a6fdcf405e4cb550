"""Are they the same heads? Several probes of one model's shape, held against each other.

Head figures carry noise, since a probe has few traces: two probes of the very same heads do not
correlate to 1. So each probe's own reliability stands beside every correlation, and the overlap of
head sets beside what sets drawn at random would share. Formulas first; equation numbers are those
of docs/PAPER.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from probing.choices import Head
from probing.errors import ConfigError, DataError, ModelError
from probing.files.headers import HEADER, file_header, json_number, write_json
from probing.folder import ProbeResult
from probing.ranking.metrics import Measured
from probing.ranking.select import CURVE, select_top
from probing.settings import check_metric

RESAMPLES, SPLITS = 1000, 200
LEVEL = 0.95  # of intervals


def pearson(a: Float[np.ndarray, "*row head"], b: Float[np.ndarray, "*row head"]) -> np.ndarray:
    """Pearson's r over heads, row by row; not a number where one side is constant.

    Example:
        >>> float(pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])))
        1.0
    """
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.asarray(np.clip(r, -1.0, 1.0))


def spearman(a: Float[np.ndarray, "*row head"], b: Float[np.ndarray, "*row head"]) -> np.ndarray:
    """Spearman's ρ over heads: Pearson's r of the ranks, ties sharing their mean rank."""
    from scipy.stats import rankdata

    return pearson(rankdata(a, axis=-1), rankdata(b, axis=-1))


def spearman_brown(r: float) -> float:
    """Reliability of a whole from the correlation of its halves: 2r / (1 + r) (eq. 21).

    Example:
        >>> round(spearman_brown(0.5), 4)
        0.6667
    """
    return 2 * r / (1 + r) if r > -1 else float("nan")


def ceiling(reliability_a: float | None, reliability_b: float | None) -> float | None:
    """What two probes of the same heads on different traces correlate to: √(rel_a · rel_b) (22).

    Zero where a probe's figures are no more alike between its halves than chance; None where a
    reliability is not known.
    """
    if reliability_a is None or reliability_b is None:
        return None
    return float(np.sqrt(max(reliability_a, 0.0) * max(reliability_b, 0.0)))


@dataclass(frozen=True)
class Overlap:
    """What two head sets share, beside what sets of these sizes drawn at random would (eq. 23)."""

    shared: int
    expected: float  # k_a · k_b / n
    p: float  # P(as many or more shared), hypergeometric
    jaccard: float
    sizes: tuple[int, int]


def overlap(a: set[Any], b: set[Any], heads: int) -> Overlap:
    """The intersection of two head sets and its chance level, exact.

    Args:
        a, b: the sets; not empty.
        heads: of the whole model, n.

    Example:
        >>> overlap({1, 2, 3}, {2, 3, 4}, 16).expected
        0.5625
    """
    from scipy.stats import hypergeom

    shared = len(a & b)
    p = float(hypergeom.sf(shared - 1, heads, len(a), len(b)))
    expected = len(a) * len(b) / heads
    return Overlap(shared, expected, p, shared / len(a | b), (len(a), len(b)))


def chance_band(heads: int, k: int, level: float = LEVEL) -> tuple[int, int]:
    """Ends of the central range of |A ∩ B| for two random sets of k of n heads."""
    from scipy.stats import hypergeom

    low, high = hypergeom.ppf([(1 - level) / 2, (1 + level) / 2], heads, k, k)
    return int(low), int(high)


@dataclass(frozen=True, eq=False)
class Probed:
    """One probe as stability needs it.

    `values` are its figures by trace, of the traces that have one; None where the probe's scores
    are not there. `problems` names the problem of each of them.
    """

    name: str
    figures: Float[np.ndarray, "head"]
    chosen: tuple[tuple[int, int], ...]
    values: Float[np.ndarray, "head trace"] | None = None
    problems: tuple[str, ...] = ()
    about: dict[str, Any] | None = None


def drawn(
    probes: Sequence[Probed], resamples: int, seed: int
) -> list[Float[np.ndarray, "draw trace"]]:
    """Weights (draw, trace) for each probe: Exp(1) by problem, the Bayesian bootstrap.

    A problem that several probes hold weighs the same in all of them, which pairs them.
    """
    places = {name: i for i, name in enumerate(sorted({p for x in probes for p in x.problems}))}
    weights = np.random.default_rng(seed).exponential(size=(resamples, len(places)))
    return [weights[:, [places[p] for p in probe.problems]] for probe in probes]


def half_correlation(probe: Probed, splits: int = SPLITS, seed: int = 0) -> float:
    """Mean correlation of the head figures of two random halves of a probe's problems.

    Not a number where there are fewer than two problems.
    """
    assert probe.values is not None
    names = sorted({*probe.problems})
    if len(names) < 2:
        return float("nan")
    places = [names.index(problem) for problem in probe.problems]
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(len(names)), (splits, 1)), axis=1)[:, places]
    first = (order < len(names) // 2).astype(float)
    means = [(w @ probe.values.T) / w.sum(1, keepdims=True) for w in (first, 1 - first)]
    return float(np.nanmean(pearson(means[0], means[1])))


def cross_covariance(
    a: Probed,
    b: Probed,
    weights_a: Float[np.ndarray, "draw trace_a"],
    weights_b: Float[np.ndarray, "draw trace_b"],
) -> Float[np.ndarray, "draw"]:
    """Covariance over heads of two probes' figures, free of noise (eq. 24).

        C_ab = Σ_{i,j} w_i w_j cov_h(a_i, b_j) / Σ_{i,j} w_i w_j

    over pairs of traces of different problems: what a trace's noise adds to both probes, or twice
    to one, never meets itself.
    """
    assert a.values is not None and b.values is not None
    apart = np.array(a.problems)[:, None] != np.array(b.problems)[None, :]
    centred = [values - values.mean(axis=0) for values in (a.values, b.values)]
    both = np.where(apart, centred[0].T @ centred[1] / len(a.figures), 0.0)
    total = ((weights_a @ apart) * weights_b).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(((weights_a @ both) * weights_b).sum(1) / total)


def corrected_correlation(
    a: Probed, b: Probed, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Correlation that endless traces would show, C_ab / √(C_aa · C_bb), and its 95 % interval.

    The interval is a percentile bootstrap over problems. Not numbers where the heads of a probe do
    not differ beyond noise (C_aa ≤ 0). The estimate can exceed 1 by chance.
    """

    def estimate(wa: np.ndarray, wb: np.ndarray) -> np.ndarray:
        variances = cross_covariance(a, a, wa, wa) * cross_covariance(b, b, wb, wb)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(cross_covariance(a, b, wa, wb) / np.sqrt(variances))

    value = float(estimate(np.ones((1, len(a.problems))), np.ones((1, len(b.problems))))[0])
    tail = (1 - LEVEL) / 2
    again = estimate(*drawn([a, b], resamples, seed))
    if np.isnan(value) or np.isnan(again).mean() > tail:
        return value, float("nan"), float("nan")
    low, high = np.nanquantile(again, [tail, 1 - tail])
    return value, float(low), float(high)


def correlation_interval(
    a: Probed, b: Probed, kind: Any = pearson, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the correlation that as many other traces would show, over problems.

    Resampling adds as much noise again as the traces have brought, which lowers every resampled
    correlation. So their spread is taken, and laid around the estimate (on Fisher's scale).
    """
    assert a.values is not None and b.values is not None
    means = [
        (w @ x.values.T) / w.sum(1, keepdims=True)
        for x, w in zip((a, b), drawn([a, b], resamples, seed), strict=True)
        if x.values is not None
    ]
    again = fisher(kind(means[0], means[1]))
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(again, [tail, 1 - tail]) - np.nanmean(again)
    here = fisher(float(kind(a.figures, b.figures)))
    return float(np.tanh(here + low)), float(np.tanh(here + high))


def fisher(r: Any) -> Any:
    """Fisher's z = artanh r, finite for r = ±1."""
    return np.arctanh(np.clip(r, -1 + 1e-9, 1 - 1e-9))


def compare_pair(a: Probed, b: Probed, pairs: Sequence[Head], seed: int = 0) -> dict[str, Any]:
    """All that is said of two probes; None stands for what cannot be known."""
    from_top = min(CURVE, len(pairs))
    tops = [select_top(probe.figures, from_top) for probe in (a, b)]
    pair: dict[str, Any] = {"a": a.name, "b": b.name}
    resampled = a.values is not None and b.values is not None
    for name, kind in (("pearson", pearson), ("spearman", spearman)):
        pair[name] = json_number(kind(a.figures, b.figures))
        limits = correlation_interval(a, b, kind, seed=seed) if resampled else (np.nan, np.nan)
        pair[f"{name}_low"], pair[f"{name}_high"] = map(json_number, limits)
    pair["common_problems"] = len({*a.problems} & {*b.problems}) if resampled else None
    free = corrected_correlation(a, b, seed=seed) if resampled else (np.nan,) * 3
    for name, value in zip(("corrected", "corrected_low", "corrected_high"), free, strict=True):
        pair[name] = json_number(value)
    pair["chosen"] = asdict(overlap({*a.chosen}, {*b.chosen}, len(pairs)))
    pair["top"] = [
        {"k": k, **asdict(overlap({*tops[0][:k]}, {*tops[1][:k]}, len(pairs)))}
        for k in range(1, from_top + 1)
    ]
    return pair


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: the end of its path, as short as tells it from the others.

    Example:
        >>> distinct_names([Path("runs/a/probe"), Path("runs/b/probe"), Path("other")])
        ['a/probe', 'b/probe', 'other']
    """
    parts = [folder.resolve().parts for folder in folders]

    def name(mine: tuple[str, ...]) -> str:
        lengths = range(1, len(mine) + 1)
        ends = (n for n in lengths if [p[-n:] for p in parts].count(mine[-n:]) == 1)
        return "/".join(mine[-next(ends, 1) :])

    return [name(mine) for mine in parts]


def read_probes(
    folders: Sequence[Path], names: Sequence[str] | None = None, metric: str = "sra"
) -> tuple[list[Probed], list[tuple[int, int]]]:
    """Finished probes and the heads that they have in common: all of them, or it is an error.

    Raises:
        ConfigError: fewer than two folders, or names that do not fit them.
        DataError: a folder without a finished probe.
        ModelError: models of different shapes.
    """
    check_metric(metric)
    if len(folders) < 2:
        raise ConfigError("stability compares probes: give the folders of at least two")
    names = list(names or distinct_names(folders))
    if len(names) != len(folders) or len(set(names)) < len(names):
        raise ConfigError(
            f"{len(folders)} folders need as many names, each once, not {', '.join(names)}; give "
            "no folder twice, or say --names a,b,…"
        )
    results = [ProbeResult.load(folder) for folder in folders]
    first = results[0]
    for other in results[1:]:
        if other.pairs != first.pairs:
            raise ModelError(
                f"{first.folder} is of {first.card.describe()}, {other.folder} of "
                f"{other.card.describe()}: heads of models of different shapes have no places in "
                "common. Compare checkpoints or fine-tunes of one model, or trace sets."
            )
    probes = [probed(name, result, metric) for name, result in zip(names, results, strict=True)]
    return probes, first.pairs


def probed(name: str, result: ProbeResult, metric: str) -> Probed:
    """A finished probe's figures, to resample by problem; raises DataError without the metric."""
    about: dict[str, Any] = {
        "folder": str(result.folder),
        "model": result.card.id,
        "config": result.card.fingerprint,
        "traces": str(result.config.traces),
        "ranked": len(result.ranked),
        "resampled": "problems",
    }
    chosen = tuple(result.head_set.pairs)
    if not result.has_scores:
        about["resampled"] = "nothing: scores.parquet is not there"
        return Probed(name, result.values(metric), chosen, about=about)
    try:
        problems = result.problems()
    except DataError as error:
        about["resampled"] = f"traces, each as a problem of its own ({error})"
        problems = {trace: trace for trace in result.ranked}
    measured = Measured.of(result.ranked_traces(problems))
    values = measured.values[metric]
    exists = ~np.isnan(values).any(axis=0)  # a trace has a figure for all heads or for none
    about["figures"] = int(exists.sum())
    groups = tuple(np.array(measured.groups, dtype=object)[exists])
    return Probed(name, result.values(metric), chosen, values[:, exists], groups, about)


def compare_probes(
    folders: Sequence[Path],
    names: Sequence[str] | None = None,
    metric: str = "sra",
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Every probe with its reliability, and every pair of them: the content of stability.json.

    Args:
        folders: of finished probes.
        names: of the probes; default: the ends of their paths (`distinct_names`).
        metric: of METRICS.
        seed: of the resampling.
        advance: called after each pair, for a progress bar.

    Raises:
        KfhError: as for `read_probes`.
    """
    probes, pairs = read_probes(folders, names, metric)
    described = []
    for probe in probes:
        half, whole = reliability(probe, seed)
        described.append(
            {
                "name": probe.name,
                **(probe.about or {}),
                "chosen": [list(head) for head in probe.chosen],
                "halves": half,
                "reliability": whole,
            }
        )
    reliable = {d["name"]: d["reliability"] for d in described}
    compared = []
    for i, a in enumerate(probes):
        for b in probes[i + 1 :]:
            top = ceiling(reliable[a.name], reliable[b.name])
            compared.append({**compare_pair(a, b, pairs, seed), "ceiling": top})
            advance()
    return {
        HEADER: file_header("stability of heads"),
        "metric": metric,
        "heads": len(pairs),
        "resamples": RESAMPLES,
        "splits": SPLITS,
        "seed": seed,
        "probes": described,
        "pairs": compared,
    }


def compare_with_first(folders: Sequence[Path], seed: int = 0) -> list[dict[str, Any]]:
    """The first of the probes held against each other one, by the metric that it chose by.

    Raises:
        KfhError: as for `read_probes`.
    """
    probes, pairs = read_probes(folders, None, ProbeResult.load(folders[0]).config.by)
    reliable = [reliability(probe, seed)[1] for probe in probes]
    return [
        {**compare_pair(probes[0], other, pairs, seed), "ceiling": ceiling(reliable[0], its)}
        for other, its in zip(probes[1:], reliable[1:], strict=True)
    ]


def reliability(probe: Probed, seed: int) -> tuple[float | None, float | None]:
    """Correlation of halves, and the reliability of the whole; None where nothing is known."""
    half = float("nan") if probe.values is None else half_correlation(probe, seed=seed)
    return json_number(half), json_number(spearman_brown(half))


def write_stability(content: dict[str, Any], out: Path) -> Path:
    """Write `stability.json` into the folder; its path."""
    path = out / "stability.json"
    write_json(path, content)
    return path
