"""Signals: a batch of sampled responses → one score a step, which decides what credit it gets.

A signal is a callable `Batch → list[scores]`: an array of `len(response.spans)` numbers for each of
`batch.responses`, in the unit of attention, since they are held against S_base (essential steps
above it, redundant ones below); NaN keeps γ = 1. Where `batch.needs_scores` is false they have no
effect. An own one is entered by its name; `signal: mine` then chooses it:

    SIGNALS["mine"] = lambda batch: [my_scores(response.text) for response in batch.responses]

The signals by attention need the policy (`StepScorer`, usable alone), and are made when the trainer
is (`AttentionSignal.of`). They score in a pass of their own, or in passing, in one that TRL makes
anyway (`in_passing`): the one for old log-probabilities, or the loss's, where nothing speaks
against it (`own_pass_reasons`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate.utils import DynamoBackend
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attention.capture import AttentionCapture, CapturePass
from probing.attention.fused import FusedMasses
from probing.attention.scores import (
    batch_masses,
    batches_by_length,
    check_finite,
    prove_longer,
    step_scores,
)
from probing.choices import Head
from probing.errors import ConfigError
from probing.headset import HeadSet
from probing.models.front import AttentionCall, InFront, Workspace, eager_of
from probing.models.lengths import in_eval
from probing.models.proof import PROOF_TOLERANCE, proof_input, relative
from probing.traces.tokens import EncodedTrace
from rl.attnpo.completions import Batch, Completion, encoded
from rl.attnpo.passes import Passes, whole_parameters, zero3
from rl.signals.evidence import Witness
from rl.signals.plain import Scores, label_scores, overlap_scores, recency_scores
from rl.signals.ratios import RATIOS

Signal = Callable[[Batch], list[Scores]]

NO_LIMIT = 1 << 62  # of the tokens of a batch: its rows are limited
BY_ATTENTION = ("heads", "random-heads", "all-heads")

SIGNALS: dict[str, Signal] = {
    "recency": recency_scores,
    "overlap": overlap_scores,
    "labels": label_scores,
}


def signal_names() -> list[str]:
    """What the setting `signal` may be; `none`: steps are not scored."""
    return ["none", *BY_ATTENTION, *RATIOS, *SIGNALS]


class Passing(InFront):
    """Takes rows of some heads while another makes a forward pass, whose gradient stays whole.

    The model's own kernel gives the output, from the same call as ever; beside it come rows without
    gradient. What gradient checkpointing computes once more, it computes with nothing in front.

    Args:
        model: a loaded transformers model, on which a capture of these heads has proven itself.
        heads: `(layer, head)` pairs.
    """

    def __init__(self, model: torch.nn.Module, heads: Sequence[Head]) -> None:
        super().__init__(model)
        self.heads, self._workspace, self.fused = heads, Workspace(), FusedMasses()
        self._pass: CapturePass | None = None
        self.seconds = 0.0  # that scoring took; the rows on a GPU: to launch them

    @contextmanager
    def over(self, answer: Bool[Tensor, "response token"]) -> Iterator[CapturePass]:
        """The one pass that is made in this block collects into what it gives."""
        with self:
            self._pass = CapturePass(answer, self.heads, self._workspace, self.fused)
            try:
                yield self._pass
            finally:
                self._pass = None

    @torch.no_grad()
    def moved_by_padding(self, capture: AttentionCapture) -> bool:
        """Whether padding on the left changes masses beyond rounding.

        Args:
            capture: of the same heads, which gives them without padding.
        """
        ids, answer, mask = (given[1:] for given in proof_input(self._vocabulary(), self._device()))
        real = mask[0].bool()  # its left is padding
        with capture:
            alone = capture(ids[:, real], answer[:, real])
        with in_eval(self.model), self.over(answer) as collected:
            self.trunk(input_ids=ids, attention_mask=mask, use_cache=False)
        change = relative(collected.mass()[..., real], alone)
        return change > PROOF_TOLERANCE.get(capture.dtype, 1e-4)

    @property
    def _busy(self) -> bool:
        return self._pass is not None

    def _attend(
        self, call: AttentionCall, value: Tensor, stock: Callable[..., Any] | None
    ) -> Tensor:
        collected = self._pass
        assert collected is not None  # `_busy` said so
        _, module, query, key, mask, options = call
        kernel = stock or eager_of(module)
        output: Tensor = kernel(module, query, key, value, mask, **options)[0]
        began = time.perf_counter()
        layer = collected.enter_layer(call)
        with torch.no_grad():
            collected.add(layer, call)
        self.seconds += time.perf_counter() - began
        return output


class StepScorer:
    """Scores of steps by the attention of a model: the mean over heads of eq. 1, for any loop.

        S_k = mean over heads of (1/|s_k|) Σ_{m ∈ F} Σ_{n ∈ s_k} a_{m→n}

    Args:
        model: the policy, a loaded transformers model; on it the capture proves itself.
        heads: `(layer, head)` pairs, for example `HeadSet.load("heads.json").pairs`; None: all.
        rows: responses of a forward pass.

    Raises:
        ModelError: the model's attention cannot be captured, or it has no such head.

    Example:
        >>> scorer = StepScorer(model, head_set.pairs)  # doctest: +SKIP
        >>> scores = scorer.scores(prompts, responses)  # doctest: +SKIP
    """

    def __init__(self, model: torch.nn.Module, heads: Sequence[Head] | None, rows: int = 8) -> None:
        self.capture = AttentionCapture(model, heads)
        self.rows = rows
        self.passes: Passes | None = None  # how one is made where parameters are sharded

    @property
    def heads(self) -> list[Head]:
        """The heads that score."""
        return self.capture.heads

    def __call__(self, batch: Batch) -> list[Scores]:
        """Scores of the responses of a batch that need them, of the others NaN; see `scores`."""
        return self.scores(batch.prompts, batch.responses, batch.needs_scores.tolist())

    def scores(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Completion],
        wanted: Sequence[bool] | None = None,
    ) -> list[Scores]:
        """Scores of the steps of each response, in forward passes without gradient.

        Rows of a pass are of one kind where the model's RoPE changes with the length. Sorted by
        length, so that little is padded. Where parameters are sharded, every process makes as many
        passes as the one that needs most.

        Args:
            prompts: token ids.
            responses: the sampled ids, cut by a `rl.attnpo.completions.Cutter`.
            wanted: the others get NaN; None: all are.

        Returns:
            An array (step,) a response: attention per token of the step, no unit.

        Raises:
            NotFiniteError: attention that is not finite; with its response, layer and head.
        """
        scores: list[Scores] = [np.full(len(each.spans), np.nan) for each in responses]
        rows = [row for row in range(len(responses)) if wanted is None or wanted[row]]
        traces = [encoded(row, prompts[row], responses[row]) for row in rows]
        batches = list(batches_by_length(traces, NO_LIMIT, self.rows, self.capture.lengths))
        forward, passes = None, len(batches)
        if self.passes is not None:
            forward, passes = self.passes.forward, self.passes.most(passes)
        batches += [[]] * (passes - len(batches))
        self.capture.early_exit = self.passes is None
        device = next(self.capture.trunk.parameters()).device
        with self.capture:
            for together in batches:
                self._prove(together, device)
                found = self._scored(together, device, forward)
                for trace, own in zip(together, found, strict=True):
                    scores[int(trace.id)] = own
        return scores

    def _scored(
        self, together: Sequence[EncodedTrace], device: torch.device, forward: Any
    ) -> list[Scores]:
        masses = batch_masses(self.capture, together, device, forward=forward)
        for trace, mass in zip(together, masses, strict=True):
            self._check(int(trace.id), mass)
        pairs = zip(together, masses, strict=True)
        return [step_scores(mass, trace.spans).mean(axis=0) for trace, mass in pairs]

    def _check(self, row: int, mass: Float[np.ndarray, "head token"]) -> None:
        check_finite(f"response {row} of the batch", mass, self.capture.heads, self.capture.dtype)

    def _prove(self, together: Sequence[EncodedTrace], device: torch.device) -> None:
        if self.passes is None:  # sharded processes must all make the same passes
            prove_longer(self.capture, together, device)


class EvidenceSignal(StepScorer):
    """Scores by a formula on who looks at whom and where the policy doubts (`rl.signals`).

        S_k = ratio_k · |F| / |q ⊕ o|

    In passes of its own, which reach the logits.

    Arguments are those of `StepScorer`, and one of `rl.signals.ratios.RATIOS` by name.

    Raises:
        ConfigError: there is no head set.
        ModelError: see `StepScorer` and `rl.signals.evidence.Witness`.
    """

    def __init__(self, model: Any, heads: HeadSet | None, rows: int, ratio: str) -> None:
        if heads is None:
            raise ConfigError(f"the signal {ratio} needs a head set: give heads=")
        super().__init__(model, heads.pairs, rows)
        self.witness, self.ratio = Witness(model, heads.pairs), RATIOS[ratio]

    def _scored(
        self, together: Sequence[EncodedTrace], device: torch.device, forward: Any
    ) -> list[Scores]:
        if self.passes is not None:
            raise ConfigError(
                "this signal is not proven where parameters are sharded: take the signal heads, "
                "or train without FSDP and ZeRO-3"
            )
        found = self.witness.evidence(together)
        for trace, seen in zip(together, found, strict=True):
            self._check(int(trace.id), np.vstack([seen.looks.sum(axis=0), seen.entropy]))
        return [self.ratio(seen) * seen.base for seen in found]


class AttentionSignal(StepScorer):
    """The policy's scores as the signal of the trainer: in passes of its own, or in passing.

    Arguments are those of `StepScorer`.
    """

    def __init__(self, model: torch.nn.Module, heads: Sequence[Head] | None, rows: int = 8) -> None:
        super().__init__(model, heads, rows)
        self.passing = Passing(model, self.heads)  # the same heads, for passes that others make
        # Whether prompts padded on the left, as they are in TRL's passes, change what is scored
        # (positions that are counted from the left).
        self.padding_moves = self.passing.moved_by_padding(self.capture)

    @classmethod
    def of(
        cls, model: Any, signal: str, head_set: HeadSet | None, rows: int, seed: int
    ) -> AttentionSignal:
        """The signal of that name, one of `BY_ATTENTION`, proven on the model.

        Raises:
            ConfigError: it needs a head set.
            ModelError: the model's attention cannot be captured, or has too few heads.
        """
        if signal == "all-heads":
            heads = None
        elif head_set is None:
            raise ConfigError(f"the signal {signal} needs a head set: give heads=")
        else:
            heads = head_set.pairs if signal == "heads" else head_set.others(seed)
        with whole_parameters(model):
            return cls(model, heads, rows)

    def prove_on(self, batch: Batch) -> None:
        """What a pass of its own would prove on the longest response, where another's scores."""
        wanted = batch.needs_scores.nonzero()[:, 0].tolist()
        if wanted:
            longest = max(wanted, key=batch.total_tokens.__getitem__)
            trace = encoded(longest, batch.prompts[longest], batch.responses[longest])
            self._prove([trace], batch.needs_scores.device)

    def in_passing(
        self,
        answer: Bool[Tensor, "response token"],
        spans: Sequence[Int[np.ndarray, "_ 2"]],
        prompt: int,
        forward: Callable[[], Any],
    ) -> tuple[Any, list[Scores]]:
        """What `forward` returns, and the scores of the responses, while it passes over them.

        Without gradient the policy passes in eval mode, else as it is.

        Args:
            answer: F of each response.
            spans: token spans of its steps; a score is NaN where one is empty.
            prompt: width of the prompts, which are padded on the left.
            forward: makes one pass over prompts and responses, in the policy.

        Raises:
            NotFiniteError: attention that is not finite; with its response, layer and head.
        """
        whole = torch.nn.functional.pad(answer, (prompt, 0))
        mode = nullcontext() if torch.is_grad_enabled() else in_eval(self.capture.model)
        with mode, self.passing.over(whole) as collected:
            result = forward()
        mass = collected.mass().cpu().numpy()
        began = time.perf_counter()
        for row, own in enumerate(mass):
            self._check(row, own)
        pairs = zip(spans, mass, strict=True)
        scores = [step_scores(row, steps + prompt).mean(axis=0) for steps, row in pairs]
        self.passing.seconds += time.perf_counter() - began
        return result, scores


def own_pass_reasons(signal: AttentionSignal, trainer: Any) -> list[str]:
    """Why steps cannot be scored in the pass of the loss; none: they can, and are.

    With one update a batch the policy of that pass is the one that sampled. Where TRL thinks
    otherwise it makes a pass for old log-probabilities itself, which scores.

    Args:
        signal: of the policy.
        trainer: a `trl.GRPOTrainer`.
    """
    compiled = trainer.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
    copied = isinstance(trainer.model_wrapped, torch.nn.DataParallel)
    reasons = {
        "the policy moves while a batch is used, or vLLM samples": makes_old_logps(trainer),
        "the policy drops or jitters at random": draws_at_random(signal.capture.model),
        "padding on the left changes its attention": signal.padding_moves,
        "its RoPE changes with the length": bool(signal.capture.lengths),
        "DeepSpeed ZeRO-3, which it is not proven with": signal.passes is not None and zero3(),
        "torch.compile, which does not call what stands in front": compiled,
        "DataParallel, whose copies of the policy are not stood in front of": copied,
    }
    return [reason for reason, applies in reasons.items() if applies]


def makes_old_logps(trainer: Any) -> bool:
    """Whether TRL makes a pass for old log-probabilities; as `_generate_and_score_completions`."""
    window = trainer.args.steps_per_generation * trainer.num_iterations
    corrected = trainer.use_vllm and trainer.vllm_importance_sampling_correction
    return bool(trainer.args.gradient_accumulation_steps % window != 0 or corrected)


def draws_at_random(model: torch.nn.Module) -> bool:
    """Whether something in the model or its config is set to drop or jitter in training mode."""
    config: Any = model.config
    settings = [config.get_text_config().to_dict(), *(vars(each) for each in model.modules())]
    chances = (
        value
        for each in settings
        for name, value in each.items()
        if ("drop" in name or "jitter" in name) and isinstance(value, (int, float))
    )
    dropouts = (
        module.p
        for module in model.modules()
        if isinstance(module, torch.nn.modules.dropout._DropoutNd)
    )
    return any(value > 0 for value in (*chances, *dropouts))
