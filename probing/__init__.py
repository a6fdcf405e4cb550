"""Probe a language model for Key-Focus Heads: traces, steps, labels, attention, SRA, head sets.

The names below are the stable Python interface; everything is loaded on first use, so that
`import probing` costs nothing.

    from probing import ProbeConfig, probe, segment, step_ranking_accuracy, HeadSet
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probing.attention import AttentionCapture
    from probing.config import ProbeConfig
    from probing.errors import ConfigError, DataError, KfhError, ModelError
    from probing.headset import HeadSet
    from probing.ranking import (
        balanced_ranking_accuracy,
        gating_accuracy,
        step_ranking_accuracy,
        step_scores,
    )
    from probing.results import ProbeResult
    from probing.run import probe
    from probing.scoring import step_baseline
    from probing.segmenters import Segmenter, segment
    from probing.tokens import encode_trace
    from probing.traces import Step, Trace, read_traces, write_traces

_HOME = {
    "AttentionCapture": "attention",
    "ConfigError": "errors",
    "DataError": "errors",
    "HeadSet": "headset",
    "KfhError": "errors",
    "ModelError": "errors",
    "ProbeConfig": "config",
    "ProbeResult": "results",
    "Segmenter": "segmenters",
    "Step": "traces",
    "Trace": "traces",
    "balanced_ranking_accuracy": "ranking",
    "encode_trace": "tokens",
    "gating_accuracy": "ranking",
    "probe": "run",
    "read_traces": "traces",
    "segment": "segmenters",
    "step_baseline": "scoring",
    "step_ranking_accuracy": "ranking",
    "step_scores": "ranking",
    "write_traces": "traces",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
