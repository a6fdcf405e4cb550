"""Settings of an evaluation. Light: the command line's too."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from probing.errors import ConfigError
from probing.settings import choice
from rl.sampling.config import AskConfig

# Samples a question in the paper's validation, at temperature 0.6 and top-p 0.95.
PAPER_SAMPLES = {
    "gsm8k": 4,
    "math500": 4,
    "olympiadbench": 4,
    "amc23": 16,
    "aime2024": 16,
    "aime2025": 16,
}


@dataclass(frozen=True)
class EvalConfig(AskConfig):
    """All settings of an evaluation, checked on creation: what is asked, and what is computed.

    Raises:
        ConfigError: values that are out of range or contradict each other.
    """

    _: KW_ONLY
    preset: Literal["paper"] | None = choice(
        None, "Samples a question as in the paper, by benchmark."
    )
    budgets: tuple[int, ...] = choice(
        (), "Accuracy within so many tokens, such as 2048,4096.", least=1
    )
    base: Path | None = choice(None, "A former evaluation (folder), to compute AES against.")

    def __post_init__(self) -> None:
        """Check what can be known before anything is read."""
        super().__post_init__()
        if self.preset == "paper" and (self.temperature, self.top_p) != (0.6, 0.95):
            raise ConfigError("preset paper is temperature 0.6 and top-p 0.95: leave them out")
        if max(self.budgets, default=0) > self.max_tokens:
            raise ConfigError(
                f"a budget of {max(self.budgets)} tokens cannot be told from --max-tokens "
                f"{self.max_tokens}: raise the latter"
            )

    def samples_of(self, name: str) -> int:
        """Responses to a question of the set of this name."""
        if self.preset == "paper":
            return PAPER_SAMPLES.get(re.sub(r"[^a-z0-9]", "", name.lower()), self.samples)
        return self.samples
