"""Evidence of a response from one forward pass: who looks at whom, and where the policy doubted.

1. Every token of a step, and of the answer, is a query; its softmax rows are taken beside the
   model's own kernel (`probing.attention.rows`), the mean over the heads.
2. They are summed by step: looks[j, n] = Σ_{m ∈ s_j} a_{m→n}, the last j being the answer F.
3. The entropy of what each token was drawn from, at temperature 1, from the last hidden state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attention.capture import CapturePass
from probing.attention.rows import Rows
from probing.attention.scores import pad_batch, step_baseline
from probing.choices import Head
from probing.models.front import AttentionCall, InFront, Workspace, own_output
from probing.models.lengths import in_eval
from probing.models.proof import output_head
from probing.traces.tokens import EncodedTrace
from probing.types.doubt import CHUNK, entropies


@dataclass(frozen=True, eq=False)
class Evidence:
    """What formulas are given of one response on its prompt; tokens are those of q ⊕ o."""

    spans: Int[np.ndarray, "step 2"]
    answer: Bool[np.ndarray, "token"]  # F
    looks: Float[np.ndarray, "looker token"]  # Σ_{m ∈ s_j} a_{m→n}; last: of F
    entropy: Float[np.ndarray, "token"]  # of what each token was drawn from, nats; the first: 0

    @property
    def base(self) -> float:
        """S_base at p = 1: |F| / |q ⊕ o|."""
        return float(step_baseline(int(self.answer.sum()), len(self.answer)))

    @property
    def tokens(self) -> Int[np.ndarray, "step"]:
        """|s_k|."""
        return self.spans[:, 1] - self.spans[:, 0]

    @cached_property
    def edges(self) -> Float[np.ndarray, "looker step"]:
        """Σ_{m ∈ s_j} Σ_{n ∈ s_i} a_{m→n}: the attention of each step, and F, to each step."""
        return np.stack([self.looks[:, a:b].sum(axis=1) for a, b in self.spans], axis=1)


class _ByStep(CapturePass):
    """Sums softmax rows by the step of their query, mean over the heads of a layer (1, 2)."""

    def __init__(self, looker: Int[Tensor, "batch token"], heads: Sequence[Head]) -> None:
        super().__init__(looker >= 0, heads)
        self.looker = looker
        self.lookers = int(looker.max()) + 1

    def add(self, layer: int, call: AttentionCall, split: Any = None) -> None:
        """Rows of the chosen heads of this layer; `split` is never given."""
        places = self.chosen.get(layer)
        if not places:
            return
        rows = Rows(call, [self.heads[place][1] for place in places], self.workspace)
        shape = (len(self.rows), len(places), self.lookers, self.tokens)
        mass = torch.zeros(shape, device=call.query.device)
        for trace, at in enumerate(self.rows):
            for chunk in rows.chunks(trace, at) if len(at) else ():
                probs = chunk.probs[:, :, 0]
                who = self.looker[trace][at[chunk.rows].to(self.looker.device)]
                mass[trace, chunk.kv, :, : probs.shape[-1]].index_add_(1, who, probs)
        self.masses[layer] = mass.flatten(2)  # as `mass()` collects it


class Witness(InFront):
    """Takes the evidence of responses from a policy, without gradient.

    Args:
        model: a loaded transformers model whose attention a capture has proven.
        heads: `(layer, head)` pairs.

    Raises:
        ModelError: its logits are not its output embedding of the last hidden state.
    """

    def __init__(self, model: torch.nn.Module, heads: Sequence[Head]) -> None:
        super().__init__(model)
        self.heads, self._workspace = heads, Workspace()
        self._pass: _ByStep | None = None
        self._head = output_head(model)

    @torch.no_grad()
    def looks(
        self, ids: Int[Tensor, "batch token"], looker: Int[Tensor, "batch token"]
    ) -> tuple[Float[Tensor, "batch head looker token"], Float[Tensor, "batch token"]]:
        """One forward pass: attention by looker, and the entropy of each token's draw.

        Args:
            ids: padded on the right.
            looker: the number of the step that a token is in, −1 for none.
        """
        with in_eval(self.model), self:
            self._pass = collected = _ByStep(looker, self.heads)
            try:
                hidden = self.trunk(input_ids=ids, use_cache=False)[0]
            finally:
                self._pass = None
        parts = [entropies(self._head(part)) for part in hidden[:, :-1].split(CHUNK, dim=1)]
        entropy = torch.cat([torch.zeros_like(ids[:, :1], dtype=torch.float32), *parts], dim=1)
        shape = (len(ids), len(self.heads), collected.lookers, ids.shape[1])
        return collected.mass().view(shape), entropy

    def evidence(self, traces: Sequence[EncodedTrace]) -> list[Evidence]:
        """That of responses, in one forward pass."""
        device = self._device()
        ids = pad_batch([trace.ids for trace in traces]).to(device)
        looker = pad_batch([lookers(trace) for trace in traces], -1).to(device)
        looks, entropy = (x.cpu().numpy() for x in self.looks(ids, looker))
        found = []
        for row, trace in enumerate(traces):
            last, n = len(trace.spans), len(trace)
            own = looks[row, :, : last + 1, :n].mean(axis=0, dtype=np.float64)
            found.append(Evidence(trace.spans, trace.answer, own, entropy[row, :n]))
        return found

    @property
    def _busy(self) -> bool:
        return self._pass is not None

    def _attend(
        self, call: AttentionCall, value: Tensor, stock: Callable[..., Any] | None
    ) -> Tensor:
        collected = self._pass
        assert collected is not None  # `_busy` said so
        collected.add(collected.enter_layer(call), call)
        return own_output(call, value, stock, self._workspace.budget(call.query.device))


def lookers(trace: EncodedTrace) -> Int[np.ndarray, "token"]:
    """The number of the step that each token is in, the number of steps for F, −1 for others.

    Example:
        >>> spans, answer = np.array([[1, 3]]), np.array([False, False, False, True])
        >>> tuple(map(int, lookers(EncodedTrace("0", np.arange(4), 1, spans, answer))))
        (-1, 0, 0, 1)
    """
    number = np.full(len(trace), -1)
    for step, (first, last) in enumerate(trace.spans):
        number[first:last] = step
    number[trace.answer] = len(trace.spans)
    return number
