"""Model folders and files as they come from elsewhere: damaged, of other kinds, GGUF, adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import torch
from families import tiny
from helpers import byte_tokenizer, model_folder
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    Mamba2Config,
    MambaConfig,
    RwkvConfig,
    xLSTMConfig,
)

WEIGHTS, CONFIG = "model.safetensors", "config.json"
State = dict[str, torch.Tensor]


def edited(folder: Path, edit: Callable[[State], Any], *, source: Path | None = None) -> Path:
    """A model folder whose weights were edited after they were saved."""
    if source is None:
        model_folder(folder)
    else:
        shutil.copytree(source, folder)
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def configured(folder: Path, **changes: Any) -> Path:
    """A model folder whose config says something else than it was saved with."""
    model_folder(folder)
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def _saved(folder: Path, config: Any) -> Path:
    """A random model of a config that is in no family, with the tokenizer."""
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def headless(folder: Path, kind: str) -> Path:
    """A random model without attention heads."""
    size = {"vocab_size": len(byte_tokenizer()), "hidden_size": 32, "num_hidden_layers": 2}
    configs = {
        "mamba": lambda: MambaConfig(**size),
        "mamba2": lambda: Mamba2Config(**size, num_heads=8, head_dim=8, n_groups=1),
        "rwkv": lambda: RwkvConfig(**size, attention_hidden_size=32),
        "xlstm": lambda: xLSTMConfig(
            vocab_size=size["vocab_size"], hidden_size=32, num_blocks=2, num_heads=4
        ),
    }
    return _saved(folder, configs[kind]())


def gpt2_folder(folder: Path, positions: int) -> Path:
    """A random GPT-2, whose positions are rows of a table."""
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": positions}
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    return _saved(folder, GPT2Config(vocab_size=len(byte_tokenizer()), **size, **ends))


def misfit(folder: Path) -> Path:
    """A model whose tokenizer has a token more than there are embeddings."""
    model_folder(folder)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    return folder


def truncated(folder: Path) -> Path:
    """A model whose weights were not copied to the end."""
    path = model_folder(folder) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])
    return folder


def faults(root: Path) -> dict[str, tuple[str, str]]:
    """Models that cannot be used, by fault: what goes to `--model`, and what is said of it."""
    root.mkdir(exist_ok=True)
    (root / "empty").mkdir()
    (root / "notes.txt").write_text("no model")
    (root / "notes.gguf").write_text("no model")
    sound = model_folder(root / "sound")
    for name, left_out in (("no config", CONFIG), ("no tokenizer", "tokenizer*")):
        shutil.copytree(sound, root / name, ignore=shutil.ignore_patterns(left_out))
    no_weights = shutil.ignore_patterns(WEIGHTS)
    shutil.copytree(sound, root / "no weights", ignore=no_weights)
    shutil.copytree(sound, root / "no json", ignore=no_weights)
    (root / "no json" / CONFIG).write_text("{")
    key = "model.layers.1.self_attn.q_proj.weight"
    edited(root / "a weight missing", lambda state: state.pop(key), source=sound)
    edited(root / "other shapes", lambda s: s.update({key: torch.zeros(8, 32)}), source=sound)
    headless(root / "mamba", "mamba")
    headless(root / "rwkv", "rwkv")
    truncated(root / "truncated")
    misfit(root / "token beyond")
    configured(root / "no kernel", attn_implementation="flash_attention_3")
    configured(root / "no such type", model_type="llamma")
    said = {
        "nowhere": "no such folder",
        "empty": "no model in this folder: it has no config.json",
        "notes.txt": "a file, but no .gguf",
        "notes.gguf": "no tokenizer for",
        "no config": "has no config.json",
        "no tokenizer": "no tokenizer for",
        "no weights": "cannot be loaded",
        "no json": "",  # by transformers, of the tokenizer or of the model
        "a weight missing": f"not in it (1): {key}",
        "other shapes": f"of another shape (1): {key} (8, 32), not (32, 32)",
        "mamba": "no attention heads to look at: a mamba model",
        "rwkv": "no attention heads to look at: a rwkv model",
        "truncated": "cannot be loaded",
        "token beyond": "'<extra>' (300)",
        "no kernel": "asks for flash_attention_3; choose another with --attention",
        "no such type": "llamma",
    }
    return {name: (str(root / name), text) for name, text in said.items()}


def gguf_model(**changes: Any) -> Any:
    """The tiny model that `gguf_file` writes: rows of whole blocks, so that it can be quantised."""
    return tiny("qwen2", vocab_size=len(byte_tokenizer()), intermediate_size=64, **changes)


def gguf_file(path: Path, model: Any, edit: Callable[[State], Any] = lambda tensors: None) -> Path:
    """A Qwen2 with the byte tokenizer as a GGUF file, its matrices in blocks of 8 bits.

    Args:
        path: of the file.
        model: see `gguf_model`.
        edit: changes the tensors, by their names in the file, before they are written.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    tokenizer = byte_tokenizer()
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    special = tokenizer.all_special_tokens
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds[token in special] for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in core["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    tensors = {}
    for key, value in model.state_dict().items():
        owner, _, leaf = key.rpartition(".")
        tensors[f"{names.get_name(owner)}.{leaf}"] = value
    if config.tie_word_embeddings:
        del tensors["output.weight"]
    edit(tensors)
    for name, value in tensors.items():
        kind = gguf.GGMLQuantizationType[("F32", "Q8_0")[value.ndim == 2]]
        writer.add_tensor(name, gguf.quants.quantize(value.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def adapter_folder(folder: Path, base: str, **settings: Any) -> Path:
    """A LoRA of a tiny Llama as peft saves it, drawn at random; written without peft."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    rank, state = 2, {}
    for layer in range(4):
        for name, out in (("q_proj", 32), ("v_proj", 16)):
            owner = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            state[f"{owner}.lora_A.weight"] = torch.randn(rank, 32, generator=generator)
            state[f"{owner}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj"],
        **settings,
    }
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder
