"""The task in words: `words[:N][@SEED]`, and `words-held-out[:N]` for what is measured."""

from __future__ import annotations

import random

from rl.chains.questions import Chains
from rl.chains.reading import Reading
from rl.chains.writing import Solution
from rl.tasks.prompts import MATHS_INSTRUCTION
from rl.words.parse import parse_problem, read
from rl.words.task import Problem, make_problem, make_trace, shortest_trace


class Words(Chains):
    """Chains of "Ana has 3 more coins than Ben", for any model that reads English."""

    name = "words"
    instruction = MATHS_INSTRUCTION
    levels = ("words",)

    def draw(self, rng: random.Random, level: str) -> Problem:
        """A problem."""
        return make_problem(rng)

    def solve(self, problem: Problem, rng: random.Random | None, level: str) -> Solution:
        """A trace, or the shortest."""
        return make_trace(rng, problem) if rng else shortest_trace(problem)

    def read(self, problem: Problem, response: str) -> Reading:
        """What a response says."""
        return read(problem, response)

    def parse(self, text: str) -> Problem:
        """The problem of its text."""
        return parse_problem(text)
