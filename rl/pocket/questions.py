"""The pocket reasoner's task: questions, verifier, true labels, shortest responses, prompts.

`pocket[:N][@SEED]` are problems like those of training; `pocket-held-out[:N]` those on which
`rl.pocket.measure` measures. `pocket-long` and `pocket-long-held-out` are those of that level.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache
from typing import Any

from probing.choices import THINK_END
from probing.errors import DataError
from probing.traces.file import Step
from rl.pocket.levels import LEVELS, level_of
from rl.pocket.parse import is_correct, parse_problem, read
from rl.pocket.task import Problem, make_problem, shortest_trace
from rl.pocket.tokens import build_tokenizer
from rl.pocket.traces import MEASURE_SEED, held_out_problems
from rl.tasks.base import Question, QuestionSet, Task

GENERATED, HELD_OUT = 500, 600  # problems, unless the number is given
RESERVED = 2000  # held-out problems that no `pocket` set contains
POCKET_SEED = 3_000_000  # above the seeds of training, rl.pocket.measure and rl.pocket.traces
SPEC = re.compile(
    rf"(?P<level>{'|'.join(LEVELS)})(?P<held_out>-held-out)?(?::(?P<n>\d+))?(?:@(?P<seed>\d+))?"
)
# Words that are whole tokens in its vocabulary and, blank and all, in no other.
POCKET_TOKENS = ("Problem", " \\boxed{", "</think>")


class Pocket(Task):
    """Chains of sums and products modulo 100, in the one language that the pocket models know."""

    name = "pocket"

    def questions(self, spec: str, limit: int | None, seed: int) -> QuestionSet:
        """Distinct problems; those of `pocket` are never held-out ones.

        Raises:
            DataError: not `LEVEL[:N][@SEED]` or `LEVEL-held-out[:N]`, or more than are held out.
        """
        parts = SPEC.fullmatch(spec)
        if parts is None or (parts["held_out"] and parts["seed"]):
            raise DataError(
                f"{spec}: write LEVEL[:N][@SEED] or LEVEL-held-out[:N], LEVEL {' or '.join(LEVELS)}"
            )
        level, held_out = parts["level"], bool(parts["held_out"])
        size = int(parts["n"] or limit or (HELD_OUT if held_out else GENERATED))
        size = min(size, limit or size)
        if held_out and size > RESERVED:
            raise DataError(f"{spec}: {RESERVED} problems are held out, not {size}")
        first = MEASURE_SEED if held_out else POCKET_SEED + int(parts["seed"] or seed)
        problems = (held_out_problems if held_out else _problems)(size, first, level)
        name = level + (parts["held_out"] or "")
        questions = tuple(
            Question(
                f"{name}/{first}/{number}",
                problem.text,
                problem.answer,
                {"hard": problem.hard_operations, "path": len(problem.path)},
            )
            for number, problem in enumerate(problems)
        )
        return QuestionSet(name, questions, self, {"spec": name, "seed": first})

    def correct(self, question: Question, answer: str) -> bool:
        """One box, and in it the right value in two digits."""
        return is_correct(_problem(question.question), THINK_END + answer)

    def label(self, question: Question, response: str) -> list[Step]:
        """The lines of the reasoning: essential, redundant, or None (see `rl.pocket.parse`)."""
        reading = read(_problem(question.question), response)
        return [Step(step.start, step.end, step.label) for step in reading.steps]

    def readable(self, question: Question, response: str) -> bool:
        """Whether each line is a sentence of the task, and the answer follows from them."""
        return not read(_problem(question.question), response).reasons

    def shortest(self, question: Question) -> str:
        """The derivations on the path, right at once, and the answer."""
        return shortest_trace(_problem(question.question)).response

    def speaks(self, tokenizer: Any) -> bool:
        """Whether the task's words are whole tokens of the vocabulary."""
        return set(POCKET_TOKENS) <= set(tokenizer.get_added_vocab())

    def prompt(self, question: str, think_start: str) -> str:
        """The problem, named as one."""
        return f"Problem: {question}\n{think_start}"

    def tokenizer(self) -> Any:
        """That of the pocket reasoner."""
        return build_tokenizer()

    def check(self, question: str) -> None:
        """Refuse what is no chain of definitions."""
        _problem(question)


def _problems(size: int, seed: int, level: str) -> list[Problem]:
    """Distinct problems of a level and a seed, none of them held out."""
    held_out = {problem.text for problem in held_out_problems(RESERVED, MEASURE_SEED, level)}
    rng = random.Random(seed)
    problems: dict[str, Problem] = {}
    while len(problems) < size:
        problem = make_problem(rng, level_of(level).task)
        if problem.text not in held_out:
            problems.setdefault(problem.text, problem)
    return list(problems.values())


@lru_cache(maxsize=4096)
def _problem(text: str) -> Problem:
    return parse_problem(text)
