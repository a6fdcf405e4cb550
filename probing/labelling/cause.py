"""Labels by cause: a step is essential where the answer suffers without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probing.choices import ANSWERS
from probing.errors import ConfigError
from probing.files.jsonl import LineStore


def cause_label(drop: float, high: float, low: float) -> str | None:
    """Essential from `high` nats on, redundant up to `low`, between them no label (eq. 8).

    Example:
        >>> [cause_label(drop, 1.0, 0.1) for drop in (2.0, 0.5, -0.3)]
        ['essential', None, 'redundant']
    """
    if drop >= high:
        return "essential"
    return "redundant" if drop <= low else None


@dataclass(frozen=True)
class CauseConfig:
    """How steps are labelled by cause.

    Args:
        answer: which answer tokens count, see `encode_causes`.
        limit: the first so many answer tokens only; 0: all.
        high: total drop in nats from which a step is essential.
        low: total drop up to which it is redundant.
        deletion: measure deletion from the text as well.
    """

    answer: str = "all"
    limit: int = 32
    high: float = 0.5
    low: float = 0.01
    deletion: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.answer not in ANSWERS:
            raise ConfigError(f"unknown answer {self.answer!r}; choose {', '.join(ANSWERS)}")
        if self.limit < 0:
            raise ConfigError(f"the limit of answer tokens must not be negative, is {self.limit}")
        if not self.low < self.high:
            raise ConfigError(f"low must lie below high: {self.low} and {self.high} nats")


def labelled_already(store: LineStore, sizes: Mapping[str, int], resume: bool) -> set[str]:
    """Open a label file; the ids of the traces of which every step has its line.

    Args:
        store: of the label file; the lines of a trace stand together, in the order of its steps.
        sizes: number of steps of each trace that is to be labelled, by id.
        resume: go on with what is there.

    Raises:
        ConfigError: it holds labels made with other settings.
        DataError: a line is damaged, or out of order.
    """
    done: set[str] = set()
    following: tuple[str, int] | None = None

    def take(row: dict[str, Any]) -> bool:
        nonlocal following
        place = str(row["id"]), int(row["step"])
        name, step = place
        if place != (following or (name, 0)) or name not in sizes or name in done:
            raise ValueError(f"step {step} of {name} is out of order")
        if step + 1 < sizes[name]:
            following = name, step + 1
            return False
        done.add(name)
        following = None
        return True

    store.open(resume, take)
    return done
