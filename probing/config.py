"""The settings of a probe, and how it reports progress."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probing.choices import (
    ANSWERS,
    BACKENDS,
    BATCH_TOKENS,
    DTYPES,
    GIVEN,
    MIN_CHARS,
    NULLS,
    PERMUTATIONS,
    SELECTIONS,
    THINK_END,
)
from probing.errors import ConfigError
from probing.settings import check_metric
from probing.traces.source import TraceSource


@dataclass(frozen=True)
class ProbeConfig:
    """All settings of a probe, checked on creation. Field by field as the command line has them.

    Args:
        model: hub id, folder or `.gguf` file.
        traces: trace file.
        out: folder for the results.
        segmenter, min_chars, labels, keep, skip_bad, think_end: see `TraceSource`.
        answer: which answer tokens are F: `all` (the paper), `values` or `boxed`.
        select: `top` or `greedy`.
        top: number of heads in the set; the paper finds about 3 enough.
        by: metric to select by: `sra`, `balanced` or `gating`.
        null: how labels are permuted for p-values: `shuffle` or `rotate`.
        permutations: their number.
        backend: `transformers` or `transformer-lens`.
        device, dtype: `auto`, or as torch names them.
        batch_tokens: tokens in a forward pass, padding included.
        resume: go on from the traces already scored in `out`.
        trust_remote_code: run code that comes with the model.
        seed: of the bootstrap and the permutations.
    """

    model: str
    traces: Path
    out: Path
    segmenter: str = GIVEN
    min_chars: int = MIN_CHARS
    labels: str = "steps"
    keep: str = "correct"
    skip_bad: bool = False
    think_end: str = THINK_END
    answer: str = "all"
    select: str = "top"
    top: int = 3
    by: str = "sra"
    null: str = "shuffle"
    permutations: int = PERMUTATIONS
    backend: str = "transformers"
    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int = BATCH_TOKENS
    resume: bool = True
    trust_remote_code: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be known before anything is read."""
        check_metric(self.by)
        for name, known in (
            ("select", SELECTIONS),
            ("answer", ANSWERS),
            ("null", NULLS),
            ("backend", BACKENDS),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"unknown {name} {getattr(self, name)!r}; choose {', '.join(known)}"
                )
        for name in ("top", "batch_tokens", "permutations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, is {getattr(self, name)}")

    @property
    def source(self) -> TraceSource:
        """The trace part of the settings."""
        return TraceSource(
            Path(self.traces),
            self.segmenter,
            self.min_chars,
            self.skip_bad,
            self.think_end,
            self.labels,
            self.keep,
        )

    def to_json(self) -> dict[str, Any]:
        """The settings as they stand in the run file."""
        return {**asdict(self), "traces": str(self.traces), "out": str(self.out)}
