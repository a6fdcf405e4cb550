"""Step scores of sampled responses, from the current policy's attention or a stand-in for it.

One forward pass without gradient over the ids as sampled: prompt and response side by side,
padded on the right only, sorted by length. With causal attention no real token looks at the
padding, so that no mask is needed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probing.attention.capture import AttentionCapture
from probing.attention.scores import step_baseline, step_scores
from probing.choices import Head
from probing.errors import ModelError
from probing.headset import HeadSet
from rl.attnpo.completions import Completion
from rl.attnpo.config import AttnPOConfig

Scores = Float[np.ndarray, "step"]


@dataclass
class AttentionScorer:
    """Scores steps by the mean attention of a head set.

    Args:
        capture: of the policy and the heads; entered only while it scores.
        rows: rows of a forward pass.
        forward: called instead of the model's trunk where modules are sharded, so that their
            hooks see the whole forward.
        rounds: gives the number of forward passes that every process makes, from the one that
            this process needs; where modules are sharded all must make as many.
    """

    capture: AttentionCapture
    rows: int = 8
    forward: Callable[..., Any] | None = None
    rounds: Callable[[int], int] = lambda needed: needed

    def __call__(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Completion]
    ) -> list[Scores]:
        """S_k of each response, in order: mean over the heads of eq. 1."""
        device = next(self.capture.trunk.parameters()).device
        lengths = [len(p) + len(r.ids) for p, r in zip(prompts, responses, strict=True)]
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        scores: list[Scores] = [np.empty(0)] * len(lengths)
        with self.capture:
            for turn in range(self.rounds(-(-len(order) // self.rows))):
                chunk = order[turn * self.rows : (turn + 1) * self.rows]
                ids, answer = _packed(prompts, responses, chunk)
                mass = self.capture(ids.to(device), answer.to(device), forward=self.forward)
                for row, heads in zip(chunk, mass.double().cpu().numpy(), strict=False):
                    spans = responses[row].spans + len(prompts[row])
                    scores[row] = step_scores(heads, spans).mean(axis=0)
        return scores


def _packed(
    prompts: Sequence[Sequence[int]], responses: Sequence[Completion], chunk: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Ids and answer tokens (row, token), padded on the right; one token where there is no row."""
    width = max((len(prompts[row]) + len(responses[row].ids) for row in chunk), default=1)
    ids = torch.zeros((max(len(chunk), 1), width), dtype=torch.long)
    answer = torch.zeros_like(ids, dtype=torch.bool)
    for place, row in enumerate(chunk):
        start = len(prompts[row])
        end = start + len(responses[row].ids)
        ids[place, :start] = torch.as_tensor(prompts[row])
        ids[place, start:end] = torch.from_numpy(responses[row].ids)
        answer[place, start:end] = torch.from_numpy(responses[row].answer)
    return ids, answer


def recency_scores(prompt_tokens: int, response: Completion) -> Scores:
    """A control without attention: later steps score higher, whatever they say.

        S_k = 2k / (K + 1) · |F| / |q ⊕ o|,  k = 1 … K

    so that the mean over the steps is the baseline at p = 1.
    """
    count = len(response.spans)
    base = step_baseline(int(response.answer.sum()), prompt_tokens + len(response.ids))
    return np.asarray(2 * np.arange(1, count + 1) / (count + 1) * base)


def label_scores(labels: Sequence[str | None]) -> Scores:
    """The ceiling: essential steps above every baseline, redundant steps below, others NaN
    (they keep γ = 1)."""
    value = {"essential": np.inf, "redundant": 0.0, None: np.nan}
    return np.array([value[label] for label in labels])


def padded(rows: Sequence[np.ndarray], value: float) -> Tensor:
    """Rows of different lengths as one tensor, at least two wide."""
    width = max(2, *(len(row) for row in rows))
    out = np.full((len(rows), width, *rows[0].shape[1:]), value, dtype=rows[0].dtype)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return torch.from_numpy(out)


def chosen_heads(args: AttnPOConfig, head_set: HeadSet | None, model: Any) -> list[Head] | None:
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
