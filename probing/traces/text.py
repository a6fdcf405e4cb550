"""What stands in a text of maths: boxes, values, the answer after the reasoning."""

from __future__ import annotations

import re
from collections import Counter

from probing.choices import THINK_END

# Characters of scripts that put no space between words (Thai, Lao, Burmese, Khmer, Han, kana),
# for a class of a regular expression.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_KANA, _HAN = re.compile("[\u3041-\u30fa]"), re.compile("[\u4e00-\u9fff]")
_LATIN = re.compile(r"[a-z\u00df-\u00ff]{2,}")
# Words that are frequent in one of these languages and seldom stand in the others.
_COMMON = {
    "en": "the is of and to that we so it this let which then if",
    "es": "el los que es una por con como pero entonces para las del",
    "fr": "le les des est et une dans pour donc nous mais sur cela alors",
    "de": "der die das ist und wir nicht ein eine auch dass dann also mit",
}
LOOKED_AT = 5000  # characters by which the language of a text is told
EQUALS = "=\uff1d"  # the second one as wide as an ideograph
_WIDE_STOPS = "\u3000-\u303f\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f"  # such as 。，：
# A letter of the Latin alphabet makes what follows a name (x2); one of another script may stand
# right before a number (答案是92).
NO_NAME = r"(?<![A-Za-z_.\d])"
# Where the reasoning ends, as FIND_END[at](response, mark): the character at which the mark starts,
# −1 where there is none.
FIND_END = {"first": str.find, "last": str.rfind}
# Numbers (with sign, decimals, fraction) and what follows an equals sign up to a space, or up to
# where a text without spaces goes on.
_VALUE = re.compile(
    rf"(?<=[{EQUALS}])[ \t\u00a0\u3000]*[^\s{EQUALS}{_WIDE_STOPS}{UNSPACED}]+"
    rf"|{NO_NAME}[-\u2212]?\d[\d,./]*"
)
BOX = "\\boxed{"
# A box is opened, or holds a bare number or capital; a character is escaped (a backslash, too), or
# a brace stands by itself.
_BARE = r"-?\d(?:[\d.,/]*\d)?(?!\w)|[A-Z](?!\w)"
_BRACES = re.compile(
    rf"\\boxed\s?\{{|\\boxed\s?(?P<bare>{_BARE})|\\(?!\\boxed\{{).|[{{}}]", re.DOTALL
)


def language_of(text: str) -> str:
    """The language of a reasoning, among those that have phrase files; English where unsure.

    By script where a tenth of the letters are kana or Han, else by frequent words. Only the first
    5,000 characters count.

    Example:
        >>> language_of("所以答案是 x = 92。"), language_of("Donc le carré est 4, et nous avons x.")
        ('zh', 'fr')
    """
    text = text[:LOOKED_AT].lower()
    kana, han, words = len(_KANA.findall(text)), len(_HAN.findall(text)), _LATIN.findall(text)
    if 9 * (kana + han) >= sum(map(len, words)) and kana + han:
        return "ja" if kana >= 0.1 * (kana + han) else "zh"
    count = Counter(words)
    return max(_COMMON, key=lambda name: sum(count[word] for word in _COMMON[name].split()))


def value_spans(text: str, start: int = 0) -> list[tuple[int, int]]:
    """Character spans of numbers, and of what follows an equals sign.

    Example:
        >>> value_spans("x = y, so 12")
        [(3, 6), (10, 12)]
        >>> value_spans("答案是92。")
        [(3, 5)]
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


def whole_box(text: str, start: int = 0) -> tuple[int, int] | None:
    r"""Characters of the last of the `boxes`, its `\boxed` and its braces, if any, with it.

    Example:
        >>> whole_box(r"no 3: \boxed{ 1/2 }."), whole_box("3")
        ((6, 19), None)
    """
    spans = boxes(text, start)
    if not spans:
        return None
    first, end = spans[-1]
    return text.rindex(BOX[:-1], 0, first), end + (text[end : end + 1] == "}")


def last_box(text: str) -> str | None:
    r"""What stands in the last of the `boxes`, without blanks around; None where there is none.

    Example:
        >>> last_box(r"\boxed{1}, no: \boxed{ 1/2 }")
        '1/2'
    """
    spans = boxes(text)
    return text[slice(*spans[-1])].strip() if spans else None


def answer_part(response: str, think_end: str = THINK_END, at: str = "first") -> str | None:
    """What stands after the end of the reasoning; None where it never ends.

    An empty `think_end` means a model that does not reason: all is answer. With several, `at`
    says which one counts, `first` or `last`.
    """
    if not think_end:
        return response
    end = FIND_END[at](response, think_end)
    return None if end < 0 else response[end + len(think_end) :]
