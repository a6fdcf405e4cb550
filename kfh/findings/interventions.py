"""Interventions: their result as facts, tables and figures of a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kfh.findings.base import (
    Place,
    Row,
    Section,
    counted,
    header_facts,
    heads_text,
    pictures,
)
from kfh.findings.summary import ablation_summary
from kfh.tables import Cell, Table
from probing.interventions.claims import DIGITS, MEASURES, Claim
from probing.interventions.outcomes import NONE as AS_IT_IS
from probing.numbers import NONE, Number, plural
from probing.traces.reports import CutReport

if TYPE_CHECKING:
    from probing.interventions.result import InterventionResult

UNITS = {
    "accuracy": "accuracy of the new answer",
    "logprob": "log-probability of the correct answer, nats",
    "follow": "how far the answer follows an altered step, nats",
    "source_kept": "share of values copied from the same step as before",
}
DOSES = {"steps": "k", "heads": "heads", "steering": "factor"}


def read_ablation(place: Place) -> Section:
    """Interventions: settings, counts, means, paired differences, claims, figures."""
    from probing.figures.interventions import intervention_figures
    from probing.interventions.result import InterventionResult

    result = InterventionResult.load(place.folder)
    section = Section(f"Interventions: {Path(result.head_set['model']['id']).name}")
    section.summary = ablation_summary(result.claims)
    section.facts = [*header_facts(result.header), *_facts(result)]
    section.tables = ablation_tables(result)
    section.caveats = result.caveats
    drawn = intervention_figures(result)
    captions = {name: f"{name.replace('_', ' ')}: what each change costs" for name in drawn}
    section.pictures = pictures(captions, drawn)
    return section


def _facts(result: InterventionResult) -> list[tuple[str, str]]:
    settings, counts, model = result.header["settings"], result.counts, result.head_set["model"]
    parts = {name: part["traces"] for name, part in counts["parts"].items()}
    return [
        ("model", f"{model['id']} ({model['layers']} layers × {model['heads']} heads)"),
        ("fingerprint", str(model.get("fingerprint", NONE))),
        ("weights", str(settings.get("weights", NONE))),
        ("traces", str(settings.get("traces", NONE))),
        ("head set", heads_text(result.head_set["heads"])),
        ("held out from the choice of heads", str(counts.get("held_out", NONE))),
        ("traces by part", counted(parts)),
        ("left out", counted({**counts["left_out"], **counts.get("bad_lines", {})})),
    ]


def ablation_tables(result: InterventionResult) -> list[Table]:
    """Part by part: a table of each measure, one of what else was measured, the claims."""
    means, differences = (of.to_dict("records") for of in (result.table, result.differences))
    tables = []
    for part in dict.fromkeys(row["part"] for row in means):
        rows = [row for row in means if row["part"] == part]
        pairs = [row for row in differences if row["part"] == part]
        for measure in MEASURES[part]:
            if any(row["measure"] == measure for row in rows):
                tables.append(measure_table(part, measure, rows, pairs))
        if others := [row for row in rows if row["measure"] not in MEASURES[part]]:
            tables.append(_others_table(part, others))
        if claims := [claim for claim in result.claims if claim.question.part == part]:
            tables.append(_claims_table(part, claims))
    if result.dose_correlations:
        tables.append(_doses_table(result.dose_correlations))
    return tables


def measure_table(part: str, measure: str, rows: Sequence[Row], pairs: Sequence[Row]) -> Table:
    """A row an arm, mode and dose: the mean of a measure, and its paired differences.

    Args:
        rows: the summary of the part.
        pairs: its differences.
    """
    digits = DIGITS.get(measure, 3)
    rows = [row for row in rows if row["measure"] == measure]
    pairs = [row for row in pairs if row["measure"] == measure]
    controls = list(dict.fromkeys(row["against"] for row in pairs))
    differences = {(*_key(row), row["against"]): row for row in pairs}
    cells: list[tuple[Cell, ...]] = [
        (
            _name(row),
            f"{row['dose']:g}",
            Number.of(row, digits),
            *(_difference(differences.get((*_key(row), c)), row, digits) for c in controls),
            f"{row['traces']}, {row['groups']}",
        )
        for row in rows
    ]
    minus = ("− nothing" if control == AS_IT_IS else f"− {control}" for control in controls)
    title = f"{part}: {UNITS[measure]} (95 %); −: difference, paired by trace"
    columns = ("arm", DOSES[part], measure.replace("_", " "), *minus, "traces, problems")
    return Table(title, columns, cells)


def _key(row: Row) -> tuple[str, str, float]:
    return row["arm"], row["mode"], row["dose"]


def _name(row: Row) -> str:
    return f"{row['arm']} {row['mode']}".strip()


def _difference(pair: Row | None, row: Row, digits: int) -> Cell:
    """A paired difference; with the number of its traces where some of the row's have no pair."""
    difference = Number.of(pair, digits, signed=True)
    if pair is None or pair["traces"] == row["traces"]:
        return difference
    return f"{difference}, {pair['traces']} traces"


def _others_table(part: str, rows: Sequence[Row]) -> Table:
    """The means of what else was measured, a row an arm, mode and dose."""
    names = list(dict.fromkeys(row["measure"] for row in rows))
    by_key: dict[tuple[str, str, float], dict[str, Row]] = {}
    for row in rows:
        by_key.setdefault(_key(row), {})[row["measure"]] = row
    cells: list[tuple[Cell, ...]] = [
        (
            f"{arm} {mode}".strip(),
            f"{dose:g}",
            *(Number.of(measured.get(name), 2) for name in names),
        )
        for (arm, mode, dose), measured in by_key.items()
    ]
    titles = (name.replace("_", " ") for name in names)
    title = f"{part}: what else was measured, means (95 %)"
    return Table(title, ("arm", DOSES[part], *titles), cells)


def _claims_table(part: str, claims: Sequence[Claim]) -> Table:
    """A row a claim, mode and dose: does it hold, and by how much."""
    cells = [
        (
            claim.text.replace("_", " ") + (f" ({claim.mode})" if claim.mode else ""),
            f"{dose['dose']:g}",
            "yes" if dose["holds"] else "no",
            Number.of(dose, DIGITS.get(claim.measure, 3), signed=True),
        )
        for claim in claims
        for dose in claim.doses
    ]
    title = f"{part}: claims; yes where the whole interval lies on the claim's side"
    return Table(title, ("claim", DOSES[part], "holds", "difference (95 %)"), cells)


def _doses_table(correlations: Row) -> Table:
    rows = [(arm, Number.of(row), str(row["traces"])) for arm, row in correlations.items()]
    title = "steering: rank correlation of factor and follow within each trace, mean"
    return Table(title, ("arm", "correlation (95 %)", "traces"), rows)


def left_out(counts: Row) -> list[str]:
    """What was left out and why, a line each.

    Args:
        counts: of ablation.json.
    """
    left_out = counts["left_out"].items()
    lines = [f"left out {plural(count, 'trace')}: {reason}" for reason, count in left_out]
    for kind, count in counts["bad_lines"].items():
        lines.append(f"left out {count} × {kind}, first {counts['first_bad_lines'][kind]}")
    lines += counts.get("remarks", ())
    if cut := counts.get("cut"):
        lines += CutReport.from_json(cut).warnings
    for k, count in counts["parts"].get("steps", {}).get("too_few_steps", {}).items():
        if count:
            lines.append(f"{count} traces have at most {k} steps: none for k = {k}")
    if counts["beyond_context"]:
        lines.append(f"{counts['beyond_context']} traces are longer than the model's context")
    if counts["verifier_faults"]:
        lines.append(f"the verifier failed on answers: {counts['verifier_faults']}")
    return lines
