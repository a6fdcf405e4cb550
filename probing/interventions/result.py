"""What interventions gave, from memory or from disk: effects, differences, claims, outcomes."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from probing.errors import DataError
from probing.files.headers import HEADER, file_header, read_object, write_json
from probing.files.jsonl import read_lines
from probing.interventions.claims import Claim, claim_caveats, claims_of
from probing.interventions.effects import differences, dose_response, summarise
from probing.interventions.outcomes import Outcome

RESULT = "ablation.json"
OUTCOMES = "outcomes.jsonl"


@dataclass(frozen=True, eq=False)
class InterventionResult:
    """What interventions gave.

    Args:
        header: who made it, when; and `settings`, all that decided the outcomes.
        head_set: its `heads`, and the card of the `model` that it is of.
        counts: what was used and what was left out, by reason.
        table: mean of each measure by part, arm, mode and dose, with 95 % intervals over problems
            (`probing.interventions.effects.summarise`).
        differences: every arm minus what it is held against, paired by trace.
        claims: what is claimed, and whether the intervals say so.
        dose_correlations: of steering, by arm: the mean over traces of the rank correlation of
            factor and `follow`, with its interval.
        outcomes: one a trace, arm, mode, dose and draw.
    """

    header: dict[str, Any]
    head_set: dict[str, Any]
    counts: dict[str, Any]
    table: pd.DataFrame
    differences: pd.DataFrame
    claims: tuple[Claim, ...]
    dose_correlations: dict[str, dict[str, Any]]
    outcomes: tuple[Outcome, ...]

    @classmethod
    def of(
        cls,
        outcomes: Sequence[Outcome],
        settings: dict[str, Any],
        head_set: dict[str, Any],
        counts: dict[str, Any],
    ) -> InterventionResult:
        """Summarise outcomes, and hold the claims against them; `settings` has the seed."""
        seed = settings["seed"]
        paired = differences(outcomes, seed)
        return cls(
            file_header("ablation", settings=settings),
            head_set,
            counts,
            summarise(outcomes, seed),
            paired,
            tuple(claims_of(paired)),
            dose_response(outcomes, seed),
            tuple(outcomes),
        )

    @classmethod
    def load(cls, folder: str | Path) -> InterventionResult:
        """From the folder that `write` wrote to.

        Raises:
            DataError: no finished intervention, or a damaged file.
        """
        folder = Path(folder)
        try:
            lines = read_lines(folder / OUTCOMES)[0] if (folder / OUTCOMES).is_file() else []
            outcomes = [Outcome(**outcome) for line in lines for outcome in line["outcomes"]]
            return cls.from_json(read_object(folder / RESULT), outcomes)
        except (AttributeError, DataError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder}: no finished intervention ({error}); run `kfh ablate --out {folder}` "
                "first"
            ) from error

    @classmethod
    def from_json(
        cls, content: dict[str, Any], outcomes: Sequence[Outcome] = ()
    ) -> InterventionResult:
        """From the content of `ablation.json`, with its header."""
        return cls(
            content[HEADER],
            content["head_set"],
            content["counts"],
            pd.DataFrame(content["summary"]),
            pd.DataFrame(content["differences"]),
            tuple(map(Claim.from_json, content["verdicts"])),
            content.get("dose_correlations", {}),
            tuple(outcomes),
        )

    @property
    def heads(self) -> list[tuple[int, int]]:
        """The chosen heads as `(layer, head)`."""
        return [(layer, head) for layer, head in self.head_set["heads"]]

    @property
    def caveats(self) -> list[str]:
        """What is to be held against it, in sentences."""
        return claim_caveats(self.claims, self.table)

    def to_json(self) -> dict[str, Any]:
        """The content of `ablation.json`, without its header."""
        return {
            "head_set": self.head_set,
            "counts": self.counts,
            "summary": self.table.to_dict("records"),
            "differences": self.differences.to_dict("records"),
            "verdicts": [claim.to_json() for claim in self.claims],
            "dose_correlations": self.dose_correlations,
        }

    def write(self, folder: Path) -> None:
        """Write `ablation.json`, whole or not at all."""
        write_json(folder / RESULT, {HEADER: self.header, **self.to_json()})

    def _repr_html_(self) -> str:
        """For notebooks: the means of every arm, the claims, and the caveats."""
        columns = ["part", "arm", "mode", "dose", "measure", "value", "low", "high", "traces"]
        claims = [
            {
                "part": claim.question.part,
                "claim": claim.text,
                "mode": claim.mode,
                **{name: dose[name] for name in ("dose", "holds", "value", "low", "high")},
            }
            for claim in self.claims
            for dose in claim.doses
        ]
        tables = (self.table[columns], pd.DataFrame(claims))
        parts = [of.to_html(index=False, float_format="{:.3f}".format) for of in tables]
        caveats = [f"<p>Caveat: {html.escape(text)}</p>" for text in self.caveats]
        return "\n".join([*parts, *caveats])
