"""SRA and its relatives against theory, scipy, and each other; selection and intervals."""

from __future__ import annotations

import doctest
import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from bench import chance
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import mannwhitneyu

from probing.attention.scores import step_baseline, step_scores
from probing.choices import METRICS
from probing.config import ProbeConfig
from probing.errors import ConfigError, DataError
from probing.intervals import CLASSES, bootstrap_interval, by_group, classes, mean_over_traces
from probing.ranking.metrics import (
    CONTROLS,
    Measures,
    RankedTrace,
    ReadTraces,
    answer_overlap,
    balanced_ranking_accuracy,
    control_scores,
    gating_accuracy,
    metric_table,
    ranking_counts,
    ratios,
    step_ranking_accuracy,
)
from probing.ranking.null import (
    flipped_null,
    labelling_counts,
    max_null,
    p_values,
    permuted_labels,
)
from probing.ranking.rank import rank_heads
from probing.ranking.select import ensembles, halves, select_greedy, select_top


@pytest.mark.parametrize(
    "name",
    [
        "ranking.metrics",
        "ranking.null",
        "intervals",
        "attention.scores",
        "attention.fused",
        "traces.tokens",
        "traces.segmenters",
    ],
)
def test_worked_examples(name: str) -> None:
    """The examples of the docstrings are true."""
    result = doctest.testmod(importlib.import_module(f"probing.{name}"))
    assert result.attempted and not result.failed


def both(draw_labels: np.ndarray) -> bool:
    return bool(draw_labels.any() and not draw_labels.all())


labellings = hnp.arrays(bool, st.integers(2, 12)).filter(both)


@settings(max_examples=200, deadline=None)
@given(labellings, st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_all_forms_agree_and_stay_in_range(essential: np.ndarray, seed: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, values + 1, (4, len(essential))).astype(float)
    sra = step_ranking_accuracy(scores, essential)
    balanced = balanced_ranking_accuracy(scores, essential)
    counts = ranking_counts(scores, essential)
    np.testing.assert_allclose(counts.sra(), sra, atol=1e-12)
    np.testing.assert_allclose(counts.balanced(), balanced, atol=1e-12)
    gate = gating_accuracy(scores, essential, values / 2)
    for figure in (sra, gate, balanced[~np.isnan(balanced)]):
        assert ((figure >= 0) & (figure <= 1)).all()
    # Negated scores rank the other way round; SRA is the Mann–Whitney statistic.
    np.testing.assert_allclose(step_ranking_accuracy(-scores, essential), 1 - sra)
    u = mannwhitneyu(scores[0, essential], scores[0, ~essential]).statistic
    assert sra[0] == pytest.approx(u / (essential.sum() * (~essential).sum()))


@settings(max_examples=200, deadline=None)
@given(labellings, st.booleans())
def test_position_alone_is_balanced_to_one_half(essential: np.ndarray, rising: bool) -> None:
    scores = np.cumsum(np.random.default_rng(0).random(len(essential)) + 0.1)
    balanced = balanced_ranking_accuracy(scores if rising else -scores, essential)
    kinds = np.flatnonzero(essential)[:, None] < np.flatnonzero(~essential)[None]
    assert np.isnan(balanced) if kinds.all() or not kinds.any() else balanced == 0.5


def test_one_label_has_no_pairs() -> None:
    with pytest.raises(DataError, match="both essential and redundant"):
        step_ranking_accuracy(np.arange(3.0), np.ones(3, dtype=bool))


def test_step_scores_against_the_formula() -> None:
    rng = np.random.default_rng(0)
    mass = rng.random((3, 5, 20)).astype(np.float32)
    spans = np.array([[0, 4], [3, 9], [9, 9], [19, 20]])
    scores = step_scores(mass, spans)
    assert np.isnan(scores[..., 2]).all()
    for step in (0, 1, 3):
        first, last = spans[step]
        np.testing.assert_allclose(scores[..., step], mass[..., first:last].mean(-1), rtol=1e-6)


def test_step_scores_keep_what_is_small() -> None:
    """A tiny step behind a huge sink keeps its digits."""
    mass = np.array([1000.0, *np.full(5000, 1e-7)], dtype=np.float32)
    score = step_scores(mass, np.array([[4990, 5000]]))
    assert score[0] == pytest.approx(1e-7, rel=1e-4)


def test_baseline() -> None:
    assert step_baseline(30, 300) == pytest.approx(0.1)
    assert step_baseline(30, 300, p=0.5, alpha=2) == pytest.approx(0.025)


def planted(n: int = 12, heads: int = 30, good: int = 7, seed: int = 0) -> list[RankedTrace]:
    """Traces in which one head knows the labels (with some noise) and the others nothing."""
    rng = np.random.default_rng(seed)
    traces = []
    for number in range(n):
        essential = rng.permutation(np.arange(16) < 7)
        scores = rng.random((heads, 16))
        scores[good] += 0.8 * essential
        traces.append(
            RankedTrace(f"t{number}", f"p{number // 2}", scores, essential, np.ones(16, int), 0.7)
        )
    return traces


def test_null_and_p_values_find_what_is_planted_and_nothing_else() -> None:
    traces = planted()
    table = metric_table(traces)
    for kind in ("shuffle", "rotate"):
        null = max_null(traces, kind=kind, permutations=300)
        for metric in ("sra", "balanced"):
            p = p_values(mean_over_traces(table[metric]), null[metric])
            assert p.argmin() == 7 and p[7] == pytest.approx(1 / 301)
            assert np.delete(p, 7).min() > 0.05


def test_a_figure_that_does_not_exist_has_no_p_value() -> None:
    p = p_values(np.array([0.9, np.nan]), np.array([0.5, 0.6, 0.7]))
    assert p[0] == 0.25 and np.isnan(p[1])


def test_p_values_are_honest_without_signal() -> None:
    """With no signal, the best of 20 heads has p ≤ 0.2 in about a fifth of the studies."""
    hits = 0
    for seed in range(100):
        traces = planted(4, 20, seed=seed)
        for trace in traces:
            trace.scores[7] = np.random.default_rng([seed, 1]).random(16)
        null = max_null(traces, permutations=60, seed=seed)["sra"]
        hits += p_values(mean_over_traces(metric_table(traces)["sra"]), null).min() <= 0.2
    assert 8 <= hits <= 34


def test_permuted_labels_keep_their_number() -> None:
    rng = np.random.default_rng(0)
    essential = np.array([True, True, False, False, False])
    for kind in ("shuffle", "rotate"):
        found = permuted_labels(essential, 200, kind, rng)
        assert (found.sum(1) == 2).all() and len(np.unique(found, axis=0)) > 4
    runs = permuted_labels(essential, 200, "rotate", rng)
    assert ((runs != np.roll(runs, 1, axis=1)).sum(1) == 2).all()
    with pytest.raises(ConfigError, match="unknown null"):
        permuted_labels(essential, 1, "none", rng)


def test_split_keeps_problems_together_and_ignores_order() -> None:
    traces = planted(20)
    ids, problems = [trace.id for trace in traces], [trace.group for trace in traces]
    split = halves(ids, problems)
    assert sorted(split[0] + split[1]) == list(range(20))
    assert abs(len(split[0]) - len(split[1])) <= 2
    groups = [{traces[place].group for place in half} for half in split]
    assert not groups[0] & groups[1]
    again = halves(ids[::-1], problems[::-1])
    assert {traces[p].id for p in split[0]} == {traces[::-1][p].id for p in again[0]}


def test_bootstrap_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        values = rng.normal(0.6, 0.1, (1, 40))
        low, high = bootstrap_interval(values, apart(40), resamples=400, seed=seed)[0]
        inside += low <= 0.6 <= high
    assert 176 <= inside <= 199
    values = np.array([[0.2, np.nan, 0.4], [np.nan, np.nan, np.nan]])
    assert mean_over_traces(values)[0] == pytest.approx(0.3)
    low, high = bootstrap_interval(values[:1], apart(3))[0]
    assert 0.2 - 1e-9 <= low <= high <= 0.4 + 1e-9


def apart(count: int) -> list[str]:
    """Traces each of a problem of its own."""
    return [f"p{number}" for number in range(count)]


def test_the_unit_of_an_interval_is_the_problem() -> None:
    """Eight traces of a problem that agree are no more than one; a row without a value has none."""
    rng = np.random.default_rng(0)
    of_problem = rng.random((3, 12))
    once = bootstrap_interval(of_problem, apart(12))
    names = [name for name in apart(12) for _ in range(8)]
    np.testing.assert_allclose(bootstrap_interval(np.repeat(of_problem, 8, axis=1), names), once)
    narrow = bootstrap_interval(np.repeat(of_problem, 8, axis=1), apart(96))
    assert (np.diff(narrow) < 0.5 * np.diff(once)).all()
    holes = np.array([[0.1, np.nan, 0.3], [np.nan] * 3, [0.4, np.nan, np.nan]])
    limits = bootstrap_interval(holes, apart(3))
    assert not np.isnan(limits[0]).any() and np.isnan(limits[1:]).all()
    assert np.isnan(bootstrap_interval(of_problem, ["p"] * 12)).all()  # one problem says nothing


@pytest.mark.slow
def test_simulated_studies_are_covered_and_have_their_size() -> None:
    """12 problems × 4 traces with affinity: what single traces as units get wrong holds here."""
    held, by_trace = chance.coverage(12, 4, 1.0, studies=150)
    assert held >= 0.90 and by_trace <= held - 0.05
    of_problems, of_shuffle = chance.size(12, 4, 1.0, studies=60, draws=99)
    assert of_problems <= 0.13 and of_shuffle >= 0.3


def test_signs_of_problems() -> None:
    """The test over problems is the sign-flip test, for one head exactly Fisher's."""
    rng = np.random.default_rng(3)
    values = 0.5 + rng.normal(0.1, 0.2, (1, 9))
    found = scipy.stats.permutation_test(
        (values[0] - 0.5,), np.mean, permutation_type="samples", alternative="greater"
    )
    p, best = flipped_null(values, apart(9))
    assert p[0] == pytest.approx(found.pvalue) and len(best) == 2**9 - 1
    # Whole problems have one sign; over many heads p is that of the best of them.
    twice = np.repeat(values, 2, axis=1)
    again, _ = flipped_null(twice, [name for name in apart(9) for _ in range(2)])
    assert again[0] == pytest.approx(p[0])
    many = np.concatenate([values, 0.5 + rng.normal(0, 0.2, (40, 9))])
    corrected, _ = flipped_null(many, apart(9))
    assert corrected[0] > p[0]
    nothing, none = flipped_null(np.full((2, 4), np.nan), apart(4))
    assert np.isnan(nothing).all() and len(none) == 0


def test_selection() -> None:
    traces = planted()
    table = metric_table(traces)
    figures = mean_over_traces(table["sra"])
    assert select_top(figures, 1) == [7]
    assert select_top(np.array([0.5, np.nan, 0.7, 0.7]), 4) == [2, 3, 0, 1]
    greedy = select_greedy(traces, "sra", 5)
    assert greedy[0] == 7 and len(set(greedy)) == 5
    # Each greedy step takes the best head there is, by exhaustive search.
    best = max(
        (h for h in range(30) if h != 7),
        key=lambda h: np.mean(
            [step_ranking_accuracy(mean_score(t, [7, h]), t.essential) for t in traces]
        ),
    )
    assert greedy[1] == best
    with pytest.raises(ConfigError, match="unknown metric"):
        select_greedy(traces, "best", 1)


def test_controls_are_what_they_say() -> None:
    trace = planted(1)[0]
    figures = {
        name: {m: v[0] for m, v in trace.measure(control_scores(trace, name)).items()}
        for name in ("recency", "earliness", "uniform", "length", "answer overlap")
    }
    assert figures["recency"]["sra"] == pytest.approx(1 - figures["earliness"]["sra"])
    for name in figures:  # all steps have one length here
        assert figures[name]["balanced"] == 0.5
    assert figures["uniform"]["sra"] == figures["length"]["sra"] == 0.5
    assert figures["answer overlap"]["sra"] == 0.5  # without texts it knows nothing
    assert answer_overlap(["我们 say 12 今"], "12 我 and say").tolist() == [3 / 5]
    assert set(trace.measure()) == set(METRICS)


def mean_score(trace: RankedTrace, heads: list[int]) -> np.ndarray:
    """S_k over a set of heads, in the plain way."""
    return trace.scores[heads].mean(axis=0)


def uneven(seed: int = 0, heads: int = 11, dtype: type = np.float32) -> list[RankedTrace]:
    """Traces of 2 to 40 steps with ties, some of one order of pairs alone, several a problem."""
    rng = np.random.default_rng(seed)
    traces = []
    for number in range(14):
        steps = int(rng.integers(4, 40))
        essential = rng.random(steps) < 0.4
        essential[:2] = True, False
        if number % 5 == 0:
            essential[:] = np.arange(steps) < 2
        scores = np.exp(rng.normal(-4, 1.5, (heads, steps))).astype(dtype)
        scores[rng.random(scores.shape) < 0.2] = 0.01
        scores[0] = 0.02  # a head that sees no difference
        tokens = rng.integers(1, 9, steps)
        group = f"p{number // 3}"
        traces.append(RankedTrace(f"t{number}", group, scores, essential, tokens, 0.013))
    return traces


def plain_values(trace: RankedTrace, scores: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics by the formulas, one pair beside another."""
    return {
        "sra": step_ranking_accuracy(scores, trace.essential),
        "balanced": balanced_ranking_accuracy(scores, trace.essential),
        "gating": gating_accuracy(scores, trace.essential, trace.base),
    }


@pytest.mark.parametrize("steps", [600, 1100])
def test_long_traces_are_counted_whole(steps: int) -> None:
    """More redundant steps than a byte counts."""
    rng = np.random.default_rng(steps)
    essential = rng.permutation(np.arange(steps) < 40)
    scores = rng.integers(0, 50, (3, steps)).astype(np.float32)
    counts = ranking_counts(scores, essential)
    np.testing.assert_allclose(counts.sra(), step_ranking_accuracy(scores, essential), rtol=1e-12)
    plain = balanced_ranking_accuracy(scores, essential)
    np.testing.assert_allclose(counts.balanced(), plain, rtol=1e-12)


@pytest.mark.parametrize("kind", ["shuffle", "rotate"])
@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 64 << 20])
def test_many_labellings_are_each_counted_as_one(kind: str, chunk_bytes: int) -> None:
    rng = np.random.default_rng(1)
    for trace in uneven():
        labellings = permuted_labels(trace.essential, 60, kind, rng)
        counts = labelling_counts(trace.scores, labellings, chunk_bytes)
        for number, essential in enumerate(labellings):
            alone = ranking_counts(trace.scores, essential)
            for name, values in vars(counts).items():
                np.testing.assert_array_equal(values[..., number], getattr(alone, name))


@pytest.mark.parametrize("kind", ["shuffle", "rotate"])
def test_the_null_of_permuted_labels_is_that_of_the_formulas(kind: str) -> None:
    rng, draws, traces = np.random.default_rng(7), 25, uneven(heads=4)
    values = {m: np.empty((4, draws, len(traces))) for m in ("sra", "balanced")}
    for place, trace in enumerate(traces):
        for draw, essential in enumerate(permuted_labels(trace.essential, draws, kind, rng)):
            values["sra"][:, draw, place] = step_ranking_accuracy(trace.scores, essential)
            values["balanced"][:, draw, place] = balanced_ranking_accuracy(trace.scores, essential)
    found = max_null(traces, kind=kind, permutations=draws, seed=7)
    for metric, best in found.items():
        expected = mean_over_traces(values[metric]).max(axis=0)
        np.testing.assert_allclose(best, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_means_of_growing_sets_and_greedy_sums_are_exact(dtype: type) -> None:
    traces = uneven(dtype=dtype)
    order = [4, 1, 9, 0, 6, 3, 10, 2]
    for trace in traces:
        for size, means in enumerate(ensembles(trace, order), 1):
            np.testing.assert_array_equal(means, mean_score(trace, order[:size]))
    for metric in METRICS:
        chosen: list[int] = []
        for _ in range(6):
            rest = [head for head in range(11) if head not in chosen]
            figures = []
            for head in rest:
                values = [plain_values(t, mean_score(t, [*chosen, head])[None]) for t in traces]
                figures.append(np.nanmean([value[metric][0] for value in values]))
            chosen.append(rest[int(np.argmax(figures))])
        assert select_greedy(traces, metric, 6) == chosen


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(4))
def test_streamed_medians_are_the_medians(dtype: type, seed: int) -> None:
    """To the bit, however few ratios are kept at once; of negative scores too."""
    traces = uneven(seed, dtype=dtype)[: 14 - seed]
    for trace in traces:
        trace.scores[5] = np.random.default_rng(seed).normal(0, 1, trace.scores.shape[1])
    of_base = np.concatenate([trace.scores / trace.base for trace in traces], axis=1)
    essential = np.concatenate([trace.essential for trace in traces])
    expected = [np.median(of_base[:, chosen], axis=1) for chosen in (essential, ~essential)]
    counted = Measures.of(traces).ratios
    assert counted is not None
    for kept in (1, 60, 1 << 26):
        turns = counted.turns(kept)
        assert len(turns) == {1: 22, 1 << 26: 1}.get(kept, len(turns)) and len(turns) != 2
        for turn in turns:
            for trace in traces:
                for first, values in ratios(trace):
                    turn.add(first, values)
        found = np.concatenate([turn.medians() for turn in turns])
        np.testing.assert_array_equal(found, np.concatenate(expected))
        assert found.dtype == dtype


def test_sums_by_group_are_the_products_they_were() -> None:
    """Groups that are mixed, of one trace each, and one alone."""
    rng = np.random.default_rng(0)
    values = rng.random((5, 30))
    for names in (rng.integers(0, 7, 30).astype(str), np.arange(30).astype(str), np.full(30, "p")):
        first = list(dict.fromkeys(names.tolist()))
        member = np.array([[name == group for group in first] for name in names], dtype=float)
        np.testing.assert_allclose(by_group(values, names.tolist()), values @ member, rtol=1e-13)
        np.testing.assert_allclose(by_group(values[0], names.tolist()), values[0] @ member)


def test_classes_rise_with_the_ratios() -> None:
    rng = np.random.default_rng(0)
    ratios = np.sort(rng.normal(0, 1, 10_000) * 10.0 ** rng.integers(-300, 300, 10_000))
    found = classes(ratios)
    assert (np.diff(found) >= 0).all() and found[0] >= 0 and found[-1] < CLASSES


def test_a_ranking_is_that_of_the_formulas(tmp_path: Path) -> None:
    """Table, controls and ensembles, from traces that are read anew each time."""
    traces = uneven()
    config = ProbeConfig("m", tmp_path / "t", tmp_path, select="greedy", top=2, permutations=50)
    reads: list[int] = []

    def read(place: int) -> RankedTrace:
        reads.append(place)
        return traces[place]

    pairs = [(head // 4, head % 4) for head in range(11)]
    again = ReadTraces(range(14), read)
    ranking = rank_heads(config, pairs, Measures.of(traces), again)
    select, held_out = halves([t.id for t in traces], [t.group for t in traces])
    # Once, and once a greedy head; the checks of types in tests look at a few more.
    assert 0 <= len(reads) - (14 + 10 * len(select)) <= 5
    assert [trace.id for trace in again[3:5]] == ["t3", "t4"] and again[-1].id == "t13"
    plain = [plain_values(trace, trace.scores) for trace in traces]
    controls = [
        plain_values(t, np.concatenate([control_scores(t, name) for name in CONTROLS]))
        for t in traces
    ]
    for metric in METRICS:
        for table, values in ((ranking.table, plain), (ranking.controls, controls)):
            if table is ranking.controls and metric == "gating":
                continue  # only of "all heads"
            of = np.stack([value[metric] for value in values], axis=1)
            for name, some in (("", range(14)), ("_select", select), ("_held_out", held_out)):
                expected = np.nanmean(of[:, list(some)], axis=1)
                np.testing.assert_allclose(table[metric + name], expected, rtol=0, atol=1e-12)
    for how, points in ranking.curves.items():
        order = [pairs.index(tuple(point["added"])) for point in points]
        for size, point in enumerate(points, 1):
            assert point["heads"] == size
            values = [plain_values(t, mean_score(t, order[:size])[None]) for t in traces]
            for metric in METRICS:
                of = np.array([value[metric][0] for value in values])
                expected = np.nanmean(of[held_out]), np.nanmean(of[select])
                found = point[metric], point[f"{metric}_select"]
                assert found == pytest.approx(expected, rel=0, abs=1e-12), how
    assert list(ranking.curves) == ["top", "greedy"]
    plain_config = replace(config, select="top")
    reads.clear()
    top = rank_heads(plain_config, pairs, Measures.of(traces), again)
    assert 0 <= len(reads) - 14 <= 5 and list(top.curves) == ["top"]
    assert top.curves["top"] == ranking.curves["top"]
    of_base = np.concatenate([trace.scores / trace.base for trace in traces], axis=1)
    essential = np.concatenate([trace.essential for trace in traces])
    for name, chosen in (("essential", essential), ("redundant", ~essential)):
        expected = np.median(of_base[:, chosen], axis=1)
        np.testing.assert_array_equal(top.table[f"contrast_{name}"], expected)
