"""Verdicts read strictly; consensus and agreement against theory."""

from __future__ import annotations

import json

import numpy as np
import pytest

from probing.errors import ConfigError
from rl.judges.panel import BadVerdict, parse_verdict
from rl.judges.votes import consensus_label, essential_share, fleiss_agreement, fleiss_kappa


def test_answers_are_read_strictly() -> None:
    entries = [{"step": 2, "label": "redundant"}, {"step": 1, "label": "essential"}]
    text = json.dumps({"steps": entries})
    for form in (text, f"```json\n{text}\n```", f"Hm, {{</think>\n{text}", f"  {text}\n"):
        assert parse_verdict(form, 2) == ["essential", "redundant"]
    for bad, kind in (
        (f"Here it is: {text}", "invalid JSON"),
        ("", "invalid JSON"),
        (json.dumps(entries), "wrong schema"),
        (text.replace("essential", "maybe"), "wrong schema"),
        (text.replace("1", "true"), "wrong schema"),
        (text.replace("2", "1"), "wrong steps"),
        (text.replace("2", "3"), "wrong steps"),
        (text.replace("1", "0"), "wrong steps"),
    ):
        with pytest.raises(BadVerdict) as caught:
            parse_verdict(bad, 2)
        assert caught.value.kind == kind, bad


def test_consensus() -> None:
    e, r = "essential", "redundant"
    for votes, unanimous, majority in (
        ([e, e, e], e, e),
        ([e, r, e], None, e),
        ([r, r, None], None, r),
        ([e, r, None], None, None),
        ([e, None, None], None, None),
        ([e, r], None, None),
        ([r], r, r),
    ):
        assert consensus_label(votes, "unanimous") == unanimous
        assert consensus_label(votes, "majority") == majority
    assert essential_share([e, None, r, r]) == 1 / 3 and essential_share([None]) is None
    with pytest.raises(ConfigError, match="unknown consensus"):
        consensus_label([e], "loud")


def test_fleiss_kappa_against_published_figures_and_theory() -> None:
    # Ten items, fourteen raters, five categories: the textbook table, κ = 0.210.
    table = """0 0 0 0 14  0 2 6 4 2  0 0 3 5 6  0 3 9 2 0  2 2 8 1 1
               7 7 0 0 0  3 2 6 3 0  2 5 3 2 2  6 5 2 1 0  0 2 2 3 7"""
    counts = np.array(table.split(), dtype=int).reshape(10, 5)
    assert fleiss_kappa(counts.tolist()) == pytest.approx(0.210, abs=5e-4)
    rng = np.random.default_rng(0)
    # By chance 0; where a vote is the truth with chance q, else a coin, it is q² in the mean.
    for q in (0.0, 0.5, 0.9):
        truth = rng.random((20_000, 1)) < 0.5
        votes = np.where(rng.random((20_000, 3)) < q, truth, rng.random((20_000, 3)) < 0.5)
        ones = votes.sum(axis=1)
        found = fleiss_kappa(np.stack([ones, 3 - ones], axis=1).tolist())
        assert found == pytest.approx(q**2, abs=0.02)
    assert fleiss_kappa([[3, 0], [3, 0]]) is None and fleiss_kappa([]) is None
    assert fleiss_kappa([[1, 0], [0, 1]]) is None


def test_agreement_by_hand() -> None:
    e, r = "essential", "redundant"
    votes = [{"a": e, "b": e}, {"a": e, "b": r}, {"a": r, "b": None}, {"a": r, "b": r}]
    found = fleiss_agreement(votes)
    assert found["steps"] == 3 and found["unanimous"] == pytest.approx(2 / 3)
    assert found["fleiss_kappa"] == pytest.approx(1 / 3)
    judges = found["judges"]
    assert judges["a"] == {"steps": 4, "essential": 0.5, "agrees_with": {"b": 2 / 3}}  # type: ignore
    assert judges["b"]["essential"] == 1 / 3  # type: ignore[index]
