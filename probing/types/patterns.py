"""Attention on patterns of one short input: induction and previous-token heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attention.capture import AttentionCapture, CapturePass
from probing.attention.rows import Rows
from probing.models.front import AttentionCall, Workspace


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
