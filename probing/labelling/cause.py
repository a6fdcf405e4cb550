"""Labels by cause: a step is essential where the answer suffers without it."""

from __future__ import annotations

from dataclasses import dataclass

from probing.choices import ANSWERS
from probing.errors import ConfigError


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
