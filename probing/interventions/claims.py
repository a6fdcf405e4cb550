"""What is claimed of an intervention, and whether the intervals say so, dose by dose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from probing.intervals import few_problems
from probing.interventions.effects import MATCHED, OTHER_STEP
from probing.interventions.outcomes import NONE, RANDOM
from probing.numbers import Number, exists

LOWER, HIGHER = "lower", "higher"
ZERO = 1e-12
FOLLOW, KEPT = "follow", "source_kept"  # measures of heads and steering
# Of each part, the measures that are claimed of; all else is said beside them.
MEASURES = {
    "steps": ("accuracy", "logprob"),
    "heads": ("accuracy", "logprob", KEPT, FOLLOW),
    "steering": (FOLLOW, "logprob", "accuracy"),
}
DIGITS = {"logprob": 2, "follow": 2}  # of measures in nats; others are shares
UNCHANGED = {"steps": 0.0, "heads": 0.0, "steering": 1.0}  # the dose of `none`


@dataclass(frozen=True)
class Question:
    """A claim on the difference of an arm and what it is held against, for every mode and dose.

    It holds at a dose where the whole interval lies on the side of zero that `way` names.
    `down`: doses below the one that changes nothing are meant; None: every dose.
    """

    part: str
    arm: str
    against: str
    way: str
    text: str  # with the measure's name to be put in
    down: bool | None = None
    only: str | None = None  # the one measure that it is asked of


QUESTIONS = (
    Question("steps", "high", NONE, LOWER, "removing high-score steps lowers {}"),
    Question("steps", "high", RANDOM, LOWER, "… more than removing random steps"),
    Question("steps", "high", MATCHED, LOWER, "… more than random steps of as many tokens"),
    Question("steps", "low", NONE, LOWER, "removing low-score steps lowers {}"),
    Question("steps", "low", RANDOM, HIGHER, "… less than removing random steps"),
    Question("heads", "chosen", NONE, LOWER, "ablating the chosen heads lowers {}"),
    Question("heads", "chosen", RANDOM, LOWER, "… more than random heads of the same layers"),
    Question("steering", "chosen", NONE, LOWER, "attention turned down lowers {}", True),
    Question("steering", "chosen", RANDOM, LOWER, "… more than that of random heads", True),
    Question("steering", "chosen", OTHER_STEP, LOWER, "… more than to another step", True),
    Question("steering", "chosen", NONE, HIGHER, "attention turned up raises {}", False, FOLLOW),
    Question("steering", "chosen", RANDOM, HIGHER, "… more than of random heads", False, FOLLOW),
    Question(
        "steering", "chosen", OTHER_STEP, HIGHER, "… more than to another step", False, FOLLOW
    ),
)


@dataclass(frozen=True)
class Claim:
    """The answer to a question in one mode: by dose, the difference with its interval."""

    question: Question
    measure: str
    mode: str
    doses: tuple[dict[str, Any], ...]  # dose, value, low, high, traces, holds

    @property
    def holds(self) -> bool:
        """Whether the intervals say so at every dose."""
        return all(dose["holds"] for dose in self.doses)

    @property
    def name(self) -> str:
        """Which arm is held against which, by what."""
        question = self.question
        arm = f"{question.part}, {question.arm} {self.mode}".strip()
        return f"{arm} against {question.against}, {self.measure}"

    @property
    def text(self) -> str:
        """The claim in words."""
        return self.question.text.format(self.measure)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Claim:
        """The claim of an entry of `ablation.json`."""
        names = ("part", "arm", "against", "way", "down", "only")
        question = Question(text=row["claim"], **{name: row[name] for name in names})
        return cls(question, row["measure"], row["mode"], tuple(row["doses"]))

    def to_json(self) -> dict[str, Any]:
        """The claim as it stands in `ablation.json`."""
        asked = {k: v for k, v in asdict(self.question).items() if k != "text"}
        return {
            **asked,
            "claim": self.text,
            "measure": self.measure,
            "mode": self.mode,
            "holds": self.holds,
            "doses": list(self.doses),
        }


def claims_of(differences: pd.DataFrame) -> Iterator[Claim]:
    """Every question that the differences can answer, part by part and measure by measure."""
    for part, measures in MEASURES.items():
        for measure in measures:
            for question in QUESTIONS:
                if question.part == part and question.only in (None, measure):
                    yield from _answers(question, measure, differences)


def _answers(question: Question, measure: str, differences: pd.DataFrame) -> Iterator[Claim]:
    """The claims of one question, a mode each."""
    chosen = (
        (differences["part"] == question.part)
        & (differences["arm"] == question.arm)
        & (differences["against"] == question.against)
        & (differences["measure"] == measure)
    )
    if question.down is not None:
        below = differences["dose"] < UNCHANGED[question.part]
        chosen &= below if question.down else ~below
    for mode, rows in differences[chosen].groupby("mode", sort=False):
        doses = tuple(_dose(row, question.way) for row in rows.to_dict("records"))
        yield Claim(question, measure, str(mode), doses)


def _dose(row: dict[Any, Any], way: str) -> dict[str, Any]:
    # A bound that is zero but for rounding is zero.
    holds = row["high"] < -ZERO if way == LOWER else row["low"] > ZERO
    kept = {name: row[name] for name in ("dose", "value", "low", "high", "traces", "groups")}
    return {**kept, "holds": bool(holds)}


def claim_caveats(claims: Iterable[Claim], table: pd.DataFrame) -> list[str]:
    """What to hold against interventions: claims that the intervals do not bear, dose by dose.

    That removing low-score steps lowers a measure is no claim of the method: it is a caveat where
    it is so. Where it is not shown, that does not show equality, which is said too.

    Args:
        claims: all that were held against the differences.
        table: of `probing.interventions.effects.summarise`.
    """
    sentences = []
    for claim in claims:
        for dose in claim.doses:
            if caveat := _caveat(claim.question, dose):
                difference = Number.of(dose, DIGITS.get(claim.measure, 3), signed=True)
                where = f"{difference} at {dose['dose']:g}, {dose['traces']} traces"
                sentences.append(f"{claim.name}: {where}: {caveat}")
    return sentences + few_problems(int(table["groups"].min()) if len(table) else 0)


def _caveat(question: Question, dose: dict[str, Any]) -> str:
    """What a claim at one dose leaves open; empty where nothing."""
    if (question.arm, question.against) == ("low", NONE):
        if dose["holds"]:
            return "low-score steps are needed, too."
        open_ = not exists(dose["low"]) or dose["low"] < 0
        return "no harm is shown, nor ruled out." if open_ else ""
    if dose["holds"]:
        return ""
    return "an effect is not shown." if question.against == NONE else "the control is not beaten."
