"""Evidence against the model's own attention and logits; the methods that use it train."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny
from pocket_runs import make_trainer

from probing.attention.scores import step_scores
from probing.errors import ConfigError, ModelError
from probing.headset import HeadSet
from probing.traces.tokens import EncodedTrace
from rl.attnpo.credit import credit
from rl.attnpo.rescale import Rescaling, step_scales
from rl.attnpo.signals import EvidenceSignal, StepScorer
from rl.signals.evidence import Witness
from rl.signals.ratios import RATIOS, answer_ratio, checks_ratio

HEADS = [(3, 1), (1, 0), (1, 3)]


def traces():
    """Two of different lengths; the second has a step without a token."""
    rng = np.random.default_rng(0)
    made = []
    for n, spans in ((40, [[8, 20], [20, 30]]), (25, [[5, 9], [9, 9], [9, 15]])):
        answer = np.arange(n) >= n - 6
        ids = rng.integers(3, 101, n)
        made.append(EncodedTrace(str(n), ids, spans[0][0], np.array(spans), answer))
    return made


@pytest.mark.parametrize("family", ["qwen2", "mistral-window"])
def test_evidence_is_the_models_own_attention_and_entropy(family):
    model = tiny(family)
    reference = tiny(family, "eager")
    together = traces()
    for trace, seen in zip(together, Witness(model, HEADS).evidence(together), strict=True):
        with torch.no_grad():
            out = reference(torch.from_numpy(trace.ids)[None], output_attentions=True)
        rows = np.mean([out.attentions[layer][0, head].numpy() for layer, head in HEADS], axis=0)
        whose = [*(np.arange(a, b) for a, b in trace.spans), trace.answer]
        looks = np.stack([rows[at].sum(axis=0) for at in whose])
        np.testing.assert_allclose(seen.looks, looks, atol=2e-5)
        p = out.logits[0, :-1].double().softmax(-1).numpy()
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(-1)
        np.testing.assert_allclose(seen.entropy, [0, *entropy], atol=1e-4)
        np.testing.assert_allclose(
            answer_ratio(seen), step_scores(looks[-1], trace.spans) / (6 / len(trace)), rtol=1e-4
        )
        np.testing.assert_allclose(seen.edges[-1], [looks[-1, a:b].sum() for a, b in trace.spans])
        for name, ratio in RATIOS.items():
            given = ratio(seen)
            assert given.shape == (len(trace.spans),) and not (given < 0).any(), name


def test_checks_are_spared_and_nothing_is_taken_from_what_the_answer_looks_at():
    """A doubt in the first step: what looks back at it first is spared, and only that."""
    trace = traces()[0]
    seen = Witness(tiny("qwen2"), HEADS).evidence([trace])[0]
    for doubt in (0.0, 9.0):
        seen.entropy[:] = 0
        seen.entropy[10] = doubt
        answer, checks = answer_ratio(seen), checks_ratio(seen)
        np.testing.assert_allclose(checks[0], answer[0])
        assert checks[1] > 20 if doubt else checks[1] == answer[1]


def test_hard_scales():
    """γ = (1 − δ)(1 − p^β) + δ below the baseline, 1 above it; negative ones as ever."""
    one = torch.ones(2)
    scores, p = torch.tensor([[0.3, 0.05], [0.3, 0.05]]), torch.tensor([1.0, 0.5])
    sizes = (20 * one.int(), 200 * one.int())
    for advantage, wanted in (
        (one, [[1.0, 0.2], [1.0, 0.8]]),
        (-one, [[0.0, 1.0], [0.0, 1.0]]),
    ):
        constants = Rescaling(alpha=0, floor=0.2, form="hard")
        gamma = step_scales(scores, *sizes, advantage, one.bool(), p, 2000, constants)
        torch.testing.assert_close(gamma, torch.tensor(wanted))


def test_what_cannot_be_known_is_refused():
    with pytest.raises(ModelError, match="does more to its logits"):
        Witness(tiny("gemma2", final_logit_softcapping=1.0), HEADS)
    signal = EvidenceSignal(tiny("qwen2"), HeadSet.load("pocket"), 2, "checks")
    with pytest.raises(ConfigError, match="signal checks needs a head set"):
        EvidenceSignal(tiny("qwen2"), None, 2, "checks")
    signal.passes = object()
    with pytest.raises(ConfigError, match="sharded"):
        signal._scored(traces(), torch.device("cpu"), None)


@pytest.mark.slow
@pytest.mark.pocket
def test_the_methods_train_and_their_scales_are_all_or_nothing(tmp_path):
    """PA gives 1 − p² or 1, NA 0 or 1; 1 outside of steps and in wrong responses."""
    trainer = make_trainer(tmp_path / "a", "attnpo-checks", difficulty_alpha=0.0)
    signal, made = trainer.signal, []
    by_heads = StepScorer(trainer.model, HeadSet.load("pocket").pairs)

    def recorded(batch):
        scores = signal(batch)
        made.append((batch, scores, by_heads(batch)))
        return scores

    assert isinstance(signal, EvidenceSignal) and trainer.heads == [(2, 3)]
    trainer.signal = recorded
    trainer.train()
    logged = [line["gamma"] for line in trainer.state.log_history if "gamma" in line]
    for (batch, scores, heads), mean in zip(made, logged, strict=True):
        credited = credit(batch, scores, trainer.args.rescaling, 1)
        assert mean == pytest.approx(float(credited.gamma[batch.mask].mean()), abs=1e-6)
        assert batch.needs_scores.any()
        for row, response in enumerate(batch.responses):
            gamma, p = credited.gamma[row].numpy(), float(batch.p[row])
            inside = np.zeros(len(gamma), dtype=bool)
            for first, last in response.spans:
                inside[first:last] = True
            assert (gamma[~inside] == 1).all()
            assert (gamma == 1).all() or batch.correct[row]
            low = 1 - p**2 if batch.advantage[row] > 0 else 0.0
            assert (np.isclose(gamma, 1) | np.isclose(gamma, low, atol=1e-6)).all()
            if batch.needs_scores[row]:  # the answer's attention is in both
                assert (scores[row] >= heads[row] - 1e-6).all()
    hard = make_trainer(tmp_path / "b", "attnpo-hard", max_steps=1)
    hard.train()
    assert hard.args.rescaling.form == "hard" and hard.state.log_history[0]["gamma"] < 1
