"""Signals: a batch of sampled responses → one score a step, which decides what credit it gets.

A signal is a callable `Batch → list[scores]`: an array of `len(response.spans)` numbers for each of
`batch.responses`, in the unit of attention, since they are held against S_base (essential steps
above it, redundant ones below); NaN keeps γ = 1. Where `batch.needs_scores` is false they have no
effect. An own one is entered by its name; `signal: mine` then chooses it:

    SIGNALS["mine"] = lambda batch: [my_scores(response.text) for response in batch.responses]

The signals by attention need the policy, and are made when the trainer is (`AttentionSignal.of`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.attention.capture import AttentionCapture
from probing.attention.scores import (
    batch_masses,
    batches_by_length,
    check_finite,
    prove_longer,
    step_baseline,
    step_scores,
)
from probing.choices import Head
from probing.errors import ConfigError, ModelError
from probing.headset import HeadSet
from probing.traces.segmenters import carry_labels
from probing.traces.tokens import EncodedTrace
from rl.attnpo.completions import Batch, Completion
from rl.attnpo.sharding import Passes, whole_parameters

Scores = Float[np.ndarray, "step"]
Signal = Callable[[Batch], list[Scores]]

NO_LIMIT = 1 << 62  # of the tokens of a batch: its rows are limited
BY_ATTENTION = ("heads", "random-heads", "all-heads")
LABEL_SCORES = {"essential": np.inf, "redundant": 0.0, None: np.nan}


def recency_scores(batch: Batch) -> list[Scores]:
    """A control without attention: later steps score higher, whatever they say.

        S_k = 2k / (K + 1) · |F| / |q ⊕ o|,  k = 1 … K

    so that the mean over the steps is the baseline at p = 1.
    """
    scores = []
    sizes = zip(batch.responses, batch.answer_tokens, batch.total_tokens, strict=True)
    for response, answer_tokens, total_tokens in sizes:
        count = len(response.spans)
        base = step_baseline(answer_tokens, total_tokens)
        scores.append(np.asarray(2 * np.arange(1, count + 1) / (count + 1) * base))
    return scores


def label_scores(batch: Batch) -> list[Scores]:
    """The ceiling: essential steps above every baseline, redundant ones below, others NaN."""
    scores = []
    for truth, response in zip(batch.labels or (), batch.responses, strict=True):
        steps = carry_labels(tuple(truth), list(response.steps))
        scores.append(np.array([LABEL_SCORES[step.label] for step in steps]))
    return scores


SIGNALS: dict[str, Signal] = {"recency": recency_scores, "labels": label_scores}


def signal_names() -> list[str]:
    """What the setting `signal` may be; `none`: steps are not scored."""
    return ["none", *BY_ATTENTION, *SIGNALS]


@dataclass
class AttentionSignal:
    """S_k of the policy: the mean over a head set of eq. 1.

    Args:
        capture: of the policy and the heads; entered only while it scores.
        rows: rows of a forward pass.
        passes: how a forward pass is made where parameters are sharded.
    """

    capture: AttentionCapture
    rows: int = 8
    passes: Passes | None = None

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
            heads = head_set.pairs
            heads = heads if signal == "heads" else other_heads(heads, model, seed)
        with whole_parameters(model):
            return cls(AttentionCapture(model, heads), rows)

    @property
    def heads(self) -> list[Head]:
        """The heads that score."""
        return self.capture.heads

    def __call__(self, batch: Batch) -> list[Scores]:
        """Scores of the responses that need them, of the others NaN; a pass has `rows` of them.

        Rows of a pass are of one kind where the model's RoPE changes with the length. Sorted by
        length, so that little is padded. Where parameters are sharded, every process makes as many
        passes as the one that needs most.

        Raises:
            NotFiniteError: attention that is not finite; with its response, layer and head.
        """
        scores: list[Scores] = [np.full(len(each.spans), np.nan) for each in batch.responses]
        wanted = batch.needs_scores.nonzero()[:, 0].tolist()
        traces = [encoded(row, batch.prompts[row], batch.responses[row]) for row in wanted]
        batches = list(batches_by_length(traces, NO_LIMIT, self.rows, self.capture.lengths))
        forward, passes = None, len(batches)
        if self.passes is not None:
            forward, passes = self.passes.forward, self.passes.most(passes)
        batches += [[]] * (passes - len(batches))
        self.capture.early_exit = self.passes is None
        device = next(self.capture.trunk.parameters()).device
        with self.capture:
            for together in batches:
                if self.passes is None:  # sharded processes must all make the same passes
                    prove_longer(self.capture, together, device)
                masses = batch_masses(self.capture, together, device, forward=forward)
                for trace, mass in zip(together, masses, strict=True):
                    self._check(int(trace.id), mass)
                    scores[int(trace.id)] = step_scores(mass, trace.spans).mean(axis=0)
        return scores

    def _check(self, row: int, mass: Float[np.ndarray, "head token"]) -> None:
        check_finite(f"response {row} of the batch", mass, self.capture.heads, self.capture.dtype)

    def in_passing(
        self,
        responses: Sequence[Completion],
        ids: Int[Tensor, "response token"],
        mask: Int[Tensor, "response token"],
        prompt: int,
        forward: Callable[[], Any],
    ) -> tuple[Any, list[Scores]]:
        """What `forward` returns, and the scores of the responses, while it passes over them.

        Args:
            responses: those of the rows.
            ids: prompts padded on the left, responses on the right.
            mask: 1 for real tokens.
            prompt: width of the prompts.
            forward: makes the pass over `ids`, in the policy.
        """
        results: list[Any] = []

        def run(**_: Any) -> Any:
            results.append(forward())
            return results[0]

        answer = torch.zeros_like(ids, dtype=torch.bool)
        for row, response in enumerate(responses):
            end = prompt + len(response.answer)
            answer[row, prompt:end] = torch.from_numpy(response.answer).to(answer.device)
        self.capture.early_exit = False  # the pass is another's
        with self.capture:
            mass = self.capture(ids, answer, mask, forward=run).cpu().numpy()
        for row, own in enumerate(mass):
            self._check(row, own)
        pairs = zip(responses, mass, strict=True)
        scores = [step_scores(row, each.spans + prompt).mean(axis=0) for each, row in pairs]
        return results[0], scores


def encoded(row: int, prompt: Sequence[int], response: Completion) -> EncodedTrace:
    """A sampled response on its prompt as the batcher of traces takes it; its id is its row."""
    before = len(prompt)
    answer = np.concatenate([np.zeros(before, dtype=bool), response.answer])
    ids = np.concatenate([np.asarray(prompt, dtype=np.int64), response.ids])
    return EncodedTrace(str(row), ids, before, response.spans + before, answer, sampled=True)


def other_heads(pairs: Sequence[Head], model: Any, seed: int) -> list[Head]:
    """As many heads as `pairs`, drawn from the model's others.

    Raises:
        ModelError: it has too few.
    """
    config = model.config.get_text_config()
    every = [
        (i, k) for i in range(config.num_hidden_layers) for k in range(config.num_attention_heads)
    ]
    others = [pair for pair in every if pair not in pairs]
    if len(others) < len(pairs):
        raise ModelError(f"the model has {len(others)} heads beside the set: too few to draw from")
    return random.Random(seed).sample(others, len(pairs))
