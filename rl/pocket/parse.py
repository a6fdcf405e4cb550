"""Read any trace of the pocket reasoner, sampled ones too: labels, values, verdict.

The parser knows the sentences of the task and nothing else. A line that it cannot read gets no
label and a reason; it never guesses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from probing.traces.text import boxes
from rl.pocket.task import (
    ALTERNATIVE,
    CLOSINGS,
    GUESS,
    OPENERS,
    REMARKS,
    RESTATEMENT,
    THINK_END,
    Definition,
    Label,
    Operator,
    Problem,
)

Kind = Literal["derivation", "correction", "confirmation", "filler", "unreadable"]


@dataclass(frozen=True)
class Line:
    """One line, newline included: characters [start, end) of the response.

    `name` and `value` are what the line assigns; `easy` says of a check that it adds.
    """

    start: int
    end: int
    kind: Kind
    label: Label | None = None
    name: str | None = None
    value: int | None = None
    easy: bool = False


@dataclass(frozen=True)
class Reading:
    """What a response says.

    `steps` tile the text before `</think>`. `boxed` is the answer's value, None where there is
    none. `reasons` says what could not be read, or what in the answer does not follow from the
    steps; where it is not empty, do not rely on the labels.
    """

    steps: tuple[Line, ...]
    boxed: str | None
    correct: bool
    reasons: tuple[str, ...]


def _pattern(template: str, *groups: str) -> str:
    """A template of the task as a pattern, its fields replaced by the groups in turn."""
    parts = re.split(r"\{[^}]*\}", template)
    return "".join(
        re.escape(part) + group for part, group in zip(parts, [*groups, ""], strict=True)
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
            *(_pattern(text, _NAME) for text in OPENERS),
            *map(re.escape, REMARKS + CLOSINGS),
            _pattern(GUESS, _VALUE),
            _pattern(RESTATEMENT, _OPERAND, "[+*]", r"\d"),
            _pattern(ALTERNATIVE, r"\d", "[+*]", _VALUE),
        ]
    )
)
_DEFINITION = re.compile(rf"{_NAME} = {_OPERATION}")
_RECAP = re.compile(rf" {_NAME} {_VALUE}")


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


def is_correct(problem: Problem, response: str) -> bool:
    """The verifier: one box after `</think>`, and in it the right value in two digits."""
    return boxed_value(response) == problem.answer


def boxed_value(response: str) -> str | None:
    """What the one box after `</think>` holds; None without `</think>`, or not just one box."""
    _, closed, answer = response.partition(THINK_END)
    spans = boxes(answer)
    return answer[slice(*spans[0])] if closed and len(spans) == 1 else None


def read(problem: Problem, response: str) -> Reading:
    """Label every line of a response and verify its answer.

    `essential`: the line from which the value that a variable on the path ends with comes,
    whether it is right or wrong: the derivation, or the check that corrects it. None: the first
    confirming check of a hard operation. `redundant`: every other line that can be read.
    """
    reasoning, closed, answer = response.partition(THINK_END)
    steps, reasons = [], []
    for number, step in enumerate(_lines(reasoning), 1):
        steps.append(step)
        if step.kind == "unreadable":
            line = reasoning[step.start : step.end].rstrip("\n")
            reasons.append(f"line {number} is no sentence of the task: {line!r}")
    if reasoning and not reasoning.endswith("\n"):
        reasons.append("the last line of the reasoning has no end")
    sources, values = _sources(steps)
    if closed:
        reasons += _recap_faults(problem, answer, values)
    else:
        reasons.append(f"there is no {THINK_END}")
    path = {item.name for item in problem.path}
    labelled = _label(steps, path, {sources[name] for name in path if name in sources})
    return Reading(labelled, boxed_value(response), is_correct(problem, response), tuple(reasons))


def _lines(reasoning: str) -> Iterator[Line]:
    """The lines of the reasoning as steps without labels."""
    start = 0
    for line in re.findall(r"[^\n]*\n|[^\n]+", reasoning):
        step = _read_line(line.removesuffix("\n"))
        yield replace(step, start=start, end=start + len(line))
        start += len(line)


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


def _sources(steps: list[Line]) -> tuple[dict[str, int], dict[str, int]]:
    """Of each variable, the index of the step that its last value comes from, and that value.

    A line that repeats the value which the variable already has is no new source.
    """
    sources: dict[str, int] = {}
    values: dict[str, int] = {}
    for index, step in enumerate(steps):
        if step.name is None or step.value is None or values.get(step.name) == step.value:
            continue
        sources[step.name], values[step.name] = index, step.value
    return sources, values


def _label(steps: list[Line], path: set[str], used: set[int]) -> tuple[Line, ...]:
    """The steps with labels; `used` are the indices of the sources of the values on the path."""
    labelled = []
    confirmed = True  # before any derivation there is nothing to confirm
    for index, step in enumerate(steps):
        label: Label | None = "essential" if index in used else "redundant"
        if step.kind == "derivation":
            confirmed = step.easy or step.name not in path
        elif step.kind == "confirmation" and not confirmed and not step.easy:
            label, confirmed = None, True
        elif step.kind == "unreadable":
            label = None
        labelled.append(replace(step, label=label))
    return tuple(labelled)


def _recap_faults(problem: Problem, answer: str, values: dict[str, int]) -> list[str]:
    """Why the answer does not follow from the steps; empty where it does."""
    stated, box, rest = answer.partition(" \\boxed{")
    if not box or _RECAP.sub("", stated) or not re.fullmatch(r"\d\d\}", rest):
        return [f"the answer is no recap of values with a box: {answer!r}"]
    said = _RECAP.findall(stated)
    names = [item.name for item in problem.path]
    if [name for name, _ in said] != names:
        return [f"the answer recaps {[name for name, _ in said]}, the path is {names}"]
    faults = []
    for name, value in [*said, (problem.query, rest[:2])]:
        if name not in values:
            faults.append(f"the answer gives {name}, which no step derives")
        elif values[name] != int(value):
            faults.append(f"the answer gives {name} as {value}, the steps as {values[name]:02d}")
    return faults
