"""`AttnPOTrainer`: TRL's GRPOTrainer with advantages by step (AttnPO section 4).

The seam, with the numbers used below. TRL samples, rewards, and computes the loss; we
1. cut the sampled ids into steps (`rl.attnpo.completions`) and shape the verifier's reward over
   whole groups, gathered from all processes (`_calculate_rewards`);
2. score the steps with one forward pass of the current policy, or in passing where TRL computes
   old log-probabilities anyway (`_get_per_token_logps_and_entropies`);
3. return advantages of shape (response, token), γ_k · A (`_generate_and_score_completions`);
4. compute log-probabilities on rows sorted by length and trimmed, where padding would eat the
   step (`_get_per_token_logps_and_entropies`; the result is the same);
5. shuffle prompts by epoch and write checkpoints whole, so that a run can be resumed bit for bit
   (`_get_train_sampler`, `_save_checkpoint`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from probing.errors import ConfigError, DataError, KfhError
from probing.headset import HeadSet
from rl.attnpo.compact import compact_rollouts
from rl.attnpo.completions import Batch, Completion
from rl.attnpo.config import AttnPOConfig
from rl.attnpo.credit import Credit
from rl.attnpo.rewards import shaped_reward
from rl.tasks.base import LabelFunc

SAVING = ".saving"


class EpochSampler(RepeatSampler):
    """TRL's sampler, shuffled by seed and epoch, so that a resumed run sees the same order."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop at the start of each epoch."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) * 1_000_003 + epoch)


class AttnPOTrainer(GRPOTrainer):
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
        self.label_func = label_func
        self._responses: list[Completion] | None = None
        self._rollout: Batch | None = None
        self._seconds: dict[str, float] = {}
        self._saving = False
        self.credit = Credit.of(self, heads)
        self._try_rewards()

    # 1. Steps and rewards

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        """Rewards of all processes (response, function), the verifier's shaped by length."""
        self._clock("sampling")
        responses = self._responses or [self.credit.cutter(ids) for ids in completion_ids_list]
        self._responses = None
        if isinstance(completions[0], str):
            # TRL leaves special tokens out of the text, which in some tokenizers are `</think>`.
            completions = [response.text for response in responses]
        rewards: Tensor
        try:
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        except KfhError:
            raise
        except Exception as error:
            raise DataError(
                f"a reward function raised {error!r} at step {self.state.global_step + 1}; a "
                "verifier must give 0 for what it cannot read"
            ) from error
        self._rollout = rollout = Batch.gathered(self, responses, rewards[:, 0])
        if self.model.training:
            groups = (-1, self.num_generations)
            rewards[:, 0] = shaped_reward(
                rollout.all_correct.view(groups),
                rollout.all_lengths.view(groups),
                str(self.args.length_penalty),
                float(self.args.length_coef),
                self.args.target_length,
            ).flatten()
        self._clock("rewards")
        return rewards

    def _try_rewards(self) -> None:
        """Call the reward functions once on a made-up response, so that faults show at once."""
        try:
            row = next(iter(self.train_dataset))
        except (StopIteration, TypeError) as error:
            raise DataError("the training set is empty: give at least one prompt") from error
        if "prompt" not in row:
            raise DataError(f"the training set has no column 'prompt'; it has {', '.join(row)}")
        text, end = f"{self.args.think_end}\n\n\\boxed{{0}}", self.credit.end_id
        try:
            super()._calculate_rewards([dict(row)], [row["prompt"]], [text], [[end]])
        except KfhError:
            raise
        except Exception as error:
            raise DataError(
                f"a reward function raised {error!r} when it was tried on the response {text!r} "
                "to the first prompt"
            ) from error

    # 3. Advantages by step

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, with advantages of shape (response, token) where the method rescales."""
        self._seconds, self._since = {}, time.perf_counter()
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        if self.args.advantage == "rloo":  # TRL's is r − mean of the group
            output["advantages"] = output["advantages"] * (
                self.num_generations / (self.num_generations - 1)
            )
        self._clock("rewards")
        rollout, self._rollout = self._rollout, None
        if rollout is None:
            raise RuntimeError("TRL no longer calls _calculate_rewards: this kfh does not fit it")
        labels = None
        if self.label_func is not None:
            pairs = zip(inputs, rollout.responses, strict=True)
            labels = [self.label_func(row, response.text) for row, response in pairs]
        width = output["completion_ids"].shape[1]
        advantages = self.credit.advantages(output, rollout, labels, width)
        self._clock("scoring")
        for name, value in self.credit.metrics(output, advantages, rollout, labels).items():
            self._metrics["train"][name].append(value)
        for name, value in self._seconds.items():
            self._metrics["train"][f"seconds_{name}"].append(value)
        output["advantages"] = advantages
        return output

    def _clock(self, part: str) -> None:
        """Add the time since the last call to a part of the step."""
        now = time.perf_counter()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._since
        self._since = now

    # 2, 4. Log-probabilities

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """TRL's, on rows sorted by length and trimmed (4), scoring steps in passing (2)."""
        flags = {"compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss}
        compute = super()._get_per_token_logps_and_entropies
        # TRL makes this pass without gradient for the policy's old log-probabilities; a later one
        # of the batch is the reference's.
        in_passing = (
            not torch.is_grad_enabled()
            and self.model.training
            and self.use_vllm
            and self.vllm_importance_sampling_correction
            and self._responses is None
            and self.credit.scores_by_attention
        )
        if in_passing:
            prompt = input_ids.shape[1] - logits_to_keep
            rows = zip(input_ids[:, prompt:], attention_mask[:, prompt:], strict=True)
            self._responses = [self.credit.cutter(ids[mask.bool()].tolist()) for ids, mask in rows]
        rows_at_once = self.args.rows_per_forward or (batch_size or len(input_ids))
        if not in_passing and not self.args.rows_per_forward:
            result: tuple[Tensor, Tensor | None, Tensor | None] = compute(
                model, input_ids, attention_mask, logits_to_keep, batch_size, **flags, **options
            )
            return result
        order = attention_mask.sum(dim=1).argsort(descending=True, stable=True)
        parts: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
        for chunk in order.split(rows_at_once):
            ids, mask = input_ids[chunk], attention_mask[chunk]
            left, right = _margins(mask, logits_to_keep)
            ids, mask = ids[:, left : ids.shape[1] - right], mask[:, left : mask.shape[1] - right]
            keep = logits_to_keep - right

            def forward(ids: Tensor = ids, mask: Tensor = mask, keep: int = keep) -> Any:
                return compute(model, ids, mask, keep, None, **flags, **options)

            part = (
                self._score_in_passing(chunk, ids, mask, keep, forward)
                if in_passing
                else (forward())
            )
            pad = (0, right)
            logps, entropy, aux = part
            entropy = None if entropy is None else torch.nn.functional.pad(entropy, pad)
            parts.append((torch.nn.functional.pad(logps, pad), entropy, aux))
        back = order.argsort()
        logps, entropies, aux = zip(*parts, strict=True)
        return (
            torch.cat(logps)[back],
            torch.cat(entropies)[back] if compute_entropy else None,
            torch.stack(aux).mean() if compute_aux_loss else None,
        )

    def _score_in_passing(
        self, chunk: Tensor, ids: Tensor, mask: Tensor, keep: int, forward: Callable[[], Any]
    ) -> Any:
        """Run `forward` under the capture, and keep the scores of its rows."""
        results: list[Any] = []

        def run(**_: Any) -> Any:
            results.append(forward())
            return results[0]

        responses = [(self._responses or [])[row] for row in chunk.tolist()]
        self.credit.score_in_passing(chunk.tolist(), responses, ids, mask, keep, run)
        return results[0]

    # 5. Order and checkpoints

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
        folder = str(super()._get_output_dir(trial))
        return str(Path(folder) / SAVING) if self._saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint beside its place and move it there when it is whole."""
        staging = Path(super()._get_output_dir(trial)) / SAVING
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for made in staging.glob("checkpoint-*"):
                final = staging.parent / made.name
                shutil.rmtree(final, ignore_errors=True)
                made.rename(final)
            shutil.rmtree(staging, ignore_errors=True)
            rotate_checkpoints(
                output_dir=str(staging.parent),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()


def _margins(mask: Tensor, completion: int) -> tuple[int, int]:
    """Columns without a token in any row: on the left of the prompts, on the right at the end.

    At least one token of the completion is left, so that there is something to compute.
    """
    used = mask.any(dim=0).nonzero()[:, 0]
    if not len(used):
        return 0, 0
    right = mask.shape[1] - 1 - int(used[-1])
    return int(used[0]), min(right, completion - 1)
