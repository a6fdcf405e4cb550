"""What every intervention works on and with: prepared traces, settings, judge, decoder.

A part of `kfh ablate` is a function of a `Setup` that gives, for each trace of it and in their
order, the list of its outcomes. Parts need not know of files, bars or verifiers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from probing.causetrace import CauseTrace
from probing.errors import ConfigError
from probing.outcomes import Outcome
from probing.scoring import BACKENDS
from probing.tokens import ANSWERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from probing.headset import HeadSet


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedTrace(CauseTrace):
    """A trace as token ids, with what the interventions need to know of it.

    `ids[:context]` is prompt and reasoning, `ids[context:behind]` the end marker,
    `ids[behind:]` the correct answer up to its last counted token. The model answers from
    `ids[:answer]`: `answer` is `behind`, but where the box alone is asked for it is the place
    behind the opened box.
    """

    group: str  # its problem
    prompt_tokens: int
    answer: int
    scores: Float[np.ndarray, "step"]  # by the head set, nothing changed; not a number: no token
    labels: tuple[str | None, ...]  # of the steps: essential, redundant, None
    own_correct: bool = True  # the answer that follows is correct, so its log-probability counts


# judge(trace, ids): whether the ids generated behind `ids[:answer]` (the end token may be the last
# of them) give the right answer.
Judge = Callable[[PreparedTrace, Sequence[int]], bool]


@dataclass(frozen=True)
class InterventionConfig:
    """What is done, checked on creation.

    Args:
        remove: steps part: the numbers of steps to remove.
        draws: random draws of every control (sets of steps; sets of heads).
        modes: heads part: `zero` or `mean`, then `all` (at all positions) or `answer-to-steps`.
        factors: steering part: what the chosen heads' attention to a step is multiplied by.
        answer: which tokens of the correct answer count, see `probing.causetrace`.
        answer_limit: the first so many of them only; 0: all.
        max_answer_tokens: longest greedy answer; 0: none is decoded, log-probabilities alone.
        batch_tokens: tokens in a forward pass, padding included.
        seed: of the random draws.
        backend: what edits heads: `transformers` or `transformer-lens` (slow, a witness).
    """

    remove: tuple[int, ...] = (1, 2, 3)
    draws: int = 5
    modes: tuple[str, ...] = ("zero/all", "mean/all", "zero/answer-to-steps")
    factors: tuple[float, ...] = (0.0, 0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 8.0)
    answer: str = "all"
    answer_limit: int = 0
    max_answer_tokens: int = 64
    batch_tokens: int = 8192
    seed: int = 0
    backend: str = "transformers"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.answer not in ANSWERS:
            raise ConfigError(f"unknown answer {self.answer!r}; choose {', '.join(ANSWERS)}")
        if self.backend not in BACKENDS:
            raise ConfigError(f"unknown backend {self.backend!r}; choose {' or '.join(BACKENDS)}")
        if not self.remove or min(self.remove) < 1 or len(set(self.remove)) < len(self.remove):
            raise ConfigError(f"--remove takes numbers of steps, at least 1, not {self.remove}")
        for name, least in (
            ("draws", 1),
            ("answer_limit", 0),
            ("max_answer_tokens", 0),
            ("batch_tokens", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, is {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        """The settings as they stand in headers."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Setup:
    """What a part is given."""

    model: PreTrainedModel  # in eval mode, on its device
    tokenizer: Any
    heads: HeadSet
    traces: Sequence[PreparedTrace]  # those still to be done
    reference: Sequence[PreparedTrace]  # all of them, done or not: what means are taken over
    config: InterventionConfig
    judge: Judge
    ends: frozenset[int] = frozenset()  # the tokens that end an answer
    advance: Callable[[int], None] = field(default=lambda tokens: None)  # tokens that went through


Part = Callable[[Setup], Iterator[list[Outcome]]]  # one list a trace, in the order of the traces
