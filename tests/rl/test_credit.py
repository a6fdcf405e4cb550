"""From scores to advantages by token, and the figures of a step, against hand-made responses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probing.errors import DataError
from probing.traces.file import Step
from rl.attnpo.completions import Batch, Completion, Outcomes
from rl.attnpo.credit import Terms, credit, credit_tokens, step_figures, step_sums
from rl.attnpo.rescale import REASONS, Rescaling, kept_reasons, needs_scores, rloo_advantage
from rl.attnpo.rewards import group_advantages, tlmre
from rl.attnpo.signals import label_scores

A = torch.tensor([0.5, -0.5, 0.5])


def response(spans, tokens=10, text="So 4."):
    """`tokens` sampled ids without end token, the last two of them the answer."""
    answer = np.arange(tokens) >= tokens - 2
    steps = tuple(Step(place, place + 1) for place in range(len(spans)))
    spans = np.array(spans, dtype=np.int64).reshape(-1, 2)
    ids = np.arange(tokens)
    return Completion(ids, tokens + 1, True, text, steps, spans, answer, len(spans) > 0)


@pytest.fixture
def batch():
    """Prompts of ten tokens: S_base = 2 / 20 = 0.1 at p = 1."""
    responses = [response([(0, 3), (3, 6)]), response([(1, 4), (4, 8)]), response([(0, 8)])]
    two = Step(0, 1, "essential"), Step(1, 2, "redundant")
    one = torch.ones(3)
    return Batch(
        prompts=[[7] * 10] * 3,
        responses=responses,
        mask=torch.arange(12).expand(3, 12) < 11,
        advantage=A,
        correct=one.bool(),
        p=one,
        needs_scores=torch.tensor([True, True, False]),
        labels=[[*two], [*two], [Step(0, 1, "redundant")]],
    )


SCORES = [np.array([0.3, 0.05]), np.array([0.3, 0.05]), np.array([0.05])]


def test_advantages_by_hand(batch):
    """PA halves the step at half the baseline; NA spares the step above it; one step: as it is."""
    credited = credit(batch, SCORES, Rescaling(delay=0.0), step=1)
    assert credited.step_gamma.tolist() == [[1.0, 0.5], [0.0, 1.0], [1.0, 1.0]]
    expected = A[:, None].repeat(1, 12)
    expected[0, 3:6] = 0.25
    expected[1, 1:4] = 0.0
    assert torch.equal(credited.advantages, expected)
    assert torch.equal(credited.gamma, expected / A[:, None])


def test_only_responses_that_need_scores_are_changed_by_them(batch):
    """Whatever the others' scores are: NaN as a signal leaves them, or anything else."""
    for step, delay in ((1, 0.0), (1, 10.0)):
        constants = Rescaling(delay=delay)
        p = torch.tensor([0.5, 0.5, 1.0])
        steps = torch.tensor([2, 2, 1])
        needed = needs_scores(A, batch.correct, p, steps, step, constants)
        assert needed.tolist() == [delay == 0, True, False]
        for others in (np.nan, 1e-9, 9.0):
            scores = [
                row if need else np.full_like(row, others)
                for row, need in zip(SCORES, needed, strict=True)
            ]
            credited = credit(batch_with(batch, p=p), scores, constants, step)
            assert (credited.step_gamma[~needed] == 1).all()


def batch_with(batch, **changes):
    return Batch(**{**vars(batch), **changes})


def test_the_record_says_what_was_done_and_why(batch):
    credited = credit(batch, SCORES, Rescaling(delay=0.0), step=1)
    assert credited.attenuated.tolist() == [[False, True], [False, False], [False, False]]
    assert credited.spared.tolist() == [[False, False], [True, False], [False, False]]
    assert credited.reasons == ["by step", "by step", "fewer than two steps"]
    nan = [np.full_like(row, np.nan) for row in SCORES]
    unscored = credit(batch, nan, Rescaling(delay=0.0), step=1)
    assert unscored.reasons[0] == "fewer than two scores"
    assert unscored.counts() == {
        "attenuated": 0, "spared": 0, "fewer than two scores": 2, "fewer than two steps": 1
    }  # fmt: skip


def test_reasons_by_a_plain_rule():
    """Each case by hand, and γ moves only where the reason is `by step`."""
    cases = [  # A, correct, p, steps, what is on → reason
        (0.5, True, 1.0, 2, {}, "by step"),
        (-0.5, True, 0.5, 2, {}, "by step"),
        (0.5, False, 1.0, 1, {}, "wrong or unfinished"),
        (0.0, True, 1.0, 2, {}, "advantage of 0"),
        (0.5, True, 1.0, 1, {}, "fewer than two steps"),
        (0.5, True, 0.5, 2, {}, "before the schedule opens"),
        (0.5, True, 1.0, 2, {"positive": False}, "attenuation of this sign is off"),
        (-0.5, True, 1.0, 2, {"negative": False}, "attenuation of this sign is off"),
    ]
    for advantage, correct, p, steps, changes, expected in cases:
        constants = Rescaling(delay=10.0, **changes)
        own = [torch.tensor([value]) for value in (advantage, correct, p, steps)]
        assert REASONS[kept_reasons(*own, 1, constants)] == expected
        spans = torch.tensor([[[0, 2], [2, 4 if steps == 2 else 2]]])
        scores = torch.tensor([[0.01, 9.0 if steps == 2 else torch.nan]])
        two = torch.tensor([2])
        credited = credit_tokens(scores, spans, two, 10 * two, *own[:3], 1, constants, 5)
        assert credited.reasons == [expected]
        assert bool((credited.gamma < 1).any()) == (expected == "by step")


def test_credit_refuses_what_is_not_of_the_same_steps(batch):
    terms = Terms.of(batch)
    with pytest.raises(DataError, match=r"\(3, 3\).*\(3, 2, 2\): one a step"):
        terms.credited(torch.zeros(3, 3), Rescaling(), 1)
    own = (terms.answer.sum(1), terms.total_tokens, A, terms.correct, terms.p, 1, Rescaling(), 7)
    with pytest.raises(DataError, match="ends at token 8 of responses 7 wide"):
        credit_tokens(torch.zeros(3, 2), terms.spans, *own)


def test_groups_of_any_size_in_any_order():
    """A and p as for each group alone; a response alone has none to be compared with."""
    correct = torch.tensor([True, True, False, True, True])
    lengths, groups = torch.tensor([10, 20, 30, 5, 40]), torch.tensor([4, 2, 4, 9, 4])
    advantage = group_advantages(correct, lengths, groups)
    rows = groups == 4
    expected = rloo_advantage(tlmre(correct[rows][None], lengths[rows][None]))[0]
    assert torch.equal(advantage[rows], expected) and (advantage[~rows] == 0).all()
    outcomes = Outcomes.of(correct.float(), torch.tensor([True] * 4 + [False]), lengths, groups)
    assert outcomes.correct.tolist() == [True, True, False, True, False]
    assert outcomes.p.tolist() == pytest.approx([1 / 3, 1, 1 / 3, 1, 1 / 3])


def test_labels_as_scores(batch):
    assert [row.tolist() for row in label_scores(batch)] == [[np.inf, 0], [np.inf, 0], [0]]


def test_scores_must_be_one_a_step(batch):
    with pytest.raises(DataError, match=r"gave \[2, 1, 1\] scores for responses of \[2, 2, 1\]"):
        credit(batch, [SCORES[0], SCORES[1][:1], SCORES[2]], Rescaling(), step=1)


def test_figures_by_hand(batch):
    """Two processes of these responses give the sums of both; means do not change."""
    outcomes = Outcomes(
        torch.tensor([True, True, False]), torch.tensor([11, 11, 11]), torch.ones(3)
    )
    sums = step_sums(batch, credit(batch, SCORES, Rescaling(delay=0.0), step=1))
    figures = step_figures(sums, outcomes)
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["tokens"] == figures["tokens_correct"] == 11
    assert figures["steps"] == pytest.approx(5 / 3)
    assert figures["advantage_abs"] == 0.5
    assert figures["attenuated"] == pytest.approx(2 / 5)
    assert figures["attenuated_tokens"] == pytest.approx(6 / 33)
    assert figures["gamma"] == pytest.approx((33 - 1.5 - 3) / 33)
    assert figures["redundant_steps"] == 1 and figures["unfinished"] == 0
    both = step_figures({name: 2 * value for name, value in sums.items()}, outcomes)
    assert both == figures
    plain = step_figures(step_sums(batch_with(batch, labels=None), None), outcomes)
    assert not {"gamma", "attenuated", "redundant_steps"} & plain.keys()
