"""What a probe's figures are held against: an untrained model, the null, the verdict in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tiny
from helpers import model_folder, trace_file, trace_line, write_lines
from typer.testing import CliRunner

from kfh.cli import app
from kfh.findings.summary import probe_summary, probe_verdict
from probing.choices import METRICS
from probing.config import ProbeConfig
from probing.folder import ProbeResult
from probing.intervals import next_below
from probing.models.load import load_model, load_tokenizer, with_random_weights
from probing.ranking.caveats import ranking_caveats
from probing.ranking.rank import RANDOM_WEIGHTS
from probing.ranking.select import best_control
from probing.run import probe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ProbeResult:
    folder = tmp_path_factory.mktemp("controls")
    model = str(model_folder(folder / "model"))
    traces = trace_file(folder / "traces.jsonl", 8)
    config = ProbeConfig(
        model,
        traces,
        folder / "run",
        control="random-weights",
        control_draws=3,
        seed=5,
        device="cpu",
    )
    result = probe(config)
    assert result is not None
    return result


def test_random_weights_are_fresh_and_leave_everything_else(tmp_path: Path) -> None:
    model = tiny("llama")
    state = torch.get_rng_state()
    first, again, other = (with_random_weights(model, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    shapes = {name: w.shape for name, w in model.named_parameters()}
    assert {name: w.shape for name, w in first.named_parameters()} == shapes
    name = "model.layers.1.self_attn.q_proj.weight"
    weights = [m.get_parameter(name) for m in (model, first, again, other)]
    assert torch.equal(weights[1], weights[2])
    assert not any(torch.equal(weights[1], w) for w in (weights[0], weights[3]))
    half = with_random_weights(model.to(torch.bfloat16))
    assert next(half.parameters()).dtype == torch.bfloat16 and not half.training


def test_the_control_is_made_of_the_best_heads_of_untrained_models(finished: ProbeResult) -> None:
    """They are what probes of these very models find, chosen on the same halves."""
    config, found = finished.config, finished.counts["random_weights"]
    assert len(found) == config.control_draws == 3
    for draw, figures in enumerate(found):
        fresh = with_random_weights(load_model(config.model, device="cpu"), config.seed + draw)
        alone = probe(
            replace(config, out=finished.folder.with_name(f"alone-{draw}"), control="none"),
            model=fresh,
            tokenizer=load_tokenizer(config.model),
        )
        assert alone is not None and "random_weights" not in alone.counts
        best = alone.table.loc[alone.table["sra"].idxmax()]
        chosen = alone.table.loc[alone.table["sra_select"].idxmax()]
        assert figures["head"] == [best["layer"], best["head"]]
        assert [figures[m] for m in METRICS] == pytest.approx([best[m] for m in METRICS])
        for name in ("sra_select", "sra_held_out", "balanced_held_out"):
            assert figures[name] == pytest.approx(chosen[name])
    row = finished.controls.set_index("control").loc[RANDOM_WEIGHTS]
    for name in ("sra", "gating", "sra_select"):
        of_models = np.array([figures[name] for figures in found])
        assert row[name] == pytest.approx(min(next_below(of_models), 1.0))
        assert row[name] >= of_models.max()
    assert row["sra_held_out"] == max(figures["sra_held_out"] for figures in found)


def test_an_untrained_model_does_not_get_a_verdict_that_misleads(finished: ProbeResult) -> None:
    """The probed model is itself random: whatever p says, its like does as well."""
    name, figure = best_control(finished.controls, "sra")
    assert figure >= finished.controls.set_index("control")["sra"][RANDOM_WEIGHTS]
    assert "not shown" in probe_verdict(finished)
    assert any(f"{name} alone may reach (97.5 %) SRA" in t for t in ranking_caveats(finished))
    again = ProbeResult.load(finished.folder)
    assert probe_summary(again) == probe_summary(finished)


def test_the_verdict_follows_p_and_the_controls(finished: ProbeResult) -> None:
    table, controls = finished.table.copy(), finished.controls.copy()
    best = table["sra"].idxmax()
    changed = replace(finished, table=table, controls=controls)
    table.loc[best, ["sra", "sra_low", "sra_p"]] = 0.99, 0.9, 0.004
    controls["sra"] = 0.7
    assert "better than chance (p = 0.004) and than every control" in probe_verdict(changed)
    controls.loc[controls["control"] == "length", "sra"] = 0.93
    assert "not shown better than a control does, length" in probe_verdict(changed)
    gating = replace(changed, config=replace(finished.config, by="gating"))
    table.loc[:, ["gating", "gating_low", "gating_p"]] = 0.9, 0.85, 0.004
    assert "not shown better than a control does, length" in probe_verdict(gating)
    controls.loc[controls["control"] == "length", "sra"] = 0.7
    table.loc[:, "sra_low"] = 0.75
    assert "and than every control" in probe_verdict(gating)
    table.loc[best, "sra_p"] = 0.2
    assert "is not shown (p = 0.200)" in probe_verdict(changed)


def test_a_resumed_probe_scores_nothing_anew(finished: ProbeResult) -> None:
    """Asked for later, the control costs one pass of the other model; p by another null none."""
    parts = sorted((finished.folder / "random-weights").glob("*/parts/*.safetensors"))
    before = [path.stat().st_mtime_ns for path in parts]
    assert len(before) == 3 * 8
    again = probe(replace(finished.config, null="shuffle", permutations=20))
    assert again is not None and again.speed["resumed"] == 8
    assert [path.stat().st_mtime_ns for path in parts] == before
    assert list(again.null) == ["sra", "balanced"] and "gating_p" not in again.table
    probe(finished.config)


def test_problems_are_counted_and_few_of_them_are_said(tmp_path: Path) -> None:
    """Without a problem in the file the prompt is the problem."""
    model = str(model_folder(tmp_path / "model"))
    lines = []
    for number in range(8):
        line = trace_line(number, prompt=f"Add {number % 4}.\n<think>\n")
        del line["problem"]
        lines.append(line)
    traces = write_lines(tmp_path / "traces.jsonl", lines)
    result = probe(ProbeConfig(model, traces, tmp_path / "run", null="rotate", device="cpu"))
    assert result is not None
    assert (result.counts["problems"], result.counts["ranked"]) == (4, 8)
    said = " ".join(ranking_caveats(result))
    assert "4 problems are few" in said
    assert "p by rotate takes 8 traces of 4 problems for independent" in said
    by_problem = probe(ProbeConfig(model, traces, tmp_path / "run", device="cpu"))
    assert by_problem is not None
    assert "4 problems cannot give a p below 0.06" in " ".join(ranking_caveats(by_problem))
    assert np.nanmin(by_problem.table["sra_p"]) >= 1 / 16


def test_the_command_says_which_null_and_what_it_found(finished: ProbeResult) -> None:
    config = finished.config
    arguments = [
        "probe",
        "--model",
        config.model,
        "--traces",
        str(config.traces),
        "--device",
        "cpu",
    ]
    arguments += ["--out", str(finished.folder), "--control", "random-weights", "--seed", "5"]
    arguments += ["--control-draws", "3"]
    said = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).output
    assert RANDOM_WEIGHTS in said and "Verdict: " in said
    assert "p: how often the best of 16 heads would reach as much if none ranked the steps" in said
    stored = json.loads((finished.folder / "run.json").read_text())
    assert stored["counts"]["problems"] == 8
