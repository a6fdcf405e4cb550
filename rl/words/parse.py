"""Read problems in words, and any response to them: see `rl.chains.reading`."""

from __future__ import annotations

import re

from rl.chains.reading import Language, Line, Reading, pattern
from rl.chains.reading import read as read_chain
from rl.words.task import (
    ALTERNATIVE,
    ASIDE,
    CHECK,
    CLOSINGS,
    CONFIRMED,
    CORRECTED,
    DERIVATION,
    FIRST_WORD,
    GUESS,
    NEXT_WORDS,
    OPENERS,
    REMARKS,
    RESTATEMENT,
    THEMES,
    Problem,
    Sentence,
    is_hard,
)

_NAME, _VALUE = "([A-Z][a-z]+)", r"(\d{1,2})"
_THEMES = [
    (
        re.compile(f"{pattern(given, _NAME, _VALUE)} ?"),
        re.compile(f"{pattern(more, _NAME, _VALUE, _NAME)} ?"),
        re.compile(pattern(asked, _NAME)),
    )
    for given, more, asked in THEMES
]
_WORDS = f"(?:{'|'.join((FIRST_WORD, *NEXT_WORDS))})"
_DERIVATION = re.compile(pattern(DERIVATION, _WORDS, _NAME, _VALUE, _NAME, _VALUE, _NAME, _VALUE))
_CHECK = re.compile(
    pattern(CHECK, _VALUE, _VALUE, _VALUE)
    + f"(?:{re.escape(CONFIRMED)}|{pattern(CORRECTED, _VALUE, _NAME, _VALUE)})"
)
_FILLER = re.compile(
    "|".join(
        [
            *(pattern(text, _NAME) for text in OPENERS),
            *map(re.escape, REMARKS + CLOSINGS),
            pattern(GUESS, _VALUE),
            pattern(RESTATEMENT, _VALUE, _NAME),
            pattern(ALTERNATIVE, _VALUE, _VALUE),
            pattern(ASIDE, _NAME, _VALUE),
        ]
    )
)


def parse_problem(text: str) -> Problem:
    """The problem of its text.

    Raises:
        ValueError: the text is no problem of this task; the message quotes the part at fault.
    """
    faults = []
    for theme, (given, more, asked) in enumerate(_THEMES):
        place, sentences = 0, []
        while found := given.match(text, place) or more.match(text, place):
            name, right, *left = found.groups()
            sentences.append(Sentence(name, left[0] if left else None, int(right)))
            place = found.end()
        if query := asked.fullmatch(text, place):
            return Problem(theme, tuple(sentences), query[1])
        faults.append(place)
    rest = text[max(faults) :]
    raise ValueError(f"cannot read {rest!r:.80}: write as in {THEMES[0]}")


def read(problem: Problem, response: str) -> Reading:
    """Label every line of a response and verify its answer (`rl.chains.reading.read`)."""
    return read_chain(problem, response, _LANGUAGE)


def _read_line(line: str) -> Line:
    """Kind, name and value of one line; the offsets are the caller's."""
    if (match := _DERIVATION.fullmatch(line)) and match[1] == match[5]:
        _, right, _, left, name, value = match.groups()
        easy = not is_hard(int(left), int(right))
        return Line(0, 0, "derivation", name=name, value=int(value), easy=easy)
    if match := _CHECK.fullmatch(line):
        right, left, _, _, name, value = match.groups()
        easy = not is_hard(int(left), int(right))
        if name is None:
            return Line(0, 0, "confirmation", easy=easy)
        return Line(0, 0, "correction", name=name, value=int(value), easy=easy)
    return Line(0, 0, "filler" if _FILLER.fullmatch(line) else "unreadable")


_LANGUAGE = Language(_read_line, _NAME, _VALUE)
