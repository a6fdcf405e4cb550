"""The capture on tiny random models of every decoder family of the installed transformers.

    python tests/bench/families.py [--out docs/families.md] [FAMILY ...]

Each model has a few layers of random weights, sharpened so that its attention is far from uniform.
Two texts go through the capture in one batch, as a probe does it, and each alone through the eager
attention of the same weights with `output_attentions`, which is the reference. A pass whose output
is split (`probing.models.split`) must give the masses and the last hidden state of one that is
not. A family is

- exact: the largest difference of any token's mass is below 1e-4;
- refused: kfh says why, before it gives a number;
- without a reference: the family's eager attention gives no weights to compare with; the proof of
  the capture (rows times values against the model's own kernel) is all there is;
- not made: no tiny model could be built or run here.

Anything else is wrong, and ends the script with an error. Prints Markdown, or writes it.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ALLOWED = 1e-4
ALLOWED_SPLIT = 1e-5  # of the largest mass or hidden number
LARGEST = 30_000_000  # parameters of a model that still counts as tiny
LENGTHS = (40, 23)

# What a config is given where it has such a field.
TINY: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 9,
    "sliding_window_size": 9,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "index_topk": 8,
    "rel_extent": 16,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    # state-space and linear layers
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

HALF = ["full_attention", "sliding_attention"]
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# What a family needs beside that, or instead.
OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"layer_types": HALF * 2, "rope_parameters": dict.fromkeys(HALF, ROPE)},
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 101,
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
    },
    "gemma4_text": {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 101},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 9},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "inkling2_text": {"layer_types": ["hybrid_sliding", "hybrid"] * 2},
    "kimi_linear": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_heads": 4,
        "linear_head_dim": 8,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}

# Causal models by transformers' list, but no decoders that reason in text alone.
ENCODERS = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert reformer "
    "rembert roberta roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl "
    "xlnet xmod"
)
ENCODER_DECODERS = (
    "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet "
    "trocr whisper"
)
OF_OTHER_THINGS = (  # of pictures, sound or bytes, with a text part that has a family of its own
    "blt dots3_note emu3 fuyu gemma3 gemma3n gemma4 gemma4_assistant gemma4_unified "
    "gemma4_unified_assistant git got_ocr2 llama4 mllama moss_transcribe_diarize musicgen "
    "musicgen_melody phi4_multimodal qwen3_5 qwen3_5_moe qwen4_exp"
)
OTHERS = set(f"{ENCODERS} {ENCODER_DECODERS} {OF_OTHER_THINGS}".split())

# Their eager attention multiplies its output by what the sinks leave, and gives weights without it.
# They are held against it with the sinks turned off; what the sinks take is in the proof alone.
SINKS_IN_OUTPUT = {"granite_swa", "granitemoe_swa"}


@dataclass(frozen=True)
class Result:
    """What became of a family: a word, its error, and the reason."""

    family: str
    word: str
    error: float | None = None
    why: str = ""
    kernel: str = ""
    split: int = 0  # layers whose output was split


def main() -> None:
    """Try the families and give the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", help="default: all")
    parser.add_argument("--out", type=Path, default=None, help="Markdown file to write")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    from transformers.utils import logging

    logging.set_verbosity_error()
    results = []
    for family in args.families or families():
        results.append(tried(family))
        print(results[-1], file=sys.stderr, flush=True)
    text = page(results)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        print(text)
    wrong = [result.family for result in results if result.word == "wrong"]
    if wrong:
        sys.exit(f"wrong numbers: {', '.join(wrong)}")


def families() -> list[str]:
    """The decoder families of the installed transformers, by model type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - OTHERS)


def tiny_config(family: str) -> Any:
    """A config of the family with every size small."""
    from transformers import AutoConfig

    plain = AutoConfig.for_model(family)
    fields = {*vars(plain), *type(plain).attribute_map}
    sizes = {name: value for name, value in TINY.items() if name in fields}
    if "qk_rope_head_dim" in fields:  # latent attention: keys of every head, rotated by a part
        sizes |= {"num_key_value_heads": sizes["num_attention_heads"], "head_dim": 4}
    return AutoConfig.for_model(family, **{**sizes, **OWN.get(family, {})})


def tiny_model(config: Any, attention: str | None = None) -> Any:
    """A random model of a config, in float32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    options = {} if attention is None else {"attn_implementation": attention}
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options).eval()


def sharpen(model: Any, sinks: float | None = None) -> None:
    """Make the attention far from uniform, with sinks that take their part, or the value given."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn if sinks is None else torch.full_like(drawn, sinks))
            elif parameter.ndim == 2 and "router" not in name and "gate" not in name:
                parameter.mul_(4)


def tried(family: str) -> Result:
    """What becomes of one family."""
    from probing.errors import KfhError

    try:
        config, model, ids = made(family)
    except Exception as error:  # noqa: BLE001  # a config that does not take the common sizes
        return Result(family, "not made", why=_first_line(error))
    answer = torch.zeros_like(ids, dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        answer[row, length - 6 : length] = True
    kernel, note = str(model.config._attn_implementation), ""
    try:
        mass = captured(model, ids, answer)
        split = split_layers(model, ids)
        if family in SINKS_IN_OUTPUT:
            note = "with the sinks off: its eager weights leave them out; the proof has them"
            model = tiny_model(config)
            sharpen(model, sinks=-1e4)
            mass = captured(model, ids, answer)
    except KfhError as error:
        return Result(family, "refused", why=_first_line(error), kernel=kernel)
    except Exception as error:  # noqa: BLE001  # anything else is a fault of ours, and said so
        return Result(family, "wrong", why=f"a traceback: {_first_line(error)}", kernel=kernel)
    try:
        reference = eager_mass(config, model, ids, answer)
    except Exception as error:  # noqa: BLE001  # a family without eager attention
        return Result(family, "no reference", why=_first_line(error), kernel=kernel)
    if reference is None or reference.shape != mass.shape:
        shapes = (
            "none" if reference is None else f"{tuple(reference.shape)} for {tuple(mass.shape)}"
        )
        why = f"weights of the eager attention: {shapes}"
        return Result(family, "no reference", why=why, kernel=kernel)
    error = float((mass - reference).abs().max())
    return Result(family, "exact" if error < ALLOWED else "wrong", error, note, kernel, split)


def made(family: str) -> tuple[Any, Any, Any]:
    """The config, the sharpened model, and two texts, as token ids.

    Raises:
        ValueError: the model is too large, or its logits are not finite.
    """
    config = tiny_config(family)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in tiny_model(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters")
    model = tiny_model(config)
    sharpen(model)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 100, (len(LENGTHS), max(LENGTHS)), generator=generator)
    if not model(ids, use_cache=False).logits.isfinite().all():
        raise ValueError("its logits are not finite")
    return config, model, ids


def captured(model: Any, ids: Any, answer: Any) -> Any:
    """What kfh gives, after its proof: the texts padded on the right, without a mask."""
    from probing.attention.capture import AttentionCapture

    with AttentionCapture(model) as capture:
        return capture(ids, answer)


def split_layers(model: Any, ids: Any) -> int:
    """How many layers are split where the last tokens answer.

    Raises:
        ArithmeticError: masses or the last hidden state are not those of a pass that is not split.
    """
    from probing.attention.capture import AttentionCapture
    from probing.models.front import trunk_of

    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[:, -6:] = True
    capture, trunk = AttentionCapture(model, early_exit=False), trunk_of(model)
    layers, found = capture.split, []

    def forward(**given: Any) -> Any:
        found.append(trunk(**given))
        return found[-1]

    for capture.split in (frozenset(), layers):
        with capture:
            found.append(capture(ids, answer, forward=forward))
    for plain, split in ((found[1], found[3]), (found[0][0], found[2][0])):
        difference = float((split - plain).abs().max() / plain.abs().max())
        if not difference < ALLOWED_SPLIT:
            raise ArithmeticError(f"a split pass differs by {difference:.1g}")
    return len(layers)


def eager_mass(config: Any, model: Any, ids: Any, answer: Any) -> Any:
    """The reference: T × T weights of the eager attention, each text alone, answer rows summed."""
    eager = tiny_model(config, "eager")
    eager.load_state_dict(model.state_dict())
    rows = []
    for row, length in enumerate(LENGTHS):
        with torch.no_grad():
            output = eager(ids[row : row + 1, :length], use_cache=False, output_attentions=True)
        square = (length, length)
        found = [w for w in output.attentions or () if w is not None and w.shape[-2:] == square]
        if not found:
            return None
        masses = torch.cat([(w[0] * answer[row, :length, None]).sum(1) for w in found])
        rows.append(torch.nn.functional.pad(masses, (0, ids.shape[1] - length)))
    return torch.stack(rows)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[:2])[:220].replace("|", "/")


def page(results: list[Result]) -> str:
    """The table as Markdown."""
    import transformers

    number = Counter(result.word for result in results)
    worst = max((r.error for r in results if r.word == "exact" and r.error is not None), default=0)
    lines = [
        "# Families of models",
        "",
        "What `kfh` makes of each decoder family of transformers "
        f"({transformers.__version__}; torch {torch.__version__.split('+')[0]}, CPU): "
        "tiny models of random weights, their attention captured as a probe does it, against the "
        "family's own eager attention (`output_attentions`). Made by",
        "",
        "```sh",
        "python tests/bench/families.py --out docs/families.md",
        "```",
        "",
        f"Of {len(results)} families **{number['exact']} are exact** (the largest difference of "
        f"any token's mass, a sum over six rows of attention, is {worst:.1g}), "
        f"{number['refused']} are refused with a reason, {number['no reference']} have no "
        f"reference, and of {number['not made']} no tiny model could be made. "
        f"{number['wrong'] or 'No'} family gives wrong numbers.",
        "",
        "A refusal comes before any number is given. A family that does not call the attention "
        "registry of transformers computes its attention in code of its own, where there is "
        "nothing to stand in front of.",
        "",
        "| family | result | largest error | attention | remark |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        error = "" if r.error is None else f"{r.error:.1e}"
        lines.append(f"| `{r.family}` | {r.word} | {error} | {r.kernel} | {r.why} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
