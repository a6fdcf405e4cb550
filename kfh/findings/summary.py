"""What was found, in sentences for the top of a report: values, intervals, and what they must beat.

Words follow intervals: a control is beaten where it lies below the whole interval, a difference is
shown where its interval excludes zero. In: what the sections are read from. Out: texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kfh.findings.base import Row, ends, heads_text
from probing.choices import METRIC_NAMES
from probing.folder import ProbeResult
from probing.interventions.claims import DIGITS, MEASURES, Claim
from probing.interventions.outcomes import NONE as AS_IT_IS
from probing.numbers import Number, exists, number, plural
from probing.ranking.caveats import RARE
from probing.ranking.null import null_words
from probing.ranking.select import beaten, best_control

if TYPE_CHECKING:
    from rl.runs.folders import Run

RANKS = {"gating": ("sra",)}  # few controls gate: all that rank are to be beaten, too
FEW_PAIRS = 3  # of probes; of more the lowest and the highest are named


def probe_summary(result: ProbeResult) -> list[str]:
    """The best head and the head set, each beside the best control; the verdict, and its null."""
    config, counts, table = result.config, result.counts, result.table
    by, problems = config.by, counts.get("problems", counts["ranked"])
    best = table.loc[table[by].idxmax()]
    control = best_control(result.controls, by)
    rivals = [control] if control else []
    by_chance = (
        [("best head by chance (95 %)", result.null[by]["q95"])] if by in result.null else []
    )
    name = f"Best of {len(table)} heads: {int(best['layer'])}.{int(best['head'])}"
    point = result.set_point
    return [
        f"{name}, {METRIC_NAMES[by]} {Number.column(best, by)}."
        + _against([*rivals, *by_chance], best[f"{by}_low"]),
        f"Head set {heads_text(result.chosen)}: {METRIC_NAMES[by]} {Number.column(point, by)} on "
        f"{len(counts['held_out_traces'])} traces that it was not chosen on."
        + _against(rivals, point[f"{by}_low"]),
        probe_verdict(result),
        f"{null_words(config.null, problems, len(table), config.permutations)}.",
    ]


def probe_verdict(result: ProbeResult) -> str:
    """What the best head is shown to do, in words: beyond chance, and beyond the controls."""
    by, table = result.config.by, result.table
    best = table.loc[table[by].idxmax()]
    name, p = f"head {int(best['layer'])}.{int(best['head'])}", best.get(f"{by}_p")
    what = "steps of new problems" if result.config.null == "problems" else "these steps"
    if not exists(p) or p > RARE:
        value = f" (p = {number(p)})" if exists(p) else ""
        return f"Verdict: that any head ranks the {what} better than chance is not shown{value}."
    verdict = f"Verdict: {name} ranks the {what} better than chance (p = {number(p)})"
    for metric in dict.fromkeys((by, *RANKS.get(by, ()))):
        control = best_control(result.controls, metric)
        if control is not None and not beaten(control[1], best[f"{metric}_low"]):
            return f"{verdict}, but not shown better than a control does, {control[0]}."
    return f"{verdict} and than every control."


def _against(rivals: Sequence[tuple[str, float]], low: float | None) -> str:
    """What a figure must beat, and whether the whole interval lies above it."""
    parts = [
        f"{name} {number(value)}, {'beaten' if beaten(value, low) else 'not beaten'}"
        for name, value in rivals
    ]
    return f" Held against: {'; '.join(parts)}." if parts else ""


def sample_size_summary(content: Row) -> list[str]:
    """How many problems were enough, as the file says it."""
    return [str(content["sentence"])]


def stability_summary(content: Row) -> list[str]:
    """How alike the heads of probes are: each pair, or of many the lowest and the highest."""
    pairs = [pair for pair in content["pairs"] if exists(pair["pearson"])]
    shown = [("", pair) for pair in pairs]
    if len(pairs) > FEW_PAIRS:
        ordered = sorted(pairs, key=lambda pair: pair["pearson"])
        shown = [
            (f"The lowest of {len(pairs)} pairs, ", ordered[0]),
            ("The highest, ", ordered[-1]),
        ]
    return [f"{before}{_pair(pair, METRIC_NAMES[content['metric']])}" for before, pair in shown]


def _pair(pair: Row, metric: str) -> str:
    chosen = pair["chosen"]
    return (
        f"{pair['a']} and {pair['b']}: {metric} of heads correlates with r = "
        f"{Number.column(pair, 'pearson')}, of at most {number(pair['ceiling'])} by their noise; "
        f"they share {chosen['shared']} chosen heads, by chance {number(chosen['expected'], 2)} "
        f"(p = {number(chosen['p'])})."
    )


def ablation_summary(claims: Sequence[Claim]) -> list[str]:
    """Of each part what is claimed against controls, at the strongest dose, and how many hold."""
    texts = []
    for part in dict.fromkeys(claim.question.part for claim in claims):
        asked = [claim for claim in claims if claim.question.part == part]
        holding = sum(claim.holds for claim in asked)
        texts.append(f"Of {len(asked)} claims on {part} {holding} hold at every dose.")
        measured = [m for m in MEASURES[part] if any(claim.measure == m for claim in asked)]
        texts += [
            _claim(claim)
            for claim in asked
            if claim.measure == measured[0] and claim.question.against != AS_IT_IS
        ]
    return texts


def _claim(claim: Claim) -> str:
    """One claim at the dose that changes most."""
    question = claim.question
    dose = (min if question.down else max)(claim.doses, key=lambda dose: dose["dose"])
    value = Number.of(dose, DIGITS.get(claim.measure, 3), signed=True)
    mode = f" ({claim.mode})" if claim.mode else ""
    return (
        f"{question.part.capitalize()}{mode}, {question.arm} against {question.against}, dose "
        f"{dose['dose']:g}: {claim.measure.replace('_', ' ')} {value} on {dose['traces']} traces, "
        f"{question.way if dose['holds'] else f'not shown to be {question.way}'}."
    )


def runs_summary(runs: Sequence[Run]) -> list[str]:
    """Accuracy and length of the batches of each method, at the start and at the end."""
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)
    return [
        f"{method}, {plural(len(group), 'run')}: "
        + ", ".join(
            _course(group, name, digits) for name, digits in (("accuracy", 3), ("tokens", 1))
        )
        + " (batches of the first and the last fifth of the steps; no interval, since they hold "
        "other problems)."
        for method, group in by_method.items()
    ]


def _course(runs: Sequence[Run], name: str, digits: int) -> str:
    """The mean over runs of a column's first and last fifth."""
    first, last = (
        [value for value in values if exists(value)]
        for values in zip(*(ends(run, name) for run in runs), strict=True)
    )
    texts = [number(sum(side) / len(side) if side else None, digits) for side in (first, last)]
    return f"{name} {' → '.join(texts)}"


def evaluation_summary(name: str, content: Row, base: Mapping[str, Row]) -> list[str]:
    """Accuracy and length on each benchmark, beside the base's accuracy where there is one.

    Args:
        name: of the evaluation.
        content: of eval.json.
        base: figures of the base by benchmark.
    """
    return [
        f"{name}, {benchmark}: {_measured(figures, base.get(benchmark))}"
        for benchmark, figures in content["benchmarks"].items()
    ]


def _measured(figures: Row, base: Row | None) -> str:
    accuracy = figures["accuracy"]
    text = (
        f"accuracy {Number.of(accuracy)} on {accuracy['n']} questions, "
        f"{Number.of(figures['tokens'], 1)} tokens a response"
    )
    if base is None:
        return f"{text}; no base to compare with."
    before = base["accuracy"]
    apart = accuracy["high"] < before["low"] or before["high"] < accuracy["low"]
    return (
        f"{text}; the base has accuracy {Number.of(before)}: the intervals "
        f"{'are apart' if apart else 'overlap'}."
    )
