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
INKLING = ["hybrid_sliding", "hybrid"] * 2

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
    "phimoe": ("phimoe", {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2}),
    "gpt_oss": ("gpt_oss", {**GROUPED, **WINDOW, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "inkling": (
        "inkling2_text",
        {
            **GROUPED,
            **{"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8},
            **{"sliding_window_size": 9, "d_rel": 4, "rel_extent": 16, "layer_types": INKLING},
            **{"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2},
        },
    ),
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
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.normal_()
            elif parameter.ndim == 2:
                parameter.mul_(8)
    return model.eval()


def overflowing(places: slice = slice(None)) -> PreTrainedModel:
    """A llama in float16 whose third layer overflows behind some tokens of its vocabulary."""
    model = tiny("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[places] += 1.0
        model.model.layers[2].self_attn.v_proj.weight.mul_(1e5).clamp_(-6e4, 6e4)
    return model.half()
