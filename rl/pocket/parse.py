"""Read any trace of the pocket reasoner, sampled ones too: see `rl.chains.reading`."""

from __future__ import annotations

import re

from rl.chains.reading import Language, Line, Reading, pattern
from rl.chains.reading import read as read_chain
from rl.pocket.task import (
    ALTERNATIVE,
    CLOSINGS,
    GUESS,
    OPENERS,
    REMARKS,
    RESTATEMENT,
    Definition,
    Operator,
    Problem,
)

_NAME, _VALUE, _OPERAND = "([a-z])", r"(\d\d)", r"([a-z]|\d\d)"
_OPERATION = rf"{_OPERAND} ([+*]) (\d)"
_DERIVATION = re.compile(
    rf"(?:First,|Therefore|Then|Similarly,) {_OPERATION} gives {_NAME} = {_VALUE}\."
)
_EASY = r"check: \d \+ \d = \d\d, \d \+ \d = \d"
_CHECK = re.compile(rf"Wait, (?:({_EASY})|\d\d \d\d \d\d), had \d\d, ")
_VERDICT = re.compile(rf"(?:ok|so {_NAME} = {_VALUE})\.")
_FILLER = re.compile(
    "|".join(
        [
            *(pattern(text, _NAME) for text in OPENERS),
            *map(re.escape, REMARKS + CLOSINGS),
            pattern(GUESS, _VALUE),
            pattern(RESTATEMENT, _OPERAND, "[+*]", r"\d"),
            pattern(ALTERNATIVE, r"\d", "[+*]", _VALUE),
        ]
    )
)
_DEFINITION = re.compile(rf"{_NAME} = {_OPERATION}")


def parse_problem(text: str) -> Problem:
    """The problem of its text, with or without the prompt around it.

    Raises:
        ValueError: the text is no problem of this task; the message quotes the part at fault.
    """
    body = text.removeprefix("Problem: ").removesuffix("\n<think>\n")
    *parts, question = body.split(" ; ")
    asked = re.fullmatch(r"([a-z]) \?", question)
    if asked is None:
        raise ValueError(f"a problem ends in `NAME ?`, not in {question!r}")
    definitions = []
    for part in parts:
        match = _DEFINITION.fullmatch(part)
        if match is None:
            raise ValueError(f"cannot read the definition {part!r}: write `t = n * 9`")
        name, left, sign, right = match.groups()
        operator: Operator = "+" if sign == "+" else "*"
        definitions.append(Definition(name, left, operator, int(right)))
    return Problem(tuple(definitions), asked[1])


def read(problem: Problem, response: str) -> Reading:
    """Label every line of a response and verify its answer (`rl.chains.reading.read`)."""
    return read_chain(problem, response, _LANGUAGE)


def _read_line(line: str) -> Line:
    """Kind, name and value of one line; the offsets are the caller's."""
    if match := _DERIVATION.fullmatch(line):
        _, sign, _, name, value = match.groups()
        return Line(0, 0, "derivation", name=name, value=int(value), easy=sign == "+")
    if match := _CHECK.match(line):
        verdict = _VERDICT.fullmatch(line, match.end())
        easy = match[1] is not None
        if verdict is None:
            return Line(0, 0, "unreadable")
        if verdict[1] is None:
            return Line(0, 0, "confirmation", easy=easy)
        return Line(0, 0, "correction", name=verdict[1], value=int(verdict[2]), easy=easy)
    return Line(0, 0, "filler" if _FILLER.fullmatch(line) else "unreadable")


_LANGUAGE = Language(_read_line, _NAME, _VALUE, "{:02d}")
