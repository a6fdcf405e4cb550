"""From a batch of rollouts to advantages by token: what `AttnPOTrainer` adds to TRL's step."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attention import AttentionCapture
from probing.errors import ConfigError, DataError, ModelError
from probing.headset import HeadSet
from probing.passes import Head
from probing.ranking import step_scores
from probing.segmenters import Segmenter, carry_labels
from probing.traces import Step
from rl.config import AttnPOConfig
from rl.metrics import phrase_counts
from rl.rescale import schedule_open, step_scales, token_scales
from rl.scoring import AttentionScorer, Scores, label_scores, recency_scores
from rl.steps import Cutter, Response

Labels = Sequence[Sequence[Step]]


@dataclass(frozen=True, eq=False)
class Rollout:
    """The responses of this process, and what their groups say.

    `correct` and `p` are of this process's responses; `all_correct` and `all_lengths` of all
    processes, group after group. `p` is the share of the group's responses that are correct.
    """

    responses: list[Response]
    correct: Bool[Tensor, "response"]
    p: Float[Tensor, "response"]
    all_correct: Bool[Tensor, "everyone"]
    all_lengths: Int[Tensor, "everyone"]

    @classmethod
    def gathered(
        cls, trainer: Any, responses: list[Response], verdicts: Float[Tensor, "everyone"]
    ) -> Rollout:
        """Gather lengths and completeness; `verdicts` are the verifier's, gathered already.

        Raises:
            DataError: the verifier gave something other than 0 or 1.
        """
        odd = ~((verdicts == 0) | (verdicts == 1))
        if odd.any():
            raise DataError(
                f"the verifier (first reward function) gave {float(verdicts[odd][0])}; it must "
                "give 1 for a correct response and 0 for a wrong one. Put graded rewards after it."
            )
        device = verdicts.device
        lengths = gather(torch.tensor([r.length for r in responses], device=device))
        # A response that never stops reasoning, or never ends, answers nothing.
        complete = gather(torch.tensor([r.complete for r in responses], device=device))
        correct = (verdicts == 1) & complete
        training = trainer.model.training
        group = trainer.num_generations if training else trainer.num_generations_eval
        p = correct.float().view(-1, group).mean(dim=1).repeat_interleave(group)
        start = trainer.accelerator.process_index * len(responses)
        own = slice(start, start + len(responses))
        if training and trainer.state.global_step == 0:
            _check_reasoning(trainer, responses)
        return cls(responses, correct[own], p[own], correct, lengths)


def _check_reasoning(trainer: Any, responses: list[Response]) -> None:
    """In the first batch at least one response of all processes must end its reasoning."""
    ended = torch.tensor([sum(r.reasoned for r in responses)], device=trainer.accelerator.device)
    if int(gather(ended).sum()) == 0:
        raise DataError(
            f"no response of the first batch holds {trainer.args.think_end!r} within "
            f"max_completion_length = {trainer.args.max_completion_length} tokens: raise the "
            "limit, or choose the prompt template of this model (its reasoning may end otherwise)"
        )


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
        credit = cls(args, _cutter(args, head_set, trainer), trainer, head_set=head_set)
        if credit.scores_by_attention:
            credit.heads = _chosen_heads(args, head_set, model)
            with _whole(model):
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
        self, output: dict[str, Any], rollout: Rollout, labels: Labels | None, width: int
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
            _padded(scores, torch.nan).to(device, torch.float32),
            torch.tensor([int(r.answer.sum()) for r in responses], device=device),
            torch.tensor(totals, device=device),
            advantage,
            rollout.correct,
            rollout.p,
            step,
            self.args.rescaling,
        )
        spans = _padded([r.spans for r in responses], 0).to(device)
        self.gamma = token_scales(self.step_gamma, spans, width)
        return advantage[:, None] * self.gamma

    def _scores(
        self,
        prompts: list[list[int]],
        rollout: Rollout,
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

    def _wanted(self, rollout: Rollout, advantage: Tensor, step: int) -> list[int]:
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
        return _zero3() or any(isinstance(parameter, DTensor) for parameter in parameters)

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
        responses: list[Response],
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
        self, output: dict[str, Any], advantages: Tensor, rollout: Rollout, labels: Labels | None
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


def _padded(rows: Sequence[np.ndarray], value: float) -> Tensor:
    """Rows of different lengths as one tensor, at least two wide."""
    width = max(2, *(len(row) for row in rows))
    out = np.full((len(rows), width, *rows[0].shape[1:]), value, dtype=rows[0].dtype)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return torch.from_numpy(out)


@contextmanager
def _whole(model: Any) -> Iterator[None]:
    """All parameters in every process, where DeepSpeed ZeRO-3 loads a part into each."""
    if not _zero3():
        yield
        return
    from deepspeed.zero import GatheredParameters

    with GatheredParameters(list(model.parameters())):
        yield


def _zero3() -> bool:
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    return bool(is_deepspeed_zero3_enabled())


def _cutter(args: AttnPOConfig, head_set: HeadSet | None, trainer: Any) -> Cutter:
    """How responses are cut: as the settings say, else as the head set was made."""
    stored = dict((head_set.segmenter if head_set else None) or {})
    name = args.segmenter or stored.get("name") or "attnpo"
    if name == "given":
        raise ConfigError(
            "the head set was made on steps that the trace file gave; say how sampled responses "
            "are to be cut (segmenter: line, attnpo, …), or probe again with that segmenter"
        )
    minimum = args.min_chars if args.min_chars is not None else stored.get("min_chars", 80)
    segmenter = Segmenter.parse(name, minimum)
    if args.segmenter is None and stored.get("phrases"):
        segmenter = Segmenter("attnpo", minimum, stored["phrases"])
    return Cutter(
        trainer._tokenizer,
        tuple(trainer.eos_token_ids),
        segmenter,
        "start",  # cut steps tile the text; `overlap` is for spans of any origin
        args.answer or (head_set.answer if head_set else "all"),
        args.think_end,
    )


def _chosen_heads(args: AttnPOConfig, head_set: HeadSet | None, model: Any) -> list[Head] | None:
    """The heads whose attention scores: the set's, as many others at random, or all (None)."""
    if args.signal == "all-heads":
        return None
    assert head_set is not None
    if args.signal == "heads":
        return head_set.pairs
    config = model.config.get_text_config()
    shape = config.num_hidden_layers, config.num_attention_heads
    others = [(i, k) for i in range(shape[0]) for k in range(shape[1])]
    others = [pair for pair in others if pair not in head_set.pairs]
    if len(others) < len(head_set.pairs):
        raise ModelError(f"the model has {len(others)} heads beside the set: too few to draw from")
    return random.Random(args.seed).sample(others, len(head_set.pairs))
