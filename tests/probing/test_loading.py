"""Loading: whole or not at all; other kinds of models, kernels, adapters, GGUF, long traces."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import checkpoints
import pytest
import torch
from checkpoints import WEIGHTS, adapter_folder, edited, gguf_file, gguf_model, gpt2_folder
from families import FAMILIES, tiny
from helpers import byte_tokenizer, model_folder, trace_file, trace_line, write_lines
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CodeGenConfig, OPTConfig

from probing.config import ProbeConfig
from probing.errors import DataError, ModelError
from probing.headset import HeadSet
from probing.interventions.job import intervene
from probing.interventions.setup import InterventionConfig
from probing.labelling.cause import label_by_cause
from probing.models.adapter import Adapter
from probing.models.checkpoint import check_trainable
from probing.models.decode import encode_prompt
from probing.models.identity import config_fingerprint, position_limit, weights_fingerprint
from probing.models.load import ModelSource, load_config, load_model, load_tokenizer
from probing.run import probe
from probing.traces.file import read_traces

Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model folder."""
    return model_folder(tmp_path_factory.mktemp("models") / "whole")


def fewer(state: dict) -> None:
    for key in [key for key in state if ".layers.3." in key]:
        del state[key]


def more(state: dict) -> None:
    state |= {key.replace(".3.", ".4."): w.clone() for key, w in state.items() if ".3." in key}


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda s: s.pop(Q), rf"not in it \(1\): {Q}"),
        (lambda s: s.pop("model.embed_tokens.weight"), "not in it (1): model.embed_tokens.weight"),
        (lambda s: s.pop("lm_head.weight"), "not in it (1): lm_head.weight"),
        (fewer, "not in it (9): model.layers.3.input_layernorm.weight"),
        (more, "without a place in the model (9): model.layers.4.input_layernorm.weight"),
        (
            lambda s: s.update({Q.replace("q_proj", "query"): s.pop(Q)}),
            f"not in it (1): {Q}; without a place in the model (1): {Q.replace('q_proj', 'query')}",
        ),
        (
            lambda s: s.update({f"net.{key}": s.pop(key) for key in list(s)}),
            "and 35 more; without a place in the model (39): net.lm_head.weight",
        ),
        (
            lambda s: s.update({Q: torch.zeros(8, 32)}),
            f"of another shape (1): {Q} (8, 32), not (32, 32)",
        ),
        (
            lambda s: s.update({Q.replace("weight", "bias"): torch.zeros(32)}),
            f"without a place in the model (1): {Q.replace('weight', 'bias')}",
        ),
    ],
)
def test_a_weight_that_is_not_the_checkpoint_s_is_named(
    edit, named: str, whole: Path, tmp_path: Path
) -> None:
    folder = edited(tmp_path / "model", edit, source=whole)
    with pytest.raises(ModelError) as refused:
        load_model(str(folder), device="cpu")
    assert named.replace("\\", "") in str(refused.value) and str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_checkpoint_of_every_family_loads(family: str, tied: bool, tmp_path: Path) -> None:
    model = tiny(family, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert weights_fingerprint(load_model(str(tmp_path), device="cpu")) == weights_fingerprint(
        model
    )


def test_buffers_and_the_parts_of_another_task_are_no_fault(whole: Path, tmp_path: Path) -> None:
    old = tmp_path / "neox"
    model_folder(old, "gpt_neox")
    state = load_file(old / WEIGHTS)
    for layer in range(4):  # as checkpoints of before hold them
        owner = f"gpt_neox.layers.{layer}.attention"
        state[f"{owner}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        state[f"{owner}.masked_bias"] = torch.tensor(-1e9)
        state[f"{owner}.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(state, old / WEIGHTS, metadata={"format": "pt"})
    load_model(str(old), device="cpu")

    def with_more(state: dict) -> None:
        state["v_head.summary.weight"] = torch.zeros(1, 32)  # a value head
        state |= {k.replace(".3.", ".4."): w.clone() for k, w in state.items() if ".3." in k}
        state["model.layers.4.eh_proj.weight"] = torch.zeros(32, 64)  # predicts a second token

    folder = edited(tmp_path / "more", with_more, source=whole)
    with pytest.warns(UserWarning, match=r"11 weights of the checkpoint are not used: model\.lay"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "rwkv", "xlstm"])
def test_a_model_without_heads_is_refused_before_its_weights_are_read(
    kind: str, tmp_path: Path
) -> None:
    folder = checkpoints.headless(tmp_path / kind, kind)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=f"no attention heads to look at: a {kind} model"):
        load_model(str(folder), device="cpu")


# Kernels


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_the_kernel_of_choice_stands_above_the_config_s(key: str, tmp_path: Path) -> None:
    folder = str(checkpoints.configured(tmp_path / "model", **{key: "flash_attention_3"}))
    with pytest.raises(ModelError, match=r"asks for flash_attention_3; choose .*--attention"):
        load_model(folder, device="cpu")
    for kernel in ("sdpa", "eager"):
        model, _ = ModelSource(folder, device="cpu", attention=kernel).load()
        assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} == {
            kernel
        }
    with pytest.raises(ModelError, match="unknown attention 'sdap'; did you mean sdpa"):
        load_model(folder, device="cpu", attention="sdap")


# Tokenizers


def test_a_tokenizer_with_tokens_beyond_the_embeddings_is_refused(tmp_path: Path) -> None:
    source = ModelSource(str(checkpoints.misfit(tmp_path / "model")), device="cpu")
    with pytest.raises(ModelError, match=r"1 tokens beyond the 300 embeddings .*'<extra>' \(300\)"):
        source.load()
    model, _ = source.load(tokenizer=byte_tokenizer())
    model.resize_token_embeddings(301)
    source.load(model)


def test_a_token_for_padding_beyond_the_embeddings_is_let_be(whole: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    source = ModelSource(str(whole), device="cpu")
    assert source.load(tokenizer=tokenizer)[1].pad_token == "</s>"
    traces = write_lines(tmp_path / "t.jsonl", [trace_line(0), trace_line(1, prompt="1 <pad> 2")])
    config = ProbeConfig(str(whole), traces, tmp_path / "probe", device="cpu")
    with pytest.raises(DataError, match=r"trace t/1 holds '<pad>' \(300\), .* no embedding"):
        probe(config, tokenizer=tokenizer)
    with pytest.raises(DataError, match=r"the prompt 'a <pad>' holds '<pad>'"):
        encode_prompt(tokenizer, "a <pad>")
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    model, _ = source.load(tokenizer=tokenizer)
    with pytest.raises(ModelError, match=r"no embedding for the token that ends .*'<end>', 301"):
        check_trainable(model, tokenizer, "whole")
    tokenizer.add_tokens(["word"])
    with pytest.raises(ModelError, match=r"3 tokens beyond .*'<end>' \(301\), 'word' \(302\)"):
        source.load(tokenizer=tokenizer)


# Positions


def test_the_length_of_a_table_of_positions_is_found(tmp_path: Path) -> None:
    size = {"vocab_size": 300, "num_hidden_layers": 1, "num_attention_heads": 4}
    opt = OPTConfig(
        **size, hidden_size=32, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32
    )
    codegen = CodeGenConfig(
        vocab_size=300, n_embd=32, n_layer=1, n_head=4, n_positions=64, rotary_dim=4
    )
    models = [AutoModelForCausalLM.from_config(config).eval() for config in (opt, codegen)]
    models.append(load_model(str(gpt2_folder(tmp_path, 64)), device="cpu"))
    for model in models:
        assert position_limit(model) == 64
        with torch.no_grad():
            model(torch.ones(1, 64, dtype=torch.long))
            with pytest.raises((IndexError, RuntimeError)):
                model(torch.ones(1, 65, dtype=torch.long))
    for family in FAMILIES:  # these go on beyond what they were made for
        assert position_limit(tiny(family)) is None, family


@pytest.fixture
def long_traces(tmp_path: Path) -> tuple[Path, Path, list[str]]:
    """A GPT-2, traces half of which it cannot take, and the ids of those that it can."""
    tokenizer = byte_tokenizer()
    lines = [trace_line(n, steps=4 if n % 2 else 12) for n in range(8)]
    texts = {line["id"]: line["prompt"] + line["response"] for line in lines}
    lengths = {name: len(tokenizer(text)["input_ids"]) for name, text in texts.items()}
    limit = sorted(lengths.values())[3] + 16
    assert limit < sorted(lengths.values())[4]
    short = [name for name, length in lengths.items() if length <= limit]
    return gpt2_folder(tmp_path / "gpt2", limit), write_lines(tmp_path / "t.jsonl", lines), short


def test_traces_beyond_the_table_of_positions_are_counted(
    long_traces: tuple[Path, Path, list[str]], tmp_path: Path
) -> None:
    folder, traces, short = long_traces
    for batch in (8192, 8192):  # the second call goes on from the first
        result = probe(
            ProbeConfig(
                str(folder), traces, tmp_path / "probe", device="cpu", batch_tokens=batch,
                permutations=10,
            )
        )  # fmt: skip
        assert result is not None
        (reason, count), *others = result.counts["left_out"].items()
        assert re.fullmatch(r"more tokens than the \d+ positions of the model", reason)
        assert (count, others, result.counts["used"]) == (4, [], 4)
        assert sorted(result.scored) == sorted(short)

    model, tokenizer = ModelSource(str(folder), device="cpu").load()
    report = label_by_cause(model, tokenizer, traces, tmp_path / "labels.jsonl")
    assert report.traces == 4 and report.left_out.keys().isdisjoint(short)
    assert all("positions of the model" in why for why in report.left_out.values())

    heads = HeadSet.load(tmp_path / "probe" / "heads.json", warn=False)
    outcome = intervene(
        model, tokenizer, heads, list(read_traces(traces)), lambda trace, ids: False,
        config=InterventionConfig(remove=(1,), draws=1, max_answer_tokens=8),
    )  # fmt: skip
    assert outcome.counts["left_out"] == {reason: 4}


def test_where_every_trace_is_too_long_it_is_said(tmp_path: Path) -> None:
    folder, traces = gpt2_folder(tmp_path / "gpt2", 64), trace_file(tmp_path / "t.jsonl")
    config = ProbeConfig(str(folder), traces, tmp_path / "probe", device="cpu")
    with pytest.raises(DataError, match="every trace has more tokens than the 64 positions"):
        probe(config)


# GGUF


def test_a_gguf_is_plain_weights_which_can_be_saved(tmp_path: Path) -> None:
    model = gguf_model()
    loaded, tokenizer = ModelSource(
        str(gguf_file(tmp_path / "tiny.gguf", model)), device="cpu"
    ).load()
    config = load_config(str(tmp_path / "tiny.gguf"))
    assert config_fingerprint(config) == config_fingerprint(loaded.config)
    assert byte_tokenizer().get_vocab().items() <= tokenizer.get_vocab().items()
    ids = torch.tensor([tokenizer("Wait, so 12 + 7 = 19.")["input_ids"]])
    with torch.no_grad():
        ours, theirs = loaded(ids).logits, model(ids).logits
    assert (ours - theirs).abs().max() < 0.1 * theirs.abs().max()  # eight bits a weight
    check_trainable(loaded, tokenizer, "tiny.gguf")
    loaded.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    again = load_model(str(tmp_path / "saved"), device="cpu")
    assert weights_fingerprint(again) == weights_fingerprint(loaded)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda t: t.pop("blk.1.attn_q.weight"), r"not in it \(1\): model.layers.1.self_attn.q_p"),
        (lambda t: t.pop("token_embd.weight"), "model.embed_tokens.weight"),
        (
            lambda t: t.update({"blk.1.attn_query.weight": t.pop("blk.1.attn_q.weight")}),
            r"not in it \(1\): model.layers.1.self_attn.q_proj.weight",
        ),
        (
            lambda t: t.update({"rope_freqs.weight": torch.ones(4)}),
            "1 tensors of the file have no place .*: rope_freqs.weight",
        ),
    ],
)
def test_a_gguf_that_fits_in_part_is_refused(edit, named: str, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "tiny.gguf", gguf_model(), edit)
    with pytest.raises(ModelError, match=named):
        load_model(str(path), device="cpu")


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "tiny.gguf", gguf_model())
    whole = path.read_bytes()
    for content in (b"", b"no model", whole[:200], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"tiny\.gguf"):
            ModelSource(str(path), device="cpu").load()


# Adapters


def test_an_adapter_without_peft_says_what_to_install(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    folder = str(adapter_folder(tmp_path / "lora", str(whole)))
    assert load_tokenizer(folder).get_vocab() == byte_tokenizer().get_vocab()  # its base's
    with pytest.raises(ModelError, match=rf"an adapter of {whole}.*pip install 'kfh\[peft\]'"):
        load_model(folder, device="cpu")


@pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
def test_an_adapter_is_its_base_with_its_weights(whole: Path, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "lora", "../base")  # seen from the adapter
    edited(tmp_path / "base", lambda state: None, source=whole)
    base, (model, _) = load_model(str(whole)), ModelSource(str(folder), device="cpu").load()
    lora = load_file(folder / "adapter_model.safetensors")
    for layer in range(4):
        owner = f"model.layers.{layer}.self_attn.v_proj"
        a, b = (lora[f"base_model.model.{owner}.lora_{x}.weight"] for x in "AB")
        expected = base.get_parameter(f"{owner}.weight") + 4 / 2 * b @ a
        torch.testing.assert_close(model.get_parameter(f"{owner}.weight"), expected)
    assert {key for key, _ in model.named_parameters()} == {k for k, _ in base.named_parameters()}
    assert weights_fingerprint(model) != weights_fingerprint(base)
    # Another adapter of the same base, or the same one weighted otherwise, is another model.
    other = load_model(str(adapter_folder(tmp_path / "other", str(whole), lora_alpha=8)))
    prints = [config_fingerprint(each.config) for each in (base, model, other)]
    assert len(set(prints)) == 3
    assert config_fingerprint(load_config(str(folder))) == prints[1]
    again = load_model(str(adapter_folder(tmp_path / "moved", str(whole))))
    assert config_fingerprint(again.config) == prints[1]
    result = probe(
        ProbeConfig(
            str(folder), trace_file(tmp_path / "t.jsonl"), tmp_path / "probe", device="cpu",
            permutations=10,
        )
    )  # fmt: skip
    assert result is not None and result.card.fingerprint == prints[1]
    check_trainable(model, byte_tokenizer(), "lora")


@pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "8 of its weights are not in the"),
        ({"target_modules": ["q_proj"]}, "8 have no place"),
        ({"target_modules": ["query"]}, "cannot be merged .*query"),
        ({"r": 3}, "cannot be merged .*size mismatch"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    settings: dict, named: str, whole: Path, tmp_path: Path
) -> None:
    folder = adapter_folder(tmp_path / "lora", str(whole), **settings)
    with pytest.raises(ModelError, match=named):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "cannot be read as the settings of an adapter"),
        ("[" * 100_000, "cannot be read as the settings of an adapter"),
        ("[]", "names no base model"),
        ('{"base_model_name_or_path": null}', "names no base model"),
        ('{"base_model_name_or_path": "/nowhere"}', "/nowhere: no such folder"),
    ],
)
def test_an_adapter_whose_base_is_not_known_is_refused(
    content: str, named: str, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ModelError, match=named):
        load_model(str(tmp_path), device="cpu")
    assert Adapter.at(str(model_folder(tmp_path / "plain"))) is None
