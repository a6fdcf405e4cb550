"""Is a mathematical answer right? math-verify compares what stands after `</think>`.

The last `\boxed{…}` decides; without a box math-verify finds the answer in the text. A response
without `</think>` has no answer and is wrong, whatever its reasoning says.
"""

from __future__ import annotations

import logging
import re
import threading

from probing.choices import THINK_END
from probing.traces.text import BOX, answer_part, last_box

TIMEOUT = 5  # seconds for one parse or comparison
LONGEST = 4000  # characters of an answer without a box that are looked at, from its end

# It says at every call in a thread that its time-out is off, which is meant (see `_timeout`).
logging.getLogger("math_verify").setLevel(logging.ERROR)

_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox)\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]{4,}(?:[ '.-]+[^\W\d_]+)*")


def maths_correct(reference: str, response: str, think_end: str = THINK_END) -> bool:
    """Whether the answer of a response equals the reference.

    Equal are texts that agree but for blanks, and what math-verify holds equal: ½ and 0.5, 1,000
    and 1000, 12 % and 12, 5 and 5 cm, sets in any order; tuples and words only as they stand.

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
    box = last_box(answer)
    if box is not None and _plain(box) == _plain(reference):
        return True
    words = _words(reference)
    if words is not None:  # to the parser they are products of letters, equal to any anagram
        return box is not None and _plain(box).strip("()").lower() == words
    return _equal(f"{BOX}{reference}}}", answer[-LONGEST:] if box is None else f"{BOX}{box}}}")


def maths_readable(reference: str) -> bool:
    """Whether a reference is a text, or a formula that math-verify reads and finds equal to itself.

    Responses with any other reference can be right only letter by letter.

    Raises:
        Exception: what the parser raises, of any type; TimeoutError after 5 s.
    """
    boxed = f"{BOX}{reference}}}"
    if _words(reference) is not None:
        return True
    return last_box(boxed) == reference.strip() and _equal(boxed, boxed, formula=True)


def final_answer(text: str) -> str:
    """The final answer of a reference: after GSM8K's `####`, or in the last box; else the text.

    Dollar signs around a formula are taken off.

    Example:
        >>> final_answer("She sells 9 * 2 = 18. #### 18")
        '18'
    """
    if "####" in text:
        return text.rpartition("####")[2].strip()
    box = last_box(text)
    answer = text.strip() if box is None else box
    formula = re.fullmatch(r"\$([^$]+)\$", answer)
    return formula[1].strip() if formula else answer


def _equal(reference: str, answer: str, formula: bool = False) -> bool:
    """math-verify's verdict on two texts.

    With `formula` a reference that it can only compare as a string is equal to nothing.
    """
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    limit = _timeout()
    try:
        right = parse(reference, parsing_timeout=limit, raise_on_error=True)
        if formula and all(isinstance(reading, str) for reading in right):
            return False
        given = parse(answer, parsing_timeout=limit, raise_on_error=True)
        return bool(verify(right, given, timeout_seconds=limit, raise_on_error=True))
    except TimeoutException as error:  # a BaseException, which would end the program
        raise TimeoutError(f"math-verify took longer than {TIMEOUT} s") from error


def _timeout() -> int | None:
    """Its time-out is a signal, which only the main thread can set; elsewhere there is none."""
    return TIMEOUT if threading.current_thread() is threading.main_thread() else None


def _plain(text: str) -> str:
    """Without blanks, `\\text{…}`, `\\left`, `\\right`, dollar signs and a final full stop."""
    text = _TEXT.sub(r"\1", text)
    text = re.sub(r"\\left(?![a-z])|\\right(?![a-z])|\\[,;!: ]|\\?\$|\s", "", text)
    return text.removesuffix(".")


def _words(reference: str) -> str | None:
    """A reference that is a text, not a formula, as it is compared; else None."""
    inner = _TEXT.fullmatch(reference.strip())
    text = inner[1] if inner else reference
    if inner or _WORDS.fullmatch(text.strip()):
        return _plain(text).strip("()").lower()
    return None
