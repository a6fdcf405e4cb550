"""The sections of ablations, of stability and of sample size in a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfh.caveats import NAMES, ablation_caveats, sample_size_caveats
from kfh.report_parts import (
    NONE,
    Place,
    Section,
    TextTable,
    counted,
    header_facts,
    number,
    pictures,
    span,
)
from probing.files import HEADER, read_object

DIGITS = {"logprob": 2}
ABLATION, STABILITY, SAMPLE_SIZE = "ablation.json", "stability.json", "sample_size.json"


def finder(name: str) -> Callable[[Sequence[Path]], list[Place]]:
    """What finds the folders that hold a file of this name."""
    return lambda folders: [Place(f, (f,)) for f in folders if (f / name).is_file()]


def read_ablation(place: Place) -> Section:
    """An ablation: settings, counts, means, paired differences, claims, figures."""
    from probing.intervention_figures import InterventionFigures

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
    section.caveats = ablation_caveats(content)
    drawn = InterventionFigures.load(place.folder).all()
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


def read_stability(place: Place) -> Section:
    """Several probes compared: correlations beside their ceiling, shared heads, figures."""
    from kfh.stability import notes
    from probing.stability_figures import stability_figure

    content = read_object(place.folder / STABILITY)
    section = Section(f"Stability of {len(content['probes'])} probes")
    section.facts = header_facts(content[HEADER])
    section.tables = [_probes_table(content), _pairs_table(content)]
    section.caveats = notes(content)
    captions = {"stability": "correlation of head figures, and heads shared by the top k"}
    section.pictures = pictures(captions, {"stability": stability_figure(content)})
    return section


def _probes_table(content: Mapping[str, Any]) -> TextTable:
    rows = tuple(
        (
            probe["name"],
            str(probe.get("ranked", NONE)),
            number(probe["halves"]),
            number(probe["reliability"]),
            ", ".join(".".join(map(str, pair)) for pair in probe["chosen"]),
        )
        for probe in content["probes"]
    )
    title = f"{NAMES[content['metric']]} of {content['heads']} heads; reliability by halves"
    return TextTable(title, ("probe", "traces", "halves r", "reliability", "head set"), rows)


def _pairs_table(content: Mapping[str, Any]) -> TextTable:
    rows = tuple(
        (
            f"{pair['a']}, {pair['b']}",
            span(pair["pearson"], pair["pearson_low"], pair["pearson_high"]),
            span(pair["spearman"], pair["spearman_low"], pair["spearman_high"]),
            number(pair["ceiling"]),
            span(pair["corrected"], pair["corrected_low"], pair["corrected_high"]),
            f"{pair['chosen']['shared']}, {number(pair['chosen']['expected'], 2)}",
            number(pair["chosen"]["p"]),
        )
        for pair in content["pairs"]
    )
    columns = ("pair", "Pearson", "Spearman", "ceiling", "corrected", "shared, by chance", "p")
    return TextTable("Pairs; in brackets 95 % over problems", columns, rows)


def read_sample_size(place: Place) -> Section:
    """A probe ranked again on fewer problems."""
    from probing.stability_figures import sample_size_figure

    content = read_object(place.folder / SAMPLE_SIZE)
    section = Section("How many problems are enough?")
    section.facts = [*header_facts(content[HEADER]), ("in short", str(content["sentence"]))]
    rows = tuple(
        (
            str(point["problems"]),
            str(point["draws"]),
            span(point["best"], *point["best_range"]),
            number(point["width"]),
            f"{number(point['picked'])} → {number(point['held_out'])}",
            number(point["shared"], 2),
            number(point["same"], 2),
            number(point["disjoint"], 2),
        )
        for point in content["points"]
    )
    best = ".".join(map(str, content["best_head"]))
    columns = (
        "problems",
        "draws",
        f"head {best} (95 % of draws)",
        "width of interval",
        "best of the draw → on the rest",
        "shared with the whole set",
        "same set",
        "shared by disjoint draws",
    )
    title = f"{NAMES[content['metric']]} and sets of {content['k']} heads by number of problems"
    section.tables = [TextTable(title, columns, rows)]
    section.caveats = sample_size_caveats(content)
    captions = {"sample_size": "figures, agreement and width against the number of problems"}
    section.pictures = pictures(captions, {"sample_size": sample_size_figure(content)})
    return section
