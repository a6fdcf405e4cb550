"""From a model and a benchmark to labels, heads and figures, on the pocket model, by commands."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from scipy.stats import spearmanr
from typer.testing import CliRunner

from kfh.cli import app
from probing.folder import ProbeResult
from probing.traces.file import Step, read_traces, write_traces
from probing.traces.segmenters import carry_labels
from rl.pocket.parse import parse_problem, read


def kfh(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output or result.exception


@pytest.mark.pocket
def test_rollout_label_probe_plot(tmp_path):
    traces, labels = tmp_path / "traces.jsonl", tmp_path / "labels.jsonl"
    sampled = ("--temperature", 1, "--top-p", 1, "--max-tokens", 320)
    kfh(
        "rollout",
        "--data",
        "pocket:30",
        "--samples",
        4,
        "--easy",
        0.75,
        "--per-problem",
        1,
        "--segmenter",
        "line",
        *sampled,
        "--out",
        traces,
    )
    kfh("label", "--by", "ablation", "--traces", traces, "--out", labels)
    probes = {name: tmp_path / name for name in ("cause", "known", "bare")}
    few = ("--permutations", 5)
    kfh("probe", "--traces", traces, "--labels", labels, "--out", probes["cause"], *few)
    kfh("plot", probes["cause"], "--formats", "png")
    assert (probes["cause"] / "heatmap.png").stat().st_size > 10_000

    found = list(read_traces(traces))
    assert len(found) >= 10 and all("token_ids" in json.dumps(trace.extra) for trace in found)
    write_traces(tmp_path / "known.jsonl", map(with_known_labels, found))
    kfh("probe", "--traces", tmp_path / "known.jsonl", "--out", probes["known"], *few)
    known = ("--traces", tmp_path / "known.jsonl", "--answer", "bare")
    kfh("probe", *known, "--out", probes["bare"], *few)
    sra = {name: pd.read_parquet(folder / "sra.parquet")["sra"] for name, folder in probes.items()}
    # The labels by cause put the heads in the order in which the true labels put them.
    assert spearmanr(sra["cause"], sra["known"]).statistic > 0.8
    assert set(sra["cause"].nlargest(2).index) == set(sra["known"].nlargest(2).index)
    # From the box alone, where words cannot tell the steps, the best head still does.
    overlap = ProbeResult.load(probes["bare"]).controls.set_index("control").loc["answer overlap"]
    assert overlap["sra"] < 0.8 < sra["bare"].max()


def with_known_labels(trace):
    """The trace with the labels that the task itself knows."""
    steps = read(parse_problem(trace.prompt), trace.response).steps
    known = tuple(Step(step.start, step.end, step.label) for step in steps)
    return trace.with_steps(carry_labels(known, list(trace.steps)))
