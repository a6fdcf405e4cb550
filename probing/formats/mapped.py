"""Records of any other form, by paths to their fields: `--map prompt=input.text`.

A path is names with dots between; `[]` behind a name goes through a list, `[2]` to one of its
elements. A path through a list gives a response each; what has no list holds for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from probing.errors import ConfigError
from probing.files.reading import BadLine
from probing.formats.drafts import Draft, maybe_text, truth
from probing.formats.reasoning import Record, asked, turns_of
from probing.settings import unknown

# prompt: the exact text, or messages; response: reasoning and answer with a mark between.
FIELDS = ("id", "prompt", "problem", "reasoning", "response", "answer", "correct", "gold", "model")
_PART = re.compile(r"([^.\[\]]+)((?:\[\d*\])*)")


def parse_map(given: Sequence[str]) -> dict[str, str]:
    """Field → path of `field=path` texts.

    Raises:
        ConfigError: one is none, or its field does not exist; or no response can come of them.
    """
    paths: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"--map {text!r}: write field=path, such as prompt=input.text")
        if name not in FIELDS:
            raise ConfigError(f"--map {text!r}: {unknown('field', name, FIELDS)}")
        parts_of(path)
        paths[name] = path
    if not {"prompt", "problem"} & {*paths} or not {"response", "answer"} & {*paths}:
        raise ConfigError(
            "--map needs prompt or problem, and response (with the reasoning's marks in it) or "
            "reasoning and answer"
        )
    return paths


def parts_of(path: str) -> list[str | int | None]:
    """Names, numbers of elements, and None for all elements, in the order of a path.

    Raises:
        ConfigError: it is no path.

    Example:
        >>> parts_of("choices[].message.text[0]")
        ['choices', None, 'message', 'text', 0]
    """
    parts: list[str | int | None] = []
    for piece in path.split("."):
        match = _PART.fullmatch(piece)
        if match is None:
            raise ConfigError(f"--map: {path!r} is no path; write a.b, a[].b or a[0]")
        parts.append(match[1])
        parts += [int(digits) if digits else None for digits in re.findall(r"\[(\d*)\]", match[2])]
    return parts


def values_at(record: Any, parts: Sequence[str | int | None]) -> Any:
    """What stands at a path: a value, or of a path through lists a list; None where nothing is."""
    for place, part in enumerate(parts):
        if part is None:
            rest = parts[place + 1 :]
            return [values_at(each, rest) for each in record] if isinstance(record, list) else None
        if isinstance(part, int):
            record = record[part] if isinstance(record, list) and part < len(record) else None
        else:
            record = record.get(part) if isinstance(record, Mapping) else None
    return record


def mapped(paths: Mapping[str, str]) -> Callable[[Record], Iterator[Draft | BadLine]]:
    """A reader of records by the paths of their fields."""
    read = {name: parts_of(path) for name, path in paths.items()}
    many = {name for name, parts in read.items() if None in parts}

    def drafts(record: Record) -> Iterator[Draft | BadLine]:
        found = {name: values_at(record, parts) for name, parts in read.items()}
        lists = [found[name] for name in many & {"response", "answer"}]
        count = len(lists[0]) if lists and isinstance(lists[0], list) else 1
        for number in range(count):
            row = {name: _of(value, name in many, number) for name, value in found.items()}
            try:
                yield _draft(row, number if count > 1 else None)
            except BadLine as error:
                yield error

    return drafts


def _of(value: Any, many: bool, number: int) -> Any:
    if many and isinstance(value, list):
        return value[number] if number < len(value) else None
    return value


def _draft(row: dict[str, Any], number: int | None) -> Draft:
    text = row.get("response") or row.get("answer")
    thoughts = row.get("reasoning")
    if not isinstance(text, str) or not isinstance(thoughts, (str, type(None))):
        raise BadLine("missing field", f"response or answer is no text, {text!r:.40}")
    prompt, problem = row.get("prompt"), maybe_text(row, "problem")
    return Draft(
        text=text,
        reasoning=thoughts,
        prompt=prompt if isinstance(prompt, str) else None,
        messages=turns_of(prompt) if isinstance(prompt, list) else asked(problem or ""),
        problem=problem,
        id=maybe_text(row, "id"),
        gold=maybe_text(row, "gold"),
        correct=truth(row.get("correct")),
        model=maybe_text(row, "model"),
        number=number,
    )
