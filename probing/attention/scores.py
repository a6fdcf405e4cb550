"""Score the steps of many traces: encode, batch by length, capture, reduce to steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from probing.attention.memory import BatchSize
from probing.choices import BACKENDS, BATCH_TOKENS, Head
from probing.errors import ConfigError, DataError, NotFiniteError
from probing.models.identity import shortest_window
from probing.models.lengths import Lengths
from probing.settings import unknown
from probing.traces.tokens import EncodedTrace

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Scores = Float[np.ndarray, "head step"]
PROOF_ROWS = 16  # of a trace that a capture is proven on once more
STRETCH = 32  # batches' worth of traces that are in memory at once, to be sorted by length


@runtime_checkable
class Capture(Protocol):
    """What a backend gives: heads, and the attention mass of a batch padded on the right."""

    heads: list[Head]
    lengths: Lengths  # which traces may share a pass

    def __enter__(self) -> Any:
        """Begin to capture."""

    def __exit__(self, *error: Any) -> None:
        """End it."""

    def __call__(self, input_ids: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        """mass[b, head, token], see `AttentionCapture`."""


@dataclass(frozen=True, eq=False)
class ScoredTrace:
    """Step scores of one trace for every head, and the sizes that the baseline needs.

    Raises:
        DataError: a score that is not finite, of a step with tokens.
    """

    id: str
    scores: Scores
    tokens: Int[np.ndarray, "step"]  # |s_k|
    answer_tokens: int  # |F|
    total_tokens: int  # |q ⊕ o|

    def __post_init__(self) -> None:
        """Check the scores: not-a-number would be ranked like any other."""
        if not np.isfinite(self.scores[:, self.tokens > 0]).all():
            raise DataError(
                f"trace {self.id}: scores that are not finite; score it again (--no-resume)"
            )

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
    raise ConfigError(unknown("backend", backend, BACKENDS))


def pad_batch(
    rows: Sequence[np.ndarray], value: float = 0, *, least: int = 1
) -> Shaped[torch.Tensor, "row longest *rest"]:
    """Rows of different lengths as one tensor, `value` behind each.

    Args:
        rows: at least one; each (length, *rest), of one type and one rest.
        value: what stands behind a row.
        least: width where every row is shorter.

    Example:
        >>> pad_batch([np.array([1, 2]), np.array([3])], -1).tolist()
        [[1, 2], [3, -1]]
    """
    width = max(least, *(len(row) for row in rows))
    out = np.full((len(rows), width, *rows[0].shape[1:]), value, dtype=rows[0].dtype)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return torch.from_numpy(out)


def batch_masses(
    capture: Capture,
    traces: Sequence[EncodedTrace],
    device: torch.device,
    *,
    forward: Callable[..., Any] | None = None,
) -> list[Float[np.ndarray, "head token"]]:
    """Attention mass of each trace's tokens, for every head of the capture, in one forward pass.

    The traces are padded on the right and given without an attention mask: with causal attention
    no real token can look at the padding, and the kernels are fastest without a mask.

    Args:
        capture: entered.
        traces: of one batch. Of none, one token goes through the model all the same: where
            modules are sharded every process must make as many passes.
        device: of the model.
        forward: called instead of the model's trunk, see `AttentionCapture.__call__`.

    Masses that are not finite are given as they are; see `check_finite`.
    """
    ids = pad_batch([trace.ids for trace in traces] or [np.zeros(1, dtype=np.int64)])
    answer = pad_batch([trace.answer for trace in traces] or [np.zeros(1, dtype=bool)])
    options: dict[str, Any] = {} if forward is None else {"forward": forward}
    mass = capture(ids.to(device), answer.to(device), **options).cpu().numpy()
    return [mass[row, :, : len(trace)] for row, trace in enumerate(traces)]


def check_finite(
    what: str, mass: Float[np.ndarray, "head token"], heads: Sequence[Head], dtype: object
) -> None:
    """Raise NotFiniteError where a mass is not finite: with its trace, first layer and head.

    Args:
        what: whose mass it is, for the message.
        mass: of its tokens.
        heads: in the order of the masses.
        dtype: of the model.
    """
    lost = np.flatnonzero(~np.isfinite(mass).all(axis=-1))
    if len(lost):
        layer, head = min(heads[int(place)] for place in lost)
        raise NotFiniteError.of(
            f"{what}: the attention of head {layer}.{head} (layer {layer}), and of "
            f"{len(lost) - 1} other heads of {len(heads)}, is",
            dtype,
        )


Lost = Callable[[EncodedTrace, NotFiniteError], None]
Masses = Callable[[Any, Sequence[EncodedTrace], torch.device], list[np.ndarray]]


def score_batch(
    capture: Capture,
    traces: Sequence[EncodedTrace],
    device: torch.device,
    *,
    dtype: object = torch.float32,
    lost: Lost | None = None,
    masses: Masses = batch_masses,
) -> list[ScoredTrace]:
    """Step scores of a batch of traces, in one forward pass; see `batch_masses`.

    Args:
        capture: entered.
        traces: of one batch.
        device: of the model.
        dtype: of the model, for messages.
        lost: called with a trace whose attention is not finite, which is left out.
        masses: makes the pass.

    Raises:
        NotFiniteError: there is such a trace, and `lost` is None.
    """
    scored = []
    for trace, mass in zip(traces, masses(capture, traces, device), strict=True):
        try:
            check_finite(f"trace {trace.id}", mass, capture.heads, dtype)
        except NotFiniteError as error:
            if lost is None:
                raise
            lost(trace, error)
            continue
        scored.append(
            ScoredTrace(
                trace.id,
                step_scores(mass, trace.spans).astype(np.float32),
                trace.spans[:, 1] - trace.spans[:, 0],
                int(trace.answer.sum()),
                len(trace),
            )
        )
    return scored


def batches_by_length(
    traces: Iterable[EncodedTrace],
    batch_tokens: int = BATCH_TOKENS,
    rows: int | None = None,
    lengths: Lengths | None = None,
) -> Iterator[list[EncodedTrace]]:
    """Batches of at most `batch_tokens` tokens, padding included, longest trace first.

    Traces are sorted by length within a stretch of the stream, so that little is padded and no
    more than a stretch is in memory.

    Args:
        traces: consumed lazily.
        batch_tokens: of a batch; a longer trace goes alone.
        rows: at most so many traces a batch; None: as many as the tokens allow.
        lengths: of the model: at which its attention changes. No batch lies on both sides.

    Raises:
        ConfigError: a batch that holds no token or no row.
    """
    if batch_tokens < 1:
        raise ConfigError(f"batch tokens must be positive, are {batch_tokens}")
    if rows is not None and rows < 1:
        raise ConfigError(f"a batch needs at least 1 row, not {rows}")
    lengths = lengths or Lengths()
    stretch: list[EncodedTrace] = []
    tokens = 0
    for trace in traces:
        stretch.append(trace)
        tokens += len(trace)
        if tokens >= STRETCH * batch_tokens:
            yield from _sorted_batches(stretch, batch_tokens, rows, lengths)
            stretch, tokens = [], 0
    yield from _sorted_batches(stretch, batch_tokens, rows, lengths)


def _sorted_batches(
    traces: list[EncodedTrace], batch_tokens: int, rows: int | None, lengths: Lengths
) -> Iterator[list[EncodedTrace]]:
    batch: list[EncodedTrace] = []
    for trace in sorted(traces, key=len, reverse=True):
        longest = len((batch or [trace])[0])
        full = len(batch) == rows or (len(batch) + 1) * longest > batch_tokens
        if batch and (full or lengths.kind(longest) != lengths.kind(len(trace))):
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
    batch_tokens: int | BatchSize = BATCH_TOKENS,
    advance: Callable[[int, int], None] = lambda traces, tokens: None,
    lost: Lost | None = None,
    wanted: Callable[[list[EncodedTrace]], bool] | None = None,
    masses: Masses = batch_masses,
) -> Iterator[ScoredTrace]:
    """Score traces one batch after another, longest first within a stretch.

    Args:
        capture: a proven capture, not entered; see `prove_longer`.
        traces: encoded traces; consumed lazily.
        device: of the model.
        batch_tokens: tokens in a batch, padding included. Where memory is too small for one, and
            the number may become less, the batch is made in parts.
        advance: called after each batch with its number of traces and of tokens.
        lost: called with a trace whose attention is not finite, which is left out.
        wanted: says of each batch whether it is scored; default all.
        masses: makes the pass of a batch.

    Raises:
        NotFiniteError: there is such a trace, and `lost` is None.
    """
    place = torch.device(device)
    dtype = getattr(capture, "dtype", torch.float32)
    size = batch_tokens if isinstance(batch_tokens, BatchSize) else BatchSize(batch_tokens)

    def score(batch: list[EncodedTrace]) -> list[ScoredTrace]:
        prove_longer(capture, batch, place, lost is not None)
        return score_batch(capture, batch, place, dtype=dtype, lost=lost, masses=masses)

    with capture:
        batches = batches_by_length(traces, size.tokens, lengths=capture.lengths)
        for batch in filter(wanted, batches):
            for part, scored in _in_parts(batch, size, score):
                yield from scored
                advance(len(part), sum(map(len, part)))


def _in_parts(
    batch: list[EncodedTrace],
    size: BatchSize,
    score: Callable[[list[EncodedTrace]], list[ScoredTrace]],
) -> Iterator[tuple[list[EncodedTrace], list[ScoredTrace]]]:
    """A batch with its scores; or its parts, one after another, as many traces as `size` allows."""
    while batch:
        part = next(_sorted_batches(batch, size.tokens, None, Lengths()))
        try:
            scored = score(part)
        except (MemoryError, RuntimeError) as error:
            if not size.halve(error, len(part) * len(part[0]), len(part)):
                raise
        else:
            yield part, scored
            batch = batch[len(part) :]
            continue
        torch.cuda.empty_cache()  # only now has the error let go of what the pass held


def prove_longer(
    capture: Any, batch: Sequence[EncodedTrace], device: torch.device, skip_bad: bool = False
) -> None:
    """Prove the capture on a batch longer than any that it was proven on, where that matters.

    It does where a layer looks through a window shorter than the trace, or the RoPE changes with
    the length: the proof at loading reaches neither. The last rows of the longest trace are taken,
    which see the most; whether they are of the answer plays no part.

    Args:
        capture: of any backend; a proof has `AttentionCapture` alone.
        batch: the longest trace first.
        device: of the model.
        skip_bad: a trace whose numbers are not finite is passed over for the next one.
    """
    from probing.attention.capture import AttentionCapture

    if not isinstance(capture, AttentionCapture):
        return
    window = shortest_window(capture.model.config)
    for trace in batch:
        beyond = (window is not None and window < len(trace)) or capture.lengths
        if not beyond or len(trace) <= capture.proven:
            return
        rows = np.zeros(len(trace), dtype=bool)
        rows[-PROOF_ROWS:] = True
        inputs = (torch.from_numpy(given)[None].to(device) for given in (trace.ids, rows))
        try:
            capture.prove(*inputs)
            return
        except NotFiniteError as error:
            if not skip_bad:
                raise NotFiniteError(f"trace {trace.id}: {error}") from error


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
    # Step by step, in float64: differences of prefix sums take far longer and lose what small
    # scores are.
    scores: np.ndarray = np.empty((*mass.shape[:-1], len(spans)))
    for step, (first, last) in enumerate(spans):
        mass[..., first:last].sum(axis=-1, dtype=np.float64, out=scores[..., step])
    with np.errstate(invalid="ignore"):
        scores /= spans[:, 1] - spans[:, 0]
    return scores
