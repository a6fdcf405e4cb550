"""From characters to tokens: the token spans of steps, and the answer tokens.

A trace is tokenised once, as prompt + response, and every span is found by the tokenizer's
offsets on that one sequence; no text is searched for or tokenised again. A trace that brings the
ids that were sampled (`token_ids`, see `SampledIds`) is not tokenised at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from probing.choices import LOOKING, RULES
from probing.errors import ConfigError, DataError
from probing.files.reading import BadLine
from probing.models.identity import check_ids, tokenizer_fingerprint
from probing.settings import unknown
from probing.traces.file import TOKEN_IDS, Trace, check_token_ids
from probing.traces.text import boxes, value_spans, whole_box

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class EncodedTrace:
    """A trace as token ids, with the token spans of its steps and its answer tokens."""

    id: str
    ids: Int[np.ndarray, "token"]
    prompt_tokens: int  # |q|: tokens that start in the prompt
    spans: Int[np.ndarray, "step 2"]  # half open, in tokens; first = last: a step without token
    answer: Bool[np.ndarray, "token"]  # F
    sampled: bool = False  # the ids are those that were sampled
    behind: int | None = None  # first token behind the end mark; None: not known, the first of F
    kept: Bool[np.ndarray, "all"] | None = None  # of a bare answer's trace, the tokens that stay

    def __len__(self) -> int:
        """Number of tokens, |q ⊕ o|."""
        return len(self.ids)


def token_offsets(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[Int[np.ndarray, "token"], Int[np.ndarray, "token 2"]]:
    """Token ids of a text with character offsets that never decrease.

    The tokenizer's special tokens are added as it does by default (a BOS for many models),
    unless the text brings its own BOS. A special token at the end lies behind the text.
    """
    bos = getattr(tokenizer, "bos_token", None)
    encoded = tokenizer(
        text,
        add_special_tokens=not (bos and text.startswith(bos)),
        return_offsets_mapping=True,
        verbose=False,
    )
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    behind = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
    if len(behind):
        offsets[behind[-1] + 1 :] = len(text)
    return ids, np.maximum.accumulate(offsets, axis=0)


def token_spans(
    offsets: Int[np.ndarray, "token 2"],
    spans: Sequence[tuple[int, int]],
    rule: str = "start",
) -> Int[np.ndarray, "step 2"]:
    """Half-open token spans of character spans.

    Args:
        offsets: of each token, never decreasing.
        spans: character spans in ascending order.
        rule: `overlap`: a token belongs to every span that it overlaps (labelled spans of any
            origin); `start`: the token in which a span starts belongs to it, and no longer to
            the span before (steps that tile the text; docs/PAPER.md, section 1).

    Example:
        >>> offsets = np.array([[0, 2], [2, 6], [6, 8]])
        >>> token_spans(offsets, [(0, 4), (4, 8)], "overlap").tolist()
        [[0, 2], [1, 3]]
        >>> token_spans(offsets, [(0, 4), (4, 8)], "start").tolist()
        [[0, 1], [1, 3]]
    """
    if rule not in RULES:
        raise ConfigError(unknown("rule", rule, RULES))
    limits = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    starts, ends = offsets[:, 0], offsets[:, 1]
    first = np.searchsorted(ends, limits[:, 0], side="right")
    if rule == "overlap":
        last = np.searchsorted(starts, limits[:, 1], side="left")
    else:
        last = np.searchsorted(ends, limits[:, 1], side="right")
    return np.stack([first, np.maximum(first, last)], axis=1)


def encode_trace(
    tokenizer: PreTrainedTokenizerBase,
    trace: Trace,
    *,
    rule: str = "start",
    answer: str = "all",
    skip_bad: bool = False,
) -> EncodedTrace:
    """Tokenise prompt + response and place steps and answer on the tokens.

    Where the trace brings the ids that this tokenizer's model sampled, these are taken as they
    are: a model seldom writes a text in the very tokens that the tokenizer would cut it into.

    Args:
        tokenizer: a fast one.
        trace: with its steps.
        rule: how steps take tokens, see `token_spans`.
        answer: which tokens after `</think>` are F: `all` (the paper: those that start at or
            after its end), `values` (of these, numbers and what follows an equals sign), or
            `boxed` (of these, what stands in the last \\boxed{…}). `bare`: the last \\boxed{…} with
            its command and braces, which then stands right behind `</think>`: the answer's other
            tokens are taken out, so that it says nothing of the steps but the final value.
        skip_bad: tokenise the text where the trace's ids do not fit it.

    Raises:
        DataError: the trace's `token_ids` are not of its prompt and response, the model has no
            embedding for one of its tokens, or there are no tokens.
    """
    sampled = SampledIds.of(trace)
    if sampled and sampled.is_of(tokenizer):
        fault = sampled.fault(tokenizer, trace)
        if not fault:
            return _encode_sampled(tokenizer, trace, sampled, rule, answer)
        if not skip_bad:
            raise DataError(
                f"trace {trace.id}: {TOKEN_IDS} {fault}. Was one of the two changed? Without the "
                "field, or with --skip-bad, the text is tokenised"
            )
    text, shift = trace.prompt + trace.response, len(trace.prompt)
    ids, offsets = token_offsets(tokenizer, text)
    check_ids(tokenizer, ids, f"trace {trace.id}")
    before = int((offsets[:, 0] < shift).sum())
    return _placed(trace, _Tokens(ids, offsets, text, shift, before), rule, answer)


@dataclass(frozen=True)
class SampledIds:
    """The field `token_ids` of a trace: the ids that the model was given and those it sampled.

    `response` stands without the token that ended it; `end` is that token. `tokenizer` is the
    fingerprint of the tokenizer that the ids are of; None: of the one that reads them.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    end: int | None = None
    tokenizer: str | None = None

    @classmethod
    def of(cls, trace: Trace) -> SampledIds | None:
        """The ids that a trace brings; None where it brings none.

        Raises:
            DataError: the field is there and is not what it should be.
        """
        field = trace.extra.get(TOKEN_IDS)
        if field is None:
            return None
        try:
            check_token_ids(field)
        except BadLine as error:
            raise DataError(f"trace {trace.id}: {error}") from error
        prompt, response = tuple(field["prompt"]), tuple(field["response"])
        return cls(prompt, response, field.get("end"), field.get("tokenizer"))

    def is_of(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether the ids are this tokenizer's."""
        return self.tokenizer in (None, tokenizer_fingerprint(tokenizer))

    def fault(self, tokenizer: PreTrainedTokenizerBase, trace: Trace) -> str | None:
        """Why the ids cannot stand for the text of the trace, in words; None where they can."""
        known = tokenizer.backend_tokenizer.id_to_token
        for token in dict.fromkeys((*self.prompt, *self.response)):
            if known(token) is None:
                return f"hold {token}, which is no token of this tokenizer"
        for name, ids, text in (
            ("prompt", self.prompt, trace.prompt),
            ("response", self.response, trace.response),
        ):
            given, _ = decode_with_offsets(tokenizer, np.asarray(ids, dtype=np.int64))
            if given != text and not (name == "prompt" and _reads_as(tokenizer, ids, given, text)):
                return f"do not decode to its {name} (they give {given!r:.60})"
        return None

    def to_json(self) -> dict[str, Any]:
        """The field as it stands in a trace line."""
        return {
            "prompt": list(self.prompt),
            "response": list(self.response),
            "end": self.end,
            "tokenizer": self.tokenizer,
        }


def _reads_as(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], given: str, text: str
) -> bool:
    """Whether prompt ids stand for a prompt that they do not decode to, letter by letter.

    A BOS may stand before them, and a tokenizer that changes a text (spaces, Unicode) does not
    give it back: then its own ids for it count.
    """
    bos = getattr(tokenizer, "bos_token", None)
    if bos and given.removeprefix(bos) == text.removeprefix(bos):
        return True
    return any(
        list(ids) == tokenizer(text, add_special_tokens=added, verbose=False)["input_ids"]
        for added in (True, False)
    )


def _encode_sampled(
    tokenizer: PreTrainedTokenizerBase, trace: Trace, sampled: SampledIds, rule: str, answer: str
) -> EncodedTrace:
    """The ids as sampled, with the offsets of the ids themselves; see `encode_trace`."""
    check_ids(tokenizer, (*sampled.prompt, *sampled.response), f"trace {trace.id}: {TOKEN_IDS}")
    response = np.asarray(sampled.response, dtype=np.int64)
    text, offsets = decode_with_offsets(tokenizer, response)
    # The prompt's tokens lie before the response, all at its character 0, as a BOS does.
    before = len(sampled.prompt)
    offsets = np.concatenate([np.zeros((before, 2), dtype=np.int64), offsets])
    ids = np.concatenate([np.asarray(sampled.prompt, dtype=np.int64), response])
    return _placed(trace, _Tokens(ids, offsets, text, 0, before, sampled=True), rule, answer)


class _Tokens(NamedTuple):
    """Token ids with their characters in a text whose response starts at `shift`."""

    ids: Int[np.ndarray, "token"]
    offsets: Int[np.ndarray, "token 2"]
    text: str
    shift: int
    before: int  # tokens of the prompt
    sampled: bool = False


def _placed(trace: Trace, tokens: _Tokens, rule: str, answer: str) -> EncodedTrace:
    """Steps and answer on the tokens; see `encode_trace`."""
    ids, offsets, text, shift, before, sampled = tokens
    spans = token_spans(offsets, [(s.start + shift, s.end + shift) for s in trace.steps], rule)
    start = shift + trace.answer_start
    counted = answer_tokens(offsets, text, start, answer)
    behind = int((offsets[:, 0] < start).sum())
    if answer != "bare":
        return EncodedTrace(trace.id, ids, before, spans, counted, sampled, behind)
    kept = counted | (np.arange(len(ids)) < behind)
    return EncodedTrace(trace.id, ids[kept], before, spans, counted[kept], sampled, behind, kept)


def decode_with_offsets(
    tokenizer: PreTrainedTokenizerBase, ids: Int[np.ndarray, "token"]
) -> tuple[str, Int[np.ndarray, "token 2"]]:
    """The text of the ids, special tokens included, and the characters of each id.

    Ids that make one character together (bytes of it) all span that character.
    """
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    backend = tokenizer.backend_tokenizer
    chunks: list[str] = []
    offsets = np.zeros((len(ids), 2), dtype=np.int64)
    first, at = 0, 0  # of the ids whose characters are not complete yet
    for index, token in enumerate(ids.tolist()):
        chunk = stream.step(backend, token)
        if chunk is None:
            continue
        chunks.append(chunk)
        offsets[first : index + 1] = (at, at + len(chunk))
        first, at = index + 1, at + len(chunk)
    offsets[first:] = at  # bytes that never became a character
    return "".join(chunks), offsets


def answer_tokens(
    offsets: Int[np.ndarray, "token 2"], text: str, start: int, which: str = "all"
) -> Bool[np.ndarray, "token"]:
    """The answer tokens F: `all`, `values`, `boxed` or `bare` (the box with its command and braces)
    of those that start at or after `start`."""
    after = offsets[:, 0] >= start
    if which == "all":
        return after
    if which == "values":
        spans = value_spans(text, start)
    elif which == "boxed":
        spans = boxes(text, start)[-1:]
    elif which == "bare":
        spans = [span] if (span := whole_box(text, start)) else []
    else:
        raise ConfigError(unknown("answer tokens", which, LOOKING))
    chosen = np.zeros(len(offsets), dtype=bool)
    for first, last in token_spans(offsets, spans, "overlap"):
        chosen[first:last] = True
    return chosen & after
