"""Score the steps of many traces: encode, batch by length, capture, reduce to steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int

from probing.choices import BACKENDS, BATCH_TOKENS, Head
from probing.errors import ConfigError
from probing.traces.tokens import EncodedTrace

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Scores = Float[np.ndarray, "head step"]
WINDOW = 32  # batches' worth of traces that are held at once, to be sorted by length


class Capture(Protocol):
    """What a backend gives: heads, and the attention mass of a batch padded on the right."""

    heads: list[Head]

    def __enter__(self) -> Any:
        """Begin to capture."""

    def __exit__(self, *error: Any) -> None:
        """End it."""

    def __call__(self, input_ids: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        """mass[b, head, token], see `AttentionCapture`."""


@dataclass(frozen=True, eq=False)
class ScoredTrace:
    """Step scores of one trace for every head, and the sizes that the baseline needs."""

    id: str
    scores: Scores
    tokens: Int[np.ndarray, "step"]  # |s_k|
    answer_tokens: int  # |F|
    total_tokens: int  # |q ⊕ o|

    @property
    def base(self) -> float:
        """S_base at p = 1 (eq. 4): the score that uniform attention would give."""
        return float(step_baseline(self.answer_tokens, self.total_tokens))


def step_baseline(answer_tokens: Any, total_tokens: Any, p: Any = 1.0, alpha: float = 2.0) -> Any:
    """S_base = p^α · |F| / |q ⊕ o| (eq. 4; AttnPO section 4).

    Args:
        answer_tokens: |F|; this and the next two are numbers, or tensors of one shape.
        total_tokens: |q ⊕ o|, prompt and response.
        p: share of the group's responses that are correct.
        alpha: how fast the baseline falls for hard problems; the release's value is 2.

    Example:
        >>> step_baseline(20, 400, p=0.5)
        0.0125
    """
    return p**alpha * answer_tokens / total_tokens


def open_capture(model: PreTrainedModel, backend: str = "transformers") -> Capture:
    """The capture of all heads by the named backend, proven on the model."""
    if backend == "transformers":
        from probing.attention.capture import AttentionCapture

        return AttentionCapture(model)
    if backend == "transformer-lens":
        from probing.attention.lens import LensCapture

        return LensCapture(model)
    raise ConfigError(f"unknown backend {backend!r}; choose {' or '.join(BACKENDS)}")


def batch_mass(
    capture: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    traces: Sequence[EncodedTrace],
    device: torch.device,
) -> Float[np.ndarray, "batch head token"]:
    """Σ_{m ∈ F} a_{m→n} of a batch of traces, in one forward pass.

    The traces are padded on the right and given without an attention mask: with causal attention
    no real token can look at the padding, and the kernels are fastest without a mask. Without a
    trace the pass is made over one token: where parameters are sharded, all processes must make it.

    Args:
        capture: entered; or what else gives masses from ids and answer tokens.
        traces: encoded.
        device: of the model.
    """
    width = max((len(trace) for trace in traces), default=1)
    ids = torch.zeros((max(len(traces), 1), width), dtype=torch.long)
    answer = torch.zeros_like(ids, dtype=torch.bool)
    for row, trace in enumerate(traces):
        ids[row, : len(trace)] = torch.from_numpy(trace.ids)
        answer[row, : len(trace)] = torch.from_numpy(trace.answer)
    mass: np.ndarray = capture(ids.to(device), answer.to(device)).cpu().numpy()
    return mass[: len(traces)]


def score_batch(
    capture: Capture, traces: Sequence[EncodedTrace], device: torch.device
) -> list[ScoredTrace]:
    """Step scores of a batch of traces, in one forward pass; see `batch_mass`."""
    mass = batch_mass(capture, traces, device)
    return [_reduce(trace, row) for trace, row in zip(traces, mass, strict=True)]


def _reduce(trace: EncodedTrace, mass: Float[np.ndarray, "head token"]) -> ScoredTrace:
    return ScoredTrace(
        trace.id,
        step_scores(mass, trace.spans).astype(np.float32),
        trace.spans[:, 1] - trace.spans[:, 0],
        int(trace.answer.sum()),
        len(trace),
    )


def batches_by_length(
    traces: Iterable[EncodedTrace], batch_tokens: int = BATCH_TOKENS
) -> Iterator[list[EncodedTrace]]:
    """Batches of at most `batch_tokens` tokens, padding included; a longer trace goes alone.

    Traces are sorted by length within a window, so that little is padded and no more than a
    window is in memory.
    """
    if batch_tokens < 1:
        raise ConfigError(f"batch tokens must be positive, are {batch_tokens}")
    window: list[EncodedTrace] = []
    held = 0
    for trace in traces:
        window.append(trace)
        held += len(trace)
        if held >= WINDOW * batch_tokens:
            yield from _sorted_batches(window, batch_tokens)
            window, held = [], 0
    yield from _sorted_batches(window, batch_tokens)


def _sorted_batches(traces: list[EncodedTrace], batch_tokens: int) -> Iterator[list[EncodedTrace]]:
    batch: list[EncodedTrace] = []
    for trace in sorted(traces, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > batch_tokens:
            yield batch
            batch = []
        batch.append(trace)
    if batch:
        yield batch


def score_traces(
    capture: Capture,
    traces: Iterable[EncodedTrace],
    *,
    device: torch.device | str = "cpu",
    batch_tokens: int = BATCH_TOKENS,
    advance: Callable[[int, int], None] = lambda traces, tokens: None,
) -> Iterator[ScoredTrace]:
    """Score traces one batch after another, longest first within a window.

    Args:
        capture: a proven capture, not entered. It is proven again on the first (longest) trace
            where that reaches beyond a sliding window, which the load-time proof does not.
        traces: encoded traces; consumed lazily.
        device: of the model.
        batch_tokens: tokens in a batch, padding included.
        advance: called after each batch with its number of traces and of tokens.
    """
    from probing.attention.capture import AttentionCapture

    first = True
    with capture:
        for batch in batches_by_length(traces, batch_tokens):
            if first and isinstance(capture, AttentionCapture):
                _prove_on(capture, batch[0], torch.device(device))
                first = False
            yield from score_batch(capture, batch, torch.device(device))
            advance(len(batch), sum(map(len, batch)))


def _prove_on(capture: Any, trace: EncodedTrace, device: torch.device) -> None:
    """Prove the capture where the model looks through a window shorter than the trace."""
    config = capture.model.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if not any(window and window < len(trace) for window in windows):
        return
    answer = np.zeros_like(trace.answer)
    answer[np.flatnonzero(trace.answer)[:16]] = True
    capture.prove(
        torch.from_numpy(trace.ids)[None].to(device), torch.from_numpy(answer)[None].to(device)
    )


def step_scores(
    mass: Float[np.ndarray, "*head token"], spans: Int[np.ndarray, "step 2"]
) -> Float[np.ndarray, "*head step"]:
    """Score of each step, for each head (eq. 1).

        S_k^{l,h} = (1 / |s_k|) Σ_{m ∈ F} Σ_{n ∈ s_k} a^{l,h}_{m→n}

    Args:
        mass: Σ_{m ∈ F} a_{m→n} for each token n, as `AttentionCapture` gives it.
        spans: half-open token spans of the steps; they may overlap.

    Returns:
        Attention per token of the step (no unit); not a number for a step without token.

    Example:
        >>> step_scores(np.array([[0.5, 0.125, 0.25]]), np.array([[0, 1], [1, 3]])).tolist()
        [[0.5, 0.1875]]
    """
    # Sums run in float64: differences of float32 prefix sums would lose what small scores are.
    total = np.concatenate(
        [np.zeros((*mass.shape[:-1], 1)), np.cumsum(mass, axis=-1, dtype=np.float64)], axis=-1
    )
    first, last = spans[:, 0], spans[:, 1]
    with np.errstate(invalid="ignore"):
        scores: np.ndarray = (total[..., last] - total[..., first]) / (last - first)
    return scores
