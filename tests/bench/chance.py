"""Simulated studies: do 95 % intervals hold the truth in 95 %, is p ≤ 0.05 as rare as 0.05?

    python tests/bench/chance.py [--studies 1000] [--out chance.json]

A study has P problems with R traces each. All traces of a problem share its labels, as responses
to one question share their steps. A head's score of a step is what the label adds, an affinity
that the head has for this step of this problem whatever its label, and noise of the trace. Without
affinity and with one trace a problem, problems and traces are the same thing.

Two questions a design. *Coverage*: a head of true SRA about 0.73; how often does its interval hold
that, with whole problems drawn and with single traces drawn. *Size*: 30 heads that know nothing of
the labels; how often is the best head's p ≤ 0.05, by the test over problems and by shuffled labels.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from probing.intervals import bootstrap_interval, mean_over_traces
from probing.ranking.metrics import RankedTrace, metric_table
from probing.ranking.null import flipped_null, max_null, p_values

DESIGNS = ((48, 1), (20, 1), (12, 4), (6, 8), (20, 8))  # problems, traces of each
AFFINITY = 1.0  # standard deviation, in that of a trace's noise
EFFECT = 0.9  # what the label adds: SRA about 0.73 without affinity
STEPS = 10
HEADS = 30


@dataclass(frozen=True)
class Row:
    """Shares over studies, of one design."""

    problems: int
    traces: int
    affinity: float
    truth: float  # SRA of the head of known effect
    by_problem: float  # coverage of intervals over problems
    by_trace: float  # coverage of intervals over traces
    size_problems: float  # null studies with p ≤ 0.05
    size_shuffle: float


def study(
    problems: int,
    traces: int,
    heads: int,
    affinity: float,
    effect: float,
    rng: np.random.Generator,
) -> list[RankedTrace]:
    """The traces of one study, with scores of each head."""
    found = []
    for problem in range(problems):
        essential = rng.permutation(np.arange(STEPS) < rng.integers(3, 7))
        liked = affinity * rng.normal(size=(heads, STEPS)) + effect * essential
        for number in range(traces):
            scores = liked + rng.normal(size=(heads, STEPS))
            tokens = np.ones(STEPS, dtype=int)
            found.append(
                RankedTrace(f"{problem}.{number}", f"p{problem}", scores, essential, tokens, 1.0)
            )
    return found


def true_sra(affinity: float, effect: float) -> float:
    """The SRA of the head of this effect over endless problems, by theory: Φ(effect / √(2 σ²))."""
    from scipy.stats import norm

    return float(norm.cdf(effect / np.sqrt(2 * (affinity**2 + 1))))


def coverage(
    problems: int, traces: int, affinity: float, studies: int, seed: int = 0
) -> tuple[float, float]:
    """Share of intervals that hold the truth: over problems, over traces."""
    effect = EFFECT * np.sqrt(affinity**2 + 1)  # the same true SRA in every design
    truth, held = true_sra(affinity, effect), np.zeros(2)
    for number in range(studies):
        rng = np.random.default_rng([seed, number])
        ranked = study(problems, traces, 1, affinity, effect, rng)
        values = metric_table(ranked)["sra"]
        for which, groups in enumerate(([t.group for t in ranked], [t.id for t in ranked])):
            low, high = bootstrap_interval(values, groups, resamples=1000, seed=number)[0]
            held[which] += low <= truth <= high
    by_problem, by_trace = held / studies
    return float(by_problem), float(by_trace)


def size(
    problems: int, traces: int, affinity: float, studies: int, seed: int = 1, draws: int = 199
) -> tuple[float, float]:
    """Share of null studies whose best head has p ≤ 0.05: test over problems, shuffled labels."""
    found = np.zeros(2)
    for number in range(studies):
        rng = np.random.default_rng([seed, number])
        ranked = study(problems, traces, HEADS, affinity, 0.0, rng)
        values = metric_table(ranked)["sra"]
        p, _ = flipped_null(values, [t.group for t in ranked], draws=draws, seed=number)
        shuffled = max_null(ranked, permutations=draws, seed=number)["sra"]
        found += p.min() <= 0.05, p_values(mean_over_traces(values), shuffled).min() <= 0.05
    by_problems, by_shuffle = found / studies
    return float(by_problems), float(by_shuffle)


def main() -> None:
    """Every design without and with affinity, as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    given = parser.parse_args()
    print("| problems × traces | affinity | coverage: over problems | over traces "
          "| p ≤ 0.05: problems | shuffle |\n|---|---|---|---|---|---|")  # fmt: skip
    rows = []
    for problems, traces in DESIGNS:
        for affinity in (0.0, AFFINITY):
            truth = true_sra(affinity, EFFECT * np.sqrt(affinity**2 + 1))
            held = coverage(problems, traces, affinity, given.studies)
            sizes = size(problems, traces, affinity, given.studies)
            row = Row(problems, traces, affinity, truth, *held, *sizes)
            rows.append(row)
            print(
                f"| {problems} × {traces} | {affinity:g} | {row.by_problem:.3f} | "
                f"{row.by_trace:.3f} | {row.size_problems:.3f} | {row.size_shuffle:.3f} |",
                flush=True,
            )
    error = np.sqrt(0.05 * 0.95 / given.studies)
    print(
        f"\ntrue SRA {rows[0].truth:.3f}; {given.studies} studies, Monte-Carlo error ± {error:.3f}"
    )
    if given.out:
        given.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
