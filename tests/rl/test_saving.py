"""Models saved in training: as plain weights, the best one kept and uploaded; what cannot be."""

from __future__ import annotations

import json
import re
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.trainer
from checkpoints import adapter_folder, gguf_file, gguf_model, gpt2_folder
from datasets import Dataset
from helpers import byte_tokenizer, model_folder
from huggingface_hub.utils import filter_repo_objects
from pocket_runs import config as pocket_config
from safetensors.torch import load_file

from probing.errors import ConfigError, ModelError
from probing.models.checkpoint import check_trainable
from probing.models.load import ModelSource, load_model
from rl.attnpo.trainer import AttnPOTrainer
from rl.training.job import train, trainer_settings
from rl.training.lora import below
from rl.training.recipe import find_recipe, parse_settings, read_recipe, train_config

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


LORA = {
    "lora_r": 2,
    "lora_target_modules": "q_proj, up_proj",
    "lora_first_layer": 1,
    "learning_rate": 0.05,
}


@pytest.mark.slow
@pytest.mark.pocket
def test_an_adapter_is_trained_saved_alone_and_loaded_with_its_base(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    out = tmp_path / "run"
    steps = {"save_strategy": "steps", "save_steps": 1, **LORA}
    made = pocket_config(out, **steps)
    assert train(replace(made, model="pocket"))["status"] == "done"
    before = load_model("pocket", device="cpu").state_dict()
    for name in ("checkpoint-1", "checkpoint-2", "model"):
        assert not list((out / name).glob("model*.safetensors"))
        after = load_model(str(out / name), device="cpu").state_dict()
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        assert {key.split(".")[-2] for key in moved} == {"q_proj", "up_proj"}
        assert {int(key.split(".")[2]) for key in moved} == {1, 2, 3}
        ranks = {torch.linalg.matrix_rank(after[k] - before[k], rtol=1e-3).item() for k in moved}
        assert max(ranks) <= 2
    longer = replace(pocket_config(out, max_steps=3, **steps), model="pocket")
    again = train(longer, resume=True)
    assert (again["status"], again["final"]["step"]) == ("done", 3)
    with pytest.raises(ConfigError, match="is an adapter: train it on"):
        train(replace(made, model=str(out / "model"), out=tmp_path / "second"))


def test_lower_layers_get_no_adapter() -> None:
    """The first number of a name is its layer's; a later one may be an expert's."""
    names = [f"model.layers.{n}.mlp.experts.{m}.up_proj" for n in range(12) for m in (0, 11)]
    found = [name for name in names if not re.fullmatch(below(2) or "", name)]
    assert found == names[4:] and below(0) is None


def test_an_adapter_names_the_file_that_it_was_made_for(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    start = gguf_file(tmp_path / "tiny.gguf", gguf_model(tie_word_embeddings=True))
    train(settings(tmp_path / "run", start, max_steps=1, **LORA))
    found = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert found["base_model_name_or_path"] == str(start.resolve())
    assert (found["r"], found["lora_alpha"]) == (2, 4)
    assert load_model(str(tmp_path / "run" / "model"), device="cpu").config.adapter_hash
    with pytest.raises(ConfigError, match="lora_alpha: without lora_r"):
        settings(tmp_path / "run", start, lora_alpha=8)
    with pytest.raises(ConfigError, match="did you mean lora_r"):
        parse_settings(["lora.r=16"])


class Hub:
    """Notes what each upload would take, as the hub's client sorts it."""

    def __init__(self) -> None:
        self.uploads: list[tuple[str, set[str]]] = []

    def upload_folder(
        self, folder_path: str, ignore_patterns: Any = None, path_in_repo: str = "", **_: Any
    ) -> Future[None]:
        folder, done = Path(folder_path), Future[None]()
        files = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        taken = filter_repo_objects(files, ignore_patterns=ignore_patterns)
        self.uploads.append((path_in_repo, set(taken)))
        done.set_result(None)
        return done


def test_the_best_checkpoint_is_kept_and_whole_ones_are_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward falls from step to step: the first checkpoint is the best of four."""
    out = tmp_path / "run"
    changes = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "save_total_limit": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "reward",
        "greater_is_better": True,
        "hub_strategy": "checkpoint",
    }
    folder = model_folder(tmp_path / "model")
    model, tokenizer = ModelSource(str(folder), device="cpu").load()
    ids = [*tokenizer("See?")["input_ids"], tokenizer.eos_token_id]

    def given(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": prompt_ids, "completion_ids": [ids] * len(prompts), "logprobs": None}

    def falls(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
        return [-float(trainer_state.global_step)] * len(completions)

    prompts = Dataset.from_list([{"prompt": "Add 1."}])
    trainer = AttnPOTrainer(
        model=model,
        reward_funcs=[lambda completions, **_: [1.0] * len(completions), falls],
        args=trainer_settings(settings(out, folder, **changes)),
        train_dataset=prompts,
        eval_dataset=prompts,
        processing_class=tokenizer,
        rollout_func=given,
    )
    hub = Hub()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    trainer.args.push_to_hub, trainer.hub_model_id, trainer.push_in_progress = True, "me/it", None
    trainer.train()
    best, last = out / "checkpoint-1", out / "checkpoint-4"
    assert trainer.state.best_model_checkpoint == str(best)
    assert {path.name for path in out.iterdir() if path.is_dir()} == {best.name, last.name}
    for checkpoint in (best, last):
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        assert (state["best_model_checkpoint"], state["best_global_step"]) == (str(best), 1)
    weights = [load_file(path / "model.safetensors") for path in (best, last)]
    key = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(trainer.model.get_parameter(key), weights[0][key])
    assert not torch.equal(weights[0][key], weights[1][key])
    # Of each step the model without, and the checkpoint with what a run goes on from.
    assert [name for name, _ in hub.uploads] == ["", "last-checkpoint"] * 4
    resumed = {"optimizer.pt", "trainer_state.json"}
    for name, files in hub.uploads:
        assert "model.safetensors" in files and (resumed <= files) == bool(name)
        assert not any("/" in file for file in files)
