"""The settings of a training run: TRL's, and those of stepwise rescaling."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig

from probing.choices import ANSWERS, END_AT, OPENINGS
from probing.errors import ConfigError
from probing.files.headers import load_part, part_json
from probing.models.processes import check_processes
from probing.settings import choice, unknown
from rl.attnpo.methods import ADVANTAGES, method_of
from rl.attnpo.passes import compact_reason, sharding_reasons
from rl.attnpo.rescale import Rescaling
from rl.attnpo.rewards import PENALTIES, check_penalty
from rl.attnpo.signals import BY_ATTENTION, SIGNALS, signal_names

ROLLOUTS = ("trl", "compact")
# Settings of TRL with the one value that goes with step scores, and why no other does: always, or
# where the model's attention is read. (A loss whose tokens grow with their advantage gives each
# γ times its gradient; all of TRL's do.)
_WITH_SCORES: dict[str, tuple[Any, str]] = {
    "importance_sampling_level": (
        "token",
        "one ratio a response gives all of its tokens the same gradient, whatever their scales",
    ),
}
_WITH_ATTENTION: dict[str, tuple[Any, str]] = {
    "use_liger_kernel": (
        False,
        "Liger's layers take the place of the model's, with which reading attention is not proven",
    ),
    "use_transformers_continuous_batching": (
        False,
        "it changes the model's attention to sample, with which reading it is not proven",
    ),
}
_SCALING = {"rloo": "none", "grpo": "group", "batch": "batch"}


@dataclass
class AttnPOConfig(GRPOConfig):
    """TRL's settings with the defaults that AttnPO needs, and AttnPO's own.

    A setting that is None here is the method's (`rl.attnpo.methods`). Everything is checked on
    creation; what does not go with advantages by token is refused with the reason where a method
    scores steps (docs/trl.md).

    Each field's help says what it is.

    Raises:
        ConfigError: a value out of its range, or a refused combination.
    """

    method: str = choice("attnpo", "One of rl.attnpo.methods.METHODS.")
    length_penalty: str | None = choice(
        None, "none, tlmre, laser, dler, one of rl.attnpo.rewards.PENALTIES, or module:name."
    )
    length_coef: float | None = choice(None, "c of TLMRE; the bonus of LASER.")
    target_length: int | None = choice(None, "In tokens; laser and dler need it.")
    advantage: str | None = choice(None, "rloo, grpo or batch.")
    signal: str | None = choice(
        None,
        "none, heads, random-heads, all-heads, recency, overlap, labels, one of "
        "rl.signals.ratios.RATIOS or rl.attnpo.signals.SIGNALS, or module:name.",
    )
    positive_attenuation: bool | None = choice(None, "PA.")
    negative_attenuation: bool | None = choice(None, "NA.")
    difficulty_alpha: float | None = choice(None, "α.")
    difficulty_beta: float | None = choice(None, "β.")
    negative_alpha: float | None = choice(
        None, "α of the baseline that NA compares with; default: difficulty_alpha."
    )
    scale_floor: float = choice(0.0, "δ.")
    schedule_steps: float | None = choice(None, "T_0.")
    scale_form: str | None = choice(None, "release, printed or hard.")
    scale_outside: str | None = choice(None, "γ of the answer: whole (1) or mean (the steps').")
    answer: str | None = choice(None, "Answer tokens that are F; default: the head set's.")
    segmenter: str | None = choice(None, "How responses are cut; default: as the set's traces.")
    min_chars: int | None = choice(None, "The segmenter's least length of a step.")
    openings: str | None = choice(None, "strict or loose; default: as the set's traces.")
    think_end: str | None = choice(
        None, "The text that ends the reasoning; default: as in the set's traces."
    )
    think_end_at: str | None = choice(
        None, "Which one, first or last; default: as in the set's traces, else first."
    )
    rows_per_forward: int | None = choice(
        None,
        "Rows of a forward pass of the update, sorted by length and trimmed, so that little "
        "padding is computed; 0: as TRL does it; default: 16 on CPU, else "
        "per_device_train_batch_size, so that each part of the batch is as wide as it must be.",
    )
    score_rows: int | None = choice(
        None, "Rows of a pass that only scores, where one is made; default: rows_per_forward, or 8."
    )
    rollouts: str | None = choice(
        None,
        "trl (generate, or vLLM), or compact, where finished rows leave the batch; default: "
        "compact on CPU, where it can be used.",
    )
    processes: int | None = choice(
        None, "Processes that must take part; default: what the launcher's environment tells."
    )

    # TRL's settings, where AttnPO needs another default.
    scale_rewards: Any = choice(None, "As `advantage` says; another is refused.")
    logging_steps: float = choice(1, "A line of metrics.jsonl for each step.")

    def __post_init__(self) -> None:
        """Fill in the method, check, and refuse what is not proven."""
        self._fill()
        for name, parts in self._parts().items():
            if ":" in name and name not in parts:
                parts[name] = load_part(name)
        signals = signal_names()
        for name in SIGNALS:
            if signals.count(name) > 1:  # it would never run
                raise ConfigError(
                    f"SIGNALS[{name!r}]: kfh has this signal; enter yours under another name"
                )
        for name, known in (
            ("advantage", ADVANTAGES),
            ("signal", signals),
            ("answer", (*ANSWERS, None)),
            ("openings", (*OPENINGS, None)),
            ("think_end_at", (*END_AT, None)),
            ("rollouts", (*ROLLOUTS, None)),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(unknown(name, getattr(self, name), known))
        check_penalty(str(self.length_penalty), self.target_length)
        for name in ("rows_per_forward", "score_rows"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} must not be negative, is {getattr(self, name)}")
        self._scale()
        _ = self.rescaling  # checks the constants
        super().__post_init__()
        self._refuse()
        self._warn()
        if self.rows_per_forward is None:
            cpu = self.device.type == "cpu"
            self.rows_per_forward = 16 if cpu else self.per_device_train_batch_size
        reason = compact_reason(self)
        if self.rollouts == "compact" and reason:
            raise ConfigError(f"compact rollouts cannot be used: {reason}")
        if self.rollouts is None:
            self.rollouts = "compact" if self.device.type == "cpu" and not reason else "trl"
        if self.score_rows is None:
            self.score_rows = self.rows_per_forward or 8

    @property
    def rescaling(self) -> Rescaling:
        """The constants of section 4."""
        return Rescaling(
            alpha=float(self.difficulty_alpha or 0),
            alpha_negative=self.negative_alpha,
            beta=float(self.difficulty_beta or 0),
            floor=self.scale_floor,
            delay=float(self.schedule_steps or 0),
            form=str(self.scale_form),
            outside=str(self.scale_outside),
            positive=bool(self.positive_attenuation),
            negative=bool(self.negative_attenuation),
        )

    @property
    def rescales(self) -> bool:
        """Whether steps get scales of their own."""
        return self.signal != "none" and self.rescaling.acts

    @property
    def own_parts(self) -> dict[str, dict[str, Any]]:
        """Name and hash of the code of the signal and the penalty that do not come with kfh."""
        chosen = {name: parts[name] for name, parts in self._parts().items() if name in parts}
        return {
            name: part_json(part)
            for name, part in chosen.items()
            if part.__module__.partition(".")[0] != "rl"
        }

    def _parts(self) -> dict[str, dict[str, Any]]:
        """The names of the signal and the penalty, each with the registry it stands in."""
        return {str(self.signal): SIGNALS, str(self.length_penalty): PENALTIES}

    def _fill(self) -> None:
        """What is None becomes the method's; the constants are the release's."""
        method = method_of(self.method)
        defaults = {
            "length_penalty": method.length_penalty,
            "advantage": method.advantage,
            "signal": method.signal,
            "positive_attenuation": method.positive,
            "negative_attenuation": method.negative,
            "scale_form": method.form,
            "scale_outside": method.outside,
            "difficulty_alpha": 2.0,
            "difficulty_beta": 2.0,
            "schedule_steps": 1000.0,
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.length_coef is None:
            self.length_coef = 0.5 if self.length_penalty == "laser" else 0.2
        # An ablation is what its name says, whatever the recipe that it shares says.
        if not method.difficulty:
            self.difficulty_alpha = self.difficulty_beta = 0.0
        if not method.schedule:
            self.schedule_steps = 0.0

    def _scale(self) -> None:
        """How TRL scales rewards is what the advantage is, and no setting of its own."""
        scaled = _SCALING[str(self.advantage)]
        given: Any = self.scale_rewards
        given = {True: "group", False: "none"}.get(given, given)  # as TRL reads it
        if given not in (None, scaled):
            meant = {scaling: name for name, scaling in _SCALING.items()}.get(given, "another")
            raise ConfigError(
                f"scale_rewards = {self.scale_rewards!r} contradicts advantage = {self.advantage} "
                f"(scale_rewards {scaled!r}): leave it out, or set advantage to {meant}"
            )
        self.scale_rewards = scaled

    def _refuse(self) -> None:
        """Settings of TRL that do not go with the method."""
        read = self.rescales and self.signal in BY_ATTENTION
        fixed = {**(_WITH_SCORES if self.rescales else {}), **(_WITH_ATTENTION if read else {})}
        reasons = [
            f"{name} = {getattr(self, name)!r}: {why}"
            for name, (fitting, why) in fixed.items()
            if getattr(self, name) != fitting
        ]
        if self.multi_objective_aggregation != "sum_then_normalize" and self.advantage != "grpo":
            reasons.append(
                f"multi_objective_aggregation = {self.multi_objective_aggregation!r}: it divides "
                f"by deviations, whatever advantage = {self.advantage!r} says (set it to grpo)"
            )
        reasons += sharding_reasons(self)
        if reasons:
            raise ConfigError("kfh refuses " + "; ".join(reasons))
        check_processes(self.world_size, self.processes)

    def _warn(self) -> None:
        if self.rescales and (self.beta or self.entropy_coef):
            warnings.warn(
                "beta (KL) and entropy_coef put a gradient on tokens whose scale is 0",
                stacklevel=4,
            )
        window = (self.steps_per_generation or 1) * self.num_iterations
        between = self.save_steps * self.gradient_accumulation_steps
        if self.save_strategy == "steps" and between % window:
            warnings.warn(
                "checkpoints fall between two updates on the same responses: a run that goes on "
                "from one samples anew, and is not the uninterrupted one. Let save_steps × "
                f"gradient_accumulation_steps be a multiple of {window}",
                stacklevel=4,
            )
