"""What a comparison tries: its arms (a method under one pressure, from one seed), and the rules.

The pressure of a method is the constant that trades accuracy for length: c of TLMRE's reward (and
of what is built on it), the target length of `laser` and `dler`; `grpo` and `rloo` have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from probing.choices import EMBEDDED, POCKET
from probing.errors import ConfigError
from probing.models.processes import Shard
from probing.settings import check, choice, like, unknown
from rl.attnpo.methods import method_of, pressure_key
from rl.runs.folders import INITIAL, labelled
from rl.tasks.base import TaskChoice

METHODS = ("grpo", "tlmre", "attnpo", "pa", "na", "random-heads", "recency", "oracle")
SMALL = ("grpo", "tlmre", "attnpo")
# Settings of a run by which it is asked when it is measured, too.
ASKED = ("template", "think_start", "think_end", "think_end_at")
OPTIONS = {"max_steps": "steps", "save_steps": "every"}  # settings with an option of another name
OPTIONS |= {name: name for name in ("model", "data", "task", "instruction")}


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
        ConfigError: an unknown method, a pressure for a method that does not take part, no
            questions to report on, or a setting that is not `key=value`.
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
    data: str | None = choice(None, "Questions to train on; default: --task, else the recipe's.")
    task: str | None = like(TaskChoice, "task", None)
    instruction: str | None = like(TaskChoice, "instruction", None)
    reported: str = choice(
        "", "Questions that figures are reported on; default, of an embedded model: 500 held out."
    )
    validation: str | None = choice(
        None, "Other questions, on which pressures are chosen; empty, or of an own model: none."
    )
    max_tokens: int = choice(512, "Of a response to them.", least=1)
    batch: int = choice(128, "Responses at a time, to them.", least=1)
    small: bool = choice(False, f"Only {', '.join(SMALL)}, and 3 seeds.")
    recipe: str | None = choice(None, "Recipe of all runs; default: each method's.")
    model: str = choice(
        POCKET, "Model that all runs begin with: hub id, folder or .gguf file; pocket, pocket-long."
    )
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
        self._fill_questions()
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
            if key in OPTIONS:
                raise ConfigError(f"{key} is set by --{OPTIONS[key]}")

    def _fill_questions(self) -> None:
        """What is measured on: an embedded model has questions of its own."""
        own = self.task is not None or self.model not in EMBEDDED
        if own and not self.reported:
            raise ConfigError(
                "--reported names the questions that figures are reported on: give it with --model "
                "and --task, and with --pressure others as --validation"
            )
        if not self.reported:
            object.__setattr__(self, "reported", f"{self.model}-held-out:500")
        if self.validation is None:
            object.__setattr__(self, "validation", "" if own else f"{self.model}:250@100")

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
        made |= {name: value for name, value in self.asked.items() if value is not None}
        if arm != START:
            made |= {"steps": self.steps, "every": self.every, "settings": sorted(self.settings)}
            made |= {"recipe": self.recipe} if self.recipe else {}
            made |= {"data": self.data} if self.data else {}
        return made

    @property
    def asked(self) -> dict[str, Any]:
        """What decides how questions are asked and verified: task, instruction, marks."""
        given = [setting.split("=", 1) for setting in self.settings]
        own = {key: value for key, value in given if key in ASKED}
        return {"task": self.task, "instruction": self.instruction, **own}

    def measured_on(self) -> list[str]:
        """The questions that it is measured on; they must agree, too."""
        return [self.reported, self.validation or ""]

    def train(self, arm: Arm) -> list[str]:
        """What `kfh train` is called with for one run, which keeps all of its checkpoints."""
        given = ["--method", arm.method, "--seed", str(arm.seed), "--out", str(self.folder(arm))]
        given += ["--recipe", self.recipe] if self.recipe else []
        given += ["--model", self.model] if self.recipe or self.model != POCKET else []
        for name in ("data", "task", "instruction"):
            value = getattr(self, name)
            given += [f"--{name}", value] if value is not None else []
        own = [f"max_steps={self.steps}", f"save_steps={self.every}"]
        own += [f"save_total_limit={self.steps // self.every + 2}"]
        for setting in (*own, *self.settings, *arm.settings):
            given += ["--set", setting]
        return [*self.command, *given, "--resume"]
