"""Types that take a pass of their own: the gradient of the answer, and patterns on short inputs.

The gradient says what the answer owes each head directly: its output times the gradient, in one
backward pass a trace. Patterns are attention of all rows of one short input: induction and
previous-token heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attention.capture import AttentionCapture, CapturePass
from probing.attention.rows import Rows
from probing.models.front import AttentionCall, InFront, Workspace, own_output
from probing.models.lengths import in_eval
from probing.models.proof import output_head


class OutputGradient(InFront):
    """Attribution of log p(F) to the outputs of heads, before the output projection.

        Σ_m z_m · ∂ log p(F) / ∂ z_m, over the tokens m that write the answer F

    The first-order change of the answer's log-probability were the head's output there 0, with its
    sign changed (attribution patching, Nanda 2023): to be read as use, in nats. Outputs further up
    are let follow; those at other tokens, and so the way over later layers' keys, are left out.

    Args:
        model: a loaded transformers model whose attention a capture has proven.

    Raises:
        ModelError: its logits are not its output embedding of the last hidden state.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self._head = output_head(model)
        self._workspace = Workspace()
        self._outputs: dict[int, Tensor] | None = None
        self._layers: CapturePass | None = None  # counts the layers of a pass

    def __call__(
        self, ids: Int[np.ndarray, "token"], answer: Int[np.ndarray, "answer"]
    ) -> Float[np.ndarray, "head"]:
        """The attribution of every head, in nats, in the order of layers and heads.

        Args:
            ids: of the trace.
            answer: places of F; none is the first token.
        """
        device = self._device()
        tokens, at = torch.from_numpy(ids).to(device), torch.from_numpy(answer).to(device)
        nothing = torch.zeros((1, len(ids)), dtype=torch.bool)
        with torch.enable_grad(), in_eval(self.model), self:
            self._outputs, self._layers = {}, CapturePass(nothing, [])
            try:
                hidden = self.trunk(input_ids=tokens[None], use_cache=False)[0][0]
                outputs = [self._outputs[layer] for layer in sorted(self._outputs)]
            finally:
                self._outputs = None
            logits = self._head(hidden[at - 1]).float()
            chance = logits.log_softmax(-1).gather(-1, tokens[at][:, None]).sum()
            slopes = torch.autograd.grad(chance, outputs)
        parts = [
            (z[0, at - 1].float() * slope[0, at - 1].float()).sum((0, 2))
            for z, slope in zip(outputs, slopes, strict=True)
        ]
        return np.asarray(torch.cat([part.detach().cpu() for part in parts]).numpy())

    @property
    def _busy(self) -> bool:
        return self._outputs is not None

    def _attend(
        self, call: AttentionCall, value: Tensor, stock: Callable[..., Any] | None
    ) -> Tensor:
        assert self._outputs is not None and self._layers is not None  # `_busy` said so
        output = own_output(call, value, stock, self._workspace.budget(call.query.device))
        if not output.requires_grad:  # weights are frozen: the graph begins here
            output = output.detach().requires_grad_()
        self._outputs[self._layers.enter_layer(call)] = output
        return output


class PatternPass(CapturePass):
    """Adds up the attention on patterns over all rows of one short input (`pattern_score`)."""

    def __init__(self, patterns: Bool[Tensor, "pattern query key"], workspace: Workspace) -> None:
        super().__init__(torch.zeros((1, patterns.shape[1]), dtype=torch.bool), [], workspace)
        self.patterns = patterns
        self.found: list[Float[Tensor, "head pattern"]] = []

    def add(self, layer: int, call: AttentionCall, split: Any = None) -> None:
        """All rows of all heads of this layer; `split` is never given."""
        rows = Rows(call, None, self.workspace)
        patterns = self.patterns.to(call.query.device).float()
        shape = (rows.key.shape[1], rows.group, len(patterns) + 1)
        sums = torch.zeros(shape, device=call.query.device)
        for chunk in rows.chunks(0, torch.arange(self.tokens)):
            on = patterns[:, chunk.rows, : chunk.probs.shape[-1]]
            sums[chunk.kv, :, :-1] += torch.einsum("krgn,prn->kgp", chunk.probs, on)
            sums[chunk.kv, :, -1] += chunk.probs.sum(dim=(1, 3))
        self.found.append((sums[..., :-1] / sums[..., -1:]).flatten(0, 1).cpu())


def pattern_scores(
    capture: AttentionCapture,
    ids: Int[Tensor, "token"],
    patterns: Sequence[Bool[np.ndarray, "query key"]],
) -> Float[np.ndarray, "head pattern"]:
    """`pattern_score` of every head on an input, within a `with` block of the capture."""
    collected = PatternPass(torch.from_numpy(np.stack(patterns)), capture._workspace)
    capture._run(collected, ids[None].to(capture._device()), None, capture.trunk)
    return np.asarray(torch.cat(collected.found).numpy())
