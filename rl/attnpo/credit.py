"""From a batch of rollouts to advantages by token: what `AttnPOTrainer` adds to TRL's step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather
from torch import Tensor

from probing.attention.capture import AttentionCapture
from probing.attention.scores import step_scores
from probing.choices import Head
from probing.errors import ConfigError
from probing.headset import HeadSet
from probing.traces.file import Step
from probing.traces.phrases import phrase_counts
from probing.traces.segmenters import carry_labels
from rl.attnpo.completions import Batch, Completion, Cutter, cutter_of
from rl.attnpo.config import AttnPOConfig
from rl.attnpo.rescale import schedule_open, step_scales, token_scales
from rl.attnpo.sharding import whole_parameters, zero3
from rl.attnpo.signals import (
    AttentionScorer,
    Scores,
    chosen_heads,
    label_scores,
    padded,
    recency_scores,
)

Labels = Sequence[Sequence[Step]]


@dataclass
class Credit:
    """Scores steps and rescales advantages with one configuration.

    `cutter` cuts responses; `scorer` scores them by attention, or is None; `heads` are those it
    uses.
    """

    args: AttnPOConfig
    cutter: Cutter
    trainer: Any  # the AttnPOTrainer
    scorer: AttentionScorer | None = None
    heads: list[Head] | None = None
    head_set: HeadSet | None = None
    _passing: dict[int, Scores] = field(default_factory=dict)

    @classmethod
    def of(cls, trainer: Any, heads: HeadSet | str | Path | None) -> Credit:
        """Check the head set against the model and prove the capture on it.

        Raises:
            ConfigError: a head set, labels or room for the end of the reasoning are missing.
            ModelError: the head set is of another model, or its attention cannot be captured.
        """
        args, tokenizer = trainer.args, trainer._tokenizer
        model = trainer.accelerator.unwrap_model(trainer.model)
        head_set = heads if isinstance(heads, HeadSet) or heads is None else HeadSet.load(heads)
        if head_set is not None:
            head_set.check(model.config)
        if args.rescales and args.signal in ("heads", "random-heads") and head_set is None:
            raise ConfigError(f"the method {args.method} needs a head set: give heads=")
        if args.rescales and args.signal == "labels" and trainer.label_func is None:
            raise ConfigError(f"the method {args.method} needs true labels: give label_func=")
        room = len(tokenizer(args.think_end, add_special_tokens=False)["input_ids"]) + 2
        if args.max_completion_length < room:
            raise ConfigError(
                f"max_completion_length = {args.max_completion_length} has no room for "
                f"{args.think_end!r} and an answer ({room} tokens at least)"
            )
        credit = cls(args, cutter_of(args, head_set, trainer), trainer, head_set=head_set)
        if credit.scores_by_attention:
            credit.heads = chosen_heads(args, head_set, model)
            with whole_parameters(model):
                capture = AttentionCapture(model, credit.heads)
            credit.heads = capture.heads
            credit.scorer = AttentionScorer(capture, int(args.score_rows))
        return credit

    @property
    def scores_by_attention(self) -> bool:
        """Whether this method reads attention."""
        return self.args.rescales and self.args.signal in ("heads", "random-heads", "all-heads")

    @property
    def end_id(self) -> int:
        """An id that ends a response."""
        return int(next(iter(self.cutter.end_ids)))

    def advantages(
        self, output: dict[str, Any], rollout: Batch, labels: Labels | None, width: int
    ) -> Tensor:
        """γ_k · A by token (response, token), or A as it is where the method does not rescale."""
        advantage: Tensor = output["advantages"]
        self.gamma, self.step_gamma, self.scored = None, None, 0
        if not self.args.rescales:
            return advantage
        step = self.trainer.state.global_step + 1
        prompts = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)
        ]
        scores = self._scores(prompts, rollout, advantage, labels, step)
        device, responses = advantage.device, rollout.responses
        totals = [len(p) + len(r.ids) for p, r in zip(prompts, responses, strict=True)]
        self.step_gamma = step_scales(
            padded(scores, torch.nan).to(device, torch.float32),
            torch.tensor([int(r.answer.sum()) for r in responses], device=device),
            torch.tensor(totals, device=device),
            advantage,
            rollout.correct,
            rollout.p,
            step,
            self.args.rescaling,
        )
        spans = padded([r.spans for r in responses], 0).to(device)
        self.gamma = token_scales(self.step_gamma, spans, width)
        return advantage[:, None] * self.gamma

    def _scores(
        self,
        prompts: list[list[int]],
        rollout: Batch,
        advantage: Tensor,
        labels: Labels | None,
        step: int,
    ) -> list[Scores]:
        """S_k of each response; NaN for responses that nothing would rescale anyway."""
        responses = rollout.responses
        if self.args.signal == "labels":
            return [
                label_scores([s.label for s in carry_labels(tuple(own), list(r.steps))])
                for own, r in zip(labels or [], responses, strict=True)
            ]
        if self.args.signal == "recency":
            return [recency_scores(len(p), r) for p, r in zip(prompts, responses, strict=True)]
        if self._passing:
            passing, self._passing = self._passing, {}
            return [passing[row] for row in range(len(responses))]
        wanted = self._wanted(rollout, advantage, step)
        scores = [np.full(len(r.spans), np.nan) for r in responses]
        scorer = self._sharded_scorer() if self.sharded else self.scorer
        assert scorer is not None
        with self.trainer.accelerator.autocast():
            found = scorer([prompts[i] for i in wanted], [responses[i] for i in wanted])
        for row, own in zip(wanted, found, strict=True):
            scores[row] = own
        self.scored = len(wanted)
        return scores

    def _wanted(self, rollout: Batch, advantage: Tensor, step: int) -> list[int]:
        """Responses whose scale may differ from 1: only these are scored."""
        constants = self.args.rescaling
        begun = schedule_open(rollout.p, step, constants.delay)
        acts = (advantage > 0) & begun if constants.positive else advantage > torch.inf
        if constants.negative:
            acts = acts | (advantage < 0)
        many = torch.tensor([len(r.spans) >= 2 for r in rollout.responses], device=acts.device)
        return (acts & rollout.correct & many).nonzero()[:, 0].tolist()

    @cached_property
    def sharded(self) -> bool:
        """Whether parameters are spread over processes (FSDP2, or DeepSpeed ZeRO-3)."""
        from torch.distributed.tensor import DTensor

        parameters = self.trainer.model_wrapped.parameters()
        return zero3() or any(isinstance(parameter, DTensor) for parameter in parameters)

    def _sharded_scorer(self) -> AttentionScorer:
        """Scores through the wrapped model, whole, with as many passes on every process."""
        assert self.scorer is not None
        self.scorer.capture.early_exit = False
        if self.scorer.forward is None:
            wrapped = self.trainer.model_wrapped

            def forward(**inputs: Any) -> Any:
                return wrapped(**inputs, logits_to_keep=1)

            self.scorer.forward, self.scorer.rounds = forward, self._most_rounds
        return self.scorer

    def _most_rounds(self, needed: int) -> int:
        count = torch.tensor([needed], device=self.trainer.accelerator.device)
        return int(gather(count).max())

    def score_in_passing(
        self,
        rows: list[int],
        responses: list[Completion],
        ids: Tensor,
        mask: Tensor,
        keep: int,
        forward: Callable[..., Any],
    ) -> None:
        """Score rows of a batch while TRL's own forward pass runs."""
        assert self.scorer is not None
        capture, prompt = self.scorer.capture, ids.shape[1] - keep
        answer = torch.zeros_like(ids, dtype=torch.bool)
        for row, response in enumerate(responses):
            end = prompt + len(response.answer)
            answer[row, prompt:end] = torch.from_numpy(response.answer).to(answer.device)
        early_exit, capture.early_exit = capture.early_exit, False
        try:
            with capture:
                mass = capture(ids, answer, mask, forward=forward).double().cpu().numpy()
        finally:
            capture.early_exit = early_exit
        for place, (row, response) in enumerate(zip(rows, responses, strict=True)):
            self._passing[row] = step_scores(mass[place], response.spans + prompt).mean(axis=0)

    def metrics(
        self, output: dict[str, Any], advantages: Tensor, rollout: Batch, labels: Labels | None
    ) -> dict[str, float]:
        """Figures of a step, over all processes."""
        mask = output["completion_mask"].bool()
        sums: defaultdict[str, float] = defaultdict(float)
        for response in rollout.responses:
            sums["responses"] += 1
            sums["unfinished"] += not response.complete
            sums["steps"] += len(response.spans)
            sums["tokens"] += response.length
            for kind, count in phrase_counts(response.text).items():
                sums[f"phrases/{kind}"] += count
        sums["advantage"] = float(output["advantages"].abs().sum())
        if self.gamma is not None and self.step_gamma is not None:
            inside = self.gamma[mask]
            sums["gamma"] = float(inside.sum())
            sums["attenuated_tokens"] = int((inside < 1).sum())
            sums["attenuated"] = int((self.step_gamma < 1).sum())
        for own in labels or []:
            sums["redundant"] += sum(step.label == "redundant" for step in own)
        names = sorted(sums)
        values = torch.tensor([float(sums[name]) for name in names], dtype=torch.float64)
        total = self._summed(values)
        all_ = dict(zip(names, total.tolist(), strict=True))
        right = rollout.all_correct
        found = {
            "accuracy": float(right.float().mean()),
            "tokens": float(rollout.all_lengths.float().mean()),
            "tokens_correct": float(rollout.all_lengths[right].float().mean()),  # NaN: none
            "unfinished": all_["unfinished"] / all_["responses"],
            "steps": all_["steps"] / all_["responses"],
            "advantage_abs": all_["advantage"] / all_["responses"],
        }
        if self.gamma is not None:
            found["gamma"] = all_["gamma"] / all_["tokens"]
            found["attenuated"] = all_["attenuated"] / max(all_["steps"], 1)
            found["attenuated_tokens"] = all_["attenuated_tokens"] / all_["tokens"]
        if labels is not None:
            found["redundant_steps"] = all_["redundant"] / all_["responses"]
        phrases = {k: 1000 * v / all_["tokens"] for k, v in all_.items() if "phrases/" in k}
        return {**found, **phrases}

    def _summed(self, values: Tensor) -> Tensor:
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return values
        on = values.to(accelerator.device, torch.float32)
        return accelerator.reduce(on, reduction="sum").double().cpu()
