"""Draw a trace in R1's style line by line, with its exact labels; the sentences are a task's own.

Nothing after a derivation repeats name and value, except a check that corrects it. So a value has
one source in the text, and what the answer looks back at is not a matter of taste.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from probing.choices import THINK_END

Label = Literal["essential", "redundant"]


@dataclass(frozen=True)
class SolutionLine:
    """One line of reasoning, without its newline, and its label (None: left out of rankings)."""

    text: str
    label: Label | None


@dataclass(frozen=True)
class Solution:
    """A problem, the labelled lines of a response, and the values that its recap gives."""

    problem: Any
    lines: tuple[SolutionLine, ...]
    values: dict[str, int]

    @property
    def response(self) -> str:
        """Reasoning, `</think>`, and a recap made of values: a wordy one blunts the heads."""
        reasoning = "".join(f"{line.text}\n" for line in self.lines)
        return reasoning + THINK_END + self.problem.recap(self.values)


@dataclass(frozen=True)
class Chances:
    """How traces are drawn. Probabilities are of one line, given what precedes it.

    Raises:
        ValueError: a probability outside [0, 1].
    """

    check_first_hard: float = 0.90
    check_later_hard: float = 0.20
    # After an easy operation: a first, a second, a third redundant line.
    easy_extra: tuple[float, ...] = (0.88, 0.72, 0.25)
    hard_extra: tuple[float, ...] = (0.45, 0.30)
    opener: float = 0.80
    guess: float = 0.06
    aside: float = 0.25
    closing: float = 0.75

    def __post_init__(self) -> None:
        chances = [self.check_first_hard, self.check_later_hard, *self.easy_extra]
        chances += [*self.hard_extra, self.opener, self.guess, self.aside, self.closing]
        self.check(chances)

    def check(self, chances: Sequence[float]) -> None:
        """Raise ValueError unless each lies in [0, 1]."""
        if not all(0.0 <= chance <= 1.0 for chance in chances):
            raise ValueError(f"every probability of the task must lie in [0, 1]: {self}")


@dataclass
class Writer(ABC):
    """Writes one trace, and keeps the values that the lines have reached.

    The labels: `essential` for the line from which the value of a name on the path finally comes
    (the derivation, or the check that corrects it), right or wrong; None for a check that confirms
    a hard operation, which moves no value but earns its tokens on average; `redundant` for
    everything else, a derivation that a check corrects included.

    A problem has `path`, the definitions that the queried name depends on, first to last.
    """

    rng: random.Random
    problem: Any
    config: Any
    lines: list[SolutionLine] = field(default_factory=list)
    values: dict[str, int] = field(default_factory=dict)
    checks: int = 0

    openers: ClassVar[tuple[str, ...]]
    remarks: ClassVar[tuple[str, ...]]
    closings: ClassVar[tuple[str, ...]]
    first_word: ClassVar[str] = "First,"
    next_words: ClassVar[tuple[str, ...]] = ("Therefore", "Then")

    @abstractmethod
    def asides(self) -> list[Any]:
        """What stands in the problem off the path."""

    @abstractmethod
    def guess(self) -> str:
        """A number without a reason."""

    @abstractmethod
    def is_hard(self, item: Any) -> bool:
        """Whether the operation is one that is often wrong at once."""

    @abstractmethod
    def right(self, item: Any) -> int:
        """What the operation gives, from the values reached."""

    @abstractmethod
    def attempt(self, item: Any) -> int:
        """What the line says at once: right, or a slip."""

    @abstractmethod
    def derivation(self, item: Any, value: int, word: str) -> str:
        """The line that derives a value."""

    @abstractmethod
    def verdict(self, item: Any, had: int, right: int) -> str:
        """The line of a check, which corrects `had` or confirms it."""

    @abstractmethod
    def alternative(self, item: Any) -> str:
        """The operation once more, in another way."""

    @abstractmethod
    def restatement(self, item: Any) -> str:
        """The definition as the problem has it."""

    @abstractmethod
    def aside(self, item: Any) -> str:
        """A detour off the path."""

    def is_ready(self, item: Any) -> bool:
        """Whether a detour can be gone already."""
        return True

    def write(self) -> Solution:
        """The trace."""
        path, asides = self.problem.path, self.asides()
        if self.happens(self.config.opener):
            self.add(self.pick(self.openers, 0.7).format(self.problem.query))
        for item in path:
            if self.happens(self.config.guess):
                self.add(self.guess())
            word = self.first_word if item == path[0] else self.pick(self.next_words, 0.75)
            self.derive(item, word)
            if asides and self.happens(self.config.aside):
                ready = next((each for each in asides if self.is_ready(each)), None)
                if ready is not None:
                    asides.remove(ready)
                    self.add(self.aside(ready))
        if self.happens(self.config.closing):
            self.add(self.pick(self.closings, 0.75))
        return Solution(self.problem, tuple(self.lines), dict(self.values))

    def shortest(self) -> Solution:
        """The shortest correct response in the language of the task: the derivations alone."""
        for item in self.problem.path:
            self.values[item.name] = value = self.right(item)
            word = self.next_words[0] if self.lines else self.first_word
            self.add(self.derivation(item, value, word), "essential")
        return Solution(self.problem, tuple(self.lines), dict(self.values))

    def happens(self, chance: float) -> bool:
        """A draw."""
        return self.rng.random() < chance

    def pick(self, options: tuple[str, ...], first: float) -> str:
        """The first option with a chance of its own, else one of the others: a clear favourite
        is what makes greedy decoding take it."""
        return options[0] if self.happens(first) else self.rng.choice(options[1:])

    def add(self, text: str, label: Label | None = "redundant") -> None:
        """A line."""
        self.lines.append(SolutionLine(text, label))

    def derive(self, item: Any, word: str) -> None:
        """The derivation of a value, and what follows on it."""
        value, place = self.attempt(item), len(self.lines)
        self.values[item.name] = value
        self.add(self.derivation(item, value, word), "essential")
        if not self.is_hard(item):
            self._easy_lines(item, place)
            return
        self.checks += 1
        chance = self.config.check_first_hard if self.checks == 1 else self.config.check_later_hard
        if self.happens(chance):
            self._check(item, place)
        kinds = ["alternative", "restatement"]
        for chance in self.config.hard_extra:
            if not self.happens(chance):
                break
            self._extra(kinds.pop(0) if kinds and self.happens(0.7) else "remark", item)

    def _easy_lines(self, item: Any, place: int) -> None:
        """A first, second and third line, mostly check, alternative, remark in this order."""
        order = ["check", "alternative", "restatement"]
        for chance in self.config.easy_extra[:2]:
            if not self.happens(chance):
                return
            kind = order.pop(0 if self.happens(0.7) else 1)
            if kind == "check":
                self._check(item, place)
            else:
                self._extra(kind, item)
        if self.happens(self.config.easy_extra[2]):
            self._extra("remark", item)

    def _check(self, item: Any, place: int) -> None:
        """A check of the derivation at `place`: the verdict corrects it or confirms it."""
        had, right = self.values[item.name], self.right(item)
        if had == right:
            self.add(self.verdict(item, had, right), None if self.is_hard(item) else "redundant")
            return
        self.add(self.verdict(item, had, right), "essential")
        self.lines[place] = SolutionLine(self.lines[place].text, "redundant")
        self.values[item.name] = right

    def _extra(self, kind: str, item: Any) -> None:
        if kind == "alternative":
            self.add(self.alternative(item))
        elif kind == "restatement":
            self.add(self.restatement(item))
        else:
            self.add(self.pick(self.remarks, 0.5))
