"""Attention mass of single tokens for chosen heads: the one thing a finished probe did not keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from probing.attention.memory import BatchSize
from probing.attention.scores import batch_masses, batches_by_length, step_scores
from probing.choices import Head
from probing.errors import ModelError
from probing.folder import ProbeResult
from probing.settings import Progress, no_progress
from probing.traces.file import Trace
from probing.traces.tokens import (
    EncodedTrace,
    SampledIds,
    decode_with_offsets,
    encode_trace,
    token_offsets,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# A trace, the characters of each token (`response_offsets`), and each token's mass by head.
TraceMasses = tuple[Trace, np.ndarray, np.ndarray]

# The same weights in another kernel or on another device differ by less, relative to the
# trace's largest score; another model by far more.
TOLERANCE = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.1}


def response_offsets(
    tokenizer: PreTrainedTokenizerBase, trace: Trace, encoded: EncodedTrace
) -> Int[np.ndarray, "token 2"]:
    """Characters of the response for each token of the whole sequence; the prompt's at or below 0.

    Args:
        tokenizer: the one that made `encoded`.
        trace: prompt and response.
        encoded: the trace's ids, as sampled or tokenised.
    """
    if encoded.sampled:
        sampled = SampledIds.of(trace)
        assert sampled is not None, trace.id  # encoded.sampled says so
        _, offsets = decode_with_offsets(tokenizer, np.asarray(sampled.response, dtype=np.int64))
        offsets = np.concatenate([np.zeros((encoded.prompt_tokens, 2), dtype=np.int64), offsets])
    else:
        _, offsets = token_offsets(tokenizer, trace.prompt + trace.response)
        offsets -= len(trace.prompt)
    return offsets if encoded.kept is None else offsets[encoded.kept]


def token_masses(
    probe: ProbeResult,
    traces: Sequence[Trace],
    heads: Sequence[Head],
    *,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Iterator[TraceMasses]:
    """Capture Σ_{m ∈ F} a_{m→n} of each token n, and check it against the stored step scores.

    Args:
        probe: the finished probe; its model is loaded again, in the precision of the probe.
        traces: whose tokens are wanted.
        heads: in the order of the result.
        device: as for `load_model`.
        progress: makes a progress bar.

    Yields:
        The trace, offsets (token, 2) and masses (head, token); longest traces first.

    Raises:
        ModelError: the model cannot be loaded, or is not the one that was probed.
    """
    from probing.attention.capture import AttentionCapture
    from probing.models.identity import weights_fingerprint

    config, settings = probe.config, probe.settings
    dtype = settings["dtype"].removeprefix("torch.")
    model, tokenizer = replace(config, device=device, dtype=dtype).load()
    if weights_fingerprint(model) != settings["weights"]:
        raise ModelError(
            f"{config.model} has changed since {probe.folder} was probed; probe again, or leave "
            "the tokens out (--no-tokens)"
        )
    place = next(model.parameters()).device
    by_id = {trace.id: trace for trace in traces}

    how = {"rule": settings["rule"], "answer": settings["answer"], "skip_bad": config.skip_bad}

    def encoded() -> Iterator[EncodedTrace]:
        for trace in traces:
            yield encode_trace(tokenizer, trace, **how)

    capture = AttentionCapture(model, list(heads))
    rows = probe.places(heads)
    tokens = config.batch_tokens
    if tokens == "auto":
        tokens = BatchSize.auto_of(model, capture).tokens
    batches = batches_by_length(encoded(), tokens, lengths=capture.lengths)
    with progress("reading attention", len(traces)) as advance, capture:
        for batch in batches:
            for own, mass in zip(batch, batch_masses(capture, batch, place), strict=True):
                _check(probe, own, mass, rows, TOLERANCE[dtype])
                trace = by_id[own.id]
                yield trace, response_offsets(tokenizer, trace, own), mass
            advance(len(batch), sum(map(len, batch)))


def _check(
    probe: ProbeResult, trace: EncodedTrace, mass: np.ndarray, rows: list[int], allowed: float
) -> None:
    """Raise ModelError unless the tokens' masses add up to the step scores of the probe."""
    stored: Any = probe.scored[trace.id].scores[rows]
    again = step_scores(mass, trace.spans)
    if again.shape != stored.shape:
        raise ModelError(f"trace {trace.id}: its steps are not those that were scored")
    same = np.nan_to_num(np.abs(again - stored)).max(initial=0.0)
    largest = np.nan_to_num(stored).max(initial=0.0)
    if same > allowed * largest or (np.isnan(again) != np.isnan(stored)).any():
        raise ModelError(
            f"trace {trace.id}: the attention read now does not add up to the scores of "
            f"{probe.folder} (difference {same / max(largest, 1e-30):.2g} of the largest, "
            f"{allowed:g} allowed); were model and tokenizer changed? --no-tokens leaves them out"
        )
