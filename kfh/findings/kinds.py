"""The kinds of results that a report knows: a new kind is two functions and a line here."""

from __future__ import annotations

from kfh.findings.base import Kind
from kfh.findings.evaluation import find_evaluations, read_evaluation
from kfh.findings.interventions import ABLATION, read_ablation
from kfh.findings.probe import find_probes, read_probe
from kfh.findings.robustness import SAMPLE_SIZE, STABILITY, finder, read_sample_size, read_stability
from kfh.findings.runs import find_comparisons, find_runs, read_comparison, read_runs

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
