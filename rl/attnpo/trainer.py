"""`AttnPOTrainer`: TRL's GRPOTrainer with advantages by step (AttnPO section 4).

The seam, with the numbers used below. TRL samples, rewards, and computes the loss; we
1. cut the sampled ids into steps (`rl.attnpo.completions`) and shape the verifier's reward over
   whole groups, gathered from all processes (`_calculate_rewards`);
2. score the steps with one forward pass of the current policy (`_generate_and_score_completions`),
   or in passing where TRL computes old log-probabilities anyway
   (`_get_per_token_logps_and_entropies`);
3. return advantages of shape (response, token), γ_k · A (`_generate_and_score_completions`);
4. compute log-probabilities on rows sorted by length and trimmed, where padding would eat the
   step (`_get_per_token_logps_and_entropies`; the result is the same);
5. shuffle prompts by epoch and write checkpoints whole, so that a run can be resumed bit for bit
   (`ResumableTrainer`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from probing.choices import Head
from probing.errors import ConfigError, DataError
from probing.headset import HeadSet
from probing.models.lengths import Lengths
from probing.traces.file import Step
from rl.attnpo.compact import Logps, compact_rollouts, in_trimmed_rows, refuse_longer
from rl.attnpo.completions import Batch, Completion, Cutter, Outcomes, check_reasoning
from rl.attnpo.config import AttnPOConfig
from rl.attnpo.credit import credit, step_figures, step_sums
from rl.attnpo.rewards import faults_told, shaped_reward
from rl.attnpo.sharding import Passes
from rl.attnpo.signals import BY_ATTENTION, SIGNALS, AttentionSignal, Scores, Signal
from rl.tasks.base import LabelFunc


class EpochSampler(RepeatSampler):
    """TRL's sampler, shuffled by seed and epoch, so that a resumed run sees the same order."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop at the start of each epoch."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) * 1_000_003 + epoch)


class ResumableTrainer(GRPOTrainer):
    """Shuffles prompts by epoch; writes each checkpoint beside its place and moves it there when it
    is whole (5)."""

    _staging: Path | None = None  # where a checkpoint goes while it is being written

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        stock: Any = super()._get_train_sampler(dataset)
        return EpochSampler(
            data_source=stock.data_source,
            mini_repeat_count=stock.mini_repeat_count,
            batch_size=stock.batch_size,
            repeat_count=stock.repeat_count,
            shuffle=stock.shuffle,
            seed=stock.seed,
        )

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(super()._get_output_dir(trial))
        staging = folder / ".saving"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for checkpoint in staging.glob("checkpoint-*"):
                shutil.rmtree(folder / checkpoint.name, ignore_errors=True)
                checkpoint.rename(folder / checkpoint.name)
            shutil.rmtree(staging, ignore_errors=True)
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()


class OnTrainBegin(TrainerCallback):
    """Calls a function when the model is wrapped, before the first step."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Call it."""
        self.function()


@dataclass
class Passage:
    """What one batch leaves on its way through TRL's methods; made anew for each batch."""

    responses: list[Completion] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)  # where they are scored in passing
    outcomes: Outcomes | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)

    def clock(self, part: str) -> None:
        """Add the time since the last call to a part of the step."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.since
        self.since = now


class AttnPOTrainer(ResumableTrainer):
    """Trains with step-level credit from a head set; with `args.method`, the baselines too.

    Args:
        model: a hub id, a folder, or a loaded model.
        heads: a head set, its file, or the name of a shipped one; needed by the methods whose
            signal is attention.
        reward_funcs: the first one verifies: 1 for a correct response, 0 for a wrong one. The
            reward of its length is made from that. Others are added as they are.
        args: an `AttnPOConfig`.
        train_dataset: with a column `prompt`, and what the reward functions need.
        label_func: labels the steps of a response, where the truth is known. The method `oracle`
            needs it; for others it only adds a figure.
        **options: the other arguments of `trl.GRPOTrainer`.

    Raises:
        ConfigError, ModelError, DataError: what can be known before the first rollout is.

    Example:
        >>> trainer = AttnPOTrainer(  # doctest: +SKIP
        ...     model="runs/model", heads="heads.json", reward_funcs=verifier,
        ...     args=AttnPOConfig("runs/attnpo", method="attnpo"), train_dataset=prompts,
        ... )
        >>> trainer.train()  # doctest: +SKIP
    """

    # What TRL sets; its own annotations are those of the base classes.
    args: Any  # AttnPOConfig
    model: Any
    train_dataset: Any
    num_generations: Any
    num_generations_eval: Any

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: AttnPOConfig,
        *,
        heads: HeadSet | str | Path | None = None,
        label_func: LabelFunc | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(args, AttnPOConfig):
            raise ConfigError("args must be an AttnPOConfig: GRPOConfig knows no method")
        for name in ("tools", "environment_factory"):
            if options.get(name):
                raise ConfigError(f"{name} is not supported: steps are cut from sampled ids alone")
        if args.rollouts == "compact":
            options.setdefault("rollout_func", compact_rollouts)
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, **options)
        self.lengths = Lengths.of(self.accelerator.unwrap_model(self.model))
        refuse_longer(self.lengths, (args.max_completion_length or 0) + 1)
        self.label_func = label_func
        self.head_set = HeadSet.load(heads) if isinstance(heads, (str, Path)) else heads
        self.cutter = self._cutter()
        self.signal = self._signal()
        self._passage = Passage()
        self.add_callback(OnTrainBegin(self.settle))
        self._try_rewards()

    # Set-up

    def _cutter(self) -> Cutter:
        """How responses are cut: as the settings say, else as the head set was made."""
        if self.head_set is not None:
            self.head_set.check(self.accelerator.unwrap_model(self.model).config)
        args = self.args
        cutter = Cutter.like(
            self.head_set,
            self._tokenizer,
            self.eos_token_ids,
            segmenter=args.segmenter,
            min_chars=args.min_chars,
            openings=args.openings,
            answer=args.answer,
            think_end=args.think_end,
            think_end_at=args.think_end_at,
        )
        cutter.check_room(args.max_completion_length)
        return cutter

    def _signal(self) -> Signal | None:
        """What scores steps; None where the method does not rescale."""
        args = self.args
        if not args.rescales:
            return None
        if args.signal in BY_ATTENTION:
            policy = self.accelerator.unwrap_model(self.model)
            return AttentionSignal.of(
                policy, args.signal, self.head_set, args.score_rows, args.seed
            )
        if args.signal == "labels" and self.label_func is None:
            raise ConfigError(f"the method {args.method} needs true labels: give label_func=")
        return SIGNALS[args.signal]

    def settle(self) -> None:
        """See how parameters are spread over processes, now that the model is wrapped."""
        if isinstance(self.signal, AttentionSignal):
            self.signal.passes = Passes.of(self.model_wrapped, self.accelerator.device)

    @property
    def heads(self) -> list[Head] | None:
        """The heads whose attention scores; None where none does."""
        return self.signal.heads if isinstance(self.signal, AttentionSignal) else None

    # 1. Steps and rewards

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        """Rewards of all processes (response, function), the verifier's shaped by length."""
        passage, args, training = self._passage, self.args, self.model.training
        passage.clock("sampling")
        if not passage.responses:  # else cut when they were scored in passing
            passage.responses = [self.cutter(ids) for ids in completion_ids_list]  # 1, steps
        if isinstance(completions[0], str):
            # TRL leaves special tokens out of the text, which in some tokenizers are `</think>`.
            completions = [response.text for response in passage.responses]
        step = self.state.global_step + 1
        with faults_told(f"at step {step}; a verifier must give 0 for what it cannot read"):
            rewards: Tensor = super()._calculate_rewards(
                inputs, prompts, completions, completion_ids_list
            )
        group = self.num_generations if training else self.num_generations_eval
        passage.outcomes = Outcomes.gathered(passage.responses, rewards[:, 0], group)
        if training and self.state.global_step == 0:
            limit, device = args.max_completion_length, self.accelerator.device
            check_reasoning(passage.responses, device, self.cutter.think_end, limit)
        if training:
            rewards[:, 0] = shaped_reward(  # 1, rewards
                passage.outcomes.correct.view(-1, group),
                passage.outcomes.lengths.view(-1, group),
                args.length_penalty,
                args.length_coef,
                args.target_length,
            ).flatten()
        passage.clock("rewards")
        return rewards

    def _try_rewards(self) -> None:
        """Call the reward functions once on a made-up response, so that faults show at once."""
        try:
            row = next(iter(self.train_dataset))
        except (StopIteration, TypeError) as error:
            raise DataError("the training set is empty: give at least one prompt") from error
        if "prompt" not in row:
            raise DataError(f"the training set has no column 'prompt'; it has {', '.join(row)}")
        text, end = f"{self.cutter.think_end}\n\n\\boxed{{0}}", next(iter(self.cutter.end_ids))
        with faults_told(f"when it was tried on the response {text!r} to the first prompt"):
            super()._calculate_rewards([dict(row)], [row["prompt"]], [text], [[int(end)]])

    # 2, 3. Scores and advantages by step

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, with advantages of shape (response, token) where the method rescales."""
        self._passage = passage = Passage()
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)  # 1
        if not self.model.training:
            return output
        if self.args.advantage == "rloo":  # TRL's is r − mean of the group
            output["advantages"] = output["advantages"] * (
                self.num_generations / (self.num_generations - 1)
            )
        passage.clock("rewards")
        if passage.outcomes is None:
            raise RuntimeError("TRL no longer calls _calculate_rewards: this kfh does not fit it")
        responses, step, credited = passage.responses, self.state.global_step + 1, None
        outcomes = passage.outcomes.part(self.accelerator.process_index, len(responses))
        labels = self._labels(inputs, responses)
        batch = Batch.of(output, responses, outcomes, labels, self.args.rescaling, step)
        if self.signal is not None:
            with self.accelerator.autocast():
                scores = passage.scores or self.signal(batch)  # 2
            credited = credit(batch, scores, self.args.rescaling, step)  # 3
            output["advantages"] = credited.advantages
        passage.clock("scoring")
        sums = self._over_processes(step_sums(batch, credited))
        figures = step_figures(sums, passage.outcomes)
        seconds = {f"seconds_{part}": value for part, value in passage.seconds.items()}
        for name, value in {**figures, **seconds}.items():
            self._metrics["train"][name].append(value)
        return output

    def _labels(
        self, rows: list[dict[str, Any]], responses: list[Completion]
    ) -> list[Sequence[Step]] | None:
        """The true steps of each response; None where they are not known."""
        if self.label_func is None:
            return None
        pairs = zip(rows, responses, strict=True)
        return [self.label_func(row, response.text) for row, response in pairs]

    def _over_processes(self, sums: dict[str, float]) -> dict[str, float]:
        """The same sums over the responses of all processes."""
        if self.accelerator.num_processes == 1:
            return sums
        values = torch.tensor([*sums.values()], device=self.accelerator.device)
        total = self.accelerator.reduce(values, reduction="sum").tolist()
        return dict(zip(sums, total, strict=True))

    # 2, 4. Log-probabilities

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> Logps:
        """TRL's, on rows sorted by length and trimmed (4), scoring steps in passing (2)."""
        refuse_longer(self.lengths, input_ids.shape[1])
        compute, passage = super()._get_per_token_logps_and_entropies, self._passage
        tensors, rows = (input_ids, attention_mask, logits_to_keep), self.args.rows_per_forward
        signal = self._signal_in_passing()
        if signal is None and not rows:
            plain: Logps = compute(model, *tensors, batch_size, **options)
            return plain

        def forward(chunk: list[int], ids: Tensor, mask: Tensor, keep: int) -> Logps:
            run = partial(compute, model, ids, mask, keep, **options)
            if signal is None:
                return run()
            responses = [passage.responses[row] for row in chunk]
            prompt = ids.shape[1] - keep
            logps, scores = signal.in_passing(responses, ids, mask, prompt, run)  # 2
            for row, values in zip(chunk, scores, strict=True):
                passage.scores[row] = values
            return logps

        if signal is not None:
            masks = attention_mask[:, -logits_to_keep:].bool()
            pairs = zip(input_ids[:, -logits_to_keep:], masks, strict=True)
            passage.responses = [self.cutter(ids[mask].tolist()) for ids, mask in pairs]  # 1
            passage.scores = [np.empty(0)] * len(passage.responses)
        return in_trimmed_rows(forward, *tensors, rows or batch_size or len(input_ids))  # 4

    def _signal_in_passing(self) -> AttentionSignal | None:
        """The signal, where TRL computes old log-probabilities of the policy: such a pass scores.

        It does so without gradient; a later pass of this kind over the batch is the reference's.
        """
        passes = (
            not torch.is_grad_enabled()
            and self.model.training
            and self.use_vllm
            and self.vllm_importance_sampling_correction
            and not self._passage.responses
        )
        return self.signal if passes and isinstance(self.signal, AttentionSignal) else None
