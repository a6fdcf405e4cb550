"""Outcomes of interventions: their file, means, intervals, claims and figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probing.errors import ConfigError, DataError
from probing.figures.interventions import intervention_figures
from probing.intervals import estimate_mean
from probing.interventions.claims import claims_of
from probing.interventions.effects import differences, dose_response, summarise
from probing.interventions.outcomes import Outcome, OutcomeStore
from probing.interventions.result import InterventionResult


def outcome(arm: str, trace: int, value: float, *, k: float = 1, draw: int = 0, **own) -> Outcome:
    given = {"group": f"g{trace}", "correct": value > 0, "logprob": value, **own}
    return Outcome("steps", arm, "", k, draw, f"t{trace}", given.pop("group"), tokens=1, **given)


def test_means_and_differences_by_hand() -> None:
    outcomes = [outcome("none", t, 1.0, k=0) for t in range(4)]
    outcomes += [outcome("high", t, v) for t, v in enumerate([-3, -3, 1, 1])]
    # Two draws of trace 0 are one trace: (−1 + 1) / 2 = 0. Trace 3 has no control.
    outcomes += [outcome("random", 0, -1, draw=0), outcome("random", 0, 1, draw=1)]
    outcomes += [outcome("random", t, 1) for t in (1, 2)]
    table = summarise(outcomes).set_index(["arm", "measure"])
    assert table.loc[("high", "logprob"), "value"] == -1
    assert table.loc[("high", "accuracy"), "value"] == 0.5
    assert table.loc[("random", "logprob"), "value"] == pytest.approx(2 / 3)
    assert table.loc[("random", "accuracy"), ["value", "traces"]].tolist() == [
        pytest.approx(2.5 / 3),
        3,
    ]
    # All four right: the interval is what four problems leave open, 1 − 0.025^(1/4).
    none = table.loc[("none", "accuracy")]
    assert (none["value"], none["high"]) == (1, 1)
    assert none["low"] == pytest.approx(0.025**0.25)
    found = differences(outcomes).set_index(["arm", "against", "measure"])
    assert found.loc[("high", "none", "logprob"), "value"] == -2
    assert found.loc[("high", "random", "logprob"), "value"] == pytest.approx((-3 - 4 + 0) / 3)
    assert found.loc[("high", "random", "logprob"), "traces"] == 3
    assert ("none", "random", "logprob") not in found.index
    assert ("random", "none", "logprob") in found.index


def test_intervals_over_problems_hold_the_truth() -> None:
    """Traces of one problem fall together: resampling traces would be too sure by far."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 4)
    inside = {True: 0, False: 0}
    for _ in range(300):
        values = rng.normal(size=40)[groups] + 0.2 * rng.normal(size=160)
        for together in inside:
            rows = values.reshape((40, 4) if together else (160, 1))
            found = estimate_mean(rows.tolist())
            inside[together] += found.low <= 0 <= found.high
    assert 0.90 < inside[True] / 300 < 0.98
    assert inside[False] / 300 < 0.80


def test_verdicts_need_the_whole_interval() -> None:
    rng = np.random.default_rng(1)
    outcomes = [outcome("none", t, 1.0, k=0) for t in range(60)]
    for arm, mean in (("high", -1.0), ("low", 1.0), ("random", 0.6)):
        outcomes += [outcome(arm, t, mean + 0.3 * rng.normal()) for t in range(60)]
    said = {v.text: v.holds for v in claims_of(differences(outcomes)) if v.measure == "logprob"}
    assert said == {
        "removing high-score steps lowers logprob": True,
        "… more than removing random steps": True,
        "removing low-score steps lowers logprob": False,
        "… less than removing random steps": True,
    }
    few = [o for o in outcomes if o.trace in ("t0", "t1")]
    few = [replace(o, logprob=1.0 if o.trace == "t0" else o.logprob) for o in few]
    lowered = next(v for v in claims_of(differences(few)) if v.measure == "logprob")
    assert lowered.doses[0]["value"] < 0 and not lowered.holds


def test_heads_and_steering_are_claimed_and_drawn_from_their_own_measures(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    outcomes = []
    for t in range(30):
        base = {"group": f"g{t}", "tokens": 3, "trace": f"t{t}", "logprob": -1.0, "correct": True}
        noise = 0.1 * rng.normal()
        kept = {"follow": 2.0 + noise, "source_kept": 1.0, "overlap": 0.0}
        for mode in ("zero/all", "mean/all"):
            for arm, down in (("chosen", 1.5), ("random", 0.2)):
                extra = {"follow": kept["follow"] - down, "source_kept": 1 - down / 2}
                outcomes.append(Outcome("heads", arm, mode, 1, 0, extra=extra, **base))
        outcomes.append(Outcome("heads", "none", "", 0, 0, extra=kept, **base))
        outcomes.append(Outcome("steering", "none", "", 1, 0, extra=kept, **base))
        for factor in (0.0, 0.5, 2.0):
            for arm, slope in (("chosen", 1.0), ("random", 0.1), ("other-step", -1.0)):
                extra = {"follow": kept["follow"] + slope * (factor - 1) + 0.01 * rng.normal()}
                outcomes.append(Outcome("steering", arm, "scale", factor, 0, extra=extra, **base))
    settings = {"seed": 0}
    head_set = {"heads": [[2, 3]], "model": {"id": "m"}}
    counts = {"parts": {part: {"traces": 30} for part in ("heads", "steering")}}
    made = InterventionResult.of(outcomes, settings, head_set, counts)
    said = {(claim.text, claim.measure): claim for claim in made.claims}
    assert said["ablating the chosen heads lowers follow", "follow"].holds
    assert said["… more than random heads of the same layers", "source_kept"].holds
    assert not said["ablating the chosen heads lowers logprob", "logprob"].holds
    down = said["attention turned down lowers follow", "follow"]
    up = said["attention turned up raises follow", "follow"]
    assert [d["dose"] for d in down.doses] == [0, 0.5] and [d["dose"] for d in up.doses] == [2]
    assert down.holds and up.holds and said["… more than to another step", "follow"].holds
    correlations = dose_response(outcomes, 0)
    assert correlations["chosen"]["value"] == pytest.approx(1)
    assert correlations["other-step"]["value"] == pytest.approx(-1)
    made.write(tmp_path)
    result = InterventionResult.load(tmp_path)
    assert result.to_json() == made.to_json() and result.header == made.header
    assert result.caveats == made.caveats and result._repr_html_() == made._repr_html_()
    figures = intervention_figures(result)
    assert set(figures) == {"ablation-heads", "ablation-steering"}
    panels = [axes for axes in figures["ablation-heads"].axes if axes.patches]
    assert len(panels) == 4
    heights = [bar.get_height() for bar in panels[2].patches if bar.get_width() < 1]
    assert heights == pytest.approx([0.25, 0.25, 0.9, 0.9])
    line = next(li for li in figures["ablation-steering"].axes[0].lines if len(li.get_xdata()) == 4)
    assert list(line.get_xdata()) == [0, 1, 2, 3]
    assert np.allclose(line.get_ydata(), [1, 1.5, 2, 3], atol=0.1), "the factor 1 is no change"


def test_the_store_keeps_whole_lines_of_the_same_settings(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    store = OutcomeStore(path, {"k": [1, 2]})
    store.open(resume=True)
    store.add("steps", "t0", [outcome("none", 0, 1.0), outcome("high", 0, -1.0)])
    store.add("steps", "t1", [])
    text = path.read_bytes()
    path.write_bytes(text + b'{"part": "steps", "tra')
    again = OutcomeStore(path, {"k": [1, 2]})
    again.open(resume=True)
    assert again.outcomes == store.outcomes and again.done("steps") == {"t0", "t1"}
    assert path.read_bytes() == text
    with pytest.raises(ConfigError, match=r"k \[1, 2\]; now asked for k \[3\]"):
        OutcomeStore(path, {"k": [3]}).open(resume=True)
    lines = text.splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"{}\n", *lines[1:]]))
    with pytest.raises(DataError, match="line 2: damaged"):
        again.open(resume=True)
    again.open(resume=False)
    assert again.outcomes == {} and again.done("steps") == set()
    with pytest.raises(ValueError, match="not the outcomes"):
        again.add("steps", "t1", [outcome("none", 0, 1.0)])
