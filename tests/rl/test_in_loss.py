"""Steps scored in the pass of the loss, as in a pass of their own; and the rule that chooses."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from families import tiny
from pocket_runs import first_batch, made_batch, make_trainer, weights
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

from probing.errors import NotFiniteError
from rl.attnpo.credit import Terms
from rl.attnpo.signals import AttentionSignal, Passing, draws_at_random, own_pass_reasons

pytestmark = pytest.mark.pocket

SGD = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3}
# name → settings
COMBINATIONS = {
    "trimmed": {},
    "as-trl": {"rows_per_forward": 0, "rollouts": "trl"},
    "checkpoints": {"gradient_checkpointing": True},
    "re-entrant": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "adam": {"optim": "adamw_torch", "learning_rate": 1e-3},
    "all-heads": {"signal": "all-heads"},
    "reference": {"beta": 0.05},
    "no-pa": {"positive_attenuation": False},
    "schedule": {"schedule_steps": 3},
    "eager": {},
    "lora": {"learning_rate": 1.0, "gradient_checkpointing": True},
}


def trained(folder, name, own_pass):
    """Weights after some steps, how far they moved, figures, and passes that the capture made."""
    settings, options = {**SGD, **COMBINATIONS[name]}, {}
    if name == "lora":
        peft = pytest.importorskip("peft")
        options["peft_config"] = peft.LoraConfig(
            r=4, lora_alpha=64, lora_dropout=0.0, target_modules=["q_proj", "k_proj", "up_proj"]
        )
    trainer = make_trainer(folder, options=options, **settings)
    trainer.own_pass = own_pass
    passes, stock = [], trainer.signal.capture._run

    def counted(*args):
        passes.append(1)
        return stock(*args)

    trainer.signal.capture._run = counted
    if name == "eager":
        trainer.model.set_attn_implementation("eager")
        trainer.signal.capture._implementations = {"eager"}
        trainer.signal.passing._implementations = {"eager"}
    start = weights(trainer.model)
    torch.manual_seed(0)
    trainer.train()
    logs = [line for line in trainer.state.log_history if "accuracy" in line]
    assert all("seconds_scoring" in line and "gamma" in line for line in logs)
    timed = ("seconds", "step_time")
    lines = [
        {k: float("nan") if v is None else v for k, v in line.items() if not k.startswith(timed)}
        for line in logs
    ]
    ends = weights(trainer.model)
    moved = max(float((value - start[n]).abs().max()) for n, value in ends.items())
    return ends, moved, lines, len(passes)


SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in COMBINATIONS if name != "checkpoints"
]


@pytest.mark.parametrize("name", ["checkpoints", *SLOW])
def test_weights_and_figures_are_those_of_a_pass_of_its_own(tmp_path, name):
    own, moved, expected, passes = trained(tmp_path / "a", name, own_pass=True)
    ours, _, lines, none = trained(tmp_path / "b", name, own_pass=False)
    assert passes > 0 and none == 0
    assert len(lines) == len(expected) == 3 and any(line["attenuated"] > 0 for line in lines)
    for line, other in zip(lines, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-6, nan_ok=True)
    # Adam divides by the gradient's size: where that is nothing but rounding, a step is not.
    allowed = 2e-5 if name == "adam" else 3e-7
    apart = max(float((value - ours[n]).abs().max()) for n, value in own.items())
    assert apart < allowed < 1e-2 * moved


@pytest.mark.parametrize("rows", [0, 3, 8])
def test_scales_are_those_of_a_pass_of_its_own(tmp_path, rows):
    """γ to 1e-6, with the batch in one pass or in several; a second loss changes nothing."""
    trainer = make_trainer(tmp_path, rows_per_forward=rows)
    trainer.own_pass = True
    expected = made_batch(trainer)
    trainer.own_pass = False
    batch = made_batch(trainer)
    assert Terms.are_in(batch) and not Terms.are_in(expected)
    outcome = batch["advantages"]
    assert outcome.dim() == 1 and expected["advantages"].dim() == 2
    first = trainer._compute_loss(trainer.model, batch)
    assert not Terms.are_in(batch)
    moving = outcome != 0
    gamma, other = (
        each["advantages"][moving] / outcome[moving, None] for each in (batch, expected)
    )
    torch.testing.assert_close(gamma, other, rtol=0, atol=1e-6)
    assert (gamma < 0.99).any()
    assert torch.equal(trainer._compute_loss(trainer.model, batch), first)


def test_parts_of_a_shuffled_batch_carry_their_own(tmp_path):
    """As TRL shuffles and splits: each response's scales are its own, figures come once."""
    from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

    trainer = make_trainer(tmp_path)
    whole = first_batch(trainer)
    figures = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    trainer._metrics["train"].clear()
    batch = made_batch(trainer)
    batch["place"] = torch.arange(8)
    for part in split_tensor_dict(shuffle_sequence_dict(batch), 4):
        assert "gamma" not in trainer._metrics["train"]
        trainer._compute_loss(trainer.model, part)
        expected = whole["advantages"][part["place"]]
        torch.testing.assert_close(part["advantages"], expected, rtol=1e-5, atol=1e-6)
    again = trainer._metrics["train"]
    for name in ("gamma", "attenuated", "attenuated_tokens", "tokens", "steps"):
        assert again[name] == [pytest.approx(figures[name], rel=1e-5)]


@pytest.mark.parametrize("reentrant", [False, True])
def test_nothing_is_in_front_when_layers_are_computed_again(tmp_path, reentrant, monkeypatch):
    trainer = make_trainer(tmp_path, rows_per_forward=0)
    trainer.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    batch, calls, kernels = made_batch(trainer), [], []
    attend, layers = Passing._attend, trainer.model.config.num_hidden_layers
    own = registry["sdpa"]

    def counted(self, call, value, stock):
        calls.append(call.module.layer_idx)
        return attend(self, call, value, stock)

    def kernel(*args, **options):
        kernels.append(1)
        return own(*args, **options)

    monkeypatch.setattr(Passing, "_attend", counted)
    monkeypatch.setitem(registry._local_mapping, "sdpa", kernel)
    loss = trainer._compute_loss(trainer.model, batch)
    assert calls == list(range(layers)) and len(kernels) == layers
    assert registry["sdpa"] is kernel
    loss.backward()
    assert len(calls) == layers and len(kernels) == 2 * layers


def test_what_needs_no_score_passes_plainly(tmp_path, monkeypatch):
    """Before the schedule opens, and with all wrong: γ = 1, and no row is taken."""
    trainer = make_trainer(tmp_path, schedule_steps=1e6, negative_attenuation=False)

    def forbidden(*args):
        raise AssertionError("a row was taken")

    monkeypatch.setattr(AttentionSignal, "in_passing", forbidden)
    batch = made_batch(trainer)
    outcome = batch["advantages"].clone()
    trainer._compute_loss(trainer.model, batch)
    assert torch.equal(batch["advantages"], outcome[:, None].expand_as(batch["advantages"]))
    assert trainer._metrics["train"]["gamma"] == [1.0]


def test_attention_that_is_not_finite_is_told(tmp_path):
    trainer = make_trainer(tmp_path)
    batch = made_batch(trainer)
    with torch.no_grad():
        trainer.model.model.layers[1].self_attn.q_proj.weight.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="attention of head"):
        trainer._compute_loss(trainer.model, batch)
    assert trainer._in_loss is None and not trainer.signal.passing._busy


# The rule


def reasons(model, **changes):
    """What the rule says of a model, with a trainer that has nothing special."""
    signal = AttentionSignal.of(model, "all-heads", None, rows=8, seed=0)
    plain = {
        "args": SimpleNamespace(steps_per_generation=2, gradient_accumulation_steps=2),
        "num_iterations": 1,
        "use_vllm": False,
        "vllm_importance_sampling_correction": True,
        "model_wrapped": model,
        "accelerator": SimpleNamespace(
            state=SimpleNamespace(dynamo_plugin=SimpleNamespace(backend="NO"))
        ),
    }
    return own_pass_reasons(signal, SimpleNamespace(**{**plain, **changes}))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_rotary_models_are_scored_in_the_loss(family):
    assert reasons(tiny(family)) == []


def test_what_the_rule_keeps_in_a_pass_of_its_own():
    model = tiny("llama")
    counted = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97))
    window = SimpleNamespace(steps_per_generation=4, gradient_accumulation_steps=2)
    said = [
        (reasons(model, args=window), "the policy moves"),
        (reasons(model, num_iterations=2), "the policy moves"),
        (reasons(model, use_vllm=True), "vLLM samples"),
        (reasons(model, model_wrapped=nn.DataParallel(model)), "DataParallel"),
        (reasons(counted), "padding on the left"),
    ]
    for found, text in said:
        assert any(text in reason for reason in found), text
    assert reasons(model, use_vllm=True, vllm_importance_sampling_correction=False) == []


def test_what_is_drawn_at_random_is_found():
    model = tiny("llama")
    assert not draws_at_random(model)
    model.model.layers[1].self_attn.attention_dropout = 0.1
    assert draws_at_random(model)
    model.model.layers[1].self_attn.attention_dropout = 0.0
    model.model.layers[0].mlp.extra = nn.Dropout(0.1)
    assert draws_at_random(model)
    model.model.layers[0].mlp.extra.p = 0.0
    model.config.router_jitter_noise = 0.01
    assert draws_at_random(model)


def test_lora_with_dropout_has_a_pass_of_its_own(tmp_path):
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj"])
    trainer = make_trainer(tmp_path, options={"peft_config": adapter})
    assert own_pass_reasons(trainer.signal, trainer) == ["the policy drops or jitters at random"]
    assert made_batch(trainer)["advantages"].dim() == 2


def test_terms_are_of_the_response(tmp_path):
    """Every field has a row a response, so that TRL can shuffle and split it."""
    batch = made_batch(make_trainer(tmp_path))
    for each in dataclasses.fields(Terms):
        assert len(batch[f"credit_{each.name}"]) == 8
