"""What a comparison tries: its arms (a method under one pressure, from one seed), and the rules.

The pressure of a method is the constant that trades accuracy for length: c of TLMRE's reward (and
of what is built on it), the target length of `laser` and `dler`; `grpo` and `rloo` have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from probing.choices import POCKET
from probing.errors import ConfigError
from probing.models.processes import Shard
from probing.settings import check, choice, unknown
from rl.attnpo.methods import method_of, pressure_key
from rl.runs.folders import INITIAL, labelled

METHODS = ("grpo", "tlmre", "attnpo", "pa", "na", "random-heads", "recency", "oracle")
SMALL = ("grpo", "tlmre", "attnpo")


class Arm(NamedTuple):
    """One run of a comparison; `pressure` is None where it is the recipe's."""

    method: str
    pressure: float | None
    seed: int

    @property
    def name(self) -> str:
        """Its folder's name.

        Example:
            >>> Arm("tlmre", 0.3, 1).name, Arm("grpo", None, 0).name
            ('tlmre@0.3-1', 'grpo-0')
        """
        return f"{labelled(self._asdict())}-{self.seed}"

    @property
    def settings(self) -> list[str]:
        """Its pressure, as `kfh train --set` takes it."""
        if self.pressure is None:
            return []
        return [f"{pressure_key(self.method)}={self.pressure:g}"]


START = Arm(INITIAL, None, 0)  # the policy before training, measured like the others


def parse_pressures(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """`METHOD=VALUE,VALUE,…` texts as values by method, in their order.

    Raises:
        ConfigError: another form, an unknown method, one without a pressure, or a repeated value.

    Example:
        >>> parse_pressures(["tlmre=0.2,0.3", "dler=100"])
        {'tlmre': (0.2, 0.3), 'dler': (100.0,)}
    """
    found: dict[str, tuple[float, ...]] = {}
    for text in texts:
        method, _, listed = text.partition("=")
        pressure_key(method)
        try:
            values = tuple(float(value) for value in listed.split(","))
        except ValueError:
            raise ConfigError(f"--pressure {text}: write METHOD=0.2,0.3") from None
        if method in found or len({*values}) < len(values) or min(values) <= 0:
            raise ConfigError(f"--pressure {text}: each method once, each value once and above 0")
        found[method] = values
    return found


@dataclass(frozen=True)
class CompareConfig:
    """What to compare; settings of `kfh compare`. Each field's help says what it is.

    Raises:
        ConfigError: an unknown method, a pressure for a method that does not take part, or a
            setting that is not `key=value`.
    """

    out: Path = choice(Path("runs/compare"), "Folder of all runs, a folder each.")
    methods: tuple[str, ...] = choice((), "Methods; default: all of the table.")
    pressure: tuple[str, ...] = choice(
        (), "METHOD=0.2,0.3: constants that it is tried with; repeatable.", repeat=True
    )
    seeds: int | None = choice(None, "Seeds of each method; default 5, with --small 3.", least=1)
    steps: int = choice(60, "Training steps of each run.", least=1)
    every: int = choice(20, "Steps between two measurements of a run.", least=1)
    jobs: int = choice(1, "Runs at a time.", least=1)
    shards: str | None = choice(
        None, "i/n: the i-th of n shares of the runs alone, as a job array; then --table."
    )
    reported: str = choice("pocket-held-out:500", "Questions that figures are reported on.")
    validation: str = choice(
        "pocket:250@100", "Other questions, on which pressures are chosen; empty: none."
    )
    max_tokens: int = choice(512, "Of a response to them.", least=1)
    small: bool = choice(False, f"Only {', '.join(SMALL)}, and 3 seeds.")
    recipe: str | None = choice(None, "Recipe of all runs; default: each method's.")
    model: str = choice(POCKET, "Model that all runs begin with; another needs --recipe.")
    settings: tuple[str, ...] = choice(
        (), "key=value, for every run; repeatable.", option="--set", repeat=True
    )
    command: tuple[str, ...] = choice((), "What starts a training run.", option=False)

    def __post_init__(self) -> None:
        """Put the defaults in, and check."""
        object.__setattr__(self, "methods", self.methods or (SMALL if self.small else METHODS))
        if self.seeds is None:
            object.__setattr__(self, "seeds", 3 if self.small else 5)
        check(self)
        if len({*self.methods}) < len(self.methods):
            raise ConfigError(f"--methods names one twice: {','.join(self.methods)}")
        if INITIAL in self.methods:
            raise ConfigError(f"{INITIAL!r} is no method: it is always evaluated")
        if self.model != POCKET and self.recipe is None:
            raise ConfigError(f"--model {self.model} needs --recipe: the methods' are for {POCKET}")
        for method in self.methods:
            method_of(method)
        for method in self.pressures:
            if method not in self.methods:
                raise ConfigError(f"--pressure: {unknown('method', method, self.methods)}")
        if self.shards:
            Shard.parse(self.shards)
        for setting in self.settings:
            key, equals, _ = setting.partition("=")
            if not key or not equals:
                raise ConfigError(f"--set takes key=value, not {setting!r}")
            if key in ("max_steps", "save_steps", "model"):
                raise ConfigError(f"{key} is set by --steps, --every or --model")

    @property
    def pressures(self) -> dict[str, tuple[float, ...]]:
        """Pressures by method."""
        return parse_pressures(self.pressure)

    @property
    def arms(self) -> list[Arm]:
        """Every run, or every n-th: all methods and pressures of one seed before the next seed."""
        every = [
            Arm(method, pressure, seed)
            for seed in range(self.seeds or 0)
            for method in self.methods
            for pressure in self.pressures.get(method, (None,))
        ]
        return every if self.shard is None else every[self.shard.number - 1 :: self.shard.count]

    @property
    def shard(self) -> Shard | None:
        """Which share of the runs is this command's; None: all."""
        return Shard.parse(self.shards) if self.shards else None

    @property
    def starts(self) -> bool:
        """Whether it measures the policy before training: of several shards the first does."""
        return self.shard is None or self.shard.number == 1

    def folder(self, arm: Arm) -> Path:
        """The folder of one run."""
        return self.out / (INITIAL if arm == START else arm.name)

    def log(self, arm: Arm) -> Path:
        """The log of one run."""
        return self.out / "logs" / f"{arm.name}.log"

    def made_with(self, arm: Arm) -> dict[str, Any]:
        """What must agree for the result of an arm to be kept."""
        made: dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens}
        if arm != START:
            made |= {"steps": self.steps, "every": self.every, "settings": sorted(self.settings)}
            made |= {"recipe": self.recipe} if self.recipe else {}
        return made

    def measured_on(self) -> list[str]:
        """The questions that it is measured on; they must agree, too."""
        return [self.reported, self.validation]

    def train(self, arm: Arm) -> list[str]:
        """What `kfh train` is called with for one run, which keeps all of its checkpoints."""
        given = ["--method", arm.method, "--seed", str(arm.seed), "--out", str(self.folder(arm))]
        given += ["--recipe", self.recipe, "--model", self.model] if self.recipe else []
        own = [f"max_steps={self.steps}", f"save_steps={self.every}"]
        own += [f"save_total_limit={self.steps // self.every + 2}"]
        for setting in (*own, *self.settings, *arm.settings):
            given += ["--set", setting]
        return [*self.command, *given, "--resume"]
