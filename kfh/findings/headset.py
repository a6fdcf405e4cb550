"""A head set with its evidence, and two head maps held against each other."""

from __future__ import annotations

from kfh.findings.base import Row, header_facts, heads_text
from kfh.tables import Cell, Table
from probing.choices import METRIC_NAMES, METRICS
from probing.headset import HeadSet
from probing.numbers import NONE, Number, number


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
        rows.append(("the set, held out", *_cells(point)))
    rows += [(name, *_cells(row)) for name, row in (chosen.get("controls") or {}).items()]
    if rows:
        names = [METRIC_NAMES[metric] for metric in METRICS]
        tables.append(Table("The set beside the controls", ("scorer", *names), rows))
    return tables


def _cells(row: Row) -> list[Number]:
    return [Number(row.get(m), row.get(f"{m}_low"), row.get(f"{m}_high")) for m in METRICS]


def compared_table(found: Row) -> Table:
    """Correlations and overlap of two maps."""
    shared = found["overlap"]
    rows: list[tuple[Cell, ...]] = [
        ("Spearman's ρ", Number.column(found, "spearman", 2, signed=True)),
        ("Pearson's r", Number.column(found, "pearson", 2, signed=True)),
        ("ceiling by their noise", number(found["ceiling"], 2)),
        (f"shared by the {found['k']} strongest", str(shared["shared"])),
        ("by chance", number(shared["expected"], 1)),
        ("p", number(shared["p"])),
        ("which", heads_text(found["shared"]) or NONE),
    ]
    title = f"{found['a']} and {found['b']}, {found['heads']} heads"
    return Table(title, ("figure", "value"), rows)


def compared_words(found: Row) -> str:
    """The verdict in a sentence."""
    shared, chance = found["overlap"]["shared"], number(found["overlap"]["expected"], 1)
    rare = found["overlap"]["p"] <= 0.05
    verdict = "more than chance" if rare else "which is not shown to be more than chance"
    return (
        f"Of the {found['k']} strongest heads of each {shared} are the same; chance {chance}: "
        f"{verdict} (p = {number(found['overlap']['p'])})."
    )
