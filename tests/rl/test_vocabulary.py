"""A model without the tokens that a task does not use: the rest is as it was."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from families import tiny
from helpers import kfh, said, trace_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from probing.errors import ConfigError
from probing.models.load import load_model, load_tokenizer
from probing.traces.file import read_traces
from rl.training.vocabulary import keep_rows, kept_tokens, smaller_state

WORDS = "bring bringing ring rings sing singer 12 + 7 = 19 check checked Wait again the then there"


def merged_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with many merges, special tokens at its end, and one set around each text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS.split(), k=30)) for _ in range(50)]
    core.train_from_iterator(lines, trainer)
    own = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    start = own.convert_tokens_to_ids("<s>")
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", start)]
    )
    return own


@pytest.mark.parametrize("tied", [True, False])
def test_the_rest_is_as_it_was(tied: bool, tmp_path: Path) -> None:
    tokenizer = merged_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    big = tiny("llama", vocab_size=len(tokenizer), tie_word_embeddings=tied, **ends)
    big.save_pretrained(tmp_path / "big")
    tokenizer.save_pretrained(tmp_path / "big")
    traces = trace_file(tmp_path / "traces.jsonl")
    done = kfh("shrink", "--model", tmp_path / "big", "--data", traces, "--out", tmp_path / "out")
    assert done.exit_code == 0, said(done)
    folder = tmp_path / "out" / "model"
    small, cutter = load_model(str(folder), device="cpu"), load_tokenizer(str(folder))
    record = json.loads((tmp_path / "out" / "vocabulary.json").read_text())
    tokens = record["tokens"]
    assert (tokens["before"], tokens["after"]) == (len(tokenizer), small.config.vocab_size)
    assert tokens["after"] == len(cutter) < tokens["before"]
    rows = (tokens["before"] - tokens["after"]) * big.config.hidden_size
    less = record["parameters"]["before"] - record["parameters"]["after"]
    assert less == rows * (1 if tied else 2)
    for trace in read_traces(traces):
        old, new = tokenizer(trace.response)["input_ids"], cutter(trace.response)["input_ids"]
        names = tokenizer.convert_ids_to_tokens
        assert names(old) == cutter.convert_ids_to_tokens(new)
        kept = tokenizer.convert_tokens_to_ids(cutter.convert_ids_to_tokens(range(len(cutter))))
        with torch.inference_mode():
            before = big(torch.tensor([old])).logits[..., kept]
            assert torch.equal(before, small(torch.tensor([new])).logits)
    strange = "singer of strange tales, 3 × 4 = zwölf"
    assert cutter.decode(cutter(strange, add_special_tokens=False)["input_ids"]) == strange
    for settings in (small.config, small.generation_config):
        assert settings.eos_token_id == cutter.eos_token_id
        assert settings.bos_token_id == cutter.bos_token_id
    words = ("shrink", "--model", tmp_path / "big", "--data", traces, "--out", tmp_path / "out")
    weights = folder / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert kfh(*words).exit_code == 0 and weights.stat().st_mtime_ns == made
    (tmp_path / "out" / "vocabulary.json").unlink()  # as a killed call leaves it
    assert kfh(*words).exit_code == 0 and weights.stat().st_mtime_ns > made
    again = kfh(*words, "--seed", 1)
    assert again.exit_code and "holds another model" in said(again)


def test_texts_of_kept_tokens_are_cut_as_before() -> None:
    tokenizer, rng = merged_tokenizer(), random.Random(1)
    state, cut = json.loads(tokenizer.backend_tokenizer.to_str()), 0
    for _ in range(30):
        used = rng.choices(WORDS.split(), k=3)
        ids = {own for word in used for own in tokenizer(f" {word}")["input_ids"]}
        kept = kept_tokens(state, ids)
        small = Tokenizer.from_str(json.dumps(smaller_state(state, kept)))
        for _ in range(40):
            text = "".join(rng.choices([" ", "", "\n"])[0] + rng.choice(used) for _ in range(6))
            old = tokenizer(text)["input_ids"]
            if set(old) <= set(kept):
                cut += 1
                assert [kept[own] for own in small.encode(text).ids] == old
    assert cut > 400


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ConfigError, match="of kind Unigram cannot be cut"):
        kept_tokens({"model": {"type": "Unigram"}, "added_tokens": []}, [1])
    model = tiny("llama", eos_token_id=9)
    with pytest.raises(ConfigError, match="eos_token_id 9 is none of the tokens"):
        keep_rows(model, range(8))
