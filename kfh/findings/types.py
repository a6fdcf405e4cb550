"""Head types of a probe: tables, the figure, and what to hold against them."""

from __future__ import annotations

from kfh.findings.base import Place, Row, Section, header_facts, heads_text, pictures
from kfh.tables import Table
from probing.choices import METRIC_NAMES
from probing.files.headers import HEADER
from probing.intervals import few_problems
from probing.numbers import Number, number
from probing.types.result import HeadTypes

SCORERS = {"all heads": "mean of all heads"}  # as in the table of controls


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
    tables = [_types(content), _scorers(content)]
    return [*tables, _calibration(content)] if content["calibration"] else tables


def _types(content: Row) -> Table:
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


def _scorers(content: Row) -> Table:
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


def _calibration(content: Row) -> Table:
    """Rows by metric."""
    rows = [
        (
            METRIC_NAMES[metric],
            f"{number(found['best'])} → {number(found['best_less_null'])}",
            f"{number(found['set'])} → {number(found['set_less_null'])}",
            number(found["gain"], signed=True),
        )
        for metric, found in content["calibration"].items()
    ]
    null = content["settings"]["null_answer"]
    title = f"Scores less those by the answer {null!r}; single heads"
    return Table(title, ("metric", "best head", "mean of the set", "mean gain of all heads"), rows)


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
