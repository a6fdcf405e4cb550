"""Problems and R1-like reasoning traces whose essential and redundant steps are known exactly.

A problem is a chain of definitions modulo 100, two digits a value, and a queried variable:

    Problem: n = 47 + 5 ; k = 31 * 8 ; t = n * 9 ; t ?

`+` is easy. `*` is hard: written down at once it often loses its carry, and a check that works
digit by digit mends that. Definitions off the path (k) use constants only.

Nothing after a derivation repeats `name = value`, except a check that corrects it. So a value has
one source in the text, and what the answer looks back at is not a matter of taste.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

Label = Literal["essential", "redundant"]
Operator = Literal["+", "*"]

NAMES = tuple("bcdfghjkmnprstvw")
HARD_FACTORS = (3, 4, 6, 7, 8, 9)
MODULUS = 100
THINK_END = "</think>"

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


@dataclass(frozen=True)
class SolutionLine:
    """One line of reasoning, without its newline, and its label (None: left out of rankings)."""

    text: str
    label: Label | None


@dataclass(frozen=True)
class Solution:
    """A problem, the labelled lines of a response, and the values that its recap gives."""

    problem: Problem
    lines: tuple[SolutionLine, ...]
    values: dict[str, int]

    @property
    def response(self) -> str:
        """Reasoning, `</think>`, and a recap made of values: a wordy one blunts the heads."""
        reasoning = "".join(f"{line.text}\n" for line in self.lines)
        return reasoning + THINK_END + recap(self.problem, self.values)


@dataclass(frozen=True)
class TaskConfig:
    """How problems and traces are drawn. Probabilities are of one line, given what precedes it.

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
        chances = [self.hard, *self.lost_carry, self.easy_error, self.check_first_hard]
        chances += [self.check_later_hard, *self.easy_extra, *self.hard_extra]
        chances += [self.opener, self.guess, self.aside, self.closing]
        if not all(0.0 <= chance <= 1.0 for chance in chances):
            raise ValueError(f"every probability of the task must lie in [0, 1]: {self}")
        if len(self.lost_carry) != 9:
            raise ValueError(f"lost_carry needs a chance for each carry 0 to 8: {self.lost_carry}")
        if not self.path_lengths or min(self.path_lengths) < 1 or min(self.distractors) < 0:
            raise ValueError("a path needs a definition, and distractors cannot be negative")
        if max(self.path_lengths) + max(self.distractors) > len(NAMES):
            raise ValueError(f"more definitions than the {len(NAMES)} names")


def apply(operator: Operator, left: int, right: int) -> int:
    """The right result of one operation, modulo 100."""
    return (left + right if operator == "+" else left * right) % MODULUS


def recap(problem: Problem, values: dict[str, int]) -> str:
    """The answer after `</think>`: each value on the path, then the queried one in a box."""
    parts = [f" {item.name} {values[item.name]:02d}" for item in problem.path]
    return "".join(parts) + f" \\boxed{{{values[problem.query]:02d}}}"


def shortest_trace(problem: Problem) -> Solution:
    """The shortest correct response in the language of the task: the path's derivations alone."""
    values = problem.values
    lines = [
        SolutionLine(derivation(item, values[item.name], opening_word(problem, item)), "essential")
        for item in problem.path
    ]
    return Solution(problem, tuple(lines), values)


def opening_word(problem: Problem, item: Definition) -> str:
    """The word that opens a derivation where no chance is involved."""
    return FIRST_WORD if item == problem.path[0] else NEXT_WORDS[0]


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
    """Draw an R1-like trace of a problem, with its exact labels.

    The labels: `essential` for the line from which the value of a variable on the path finally
    comes (the derivation, or the check that corrects it), right or wrong; None for a check that
    confirms a hard operation, which moves no value but earns its tokens on average; `redundant`
    for everything else, a derivation that a check corrects included.
    """
    return _Writer(rng, problem, config or TaskConfig()).write()


@dataclass
class _Writer:
    """Writes one trace line by line, and keeps the values that the lines have reached."""

    rng: random.Random
    problem: Problem
    config: TaskConfig
    lines: list[SolutionLine] = field(default_factory=list)
    values: dict[str, int] = field(default_factory=dict)
    checks: int = 0

    def write(self) -> Solution:
        path = self.problem.path
        asides = [item for item in self.problem.definitions if item not in path]
        if self._happens(self.config.opener):
            self._add(self._pick(OPENERS, 0.7).format(self.problem.query))
        for item in path:
            if self._happens(self.config.guess):
                self._add(GUESS.format(self.rng.randrange(MODULUS)))
            word = FIRST_WORD if item == path[0] else self._pick(NEXT_WORDS, 0.75)
            self._derive(item, word)
            if asides and self._happens(self.config.aside):
                self._aside(asides.pop(0))
        if self._happens(self.config.closing):
            self._add(self._pick(CLOSINGS, 0.75))
        return Solution(self.problem, tuple(self.lines), dict(self.values))

    def _happens(self, chance: float) -> bool:
        return self.rng.random() < chance

    def _pick(self, options: tuple[str, ...], first: float) -> str:
        """The first option with a chance of its own, else one of the others: a clear favourite
        is what makes greedy decoding take it."""
        return options[0] if self._happens(first) else self.rng.choice(options[1:])

    def _add(self, text: str, label: Label | None = "redundant") -> None:
        self.lines.append(SolutionLine(text, label))

    def _left(self, item: Definition) -> int:
        return int(item.left) if item.left.isdigit() else self.values[item.left]

    def _attempt(self, item: Definition) -> int:
        """What the line says at once: right, or with the tens digit that a slip gives."""
        left = self._left(item)
        right = apply(item.operator, left, item.right)
        carry = (left % 10) * item.right // 10
        if item.is_hard and self._happens(self.config.lost_carry[carry]):
            return (right - 10 * carry) % MODULUS
        if not item.is_hard and self._happens(self.config.easy_error):
            return (right + 10) % MODULUS
        return right

    def _derive(self, item: Definition, word: str) -> None:
        left, value = self._left(item), self._attempt(item)
        self.values[item.name] = value
        place = len(self.lines)
        self._add(derivation(item, value, word), "essential")
        self._check_or_pass(item, left, value, place)

    def _check_or_pass(self, item: Definition, left: int, value: int, place: int) -> None:
        if not item.is_hard:
            self._easy_lines(item, left, place)
            return
        self.checks += 1
        chance = self.config.check_first_hard if self.checks == 1 else self.config.check_later_hard
        if self._happens(chance):
            self._check(item, left, place)
        kinds = ["alternative", "restatement"]
        for chance in self.config.hard_extra:
            if not self._happens(chance):
                break
            self._extra(kinds.pop(0) if kinds and self._happens(0.7) else "remark", item, left)

    def _easy_lines(self, item: Definition, left: int, place: int) -> None:
        """A first, second and third line, mostly check, alternative, remark in this order."""
        order = ["check", "alternative", "restatement"]
        for chance in self.config.easy_extra[:2]:
            if not self._happens(chance):
                return
            kind = order.pop(0 if self._happens(0.7) else 1)
            if kind == "check":
                self._check(item, left, place)
            else:
                self._extra(kind, item, left)
        if self._happens(self.config.easy_extra[2]):
            self._extra("remark", item, left)

    def _check(self, item: Definition, left: int, place: int) -> None:
        """A check of the derivation at `place`: the verdict corrects it or confirms it."""
        had, right = self.values[item.name], apply(item.operator, left, item.right)
        start = f"{working(item, left)}, had {had:02d}, "
        if had == right:
            self._add(f"{start}ok.", None if item.is_hard else "redundant")
            return
        self._add(f"{start}so {item.name} = {right:02d}.", "essential")
        self.lines[place] = SolutionLine(self.lines[place].text, "redundant")
        self.values[item.name] = right

    def _extra(self, kind: str, item: Definition, left: int) -> None:
        if kind == "alternative":
            self._add(ALTERNATIVE.format(item.right, item.operator, left))
        elif kind == "restatement":
            self._add(RESTATEMENT.format(item.left, item.operator, item.right))
        else:
            self._add(self._pick(REMARKS, 0.5))

    def _aside(self, item: Definition) -> None:
        value = self._attempt(item)
        self._add(derivation(item, value, ASIDE_WORD))
