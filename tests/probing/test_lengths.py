"""RoPE that follows the length of a pass: no row depends on its company, or on what ran before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import tiny
from helpers import prepared
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from probing.answers.context import PreparedTrace
from probing.answers.edited import EditedAnswers, batches
from probing.answers.edits import HeadEdit, HeadEdits
from probing.answers.hiding import StepHiding
from probing.answers.removal import Answerer, without
from probing.attention.capture import AttentionCapture
from probing.attention.scores import batches_by_length, score_traces
from probing.errors import ConfigError, ModelError
from probing.models.decode import Draws, Sampling, decode
from probing.models.lengths import Lengths, fresh_rope, held_at, in_eval
from probing.traces.tokens import EncodedTrace
from rl.attnpo.passes import refuse_longer

LIMIT = 60  # tokens beyond which a RoPE changes that does
LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": LIMIT,
    "short_factor": [1.0, 1.2, 1.5, 2.0],
    "long_factor": [2.0, 4.0, 8.0, 16.0],
    "factor": 4.0,
}
KINDS: dict[str, dict] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": LIMIT},
    "longrope": LONG,
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": LIMIT,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}
THETA = {"rope_theta": 10000.0}


def model_of(kind: str, family: str = "llama") -> PreTrainedModel:
    """A tiny model with this RoPE; of gemma3 in the layers with full attention alone."""
    rope = {"rope_type": kind, **THETA, **KINDS[kind]}
    if family == "gemma3":
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", **THETA}}
        layers = {"layer_types": ["sliding_attention", "full_attention"] * 2}
        return tiny(family, rope_parameters=rope, max_position_embeddings=LIMIT, **layers)
    if family == "phimoe":
        rope |= {"short_mscale": 1.0, "long_mscale": 1.4}
    most = LIMIT if kind == "dynamic" else 256
    return tiny(family, rope_parameters=rope, max_position_embeddings=most)


def encoded(number: int, length: int) -> EncodedTrace:
    ids = np.random.default_rng(number).integers(3, 101, length)
    spans = np.array([[4, 10], [10, length - 6]])
    return EncodedTrace(str(number), ids, 4, spans, np.arange(length) >= length - 5)


LENGTHS = (30, 100, LIMIT, LIMIT + 1, 95, LIMIT - 1, 100)
TRACES = [encoded(number, length) for number, length in enumerate(LENGTHS)]


def scores(capture: AttentionCapture, traces: list[EncodedTrace]) -> dict[str, np.ndarray]:
    """In as few batches as may be."""
    return {each.id: each.scores for each in score_traces(capture, traces, batch_tokens=10**6)}


def test_every_kind_of_rope_is_tested() -> None:
    assert set(KINDS) == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        *((kind, "llama") for kind in KINDS),
        ("dynamic", "gemma3"),
        ("longrope", "gemma3"),
        ("longrope", "phimoe"),
    ],
)
def test_a_row_is_the_same_alone_and_in_company(kind: str, family: str) -> None:
    model = model_of(kind, family)
    capture = AttentionCapture(model)
    alone = {}
    for trace in TRACES:  # each by a model that has seen nothing else
        alone |= scores(AttentionCapture(model_of(kind, family)), [trace])
    for order in (TRACES, TRACES[::-1]):  # twice, so that something ran before
        together = scores(capture, order)
        for name, own in alone.items():
            assert np.abs(together[name] - own).max() < 1e-5
    for trace in TRACES[::-1]:
        assert np.abs(scores(capture, [trace])[trace.id] - alone[trace.id]).max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_of_a_model(kind: str) -> None:
    lengths = Lengths.of(model_of(kind))
    assert lengths == {"longrope": Lengths((LIMIT,)), "dynamic": Lengths((), LIMIT)}.get(
        kind, Lengths()
    )
    assert bool(lengths) == (kind in ("longrope", "dynamic"))
    found = [[len(t) for t in batch] for batch in batches_by_length(TRACES, 10**6, None, lengths)]
    short = [LIMIT, LIMIT - 1, 30]
    assert found == {
        "longrope": [[100, 100, 95, LIMIT + 1], short],
        "dynamic": [[100, 100], [95], [LIMIT + 1], short],
    }.get(kind, [[100, 100, 95, LIMIT + 1, *short]])


def test_the_scores_change_with_the_length() -> None:
    """Else the tests here say nothing: with the trace in longer company its scores are others."""
    for kind in ("longrope", "dynamic"):
        capture = AttentionCapture(model_of(kind))
        ids = torch.from_numpy(
            np.stack([np.pad(TRACES[n].ids, (0, 100 - LENGTHS[n])) for n in (0, 1)])
        )
        answer = torch.zeros_like(ids, dtype=torch.bool)
        answer[0, 25:30] = True
        with capture:
            beside, alone = capture(ids, answer)[0, :, :30], capture(ids[:1, :30], answer[:1, :30])
        assert (beside - alone[0]).abs().max() > 1e-2


LATE = [prepared(0, 55, 70), prepared(1, 65, 80), prepared(2, 57, 70), prepared(3, 30, 40)]


def plain(model: PreTrainedModel, trace: PreparedTrace) -> Tensor:
    """log p of each token behind the first of Q, by one pass over the whole trace."""
    fresh_rope(model)
    ids = torch.from_numpy(trace.ids)
    with torch.no_grad():
        logits = model(ids[None], use_cache=False).logits[0, :-1]
    chances = logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    return chances[trace.context :]


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_answers_over_a_kept_context_are_those_of_one_pass(kind: str) -> None:
    model = model_of(kind)
    hiding, answerer = StepHiding(model), Answerer(model, frozenset(), max_tokens=0)
    with HeadEdits(model) as edits:
        answers = EditedAnswers(model, edits)
        found = list(batches(LATE, 10**6, answers.lengths))
        assert [len(batch) for batch in found] == ([3, 1] if kind == "longrope" else [1, 1, 1, 1])
        edited = {
            trace.id: chance
            for batch in found
            for trace, chance in zip(
                batch, answers.log_probabilities(answers.read(batch)), strict=True
            )
        }
    for trace in LATE:
        reference = plain(model, trace).numpy()
        assert np.abs(edited[trace.id] - reference).max() < 1e-4
        counted = float(reference[trace.counted[trace.context + 1 :]].sum())
        assert hiding.prove(trace) < 1e-4
        assert hiding.drops(trace, deletion=True).answer == pytest.approx(counted, abs=1e-4)
        whole = answerer(trace, np.stack([without(trace, [])]))[0]
        assert whole.logprob == pytest.approx(counted, abs=1e-4)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_greedy_answers_do_not_depend_on_company(kind: str) -> None:
    model = model_of(kind)
    mixed = [replace(trace, answer=trace.context + 2) for trace in LATE]
    with HeadEdits(model) as edits:
        answers = EditedAnswers(model, edits)
        for edit in (None, HeadEdit("zero", ((1, 1), (2, 3)))):
            together = [
                ids
                for batch in batches(mixed, 10**6, answers.lengths)
                for ids in answers.greedy(answers.read(batch, edit), edit, max_tokens=30)
            ]
            alone = [answers.greedy(answers.read([t], edit), edit, max_tokens=30)[0] for t in mixed]
            assert together == alone


def test_rollouts_that_grow_beyond_the_limit_are_those_of_generate() -> None:
    """Phi-3 drops its cache there, and reads the text anew; so do ours, each row in its turn."""
    rope = {**THETA, **LONG, "long_factor": [8.0, 16.0, 32.0, 64.0]}
    model = tiny("phi3", rope_parameters=rope, original_max_position_embeddings=LIMIT)
    model.generation_config.eos_token_id = None
    prompts = [encoded(n, length).ids.tolist() for n, length in enumerate((20, 45, 58, 61, 75))]
    found = decode(model, prompts, Sampling.greedy(40), None, frozenset())
    for prompt, ids in zip(prompts, found, strict=True):
        one = torch.tensor([prompt])
        alone = model.generate(
            one, attention_mask=torch.ones_like(one), do_sample=False, max_new_tokens=40
        )
        assert alone[0, len(prompt) :].tolist() == ids
    draws = [
        decode(model, [p], Sampling(max_tokens=40), Draws([n]), frozenset([7]))
        for n, p in enumerate(prompts)
    ]
    assert decode(model, prompts, Sampling(max_tokens=40), Draws(range(5)), frozenset([7])) == [
        ids for (ids,) in draws
    ]
    assert any(len(ids) == 40 for (ids,) in draws)


def test_a_rope_that_cannot_be_held_says_so() -> None:
    model = model_of("longrope", "phimoe")
    with pytest.raises(ModelError, match=f"at most {LIMIT} tokens"):
        StepHiding(model).drops(LATE[0])
    with held_at(model, LIMIT):
        pass
    assert {module.rope_type for module in model.modules() if hasattr(module, "rope_type")} == {
        "longrope"
    }


def test_training_refuses_wider_passes() -> None:
    refuse_longer(Lengths(), 10**6)
    refuse_longer(Lengths((LIMIT,)), LIMIT)
    with pytest.raises(ConfigError, match="max_completion_length"):
        refuse_longer(Lengths((LIMIT,)), LIMIT + 1)


def test_a_proof_on_the_first_longer_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are wrong beyond the limit alone pass the proof at loading, and are found out."""
    from probing.attention.rows import Rows

    capture = AttentionCapture(model_of("longrope"))
    assert capture.proven == 40
    right = Rows.__init__

    def wrong(self, call, *args):
        right(self, call, *args)
        if call.key.shape[2] > LIMIT:
            self.scaling *= 1.05

    monkeypatch.setattr(Rows, "__init__", wrong)
    scores(capture, [TRACES[0], TRACES[2]])
    assert capture.proven == LIMIT
    with pytest.raises(ModelError, match="is not the one that the model used"):
        scores(capture, TRACES)


def test_each_module_gets_its_own_mode_back() -> None:
    model = tiny("llama").train()
    frozen = model.model.layers[1]
    frozen.eval()
    before = [module.training for module in model.modules()]
    assert any(before) and not all(before)
    with in_eval(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
