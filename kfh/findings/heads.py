"""Heads beside a probe: stability, sample size, types, sets, maps; tables, figures, caveats."""

from __future__ import annotations

from kfh.findings.base import Place, Row, Section, header_facts, heads_text, pictures
from kfh.findings.probe import SCORERS
from kfh.findings.summary import sample_size_summary, stability_summary
from kfh.tables import Cell, Table
from probing.choices import METRIC_NAMES, METRICS
from probing.files.headers import HEADER, read_object
from probing.headset import HeadSet
from probing.intervals import few_problems
from probing.numbers import NONE, Number, number
from probing.types.result import HeadTypes

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


def read_types(place: Place) -> Section:
    """What else the heads of a probe are."""
    from probing.figures.types import types_figure

    content = HeadTypes.load(place.folder).content
    section = Section("What else are these heads?", summary=[*content["verdict"]])
    section.facts = header_facts(content.get(HEADER, {}))
    section.tables = types_tables(content)
    section.caveats = types_caveats(content)
    captions = {"types": "rank correlation of head types, and other scorers beside the head set"}
    section.pictures = pictures(captions, {"types": types_figure(content)})
    return section


def types_tables(content: Row) -> list[Table]:
    """Types beside SRA, scorers of steps, and what calibration by the null answer does."""
    tables = [_types_table(content), _scorers_table(content)]
    return [*tables, calibration_table(content)] if content["calibration"] else tables


def _types_table(content: Row) -> Table:
    rows = []
    for row in content["types"]:
        found = row["overlap"]
        shared = f"{found['shared']}, {number(found['expected'], 1)}, {number(found['p'])}"
        rows.append(
            (
                row["type"],
                Number(row["rho"], row["rho_low"], row["rho_high"], 2, signed=True),
                heads_text([head[:2] for head in row["strongest"]]),
                f"{shared} ({found['sizes'][0]})",
                Number.column(row["held_out"], "sra"),
            )
        )
    title = (
        f"Types of {content['counts']['heads']} heads; Spearman's ρ with SRA; heads of the set "
        f"({heads_text(content['set'])}) among the strongest, by chance, p (how many strongest); "
        f"SRA of as many heads chosen by the type, on problems not used for it"
    )
    columns = ("type", "ρ with SRA", "strongest", "shared, chance, p", "as selector")
    return Table(title, columns, rows)


def _scorers_table(content: Row) -> Table:
    rows = []
    for row in sorted(content["scorers"], key=lambda row: -(row["sra"] or 0)):
        less = Number(row.get("less"), row.get("less_low"), row.get("less_high"), signed=True)
        rows.append(
            (
                SCORERS.get(row["scorer"], row["scorer"]),
                Number.column(row, "sra"),
                Number.column(row, "balanced"),
                number(row.get("sra_held_out")),
                less,
            )
        )
    title = "Scorers of steps on the probe's own pairs; in brackets 95 % over problems"
    columns = ("scorer", "SRA", "balanced", "SRA held out", "the set's less this, held out")
    return Table(title, columns, rows)


def calibration_table(content: Row) -> Table:
    """Plain and calibrated figures by metric, and what is gained."""
    found, rows = content["calibration"], []

    def change(row: Row) -> tuple[str, Number]:
        values = f"{number(row['plain'])} → {number(row['less_null'])}"
        return values, Number.column(row, "gain", signed=True)

    for metric, row in found["metrics"].items():
        best = f"{number(row['best'])} → {number(row['best_less_null'])}"
        heads = Number.column(row["heads"], "gain", signed=True)
        rows.append(
            (METRIC_NAMES[metric], *change(row["set"]), *change(row["chosen"]), best, heads)
        )
    null, chosen = content["settings"]["null_answer"], heads_text(found["chosen"])
    title = (
        f"Scores less those by the answer {null!r}: the set, and as many heads chosen by what is "
        f"left ({chosen}), on problems not chosen on; gains with 95 % over problems"
    )
    columns = ("metric", "the set", "gain", "chosen anew", "gain", "best head", "mean gain, heads")
    return Table(title, columns, rows)


def types_caveats(content: Row) -> list[str]:
    """What to hold against types and scorers."""
    settings, counts = content["settings"], content["counts"]
    caveats = [*few_problems(counts["problems"]), *content.get("left_out", ())]
    if settings["rows"] != "all":
        caveats.append(
            f"Rows of queries are a sample, {settings['rows']} of each step: receiver, FCI, WAAD "
            "and FAI are estimates (--rows all)."
        )
    if {"induction", "previous"} & {*settings["types"]}:
        caveats.append(
            "Induction and previous-token scores are of random tokens: a model that has seen one "
            "kind of text alone may do nothing there that it does elsewhere."
        )
    return caveats


def set_facts(head_set: HeadSet) -> list[tuple[str, str]]:
    """Where a set comes from and how it was chosen, by name."""
    chosen, traces = head_set.selection or {}, head_set.traces or {}
    by = str(chosen.get("by"))
    facts = [
        ("heads", heads_text(head_set.pairs)),
        ("model", head_set.model.describe()),
        ("fingerprint", head_set.model.fingerprint),
        ("source", head_set.source),
        ("chosen", f"by {chosen['how']} {METRIC_NAMES.get(by, by)}" if chosen else None),
        ("traces", f"{traces['file']}, {traces['ranked']} ranked" if traces else None),
        ("traces' hash", traces.get("hash")),
        ("steps cut by", (head_set.segmenter or {}).get("name")),
        ("answer tokens", head_set.answer),
    ]
    if head_set.header.get("made"):
        facts += header_facts(head_set.header)
    return [(name, str(text)) for name, text in facts if text]


def set_tables(head_set: HeadSet) -> list[Table]:
    """The heads with their figures; the set on the other half, and the controls."""
    heads: list[tuple[Cell, ...]] = [
        (
            f"{head.layer}.{head.head}",
            Number(head.sra, *(head.sra_interval or (None, None))),
            Number(head.balanced, *(head.balanced_interval or (None, None))),
            number(head.gating),
            number(head.p),
            number((head.held_out or {}).get("sra")),
        )
        for head in head_set.heads
    ]
    columns = ("head", "SRA", "balanced", "gating", "p", "SRA held out")
    tables = [Table("Heads; in brackets 95 % over problems", columns, heads)]
    chosen = head_set.selection or {}
    rows: list[tuple[Cell, ...]] = []
    if point := chosen.get("ensemble_held_out"):
        rows.append(("the set, held out", *_metric_cells(point)))
    rows += [(name, *_metric_cells(row)) for name, row in (chosen.get("controls") or {}).items()]
    if rows:
        names = [METRIC_NAMES[metric] for metric in METRICS]
        tables.append(Table("The set beside the controls", ("scorer", *names), rows))
    return tables


def _metric_cells(row: Row) -> list[Number]:
    return [Number(row.get(m), row.get(f"{m}_low"), row.get(f"{m}_high")) for m in METRICS]


def compared_table(found: Row) -> Table:
    """Correlations and overlap of two maps."""
    shared = found["overlap"]
    rows: list[tuple[Cell, ...]] = [
        ("Spearman's ρ", Number.column(found, "spearman", 2, signed=True)),
        ("Pearson's r", Number.column(found, "pearson", 2, signed=True)),
        ("ceiling by their noise", number(found["ceiling"], 2)),
        (f"shared by the {found['k']} strongest", str(shared["shared"])),
        *([("95 % over problems", f"{shared['low']}–{shared['high']}")] if shared["high"] else []),
        ("by chance", number(shared["expected"], 1)),
        ("p", number(shared["p"])),
        ("which", heads_text(found["shared"]) or NONE),
    ]
    title = f"{found['a']} and {found['b']}, {found['heads']} heads"
    return Table(title, ("figure", "value"), rows)


def compared_types(content: Row) -> list[Table]:
    """Base and trained model: overlaps of the strongest heads, and where the set comes from."""

    def shared(found: Row) -> tuple[str, str]:
        own = found["overlap"]
        ends = f" ({own['low']}–{own['high']})" if own["low"] is not None else ""
        return f"{own['shared']}{ends}", number(own["p"])

    rows = [
        (
            row["type"],
            Number.column(row["kept"], "spearman", 2, signed=True),
            *shared(row["kept"]),
            *shared(row["into"]),
        )
        for row in content["rows"]
    ]
    chance = number(content["rows"][0]["kept"]["overlap"]["expected"], 1)
    title = (
        f"The {content['k']} strongest of {content['heads']} heads of the base, shared with those "
        f"of the trained model by the same, and by SRA; by chance {chance}; in brackets 95 % over "
        "problems"
    )
    columns = ("of the base by", "ρ, the same", "shared, the same", "p", "shared, SRA", "p")
    places = [
        (heads_text([row["head"]]), *(str(row[each["type"]]) for each in content["rows"]))
        for row in content["origins"]
    ]
    names = [str(row["type"]) for row in content["rows"]]
    about = "The trained model's set: the place of each head in the base, the strongest is 1"
    return [Table(title, columns, rows), Table(about, ("head", *names), places)]


def compared_words(found: Row) -> str:
    """The verdict in a sentence."""
    shared, chance = found["overlap"]["shared"], number(found["overlap"]["expected"], 1)
    rare = found["overlap"]["p"] <= 0.05
    verdict = "more than chance" if rare else "which is not shown to be more than chance"
    return (
        f"Of the {found['k']} strongest heads of each {shared} are the same; chance {chance}: "
        f"{verdict} (p = {number(found['overlap']['p'])})."
    )
