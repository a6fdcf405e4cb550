"""Sampled token ids → text, steps and answer tokens, with the offsets of the ids themselves.

The ids are decoded once, one by one, so that each knows its characters; no text is tokenised
again, and nothing is searched for after the cut.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.errors import ConfigError, DataError, ModelError
from probing.headset import HeadSet
from probing.traces.file import Step
from probing.traces.segmenters import Segmenter
from probing.traces.tokens import answer_tokens, decode_with_offsets, token_spans
from rl.attnpo.config import AttnPOConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Completion:
    """A sampled response, cut into steps.

    `ids` are the tokens as sampled, without the end token and what follows it; `length` counts
    the end token. `spans` are token spans of the steps, half open; a response without the end of
    its reasoning has no step and no answer.
    """

    ids: Int[np.ndarray, "token"]
    length: int
    finished: bool  # ended by itself, not at the limit of tokens
    text: str
    steps: tuple[Step, ...]  # in characters of `text`
    spans: Int[np.ndarray, "step 2"]
    answer: Bool[np.ndarray, "token"]  # F
    reasoned: bool  # the reasoning has an end

    @property
    def complete(self) -> bool:
        """Whether the reasoning ends and the response ends: only then can it be correct."""
        return self.finished and self.reasoned


@dataclass(frozen=True)
class Cutter:
    """Cuts responses; everything about it is stored in the head set or the recipe.

    Args:
        tokenizer: a fast one.
        end_ids: ids that end a response.
        segmenter: cuts the reasoning.
        rule: how steps take tokens, `start` or `overlap`.
        answer: which tokens after the reasoning are F, `all`, `values` or `boxed`.
        think_end: the text that ends the reasoning.

    Raises:
        ModelError: the tokenizer is a slow one, which knows no offsets.
    """

    tokenizer: PreTrainedTokenizerBase
    end_ids: Collection[int]
    segmenter: Segmenter
    rule: str = "start"
    answer: str = "all"
    think_end: str = "</think>"

    def __post_init__(self) -> None:
        """Refuse a tokenizer that cannot give offsets."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(self.tokenizer).__name__} is a slow tokenizer without offsets; load the "
                "fast one (use_fast=True), or a model that has one"
            )

    def __call__(self, ids: Sequence[int]) -> Completion:
        """Cut one response; `ids` may go on after the end token."""
        ends = np.flatnonzero(np.isin(ids, list(self.end_ids)))
        finished = len(ends) > 0
        kept = np.asarray(ids[: ends[0]] if finished else ids, dtype=np.int64)
        text, offsets = decode_with_offsets(self.tokenizer, kept)
        end = text.find(self.think_end)
        steps = tuple(self.segmenter.cut(text[:end])) if end >= 0 else ()
        answer = np.zeros(len(kept), dtype=bool)
        if end >= 0:
            answer = answer_tokens(offsets, text, end + len(self.think_end), self.answer)
        spans = token_spans(offsets, [(step.start, step.end) for step in steps], self.rule)
        return Completion(
            kept, len(kept) + int(finished), finished, text, steps, spans, answer, end >= 0
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """The responses of this process, and what their groups say.

    `correct` and `p` are of this process's responses; `all_correct` and `all_lengths` of all
    processes, group after group. `p` is the share of the group's responses that are correct.
    """

    responses: list[Completion]
    correct: Bool[Tensor, "response"]
    p: Float[Tensor, "response"]
    all_correct: Bool[Tensor, "everyone"]
    all_lengths: Int[Tensor, "everyone"]

    @classmethod
    def gathered(
        cls, trainer: Any, responses: list[Completion], verdicts: Float[Tensor, "everyone"]
    ) -> Batch:
        """Gather lengths and completeness; `verdicts` are the verifier's, gathered already.

        Raises:
            DataError: the verifier gave something other than 0 or 1.
        """
        odd = ~((verdicts == 0) | (verdicts == 1))
        if odd.any():
            raise DataError(
                f"the verifier (first reward function) gave {float(verdicts[odd][0])}; it must "
                "give 1 for a correct response and 0 for a wrong one. Put graded rewards after it."
            )
        device = verdicts.device
        lengths = gather(torch.tensor([r.length for r in responses], device=device))
        # A response that never stops reasoning, or never ends, answers nothing.
        complete = gather(torch.tensor([r.complete for r in responses], device=device))
        correct = (verdicts == 1) & complete
        training = trainer.model.training
        group = trainer.num_generations if training else trainer.num_generations_eval
        p = correct.float().view(-1, group).mean(dim=1).repeat_interleave(group)
        start = trainer.accelerator.process_index * len(responses)
        own = slice(start, start + len(responses))
        if training and trainer.state.global_step == 0:
            _check_reasoning(trainer, responses)
        return cls(responses, correct[own], p[own], correct, lengths)


def _check_reasoning(trainer: Any, responses: list[Completion]) -> None:
    """In the first batch at least one response of all processes must end its reasoning."""
    ended = torch.tensor([sum(r.reasoned for r in responses)], device=trainer.accelerator.device)
    if int(gather(ended).sum()) == 0:
        raise DataError(
            f"no response of the first batch holds {trainer.args.think_end!r} within "
            f"max_completion_length = {trainer.args.max_completion_length} tokens: raise the "
            "limit, or choose the prompt template of this model (its reasoning may end otherwise)"
        )


def cutter_of(args: AttnPOConfig, head_set: HeadSet | None, trainer: Any) -> Cutter:
    """How responses are cut: as the settings say, else as the head set was made."""
    stored = dict((head_set.segmenter if head_set else None) or {})
    name = args.segmenter or stored.get("name") or "attnpo"
    if name == "given":
        raise ConfigError(
            "the head set was made on steps that the trace file gave; say how sampled responses "
            "are to be cut (segmenter: line, attnpo, …), or probe again with that segmenter"
        )
    minimum = args.min_chars if args.min_chars is not None else stored.get("min_chars", 80)
    segmenter = Segmenter.parse(name, minimum)
    if args.segmenter is None and stored.get("phrases"):
        segmenter = Segmenter("attnpo", minimum, stored["phrases"])
    return Cutter(
        trainer._tokenizer,
        tuple(trainer.eos_token_ids),
        segmenter,
        "start",  # cut steps tile the text; `overlap` is for spans of any origin
        args.answer or (head_set.answer if head_set else "all"),
        args.think_end,
    )
