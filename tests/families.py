"""Tiny random models of the families that the capture is proven on."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

COMMON = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
WINDOW = {"sliding_window": 9}

# name → (model type, what its config changes)
FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", GROUPED),
    "llama-multi-query": ("llama", {"num_key_value_heads": 1, "head_dim": 8}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}),
    "qwen2-window": (
        "qwen2",
        {"num_key_value_heads": 2, "use_sliding_window": True, "max_window_layers": 2, **WINDOW},
    ),
    "qwen3": ("qwen3", GROUPED),
    "mistral-window": ("mistral", {**GROUPED, **WINDOW}),
    "gemma2": (
        "gemma2",
        {**GROUPED, **WINDOW, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    ),
    "gemma3": ("gemma3_text", {**GROUPED, **WINDOW, "query_pre_attn_scalar": 8}),
    "phi3": ("phi3", {"num_key_value_heads": 2, **WINDOW}),
    "olmo2": ("olmo2", {"num_key_value_heads": 2}),
    "gpt_neox": ("gpt_neox", {}),
    "granite": ("granite", {"num_key_value_heads": 2, "attention_multiplier": 0.3}),
}


def tiny(
    family: str, attention: str | None = None, seed: int = 0, **changes: object
) -> PreTrainedModel:
    """A random model of the family in float32, with attention sharp enough to be told apart."""
    kind, own = FAMILIES[family]
    config = AutoConfig.for_model(kind, **{**COMMON, **own, **changes})
    torch.manual_seed(0)
    options = {} if attention is None else {"attn_implementation": attention}
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model.eval()
