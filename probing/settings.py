"""What settings classes share: their checks, and the progress that a job reports."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from probing.choices import METRICS
from probing.errors import ConfigError

# progress(name, total) is a context that gives advance(traces, tokens)
Progress = Callable[[str, int], AbstractContextManager[Callable[[int, int], None]]]


def no_progress(name: str, total: int) -> AbstractContextManager[Callable[[int, int], None]]:
    """No progress bar."""
    return nullcontext(lambda traces, tokens: None)


def check_metric(metric: str) -> None:
    """Raise ConfigError for a metric that does not exist."""
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}; choose {', '.join(METRICS)}")
