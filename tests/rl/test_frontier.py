"""Speed-ups, frontiers and matched lengths, against courses whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probing.errors import DataError
from probing.intervals import Estimate
from rl.runs.course_figures import gains
from rl.runs.folders import Course
from rl.runs.frontier import (
    Contender,
    at,
    frontier,
    frontier_gap,
    length_gap,
    reach,
    shortest_with,
    speed_up,
)
from rl.runs.intervals import averaged_courses, hierarchical_bootstrap, seedwise, within
from rl.runs.standings import alike, stand

STEPS = np.arange(0, 101, 10)


def course(length: np.ndarray, accuracy: np.ndarray, seed: int, noise: float = 0.0) -> Course:
    """Of 200 problems, whose means are these but for what their chances give."""
    rng = np.random.default_rng(seed)
    problem = rng.normal(0, noise, (1, 200)) if noise else np.zeros((1, 200))
    redundant = length[:, None] + problem - problem.mean()
    order = np.tile(np.arange(200) / 200, (len(length), 1))
    correct = (rng.random(order.shape) if noise else order) < accuracy[:, None]
    return Course(STEPS, STEPS * 1000.0, correct, redundant)


def contender(
    method: str, rates: dict[float, float], cost: float = 0.0, seeds: int = 3, noise: float = 0.0
) -> Contender:
    """Lengths fall from 80 by `rate` tokens a step down to 20; accuracy is .9 less the cost of
    what has been cut."""
    courses = {}
    for pressure, rate in rates.items():
        courses[pressure] = []
        for seed in range(seeds):
            length = np.maximum(80 - rate * STEPS, 20.0)
            accuracy = 0.9 - cost * pressure * (80 - length) / 60
            parts = (
                course(length, accuracy, 10 * seed + k + int(1e4 * pressure), noise) for k in (0, 1)
            )
            courses[pressure].append(dict(zip(("reported", "validation"), parts, strict=True)))
    return Contender.of(method, courses, range(seeds))


def test_a_method_twice_as_fast_is_said_to_be() -> None:
    slow, fast = contender("tlmre", {0.2: 0.6}), contender("attnpo", {0.2: 1.2})
    found = speed_up(fast, slow, 50.0)
    assert found is not None
    assert found.steps.value == pytest.approx(2) and found.tokens.value == pytest.approx(2)
    assert found.accuracy.value == pytest.approx(0)
    assert speed_up(fast, slow, 10.0) is None  # nobody gets there


def test_who_does_not_come_to_a_length_bounds_the_ratio_by_the_budget() -> None:
    """50 tokens after 25 steps, and not within 100: at least four times as fast (in truth 12)."""
    fast, never = contender("attnpo", {0.2: 1.2}), contender("tlmre", {0.2: 0.1})
    least, most = speed_up(fast, never, 50.0), speed_up(never, fast, 50.0)
    assert least is not None and most is not None
    assert (least.bound, most.bound) == ("≥", "≤")
    assert least.steps.value == least.tokens.value == pytest.approx(4)
    assert least.steps.low == pytest.approx(4) and np.isnan(least.steps.high)
    assert most.steps.value == pytest.approx(1 / 4)
    assert most.steps.high == pytest.approx(1 / 4) and np.isnan(most.steps.low)
    assert np.isnan(least.accuracy.value) and np.isnan(most.accuracy.value)
    some = contender("tlmre", {0.2: 0.1, 0.3: 0.2})  # to 60: held against its nearest
    assert (found := speed_up(fast, some, 50.0)) and found.against == 0.3


def test_what_one_seed_misses_on_the_reported_problems_is_not_reached() -> None:
    """Validation chooses; there every seed reaches 30 tokens."""
    slow, fast = contender("tlmre", {0.2: 0.6}), contender("attnpo", {0.2: 1.2})
    longer = fast.redundant.copy()
    longer[:, 1] = np.maximum(longer[:, 1], 45.0)
    missed = replace(fast, redundant=longer)
    whole, most, least = (
        speed_up(*pair, 30.0) for pair in ((fast, slow), (missed, slow), (slow, missed))
    )
    assert whole and most and least
    assert [found.bound for found in (whole, most, least)] == ["", "≤", "≥"]
    # Two seeds are there after 50 / 1.2 steps, one is taken to be after 100; theirs after 50 / 0.6.
    ratio = np.exp(np.log([2, 2, 50 / 0.6 / 100]).mean())
    assert most.steps.value == pytest.approx(ratio)
    assert least.steps.value == pytest.approx(1 / ratio)
    assert (found := speed_up(missed, slow, 50.0)) and not found.bound
    assert [point.length for point in frontier(missed, (50.0, 30.0))] == [50.0]
    whole, part = frontier_gap(missed, slow, (50.0, 30.0)), frontier_gap(missed, slow, (50.0,))
    assert whole == part and whole is not None and frontier_gap(missed, slow, (30.0,)) is None


def test_places_between_checkpoints_are_those_of_interp() -> None:
    lengths = np.array([[90.0, 70.0, 75.0, 40.0], [90.0, 80.0, 70.0, 65.0]])
    place = reach(lengths, 72.0)
    assert place[0] == pytest.approx(np.interp(-72, [-90, -70], [0, 1]))  # the first time
    assert at(lengths, place).tolist() == pytest.approx([72.0, 72.0])
    assert reach(lengths, 95.0).tolist() == [0, 0] and np.isnan(reach(lengths, 60.0)[1])
    assert np.isnan(at(lengths, reach(lengths, 60.0))[1])


def test_pressures_are_chosen_on_the_validation_alone() -> None:
    """The rule for accuracy takes the gentlest, that for speed the fastest accurate enough."""
    method = contender("tlmre", {0.2: 0.5, 0.3: 0.9, 0.6: 1.8}, cost=0.2)
    assert method.most_accurate(50.0) == 0 and method.fastest(50.0) == 1  # .6 costs 4 points more
    assert method.fastest(50.0, least=0.5) == 2
    assert method.fastest(50.0, least=0.99) == 1  # nothing has that much: as without it
    assert method.most_accurate(25.0) == 1  # the gentlest never gets there
    turned = replace(method, accuracy=method.accuracy[::-1].copy())
    assert turned.most_accurate(50.0) != 0
    blind = replace(method, correct=1 - method.correct, redundant=method.redundant + 30)
    assert blind.most_accurate(50.0) == 0 and blind.fastest(50.0) == 1


def test_accuracy_at_equal_length_and_length_at_equal_accuracy() -> None:
    cheap = contender("attnpo", {0.2: 0.6, 0.3: 0.9}, cost=0.1)
    dear = contender("tlmre", {0.2: 0.6, 0.3: 0.9}, cost=0.3)
    standings = stand([dear, cheap])
    pair = standings.pairs[0]
    assert (pair.method, pair.against, pair.settings, pair.others) == ("attnpo", "tlmre", 2, 2)
    chosen = {point.length: point for point in frontier(dear, standings.lengths)}
    assert chosen[40.0].accuracy.value == pytest.approx(0.9 - 0.3 * 0.2 * 40 / 60, abs=0.006)
    assert pair.gap is not None and pair.gap.low > 0  # no noise: the interval is the value
    assert standings.start == (pytest.approx(0.9), pytest.approx(80.0))
    tokens = length_gap(cheap, dear, 0.88)
    assert tokens is not None and tokens.value < -5
    assert length_gap(cheap, dear, 0.99) is None


def test_steps_until_a_length_are_of_runs_that_all_come_to_it() -> None:
    """80 tokens, 0.6 and 1.2 fewer a step."""
    slow, fast = stand([contender("tlmre", {0.2: 0.6, 0.3: 1.2})]).ends
    for end, a_step in ((slow, 0.6), (fast, 1.2)):
        for point in end.until:
            reached = (80 - point.length) / a_step <= 100
            assert point.reaching == (3 if reached else 0)
            if reached:
                assert point.steps.value == pytest.approx((80 - point.length) / a_step)
            else:
                assert np.isnan(point.steps.value)
    one = contender("attnpo", {0.2: 1.2})
    longer = one.redundant.copy()
    longer[:, 1] = np.maximum(longer[:, 1], 45.0)
    *_, last = stand([replace(one, redundant=longer)]).ends[0].until
    assert last.reaching == 2 and np.isnan(last.steps.value)


def test_credit_by_attention_is_held_against_true_labels_and_every_control() -> None:
    names = ("attnpo", "overlap", "recency", "pa", "random-heads", "oracle")
    methods = [contender(name, {0.2: 0.6}) for name in ("tlmre", *names)]
    pairs = [(pair.method, pair.against) for pair in stand(methods).pairs]
    others = ("oracle", "pa", "random-heads", "recency", "overlap")
    assert pairs == [(name, "tlmre") for name in names] + [("attnpo", name) for name in others]


def test_a_changed_rule_is_held_against_the_rule_and_true_labels() -> None:
    names = ("attnpo", "attnpo-answer", "oracle", "attnpo-checks")
    methods = [contender(name, {0.2: 0.6}) for name in names]
    pairs = [(pair.method, pair.against) for pair in stand(methods).pairs]
    changed = ("attnpo-checks", "attnpo-answer")
    assert pairs == [("attnpo", "oracle")] + [(n, o) for n in changed for o in ("attnpo", "oracle")]


def test_gains_are_drawn_where_they_are() -> None:
    """Every ratio with its ends; no line where there is no interval, nothing where no figure."""

    def estimate(value: float, low: float | None, high: float | None) -> dict[str, float | None]:
        return {"value": value, "low": low, "high": high}

    ups = [
        {"length": 60.0, "steps": estimate(2.0, 1.5, 3.0)},
        {"length": 50.0, "steps": estimate(1.2, None, None)},
        {"length": 40.0, "steps": estimate(1.4, 1.1, None), "bound": "≥"},
    ]
    pair = {"method": "attnpo", "against": "tlmre", "speed_ups": ups}
    pair |= {"gap": estimate(-0.02, -0.05, 0.01)}
    other = {**pair, "method": "mine", "gap": None, "speed_ups": ups[:1]}
    other |= {"settings": 1, "others": 1}
    figure = gains([pair, other])
    assert figure is not None and gains([{**pair, "speed_ups": []}]) is None
    sooner, accurate = (
        [line for line in axes.lines if line.get_color() != "0.6"] for axes in figure.axes
    )
    assert [list(line.get_xdata()) for line in sooner] == [
        [2],
        [1.5, 3],
        [1.2],
        [1.4],
        [1.1, 1.4],
        [2],
        [1.5, 3],
    ]
    assert [line.get_ydata()[0] for line in sooner] == [0, 0, 1, 2, 2, 4, 4]
    assert [list(line.get_xdata()) for line in accurate] == [[-2], [-5, 1]]
    assert [label.get_text() for label in figure.axes[0].texts] == ["60", "50", "→", "40", "60"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [
        "attnpo\nagainst tlmre",
        "mine\nagainst tlmre (one pressure)",
    ]


def test_least_length_at_an_accuracy_counts_the_way_between_checkpoints() -> None:
    lengths = np.array([80.0, 60.0, 50.0])

    def least(*accuracy: float) -> float:
        return float(shortest_with(lengths, np.array(accuracy), 0.9))

    assert least(0.9, 0.8, 0.95) == 50 and least(0.9, 0.9, 0.9) == 50
    assert least(0.95, 0.85, 0.7) == pytest.approx(70)
    assert np.isnan(least(0.5, 0.6, 0.5))


def test_methods_tried_with_other_numbers_of_settings_meet_on_those_they_share() -> None:
    three = contender("tlmre", {0.2: 0.6, 0.3: 0.9, 0.4: 1.2})
    one = contender("pa", {0.3: 0.9}, seeds=2)
    pair = alike(one, three)
    assert pair is not None and pair[1].pressures == (0.3,) and pair[1].seeds == (0, 1)
    assert pair[1].correct.shape == pair[0].correct.shape
    two = contender("attnpo", {0.2: 0.6, 0.3: 0.9})  # what is to be beaten may have had more tries
    pair = alike(two, three)
    assert pair is not None and [len(each.pressures) for each in pair] == [2, 3]
    pair = alike(three, two)
    assert pair is not None and [each.pressures for each in pair] == [(0.2, 0.3)] * 2
    assert alike(contender("laser", {100.0: 0.6}), three) is None
    notes = stand([three, contender("laser", {100.0: 0.6})]).notes
    assert len(notes) == 1 and "not held against each other" in notes[0]


def test_no_accuracy_is_below_0_or_above_1() -> None:
    wild = contender("attnpo", {0.3: 0.9})
    right = np.zeros_like(wild.correct)
    right[:, [0, 2]] = 1  # two of three seeds are always right
    wild = replace(wild, correct=right)
    for point in frontier(wild, (60.0,)):
        assert 0 == point.accuracy.low <= point.accuracy.value <= point.accuracy.high == 1
    band = averaged_courses(wild.correct[0], shares=True)
    assert band.low.min() == 0 and band.high.max() == 1
    unknown = within(Estimate(0.5, np.nan, np.nan, 3))
    assert np.isnan(unknown.low) and np.isnan(unknown.high)
    seconds = within(Estimate(5.0, -3.0, 13.0, 3), np.inf)  # a time is not below 0, either
    assert (seconds.low, seconds.high) == (0.0, 13.0)


def test_a_run_that_collapses_counts() -> None:
    wild = contender("tlmre", {0.5: 3.0}, cost=1.5)
    assert stand([wild]).ends[0].collapsed == 3
    with pytest.raises(DataError, match="nothing to draw"):
        stand([])


def test_a_statistic_within_seeds_that_is_linear_is_that_of_the_means() -> None:
    values = np.random.default_rng(0).normal(0, 1, (4, 50)) + np.arange(4)[:, None]
    one = hierarchical_bootstrap(lambda mean: mean, values)
    other = seedwise(lambda mean: mean[..., 0], values[:, None])
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_a_figure_that_one_seed_lacks_is_none_and_one_that_draws_lack_has_no_interval() -> None:
    values = np.zeros((2, 1, 40))
    values[0, 0] = 1
    gone = seedwise(lambda mean: np.where(mean[..., 0] > 0.5, 1.0, np.nan), values)
    assert np.isnan(gone.value)
    half = np.tile([0.0, 1.0], (2, 1, 20))
    shaky = seedwise(lambda mean: np.where(mean[..., 0] > 0.49, 1.0, np.nan), half)
    assert shaky.value == 1 and np.isnan(shaky.low)


@pytest.mark.slow
def test_intervals_of_a_speed_up_hold_the_truth() -> None:
    """Seeds differ in their rate by 10 %: 95 % intervals over 4 seeds hold the ratio of 1.5."""
    hits = 0
    for trial in range(20):
        rng = np.random.default_rng(trial)

        def drawn(name: str, rate: float, rng: np.random.Generator = rng) -> Contender:
            rows = []
            for _ in range(4):
                length = np.maximum(80 - rate * np.exp(rng.normal(0, 0.1)) * STEPS, 20.0)
                one = course(length, np.full(11, 0.9), int(rng.integers(1 << 30)), noise=20.0)
                rows.append({"reported": one, "validation": one})
            return Contender.of(name, {0.2: rows}, range(4))

        found = speed_up(drawn("attnpo", 0.9), drawn("tlmre", 0.6), 50.0)
        hits += found is not None and found.steps.low <= 1.5 <= found.steps.high
    assert hits >= 17  # 19 expected
