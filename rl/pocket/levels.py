"""The levels of the task: how problems of each are drawn, its model is taught, and held to what.

A level is a row of `LEVELS`; the embedded model that is taught on it has its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from probing.errors import ConfigError
from probing.settings import unknown
from rl.pocket.task import TaskConfig


@dataclass(frozen=True)
class PretrainConfig:
    """How a model is taught. The defaults are those of the model `pocket` that ships.

    Raises:
        ValueError: a size or rate that is not positive, or a seed of held-out problems.
    """

    seed: int = 0
    steps: int = 1200
    batch: int = 32
    muon_rate: float = 4e-3
    adam_rate: float = 2e-3
    warmup: int = 50
    final_rate: float = 0.02  # of the peak, at the end of the cosine
    cycles: int = 1  # cosines, each from half the peak of the one before
    weight_decay: float = 0.01
    sharpen: float = 1.0  # what multiplies the trained logits: above 1, slips of the pen are rarer
    threads: int = 1
    log_every: int = 50
    width: int = 128
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    mlp: int = 256
    start: str | None = None  # the embedded model whose weights it begins with; None: from scratch
    task: TaskConfig = field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        sizes = [self.steps, self.batch, self.muon_rate, self.adam_rate, self.threads, self.width]
        if self.cycles < 1 or self.steps < self.cycles or self.sharpen <= 0:
            raise ValueError(f"a cycle needs a step, and sharpen must be positive: {self}")
        if min(sizes) <= 0 or self.warmup < 1 or not 0 <= self.final_rate <= 1:
            raise ValueError(f"steps, batch, rates, threads and sizes must be positive: {self}")
        if not 0 <= self.seed < 1_000_000:
            raise ValueError(f"seeds from 1,000,000 on are for held-out problems: {self.seed}")
        if self.width % self.heads or self.heads % self.key_value_heads:
            raise ValueError("the width must divide into heads, and these into key-value groups")


@dataclass(frozen=True)
class Level:
    """One row: the recipe, in it the settings of the task, and what the model must reach.

    Args:
        recipe: of `rl.pocket.pretrain`.
        max_tokens: no honest response needs more.
        traces: labelled ones that ship.
        targets: what makes the trade-off real: the range of each figure of `rl.pocket.measure`.
        head_targets: least score of the three best heads, chosen by SRA on the other half.
    """

    recipe: PretrainConfig
    max_tokens: int
    traces: int
    targets: Mapping[str, tuple[float, float]]
    head_targets: Mapping[str, float]

    @property
    def task(self) -> TaskConfig:
        """How problems and traces are drawn."""
        return self.recipe.task


# On the long level any product may earn a check, and no sum goes wrong: checks of sums buy nothing.
LONG = TaskConfig(
    path_lengths=(9, 10, 11),
    distractors=(1, 2, 3),
    hard=0.45,
    max_hard=6,
    easy_error=0.0,
    check_first_hard=0.85,
    check_later_hard=0.85,
)
LEVELS = {
    "pocket": Level(
        recipe=PretrainConfig(),
        max_tokens=512,
        traces=500,
        targets={
            "greedy_over_shortest": (2.5, 10.0),
            "greedy_accuracy": (0.75, 0.90),
            "no_checks_cost": (0.10, 1.0),
            "no_easy_checks_cost": (-1.0, 0.01),
        },
        head_targets={"sra": 0.95, "balanced": 0.90, "gating": 0.85},
    ),
    "pocket-long": Level(
        recipe=PretrainConfig(
            start="pocket",
            task=LONG,
            steps=2200,
            cycles=2,
            batch=12,
            muon_rate=3e-3,
            adam_rate=1.5e-3,
            warmup=20,
            log_every=25,
            sharpen=1.1,
        ),
        max_tokens=640,
        traces=300,
        targets={
            "greedy_over_shortest": (2.0, 10.0),
            "sampled_accuracy": (0.70, 0.88),
            "sampled_read_share": (0.95, 1.0),
            "no_checks_cost": (0.10, 1.0),
            "no_easy_checks_cost": (-1.0, 0.01),
        },
        head_targets={"sra": 0.90, "balanced": 0.90, "gating": 0.85},
    ),
}


def level_of(name: str) -> Level:
    """The level of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in LEVELS:
        raise ConfigError(unknown("level", name, LEVELS))
    return LEVELS[name]
