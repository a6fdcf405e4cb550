"""The task of a kind of chains: sets of problems drawn from seeds, apart from those held out."""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any, ClassVar

from probing.choices import THINK_END
from probing.errors import DataError
from probing.traces.file import Step
from rl.chains.reading import Reading, is_correct
from rl.chains.writing import Solution
from rl.tasks.base import Question, QuestionSet, Task

GENERATED, HELD_OUT = 500, 600  # problems, unless the number is given
RESERVED = 2000  # held-out problems that no other set contains
MEASURE_SEED = 1_000_000  # the first held-out problems
FIRST_SEED = 3_000_000  # of sets: above the seeds of training, of what is measured and of traces


def distinct_problems(
    n: int, seed: int, draw: Callable[[random.Random], Any], without: Collection[str] = ()
) -> list[Any]:
    """n problems of different texts, none of them among `without`."""
    rng, problems = random.Random(seed), dict[str, Any]()
    while len(problems) < n:
        problem = draw(rng)
        if problem.text not in without:
            problems.setdefault(problem.text, problem)
    return list(problems.values())


class Chains(Task):
    """A task of chains, at one or several levels, each a name: `LEVEL[:N][@SEED]`,
    `LEVEL-held-out[:N]`.
    """

    levels: ClassVar[tuple[str, ...]]

    @abstractmethod
    def draw(self, rng: random.Random, level: str) -> Any:
        """A problem: `text`, `answer`, `path`, `query`."""

    @abstractmethod
    def solve(self, problem: Any, rng: random.Random | None, level: str) -> Solution:
        """A trace that is drawn, or without a `rng` the shortest correct one."""

    @abstractmethod
    def read(self, problem: Any, response: str) -> Reading:
        """What a response to a problem says."""

    @abstractmethod
    def parse(self, text: str) -> Any:
        """The problem of its text.

        Raises:
            ValueError: it is none; the message says why.
        """

    def meta(self, problem: Any) -> dict[str, Any]:
        """What a question says of its problem."""
        return {"path": len(problem.path)}

    def questions(self, spec: str, limit: int | None, seed: int) -> QuestionSet:
        """Distinct problems; those of a level alone are never held-out ones.

        Raises:
            DataError: not `LEVEL[:N][@SEED]` or `LEVEL-held-out[:N]`, or more than are held out.
        """
        form = rf"({'|'.join(self.levels)})(-held-out)?(?::(\d+))?(?:@(\d+))?"
        parts = re.fullmatch(form, spec)
        if parts is None or (parts[2] and parts[4]):
            raise DataError(
                f"{spec}: write LEVEL[:N][@SEED] or LEVEL-held-out[:N], LEVEL "
                f"{' or '.join(self.levels)}"
            )
        level, held_out = parts[1], bool(parts[2])
        size = int(parts[3] or limit or (HELD_OUT if held_out else GENERATED))
        size = min(size, limit or size)
        if held_out and size > RESERVED:
            raise DataError(f"{spec}: {RESERVED} problems are held out, not {size}")
        first = MEASURE_SEED if held_out else FIRST_SEED + int(parts[4] or seed)
        reserved = () if held_out else {problem.text for problem in self.held_out(RESERVED, level)}
        problems = distinct_problems(size, first, lambda rng: self.draw(rng, level), reserved)
        name = level + (parts[2] or "")
        questions = tuple(
            Question(f"{name}/{first}/{number}", problem.text, problem.answer, self.meta(problem))
            for number, problem in enumerate(problems)
        )
        return QuestionSet(name, questions, self, {"spec": name, "seed": first})

    def held_out(self, n: int, level: str) -> list[Any]:
        """The first n problems on which a level is measured."""
        return distinct_problems(n, MEASURE_SEED, lambda rng: self.draw(rng, level))

    def correct(self, question: Question, answer: str) -> bool:
        """One box, and in it the right value as the task writes it."""
        return is_correct(self._problem(question), THINK_END + answer)

    def label(self, question: Question, response: str) -> list[Step]:
        """The lines of the reasoning: essential, redundant, or None (see `rl.chains.reading`)."""
        steps = self.read(self._problem(question), response).steps
        return [Step(step.start, step.end, step.label) for step in steps]

    def readable(self, question: Question, response: str) -> bool:
        """Whether each line is a sentence of the task, and the answer follows from them."""
        return not self.read(self._problem(question), response).reasons

    def steps_readable(self, question: Question, response: str) -> bool:
        """Whether each line is a sentence of the task."""
        steps = self.read(self._problem(question), response).steps
        return all(step.kind != "unreadable" for step in steps)

    def shortest(self, question: Question) -> str:
        """The derivations on the path, right at once, and the answer."""
        return self.solve(self._problem(question), None, self.levels[0]).response

    def trace(self, question: Question, seed: int) -> str:
        """A response as training shows it, drawn from question and seed."""
        level = question.id.partition("/")[0].removesuffix("-held-out")
        rng = random.Random(f"{seed} {question.question}")
        return self.solve(self._problem(question), rng, level).response

    def check(self, question: str) -> None:
        """Refuse what is no chain of this task."""
        self.parse(question)

    def _problem(self, question: Question) -> Any:
        return _parsed(self, question.question)


@lru_cache(maxsize=4096)
def _parsed(task: Chains, text: str) -> Any:
    return task.parse(text)
