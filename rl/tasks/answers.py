r"""What an answer states: in its boxes, behind "the answer is", as a letter, a word or a value.

Pure functions of texts. Of several statements the last counts; one that leaves it open ("A or B")
states nothing.
"""

from __future__ import annotations

import re

from probing.traces.text import boxes
from rl.tasks.forms import plain, untexted

BESIDE = 100  # characters between two boxes that give several values of one answer
VERDICTS = (("yes", "no"), ("true", "false"))

# Between boxes: nothing but a link, one of which must be there; or a word that revokes the first.
_LINK = re.compile(r"and|or|und|oder|et|ou|[,;、，&/和或и]|или")
_SPACE = re.compile(r"\\text|\\[()\[\],;: ]|\\q?quad|[\s$}{.]")
_REVOKED = re.compile(
    r"\b(?:wait|no|not|actually|rather|instead|correct(?:ion|ed)?|sorry|mistake|wrong|hmm|check)\b",
    re.I,
)

# "The answer to the question is", in some tongues.
_NOUN = (
    r"\b(?:answers?|choice|option|solution|result|Antwort|réponse|respuesta|ответ)\b"
    r"(?:\s+(?:to|of|for|in|which|that|letter|here|therefore|thus|then|the|this|question|problem|"
    r"choice|option)\b){0,5}"
)
_VERB = (
    r"\s?(?:\*\*|__)?\s?(?:[:：=是为為]|(?:is|are|was|be|should be|must be|would be|es|est|ist|"
    r"lautet)\b)\s?:?\s?"
)
_SAYS = rf"(?i:{_NOUN}{_VERB}|(?:答案|结果|結果|答)\s?(?:[:：是为為]|应为|應為)+\s?)"
_SAID = re.compile(_SAYS)
_END = re.compile(r"\n|\.(?=\s|$)|[。？?]")

_MARK = r"(?:[\s*_\"“'‘`$({\[]|\\\(|\\boxed|\\(?:text|mathrm|mathbf|textbf)\s?\{)*"
_LETTER = rf"(?i:option|choice|letter|answer)?{_MARK}(?P<letter>[A-Z])(?![A-Za-z\d'’^_])"
_REASON = r"(?:because|since|as|for|due|with|which|where|and|or|not|based|on|by|from|that)\b"
# A letter that begins a clause is an article or a pronoun ("the answer is A good one"), one with
# an operator behind it a variable.
_NO_CLAUSE = rf"(?!\s(?!{_REASON})[a-z])(?!\s?[-+*/=^<>×]\s?[\w\\(])"
_MORE = re.compile(r"[)\]*_.,}\"”$]*\s?(?:or|and|/|,|&|或|和)\s?[(\[*]*[A-Z](?![A-Za-z\d])")
_CHOICES = [
    re.compile(_SAYS + _LETTER + _NO_CLAUSE),
    re.compile(
        r"(?i:\b(?:choose|pick|select|go with|going with|chose)\b(?: the)?|选择?|選擇?)\s?"
        + _LETTER
        + _NO_CLAUSE
    ),
    re.compile(
        r"(?:^|(?<=[\s(*]))(?P<letter>[A-Z])[)*.]*\s(?:is|must be|seems)\s(?:therefore\s)?"
        r"(?:the\s)?"
        r"(?:correct|right|best|true|most \w+)(?:\s(?:answer|option|choice|one))?(?![a-z])"
    ),
]
_BOLD = re.compile(r"\*\*\s?(?:Option|Choice|Answer:?)?\s?\(?([A-Z])(?:\*\*|[).:][^*\n]*\*\*)")
_MARKS = r"[\s*_$\"”“'`]*"
_LABEL = rf"{_MARKS}(?:(?:option|choice|answer)\b[:\s]*)?"
_BARE = re.compile(rf"{_LABEL}\(?([A-Z])[).:]*{_MARKS}", re.I)
# `A`, `(A)`, and such with what the choice says: `A) 42`, `A. red`, `(A) 42`.
_ALONE = re.compile(rf"(?:{_BARE.pattern}|{_LABEL}(?:([A-Z])[).:]|\(([A-Z])\))(?=[\s\\]).*)", re.I)
_LAST = re.compile(r"(?:^|[\s(*$…]|\.\.)(?:\(([A-Z])\)|([A-HJ-Z]))[).*_$}!\"”]*$")
_CLAIM = r"\b(?:statement|claim|assertion|proposition|conjecture)\b(?: above| given)? is\s?[*_\"“]*"
_OPENS = (
    r"(?:^|[.!?:\n。]\s?|\*\*)(?:so|therefore|thus|hence|finally|in conclusion|overall|in short)?"
    r",?\s?[*_\"“]{,4}"
)


def boxed_answers(text: str) -> list[str]:
    r"""What the last boxes of an answer say together, in their order; empty without a box.

    Several count together where they stand beside each other and none is revoked; one that
    holds another, and one that says the same again, is left out.

    Example:
        >>> boxed_answers(r"\boxed{1}. Wait: $x=\boxed{2}$ or $\boxed{3}$")
        ['2', '3']
    """
    found: dict[str, str] = {}  # the last that says so
    later = None  # where the box behind begins
    for start, end in reversed(_innermost(text)):
        if later is not None and not _beside(text[end:later]):
            break
        later, value = text.rfind("\\boxed", 0, start), text[start:end].strip()
        found.setdefault(plain(value), value)
    return list(found.values())[::-1]


def linked(text: str) -> bool:
    """Whether the last two boxes are parted by `and`, `or` or a comma: neither stands alone."""
    spans = _innermost(text)[-2:]
    if len(spans) < 2:
        return False
    (_, end), (start, _) = spans
    between = _SPACE.sub("", text[end : text.rfind("\\boxed", 0, start)])
    return bool(_LINK.fullmatch(between))


def statement(text: str) -> str | None:
    """What stands behind the last "answer is" or the like, to the end of its sentence.

    Example:
        >>> statement("Let me add. The answer is $3$ apples. Done.")
        '$3$ apples'
    """
    found = list(_SAID.finditer(text))
    if not found:
        return None
    rest = text[found[-1].end() :].lstrip(" *_\n")
    end = _END.search(rest)
    return rest[: end.start() if end else None].strip("*_ ") or None


def letter(text: str) -> str | None:
    """The letter of a choice as a box or a reference has it: `A`, `(A)`, `A) 42`, `\\text{A. red}`.

    Example:
        >>> letter("(B)"), letter("b. Paris"), letter("AB"), letter("x")
        ('B', 'B', None, 'X')
    """
    bare = re.sub(r"\\[,;: ]|\\q?quad", " ", text).replace("**", "")
    found = _ALONE.fullmatch(untexted(bare).strip())
    return next(each for each in found.groups() if each).upper() if found else None


def stated_letter(text: str) -> str | None:
    """The letter that an answer without a box chooses; None where it chooses none, or several.

    Example:
        >>> stated_letter("A good start. The answer is (C)."), stated_letter("A or B. I pass.")
        ('C', None)
    """
    found = [match for pattern in _CHOICES for match in pattern.finditer(text)]
    if found:
        last = max(found, key=lambda match: match.end("letter"))
        before = (other for other in _CHOICES[0].finditer(text) if other.end() <= last.start())
        apart = any(
            other["letter"] != last["letter"] and _beside(text[other.end() : last.start()])
            for other in before
        )
        return None if apart or _MORE.match(text, last.end("letter")) else last["letter"]
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return None
    bold = {match[1] for match in _BOLD.finditer(text)}
    if len(bold) > 1:
        bold = {match[1] for match in _BOLD.finditer(lines[-1])}
    if len(bold) == 1:
        return bold.pop()
    alone = [letter(line) if re.search(r"[A-Z]", line) else None for line in lines]
    if len(labels := {each for each in alone if each}) == 1 and (alone[0] or alone[-1]):
        return labels.pop()  # several: a list of the choices
    if (bare := _BARE.fullmatch(lines[-1])) and bare[1].isupper():
        return str(bare[1])
    ending = _LAST.search(lines[-1])
    return (ending[1] or ending[2]) if ending else None


def stated_word(text: str, word: str) -> str | None:
    """The word of a pair (yes, no; true, false) that an answer without a box states.

    Args:
        text: the answer.
        word: one of the pair, in small letters.

    Example:
        >>> stated_word("Yes, it is.", "no"), stated_word("No one knows.", "no")
        ('yes', None)
    """
    pair = next(words for words in VERDICTS if word in words)
    either = f"({'|'.join(pair)})"
    subject = rf"|{_CLAIM}" if word in VERDICTS[1] else ""
    clear = rf"(?:{_SAYS}{_MARK}|\*\*\s?(?=\w+[.!]?\s?\*\*){subject}){either}(?![a-z])"
    said = re.findall(clear, text, re.I)
    if not said:
        said = re.findall(rf"{_OPENS}{either}(?=[*_\"”]*\s?(?:[,.!:;—–-]|$))", text, re.I | re.M)
    return str(said[-1]).lower() if said else None


def _innermost(text: str) -> list[tuple[int, int]]:
    """Spans of the boxes that hold no other."""
    spans = boxes(text)
    starts = [start for start, _ in spans[1:]]
    return [
        span for span, after in zip(spans, [*starts, len(text)], strict=False) if span[1] <= after
    ]


def _beside(between: str) -> bool:
    """Whether two boxes with this text between them are values of one answer."""
    return len(between) <= BESIDE and not _REVOKED.search(between)
