"""Problems and R1-like reasoning traces whose essential and redundant steps are known exactly.

A problem is a chain of definitions modulo 100, two digits a value, and a queried variable:

    Problem: n = 47 + 5 ; k = 31 * 8 ; t = n * 9 ; t ?

`+` is easy. `*` is hard: written down at once it often loses its carry, and a check that works
digit by digit mends that. Definitions off the path (k) use constants only.

How a trace is drawn from its sentences: `rl.chains.writing`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rl.chains.writing import Chances, Solution, Writer

Operator = Literal["+", "*"]

NAMES = tuple("bcdfghjkmnprstvw")
HARD_FACTORS = (3, 4, 6, 7, 8, 9)
MODULUS = 100

OPENERS = ("Okay, so I need {}.", "Alright, I need to find {}.")
GUESS = "Hmm, maybe {:02d}? No, that is only a guess."
RESTATEMENT = "Hmm, it is {} {} {} as I read it."
ALTERNATIVE = "Alternatively, {} {} {:02d}, the same."
REMARKS = ("However, it is fine.", "Hold on, fine.", "Right? I think so.")
CLOSINGS = (
    "Let me double-check, every step looks right.",
    "Just to confirm, all fine.",
)
FIRST_WORD, NEXT_WORDS, ASIDE_WORD = "First,", ("Therefore", "Then"), "Similarly,"


@dataclass(frozen=True)
class Definition:
    """`name = left operator right`; left is a name or a two-digit constant."""

    name: str
    left: str
    operator: Operator
    right: int

    @property
    def is_hard(self) -> bool:
        """Whether the operation is one that the model often gets wrong at once."""
        return self.operator == "*"

    def __str__(self) -> str:
        return f"{self.name} = {self.left} {self.operator} {self.right}"


@dataclass(frozen=True)
class Problem:
    """Definitions in the order of the text, and the variable that is asked for.

    Raises:
        ValueError: a name is defined twice, or used before it is defined, or not defined at all.
    """

    definitions: tuple[Definition, ...]
    query: str

    def __post_init__(self) -> None:
        known: set[str] = set()
        for definition in self.definitions:
            if definition.name in known:
                raise ValueError(f"`{definition.name}` is defined twice in `{self.text}`")
            if not definition.left.isdigit() and definition.left not in known:
                raise ValueError(f"`{definition}` uses a name that no earlier definition gives")
            known.add(definition.name)
        if self.query not in known:
            raise ValueError(f"`{self.query}` is asked for but not defined in `{self.text}`")

    @property
    def text(self) -> str:
        """The problem in one line, as the model reads it."""
        return " ; ".join([*map(str, self.definitions), f"{self.query} ?"])

    @property
    def prompt(self) -> str:
        """The exact text given to the model. Its first word is the same in every prompt, so
        that attention that looks at nothing in particular can rest there."""
        return f"Problem: {self.text}\n<think>\n"

    @property
    def path(self) -> tuple[Definition, ...]:
        """The definitions that the queried variable depends on, first to last."""
        by_name = {definition.name: definition for definition in self.definitions}
        chain = [by_name[self.query]]
        while not chain[-1].left.isdigit():
            chain.append(by_name[chain[-1].left])
        return tuple(reversed(chain))

    @property
    def hard_operations(self) -> int:
        """How many operations on the path are hard: the level of difficulty."""
        return sum(definition.is_hard for definition in self.path)

    @property
    def values(self) -> dict[str, int]:
        """The right value of every variable."""
        values: dict[str, int] = {}
        for item in self.definitions:
            left = int(item.left) if item.left.isdigit() else values[item.left]
            values[item.name] = apply(item.operator, left, item.right)
        return values

    @property
    def answer(self) -> str:
        """The right value of the queried variable, in two digits."""
        return f"{self.values[self.query]:02d}"

    def recap(self, values: Mapping[str, int]) -> str:
        """The answer after `</think>`: each value on the path, then the queried one in a box."""
        parts = [f" {item.name} {values[item.name]:02d}" for item in self.path]
        return "".join(parts) + f" \\boxed{{{values[self.query]:02d}}}"


@dataclass(frozen=True)
class TaskConfig(Chances):
    """How problems and traces are drawn.

    Raises:
        ValueError: a probability outside [0, 1] or an impossible number of definitions.
    """

    path_lengths: tuple[int, ...] = (2, 3, 4)
    distractors: tuple[int, ...] = (1, 2)
    hard: float = 0.5
    max_hard: int = 3
    # Chance that a direct `*` loses its carry, by the carry.
    lost_carry: tuple[float, ...] = (0.0, 0.12, 0.25, 0.40, 0.55, 0.65, 0.75, 0.80, 0.85)
    easy_error: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check([self.hard, *self.lost_carry, self.easy_error])
        if len(self.lost_carry) != 9:
            raise ValueError(f"lost_carry needs a chance for each carry 0 to 8: {self.lost_carry}")
        if not self.path_lengths or min(self.path_lengths) < 1 or min(self.distractors) < 0:
            raise ValueError("a path needs a definition, and distractors cannot be negative")
        if max(self.path_lengths) + max(self.distractors) > len(NAMES):
            raise ValueError(f"more definitions than the {len(NAMES)} names")


def apply(operator: Operator, left: int, right: int) -> int:
    """The right result of one operation, modulo 100."""
    return (left + right if operator == "+" else left * right) % MODULUS


def shortest_trace(problem: Problem) -> Solution:
    """The shortest correct response in the language of the task: the path's derivations alone."""
    return _Writer(random.Random(0), problem, TaskConfig()).shortest()


def derivation(item: Definition, value: int, word: str) -> str:
    """The line that derives a value; operands are not restated, so a value has one source."""
    return f"{word} {item.left} {item.operator} {item.right} gives {item.name} = {value:02d}."


def working(item: Definition, left: int) -> str:
    """What a check writes down before its verdict: the operation digit by digit."""
    tens, units = divmod(left, 10)
    if item.is_hard:
        low, high = units * item.right, tens * item.right
        return f"Wait, {low:02d} {high:02d} {high + low // 10:02d}"
    low = units + item.right
    return f"Wait, check: {units} + {item.right} = {low:02d}, {tens} + {low // 10} = " + (
        f"{(tens + low // 10) % 10}"
    )


def make_problem(rng: random.Random, config: TaskConfig | None = None) -> Problem:
    """Draw a problem. Its first definition is on the path; the others keep a random order."""
    config = config or TaskConfig()
    length, extra = rng.choice(config.path_lengths), rng.choice(config.distractors)
    names = rng.sample(NAMES, length + extra)
    hard = [rng.random() < config.hard for _ in range(length)]
    for index in rng.sample(range(length), length):
        if sum(hard) > config.max_hard:
            hard[index] = False
    path: list[Definition] = []
    for name, is_hard in zip(names, hard, strict=False):
        path.append(_definition(rng, name, path[-1].name if path else None, is_hard))
    asides = [_definition(rng, name, None, rng.random() < config.hard) for name in names[length:]]
    slots = sorted(rng.sample(range(1, length + extra), extra))
    merged: list[Definition] = list(path)
    for slot, aside in zip(slots, asides, strict=True):
        merged.insert(slot, aside)
    return Problem(tuple(merged), path[-1].name)


def _definition(rng: random.Random, name: str, left: str | None, hard: bool) -> Definition:
    left = left or f"{rng.randrange(MODULUS):02d}"
    if hard:
        return Definition(name, left, "*", rng.choice(HARD_FACTORS))
    return Definition(name, left, "+", rng.randint(1, 9))


def make_trace(rng: random.Random, problem: Problem, config: TaskConfig | None = None) -> Solution:
    """Draw an R1-like trace of a problem, with its exact labels (`rl.chains.writing.Writer`)."""
    return _Writer(rng, problem, config or TaskConfig()).write()


class _Writer(Writer):
    openers, remarks, closings = OPENERS, REMARKS, CLOSINGS
    first_word, next_words = FIRST_WORD, NEXT_WORDS

    def asides(self) -> list[Definition]:
        return [item for item in self.problem.definitions if item not in self.problem.path]

    def guess(self) -> str:
        return GUESS.format(self.rng.randrange(MODULUS))

    def is_hard(self, item: Definition) -> bool:
        return item.is_hard

    def left(self, item: Definition) -> int:
        return int(item.left) if item.left.isdigit() else self.values[item.left]

    def right(self, item: Definition) -> int:
        return apply(item.operator, self.left(item), item.right)

    def attempt(self, item: Definition) -> int:
        """Right, or with the tens digit that a slip gives."""
        carry, right = (self.left(item) % 10) * item.right // 10, self.right(item)
        if item.is_hard and self.happens(self.config.lost_carry[carry]):
            return (right - 10 * carry) % MODULUS
        if not item.is_hard and self.happens(self.config.easy_error):
            return (right + 10) % MODULUS
        return right

    def derivation(self, item: Definition, value: int, word: str) -> str:
        return derivation(item, value, word)

    def verdict(self, item: Definition, had: int, right: int) -> str:
        said = "ok" if had == right else f"so {item.name} = {right:02d}"
        return f"{working(item, self.left(item))}, had {had:02d}, {said}."

    def alternative(self, item: Definition) -> str:
        return ALTERNATIVE.format(item.right, item.operator, self.left(item))

    def restatement(self, item: Definition) -> str:
        return RESTATEMENT.format(item.left, item.operator, item.right)

    def aside(self, item: Definition) -> str:
        return derivation(item, self.attempt(item), ASIDE_WORD)
