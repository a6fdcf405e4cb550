"""Edits of heads against surgery on weights and eager references; TransformerLens; the parts."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from families import tiny
from helpers import prepared
from lens_witness import LensWitness
from torch import Tensor

from probing.answers.context import PreparedTrace
from probing.answers.edited import EditedAnswers, batches, head_means
from probing.answers.edits import ALL, ANSWER, BLOCK, MODES, HeadEdit, HeadEdits, scaled_weights
from probing.answers.hiding import StepHiding
from probing.attention.capture import AttentionCapture
from probing.errors import ConfigError, ModelError
from probing.interventions.copies import copy_sources, hiding_drops, source_shares
from probing.interventions.effects import dose_correlation
from probing.interventions.heads import random_heads

HEADS = ((1, 1), (2, 3), (2, 0), (3, 2))
EDITS = [
    None,
    HeadEdit("zero", HEADS),
    HeadEdit("zero", HEADS, ANSWER),
    HeadEdit("scale", HEADS, ANSWER, 3.0),
    HeadEdit("scale", HEADS, ANSWER, 0.0),
]


TRACES = [prepared(0, 30, 40), prepared(1, 25, 33), prepared(2, 28, 40)]


def whole(model, edits: HeadEdits, trace: PreparedTrace, ids, edit: HeadEdit | None) -> Tensor:
    """Logits of one sequence in one pass, without cache or padding."""
    tokens = torch.as_tensor(np.asarray(ids))[None]
    queries = torch.arange(tokens.shape[1])[None] >= trace.context
    columns = torch.zeros_like(queries)
    for start, end in trace.spans:
        columns[0, start:end] = True
    with torch.no_grad(), edits.under(edit, queries, columns):
        return model(tokens, use_cache=False).logits[0]


def output_of(layer) -> torch.nn.Linear:
    attention = layer.attention if hasattr(layer, "attention") else layer.self_attn
    return attention.dense if hasattr(attention, "dense") else attention.o_proj


@pytest.mark.parametrize("family", ["llama-multi-query", "qwen2-window", "gemma2"])
def test_silenced_heads_are_heads_without_output_weights(family: str) -> None:
    """Zero: columns of o_proj set to zero. Mean: the mean's projection added as a bias."""
    model, trace = tiny(family), TRACES[0]
    cut = copy.deepcopy(model)
    dim = output_of(model.model.layers[0]).in_features // 4
    means = {head: torch.randn(dim) for head in HEADS}
    for layer, head in HEADS:
        place = output_of(cut.model.layers[layer])
        columns = slice(head * dim, (head + 1) * dim)
        bias = torch.zeros(place.out_features) if place.bias is None else place.bias.data
        place.bias = torch.nn.Parameter(bias + place.weight[:, columns] @ means[layer, head])
        with torch.no_grad():
            place.weight[:, columns] = 0
    with HeadEdits(model) as edits, torch.no_grad():
        mean = whole(model, edits, trace, trace.ids, HeadEdit("mean", HEADS, means=means))
        zero = whole(model, edits, trace, trace.ids, HeadEdit("zero", HEADS))
    ids = torch.from_numpy(trace.ids)[None]
    with torch.no_grad():
        torch.testing.assert_close(mean, cut(ids).logits[0], atol=2e-4, rtol=0)
        for layer, _ in HEADS:
            output_of(cut.model.layers[layer]).bias = None
        torch.testing.assert_close(zero, cut(ids).logits[0], atol=2e-4, rtol=0)
    assert (mean - zero).abs().max() > 0.1


@pytest.mark.parametrize("factor", [0.0, 4.0])
@pytest.mark.parametrize("family", ["llama", "qwen2-window", "gemma2", "gpt_oss"])
def test_scale_is_ln_factor_added_to_the_scores(
    family: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hand-written reference: the family's eager attention with an additive mask a head."""
    import sys

    model, reference, trace = tiny(family), tiny(family, "eager"), TRACES[0]
    shift = torch.zeros(4, 4, len(trace), len(trace))
    for layer, head in HEADS:
        for start, end in trace.spans:
            shift[layer, head, trace.context :, start:end] = np.log(factor) if factor else -1e9
    file = sys.modules[type(reference.model.layers[0].self_attn).__module__]
    stock = file.eager_attention_forward

    def shifted(module, query, key, value, mask, **options):
        return stock(module, query, key, value, mask + shift[module.layer_idx][None], **options)

    monkeypatch.setattr(file, "eager_attention_forward", shifted)
    with torch.no_grad():
        expected = reference(torch.from_numpy(trace.ids)[None]).logits[0]
    monkeypatch.setattr(file, "eager_attention_forward", stock)
    with HeadEdits(model) as edits:
        plain = whole(model, edits, trace, trace.ids, None)
        found = whole(model, edits, trace, trace.ids, HeadEdit("scale", HEADS, ANSWER, factor))
        same = whole(model, edits, trace, trace.ids, HeadEdit("scale", HEADS, ANSWER, 1.0))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    assert torch.equal(same, plain), "a factor of 1 changes nothing, not even the last digit"
    # Experts multiply all tokens that are sent to them at once: another token moves the last digit.
    allowed = 1e-5 if family == "gpt_oss" else 0
    assert (found - plain)[: trace.context].abs().max() <= allowed
    assert (found - plain).abs().max() > 0.05


@pytest.mark.parametrize(
    "family", ["llama-multi-query", "qwen2-window", "gemma2", "gemma3", "gpt_neox", "gpt_oss"]
)
def test_cache_batch_and_decoding_are_the_whole_sequence(family: str) -> None:
    """Left-padded contexts, kept and forked, against single passes without a cache."""
    model = tiny(family)
    with HeadEdits(model) as edits:
        answers = EditedAnswers(model, edits, frozenset({2}))
        plain = answers.read(TRACES)
        for edit in EDITS:
            reading = answers.read(TRACES, edit) if edit and edit.where == ALL else plain
            chances = answers.log_probabilities(reading, edit)
            decoded = answers.greedy(reading, edit, max_tokens=2)
            for row, trace in enumerate(TRACES):
                logits = whole(model, edits, trace, trace.ids, edit).log_softmax(-1)
                targets = torch.from_numpy(trace.ids[1:])[:, None]
                expected = logits[:-1].gather(-1, targets)[trace.context :, 0]
                np.testing.assert_allclose(chances[row], expected, atol=2e-4)
                ids = trace.ids[: trace.answer].tolist()
                while len(ids) < trace.answer + 2 and ids[-1] != 2:
                    ids.append(int(whole(model, edits, trace, ids, edit)[-1].argmax()))
                assert decoded[row] == ids[trace.answer :]


@pytest.mark.parametrize("family", ["llama", "qwen2-window"])
def test_means_are_of_the_tokens_they_say(family: str) -> None:
    """Means at all positions, by hand from the kernel's output; parts and rest make the whole."""
    model = tiny(family)
    seen: dict[int, list[Tensor]] = {1: [], 2: []}
    for layer in seen:
        output_of(model.model.layers[layer]).register_forward_pre_hook(
            lambda _, args, layer=layer: seen[layer].append(args[0][0].view(-1, 4, 8))
        )
    with HeadEdits(model) as edits:
        answers = EditedAnswers(model, edits)
        for held in seen.values():
            held.clear()
        for trace in TRACES:
            whole(model, edits, trace, trace.ids[:-1], None)
        expected = {layer: torch.cat(held).mean(0) for layer, held in seen.items()}
        means = head_means(answers, TRACES, [(1, 1), (2, 3)], ALL, batch_tokens=90)
        torch.testing.assert_close(means[1, 1], expected[1][1], atol=1e-5, rtol=0)
        torch.testing.assert_close(means[2, 3], expected[2][3], atol=1e-5, rtol=0)
        for held in seen.values():
            held.clear()
        for trace, edit in itertools.product(TRACES, (None, HeadEdit("zero", ((2, 3),), ANSWER))):
            whole(model, edits, trace, trace.ids[:-1], edit)
        plain, without = seen[2][::2], seen[2][1::2]
        parts = [
            (a - b)[trace.context :, 3] for a, b, trace in zip(plain, without, TRACES, strict=True)
        ]
        means = head_means(answers, TRACES, [(2, 3)], ANSWER, batch_tokens=90)
        torch.testing.assert_close(means[2, 3], torch.cat(parts).mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt_neox"])
def test_transformer_lens_agrees(family: str) -> None:
    model = tiny(family)
    lens = LensWitness(model, frozenset({2}))
    with HeadEdits(model) as edits:  # the model itself must not have been rebuilt
        answers = EditedAnswers(model, edits, frozenset({2}))
        plain = answers.read(TRACES)
        means = {}
        for where in (ALL, ANSWER):
            means[where] = head_means(answers, TRACES, HEADS, where, batch_tokens=90)
            theirs = lens.means(TRACES, HEADS, where)
            for head in HEADS:
                torch.testing.assert_close(theirs[head], means[where][head], atol=1e-5, rtol=0)
        for mode in (*MODES, BLOCK):
            edit = HeadEdit.of_mode(mode, HEADS, means[mode.split("/")[1]])
            reading = answers.read(TRACES, edit) if edit.where == ALL else plain
            ours = answers.log_probabilities(reading, edit)
            for a, b in zip(ours, lens.log_probabilities(TRACES, edit), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-4)
        decoded = lens.greedy(TRACES, edit, max_tokens=3)
        assert decoded == answers.greedy(plain, edit, max_tokens=3)


def test_hiding_a_step_under_an_edit_is_a_second_edit() -> None:
    """Copy sources: hiding a step from Q in all heads is blocking it in all heads."""
    model = tiny("qwen2")
    trace = TRACES[0]
    run = (34, 36)
    edit = HeadEdit("zero", ((1, 1),))
    every = tuple((layer, head) for layer in range(4) for head in range(4))
    with HeadEdits(model) as edits:
        answers = EditedAnswers(model, edits)
        reading = answers.read(TRACES, edit)
        drops = hiding_drops(StepHiding(model), answers, reading, 0, [run], edit)
        plain = answers.read(TRACES)
        none = hiding_drops(StepHiding(model), answers, plain, 0, [run], None)
        for step, span in enumerate(trace.spans):
            block = HeadEdit("scale", every, ANSWER, 0.0)
            spans = [t.spans[[step]] for t in TRACES]
            hidden = answers.log_probabilities(plain, block, spans=spans)[0]
            shown = answers.log_probabilities(plain, None)[0]
            place = slice(run[0] - trace.context - 1, run[1] - trace.context - 1)
            np.testing.assert_allclose(none[step], (shown - hidden)[place], atol=1e-4)
            assert span[1] > span[0]
    assert np.abs(drops - none).max() > 1e-2
    assert np.abs(none).min() > 1e-4


def test_sources_by_hand() -> None:
    drops = np.array([[0.0, 3.0, 0.1], [2.0, 1.0, 0.2]])
    sources = copy_sources(drops)
    assert sources.tolist() == [1, 0, -1]
    assert copy_sources(drops[:0]).tolist() == [-1, -1, -1]
    shares = source_shares(sources, np.array([1, 1, 1]), ["essential", "redundant"])
    assert shares == {"has_source": 2 / 3, "source_kept": 1 / 3, "source_essential": 0.5}
    assert "source_essential" not in source_shares(sources, sources, [None, None])
    assert source_shares(sources[:0], sources[:0], []) == {}


def test_random_heads_are_of_the_same_layers_seeded_and_apart() -> None:
    layers = dict.fromkeys(range(4), 8)
    chosen = [(1, 0), (1, 5), (3, 2)]
    drawn = random_heads(chosen, layers, 20, seed=1)
    assert len({c.heads for c in drawn}) == 20 and drawn == random_heads(chosen, layers, 20, seed=1)
    assert drawn != random_heads(chosen, layers, 20, seed=2)
    for control in drawn:
        assert [layer for layer, _ in control.heads] == [1, 1, 3]
        assert not set(control.heads) & set(chosen) and control.overlap == 0
    filled = random_heads([(2, 1), (2, 2), (2, 3)], {2: 4}, 5)
    assert [c.heads for c in filled] == [
        ((2, 0), (2, 1), (2, 2)),
        ((2, 0), (2, 1), (2, 3)),
        ((2, 0), (2, 2), (2, 3)),
    ]
    assert {c.overlap for c in filled} == {2 / 3}
    many = random_heads([(0, head) for head in range(10)], {0: 40}, 5, seed=3)
    assert len({c.heads for c in many}) == 5 and not {h for c in many for h in c.heads} & {(0, 3)}
    with pytest.raises(ConfigError, match="no random heads"):
        random_heads([(0, 0), (0, 1)], {0: 2}, 3)


def test_weights_scale_to_one_and_doses_rank() -> None:
    weights = torch.softmax(torch.randn(3, 7), -1)
    columns = torch.arange(7) < 3
    scaled = scaled_weights(weights, columns, 4.0)
    logits = weights.log() + torch.where(columns, np.log(4), 0.0)
    torch.testing.assert_close(scaled, torch.softmax(logits, -1))
    assert dose_correlation(np.array([0.0, 1, 2]), np.array([3.0, 2, 1])) == -1
    assert np.isnan(dose_correlation(np.array([0.0, 1, 2]), np.zeros(3)))


def test_batches_keep_the_order_and_begin_to_decode_together() -> None:
    other = prepared(3, 20, 30)
    other = PreparedTrace(**{**vars(other), "answer": other.context + 3})
    assert [len(b) for b in batches([*TRACES, other, other], 10_000)] == [3, 2]
    assert [[t.id for t in b] for b in batches(TRACES, 80)] == [["0", "1"], ["2"]]


def test_capture_sees_the_edited_model_and_the_registry_is_given_back() -> None:
    """An edit in layer 1 moves attention in layer 2, and nothing stays of it."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

    model, stock = tiny("llama"), registry["sdpa"]
    ids = torch.from_numpy(TRACES[0].ids)[None]
    answer = torch.arange(ids.shape[1])[None] >= 30
    capture = AttentionCapture(model)
    with capture:
        before = capture(ids, answer)
    with HeadEdits(model) as edits, edits.under(HeadEdit("zero", ((1, 0),))), capture:
        after = capture(ids, answer)
    assert torch.equal(before[:, :8], after[:, :8])
    assert (before[:, 8:] - after[:, 8:]).abs().max() > 1e-2
    assert registry["sdpa"] is stock


def test_errors() -> None:
    for kind, where, options in (
        ("double", ALL, {}),
        ("scale", ALL, {}),
        ("scale", ANSWER, {"factor": -1.0}),
        ("scale", ANSWER, {"factor": float("nan")}),
        ("mean", ALL, {}),
    ):
        with pytest.raises(ConfigError):
            HeadEdit(kind, HEADS, where, **options)
    with pytest.raises(ConfigError, match="twice"):
        HeadEdit("zero", ((1, 1), (1, 1)))
    with pytest.raises(ConfigError, match="unknown mode"):
        HeadEdit.of_mode("zero", HEADS)
    model = tiny("llama")
    queries = torch.ones((1, 4), dtype=torch.bool)
    answer, missing = HeadEdit("zero", HEADS, ANSWER), HeadEdit("zero", ((4, 0),))
    with HeadEdits(model) as edits:
        with pytest.raises(ModelError, match=r"no head 4\.0"), edits.under(missing):
            pass
        with pytest.raises(ValueError, match="needs queries"), edits.under(answer):
            pass
        with (
            pytest.raises(ValueError, match="among the edited columns"),
            edits.under(answer, queries, queries),
        ):
            pass
        with (
            pytest.raises(RuntimeError, match="4 tokens, 5 went in"),
            edits.under(answer, queries, ~queries),
        ):
            model(torch.zeros((1, 5), dtype=torch.long))
    with pytest.raises(RuntimeError, match="within a `with` block"), edits.under(None):
        pass


def test_proof_notices_rows_that_are_not_the_model_s(monkeypatch: pytest.MonkeyPatch) -> None:
    from probing.attention.rows import Rows

    model, right = tiny("llama"), Rows.__init__
    assert HeadEdits(model).prove() < 1e-5

    def wrong(self, *args):
        right(self, *args)
        self.scaling *= 1.05

    edits = HeadEdits(model)
    monkeypatch.setattr(Rows, "__init__", wrong)
    with pytest.raises(ModelError, match="changes nothing moves its logits"):
        edits.prove()
    monkeypatch.undo()
    monkeypatch.setattr("probing.answers.edits.EditPass.apply", lambda self, *args: args[-1])
    with pytest.raises(ModelError, match="silencing all heads"):
        edits.prove()
