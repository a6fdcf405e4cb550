r"""Is a mathematical answer right? What it states after `</think>`, compared with the reference.

The last `\boxed{…}` decides, or the last ones where they stand together. Without a box the last
"the answer is …" counts, then what math-verify finds; of a letter or a word what
`rl.tasks.answers` says. A response without `</think>` has no answer and is wrong, whatever its
reasoning says.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

from probing.choices import THINK_END
from probing.traces.text import BOX, answer_part, last_box
from rl.tasks.answers import (
    VERDICTS,
    boxed_answers,
    letter,
    linked,
    stated_letter,
    stated_word,
    statement,
)
from rl.tasks.forms import TEXT, formula, plain, terms, untexted
from rl.tasks.worker import Worker

TIMEOUT = 5  # seconds for one verdict
LONGEST_REFERENCE = 200  # characters; a longer one is prose, to which nothing is compared
LONGEST = 4000  # characters of a formula, and of an answer that states nothing, from its end
# A text: a word of four letters and what follows it, or one of a script that formulas do not use.
_WORDS = re.compile(
    r"[^\W\d_]{4,}(?:[ '.-]+[^\W\d_]+)*|yes|no|[^\W\d_\x00-\x7fα-ωΑ-Ω]+(?:\s+[^\W\d_]+)*", re.I
)
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_VALUE = re.compile(r"[\d$\\]")


def maths_correct(reference: str, response: str, think_end: str = THINK_END) -> bool:
    """Whether the answer of a response equals the reference.

    Equal are texts that agree but for blanks, and formulas of one value: ½ and 0.5, 1,000 and
    1000, 12 % and 12, 5 and 5 cm, sets in any order; tuples and words only as they stand. Letters
    of a choice and yes, no, true, false are found in a text without a box, too.

    Args:
        reference: the right answer, without a box.
        response: what the model wrote after the prompt.
        think_end: the text that ends the reasoning.

    Raises:
        Exception: what the parser raises, of any type; TimeoutError after 5 s.
    """
    answer = answer_part(response, think_end)
    if answer is None:
        return False
    boxed = boxed_answers(answer)
    if len(boxed) == 1 and plain(boxed[0]) == plain(reference):
        return True
    return bool(_worker().call("decide", reference, answer))


def maths_readable(reference: str) -> bool:
    """Whether a reference is a text, or a formula that math-verify reads and finds equal to itself.

    Responses with any other reference can be right only letter by letter.

    Raises:
        Exception: what the parser raises, of any type; TimeoutError after 5 s.
    """
    return bool(_worker().call("readable", reference))


def maths_verdict(reference: str, answer: str) -> bool | None:
    r"""Whether an answer is right; None where it cannot be told.

    That is so where the reference is no answer that can be read (a proof, a program), where it is
    a text that the answer does not state, and where the verifier fails or takes too long.

    Args:
        reference: the right answer, or a solution that states it (see `final_answer`).
        answer: what stands behind the end of the reasoning.

    Example:
        >>> maths_verdict(r"So it is $\boxed{4}$.", r"\boxed{4}")
        True
    """
    reference = final_answer(reference)
    try:
        if maths_correct(reference, answer, think_end=""):
            return True
        if len(reference) > LONGEST_REFERENCE:
            return None
        known = _readable(reference) and not maths_unstated(reference, answer)
    except Exception:  # noqa: BLE001  # parsers raise anything
        return None
    return False if known else None


@lru_cache(maxsize=10_000)
def _readable(reference: str) -> bool:
    return maths_readable(reference)


def maths_unstated(reference: str, answer: str) -> bool:
    """Whether a reference is met only where an answer says it is the answer, and none does so.

    Such are texts but for letters of a choice, yes, no, true and false: in a running text any
    word might be meant. They are read in a box and behind "the answer is".
    """
    words = _words(reference)
    if words is None or _choice(reference) or any(words in pair for pair in VERDICTS):
        return False
    return not boxed_answers(answer) and statement(answer) is None


def final_answer(text: str) -> str:
    r"""The final answer of a reference: in its last boxes, or behind GSM8K's `####`; else the text.

    `####` counts on the last line alone. Dollar signs around a formula are taken off.

    Example:
        >>> final_answer("She sells 9 * 2 = 18. #### 18")
        '18'
        >>> final_answer(r"So $x=\boxed{2}$ or $x=\boxed{3}$.")
        '2, 3'
    """
    if boxed := boxed_answers(text):
        answer = ", ".join(boxed)
    else:
        answer = text.strip()
        _, marked, behind = answer.rpartition("####")
        if marked and "\n" not in behind.strip():
            answer = behind.strip()
    inline = re.fullmatch(r"\$([^$]+)\$", answer)
    return inline[1].strip() if inline else answer


@cache
def _worker() -> Worker:
    return Worker("rl.tasks.maths", TIMEOUT, loads="rl.tasks.equality")


# In the worker's process


def decide(reference: str, answer: str) -> bool:
    """The verdict on an answer: by its boxes where it has some, else by what it states."""
    boxed = boxed_answers(answer)
    if not boxed:
        return _unboxed(reference, answer)
    together = ", ".join(boxed)
    if len(boxed) > 1 and linked(answer):  # "2 or 3" does not say 3
        return _means(reference, together) or all(_means(reference, each) for each in boxed)
    several = len(boxed) > 1 and len(terms(reference.strip(" ()[]{}\\$"))) > 1
    return _means(reference, boxed[-1]) or (several and _means(reference, together))


def readable(reference: str) -> bool:
    """See `maths_readable`."""
    from rl.tasks.equality import equal_formulas, is_formula

    if _words(reference) is not None:
        return True
    if last_box(f"{BOX}{reference}}}") != reference.strip():
        return False
    return is_formula(reference) and equal_formulas(reference, reference)


def _means(reference: str, given: str) -> bool:
    """Whether the text of a box, or a bare statement, is the reference."""
    from rl.tasks.equality import equal_formulas

    if plain(given) == plain(reference):
        return True
    if choice := _choice(reference):
        return letter(given) == choice
    words = _words(reference)
    if words is not None:  # to the parser they are products of letters, equal to any anagram
        said = (
            stated_word(untexted(given), words) if any(words in pair for pair in VERDICTS) else None
        )
        return words in (_spoken(given), said)
    if max(len(given), len(reference)) > LONGEST:
        return False
    return equal_formulas(reference, given)


def _unboxed(reference: str, answer: str) -> bool:
    """The verdict on an answer without a box."""
    from rl.tasks.equality import equal_to_text, is_formula

    answer = "\n".join(" ".join(line.split()) for line in answer.splitlines() if line.strip())
    if choice := _choice(reference):
        return stated_letter(answer) == choice
    words, said = _words(reference), statement(answer)
    if words is not None:
        if any(words in pair for pair in VERDICTS):
            return stated_word(answer, words) == words
        return words in {_spoken(each) for each in (said, answer) if each}
    if said is not None and plain(said) == plain(reference):
        return True
    if said is not None and _VALUE.search(formula(said)):
        if len(said) > LONGEST:
            return False
        if not _PROSE.search(untexted(formula(said))) and is_formula(said):
            return _means(reference, said)
        return equal_to_text(reference, f"The answer is {said}")
    return equal_to_text(reference, answer[-LONGEST:])


def _choice(reference: str) -> str | None:
    """The letter of a reference that is a choice; a small letter is a variable."""
    found = letter(reference)
    return found if found and found in plain(reference)[:2] else None


def _words(reference: str) -> str | None:
    """A reference that is a text, not a formula, as it is compared; else None."""
    inner = TEXT.fullmatch(reference.strip())
    text = inner[1] if inner else reference
    worded = not re.search(r"\d", text) if inner else _WORDS.fullmatch(text.strip())
    return _spoken(text) if worded else None


def _spoken(text: str) -> str:
    """A text as it is compared with others."""
    return plain(text).strip("()*_\"'“”!?").lower()
