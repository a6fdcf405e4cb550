"""Stability of several probes and sample size of one: tables, figures and caveats."""

from __future__ import annotations

from kfh.findings.base import Place, Row, Section, header_facts, heads_text, pictures
from kfh.findings.summary import sample_size_summary, stability_summary
from kfh.tables import Table
from probing.choices import METRIC_NAMES
from probing.files.headers import HEADER, read_object
from probing.numbers import NONE, Number, number

STABILITY, SAMPLE_SIZE = "stability.json", "sample_size.json"
POOR = 0.7  # reliability below which a probe is called noisy


def read_stability(place: Place) -> Section:
    """Several probes compared: correlations beside their ceiling, shared heads, figures."""
    from probing.figures.robustness import stability_figure

    content = read_object(place.folder / STABILITY)
    section = Section(f"Stability of {len(content['probes'])} probes")
    section.summary = stability_summary(content)
    section.facts = header_facts(content[HEADER])
    section.tables = stability_tables(content)
    section.caveats = stability_caveats(content)
    captions = {"stability": "correlation of head figures, and heads shared by the top k"}
    section.pictures = pictures(captions, {"stability": stability_figure(content)})
    return section


def stability_tables(content: Row) -> list[Table]:
    """A row a probe with its reliability; a row a pair with correlations and shared heads."""
    probes = [
        (
            probe["name"],
            str(probe.get("ranked", NONE)),
            number(probe["halves"]),
            number(probe["reliability"]),
            heads_text(probe["chosen"]),
        )
        for probe in content["probes"]
    ]
    pairs = [
        (
            f"{pair['a']}, {pair['b']}",
            Number.column(pair, "pearson"),
            Number.column(pair, "spearman"),
            number(pair["ceiling"]),
            Number.column(pair, "corrected"),
            f"{pair['chosen']['shared']}, {number(pair['chosen']['expected'], 2)}",
            number(pair["chosen"]["p"]),
        )
        for pair in content["pairs"]
    ]
    sizes = " and ".join(map(str, sorted({len(probe["chosen"]) for probe in content["probes"]})))
    about = (
        "Correlation of head figures, in brackets 95 % over problems; ceiling: by reliability; "
        f"corrected: free of noise; heads shared by sets of {sizes}, and by chance"
    )
    columns = ("pair", "Pearson", "Spearman", "ceiling", "corrected", "shared, by chance", "p")
    title = (
        f"{METRIC_NAMES[content['metric']]} of {content['heads']} heads; reliability: by halves of "
        "the problems"
    )
    return [
        Table(title, ("probe", "traces", "halves r", "reliability", "head set"), probes),
        Table(about, columns, pairs),
    ]


def stability_caveats(content: Row) -> list[str]:
    """What the figures do not allow to say: noisy probes, heads shared by chance, other models."""
    caveats = [
        f"{probe['name']} resamples {probe['resampled']}."
        for probe in content["probes"]
        if probe.get("resampled", "problems") != "problems"
    ]
    known = [probe for probe in content["probes"] if probe["reliability"] is not None]
    noisy = [probe["name"] for probe in known if probe["reliability"] < POOR]
    if noisy:
        caveats.append(
            f"{', '.join(noisy)}: reliability below {POOR}, much of the head figures is noise; "
            "more traces would raise the ceiling."
        )
    for pair in content["pairs"]:
        if pair["chosen"]["p"] > 0.05:
            caveats.append(
                f"{pair['a']} and {pair['b']} share {pair['chosen']['shared']} chosen heads, which "
                f"random sets do as well (p = {number(pair['chosen']['p'], 2)})."
            )
    if len({probe["config"] for probe in content["probes"]}) > 1:
        caveats.append(
            "the models are of one shape but of different configurations: places of heads mean the "
            "same only in checkpoints or fine-tunes of one model."
        )
    return caveats


def read_sample_size(place: Place) -> Section:
    """A probe ranked again on fewer problems."""
    from probing.figures.robustness import sample_size_figure

    content = read_object(place.folder / SAMPLE_SIZE)
    section = Section("How many problems are enough?")
    section.summary = sample_size_summary(content)
    section.facts = [*header_facts(content[HEADER]), ("in short", str(content["sentence"]))]
    section.tables = [sample_size_table(content)]
    section.caveats = sample_size_caveats(content)
    captions = {"sample_size": "figures, agreement and width against the number of problems"}
    section.pictures = pictures(captions, {"sample_size": sample_size_figure(content)})
    return section


def sample_size_table(content: Row) -> Table:
    """A row a number of problems."""
    rows = []
    for point in content["points"]:
        whole = point["held_out"] is None  # all problems agree with themselves
        rows.append(
            (
                str(point["problems"]),
                str(point["draws"]),
                Number(point["best"], *point["best_range"]),
                number(point["width"]),
                f"{number(point['picked'])} → {number(point['held_out'])}",
                NONE if whole else number(point["shared"], 2),
                NONE if whole else number(point["same"], 2),
                number(point["disjoint"], 2),
            )
        )
    columns = (
        "problems",
        "draws",
        f"head {heads_text([content['best_head']])} (95 % of draws)",
        "width of interval",
        "best of the draw → on the rest",
        "shared with the whole set",
        "same set",
        "shared by disjoint draws",
    )
    title = (
        f"{METRIC_NAMES[content['metric']]} and sets of {content['k']} heads by number of "
        f"problems; by chance {number(content['points'][0]['chance'], 2)} shared"
    )
    return Table(title, columns, rows)


def sample_size_caveats(content: Row) -> list[str]:
    """Where no number of problems was enough, and where the probe chose its heads otherwise."""
    caveats = [] if content["enough"] is not None else [str(content["sentence"])]
    if (way := content.get("probe_selection", "top")) != "top":
        caveats.append(
            f"The probe chose its heads by {way} selection; here each draw takes its top heads."
        )
    return caveats
