"""Settings of head types. Light: the command line's too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from probing.errors import ConfigError
from probing.settings import check, choice

HeadType = Literal[
    "receiver",
    "receiver-ranked",
    "retrieval",
    "induction",
    "previous",
    "qr",
    "span",
    "sink",
    "gradient",
]
Calibrate = Literal["none", "null"]
NULL_ANSWER = "N/A"
TYPES: tuple[HeadType, ...] = get_args(HeadType)
CHEAP = tuple(name for name in TYPES if name != "gradient")


@dataclass(frozen=True)
class TypesConfig:
    """What is measured of the heads of a finished probe, checked on creation.

    Raises:
        ConfigError: a value that is no choice or out of bounds, or no type.
    """

    folder: Path = choice(help="Folder of a finished kfh probe.", argument="DIR")
    types: tuple[HeadType, ...] = choice(
        CHEAP, "Comma between; gradient takes a backward pass a trace."
    )
    rows: int | Literal["all"] = choice(
        4, "Rows of each step that are read, evenly spread.", least=1
    )
    receivers: int = choice(
        16, "Receiver heads whose mean scores steps; at most a tenth of all.", least=1
    )
    null_answer: str = choice(NULL_ANSWER, "The answer without content of qr and its calibration.")
    repeated: int = choice(50, "Random tokens that are repeated for induction.", least=2)
    draws: int = choice(10, "Inputs of random tokens.", least=1)
    top: int = choice(10, "Strongest heads of a type that the head set is held against.", least=1)
    causes: Path | None = choice(
        None, "Label file of kfh label by cause: what its steps cost the answer is a scorer, too."
    )
    traces: Path | None = choice(None, "The probe's trace file, where it has moved.")
    device: str = choice("auto", "auto, cpu, cuda, …")
    seed: int = choice(0, "Of random tokens and intervals.")
    resume: bool = choice(True, "Go on from the traces that are measured.")

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self)
        if not self.types or len(set(self.types)) < len(self.types):
            raise ConfigError(f"--types takes types, none twice, not {', '.join(self.types)!r}")

    @property
    def most(self) -> int | None:
        """Rows of each step; None: all."""
        return None if self.rows == "all" else self.rows

    def of_traces(self) -> dict[str, Any]:
        """What decides the figures of a trace, for resuming."""
        names = sorted({*self.types} - {"induction", "previous"})
        return {"types": names, "rows": self.rows, "null_answer": self.null_answer}
