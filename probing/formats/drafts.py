"""A response as a source has it (`Draft`), and as a line of a trace file.

1. What is reasoning and what is answer: kept apart by the source, or by a mark that is known
   (`probing.traces.marks.STYLES`). A worked solution has none: its last paragraph is the answer.
2. The prompt: as the source has it, else made of its messages. It ends with the start mark.
3. The reasoning, the mark that ends it, and the answer; marks of other models become that mark.
4. Steps that the source has, each where its text stands.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from probing.files.reading import BadLine
from probing.traces.marks import BLANK_REASONING, STARTS, STYLES, Style

Message = dict[str, str]  # role, content
Render = Callable[[Sequence[Message], str], str]  # messages, start mark → the text to continue
# What some models put around the answer, behind the mark that ends the reasoning.
ANSWER_MARKS = {"<|end_of_thought|>": ("<|begin_of_solution|>", "<|end_of_solution|>")}
ANSWER_MARKS |= {style.end: ("", "<|return|>") for style in STYLES if style.name == "gpt-oss"}
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")


@dataclass(frozen=True)
class Part:
    """A step that the source has: its text, its label, and what else is said of it."""

    text: str
    label: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One response, as a source has it.

    Args:
        text: the answer, where `reasoning` is given; else both, with a mark between them.
        reasoning: where the source keeps it apart.
        prompt: the exact text that was given to the model, where the source has it.
        messages: what was asked, where it has not.
        whole: `text` holds the prompt, too, in front of a start mark.
        worked: a worked solution without marks.
        parts: steps, in the order of the text.
        gold: the reference answer.
        correct: the source's own verdict.
        number: which response of its record it is; None: the only one.
        extra: other fields of the trace line.
    """

    text: str
    reasoning: str | None = None
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    whole: bool = False
    worked: bool = False
    parts: tuple[Part, ...] = ()
    id: str | None = None
    problem: str | None = None
    gold: str | None = None
    correct: bool | None = None
    model: str | None = None
    number: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Prompt, start mark as it stood, reasoning, the style of its marks, answer."""

    prompt: str | None
    opened: str
    reasoning: str
    style: Style | None
    answer: str


def plain_prompt(messages: Sequence[Message], start: str) -> str:
    r"""The contents of the messages, one below the other, and the start mark.

    Example:
        >>> plain_prompt([{"role": "user", "content": "2 + 2?"}], "<think>\n")
        '2 + 2?\n<think>\n'
    """
    return "".join(f"{message['content']}\n" for message in messages) + start


def trace_line(
    draft: Draft, think_end: str, render: Render = plain_prompt
) -> tuple[dict[str, Any], str]:
    """The line of a trace file without an id, and the end mark that stood in its place.

    The latter is empty where the source has none.

    Args:
        draft: the response.
        think_end: the mark that ends the reasoning in the file.
        render: makes a prompt of messages.

    Raises:
        BadLine: why the response is no trace.
    """
    split = split_response(draft, think_end)  # 1
    same = split.style is not None and split.style.end == think_end
    start = split.opened if same and split.opened else _start(think_end)
    prompt = split.prompt if split.prompt is not None else draft.prompt
    if prompt is None and draft.messages:  # 2
        prompt = render(draft.messages, start)
    if not prompt or not prompt.strip():
        raise BadLine("no prompt", "nothing says what the model was asked")
    prompt = _opened(prompt, start)
    before, answer = split.reasoning, split.answer  # 3
    if not same:
        first, last = ANSWER_MARKS.get(split.style.end, ("", "")) if split.style else ("", "")
        answer = answer.lstrip().removeprefix(first).rstrip().removesuffix(last).strip()
        before = before if before.endswith("\n") else f"{before}\n"
        answer = f"\n\n{answer}"
    if think_end in before:
        raise BadLine("mark in the reasoning", f"the reasoning holds {think_end} inside")
    known = {"problem": draft.problem, "correct": draft.correct, "model": draft.model}
    known["ground_truth"] = draft.gold
    line = {
        "prompt": prompt,
        "response": before + think_end + answer,
        **{name: value for name, value in known.items() if value is not None},
        **draft.extra,
        "steps": steps_of(draft.parts, before),  # 4
    }
    return line, split.style.end if split.style else ""


def split_response(draft: Draft, think_end: str) -> Split:
    """What of a response is reasoning and what is answer (1); errors as for `trace_line`."""
    text = draft.text
    if draft.reasoning is not None:
        prompt, opened, reasoning, style, answer = None, "", draft.reasoning, None, text
        for known in STYLES:  # some keep the start mark in it
            if known.start and reasoning.lstrip().startswith(known.start):
                reasoning = reasoning.lstrip().removeprefix(known.start).lstrip("\n")
                reasoning = reasoning.rstrip().removesuffix(known.end)
    else:
        style = style_of(text, think_end)
        if style is None and not draft.worked:
            raise BadLine("no end of the reasoning", "no mark that is known ends the reasoning")
        cut = None if style else deque(_PARAGRAPH.finditer(text.rstrip()), maxlen=1)
        if style:
            place = text.find(style.end)
            behind = place + len(style.end)
        elif cut:
            place, behind = cut[0].span()
        else:
            raise BadLine("one paragraph", "a worked solution of one paragraph is all answer")
        prompt, opened, reasoning = _start_of(text[:place], style, draft.whole)
        answer = text[behind:]
    if BLANK_REASONING.fullmatch(reasoning):
        raise BadLine("empty reasoning", "nothing stands before the end of the reasoning")
    if not answer.strip():
        raise BadLine("empty answer", "nothing follows the reasoning")
    return Split(prompt, opened, reasoning, style, answer)


def style_of(text: str, think_end: str) -> Style | None:
    """The style whose end mark a response holds: `think_end`, else the first of those known."""
    if think_end in text:
        given = next((style for style in STYLES if style.end == think_end), None)
        return given or Style("given", "", think_end)
    return next((style for style in STYLES if style.end in text), None)


def _start_of(text: str, style: Style | None, whole: bool) -> tuple[str | None, str, str]:
    """Prompt, start mark with the newline behind it, and reasoning of what stands before the end.

    Raises:
        BadLine: the prompt should be there, and no start mark is.
    """
    start = style.start if style else ""
    place = text.find(start) if start else -1
    if whole and place < 0:
        raise BadLine("no prompt", "no start mark says where the prompt ends")
    if place < 0 or (not whole and text[:place].strip()):
        return None, "", text
    behind = place + len(start)
    behind += text[behind : behind + 1] == "\n"
    return text[:behind] if whole else None, text[place:behind], text[behind:]


def _start(think_end: str) -> str:
    """The start mark that goes with an end mark; empty where none is sure."""
    starts = STARTS.get(think_end, ())
    return f"{starts[0]}\n" if starts else ""


def _opened(prompt: str, start: str) -> str:
    """The prompt with a start mark at its end."""
    mark = start.strip()
    if not mark or prompt.rstrip().endswith(mark):
        return prompt
    for style in STYLES:  # of another model
        if style.start and prompt.rstrip().endswith(style.start):
            return prompt.rstrip().removesuffix(style.start) + start
    return prompt + start


def steps_of(parts: Sequence[Part], reasoning: str) -> list[dict[str, Any]]:
    """The steps of a reasoning, each where its text stands behind the one before.

    Raises:
        BadLine: one is not there, or empty.
    """
    steps: list[dict[str, Any]] = []
    end = 0
    for number, part in enumerate(parts):
        text = part.text.strip()
        start = reasoning.find(text, end) if text else -1
        if start < 0:
            raise BadLine("step not in the text", f"step {number} is not in the reasoning")
        end = start + len(text)
        steps.append({"start": start, "end": end, "label": part.label, **part.extra})
    return steps


# Fields of a record


def text_in(record: Mapping[str, Any], *names: str) -> str:
    """The first of the fields that is there, which must be a text that is not blank.

    Raises:
        BadLine: there is none.
    """
    for name in names:
        value = record.get(name)
        if isinstance(value, str) and value.strip():
            return value
        if value is not None and value != "":
            raise BadLine("wrong type", f"{name} must be a text, is {value!r:.40}")
    raise BadLine("missing field", f"no text in {' or '.join(names)}")


def maybe_text(record: Mapping[str, Any], *names: str) -> str | None:
    """The first of the fields that is a text or a number below 10¹⁵; None where none is."""
    for name in names:
        value: Any = record.get(name)
        if isinstance(value, str) and value.strip():
            return value
        if type(value) in (int, float) and abs(value) < 1e15:
            return str(value)
    return None


def mapping_in(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A field that must be an object; raises BadLine where it is none."""
    value = record.get(name)
    if not isinstance(value, Mapping):
        kind = "missing field" if value is None else "wrong type"
        raise BadLine(kind, f"{name} must be an object, is {value!r:.40}")
    return value


def list_in(record: Mapping[str, Any], name: str) -> list[Any]:
    """A field that must be a list with something in it; raises BadLine where it is none."""
    value = record.get(name)
    if not isinstance(value, (list, tuple)):
        kind = "missing field" if value is None else "wrong type"
        raise BadLine(kind, f"{name} must be a list, is {value!r:.40}")
    if not value:
        raise BadLine("nothing in it", f"{name} is empty")
    return list(value)


def truth(value: Any) -> bool | None:
    """A verdict as sources write it: booleans, 0 and 1, C and I, yes and no; else None.

    Example:
        >>> truth(1.0), truth("I"), truth("Yes"), truth(0.5)
        (True, False, True, None)
    """
    if isinstance(value, str):
        said = value.strip().lower()
        right, wrong = ("c", "yes", "true", "correct", "1"), ("i", "no", "false", "incorrect", "0")
        return True if said in right else False if said in wrong else None
    if isinstance(value, (bool, int, float)):
        return True if value == 1 else False if value == 0 else None
    return None


def at(values: Any, number: int) -> Any:
    """An element of a list; None where it is none, or too short."""
    return values[number] if isinstance(values, (list, tuple)) and number < len(values) else None
