"""The pocket reasoner's tokenizer: one token a word, digit or mark, lossless, with offsets.

It is a byte-level Qwen2 tokenizer without merges, and the words of the task are added tokens. So
transformers loads it as it loads that of any Qwen2 model, and text outside the task, byte by
byte, is lossless too.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from rl.pocket import task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


PAD, EOS = "<pad>", "<|endoftext|>"
# A blank belongs to the token that follows it, so that decoding is plain concatenation.
_WORD = r" ?[A-Za-z]+(?:-[a-z]+)?"
_MARKS = (".", ",", ":", " ;", " ?", "?", " =", " +", " *", " \\boxed{", "}", "\n")
# Qwen2's rule for cutting text before the bytes; transformers puts it in place of any other.
_QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def words() -> list[str]:
    """The added tokens in the order of their ids: marks, digits, names, the task's words."""
    sentences = [*task.OPENERS, *task.REMARKS, *task.CLOSINGS, task.GUESS, task.RESTATEMENT]
    sentences += [task.ALTERNATIVE, task.FIRST_WORD, *task.NEXT_WORDS, task.ASIDE_WORD]
    sentences += ["Problem:", "Wait, check had ok so gives"]
    texts = [re.sub(r"\{.*?\}", "", sentence) for sentence in sentences]
    found = {word for text in texts for word in re.findall(_WORD, text)}
    digits = [f"{blank}{digit}" for blank in ("", " ") for digit in range(10)]
    names = [f" {name}" for name in task.NAMES]
    return ["<think>", "</think>", *_MARKS, *digits, *names, *sorted(found)]


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Token to id: the 256 bytes, pad, end, then `words`."""
    from tokenizers import pre_tokenizers

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), PAD, EOS]
    # A mark or digit that is one byte already has an id.
    tokens += [word for word in words() if word not in tokens]
    return {token: index for index, token in enumerate(tokens)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, with character offsets and with decode(encode(text)) == text.

    `<think>` and `</think>` are ordinary tokens, so that decoding keeps them where it skips
    the special ones, pad and end.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as cuts
    from transformers import PreTrainedTokenizerFast

    single_bytes = {token: index for token, index in vocabulary().items() if index < 256}
    tokenizer = Tokenizer(models.BPE(vocab=single_bytes, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    pieces = cuts.Split(Regex(_QWEN2_PIECES), behavior="isolated")
    as_bytes = cuts.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = cuts.Sequence([pieces, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (PAD, EOS)])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
