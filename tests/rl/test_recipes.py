"""Recipes and settings: read, checked, and named with the nearest where one is unknown."""

from __future__ import annotations

import pytest

from kfh.commands.train import run_train
from probing.errors import ConfigError
from rl.attnpo.config import AttnPOConfig
from rl.attnpo.methods import METHODS
from rl.attnpo.signals import SIGNALS
from rl.training.job import trainer_settings
from rl.training.recipe import (
    find_recipe,
    parse_settings,
    read_recipe,
    recipe_settings,
    shipped_recipes,
    train_config,
)

SHORT = {"generation_kwargs": {"min_new_tokens": 200}}


def test_settings_are_checked(tmp_path):
    for settings, message in (
        ({"method": "attnpoo"}, "unknown method 'attnpoo'; did you mean attnpo"),
        ({"signal": "recensy"}, "unknown signal 'recensy'; did you mean recency"),
        ({"length_penalty": "lazer"}, "unknown length penalty 'lazer'; did you mean laser"),
        ({"importance_sampling_level": "sequence"}, "one ratio a response"),
        ({"use_liger_kernel": True}, "Liger"),
        ({"method": "dler", "target_length": None}, "target_length"),
        ({"scale_floor": 2.0}, "floor"),
        ({"processes": 2}, "2 processes were asked for, 1 take part"),
        ({"rollouts": "compact", "top_k": 5}, "top_k set"),
        ({"rollouts": "compact", **SHORT}, r"generation_kwargs \(min_new_tokens\) set"),
        ({"rollouts": "compact", "cache_implementation": "quantized"}, "cache_implementation"),
        ({"scale_rewards": "batch"}, "'batch' contradicts advantage = rloo .* advantage to batch"),
        ({"advantage": "grpo", "scale_rewards": False}, "False contradicts .* to rloo"),
        ({"num_generations": 1}, "at least 2 generations"),
    ):
        base = {"output_dir": str(tmp_path), "bf16": False, "num_generations": 2}
        with pytest.raises((ConfigError, ValueError), match=message):
            AttnPOConfig(**{**base, "per_device_train_batch_size": 2, **settings})
    base["per_device_train_batch_size"] = 2
    for harmless in ({}, {"generation_kwargs": {"use_cache": True, "top_k": 0}}):
        assert AttnPOConfig(**base, use_cpu=True, **harmless).rollouts == "compact"
    assert AttnPOConfig(**base, use_cpu=True, **SHORT).rollouts == "trl"  # which heeds it
    same = AttnPOConfig(**base, advantage="grpo", scale_rewards=True)
    assert same.scale_rewards == AttnPOConfig(**base, method="grpo").scale_rewards == "group"


def test_recipes(tmp_path):
    """Every shipped recipe is read, and every unknown key is an error."""
    assert set(METHODS) <= set(shipped_recipes())
    for name in shipped_recipes():
        recipe = read_recipe(find_recipe(name))
        made = train_config(tmp_path, {"model": "m", "data": "d"}, recipe)  # for `any`
        if name in METHODS:
            assert trainer_settings(made).method == name
    release = read_recipe(find_recipe("attnpo-ds-qwen-1.5b"))
    batch = release["per_device_train_batch_size"] * release["gradient_accumulation_steps"] * 8
    assert (batch, release["num_generations"]) == (1024, 8)
    bad = tmp_path / "bad.yaml"
    bad.write_text("metod: attnpo\n")
    with pytest.raises(ConfigError, match="unknown setting 'metod'; did you mean method"):
        read_recipe(bad)
    with pytest.raises(ConfigError, match="--set: unknown setting 'max_step'; did you mean max_st"):
        parse_settings(["max_step=1"])
    with pytest.raises(ConfigError) as error:
        parse_settings(["xyzzy=1"])
    assert len(str(error.value)) < 200, "hundreds of settings are listed"
    with pytest.raises(ConfigError, match="write key=value"):
        parse_settings(["learning_rate"])
    with pytest.raises(ConfigError, match="unknown recipe 'atnpo'; did you mean attnpo"):
        find_recipe("atnpo")


def test_parts_by_module_and_name(tmp_path, monkeypatch):
    """As `--set signal=my_parts:flat` takes them."""
    (tmp_path / "my_parts.py").write_text(
        "def flat(batch):\n    return [0 * each.spans[:, 0] for each in batch.responses]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("rl.attnpo.config.SIGNALS", signals := {})
    monkeypatch.setattr("rl.attnpo.signals.SIGNALS", signals)
    settings = {"output_dir": str(tmp_path), "bf16": False, "num_generations": 2}
    settings["per_device_train_batch_size"] = 2
    args = AttnPOConfig(**settings, signal="my_parts:flat")
    assert args.rescales and [*signals] == ["my_parts:flat"]
    assert args.own_parts["my_parts:flat"]["name"] == "my_parts:flat"
    with pytest.raises(ConfigError, match="my_parts:other: cannot be imported"):
        AttnPOConfig(**settings, length_penalty="my_parts:other")


def test_an_unknown_method_is_no_unknown_recipe(tmp_path):
    nothing = dict.fromkeys(("model", "heads", "data", "seed"))
    with pytest.raises(ConfigError, match="unknown method 'atnpo'; did you mean attnpo"):
        run_train(tmp_path, None, [], False, method="atnpo", **nothing)


def test_a_recipe_is_known_again_by_its_content(tmp_path):
    name = recipe_settings("tlmre")["recipe"]
    assert name.startswith("tlmre sha256:") and name == recipe_settings("tlmre")["recipe"]
    base = tmp_path / "base.yaml"
    base.write_text("max_steps: 3\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nseed: 1\n")
    first = recipe_settings(str(tmp_path / "mine.yaml"))["recipe"]
    base.write_text("max_steps: 4\n")
    assert first != recipe_settings(str(tmp_path / "mine.yaml"))["recipe"]


@pytest.mark.parametrize("name", ["chained", "heads", "none"])
def test_a_signal_of_a_taken_name_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setitem(SIGNALS, name, lambda batch: [])
    with pytest.raises(ConfigError, match=f"SIGNALS.*{name}.*under another name"):
        AttnPOConfig(output_dir=str(tmp_path), signal="recency")
