"""The pocket reasoner's task: questions, verifier, true labels, shortest responses, prompts.

`pocket[:N][@SEED]` are problems like those of training; `pocket-held-out[:N]` those on which
`rl.pocket.measure` measures. `pocket-long` and `pocket-long-held-out` are those of that level.
"""

from __future__ import annotations

import random
from typing import Any

from rl.chains.questions import Chains
from rl.chains.reading import Reading
from rl.chains.writing import Solution
from rl.pocket.levels import LEVELS, level_of
from rl.pocket.parse import parse_problem, read
from rl.pocket.task import Problem, make_problem, make_trace, shortest_trace
from rl.pocket.tokens import build_tokenizer

# Words that are whole tokens in its vocabulary and, blank and all, in no other.
POCKET_TOKENS = ("Problem", " \\boxed{", "</think>")


class Pocket(Chains):
    """Chains of sums and products modulo 100, in the one language that the pocket models know."""

    name = "pocket"
    levels = tuple(LEVELS)

    def draw(self, rng: random.Random, level: str) -> Problem:
        """A problem of a level."""
        return make_problem(rng, level_of(level).task)

    def solve(self, problem: Problem, rng: random.Random | None, level: str) -> Solution:
        """A trace of a level, or the shortest."""
        if rng is None:
            return shortest_trace(problem)
        return make_trace(rng, problem, level_of(level).task)

    def read(self, problem: Problem, response: str) -> Reading:
        """What a response says."""
        return read(problem, response)

    def parse(self, text: str) -> Problem:
        """The problem of its text."""
        return parse_problem(text)

    def meta(self, problem: Problem) -> dict[str, Any]:
        """Hard operations, and length of the path."""
        return {"hard": problem.hard_operations, "path": len(problem.path)}

    def speaks(self, tokenizer: Any) -> bool:
        """Whether the task's words are whole tokens of the vocabulary."""
        return set(POCKET_TOKENS) <= set(tokenizer.get_added_vocab())

    def prompt(self, question: str, think_start: str) -> str:
        """The problem, named as one."""
        return f"Problem: {question}\n{think_start}"

    def tokenizer(self) -> Any:
        """That of the pocket reasoner."""
        return build_tokenizer()
