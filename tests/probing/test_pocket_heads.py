"""The heads of the embedded model, by the probe: what the model card and the demo claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from kfh.commands.demo import draw_trace
from probing.config import ProbeConfig
from probing.models.load import pocket_model
from probing.run import probe
from probing.traces.source import pocket_traces
from rl.pocket.levels import LEVELS

pytestmark = pytest.mark.pocket


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("pocket")
    return probe(ProbeConfig(str(pocket_model()), pocket_traces(), out, device="cpu")), out


def test_three_heads_reach_the_targets_held_out(run) -> None:
    result, _ = run
    best = result.curves["top"][2]
    for metric, target in LEVELS["pocket"].head_targets.items():
        assert best[metric] >= target and best[f"{metric}_low"] >= target - 0.02
    assert result.counts["ranked"] >= 400


def test_heads_beat_every_control(run) -> None:
    result, _ = run
    controls = result.controls.set_index("control")
    for name in ("recency", "earliness", "uniform"):
        assert controls.loc[name, "balanced"] == pytest.approx(0.5)
    best = result.table.loc[result.table["sra"].idxmax()]
    assert best["sra_low"] > controls["sra_high"].max()
    assert best["balanced_low"] > controls["balanced_high"].max()
    assert best["sra_p"] == result.table["sra_p"].min() < 0.01
    assert best["contrast_essential"] > 1 > best["contrast_redundant"]


def test_card_says_what_the_probe_finds(run) -> None:
    """The figures of the card are those of `kfh probe` on the shipped model and traces."""
    result, _ = run
    card = (Path(pocket_model()) / "README.md").read_text(encoding="utf-8")
    best = result.curves["top"][2]
    for metric in LEVELS["pocket"].head_targets:
        assert f"{best[metric]:.3f}" in card
    for layer, head in result.head_set.pairs:
        assert f"{layer}.{head}" in card


def test_the_drawn_trace(run, capsys: pytest.CaptureFixture[str]) -> None:
    _, out = run
    draw_trace(out)
    assert (out / "trace.png").stat().st_size > 10_000
    assert "essential" in capsys.readouterr().out
