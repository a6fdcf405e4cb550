r"""Multiple choice: GPQA and MMLU. The choices are shuffled by the seed, question by question.

GPQA (`Idavidrein/gpqa`, arXiv 2311.12022): `Question`, `Correct Answer`, `Incorrect Answer 1` to
`3`, `Record ID`. MMLU (`cais/mmlu`, arXiv 2009.03300): `question`, `choices`, `answer` (a number
from 0, or a letter), `subject`. In both the right choice would stand where the file has it.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from probing.files.reading import BadLine
from rl.tasks.answers import boxed_answers, letter, stated_letter, statement
from rl.tasks.base import Question, Verdict
from rl.tasks.forms import plain, untexted
from rl.tasks.questions import FileTask

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Choices(FileTask):
    """Questions of which one choice is right; a subclass reads a row."""

    instruction = (
        "Please reason step by step, and put the letter of the right choice within \\boxed{}."
    )

    @abstractmethod
    def parts(self, row: Mapping[str, Any]) -> tuple[str, list[str], int]:
        """The question of a row, its choices, and which of them is right.

        Raises:
            BadLine: what is wrong with it.
        """

    def question(self, row: Mapping[str, Any], name: str, seed: int) -> Question:
        """The question with its choices in an order drawn from the seed and its id.

        `meta` has the choices as they are shown, and `order`, the place of each in the file.
        """
        asked, choices, right = self.parts(row)
        given = row.get("id", row.get("Record ID"))
        name = name if given is None else str(given)
        order = list(range(len(choices)))
        random.Random(f"{seed}/{name}").shuffle(order)
        shown = [choices[place] for place in order]
        lines = [f"{mark}) {choice}" for mark, choice in zip(LETTERS, shown, strict=False)]
        meta = {"choices": shown, "order": order}
        if subject := row.get("subject", row.get("Subdomain")):
            meta["subject"] = subject
        text = "\n".join([asked.strip(), "", *lines])
        return Question(name, text, LETTERS[order.index(right)], meta)

    def correct(self, question: Question, answer: str) -> bool:
        """Whether the answer chooses the right choice."""
        return self.verdict(question, answer).correct

    def verdict(self, question: Question, answer: str) -> Verdict:
        """The verdict, with the order of the choices and the letter that was chosen."""
        found = chosen(answer, question.meta["choices"])
        return Verdict(found == question.answer, {"order": question.meta["order"], "chosen": found})

    def unstated(self, question: Question, answer: str) -> bool:
        """Whether the answer chooses nothing, or more than one."""
        return chosen(answer, question.meta["choices"]) is None


class GPQA(Choices):
    """`gpqa[:FILE or hub:…]`."""

    name = "gpqa"
    default = "hub:Idavidrein/gpqa@gpqa_diamond:train"

    def parts(self, row: Mapping[str, Any]) -> tuple[str, list[str], int]:
        """See `Choices.parts`."""
        wrong = [f"Incorrect Answer {number}" for number in (1, 2, 3)]
        asked, *choices = (_text(row, key) for key in ("Question", "Correct Answer", *wrong))
        return asked, choices, 0


class MMLU(Choices):
    """`mmlu[:FILE or hub:…]`. The test set is sorted by subject: `--limit` takes the first ones."""

    name = "mmlu"
    default = "hub:cais/mmlu@all:test"

    def parts(self, row: Mapping[str, Any]) -> tuple[str, list[str], int]:
        """See `Choices.parts`; raises BadLine."""
        asked, choices, right = _text(row, "question"), row.get("choices"), row.get("answer")
        if not isinstance(choices, (list, tuple)) or not 2 <= len(choices) <= len(LETTERS):
            raise BadLine("wrong type", f"choices must be a list of 2 or more, is {choices!r:.60}")
        if isinstance(right, str) and right in LETTERS[: len(choices)]:
            right = LETTERS.find(right)
        if type(right) is not int or not 0 <= right < len(choices):
            raise BadLine("wrong type", f"answer {right!r:.60} is none of {len(choices)} choices")
        return asked, [str(choice) for choice in choices], right


def chosen(answer: str, choices: Sequence[str]) -> str | None:
    r"""The letter that an answer chooses; None where it chooses nothing, or more than one.

    It stands in the last box, or the boxes beside it; without a box behind "the answer is" and the
    like, or alone. A choice may be written out, with its letter or without.

    Args:
        answer: what stands behind the end of the reasoning.
        choices: in the order of their letters.

    Example:
        >>> chosen(r"So \boxed{C}.", ["1", "2", "3"]), chosen("The answer is two.", ["one", "two"])
        ('C', 'B')
        >>> chosen(r"\boxed{A} or \boxed{B}", ["1", "2"]) is None
        True
    """
    if boxed := boxed_answers(answer):
        found = {_choice(text, choices) for text in boxed}
        return found.pop() if len(found) == 1 else None
    said = statement(answer)
    written_out = said is not None and letter(said) is None
    return stated_letter(answer) or (_choice(said, choices) if said and written_out else None)


def _choice(text: str, choices: Sequence[str]) -> str | None:
    """The letter of a text that is a choice, or its letter; None where the two are at odds."""
    marked = letter(text)
    words = untexted(text).strip("( ")[1:].lstrip(").: ") if marked else text
    pairs = zip(LETTERS, choices, strict=False)
    same = [mark for mark, choice in pairs if _spoken(choice) == _spoken(words)]
    if marked:
        return marked if not same or marked in same else None
    return same[0] if len(same) == 1 else None


def _spoken(text: str) -> str:
    return plain(untexted(text)).strip(" .").lower()


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        kind = "missing field" if value is None else "wrong type"
        raise BadLine(kind, f"{key} must be a text that is not empty, is {value!r:.60}")
    return value.strip()
