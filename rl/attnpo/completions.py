"""Sampled token ids → text, steps and answer tokens; the batch that signals and credit are given.

The ids are decoded once, one by one, so that each knows its characters; no text is tokenised
again, and nothing is searched for after the cut.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.choices import MIN_CHARS, THINK_END
from probing.errors import ConfigError, DataError, ModelError
from probing.headset import HeadSet
from probing.traces.file import Step
from probing.traces.marks import EndMark
from probing.traces.segmenters import Segmenter
from probing.traces.text import FIND_END
from probing.traces.tokens import EncodedTrace, answer_tokens, decode_with_offsets, token_spans
from rl.attnpo.rescale import Rescaling, group_rows, needs_scores

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


def end_mark(
    head_set: HeadSet | None, think_end: str | None = None, think_end_at: str | None = None
) -> EndMark:
    """What ends the reasoning: what is given, else as of the head set's traces.

    Raises:
        ConfigError: a value that is no choice.
    """
    of = head_set
    said = {"think_end": of.think_end, "think_end_at": of.think_end_at} if of else None
    return EndMark.chosen(said, think_end, think_end_at, anew=True)


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
        think_end_at: which one, where there are several: `first` or `last`.

    Raises:
        ModelError: the tokenizer is a slow one, which knows no offsets.
    """

    tokenizer: PreTrainedTokenizerBase
    end_ids: Collection[int]
    segmenter: Segmenter
    rule: str = "start"
    answer: str = "all"
    think_end: str = THINK_END
    think_end_at: str = "first"

    def __post_init__(self) -> None:
        """Refuse a tokenizer that cannot give offsets."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(self.tokenizer).__name__} is a slow tokenizer without offsets; load the "
                "fast one (use_fast=True), or a model that has one"
            )

    @classmethod
    def like(
        cls,
        head_set: HeadSet | None,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: Collection[int],
        *,
        segmenter: str | None = None,
        min_chars: int | None = None,
        openings: str | None = None,
        answer: str | None = None,
        think_end: str | None = None,
        think_end_at: str | None = None,
    ) -> Cutter:
        """Cuts as the head set was made (or as the paper does), but for what is given.

        Raises:
            ConfigError: the head set was made on steps of the trace file, and no segmenter is
                given; or there is no such segmenter, or it has no such setting.
        """
        stored = dict((head_set.segmenter if head_set else None) or {})
        name = segmenter or stored.get("name") or "attnpo"
        if name == "given":
            raise ConfigError(
                "the head set was made on steps that the trace file gave; say how sampled "
                "responses are to be cut (segmenter: line, attnpo, …), or probe again with that "
                "segmenter"
            )
        minimum = min_chars if min_chars is not None else stored.get("min_chars", MIN_CHARS)
        if segmenter is None and stored.get("phrases"):
            name = stored["phrases"]
        if openings is None:  # a segmenter of another name has phrases of its own, or none
            openings = stored.get("openings", "strict") if segmenter is None else "strict"
        cuts = Segmenter.parse(name, minimum, openings)
        mark = end_mark(head_set, think_end, think_end_at)
        which = answer or (head_set.whole_answer if head_set else "all")
        # Cut steps tile the text, hence the rule `start`; `overlap` is for spans of any origin.
        return cls(tokenizer, tuple(end_ids), cuts, "start", which, mark.text, mark.at)

    def __call__(self, ids: Sequence[int]) -> Completion:
        """Returns one response, cut; `ids` may go on after the end token."""
        ends = np.flatnonzero(np.isin(ids, list(self.end_ids)))
        finished = len(ends) > 0
        sampled = np.asarray(ids[: ends[0]] if finished else ids, dtype=np.int64)
        text, offsets = decode_with_offsets(self.tokenizer, sampled)
        end = FIND_END[self.think_end_at](text, self.think_end)
        steps = tuple(self.segmenter.cut_reasoning(text[:end])) if end >= 0 else ()
        answer = np.zeros(len(sampled), dtype=bool)
        if end >= 0:
            answer = answer_tokens(offsets, text, end + len(self.think_end), self.answer)
        spans = token_spans(offsets, [(step.start, step.end) for step in steps], self.rule)
        length = len(sampled) + int(finished)
        return Completion(sampled, length, finished, text, steps, spans, answer, end >= 0)

    def check_room(self, limit: int) -> None:
        """Raise ConfigError where `limit` tokens hold no end of the reasoning and an answer."""
        room = len(self.tokenizer(self.think_end, add_special_tokens=False)["input_ids"]) + 2
        if limit < room:
            raise ConfigError(
                f"max_completion_length = {limit} has no room for {self.think_end!r} and an "
                f"answer ({room} tokens at least)"
            )


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Which responses are correct, and their lengths; of all processes, group after group."""

    correct: Bool[Tensor, "response"]
    lengths: Int[Tensor, "response"]  # tokens, the end token among them
    p: Float[Tensor, "response"]  # share of correct responses of the group

    @classmethod
    def of(
        cls,
        verdicts: Float[Tensor, "response"],
        complete: Bool[Tensor, "response"],
        lengths: Int[Tensor, "response"],
        groups: Int[Tensor, "response"],
    ) -> Outcomes:
        """A response is correct where the verifier says so and the response is complete: one that
        never stops reasoning, or never ends, answers nothing.

        Args:
            verdicts: the verifier's.
            complete: see `Completion.complete`.
            lengths: tokens, the end token among them.
            groups: a number for each prompt.

        Raises:
            DataError: the verifier gave something other than 0 or 1.
        """
        check_verdicts(verdicts)
        correct = (verdicts == 1) & complete
        p = torch.empty(len(verdicts), device=verdicts.device)
        for rows in group_rows(groups):
            p[rows] = correct[rows].float().mean()
        return cls(correct, lengths, p)

    @classmethod
    def gathered(
        cls, responses: Sequence[Completion], verdicts: Float[Tensor, "response"], group: int
    ) -> Outcomes:
        """Gathers lengths and completeness of all processes; see `of`.

        Args:
            responses: of this process.
            verdicts: the verifier's, of all processes.
            group: number of responses to one prompt, which stand together.

        Raises:
            DataError: the verifier gave something other than 0 or 1.
        """
        device = verdicts.device
        lengths = gather(torch.tensor([r.length for r in responses], device=device))
        complete = gather(torch.tensor([r.complete for r in responses], device=device))
        groups = torch.arange(len(verdicts), device=device) // group
        return cls.of(verdicts, complete, lengths, groups)

    @property
    def figures(self) -> dict[str, float]:
        """Means over responses; `tokens_correct` over correct ones, NaN where there is none."""
        correct, lengths = self.correct, self.lengths.float()
        return {
            "accuracy": float(correct.float().mean()),
            "tokens": float(lengths.mean()),
            "tokens_correct": float(lengths[correct].mean()),
        }

    def part(self, process: int, count: int) -> Outcomes:
        """Those of one process, which has `count` responses as all others do."""
        place = slice(process * count, (process + 1) * count)
        return Outcomes(self.correct[place], self.lengths[place], self.p[place])


@dataclass(frozen=True, eq=False)
class Batch:
    """The responses of this process in one training step: what signals and credit are given."""

    prompts: Sequence[Sequence[int]]  # token ids of each response's q
    responses: Sequence[Completion]
    mask: Bool[Tensor, "response token"]  # sampled tokens, as TRL pads responses on the right
    advantage: Float[Tensor, "response"]  # A
    correct: Bool[Tensor, "response"]
    p: Float[Tensor, "response"]  # share of correct responses of the group
    needs_scores: Bool[Tensor, "response"]  # others keep γ = 1 whatever their scores
    labels: Sequence[Sequence[Step]] | None = None  # true labels of the steps, where known

    @classmethod
    def of(
        cls,
        output: Mapping[str, Tensor],
        responses: Sequence[Completion],
        outcomes: Outcomes,
        labels: Sequence[Sequence[Step]] | None,
        rescaling: Rescaling,
        step: int,
    ) -> Batch:
        """From TRL's batch: `prompt_ids`, `prompt_mask`, `completion_mask`, `advantages`.

        Args:
            output: of N responses; the advantages are (response,).
            responses: these, cut.
            outcomes: of the same responses.
            labels: of their steps.
            rescaling, step: see `made`.

        Raises:
            DataError: tokens of an environment stand among those that were sampled.
        """
        if "tool_mask" in output:
            raise DataError(
                "rollout_func gave env_mask: a response would be cut, and its length taken, at "
                "the end of its first turn"
            )
        pairs = zip(output["prompt_ids"], output["prompt_mask"].bool(), strict=True)
        prompts = [ids[mask].tolist() for ids, mask in pairs]
        mask, advantage = output["completion_mask"].bool(), output["advantages"]
        return cls.made(
            prompts, responses, mask, advantage, outcomes, rescaling, step, labels=labels
        )

    @classmethod
    def made(
        cls,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Completion],
        mask: Bool[Tensor, "response token"],
        advantage: Float[Tensor, "response"],
        outcomes: Outcomes,
        rescaling: Rescaling,
        step: int,
        *,
        labels: Sequence[Sequence[Step]] | None = None,
    ) -> Batch:
        """From what any loop has.

        Args:
            prompts: token ids.
            responses: the sampled ids, cut by a `Cutter`.
            mask: sampled tokens, the end token among them; its width is the advantages'.
            advantage: A.
            outcomes: of the same responses.
            rescaling, step: decide which responses need scores (`rl.attnpo.rescale.needs_scores`).
            labels: true ones of the steps, where known.
        """
        steps = torch.tensor([len(each.spans) for each in responses], device=advantage.device)
        correct, p = outcomes.correct, outcomes.p
        needed = needs_scores(advantage, correct, p, steps, step, rescaling)
        return cls(prompts, responses, mask, advantage, correct, p, needed, labels)

    @property
    def answer_tokens(self) -> list[int]:
        """|F| of each response."""
        return [int(response.answer.sum()) for response in self.responses]

    @property
    def total_tokens(self) -> list[int]:
        """|q ⊕ o| of each response, without its end token."""
        pairs = zip(self.prompts, self.responses, strict=True)
        return [len(prompt) + len(response.ids) for prompt, response in pairs]


def encoded(row: int, prompt: Sequence[int], response: Completion) -> EncodedTrace:
    """A sampled response on its prompt as the batcher of traces takes it; its id is its row."""
    before = len(prompt)
    answer = np.concatenate([np.zeros(before, dtype=bool), response.answer])
    ids = np.concatenate([np.asarray(prompt, dtype=np.int64), response.ids])
    return EncodedTrace(str(row), ids, before, response.spans + before, answer, sampled=True)


def check_verdicts(verdicts: Float[Tensor, "response"]) -> None:
    """Refuse what no verifier gives.

    Raises:
        DataError: something other than 0 or 1.
    """
    odd = ~((verdicts == 0) | (verdicts == 1))
    if odd.any():
        raise DataError(
            f"the verifier (first reward function) gave {float(verdicts[odd][0])}; it must "
            "give 1 for a correct response and 0 for a wrong one. Put graded rewards after it."
        )


def whole_texts(
    completions: list[Any], responses: Sequence[Completion], tokenizer: Any
) -> list[Any]:
    """What reward functions are given: TRL's completions, with the text as it was sampled.

    TRL leaves special tokens out of it, which in some tokenizers are `</think>`. A message that
    the tokenizer parsed stays as it is: its reasoning stands beside its content.

    Args:
        completions: texts, or lists of messages, the last of them the response.
        responses: the same, cut.
        tokenizer: of the policy.
    """
    texts = [response.text for response in responses]
    if isinstance(completions[0], str):
        return texts
    if any(getattr(tokenizer, f"response_{part}", None) for part in ("template", "schema")):
        return completions
    pairs = zip(completions, texts, strict=True)
    return [[*before, {**message, "content": text}] for (*before, message), text in pairs]


def check_reasoning(
    responses: Sequence[Completion], device: torch.device, think_end: str, limit: int
) -> None:
    """In the first batch at least one response of all processes must end its reasoning.

    Raises:
        DataError: none does.
    """
    ended = torch.tensor([any(response.reasoned for response in responses)], device=device)
    if not gather(ended).any():
        raise DataError(
            f"no response of the first batch holds {think_end!r} within "
            f"max_completion_length = {limit} tokens: raise the limit, or choose the prompt "
            "template of this model (its reasoning may end otherwise)"
        )
