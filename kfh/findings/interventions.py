"""What `kfh ablate` prints: tables by part and measure, and a line for every claim."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfh.console import console, plain_table, talk
from kfh.findings.base import (
    NONE,
    Place,
    Section,
    TextTable,
    counted,
    header_facts,
    pictures,
    span,
)
from probing.files.headers import HEADER, read_object
from probing.interventions.claims import MEASURES, Claim
from probing.interventions.outcomes import NONE as AS_IT_IS
from probing.interventions.outcomes import RANDOM

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from probing.interventions.result import InterventionResult


ABLATION = "ablation.json"
DIGITS = {"logprob": 2}

FORMS = {"accuracy": ".3f", "logprob": ".2f", "follow": ".2f", "source_kept": ".3f"}
UNITS = {
    "accuracy": "accuracy of the new answer",
    "logprob": "log-probability of the correct answer, nats",
    "follow": "how far the answer follows an altered step, nats",
    "source_kept": "share of values copied from the same step as before",
}
DOSES = {"steps": "k", "heads": "heads", "steering": "factor"}


def print_result(result: InterventionResult) -> None:
    """Tables by part, a line for every claim, and what was left out."""
    table, against, found = result.table, result.differences, result.claims
    correlations, counted = result.dose_correlations, result.counts
    for part in table["part"].unique():
        own, pairs = (frame[frame["part"] == part] for frame in (table, against))
        traces = counted["parts"][part]["traces"]
        for measure in MEASURES[part]:
            if measure in set(own["measure"]):
                console.print(measure_table(part, traces, measure, own, pairs))
        if set(own["measure"]) - set(MEASURES[part]):
            console.print(extras_table(part, own))
        for verdict in found:
            if verdict.question.part == part:
                console.print(verdict_line(verdict), highlight=False, soft_wrap=True)
        if part == "steering":
            for arm, row in correlations.items():
                said = interval([row], ".3f")
                console.print(f"rank correlation of factor and follow, {arm}: {said}")
        console.print()
    print_counts(counted)


def print_counts(counted: dict[str, Any]) -> None:
    """What was left out, and whether the heads have seen these traces."""
    for reason, number in counted["left_out"].items():
        talk.print(f"[yellow]left out {number} traces:[/yellow] {reason}")
    for kind, number in counted["bad_lines"].items():
        first = counted["first_bad_lines"][kind]
        talk.print(f"[yellow]left out {number} × {kind}[/yellow], first {first}")
    for k, number in counted["parts"].get("steps", {}).get("too_few_steps", {}).items():
        if number:
            talk.print(f"[yellow]{number} traces have at most {k} steps:[/yellow] none for k = {k}")
    if counted["beyond_context"]:
        number = counted["beyond_context"]
        talk.print(f"[yellow]{number} traces are longer than the model's context[/yellow]")
    if counted["verifier_faults"]:
        talk.print(f"[yellow]the verifier failed on answers:[/yellow] {counted['verifier_faults']}")
    console.print(f"held out from the choice of heads: {counted['held_out']}", soft_wrap=True)


def measure_table(
    part: str, traces: int, measure: str, own: pd.DataFrame, against: pd.DataFrame
) -> Table:
    """A row an arm, mode and dose: the measure, and its paired differences."""
    form = FORMS[measure]
    shown = plain_table(
        f"{part}, {traces} traces: {UNITS[measure]}\n− paired difference",
        "arm",
        DOSES[part],
        "n",
        f"{measure.replace('_', ' ')} [dim]95 %[/dim]",
        "− nothing",
        "− random",
    )
    of, pairs = (frame[frame["measure"] == measure] for frame in (own, against))
    for row in of.to_dict("records"):
        same = pairs[(pairs[["arm", "mode", "dose"]] == [row[k] for k in ("arm", "mode", "dose")])
                     .all(axis=1)]  # fmt: skip
        cells = [
            interval(same[same["against"] == other].to_dict("records"), f"+{form}")
            for other in (AS_IT_IS, RANDOM)
        ]
        name = f"{row['arm']} {row['mode']}".strip()
        dose, count = f"{row['dose']:g}", str(row["traces"])
        shown.add_row(name, dose, count, interval([row], form), *cells)
    return shown


def extras_table(part: str, own: pd.DataFrame) -> Table:
    """The means of what else was measured, a row an arm, mode and dose."""
    extras = own[~own["measure"].isin(MEASURES[part])]
    names = list(dict.fromkeys(extras["measure"]))
    titles = [name.replace("_", " ") for name in names]
    shown = plain_table(f"{part}: what else was measured, means", "arm", DOSES[part], *titles)
    for key, rows in extras.groupby(["arm", "mode", "dose"], sort=False):
        arm, mode, dose = key
        values = rows.set_index("measure")["value"]
        cells = [f"{values[name]:.2f}" if name in values else "–" for name in names]
        shown.add_row(f"{arm} {mode}".strip(), f"{dose:g}", *cells)
    return shown


def interval(rows: Iterable[dict[str, Any]], form: str) -> str:
    """A figure with its interval; a dash where there is none."""
    for row in rows:
        low, high = (f"{row[end]:{form.replace('3', '2')}}" for end in ("low", "high"))
        return f"{row['value']:{form}} [dim]{low} {high}[/dim]"
    return "–"


def verdict_line(verdict: Claim) -> str:
    """A claim, yes or no by dose, with the differences and their intervals."""
    form = f"+{FORMS[verdict.measure]}"
    doses = []
    for dose in verdict.doses:
        said = "[green]yes[/green]" if dose["holds"] else "[yellow]no[/yellow]"
        low, high = f"{dose['low']:{form}}", f"{dose['high']:{form}}"
        name = f"{DOSES[verdict.question.part]} {dose['dose']:g}"
        doses.append(f"{name}: {said}, {dose['value']:{form}} ({low} to {high})")
    mode = f" ({verdict.mode})" if verdict.mode else ""
    text = verdict.text.replace("_", " ")
    return f"{text}{mode}? {'; '.join(doses)}"


def read_ablation(place: Place) -> Section:
    """An ablation: settings, counts, means, paired differences, claims, figures."""
    from probing.figures.interventions import intervention_figures
    from probing.interventions.result import InterventionResult

    content = read_object(place.folder / ABLATION)
    section = Section(f"Interventions: {Path(content['head_set']['model']['id']).name}")
    section.facts = [*header_facts(content[HEADER]), *_ablation_facts(content)]
    parts = list(dict.fromkeys(row["part"] for row in content["summary"]))
    for part in parts:
        section.tables.append(_summary_table(part, content["summary"]))
        section.tables.append(_against_table(part, content["differences"]))
    section.tables.append(_claims_table(content["verdicts"]))
    if content.get("dose_correlations"):
        section.tables.append(_doses_table(content["dose_correlations"]))
    result = InterventionResult.load(place.folder)
    section.caveats = result.caveats
    drawn = intervention_figures(result)
    captions = {name: f"{name.replace('_', ' ')}: what each change costs" for name in drawn}
    section.pictures = pictures(captions, drawn)
    return section


def _ablation_facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings, counts = content[HEADER]["settings"], content["counts"]
    heads = ", ".join(".".join(map(str, pair)) for pair in content["head_set"]["heads"])
    model = content["head_set"]["model"]
    parts = {name: part["traces"] for name, part in counts["parts"].items()}
    return [
        ("model", f"{model['id']} ({model['layers']} layers × {model['heads']} heads)"),
        ("fingerprint", str(model.get("fingerprint", NONE))),
        ("weights", str(settings.get("weights", NONE))),
        ("traces", str(settings.get("traces", NONE))),
        ("head set", heads),
        ("held out from the choice of heads", str(counts.get("held_out", NONE))),
        ("traces by part", counted(parts)),
        ("left out", counted({**counts["left_out"], **counts.get("bad_lines", {})})),
    ]


def _summary_table(part: str, rows: Sequence[Mapping[str, Any]]) -> TextTable:
    cells = tuple(
        (
            row["arm"],
            row["mode"] or NONE,
            f"{row['dose']:g}",
            row["measure"].replace("_", " "),
            span(row["value"], row["low"], row["high"], DIGITS.get(row["measure"], 3)),
            f"{row['traces']}, {row['groups']}",
        )
        for row in rows
        if row["part"] == part
    )
    columns = ("arm", "mode", "dose", "measure", "mean (95 %)", "traces, problems")
    return TextTable(f"{part}: means by arm, mode and dose", columns, cells)


def _against_table(part: str, rows: Sequence[Mapping[str, Any]]) -> TextTable:
    cells = tuple(
        (
            row["arm"],
            row["mode"] or NONE,
            f"{row['dose']:g}",
            row["measure"].replace("_", " "),
            row["against"],
            span(row["value"], row["low"], row["high"], DIGITS.get(row["measure"], 3)),
            f"{row['traces']}, {row['groups']}",
        )
        for row in rows
        if row["part"] == part
    )
    columns = ("arm", "mode", "dose", "measure", "minus", "difference (95 %)", "traces, problems")
    return TextTable(f"{part}: differences, paired by trace", columns, cells)


def _claims_table(verdicts: Sequence[Mapping[str, Any]]) -> TextTable:
    cells = tuple(
        (
            verdict["part"],
            verdict["claim"],
            verdict["mode"] or NONE,
            "; ".join(f"{d['dose']:g}: {'yes' if d['holds'] else 'no'}" for d in verdict["doses"]),
        )
        for verdict in verdicts
    )
    title = "Claims; yes where the whole interval of the difference lies on the claim's side"
    return TextTable(title, ("part", "claim", "mode", "by dose"), cells)


def _doses_table(correlations: Mapping[str, Mapping[str, Any]]) -> TextTable:
    rows = tuple(
        (arm, span(found["value"], found["low"], found["high"]), str(found["traces"]))
        for arm, found in correlations.items()
    )
    title = "Steering: rank correlation of dose and effect within each trace, mean"
    return TextTable(title, ("arm", "correlation (95 %)", "traces"), rows)
