"""The plug for verl: importing this module enters estimator, worker and trainer into verl 0.9.

    VERL_USE_EXTERNAL_MODULES=rl.engines.verl_plugin

in the environment of every process makes `import verl` do so (docs/engines.md). No class of verl is
patched: the trainer is a mode of its own, `trainer.v1.trainer_mode=attnpo`, whose workers are a
subclass of verl's. Needs verl, Ray and TransferQueue; what it does with a batch is in
`rl.engines.verl`.
"""

from __future__ import annotations

from typing import Any

import ray
import transfer_queue as tq
from omegaconf import OmegaConf
from verl.single_controller.base.decorator import (
    Dispatch,
    make_nd_compute_dataproto_dispatch_fn,
    register,
)
from verl.trainer.ppo.core_algos import register_adv_est
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker

from probing.errors import ConfigError
from probing.headset import HeadSet
from rl.attnpo.completions import Cutter
from rl.engines.verl import NAME, SIZES, STEPS, PassScorer, StepEstimator, VerlConfig, refused

ESTIMATOR = StepEstimator()
register_adv_est(NAME)(ESTIMATOR)


def settings_of(actor_rollout_ref: Any) -> VerlConfig:
    """What stands under `attnpo` in this part of verl's configuration."""
    given = actor_rollout_ref.get(NAME)
    return VerlConfig.of(None if given is None else OmegaConf.to_container(given, resolve=True))


def token_rows(data: Any, name: str) -> list[list[int]]:
    """Token ids of each row of a field, `prompts` or `responses`, without padding."""
    given = data[name]
    if given.is_nested:
        return [row.tolist() for row in given.unbind()]
    width = data["prompts"].shape[1]
    mask = data["attention_mask"].bool()
    mask = mask[:, :width] if name == "prompts" else mask[:, width:]
    return [row[real].tolist() for row, real in zip(given, mask, strict=True)]


class AttnPOWorker(ActorRolloutRefWorker):
    """verl's worker, whose pass for old log-probabilities scores steps in passing."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """verl's; then the heads are checked against the model, and responses can be cut.

        Raises:
            ConfigError, ModelError: the head set does not fit the model or the tokenizer.
        """
        super().init_model()
        settings = settings_of(self.config)
        head_set, model = HeadSet.load(settings.heads), self.actor.model_config
        head_set.check(model.hf_config)
        ends = getattr(model.generation_config, "eos_token_id", None)
        ends = ends if isinstance(ends, (list, tuple)) else [ends]
        known = {end for end in (*ends, model.tokenizer.eos_token_id) if end is not None}
        cutter = Cutter.like(head_set, model.tokenizer, known, **settings.cut)
        self.scorer = PassScorer(self.actor.engine.module, head_set, cutter)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: Any) -> Any:
        """verl's, with `STEPS` and `SIZES` beside the log-probabilities (row a response)."""
        plain = super().compute_log_prob
        if tu.get(data, "no_lora_adapter", default=False):  # the reference's pass
            return plain(data)
        prompts, responses = (token_rows(data, name) for name in ("prompts", "responses"))
        output, fields = self.scorer(prompts, responses, lambda: plain(data))
        if output is not None:
            for name, value in fields.items():
                output[name] = value
        return output


@register_trainer(NAME)
class AttnPOVerlTrainer(PPOTrainerSync):
    """verl's synchronous trainer with step-level credit; `trainer.v1.trainer_mode=attnpo`.

    Raises:
        ConfigError: settings that do not go with it, all of them at once.
    """

    def __init__(self, config: Any) -> None:
        reasons = refused(OmegaConf.to_container(config, resolve=True))
        if reasons:
            raise ConfigError("kfh refuses " + "; ".join(reasons))
        self.credit_settings = settings_of(config.actor_rollout_ref)
        super().__init__(config)

    def _build_replay_buffer(self) -> Any:
        self.trainer_mode = "sync"  # by this name verl asks how batches are sampled
        return super()._build_replay_buffer()

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role in (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef):
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(AttnPOWorker)

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """verl's, while the estimator has what the workers scored; figures as `attnpo/…`."""
        scored = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=[STEPS, SIZES]
        )
        settings, step = self.credit_settings, self.global_steps
        with ESTIMATOR.given(scored[STEPS], scored[SIZES], settings, step):
            batch = super()._compute_advantage(batch, metrics)
        metrics.update(ESTIMATOR.figures())
        return batch
