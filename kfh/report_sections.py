"""The kinds of results that a report knows: a new kind is two functions and a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kfh.report_evidence import (
    ABLATION,
    SAMPLE_SIZE,
    STABILITY,
    finder,
    read_ablation,
    read_sample_size,
    read_stability,
)
from kfh.report_parts import Place, Section
from kfh.report_probe import find_probes, read_probe
from kfh.report_runs import (
    find_comparisons,
    find_evaluations,
    find_runs,
    read_comparison,
    read_evaluation,
    read_runs,
)


@dataclass(frozen=True)
class Kind:
    """A kind of result: its name, where it lies among the folders, how it becomes a section."""

    name: str
    find: Callable[[Sequence[Path]], list[Place]]
    read: Callable[[Place], Section]


# In the order of the report.
KINDS = [
    Kind("probe", find_probes, read_probe),
    Kind("sample size", finder(SAMPLE_SIZE), read_sample_size),
    Kind("stability", finder(STABILITY), read_stability),
    Kind("interventions", finder(ABLATION), read_ablation),
    Kind("training", find_runs, read_runs),
    Kind("comparison", find_comparisons, read_comparison),
    Kind("evaluation", find_evaluations, read_evaluation),
]
