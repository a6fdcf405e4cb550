"""`AttnPOTrainer`: TRL's GRPOTrainer with advantages by step (AttnPO section 4).

The seam, with the numbers used below. TRL samples, rewards, and computes the loss; we
1. cut the sampled ids into steps (`rl.attnpo.completions`) and shape the verifier's reward over
   whole groups, gathered from all processes (`_calculate_rewards`);
2. score the steps in passing, in the pass of the loss or in TRL's for old log-probabilities
   (`_get_per_token_logps_and_entropies`); where `rl.attnpo.signals.own_pass_reasons` has one
   against it, with a forward pass of the current policy (`_generate_and_score_completions`);
3. make advantages of shape (response, token), γ_k · A, before TRL reads them (there, both);
4. compute log-probabilities on rows sorted by length and trimmed, where padding would eat the
   step (`_get_per_token_logps_and_entropies`; the result is the same);
5. shuffle prompts by epoch and write checkpoints whole, so that a run can be resumed bit for bit
   (`rl.attnpo.checkpoints`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from trl.data_utils import is_conversational

from probing.choices import Head
from probing.errors import ConfigError, DataError, ModelError
from probing.headset import HeadSet
from probing.models.lengths import Lengths
from probing.traces.file import Step
from rl.attnpo.checkpoints import ResumableTrainer
from rl.attnpo.completions import (
    Batch,
    Completion,
    Cutter,
    Outcomes,
    check_reasoning,
    check_verdicts,
    whole_texts,
)
from rl.attnpo.config import AttnPOConfig
from rl.attnpo.credit import InLoss, Passage, Scored, Terms, credit, ratio_sums, step_sums
from rl.attnpo.methods import card
from rl.attnpo.passes import Logps, Passes, in_trimmed_rows, refuse_longer
from rl.attnpo.rewards import faults_told, shaped_reward
from rl.attnpo.signals import (
    BY_ATTENTION,
    SIGNALS,
    AttentionSignal,
    EvidenceSignal,
    Signal,
    StepScorer,
    makes_old_logps,
    own_pass_reasons,
)
from rl.sampling.rollouts import RoundedRollouts, compact_rollouts
from rl.signals.ratios import RATIOS
from rl.tasks.base import LabelFunc

NO_IMAGES = "images are not supported: they would not follow rows that are sorted by length"


class OnTrainBegin(TrainerCallback):
    """Calls a function when the model is wrapped, before the first step."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Call it."""
        self.function()


class AttnPOTrainer(ResumableTrainer):
    """Trains with step-level credit from a head set; with `args.method`, the baselines too.

    Args:
        model: a hub id, a folder, or a loaded model.
        heads: a head set, its file, or the name of a shipped one; needed by the methods whose
            signal is attention.
        reward_funcs: the first one verifies: 1 for a correct response, 0 for a wrong one. The
            reward of its length is made from that, but for evaluations. Others are added as they
            are. Each is called once more when the trainer is made, on a made-up response.
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

    own_pass = False  # True: steps are scored in a pass of their own whatever the rule says
    _in_loss: InLoss | None = None  # what the loss that is computed is to score

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
                raise ConfigError(
                    f"{name} is not supported: a response would be cut, and its length taken, at "
                    "the end of its first turn"
                )
        if args.rollouts == "compact":
            rounded = RoundedRollouts() if args.bf16 else compact_rollouts
            options.setdefault("rollout_func", rounded)
        self._name, self._tag_names, self._paper = card(args.method, args.rescales, self._paper)
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, **options)
        self._check_work()
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

    def _check_work(self) -> None:
        """Refuse a run that would train nothing."""
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ModelError(
                "no parameter of the model requires a gradient, so nothing would be trained: load "
                "its adapter with is_trainable=True, or unfreeze what is to be trained"
            )
        responses, data = self.args.generation_batch_size, self.train_dataset
        prompts = responses // self.num_generations
        if isinstance(data, Sized) and len(data) < prompts:
            raise DataError(
                f"the training set has {len(data)} prompts, a step takes {prompts} ({responses} "
                f"responses, {self.num_generations} to a prompt): give more prompts, or lower "
                "per_device_train_batch_size or gradient_accumulation_steps"
            )

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
        if args.signal in RATIOS:
            policy = self.accelerator.unwrap_model(self.model)
            return EvidenceSignal(policy, self.head_set, args.score_rows, args.signal)
        if args.signal == "labels" and self.label_func is None:
            raise ConfigError(f"the method {args.method} needs true labels: give label_func=")
        return SIGNALS[args.signal]

    def settle(self) -> None:
        """See how parameters are spread over processes, now that the model is wrapped."""
        if isinstance(self.signal, StepScorer):
            self.signal.passes = Passes.of(self.model_wrapped, self.accelerator.device)

    @property
    def heads(self) -> list[Head] | None:
        """The heads whose attention scores; None where none does."""
        return self.signal.heads if isinstance(self.signal, StepScorer) else None

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
        completions = whole_texts(completions, passage.responses, self._tokenizer)
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
        if not training:
            rewards[:, 0] = passage.outcomes.correct
            self._log_figures(passage.outcomes.figures)
        else:
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
        """Call the reward functions once on a made-up response, so that faults show at once.

        What they log of it is not kept.
        """
        try:
            row = next(iter(self.train_dataset))
        except (StopIteration, TypeError) as error:
            raise DataError("the training set is empty: give at least one prompt") from error
        if row.keys() & {"image", "images"}:
            raise ConfigError(NO_IMAGES)
        if "prompt" not in row:
            raise DataError(f"the training set has no column 'prompt'; it has {', '.join(row)}")
        text, end = f"{self.cutter.think_end}\n\n\\boxed{{0}}", next(iter(self.cutter.end_ids))
        told: Any = text
        if is_conversational({"prompt": row["prompt"]}):
            told = [{"role": "assistant", "content": text}]
        with faults_told(f"when it was tried on the response {text!r} to the first prompt"):
            tried = super()._calculate_rewards([dict(row)], [row["prompt"]], [told], [[int(end)]])
        check_verdicts(tried[:, 0])
        self._pending_metrics.clear()
        self._pending_extra_logs.clear()

    # 2, 3. Scores and advantages by step

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, with advantages by token, or what the loss makes them of (`Terms`)."""
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
        in_loss = self._signal_in_loss()
        with self.accelerator.autocast():
            if in_loss is not None:
                in_loss.prove_on(batch)
                Terms.of(batch).put(output)
                passage.left = len(responses)
            elif self.signal is not None:
                scores = passage.scored.scores if passage.scored else self.signal(batch)  # 2
                credited = credit(batch, scores, self.args.rescaling, step)  # 3
                output["advantages"] = credited.advantages
        passage.add(step_sums(batch, credited) | ratio_sums(output, self.args))
        passage.clock("scoring")
        if not passage.left:
            self._log_figures(passage.figures(self.accelerator))
        return output

    def _signal_in_loss(self) -> AttentionSignal | None:
        """The signal, where the pass of the loss scores."""
        if isinstance(self.signal, AttentionSignal) and not self.own_pass:
            return None if own_pass_reasons(self.signal, self) else self.signal
        return None

    def _log_figures(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)

    def _labels(
        self, rows: list[dict[str, Any]], responses: list[Completion]
    ) -> list[Sequence[Step]] | None:
        """The true steps of each response; None where they are not known."""
        if self.label_func is None:
            return None
        return [self.label_func(row, each.text) for row, each in zip(rows, responses, strict=True)]

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
        if self.lengths:
            refuse_longer(self.lengths, input_ids.shape[1])
        if options.get("pixel_values") is not None:
            raise ConfigError(NO_IMAGES)
        compute, in_loss = super()._get_per_token_logps_and_entropies, self._in_loss
        tensors, rows = (input_ids, attention_mask, logits_to_keep), self.args.rows_per_forward
        scored = in_loss.scored if in_loss else self._scored_in_passing(*tensors)

        def forward(chunk: list[int], ids: Tensor, mask: Tensor, keep: int) -> Logps:
            run = partial(compute, model, ids, mask, keep, **options)
            width = ids.shape[1] - keep  # of the prompts
            return scored.while_passing(chunk, width, keep, run) if scored else run()  # 2

        if rows or (scored and not in_loss):
            result = in_trimmed_rows(forward, *tensors, rows or batch_size or len(input_ids))  # 4
        elif in_loss:
            result = forward(list(range(len(input_ids))), *tensors)
        else:
            result = compute(model, *tensors, batch_size, **options)
        if in_loss:
            self._credit_in_loss(in_loss)  # 3
        return result

    def _scored_in_passing(self, ids: Tensor, mask: Tensor, keep: int) -> Scored | None:
        """What TRL's pass for old log-probabilities of the policy scores, where it makes one.

        It does so without gradient; a later pass of this kind over the batch is the reference's.
        """
        passage, signal = self._passage, self.signal
        passes = not torch.is_grad_enabled() and self.model.training and makes_old_logps(self)
        passes = passes and not self.mask_truncated_completions  # whose mask hides responses
        if not passes or passage.responses or not isinstance(signal, AttentionSignal):
            return None
        pairs = zip(ids[:, -keep:], mask[:, -keep:].bool(), strict=True)
        passage.responses = [self.cutter(row[own].tolist()) for row, own in pairs]  # 1
        passage.scored = Scored.of(signal, passage.responses, keep)
        return passage.scored

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's; its pass scores the steps that are not scored yet (2)."""
        if Terms.are_in(inputs) and isinstance(self.signal, AttentionSignal):
            self._in_loss = InLoss(inputs, self.signal)
        try:
            loss: Tensor = super()._compute_loss(model, inputs)
            if self._in_loss is not None:
                raise RuntimeError("TRL's loss makes no pass any more: this kfh does not fit it")
        finally:
            self._in_loss = None
        return loss

    def _credit_in_loss(self, part: InLoss) -> None:
        """Advantages by token, before TRL reads them; the figures, once a batch has them all."""
        passage, self._in_loss = self._passage, None
        passage.since = time.perf_counter()
        passage.add(part.credit(self.args.rescaling, self.state.global_step + 1))
        passage.clock("scoring")
        passage.add({"scoring": part.scored.seconds}, passage.seconds)
        passage.left -= len(part.scored.scores)
        if not passage.left:
            self._log_figures(passage.figures(self.accelerator))
