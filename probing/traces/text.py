"""What stands in a text of maths: boxes, values, the answer after the reasoning."""

from __future__ import annotations

import re

from probing.choices import THINK_END

# Numbers (with sign, decimals, fraction) and what follows an equals sign up to a space.
_VALUE = re.compile(r"(?<==)[ \t]*[^\s=]+|(?<![\w.])-?\d[\d,./]*")
BOX = "\\boxed{"
# A box is opened, or holds a bare number or capital; a character is escaped (a backslash, too), or
# a brace stands by itself.
_BARE = r"-?\d(?:[\d.,/]*\d)?(?!\w)|[A-Z](?!\w)"
_BRACES = re.compile(
    rf"\\boxed\s?\{{|\\boxed\s?(?P<bare>{_BARE})|\\(?!\\boxed\{{).|[{{}}]", re.DOTALL
)


def value_spans(text: str, start: int = 0) -> list[tuple[int, int]]:
    """Character spans of numbers, and of what follows an equals sign.

    Example:
        >>> value_spans("x = y, so 12")
        [(3, 6), (10, 12)]
    """
    return [match.span() for match in _VALUE.finditer(text, start)]


def boxes(text: str, start: int = 0) -> list[tuple[int, int]]:
    r"""Character spans of what stands in each closed `\boxed{…}`, in the order of their starts.

    Braces inside balance; an escaped brace (`\{`, `\}`) is none. A box may stand in another. A
    number or a capital needs no braces (`\boxed 5`). One pass over the text.

    Example:
        >>> boxes(r"\boxed{\frac{1}{2}} or \boxed{\left\{ x \right.}"), boxes(r"\boxed 5")
        ([(7, 18), (30, 47)], [(7, 8)])
    """
    spans = []
    opened: list[int | None] = []  # braces that stand open; of a box: where its content starts
    for mark in _BRACES.finditer(text, start):
        if mark["bare"]:
            spans.append(mark.span("bare"))
        elif mark[0] == "}":
            inside = opened.pop() if opened else None
            if inside is not None:
                spans.append((inside, mark.start()))
        elif mark[0].endswith("{") and mark[0] != "\\{":
            opened.append(mark.end() if len(mark[0]) > 1 else None)
    return sorted(spans)


def last_box(text: str) -> str | None:
    r"""What stands in the last of the `boxes`, without blanks around; None where there is none.

    Example:
        >>> last_box(r"\boxed{1}, no: \boxed{ 1/2 }")
        '1/2'
    """
    spans = boxes(text)
    return text[slice(*spans[-1])].strip() if spans else None


def answer_part(response: str, think_end: str = THINK_END) -> str | None:
    """What stands after the first end of the reasoning; None where it never ends.

    An empty `think_end` means a model that does not reason: all is answer.
    """
    if not think_end:
        return response
    _, closed, answer = response.partition(think_end)
    return answer if closed else None
