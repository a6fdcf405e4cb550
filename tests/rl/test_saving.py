"""A model from a GGUF file is trained and saved as plain weights; what cannot be saved is told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import adapter_folder, gguf_file, gguf_model, gpt2_folder
from helpers import byte_tokenizer, model_folder
from safetensors.torch import load_file

from probing.errors import ConfigError, ModelError
from probing.models.checkpoint import check_trainable
from probing.models.load import ModelSource, load_model
from rl.training.job import train
from rl.training.recipe import find_recipe, read_recipe, train_config

# A random model writes no `</think>`, but this.
SMALL = {
    "data": "pocket:32",
    "heads": None,
    "think_end": "e",
    "per_device_train_batch_size": 32,
    "num_generations": 4,
    "max_completion_length": 24,
    "max_steps": 2,
    "save_steps": 1,
    "weight_decay": 0.1,  # moves weights though no response is right
}


def settings(out: Path, model: Path, **changes: Any) -> Any:
    recipe = {k: v for k, v in read_recipe(find_recipe("grpo")).items() if k != "heads"}
    return train_config(out, recipe, {**SMALL, "model": str(model), **changes})


def test_a_gguf_is_trained_and_saved_as_safetensors(tmp_path: Path) -> None:
    start = gguf_file(tmp_path / "tiny.gguf", gguf_model(tie_word_embeddings=True))
    out = tmp_path / "run"
    assert train(settings(out, start))["status"] == "done"
    before = load_model(str(start), device="cpu")
    for name in ("checkpoint-1", "checkpoint-2", "model"):
        config = json.loads((out / name / "config.json").read_text())
        assert "quantization_config" not in config and config["dtype"] == "float32"
        weights = load_file(out / name / "model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float32}
        model, tokenizer = ModelSource(str(out / name), device="cpu").load()
        assert tokenizer.get_vocab().items() >= byte_tokenizer().get_vocab().items()
        key = "model.layers.1.self_attn.q_proj.weight"
        change = (model.get_parameter(key) - before.get_parameter(key)).abs().max()
        assert 0 < change < 0.01 * before.get_parameter(key).abs().max()
    # Training goes on from what was saved.
    again = train(settings(out, start, max_steps=3), resume=True)
    assert (again["status"], again["final"]["step"]) == ("done", 3)


def test_what_could_not_be_saved_is_told_before_the_first_step(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    model, tokenizer = ModelSource(str(folder), device="cpu").load()
    model.generation_config.temperature = 0.6  # as some models are published, without do_sample
    with pytest.raises(ModelError, match=r"could not be saved .*`temperature`"):
        check_trainable(model, tokenizer, "model")
    model.generation_config.do_sample = True
    check_trainable(model, tokenizer, "model")
    model.hf_quantizer = object()
    model.config.quantization_config = SimpleNamespace(quant_method="gptq")
    with pytest.raises(ModelError, match=r"quantised \(gptq\).*neither be trained nor saved"):
        check_trainable(model, tokenizer, "model")

    path = folder / "generation_config.json"
    path.write_text(json.dumps({"temperature": 0.6, "do_sample": False, "eos_token_id": 1}))
    with pytest.raises(ModelError, match=r"could not be saved after training: .*temperature"):
        train(settings(tmp_path / "run", folder))
    assert not (tmp_path / "run").exists()


def test_positions_that_a_response_would_not_fit_in_are_told_at_the_start(tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path / "gpt2", 128)
    with pytest.raises(ConfigError, match=r"128 positions .* max_completion_length to \d+ at most"):
        train(settings(tmp_path / "run", folder, max_completion_length=120))
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_trained_as_a_whole_model(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = model_folder(tmp_path / "base")
    lora = adapter_folder(tmp_path / "lora", str(base))
    content = train(settings(tmp_path / "run", lora, max_steps=1))
    model = load_model(str(tmp_path / "run" / "model"), device="cpu")
    assert not (tmp_path / "run" / "model" / "adapter_config.json").exists()
    assert content["status"] == "done"
    assert model.config.adapter_hash == load_model(str(lora), device="cpu").config.adapter_hash
