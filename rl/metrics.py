"""Figures of an evaluation: pure functions of what was right and how long it was.

Samples of one question are not independent: every interval is over questions, the samples of a
question kept together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import comb

import numpy as np

from probing.files import data_path
from probing.segmenters import Phrases
from probing.stats import RESAMPLES, bootstrap_interval
from rl.pocket.measure import Figure, bootstrap, proportion

Rows = Sequence[Sequence[float]]  # a row a question, a value a sample

# What the paper calls confused and summary; forward phrases are neither.
PHRASE_GROUPS = {
    "confused": ("confused", "branching"),
    "forward": ("forward",),
    "summary": ("backward", "special"),
}


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that one of k samples is right, unbiased: 1 − C(n−c, k)/C(n, k) (Chen et al. 2021).

    Example:
        >>> pass_at_k(4, 1, 2)  # of the 6 pairs of 4 samples, 3 hold the right one
        0.5
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@k needs 1 ≤ k ≤ n and 0 ≤ c ≤ n: n {n}, c {correct}, k {k}")
    return 1 - comb(n - correct, k) / comb(n, k)


def mean_figure(rows: Rows) -> Figure:
    """Mean over questions of the means of their samples, with the interval over questions.

    Example:
        >>> mean_figure([[1, 0], [1, 1]]).value
        0.75
    """
    means = np.array([np.mean(row) for row in rows], dtype=float)
    low, high = bootstrap_interval(means[None])[0]
    return Figure(float(means.mean()), float(low), float(high), len(means))


def share_figure(rows: Rows) -> Figure:
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


def pass_figure(correct: Rows, k: int) -> Figure:
    """Mean pass@k over questions."""
    return mean_figure([[pass_at_k(len(row), int(sum(row)), k)] for row in correct])


def within_budget(correct: Rows, tokens: Rows, budget: int) -> list[list[float]]:
    """What is right under a token budget: a response that needs more counts as wrong.

    Example:
        >>> within_budget([[1, 1]], [[90, 110]], 100)
        [[1.0, 0.0]]
    """
    return [
        [float(right and length <= budget) for right, length in zip(*pair, strict=True)]
        for pair in zip(correct, tokens, strict=True)
    ]


def efficiency_score(
    accuracy: float, tokens: float, base_accuracy: float, base_tokens: float
) -> float:
    """AES (O1-Pruner) of a model against a base: ΔL + 3·|ΔA|, or ΔL − 5·|ΔA| where ΔA < 0.

    ΔL = (L_base − L)/L_base, ΔA = (A − A_base)/A_base; from means over a benchmark.

    Raises:
        ValueError: the base is never right or has no tokens: nothing to compare with.

    Example:
        >>> round(efficiency_score(0.44, 600, 0.40, 1000), 2)  # 0.4 + 3 · 0.1
        0.7
        >>> round(efficiency_score(0.36, 600, 0.40, 1000), 2)  # 0.4 − 5 · 0.1
        -0.1
    """
    if base_accuracy <= 0 or base_tokens <= 0:
        raise ValueError(f"no AES against accuracy {base_accuracy} and {base_tokens} tokens")
    shorter = (base_tokens - tokens) / base_tokens
    better = (accuracy - base_accuracy) / base_accuracy
    return shorter + 3 * abs(better) if better >= 0 else shorter - 5 * abs(better)


def phrase_counts(text: str, phrases: Phrases | None = None) -> dict[str, int]:
    """How often the phrases of each group stand in a text.

    As in segmentation: the longest match, not overlapping; forward and backward phrases only
    right after a newline.

    Example:
        >>> phrase_counts("First, 2. Wait, no.\\nSo 3. Alternatively, 4.")
        {'confused': 2, 'forward': 0, 'summary': 1}
    """
    phrases = phrases or Phrases.load(data_path("phrases", "attnpo.json"))
    group = {kind: name for name, kinds in PHRASE_GROUPS.items() for kind in kinds}
    counts = dict.fromkeys(PHRASE_GROUPS, 0)
    for match in phrases.pattern().finditer(text):
        kind = phrases.kinds[match.group()]
        opens_line = text[match.start() - 1 : match.start()] == "\n"
        if kind not in ("forward", "backward") or opens_line:
            counts[group[kind]] += 1
    return counts


def rate_figure(counts: Rows, tokens: Rows, per: int = 1000) -> Figure:
    """Sum of counts over sum of tokens, times `per`, with the interval over questions.

    Example:
        >>> rate_figure([[1], [2]], [[500], [500]]).value
        3.0
    """
    columns = (np.array([np.sum(row) for row in rows], dtype=float) for rows in (counts, tokens))
    return bootstrap(lambda some, all_of_them: per * some.sum() / all_of_them.sum(), *columns)


def mean_of_means(sets: Sequence[Rows], resamples: int = RESAMPLES, seed: int = 0) -> Figure:
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
    return Figure(value, float(low), float(high), sum(map(len, sets)))
