"""Read any trace of a task, sampled ones too: labels, values, verdict.

A parser knows the sentences of its task (`Language`) and nothing else. A line that it cannot read
gets no label and a reason; it never guesses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from probing.choices import THINK_END
from probing.traces.text import boxes
from rl.chains.writing import Label

Kind = Literal["derivation", "correction", "confirmation", "filler", "unreadable"]


@dataclass(frozen=True)
class Line:
    """One line, newline included: characters [start, end) of the response.

    `name` and `value` are what the line assigns; `easy` says of a derivation or a check that its
    operation is.
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


@dataclass(frozen=True)
class Language:
    """How a task writes.

    Args:
        line: a line without its newline → kind, name and value; the offsets are the caller's.
        name, value: patterns of one group.
        shown: how a value is written.
    """

    line: Callable[[str], Line]
    name: str
    value: str
    shown: str = "{}"


def pattern(template: str, *groups: str) -> str:
    """A template of the task as a pattern, its fields replaced by the groups in turn."""
    parts = re.split(r"\{[^}]*\}", template)
    return "".join(
        re.escape(part) + group for part, group in zip(parts, [*groups, ""], strict=True)
    )


def is_correct(problem: Any, response: str) -> bool:
    """The verifier: one box after `</think>`, and in it the right value as the task writes it."""
    return boxed_value(response) == problem.answer


def boxed_value(response: str) -> str | None:
    """What the one box after `</think>` holds; None without `</think>`, or not just one box."""
    _, closed, answer = response.partition(THINK_END)
    spans = boxes(answer)
    return answer[slice(*spans[0])] if closed and len(spans) == 1 else None


def read(problem: Any, response: str, language: Language) -> Reading:
    """Label every line of a response and verify its answer.

    `essential`: the line from which the value that a name on the path ends with comes, whether it
    is right or wrong: the derivation, or the check that corrects it. None: the first confirming
    check of a hard operation. `redundant`: every other line that can be read.
    """
    reasoning, closed, answer = response.partition(THINK_END)
    steps, reasons = [], []
    for number, step in enumerate(_lines(reasoning, language), 1):
        steps.append(step)
        if step.kind == "unreadable":
            line = reasoning[step.start : step.end].rstrip("\n")
            reasons.append(f"line {number} is no sentence of the task: {line!r}")
    if reasoning and not reasoning.endswith("\n"):
        reasons.append("the last line of the reasoning has no end")
    sources, values = _sources(steps)
    if closed:
        reasons += _recap_faults(problem, answer, values, language)
    else:
        reasons.append(f"there is no {THINK_END}")
    path = {item.name for item in problem.path}
    labelled = _label(steps, path, {sources[name] for name in path if name in sources})
    return Reading(labelled, boxed_value(response), is_correct(problem, response), tuple(reasons))


def _lines(reasoning: str, language: Language) -> Iterator[Line]:
    """The lines of the reasoning as steps without labels."""
    start = 0
    for line in re.findall(r"[^\n]*\n|[^\n]+", reasoning):
        step = language.line(line.removesuffix("\n"))
        yield replace(step, start=start, end=start + len(line))
        start += len(line)


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


def _recap_faults(
    problem: Any, answer: str, values: dict[str, int], language: Language
) -> list[str]:
    """Why the answer does not follow from the steps; empty where it does."""
    recap = re.compile(f" {language.name} {language.value}")
    stated, box, rest = answer.partition(" \\boxed{")
    boxed = re.fullmatch(language.value + r"\}", rest)
    if not box or recap.sub("", stated) or not boxed:
        return [f"the answer is no recap of values with a box: {answer!r}"]
    said = recap.findall(stated)
    names = [item.name for item in problem.path]
    if [name for name, _ in said] != names:
        return [f"the answer recaps {[name for name, _ in said]}, the path is {names}"]
    faults = []
    for name, value in [*said, (problem.query, boxed[1])]:
        if name not in values:
            faults.append(f"the answer gives {name}, which no step derives")
        elif values[name] != int(value):
            reached = language.shown.format(values[name])
            faults.append(f"the answer gives {name} as {value}, the steps as {reached}")
    return faults
