"""Settings of a labelling by judges. Light: the command line's too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from probing.settings import check, choice
from rl.judges.votes import Consensus

BY_JUDGES = "By judges"  # panel of the command line
CACHE = "judge-cache"


@dataclass(frozen=True)
class JudgingConfig:
    """How judges are asked, and when their word counts.

    Raises:
        ConfigError: a value that is no choice or out of bounds.
    """

    consensus: Consensus = choice("unanimous", "Of all judges.", panel=BY_JUDGES)
    concurrency: int = choice(
        8, "Requests at a time, to all judges together.", least=1, panel=BY_JUDGES
    )
    rate: float = choice(
        0.0, "Requests a second to each judge; 0: no limit.", least=0, panel=BY_JUDGES
    )
    cache: Path | None = choice(
        None, "Folder of their answers; default: judge-cache beside --out.", panel=BY_JUDGES
    )
    limit: int | None = choice(
        None, "Traces to label, the first ones; default all.", least=1, panel=BY_JUDGES
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self)

    def cache_beside(self, out: Path) -> Path:
        """The folder of the answers for a label file; label files of one folder share it."""
        return self.cache or out.parent / CACHE
