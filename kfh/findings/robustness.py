"""The sections of ablations, of stability and of sample size in a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfh.findings.base import (
    NAMES,
    NONE,
    Place,
    Section,
    TextTable,
    header_facts,
    number,
    pictures,
    sample_size_caveats,
    span,
)
from kfh.findings.summary import sample_size_summary, stability_summary
from probing.files.headers import HEADER, read_object

STABILITY, SAMPLE_SIZE = "stability.json", "sample_size.json"


def finder(name: str) -> Callable[[Sequence[Path]], list[Place]]:
    """What finds the folders that hold a file of this name."""
    return lambda folders: [Place(f, (f,)) for f in folders if (f / name).is_file()]


def read_stability(place: Place) -> Section:
    """Several probes compared: correlations beside their ceiling, shared heads, figures."""
    from kfh.commands.robustness import notes
    from probing.figures.robustness import stability_figure

    content = read_object(place.folder / STABILITY)
    section = Section(f"Stability of {len(content['probes'])} probes")
    section.summary = stability_summary(content)
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
    from probing.figures.robustness import sample_size_figure

    content = read_object(place.folder / SAMPLE_SIZE)
    section = Section("How many problems are enough?")
    section.summary = sample_size_summary(content)
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
