"""The settings of a training run: TRL's, and those of stepwise rescaling."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from probing.choices import ANSWERS
from probing.errors import ConfigError
from probing.files.headers import load_part, part_json
from probing.models.processes import check_processes
from probing.settings import unknown
from rl.attnpo.methods import ADVANTAGES, method_of
from rl.attnpo.rescale import Rescaling
from rl.attnpo.rewards import PENALTIES, check_penalty
from rl.attnpo.sharding import compact_reason, sharding_reasons
from rl.attnpo.signals import SIGNALS, signal_names

ROLLOUTS = ("trl", "compact")
_SCALING = {"rloo": "none", "grpo": "group", "batch": "batch"}


@dataclass
class AttnPOConfig(GRPOConfig):
    """TRL's settings with the defaults that AttnPO needs, and AttnPO's own.

    A setting that is None here is the method's (`rl.attnpo.methods`). Everything is checked on
    creation; what has not been proven together with advantages by token is refused with the reason.

    Args:
        method: one of `rl.attnpo.methods.METHODS`.
        length_penalty: none, tlmre, laser, dler, one added to `rl.attnpo.rewards.PENALTIES`, or
            `module:name` of a function that could be.
        length_coef: c of TLMRE; the bonus of LASER.
        target_length: in tokens; laser and dler need it.
        advantage: rloo, grpo or batch.
        signal: none, heads, random-heads, all-heads, recency, labels, one added to
            `rl.attnpo.signals.SIGNALS`, or `module:name` of a function that could be.
        positive_attenuation, negative_attenuation: PA and NA.
        difficulty_alpha, difficulty_beta: α and β.
        negative_alpha: α of the baseline that NA compares with; None: as difficulty_alpha.
        scale_floor: δ.
        schedule_steps: T_0.
        scale_form: release or printed.
        answer: which answer tokens are F; None: those of the head set.
        segmenter, min_chars: how responses are cut; None: as the head set was made.
        think_end: the text that ends the reasoning.
        rows_per_forward: rows of a forward pass of the update, sorted by length and trimmed, so
            that little padding is computed; 0: as TRL does it; None: 16 on CPU, else 0.
        score_rows: rows of a forward pass of the scoring; None: `rows_per_forward`, or 8.
        rollouts: `trl` (generate, or vLLM), or `compact`, where finished rows leave the batch
            (`rl.attnpo.compact`); None: compact on CPU, where it can be used.
        processes: number of processes that must take part; None: what the launcher's environment
            tells is checked (`rl.attnpo.sharding`).

    Raises:
        ConfigError: a value out of its range, or a refused combination.
    """

    method: str = "attnpo"
    length_penalty: str | None = None
    length_coef: float | None = None
    target_length: int | None = None
    advantage: str | None = None
    signal: str | None = None
    positive_attenuation: bool | None = None
    negative_attenuation: bool | None = None
    difficulty_alpha: float | None = None
    difficulty_beta: float | None = None
    negative_alpha: float | None = None
    scale_floor: float = 0.0
    schedule_steps: float | None = None
    scale_form: str = "release"
    answer: str | None = None
    segmenter: str | None = None
    min_chars: int | None = None
    think_end: str = "</think>"
    rows_per_forward: int | None = None
    score_rows: int | None = None
    rollouts: str | None = None
    processes: int | None = None

    # TRL's settings, where AttnPO needs another default.
    scale_rewards: str = field(default="none", metadata={"help": "Set by `advantage`."})
    loss_type: str = field(default="dapo", metadata={"help": "The token mean of the release."})
    remove_unused_columns: bool | None = field(default=False)
    logging_steps: float = field(default=1)
    report_to: Any = field(default="none")

    def __post_init__(self) -> None:
        """Fill in the method, check, and refuse what is not proven."""
        self._fill()
        for name, parts in self._parts().items():
            if ":" in name and name not in parts:
                parts[name] = load_part(name)
        for name, known in (
            ("advantage", ADVANTAGES),
            ("signal", signal_names()),
            ("answer", (*ANSWERS, None)),
            ("rollouts", (*ROLLOUTS, None)),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(unknown(name, getattr(self, name), known))
        check_penalty(str(self.length_penalty), self.target_length)
        for name in ("rows_per_forward", "score_rows"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} must not be negative, is {getattr(self, name)}")
        self.scale_rewards = _SCALING[str(self.advantage)]
        _ = self.rescaling  # checks the constants
        super().__post_init__()
        self._refuse()
        self._warn()
        if self.rows_per_forward is None:
            self.rows_per_forward = 16 if self.device.type == "cpu" else 0
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
            form=self.scale_form,
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

    def _refuse(self) -> None:
        """Settings of TRL that are not proven to be right with advantages of shape (B, T)."""
        refused = [
            (
                self.num_iterations != 1,
                "num_iterations > 1: the scores would be of a policy that is no longer the "
                "current one, and a run could not be resumed bit for bit",
            ),
            (
                self.steps_per_generation != self.gradient_accumulation_steps,
                "steps_per_generation other than gradient_accumulation_steps: part of the update "
                "would be on responses of an older policy, and a run could not be resumed",
            ),
            (
                self.importance_sampling_level != "token",
                "sequence-level importance sampling: a ratio by sequence cannot weigh tokens",
            ),
            (
                self.multi_objective_aggregation != "sum_then_normalize",
                "normalize_then_sum: rewards are shaped before they become advantages",
            ),
            (self.loss_type != "dapo", f"loss_type {self.loss_type}: it is no mean over tokens"),
            (self.use_liger_kernel, "the Liger kernels: their loss takes one advantage a response"),
            (
                self.off_policy_mask_threshold is not None,
                "off-policy masking: it reads the sign of the advantage, and γ = 0 has none",
            ),
            (self.top_entropy_quantile < 1, "top_entropy_quantile < 1: not proven with scales"),
            (
                self.mask_truncated_completions,
                "mask_truncated_completions: it sets lengths to 0, which the length penalty reads",
            ),
            (
                self.use_transformers_continuous_batching,
                "continuous batching: it changes how the model's attention is called",
            ),
        ]
        reasons = [reason for applies, reason in refused if applies] + sharding_reasons(self)
        if reasons:
            raise ConfigError("kfh refuses " + "; ".join(reasons))
        check_processes(self.world_size, self.processes)

    def _warn(self) -> None:
        if self.rescales and (self.beta or self.entropy_coef):
            warnings.warn(
                "beta (KL) and entropy_coef put a gradient on tokens whose scale is 0",
                stacklevel=4,
            )
