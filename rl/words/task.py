"""Problems in words, and R1-like traces whose essential and redundant steps are known exactly.

    Ben has 4 coins. Mia has 6 coins. Ana has 3 more coins than Ben. Leo has 5 more coins than Ana.
    How many coins does Leo have?

To find who counts from whom is most of it; numbers are small and only added. Some count from others
and nobody asks for them: a trace that finds their values, too, has steps that look like essential
ones, in words and in length, and are redundant. A sum that carries is hard: said at once it is
often one too small, as if the first number were counted, too, and a check mends that. The others
never slip, and their checks are redundant.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from rl.chains.writing import Chances, Solution, Writer

_NAMES = "Ada Amy Ana Ben Bob Dan Eva Ian Jack Joe Kim Leo Lily Max Mia Nina Sam Tom"
NAMES = tuple(_NAMES.split())
THINGS = ("coins", "cards", "books", "shells", "pens", "stamps")
# What is given, what is said of two, what is asked.
THEMES = (
    *(
        tuple(
            sentence.replace("THINGS", things)
            for sentence in (
                "{} has {} THINGS.",
                "{} has {} more THINGS than {}.",
                "How many THINGS does {} have?",
            )
        )
        for things in THINGS
    ),
    ("{} is {} years old.", "{} is {} years older than {}.", "How old is {}?"),
    ("{} lives on floor {}.", "{} lives {} floors above {}.", "On which floor does {} live?"),
    ("{} sits in row {}.", "{} sits {} rows behind {}.", "In which row does {} sit?"),
)
LEAST, MOST = 2, 9  # of the numbers in a problem

# It follows the words of the problem; the value stands behind its name, as in the recap.
DERIVATION = "{} {} has {} more than {}'s {}, so {} {}."
CHECK = "Wait, {} plus {} is {}, "
CONFIRMED, CORRECTED = "which is what I had there.", "not {}, so {} {}."
# As long as the lines that count: length shall not tell which is which.
OPENERS = (
    "Okay, so I need to find {}, and for that I go from name to name.",
    "Alright, I have to find {}, so let me see who counts from whom.",
)
GUESS = "Hmm, maybe {}? That is only a guess, so let me work it out."
RESTATEMENT = "Hmm, it says {} more than {}, and that is what I took for it."
ALTERNATIVE = "Alternatively, I count {} on from {}, and it comes out just the same."
REMARKS = (
    "However, let me look at that once more, and it looks fine to me as it is.",
    "Hold on, is that what was said? Yes, that is just what was said above.",
    "Right? I think so, since nothing in the problem speaks against it so far.",
)
CLOSINGS = (
    "Let me double-check, every step above looks right, and nothing has been left out.",
    "Just to confirm, all of it fits what the problem says, from the first name on.",
)
ASIDE = "Similarly, {} counts {} at the start, but nobody asked for that one."
FIRST_WORD, NEXT_WORDS = "First,", ("Then", "Therefore")


def is_hard(left: int, right: int) -> bool:
    """Whether a sum carries.

    Example:
        >>> is_hard(14, 5), is_hard(14, 6)
        (False, True)
    """
    return left % 10 + right >= 10


@dataclass(frozen=True)
class Sentence:
    """What a problem says of a name: `right` more than `left`, or `right` alone."""

    name: str
    left: str | None
    right: int


@dataclass(frozen=True)
class Problem:
    """Sentences in the order of the text, and the name that is asked for.

    Raises:
        ValueError: a name stands twice, is counted from before it is known, or is asked for though
            nothing needs to be found.
    """

    theme: int
    sentences: tuple[Sentence, ...]
    query: str

    def __post_init__(self) -> None:
        known: set[str] = set()
        for item in self.sentences:
            if item.name in known:
                raise ValueError(f"{item.name} stands twice in {self.text!r}")
            if item.left not in {None, *known}:
                raise ValueError(f"no sentence before says what {item.left} is: {self.text!r}")
            known.add(item.name)
        if not self.path:
            raise ValueError(f"{self.query} is asked for, but counts from no one: {self.text!r}")

    @property
    def text(self) -> str:
        """The problem as a model reads it."""
        given, more, asked = THEMES[self.theme]
        said = [
            more.format(item.name, item.right, item.left)
            if item.left
            else given.format(item.name, item.right)
            for item in self.sentences
        ]
        return " ".join([*said, asked.format(self.query)])

    @property
    def path(self) -> tuple[Sentence, ...]:
        """What must be found on the way to the query, first to last."""
        by_name = {item.name: item for item in self.sentences}
        chain = [by_name[self.query]] if self.query in by_name else []
        while chain and chain[-1].left:
            chain.append(by_name[chain[-1].left])
        return tuple(reversed(chain[:-1]))

    @property
    def given(self) -> dict[str, int]:
        """The names whose value the problem says."""
        return {item.name: item.right for item in self.sentences if item.left is None}

    @property
    def answer(self) -> str:
        """The right value of the name that is asked for."""
        return str(sum(item.right for item in self.path) + self.given[self.path[0].left or ""])

    def recap(self, values: Mapping[str, int]) -> str:
        """The answer after `</think>`: each value on the path, then the one asked for in a box."""
        parts = [f" {item.name} {values[item.name]}" for item in self.path]
        return "".join(parts) + f" \\boxed{{{values[self.query]}}}"


@dataclass(frozen=True)
class WordsConfig(Chances):
    """How problems and traces are drawn.

    Raises:
        ValueError: a probability outside [0, 1] or an impossible number of sentences.
    """

    path_lengths: tuple[int, ...] = (2, 3)
    distractors: tuple[int, ...] = (2, 3)
    branch: float = 0.80  # chance that a distractor counts from someone
    hard: float = 0.5
    slip: float = 0.4  # chance that a hard sum is one too small at once
    check_later_hard: float = 0.85
    easy_extra: tuple[float, ...] = (0.65, 0.25, 0.10)
    hard_extra: tuple[float, ...] = (0.25, 0.20)
    opener: float = 0.30
    aside: float = 0.95
    closing: float = 0.30

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check([self.hard, self.slip, self.branch])
        if min(self.path_lengths) < 1 or min(self.distractors) < 0:
            raise ValueError("a path needs a sentence, and distractors cannot be negative")
        if max(self.path_lengths) + max(self.distractors) >= len(NAMES):
            raise ValueError(f"more sentences than the {len(NAMES)} names")


def make_problem(rng: random.Random, config: WordsConfig | None = None) -> Problem:
    """Draw a problem: what is given, in any order, then the path."""
    config = config or WordsConfig()
    length, extra = rng.choice(config.path_lengths), rng.choice(config.distractors)
    start, *names = rng.sample(NAMES, length + extra + 1)
    value = rng.randint(LEAST, MOST)
    chain = [Sentence(start, None, value)]
    for name in names[:length]:
        hard = rng.random() < config.hard
        rights = [n for n in range(LEAST, MOST + 1) if is_hard(value, n) == hard]
        right = rng.choice(rights or range(LEAST, MOST + 1))
        chain.append(Sentence(name, chain[-1].name, right))
        value += right
    others = names[length:]
    branches = [name for name in others if rng.random() < config.branch]
    givens = 1
    for name in others:
        if name not in branches:
            chain.insert(rng.randint(0, givens), Sentence(name, None, rng.randint(LEAST, MOST)))
            givens += 1
    for name in branches:
        place = rng.randrange(len(chain))
        found = Sentence(name, chain[place].name, rng.randint(LEAST, MOST))
        chain.insert(rng.randint(max(place + 1, givens), len(chain)), found)
    return Problem(rng.randrange(len(THEMES)), tuple(chain), names[length - 1])


def make_trace(rng: random.Random, problem: Problem, config: WordsConfig | None = None) -> Solution:
    """Draw an R1-like trace of a problem, with its exact labels (`rl.chains.writing.Writer`)."""
    return _writer(rng, problem, config).write()


def shortest_trace(problem: Problem) -> Solution:
    """The shortest correct response in the language of the task: the path's derivations alone."""
    return _writer(random.Random(0), problem, None).shortest()


def _writer(rng: random.Random, problem: Problem, config: WordsConfig | None) -> _Writer:
    return _Writer(rng, problem, config or WordsConfig(), values=problem.given)


class _Writer(Writer):
    openers, remarks, closings = OPENERS, REMARKS, CLOSINGS
    first_word, next_words = FIRST_WORD, NEXT_WORDS

    def asides(self) -> list[Sentence]:
        path = self.problem.path
        needed = {path[0].left, *(item.name for item in path)}
        return [item for item in self.problem.sentences if item.name not in needed]

    def is_ready(self, item: Sentence) -> bool:
        return item.left is None or item.left in self.values

    def guess(self) -> str:
        return GUESS.format(self.rng.randint(MOST, 3 * MOST))

    def is_hard(self, item: Sentence) -> bool:
        return is_hard(self.values[item.left or ""], item.right)

    def right(self, item: Sentence) -> int:
        return self.values[item.left or ""] + item.right

    def attempt(self, item: Sentence) -> int:
        """Right, or one too small."""
        return self.right(item) - (self.is_hard(item) and self.happens(self.config.slip))

    def derivation(self, item: Sentence, value: int, word: str) -> str:
        left = self.values[item.left or ""]
        return DERIVATION.format(word, item.name, item.right, item.left, left, item.name, value)

    def verdict(self, item: Sentence, had: int, right: int) -> str:
        check = CHECK.format(item.right, self.values[item.left or ""], right)
        return check + (CONFIRMED if had == right else CORRECTED.format(had, item.name, right))

    def alternative(self, item: Sentence) -> str:
        return ALTERNATIVE.format(item.right, self.values[item.left or ""])

    def restatement(self, item: Sentence) -> str:
        return RESTATEMENT.format(item.right, item.left)

    def aside(self, item: Sentence) -> str:
        if item.left is None:
            return ASIDE.format(item.name, item.right)
        value = self.values[item.name] = self.right(item)
        return self.derivation(item, value, self.pick(self.next_words, 0.75))
