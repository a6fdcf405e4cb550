"""What stands in a text of maths: boxes, values, the answer after the reasoning."""

from __future__ import annotations

import re

from probing.choices import THINK_END

# Numbers (with sign, decimals, fraction) and what follows an equals sign up to a space.
_VALUE = re.compile(r"(?<==)[ \t]*[^\s=]+|(?<![\w.])-?\d[\d,./]*")
BOX = "\\boxed{"


def value_spans(text: str, start: int = 0) -> list[tuple[int, int]]:
    """Character spans of numbers, and of what follows an equals sign.

    Example:
        >>> value_spans("x = y, so 12")
        [(3, 6), (10, 12)]
    """
    return [match.span() for match in _VALUE.finditer(text, start)]


def boxed_spans(text: str, start: int = 0) -> list[tuple[int, int]]:
    """Character spans of what stands in each `\\boxed{…}`, braces balanced.

    Example:
        >>> boxed_spans(r"so \\boxed{\\frac{1}{2}}")
        [(10, 21)]
    """
    spans = []
    opening = r"\boxed{"
    at = text.find(opening, start)
    while at >= 0:
        depth, end = 1, at + len(opening)
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth == 0:
            spans.append((at + len(opening), end - 1))
        at = text.find(opening, at + len(opening))
    return spans


def answer_part(response: str, think_end: str = THINK_END) -> str | None:
    """What stands after the first end of the reasoning; None where it never ends.

    An empty `think_end` means a model that does not reason: all is answer.
    """
    if not think_end:
        return response
    _, closed, answer = response.partition(think_end)
    return answer if closed else None


def last_box(text: str) -> str | None:
    """The content of the last `\\boxed{…}` that is closed, nested braces included.

    Example:
        >>> last_box("\\\\boxed{1}, no: \\\\boxed{\\\\frac{1}{2}}")
        '\\\\frac{1}{2}'
    """
    start = text.rfind(BOX)
    while start >= 0:
        depth = 1
        for place in range(start + len(BOX), len(text)):
            escaped = text[place - 1] == "\\"
            if text[place] == "{" and not escaped:
                depth += 1
            elif text[place] == "}" and not escaped:
                depth -= 1
            if depth == 0:
                return text[start + len(BOX) : place].strip()
        start = text.rfind(BOX, 0, start)
    return None
