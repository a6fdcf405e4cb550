"""Labels by rule, from phrases and repetition: quick, rough, and to be read as such.

A result is a number that a step states (behind its last equals sign, or anywhere in a step
without one) and that neither the problem nor an earlier step has stated. The first rule that
fits a step labels it:
1. A confused step (it opens with "Wait", "Let me check", …) without a result: redundant. It
   repeats what is known.
2. A step whose words and numbers all but repeat an earlier step: redundant.
3. A step with a result that the final answer states: essential.
4. A step with a result that a later step which is not confused states: essential.
5. A step with a result that nothing after it states: redundant. It led nowhere.
6. Any other step: no label.
Where the answer states no number (a letter, a word), or there is none, the rules do not apply: no
step has a label (`no_rules` says why).
The rules know nothing of what follows from what. How far they agree with labels of another origin
is for `kfh label --compare` to say; docs/LOG.md has two such comparisons.
"""

from __future__ import annotations

import re
import unicodedata

from probing.traces.file import Trace
from probing.traces.marks import blank_answer
from probing.traces.phrases import Phrases, opening
from probing.traces.text import EQUALS, NO_NAME, UNSPACED

REPEATED = 0.8  # share of a step's words and numbers that one earlier step has
MIN_WORDS = 4  # shorter steps repeat something by chance

_NUMBER = re.compile(rf"{NO_NAME}\d[\d,]*(?:\.\d+)?")
# Where words have no space between them each character stands for one.
_WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[^\W\d_])+|\d[\d,.]*\d|\d")


def numbers(text: str) -> list[str]:
    """The numbers of a text in one spelling: no thousands separators, no leading zeros, 0 to 9.

    Example:
        >>> numbers("so 1,024 + 07 = 1031.50"), numbers("答案是９２")
        (['1024', '7', '1031.50'], ['92'])
    """
    found = (_western(number.replace(",", "")) for number in _NUMBER.findall(text))
    return [re.sub(r"^0+(?=\d)", "", number) for number in found]


def _western(number: str) -> str:
    """The digits of other scripts, and wide ones, as 0 to 9."""
    return "".join(str(unicodedata.decimal(char, char)) for char in number)


def results(text: str) -> list[str]:
    """What a step states: the numbers behind its last equals sign, or all where it has none.

    Example:
        >>> results("First, 4 * 97 = 388, so w = 88."), results("it gives 12")
        (['88'], ['12'])
    """
    return numbers(re.split(f"[{EQUALS}]", text)[-1])


def no_rules(trace: Trace) -> str | None:
    """Why the rules cannot label a trace; None where they can."""
    answer = trace.answer_text()
    if blank_answer(answer):
        return "the answer is empty"
    return None if numbers(answer) else "the answer states no number"


def rule_labels(trace: Trace, phrases: Phrases | None = None) -> list[str | None]:
    """A label or None for each step of a trace, by the rules above.

    Args:
        trace: with its steps.
        phrases: which phrases are confused; default the published list.

    Returns:
        Of a trace that the rules cannot label (`no_rules`) None throughout.
    """
    if no_rules(trace):
        return [None] * len(trace.steps)
    phrases = phrases or Phrases.shipped()
    texts = [trace.response[step.start : step.end] for step in trace.steps]
    kinds = [opening(trace.response, step, phrases)[0] for step in trace.steps]
    confused = [kind in ("confused", "branching") for kind in kinds]
    answer = set(numbers(trace.answer_text()))
    stated = [set(numbers(text)) for text in texts]
    later: set[str] = set()  # numbers of the later steps that are not confused
    after: list[set[str]] = []
    for said, is_confused in zip(reversed(stated), reversed(confused), strict=True):
        after.append(set(later))
        later |= set() if is_confused else said
    after.reverse()
    known = set(numbers(trace.prompt))
    bags: list[frozenset[str]] = []
    labels = []
    for place, text in enumerate(texts):
        new = set(results(text)) - known
        bag = frozenset(_western(word).casefold() for word in _WORD.findall(text))
        label = None
        if (confused[place] and not new) or _repeats(bag, bags):  # 1, 2
            label = "redundant"
        elif new:  # 3, 4, 5
            label = "essential" if new & (answer | after[place]) else "redundant"
        labels.append(label)
        known |= stated[place]
        bags.append(bag)
    return labels


def _repeats(bag: frozenset[str], earlier: list[frozenset[str]]) -> bool:
    """Whether one earlier step has nearly all the words and numbers of this one."""
    if len(bag) < MIN_WORDS:
        return False
    return any(len(bag & other) >= REPEATED * len(bag) for other in earlier)
