"""The formulas of credit assignment: worked examples, and what must hold whatever the numbers."""

from __future__ import annotations

import doctest
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import probing.attention.passing
import rl.attnpo.credit
import rl.attnpo.rescale
import rl.attnpo.rewards
from probing.errors import ConfigError
from rl.attnpo.rescale import (
    Rescaling,
    outside_scale,
    rloo_advantage,
    schedule_open,
    step_scales,
    token_scales,
)
from rl.attnpo.rewards import shaped_reward, tlmre

PAPER = Rescaling(delay=0.0)


@pytest.mark.parametrize(
    "module",
    [rl.attnpo.rescale, rl.attnpo.rewards, rl.attnpo.credit, probing.attention.passing],
)
def test_worked_examples(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def scales(scores, *, advantage=1.0, p=1.0, correct=True, step=1, constants=PAPER):
    """γ of one response with |F| = 20 of 200 tokens: S_base = 0.1 at p = 1."""
    one = torch.ones(1)
    return step_scales(
        torch.tensor([scores]),
        20 * one.int(),
        200 * one.int(),
        advantage * one,
        torch.tensor([correct]),
        p * one,
        step,
        constants,
    )[0].tolist()


batches = st.integers(0, 2**31)


def random_batch(seed):
    draw = torch.Generator().manual_seed(seed)
    responses, steps = 24, 7
    answer_tokens = torch.randint(1, 40, (responses,), generator=draw)
    total_tokens = torch.randint(100, 400, (responses,), generator=draw)
    p = torch.randint(1, 9, (responses,), generator=draw) / 8
    # Around the baseline, so that steps lie on both sides of it.
    around = (p**2 * answer_tokens / total_tokens)[:, None]
    scores = torch.rand((responses, steps), generator=draw) * 2 * around
    missing = torch.rand((responses, steps), generator=draw) < 0.3
    return {
        "scores": scores.masked_fill(missing, torch.nan),
        "answer_tokens": answer_tokens,
        "total_tokens": total_tokens,
        "advantage": torch.randn(responses, generator=draw),
        "correct": torch.rand(responses, generator=draw) < 0.6,
        "p": p,
    }


@given(batches, st.sampled_from(["release", "printed"]), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_scale_stays_between_floor_and_one(seed, form, floor):
    gamma = step_scales(
        **random_batch(seed), step=5, constants=Rescaling(delay=2, form=form, floor=floor)
    )
    batch = random_batch(seed)
    assert ((gamma >= 0) & (gamma <= 1)).all()  # so no sign flips, and nothing is amplified
    positive = batch["advantage"] > 0
    assert (gamma[positive] >= floor - 1e-6).all()


@given(batches)
@settings(max_examples=60, deadline=None)
def test_one_where_nothing_may_act(seed):
    batch = random_batch(seed)
    gamma = step_scales(**batch, step=5, constants=PAPER)
    assert (gamma[~batch["correct"]] == 1).all()
    assert (gamma[batch["scores"].isnan()] == 1).all()
    single = (~batch["scores"].isnan()).sum(dim=1) < 2
    assert (gamma[single] == 1).all()
    assert (gamma[batch["advantage"] == 0] == 1).all()


@given(batches)
@settings(max_examples=30, deadline=None)
def test_each_part_acts_on_its_side_only(seed):
    batch = random_batch(seed)
    pa = step_scales(**batch, step=5, constants=Rescaling(delay=0, negative=False))
    na = step_scales(**batch, step=5, constants=Rescaling(delay=0, positive=False))
    both = step_scales(**batch, step=5, constants=PAPER)
    assert (pa[batch["advantage"] < 0] == 1).all()
    assert (na[batch["advantage"] > 0] == 1).all()
    assert torch.equal(both, pa * na)
    assert set(na.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("part", ["positive", "negative"])
def test_each_part_acts(part):
    other = {"positive": "negative", "negative": "positive"}[part]
    constants = Rescaling(delay=0, **{other: False})
    scales = [step_scales(**random_batch(seed), step=5, constants=constants) for seed in range(5)]
    assert all((gamma < 1).any() for gamma in scales)


def test_release_form_by_hand():
    # p = 0.5: S_base = 0.25 · 0.1 = 0.025; S = 0.0125: γ = 0.25 · 0.5 + 0.75 = 0.875
    assert scales([0.0125, 0.3], p=0.5) == pytest.approx([0.875, 1.0])
    floor = Rescaling(delay=0, floor=0.2)
    assert scales([0.0125, 0.3], p=0.5, constants=floor) == pytest.approx([0.8 * 0.875 + 0.2, 1.0])
    assert scales([0.0125, 0.3], p=0.5, advantage=-1.0) == [1.0, 0.0]


def test_vanishing_share_leaves_positive_attenuation_without_effect():
    small = scales([1e-9, 0.3], p=1e-4)
    assert small == pytest.approx([1.0, 1.0], abs=1e-6)


def test_hard_problems_start_later():
    constants = Rescaling(delay=10)
    begins = {
        p: next(
            t for t in range(1, 20) if scales([0.0, 1.0], p=p, step=t, constants=constants)[0] < 1
        )
        for p in (1.0, 0.75, 0.5, 0.25)
    }
    assert begins == {1.0: 1, 0.75: 3, 0.5: 6, 0.25: 8}  # t > 10 · (1 − p)


def test_negative_baseline_can_be_uniform():
    # p² puts the baseline (0.00625) below a redundant step's 0.04: NA would protect it too.
    assert scales([0.04, 0.2], p=0.25, advantage=-1.0) == [0.0, 0.0]
    uniform = Rescaling(delay=0, alpha_negative=0.0)
    assert scales([0.04, 0.2], p=0.25, advantage=-1.0, constants=uniform) == [1.0, 0.0]


def test_infinite_and_missing_scores_of_labels():
    scores = [torch.inf, 0.0, torch.nan]
    assert scales(scores) == [1.0, 0.0, 1.0]
    assert scales(scores, advantage=-1.0) == [0.0, 1.0, 1.0]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 3), batches)
@settings(max_examples=60, deadline=None)
def test_token_scales_equal_a_plain_loop(lengths, start, seed):
    edges = [start]
    for length in lengths:
        edges.append(edges[-1] + length)
    spans = torch.tensor([list(itertools.pairwise(edges))])
    gamma = torch.rand((1, len(lengths)), generator=torch.Generator().manual_seed(seed))
    tokens = edges[-1] + 2
    expected = torch.ones(tokens)
    inside = torch.zeros(tokens, dtype=torch.bool)
    for (first, last), value in zip(spans[0].tolist(), gamma[0], strict=True):
        expected[first:last], inside[first:last] = value, True
    assert torch.equal(token_scales(gamma, spans, tokens)[0], expected)
    for advantage in (1.0, -1.0):  # the answer's tokens, too: only what is praised is praised less
        mean = outside_scale(gamma, spans, torch.tensor([advantage]), Rescaling(outside="mean"))
        wanted = expected[inside].mean() if advantage > 0 and inside.any() else torch.tensor(1.0)
        torch.testing.assert_close(mean[0], wanted)
        scaled = token_scales(gamma, spans, tokens, mean)[0]
        assert torch.equal(scaled[inside], expected[inside]) and (scaled[~inside] == mean).all()
    whole = outside_scale(gamma, spans, torch.ones(1), Rescaling())
    assert torch.equal(whole, torch.ones(1))


def test_rloo_is_the_mean_of_the_others():
    rewards = torch.rand((5, 8), generator=torch.Generator().manual_seed(0))
    expected = torch.empty_like(rewards)
    for i in range(8):
        others = [j for j in range(8) if j != i]
        expected[:, i] = rewards[:, i] - rewards[:, others].mean(dim=1)
    torch.testing.assert_close(rloo_advantage(rewards), expected)


def test_tlmre_uses_the_correct_responses_alone():
    correct = torch.tensor([[True, True, True, False]])
    lengths = torch.tensor([[100, 200, 300, 10_000]])
    mean, std = 200.0, (20000 / 3) ** 0.5
    penalty = 0.2 * torch.sigmoid((lengths[0, :3] - mean) / std)
    torch.testing.assert_close(tlmre(correct, lengths)[0, :3], 1 - penalty)
    assert tlmre(correct, lengths)[0, 3] == 0
    # No correct response, or all of one length: still numbers.
    assert tlmre(~correct[:, :3], lengths[:, :3]).tolist() == [[0, 0, 0]]
    equal = tlmre(correct[:, :2], lengths[:, :1].expand(1, 2))
    assert equal[0].tolist() == pytest.approx([0.9, 0.9])


def test_what_is_refused():
    with pytest.raises(ConfigError, match="form"):
        Rescaling(form="other")
    with pytest.raises(ConfigError, match="floor"):
        Rescaling(floor=1.5)
    with pytest.raises(ConfigError, match="beta"):
        Rescaling(beta=-1)
    one = torch.ones((1, 2))
    with pytest.raises(ConfigError, match="target_length"):
        shaped_reward(one.bool(), one.int(), "dler", 0.2, None)
    with pytest.raises(ConfigError, match="unknown length penalty"):
        shaped_reward(one.bool(), one.int(), "shorter", 0.2, None)


@pytest.mark.parametrize("delay", [1000, 10, 7.5])
def test_the_schedule_opens_at_the_step_that_whole_numbers_say(delay):
    """t · G > T_0 · w for w wrong ones of G, with p as a mean of float32 has it."""
    for group in (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 31, 64):
        correct = torch.tril(torch.ones(group + 1, group), -1)  # row c: c correct ones
        p = correct.mean(dim=1)
        first = [int(delay * (group - c) // group) + 1 for c in range(group + 1)]
        for c in range(group + 1):
            assert schedule_open(p, first[c], delay)[c], (group, c)
            assert not schedule_open(p, first[c] - 1, delay)[c], (group, c)
