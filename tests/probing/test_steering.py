"""Heads silenced and steered on the pocket reasoner, whose copying heads are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from lens_witness import LensWitness

from probing.files.headers import data_path
from probing.headset import HeadFigures, HeadSet
from probing.interventions.copies import Alterer, value_runs
from probing.interventions.effects import dose_correlations
from probing.interventions.heads import head_arms, open_answers, silence_heads
from probing.interventions.job import prepare_answers
from probing.interventions.outcomes import Outcome
from probing.interventions.setup import InterventionConfig, Setup, TraceChoice
from probing.interventions.steering import other_step, steer
from probing.models.load import load_model, load_tokenizer

COPYING = ((2, 1), (2, 2), (2, 3))


@pytest.fixture(scope="module")
def setup() -> Setup:
    """Four traces; the three heads of highest SRA; the judge wants the answer token by token."""
    folder = str(data_path("pocket"))
    model, tokenizer = load_model(folder, device="cpu"), load_tokenizer(folder)
    heads = replace(
        HeadSet.load("pocket"), heads=tuple(HeadFigures(layer, head) for layer, head in COPYING)
    )
    choice = TraceChoice(only="all", limit=4).choose(heads)
    config = InterventionConfig(
        modes=("zero/all", "mean/answer-to-steps"),
        factors=(0.0, 1e-2, 1.0, 4.0),
        draws=3,
        max_answer_tokens=20,
    )
    ends = frozenset({tokenizer.eos_token_id})

    def judge(trace, ids) -> bool:
        return list(ids[:-1]) == trace.ids[trace.answer :].tolist() and ids[-1] in ends

    empty = Setup(model, tokenizer, heads, (), (), config, judge, ends)
    traces = list(prepare_answers(empty, choice))
    return replace(empty, traces=traces, reference=traces)


def by_arm(outcomes: list[list[Outcome]], arm: str, mode: str, dose: float) -> list[Outcome]:
    return [o for of in outcomes for o in of if (o.arm, o.mode, o.dose) == (arm, mode, dose)]


def test_an_altered_trace_differs_in_one_step(setup: Setup) -> None:
    alterer = Alterer(setup.tokenizer, seed=1)
    for trace in setup.traces:
        runs = value_runs(setup.tokenizer, trace)
        text = setup.tokenizer.decode(trace.ids[trace.answer :])
        values = [setup.tokenizer.decode(trace.ids[a:b]).strip() for a, b in runs]
        assert values == [
            word.strip("\\boxed{}") for word in text.split() if any(map(str.isdigit, word))
        ]
        altered = alterer(trace)
        assert altered is not None and trace.labels[altered.step] == "essential"
        places = np.flatnonzero(altered.trace.ids != trace.ids)
        start, end = trace.spans[altered.step]
        assert len(places) and ((places >= start) & (places < end)).all()
        assert altered.run in runs
        assert setup.tokenizer.decode(altered.original).strip().isdigit()
        other = setup.tokenizer.decode(altered.other)
        assert other.strip().isdigit() and len(other) == len(
            setup.tokenizer.decode(altered.original)
        )
        assert other not in setup.tokenizer.decode(trace.ids)
        tails = altered.tails()
        assert (
            tails[0][: -len(altered.original)].tolist() == tails[1][: -len(altered.other)].tolist()
        )
        again, another = alterer(trace), Alterer(setup.tokenizer, seed=2)(trace)
        assert again is not None and again.other == altered.other
        assert another is not None and another.step == altered.step
        step = other_step(altered, 0)
        assert step not in (None, altered.step) and step == other_step(altered, 0)


def test_the_chosen_heads_carry_the_copies(setup: Setup) -> None:
    outcomes = list(silence_heads(setup))
    assert [of[0].trace for of in outcomes] == [trace.id for trace in setup.traces]
    none = by_arm(outcomes, "none", "", 0)
    assert all(o.correct for o in none)
    assert np.mean([o.extra["has_source"] for o in none]) > 0.2, "most values stand in two steps"
    assert {o.extra["source_kept"] for o in none if "source_kept" in o.extra} == {1.0}
    assert np.mean([o.extra.get("source_essential", 1) for o in none]) > 0.7
    for mode in setup.config.modes:
        chosen, random = (by_arm(outcomes, arm, mode, 3) for arm in ("chosen", "random"))
        assert len(chosen) == 4 and len(random) == 12
        assert {o.extra["overlap"] for o in random} == {2 / 3}
        for measure in (lambda o: o.logprob, lambda o: o.extra["follow"]):
            lost = np.mean([measure(o) for o in chosen]) - np.mean([measure(o) for o in random])
            assert lost < -3, "nats"
        assert not any(o.correct for o in chosen)
        kept = [
            np.mean([o.extra["source_kept"] for o in of if "source_kept" in o.extra])
            for of in (chosen, random)
        ]
        assert kept[0] < kept[1] < 1
    assert np.mean([o.extra["follow"] for o in none]) > 8


def test_the_answer_follows_the_step_as_far_as_the_heads_look_at_it(setup: Setup) -> None:
    outcomes = list(steer(setup))
    correlations = dose_correlations([o for of in outcomes for o in of])
    chosen = list(correlations["chosen"].values())
    assert len(chosen) == 4 and np.mean(chosen) > 0.8
    none = by_arm(outcomes, "none", "", 1)
    blocked, other = (
        by_arm(outcomes, arm, "scale/answer-to-step", 0) for arm in ("chosen", "other-step")
    )
    lost = [
        np.mean([a.extra["follow"] - b.extra["follow"] for a, b in zip(none, of, strict=True)])
        for of in (blocked, other)
    ]
    assert lost[0] > 5 and lost[0] > 2 * abs(lost[1])
    assert not by_arm(outcomes, "chosen", "scale/answer-to-step", 1), "a factor of 1 is `none`"


def test_a_resumed_part_gives_the_same_outcomes(setup: Setup) -> None:
    """Outcomes depend on trace, settings and reference, not on which traces are left to do."""
    config = replace(setup.config, modes=("mean/all",), max_answer_tokens=0)
    whole = list(silence_heads(replace(setup, config=config)))
    rest = list(silence_heads(replace(setup, config=config, traces=setup.traces[3:])))
    for of, again in zip(whole[3:], rest, strict=True):
        for a, b in zip(of, again, strict=True):
            assert (a.arm, a.draw, a.trace, a.correct) == (b.arm, b.draw, b.trace, b.correct)
            assert a.logprob == pytest.approx(b.logprob, abs=1e-3)


def test_transformer_lens_gives_the_same_outcomes(setup: Setup) -> None:
    config = replace(setup.config, modes=("mean/answer-to-steps",), draws=1, max_answer_tokens=3)
    small = replace(setup, config=config, traces=setup.traces[:2], reference=setup.traces[:2])
    lens = LensWitness(setup.model, setup.ends)
    with open_answers(small) as answers:
        arms = head_arms(small, answers, tuple(setup.heads.pairs))
    ours = list(silence_heads(small))
    for place, arm in enumerate(arms):
        chances = lens.log_probabilities(small.traces, arm.edit)
        decoded = lens.greedy(small.traces, arm.edit, 3)
        for trace, of, log_p, ids in zip(small.traces, ours, chances, decoded, strict=True):
            outcome, counted = of[place], trace.counted[trace.context + 1 :]
            assert (outcome.arm, outcome.draw) == (arm.name, arm.draw)
            assert outcome.logprob == pytest.approx(log_p[counted].sum(), abs=1e-3)
            assert outcome.correct == setup.verdict(trace, ids)
