"""Softmax rows of one attention layer, from the arguments that its attention function got.

The rows are exact: same queries, keys, mask, scaling, window and soft-cap as the model's kernel,
in float32 whatever the model's precision. `probing.attention` decides which rows are wanted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.errors import ModelError


def chunk_rows(budget: int, row: int) -> int:
    """Rows of `row` float32 numbers that fit the budget; at least eight, for matmul's sake."""
    return max(8, budget // (4 * row))


class Rows:
    """Softmax rows of one layer in one pass, from the arguments of its attention function."""

    def __init__(
        self,
        name: str,
        query: Float[Tensor, "batch head token dim"],
        key: Float[Tensor, "batch kv token dim"],
        mask: Tensor | None,
        options: dict[str, Any],
        module: torch.nn.Module,
    ) -> None:
        self.query, self.key, self.mask = query, key, mask
        scaling = options.get("scaling")
        self.scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        self.softcap = options.get("softcap")
        # sdpa and eager find the window in the mask; the flash kernels take it as an argument.
        self.window = options.get("sliding_window") if "flash" in name else None
        is_causal = options.get("is_causal")
        self.causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim in (2, 4)):
            raise ModelError(f"attention mask of an unknown kind ({type(mask).__name__})")

    def chunk(
        self, heads: Tensor | None, rows: Int[Tensor, "batch row"], last: int
    ) -> Float[Tensor, "batch head row key"]:
        """Softmax rows of `heads` (None: all) at positions `rows`, over keys 0 … last."""
        logits = self._logits(heads, rows, last)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        self._mask(logits, heads, rows, last)
        return torch.softmax(logits, dim=-1)

    def _logits(self, heads: Tensor | None, rows: Tensor, last: int) -> Tensor:
        """Scaled dot products, in float32 whatever the model's precision."""
        batch, n_heads, _, dim = self.query.shape
        n_kv = self.key.shape[1]
        group = n_heads // n_kv
        query, key = self.query, self.key[:, :, : last + 1]
        if heads is not None:  # one key-value head for each chosen head
            query, key = query[:, heads], key[:, heads // group]
            n_heads, n_kv, group = len(heads), len(heads), 1
        n_rows = rows.shape[1]
        index = rows[:, None, :, None].expand(batch, n_heads, n_rows, dim)
        # The heads of a group share their keys: one matrix product for all of them.
        left = query.gather(2, index).reshape(batch * n_kv, group * n_rows, dim)
        right = key.reshape(batch * n_kv, last + 1, dim).transpose(1, 2)
        return _bmm_float32(left, right, self.scaling).view(batch, n_heads, n_rows, last + 1)

    def _mask(self, logits: Tensor, heads: Tensor | None, rows: Tensor, last: int) -> None:
        """Hide what the model's own mask hides, in place."""
        if self.mask is not None and self.mask.ndim == 4:
            mask = self.mask[..., : last + 1]
            if heads is not None and mask.shape[1] > 1:
                mask = mask[:, heads]
            batch = torch.arange(len(rows), device=rows.device)[:, None]
            mask = mask.expand(len(rows), -1, -1, -1)[batch, :, rows].transpose(1, 2)
            if mask.dtype == torch.bool:
                logits.masked_fill_(~mask, float("-inf"))
            else:
                logits.add_(mask)
            return
        if not self.causal:
            raise ModelError("attention that looks ahead (not causal) cannot be probed")
        # Keys before the first row are seen by all rows: only the rest needs the comparison.
        low = 0 if self.window is not None or self.mask is not None else int(rows.min())
        keys = torch.arange(low, last + 1, device=logits.device)
        hidden = keys > rows[..., None]
        if self.window is not None:
            hidden |= keys <= rows[..., None] - self.window
        if self.mask is not None:
            hidden |= ~self.mask[:, None, low : last + 1].bool()
        logits[..., low:].masked_fill_(hidden[:, None], float("-inf"))


def _bmm_float32(left: Tensor, right: Tensor, scaling: float) -> Tensor:
    """Batched product of scaled `left` and `right`, accumulated and returned in float32."""
    if left.dtype == torch.float32:
        return torch.bmm(left * scaling, right)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32) * scaling
    return torch.bmm(left.float() * scaling, right.float())


def eager_of(module: torch.nn.Module) -> Callable[..., Any]:
    """The eager attention function of the module's own modelling file."""
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            function: Callable[..., Any] = found
            return function
    raise ModelError(f"{type(module).__name__}: no eager attention function found in its file")


def eager_in_chunks(
    kernel: Callable[..., Any],
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
    budget: int,
) -> Tensor:
    """The eager kernel, a chunk of query rows at a time, so that no T × T scores are made."""
    if mask is None or mask.ndim != 4 or mask.shape[2] != query.shape[2]:
        output: Tensor = kernel(module, query, key, value, mask, **options)[0]
        return output
    size = chunk_rows(budget, query.shape[0] * query.shape[1] * key.shape[2])
    chunks = [
        kernel(module, q, key, value, m, **options)[0]
        for q, m in zip(query.split(size, 2), mask.split(size, 2), strict=True)
    ]
    return torch.cat(chunks, dim=1)


def answer_positions(
    answer: Bool[Tensor, "batch token"],
) -> tuple[Int[Tensor, "batch row"], Bool[Tensor, "batch row"]]:
    """Positions of the answer tokens, a row for each trace; on the CPU, where chunks are planned.

    Shorter answers are filled up with their own last position, marked as not valid: a row that
    the mask hides altogether would be no number.
    """
    answer = answer.cpu()
    counts = answer.sum(1)
    width = int(counts.max()) if len(counts) else 0
    rows = torch.zeros((len(answer), width), dtype=torch.long)
    for index, line in enumerate(answer):
        at = line.nonzero()[:, 0]
        if len(at):
            rows[index, : len(at)] = at
            rows[index, len(at) :] = at[-1]
    return rows, torch.arange(width) < counts[:, None]
