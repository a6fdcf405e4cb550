"""Figures of an evaluation: pure functions of what was right and how long it was.

Samples of one question are not independent: every interval is over questions, the samples of a
question kept together.
"""

from __future__ import annotations

from math import comb

from probing.intervals import Estimate, Rows, estimate_mean


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that one of k samples is right, unbiased: 1 − C(n−c, k)/C(n, k) (Chen et al. 2021).

    Raises:
        ValueError: not 1 ≤ k ≤ n and 0 ≤ correct ≤ n.

    Example:
        >>> pass_at_k(4, 1, 2)  # of the 6 pairs of 4 samples, 3 hold the right one
        0.5
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@k needs 1 ≤ k ≤ n and 0 ≤ c ≤ n: n {n}, c {correct}, k {k}")
    return 1 - comb(n - correct, k) / comb(n, k)


def pass_figure(correct: Rows, k: int) -> Estimate:
    """Mean pass@k over questions."""
    return estimate_mean([[pass_at_k(len(row), int(sum(row)), k)] for row in correct])


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
