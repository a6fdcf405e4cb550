"""Intervals: one rule for shares wherever they are told; how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from probing import intervals
from probing.interventions.effects import differences, summarise
from probing.interventions.outcomes import Outcome
from rl.runs.figures import points_of
from rl.runs.folders import Evaluation


def test_samples_of_a_question_are_one_cluster() -> None:
    rows = [[1.0] * 16] * 10 + [[0.0] * 16] * 10
    clustered = intervals.estimate_share(rows)
    single = intervals.estimate_share([[row[0]] for row in rows])
    alone = intervals.estimate_share([[value] for row in rows for value in row])
    assert clustered.value == single.value == alone.value == 0.5
    # 320 responses to 20 questions tell as much as 20 do: not a quarter of the width.
    assert clustered.high - clustered.low > 2.5 * (alone.high - alone.low)
    assert clustered.high - clustered.low == pytest.approx(single.high - single.low, abs=0.11)
    sure = intervals.estimate_share([[1.0, 1.0]] * 10)
    assert sure.value == sure.high == 1.0 and sure.low == pytest.approx(0.025**0.1)


def test_nothing_right_and_everything_right_stay_in_range() -> None:
    for value in (0.0, 1.0):
        for n in range(1, 60):
            found = intervals.estimate_share([[value]] * n)
            assert 0 <= found.low <= value <= found.high <= 1


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        chance = rng.beta(2, 2, size=60)
        rows = (rng.random((60, 4)) < chance[:, None]).astype(float)
        found = intervals.estimate_share(rows.tolist())
        hits += found.low <= 0.5 <= found.high
    assert 180 <= hits <= 198  # 95 % of 200, within three standard errors


def test_mean_of_benchmarks_has_equal_weights() -> None:
    found = intervals.estimate_mean([[1.0]] * 30 + [[0.0]] * 30, [[1.0]] * 1000)
    assert found.value == 0.75
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 * (0.25 / 60) ** 0.5, rel=0.1)


@pytest.mark.parametrize("right", [1, 0])
def test_where_all_agree_there_is_one_interval_everywhere(right: int) -> None:
    """Evaluations, several samples or one; interventions; runs of one seed or of several."""
    n = 12
    low, high = binomtest(right * n, n).proportion_ci(0.95, "exact")
    outcomes = [
        Outcome(
            "steps", "none", "", 0, 0, f"t{i}", f"g{i}", correct=bool(right), logprob=0.0, tokens=1
        )
        for i in range(n)
    ]
    arm = summarise(outcomes).set_index("measure").loc["accuracy"]
    values = {"accuracy": np.full(n, float(right)), "tokens": np.arange(n) + 1.0}
    runs = [Evaluation(None, "grpo", seed, "greedy", values) for seed in range(3)]  # type: ignore[arg-type]
    found = [
        intervals.estimate_share([[right]] * n),
        intervals.estimate_share([[right] * 4] * n),
        intervals.Estimate(arm["value"], arm["low"], arm["high"], n),
        points_of(runs)[0].accuracy,
        points_of(runs[:1])[0].accuracy,
    ]
    for estimate in found:
        ends = (estimate.value, estimate.low, estimate.high, estimate.n)
        assert ends == pytest.approx((right, low, high, n))


def test_a_difference_that_is_nowhere_reaches_to_both_sides() -> None:
    outcomes = [
        Outcome("steps", arm, "", k, 0, f"t{i}", f"g{i}", correct=True, logprob=0.0, tokens=1)
        for arm, k in (("none", 0), ("high", 1))
        for i in range(12)
    ]
    row = differences(outcomes).set_index("measure").loc["accuracy"]
    reach = 1 - 0.025 ** (1 / 12)
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0, -reach, reach))


def test_one_answer_each_is_a_trial_and_its_interval_covers() -> None:
    """Exactly, by the binomial distribution, at shares over the whole range."""
    n = 30
    ends = [intervals.estimate_share([[1]] * k + [[0]] * (n - k)) for k in range(n + 1)]
    shares = np.linspace(0.01, 0.99, 99)
    inside = [
        sum(binom.pmf(k, n, p) for k, e in enumerate(ends) if e.low <= p <= e.high) for p in shares
    ]
    assert 0.945 < np.mean(inside) < 0.97 and min(inside) > 0.83


def test_groups_that_nearly_all_agree_cover_too() -> None:
    """Samples of a question all fall the same way; 3 % of the questions are wrong."""
    rng = np.random.default_rng(0)
    hits = {True: 0, False: 0}
    for _ in range(300):
        right = (rng.random(30) < 0.97).astype(float)
        found = intervals.estimate_share([[value] * 4 for value in right])
        hits[bool(right.all())] += found.low <= 0.97 <= found.high
        assert right.all() <= (found.low < 0.97)  # n that agree never rule out what made them so
    assert sum(hits.values()) >= 280 and hits[True] > 90
