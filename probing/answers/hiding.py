"""Labels by cause: what the answer loses when a step is hidden from it; no judge, no teacher.

A trace is a context C (prompt and reasoning), `</think>`, and the answer F.
1. The context goes through the model once, plainly; its keys and values stay in a cache.
2. The queries Q are the tokens from the first of `</think>` on. Copies of them, called rows, go
   through the model packed into one sequence over that one cache, each row at the same positions.
   The mask keeps rows apart: row 0 sees the whole context, row k all but the columns of step k.
   The reasoning itself was computed with the step in sight. Rows of a batch would each need a
   copy of the context's keys and values; packed, nothing of it is copied for a row.
3. The log-probability of the answer tokens that count is read off each row; what row k lacks
   against row 0 is the drop of step k, in nats (docs/PAPER.md, eq. 7).
`</think>` does not count: its own chance comes from a token of the context, from which nothing
is hidden. For comparison, deletion takes the tokens of a step out of the text instead, so that
later steps are computed without it too: one more forward pass a step.

A model is proven before it is used (`Ablation.prove`): with nothing hidden the log-probabilities
must be those of a plain forward pass, and other keys and values in hidden columns must not move
them. No class is patched: mask, positions and cache are arguments of the model's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.answers.context import CauseTrace
from probing.errors import ModelError, NotFiniteError, in_trace
from probing.models.lengths import held_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ATTENTIONS = ("sdpa", "eager")  # kernels that take a mask of four dimensions
PROOF_QUERIES = 16
# Largest difference of a log-probability in nats that the proof accepts.
PROOF_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-1}
PACKED_QUERIES = 768
CPU_BYTES = 256 << 20
GPU_BYTES = 4 << 30
Layers = list[tuple[Tensor, Tensor]]  # keys and values of a context, (1, head, token, channel)


@dataclass(frozen=True, eq=False)
class Drops:
    """What the answer loses with each step, in nats; not a number for a step without a token."""

    answer: float  # log-probability of the counted tokens with everything in sight
    tokens: int  # that count
    total: Float[np.ndarray, "step"]
    deletion: Float[np.ndarray, "step"] | None = None  # total, the step deleted from the text

    @property
    def mean(self) -> Float[np.ndarray, "step"]:
        """Drop per answer token, the score of a step."""
        return self.total / self.tokens


def token_log_probabilities(
    logits: Float[Tensor, "*row token vocabulary"], ids: Int[Tensor, "token"]
) -> Float[Tensor, "*row token"]:
    """log p of each id by the logits of its place, in nats and float32.

    Rows are worked through one after another: their logits are what takes memory.

    Raises:
        NotFiniteError: one of them is not finite.

    Example:
        >>> token_log_probabilities(torch.log(torch.tensor([[0.25, 0.75]])), torch.tensor([1]))
        tensor([-0.2877])
    """
    rows = logits.reshape(-1, *logits.shape[-2:])
    targets = ids.to(logits.device)[:, None]
    chances = [row.float().log_softmax(-1).gather(-1, targets)[:, 0] for row in rows]
    found = torch.stack(chances).reshape(logits.shape[:-1])
    if not found.isfinite().all():
        raise NotFiniteError.of("the log-probabilities of an answer are", logits.dtype)
    return found


def hiding_mask(
    hidden: Bool[Tensor, "row context"], queries: int, dtype: torch.dtype
) -> Float[Tensor, "1 1 query key"]:
    """The additive mask of rows packed into one sequence, over a shared context (2).

    Query i of row k sees column n where n is in the context and not hidden in row k, or where n
    is one of the first i + 1 queries of row k.

    Example:
        >>> mask = hiding_mask(torch.tensor([[False], [True]]), 2, torch.float32)
        >>> (mask[0, 0] == 0).int().tolist()
        [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    """
    rows, context = hidden.shape
    mask = torch.full(
        (rows, queries, context + rows * queries),
        torch.finfo(dtype).min,
        dtype=dtype,
        device=hidden.device,
    )
    mask[:, :, :context].masked_fill_(~hidden[:, None], 0.0)
    causal = torch.ones((queries, queries), dtype=torch.bool, device=hidden.device).tril_()
    for row in range(rows):
        at = context + row * queries
        mask[row, :, at : at + queries].masked_fill_(causal, 0.0)
    return mask.view(1, 1, rows * queries, -1)


def shared_cache(layers: Layers) -> Any:
    """A cache of the context that a forward pass reads and does not change."""
    from transformers.cache_utils import Cache, DynamicLayer

    class SharedLayer(DynamicLayer):
        """Gives the context and the new keys together, and keeps the context alone."""

        def __init__(self, keys: Tensor, values: Tensor) -> None:
            super().__init__()
            self.dtype, self.device = keys.dtype, keys.device
            self.keys: Tensor = keys
            self.values: Tensor = values
            self.is_initialized = True

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any
        ) -> tuple[Tensor, Tensor]:
            """Keys and values of context and queries, (1, head, token, channel)."""
            keys = torch.cat([self.keys, key_states], dim=-2)
            return keys, torch.cat([self.values, value_states], dim=-2)

    return Cache(layers=[SharedLayer(keys, values) for keys, values in layers])


class StepHiding:
    """Drops of the answer's log-probability, step by step.

    Args:
        model: a loaded causal language model with sdpa or eager attention.
        batch_bytes: memory of the logits and masks of a pass; default 256 MiB on CPU, 4 GiB
            elsewhere.
        packed_queries: queries of a pass, all rows together.

    Raises:
        ModelError: attention that takes no mask of four dimensions. Windows shorter than a
            trace, and layers that are no plain attention, are refused where they are met.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        batch_bytes: int | None = None,
        packed_queries: int = PACKED_QUERIES,
    ) -> None:
        self.packed_queries = packed_queries
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.name = type(model).__name__
        on_cpu = self.device.type == "cpu"
        self.batch_bytes = batch_bytes or (CPU_BYTES if on_cpu else GPU_BYTES)
        kernel = model.config._attn_implementation
        if kernel not in ATTENTIONS:
            raise ModelError(
                f"{self.name}: {kernel} takes no mask that hides single tokens; load the model "
                f"with attention {' or '.join(ATTENTIONS)}"
            )

    @torch.inference_mode()
    def context(self, trace: CauseTrace, tokens: int | None = None) -> Layers:
        """Keys and values of the context, or of its first tokens, layer by layer (1).

        Raises:
            ModelError: a layer is no plain attention, or looks through a window shorter than
                the trace.
        """
        from transformers.cache_utils import DynamicCache, DynamicLayer

        cache = DynamicCache(config=self.model.config)
        ids = torch.from_numpy(trace.ids[: trace.context if tokens is None else tokens])
        with held_at(self.model, len(trace)):
            self.model(
                input_ids=ids[None].to(self.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        layers = []
        for number, layer in enumerate(cache.layers):
            if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
                raise ModelError(
                    f"{self.name}: layer {number} is no plain attention over all tokens, so a "
                    "step cannot be hidden from the answer; label with another model"
                )
            window = getattr(layer, "sliding_window", None)
            if layer.is_sliding and window is not None and len(trace) > window:
                raise ModelError(
                    f"{self.name}: layer {number} looks through a window of {window} tokens, and "
                    f"trace {trace.id} has {len(trace)}: most steps are out of the answer's "
                    "sight there. Label with a model without a window."
                )
            layers.append((layer.keys, layer.values))
        return layers

    @torch.inference_mode()
    def log_probabilities(
        self,
        trace: CauseTrace,
        layers: Layers,
        hidden: Bool[Tensor, "row context"],
    ) -> Float[Tensor, "row counted"]:
        """Log-probability of each counted token, each row with its own columns hidden (2)."""
        rows, queries = len(hidden), len(trace) - trace.context - 1  # the last one predicts nothing
        ids = torch.from_numpy(trace.ids).to(self.device)
        places = torch.arange(trace.context, trace.context + queries, device=self.device)
        wanted = torch.from_numpy(np.flatnonzero(trace.counted)).to(self.device)
        starts = torch.arange(rows, device=self.device) * queries
        with held_at(self.model, len(trace)):
            logits = self.model(
                input_ids=ids[trace.context : -1].repeat(rows)[None],
                attention_mask=hiding_mask(hidden, queries, self.dtype),
                position_ids=places.repeat(rows)[None],
                past_key_values=shared_cache(layers),
                use_cache=True,
                logits_to_keep=(starts[:, None] + wanted - 1 - trace.context).flatten(),
            ).logits
        return token_log_probabilities(logits.view(rows, len(wanted), -1), ids[wanted])

    def rows_at_once(self, trace: CauseTrace) -> int:
        """Rows that go into one sequence: enough to keep the processor busy, few enough that
        their blind spots (the other rows' queries) cost little and that memory suffices."""
        queries = len(trace) - trace.context
        logits = int(trace.counted.sum()) * self.model.config.get_text_config().vocab_size
        by_memory = self.batch_bytes // (4 * (logits + queries * 2 * len(trace)))
        return int(max(1, min(self.packed_queries // queries, by_memory)))

    def drops(
        self,
        trace: CauseTrace,
        *,
        deletion: bool = False,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> Drops:
        """The drop of every step (3), and where asked for, of its deletion from the text.

        Args:
            trace: an encoded trace.
            deletion: one more forward pass a step, from the step on.
            advance: called with the number of tokens that went through the model.

        Raises:
            ModelError: see `context`; a NotFiniteError where log-probabilities are not finite.
        """
        with held_at(self.model, len(trace)), in_trace(trace.id):
            answer, others, deleted = self._sums(trace, deletion, advance)
        total = answer - np.asarray(others)  # 3
        empty = trace.spans[:, 0] >= trace.spans[:, 1]
        lost = None if deleted is None else np.where(empty, np.nan, answer - np.asarray(deleted))
        return Drops(float(answer), int(trace.counted.sum()), np.where(empty, np.nan, total), lost)

    def _sums(
        self, trace: CauseTrace, deletion: bool, advance: Callable[[int], None]
    ) -> tuple[float, list[float], list[float] | None]:
        """Log-probability of the answer: with nothing hidden, with each step, with it deleted."""
        layers = self.context(trace)  # 1
        advance(trace.context)
        everything = np.zeros((1, trace.context), dtype=bool)
        masks = torch.from_numpy(np.concatenate([everything, trace.hidden]))
        sums: list[float] = []
        for rows in masks.split(self.rows_at_once(trace)):
            log_p = self.log_probabilities(trace, layers, rows.to(self.device))  # 2
            sums += log_p.double().sum(-1).tolist()
            advance(len(rows) * (len(trace) - trace.context))
        deleted = list(self._deleted(trace, layers, advance)) if deletion else None
        return sums[0], sums[1:], deleted

    def _deleted(
        self,
        trace: CauseTrace,
        layers: Layers,
        advance: Callable[[int], None],
    ) -> Iterator[float]:
        """Log-probability of the answer with each step's tokens taken out of the text."""
        for start, end in trace.spans:
            rest = replace(
                trace,
                ids=np.delete(trace.ids, np.s_[start:end]),
                counted=np.delete(trace.counted, np.s_[start:end]),
                context=int(start),  # what stands before the step is as it was
            )
            before = [(keys[:, :, :start], values[:, :, :start]) for keys, values in layers]
            nothing = torch.zeros((1, int(start)), dtype=torch.bool, device=self.device)
            yield float(self.log_probabilities(rest, before, nothing).double().sum())
            advance(len(rest) - int(start))

    @torch.inference_mode()
    def prove(self, trace: CauseTrace) -> float:
        """Check on a trace that hiding is real, and that nothing else happens.

        With nothing hidden, the first answer tokens must have the log-probabilities of a plain
        forward pass. With half of the context hidden, other keys and values in the hidden
        columns must not change them; in sight they must.

        Returns:
            The largest difference in nats.

        Raises:
            ModelError: with the difference, where it is beyond `PROOF_TOLERANCE`; a NotFiniteError
                where log-probabilities are not finite.
        """
        width = min(len(trace), trace.context + PROOF_QUERIES)
        counted = np.arange(width) > trace.context
        short = replace(trace, ids=trace.ids[:width], counted=counted)
        with held_at(self.model, len(short)), in_trace(trace.id):
            gap, leak, moved = self._gaps(short)
        tolerance = PROOF_TOLERANCE.get(self.dtype, 1e-3)
        if not (max(gap, leak) <= tolerance and moved):
            raise ModelError(
                f"{self.name}: a step cannot be hidden from the answer by a mask. With nothing "
                f"hidden the log-probabilities differ from a plain forward pass by {gap:.2g} "
                f"nats, and hidden tokens move them by {leak:.2g} ({tolerance:.0e} allowed). "
                "Its attention takes no mask of four dimensions, or does more than attend."
            )
        return max(gap, leak)

    def _gaps(self, short: CauseTrace) -> tuple[float, float, bool]:
        """For the proof: how far the log-probabilities are from a plain pass, how far hidden tokens
        move them, and whether tokens in sight do."""
        layers = self.context(short)
        masks = torch.zeros((2, short.context), dtype=torch.bool, device=self.device)
        masks[1, short.context // 4 : -(short.context // 4) or None] = True
        rows = self.log_probabilities(short, layers, masks)
        ids = torch.from_numpy(short.ids).to(self.device)
        places = torch.arange(short.context, len(short) - 1, device=self.device)
        logits = self.model(input_ids=ids[None], use_cache=False, logits_to_keep=places).logits
        plain = token_log_probabilities(logits, ids[short.context + 1 :])
        gap = float((rows[0] - plain[0]).abs().max())
        other = [_scrambled(keys, values, masks[1]) for keys, values in layers]
        again = self.log_probabilities(short, other, masks)
        leak = float((again[1] - rows[1]).abs().max())
        return gap, leak, not torch.equal(again[0], rows[0])


def _scrambled(
    keys: Tensor, values: Tensor, columns: Bool[Tensor, "context"]
) -> tuple[Tensor, Tensor]:
    """Keys and values with those of the chosen columns in reversed order and sign."""
    keys, values = keys.clone(), values.clone()
    keys[:, :, columns] = -keys[:, :, columns].flip(2)
    values[:, :, columns] = -values[:, :, columns].flip(2)
    return keys, values
