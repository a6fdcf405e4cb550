"""Decoding from the pocket reasoner, greedy or sampled, with checks forbidden or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rl.pocket.task import Problem
from rl.pocket.tokens import EOS, vocabulary

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


Forbidden = Literal["none", "all", "easy"]


@dataclass(frozen=True)
class Decoding:
    """How to decode: temperature 0 is greedy; `forbid` names the checks that may not begin.

    Only checks begin with "Wait", so forbidding the token forbids the check: "all" of them, or
    those of "easy" operations (where the last derivation line adds).

    Raises:
        ValueError: a negative temperature, an empty batch, or an unknown kind of check.
    """

    temperature: float = 0.0
    forbid: Forbidden = "none"
    seed: int = 0
    batch: int = 128
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.batch < 1 or self.max_new_tokens < 1:
            raise ValueError(f"temperature must not be negative, sizes must be positive: {self}")
        if self.forbid not in ("none", "all", "easy"):
            raise ValueError(f"forbid must be none, all or easy, not {self.forbid!r}")


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    decoding: Decoding | None = None,
) -> list[str]:
    """The response to each problem, without the end token; one that reached the limit is cut.

    A response is drawn from a stream of its own, of the seed and the problem.
    """
    from probing.models.decode import Draws, Sampling, decode, encode_prompt, row_seed

    decoding = decoding or Decoding()
    settings = Sampling(decoding.temperature, 1.0, decoding.max_new_tokens, decoding.seed)
    change = Guard(decoding.forbid) if decoding.forbid != "none" else None
    ends = frozenset({vocabulary()[EOS]})
    responses: list[str] = []
    for start in range(0, len(problems), decoding.batch):
        prompts = [problem.prompt for problem in problems[start : start + decoding.batch]]
        ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        draws = Draws([row_seed(decoding.seed, prompt, 0) for prompt in prompts])
        new = decode(model, ids, settings, draws, ends, change=change)
        responses += tokenizer.batch_decode(new, skip_special_tokens=True)
    return responses


class Guard:
    """Takes the token that opens a check out of the logits where checks are forbidden.

    Args:
        forbid: all checks, or those of easy operations.
    """

    def __init__(self, forbid: Forbidden) -> None:
        ids = vocabulary()
        self.forbid, self.opens = forbid, ids["Wait"]
        self.plus, self.times, self.gives = ids[" +"], ids[" *"], ids[" gives"]

    def __call__(
        self, logits: Float[Tensor, "row vocabulary"], written: Sequence[list[int]]
    ) -> Float[Tensor, "row vocabulary"]:
        """The logits with the opening token at minus infinity in the rows concerned."""
        rows = [row for row, ids in enumerate(written) if self.forbid == "all" or self.adds(ids)]
        logits[rows, self.opens] = float("-inf")
        return logits

    def adds(self, ids: Sequence[int]) -> bool:
        """Whether the last derivation adds: the operator before the last "gives" is a plus."""
        if self.gives not in ids:
            return False
        end = len(ids) - 1 - ids[::-1].index(self.gives)
        operators = [token for token in ids[:end] if token in (self.plus, self.times)]
        return operators[-1:] == [self.plus]
