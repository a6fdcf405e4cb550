"""The top and the end of a report: sentences whose words follow intervals, glossary, dark pages."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from kfh.findings.base import Picture, Section
from kfh.findings.page import glossary, write_report
from kfh.findings.standings import course_table, speed_table, standings_summary
from kfh.findings.summary import (
    ablation_summary,
    evaluation_summary,
    probe_summary,
    runs_summary,
    stability_summary,
)
from probing.interventions.claims import claims_of
from probing.interventions.effects import differences
from probing.interventions.outcomes import Outcome
from probing.numbers import Number

ROOT = Path(__file__).parents[2]


def estimate(
    value: float | None, low: float | None, high: float | None, n: int = 200
) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n}


def probed(low: float, held_out_low: float) -> Any:
    """A probe of two heads with these lower ends; recency reaches 0.6, chance 0.55."""
    table = pd.DataFrame(
        {"layer": [0, 2], "head": [1, 3], "sra": [0.5, 0.71], "sra_low": [0.4, low]}
        | {"sra_high": [0.6, 0.8], "sra_p": [0.9, 0.01]}
    )
    point = {"sra": 0.7, "sra_low": held_out_low, "sra_high": 0.75, "added": [2, 3]}
    controls = pd.DataFrame({"control": ["recency", "all heads"], "sra": [0.6, 0.9]})
    return SimpleNamespace(
        config=SimpleNamespace(by="sra", null="problems", permutations=1000),
        counts={"held_out_traces": ["a", "b", "c"], "ranked": 6, "problems": 5},
        table=table,
        controls=controls,
        null={"sra": {"q95": 0.55}},
        set_point=point,
        chosen=[(2, 3)],
    )


def test_a_control_is_called_beaten_where_the_whole_interval_lies_above_it() -> None:
    best, chosen, verdict, null = probe_summary(probed(0.61, 0.62))
    assert verdict.endswith("(p = 0.010) and than every control.")
    assert "best of 2 heads" in null and "(signs of 5 problems, 32 draws)" in null
    assert best == (
        "Best of 2 heads: 2.3, SRA 0.710 (0.610–0.800). Held against: recency 0.600, beaten; best "
        "head by chance (95 %) 0.550, beaten."
    )
    assert chosen == (
        "Head set 2.3: SRA 0.700 (0.620–0.750) on 3 traces that it was not chosen on. Held "
        "against: recency 0.600, beaten."
    )
    best, chosen, verdict, _ = probe_summary(probed(0.6, 0.3))  # it touches the control
    assert verdict.endswith("but not shown better than a control does, recency.")
    assert "recency 0.600, not beaten; best head by chance (95 %) 0.550, beaten." in best
    assert chosen.endswith("recency 0.600, not beaten.")


def test_claims_against_controls_stand_with_their_strongest_dose() -> None:
    outcomes = [
        Outcome("steps", arm, "", dose, 0, f"t{n}", f"g{n}", n % 5 > 0 or not lost, value, 9)
        for n in range(20)
        for arm, dose, lost, value in (
            ("none", 0.0, False, -0.1),
            ("high", 1.0, True, -2.0 - n / 50),
            ("high", 2.0, True, -4.0 - n / 50),
            ("random", 1.0, True, -1.9 - n / 60),
            ("random", 2.0, True, -1.9 - n / 60),
        )
    ]
    made = [*claims_of(differences(outcomes))]
    texts, claims = ablation_summary(made), [claim.to_json() for claim in made]
    holding = sum(claim["holds"] for claim in claims)
    assert texts[0] == f"Of {len(claims)} claims on steps {holding} hold at every dose."
    (asked,) = [
        claim
        for claim in claims
        if (claim["arm"], claim["against"], claim["measure"]) == ("high", "random", "accuracy")
    ]
    dose = asked["doses"][-1]
    assert dose["dose"] == 2.0 and not dose["holds"]  # both answer alike
    value = Number(dose["value"], dose["low"], dose["high"], signed=True)
    assert texts[1:] == [
        f"Steps, high against random, dose 2: accuracy {value} on 20 traces, not shown to be lower."
    ]


def test_a_trial_of_few_seeds_shows_nothing_whatever_its_intervals() -> None:
    pair = {"method": "overlap", "against": "tlmre", "seeds": 3, "settings": 1, "others": 1}
    speed = {"length": 60.0, "pressure": 0.2, "against": 0.2, "accuracy": estimate(0, -0.1, 0.1)}
    speed |= {"steps": estimate(1.5, 1.2, 1.9), "tokens": estimate(1.5, 1.2, 1.9)}
    pair |= {"speed_ups": [speed], "gap": estimate(0.05, 0.01, 0.09), "tokens": {}}
    (text,) = standings_summary({"pairs": [pair]})
    assert ": 1.50 × as fast over 1 length, shown faster at 1" in text
    (text,) = standings_summary({"pairs": [{**pair, "seeds": 2}]})
    assert text == (
        "overlap against tlmre (2 seeds): 1.50 × as fast over 1 length; 2 seeds, so "
        "nothing is shown: the next may go another way."
    )
    alone = {**speed, "bound": "≥", "steps": estimate(1.4, 1.1, None)}
    alone |= {"tokens": estimate(1.3, None, None), "accuracy": estimate(None, None, None)}
    (text,) = standings_summary({"pairs": [{**pair, "speed_ups": [speed, alone]}]})
    assert "over 1 length, shown faster at 1, slower at 0" in text
    assert "; 1 length reached by the first alone, shown faster at 1; accuracy" in text
    row = [str(cell) for cell in speed_table([{**pair, "speed_ups": [alone]}]).rows[0]]
    assert row[3:] == ["≥ 1.40 (≥ 1.10)", "≥ 1.30", "–"]
    apart = {**pair, "speed_ups": [], "tokens": {"0.80": estimate(-9, -20, -1)}}
    (text,) = standings_summary({"pairs": [apart]})
    assert text.endswith(
        "in every seed; fewer redundant tokens at equal accuracy shown at 1 of 1 levels."
    )
    (text,) = standings_summary({"pairs": [{**apart, "seeds": 2}]})
    assert "shown at" not in text
    assert speed_table([{**pair, "seeds": 1}]).rows[0][0] == "overlap against tlmre (1 seed)"


def test_steps_until_a_length_or_how_many_seeds_come_to_it() -> None:
    unknown = {"value": None, "low": None, "high": None, "n": 500}
    until = [
        {"length": 60.0, "reaching": 2, "steps": estimate(42, 15, 86)},
        {"length": 50.0, "reaching": 1, "steps": unknown},
    ]
    end = {"method": "tlmre", "pressure": 0.2, "seeds": 2, "until": until}
    table = course_table([end], [60.0, 50.0])
    assert [str(cell) for cell in table.rows[0]] == ["tlmre@0.2", "42 (15–86)", "1 of 2 seeds"]


def test_evaluations_stability_and_runs_in_sentences() -> None:
    figures = {"accuracy": estimate(0.8, 0.75, 0.85), "tokens": estimate(90.0, 80.0, 100.0)}
    content = {"benchmarks": {"gsm8k": figures}}
    (text,) = evaluation_summary("eval", content, {})
    assert text == (
        "eval, gsm8k: accuracy 0.800 (0.750–0.850) on 200 questions, 90.0 (80.0–100.0) tokens a "
        "response; no base to compare with."
    )
    for low, says in ((0.86, "are apart"), (0.84, "overlap")):
        base = {"gsm8k": {"accuracy": estimate(0.9, low, 0.95)}}
        assert evaluation_summary("eval", content, base)[0].endswith(f"the intervals {says}.")

    def pair(a: str, r: float) -> dict[str, Any]:
        chosen = {"shared": 2, "expected": 0.04, "p": 0.001}
        low, high = r - 0.1, r + 0.1
        return {"a": a, "b": "z", "pearson": r, "pearson_low": low, "pearson_high": high} | {
            "ceiling": 0.95,
            "chosen": chosen,
        }

    pairs = [pair(name, r) for name, r in zip("abcd", (0.7, 0.5, 0.9, 0.6), strict=True)]
    assert len(stability_summary({"metric": "sra", "pairs": pairs[:3]})) == 3
    low, high = stability_summary({"metric": "sra", "pairs": pairs})
    assert low.startswith("The lowest of 4 pairs, b and z: SRA of heads correlates with r = 0.500")
    assert (
        high.startswith("The highest, c and z") and "share 2 chosen heads, by chance 0.04" in high
    )
    runs: list[Any] = [
        SimpleNamespace(
            method="grpo", metrics=pd.DataFrame({"accuracy": [0.4, 0.6], "tokens": [90.0, first]})
        )
        for first in (50.0, 60.0)
    ]
    (text,) = runs_summary(runs)
    assert text.startswith("grpo, 2 runs: accuracy 0.400 → 0.600, tokens 90.0 → 55.0 (batches")


def test_summary_comes_first_and_the_glossary_last(tmp_path: Path) -> None:
    evil = "<b>a</b> | *c* 0.5 (0.4–0.6)."
    section = Section("Probe", summary=[evil], caveats=["few"], pictures=[])
    section.pictures.append(Picture("p", "a picture", Figure(figsize=(1, 1))))
    lost = Section("Training", damaged=["no run"])
    page, markdown = write_report([section, lost], tmp_path / "r.html", "T")[:2]
    text = page.read_text(encoding="utf-8")
    places = [
        text.index(part) for part in ("Summary</h2>", "&lt;b&gt;a", 'id="s1"', 'id="glossary"')
    ]
    assert places == sorted(places) and "<b>" not in text
    assert '<a href="#s2">Training</a> <span class="warned">1 could not be read' in text
    assert '<div class="card"><img' in text  # drawn for white paper, on white in the dark, too
    assert re.search(r"figure \.card \{ background: #ffffff", text)
    lines = markdown.read_text(encoding="utf-8").splitlines()
    assert lines.index("## Summary") < lines.index("## Probe") < lines.index("## Glossary")
    assert "- &lt;b&gt;a&lt;/b&gt; \\| \\*c\\* 0.5 (0.4–0.6)." in lines
    for word, meaning in glossary().items():
        assert f"<dt>{word}</dt>" in text and meaning.split(" <")[0][:20] in text
    words = [word.casefold() for word in glossary()]
    assert words == sorted(words) and {"sra", "control", "null"} <= set(words)
