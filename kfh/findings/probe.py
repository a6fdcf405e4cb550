"""A probe: tables, figures and caveats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfh.findings.base import (
    FEW_TRACES,
    Place,
    Row,
    Section,
    best_trivial,
    counted,
    header_facts,
    heads_text,
    pictures,
)
from kfh.tables import NONE, Cell, Number, Table, exists, number
from probing.choices import METRIC_NAMES, METRICS
from probing.files.headers import HEADER

if TYPE_CHECKING:
    import pandas as pd
from kfh.findings.summary import probe_summary

BEST = 10  # heads in the table, beside those of the set


def read_probe(place: Place) -> Section:
    """A probe: settings, counts, the best heads, controls, held-out halves, null, figures."""
    from probing.figures.probe import RunFigures
    from probing.headset import HeadSet

    folder = place.folder
    figures = RunFigures.load(folder)
    table, run = figures.table, figures.run
    section = Section(f"Probe: {Path(run['model']['id']).name}")
    heads = HeadSet.load(folder / "heads.json")
    section.facts = [*header_facts(run[HEADER]), *_probe_facts(run, heads)]
    section.summary = probe_summary(table, run, figures.chosen())
    by = run["config"]["by"]
    section.tables = probe_tables(table, run, figures.chosen())
    captions = {
        "heatmap": f"{METRIC_NAMES[by]} of every head, by layer; the set is marked",
        "heads": "all heads from best to worst, with intervals, the best control and the null",
        "layers": "the best head, the mean and the span of the heads of each layer",
        "ensembles": "mean scores of several heads, on the half that they were not chosen on",
    }
    section.pictures = pictures(captions, figures.all(by))
    section.caveats = caveats(table, run, figures.chosen())
    if header := _labels_header(run):
        section.facts.append(("labels are by", label_way(header) or NONE))
    if heads.pairs != figures.chosen():
        section.damaged.append(
            f"{folder / 'heads.json'} holds other heads than run.json chose: the files are of "
            "different runs"
        )
    return section


def _probe_facts(run: dict[str, Any], heads: Any) -> list[tuple[str, str]]:
    model, config, counts = run["model"], run["config"], run["counts"]
    traces = heads.traces or {}
    point = run["curves"][config["select"]][len(heads.pairs) - 1]
    by = config["by"]
    left_out = {
        **counts["left_out"],
        **{f"bad lines: {k}": v for k, v in counts["bad_lines"].items()},
    }
    return [
        (
            "model",
            f"{model['id']} ({model['type']}, {model['layers']} layers × {model['heads']} heads)",
        ),
        ("fingerprint", str(model.get("fingerprint", NONE))),
        ("traces", f"{config['traces']}, {traces.get('hash', 'no hash')}"),
        ("labels", "those of the trace file" if config["labels"] == "steps" else config["labels"]),
        ("steps cut by", str((heads.segmenter or {}).get("name", NONE))),
        ("answer tokens", config["answer"]),
        (
            "read, used, ranked",
            f"{counts['read']}, {counts['used']}, {counts['ranked']} traces; "
            f"{counts['pairs']:,} pairs",
        ),
        ("left out", counted(left_out)),
        ("steps", counted(counts["steps"])),
        (
            "head set",
            f"{heads_text(heads.pairs)}, by {config['select']} {METRIC_NAMES[by]}",
        ),
        (
            "the set, held out",
            f"{METRIC_NAMES[by]} {Number.column(point, by)} on {len(counts['held_out_traces'])} "
            f"traces; chosen on {len(counts['select_traces'])}: {number(point[f'{by}_select'])}",
        ),
        ("backend, seed", f"{config['backend']}, {config['seed']}"),
    ]


def probe_tables(table: Any, run: dict[str, Any], chosen: list[tuple[int, int]]) -> list[Table]:
    """The best heads, the controls, and ensembles on the held-out half."""
    return [_heads_table(table, run, chosen), _controls_table(run), _ensembles_table(run)]


def _heads_table(table: Any, run: dict[str, Any], chosen: list[tuple[int, int]]) -> Table:
    """The best heads, and those of the set that are not among them."""
    by = run["config"]["by"]
    p = "balanced_p" if by == "balanced" else "sra_p"
    ordered = table.sort_values(by, ascending=False, kind="stable").reset_index(drop=True)
    rows: list[tuple[Cell, ...]] = []
    for place, row in ordered.iterrows():
        pair = (int(row["layer"]), int(row["head"]))
        if place >= BEST and pair not in chosen:
            continue
        rows.append(
            (
                f"{pair[0]}.{pair[1]}{' *' if pair in chosen else ''}",
                *(Number.column(row, metric) for metric in METRICS),
                number(row[p]),
                f"{number(row['contrast_essential'], 2)}, {number(row['contrast_redundant'], 2)}",
                f"{number(row[f'{by}_select'])} → {number(row[f'{by}_held_out'])}",
            )
        )
    title = (
        f"Best heads by {METRIC_NAMES[by]} on {run['counts']['ranked']} traces, of {len(table)}; "
        "* in the set; in brackets 95 % over traces; p against the best head by chance"
    )
    columns = (
        "head",
        "SRA",
        "balanced",
        "gating",
        "p",
        "score over S_base: essential, redundant",
        f"{METRIC_NAMES[by]}: half chosen on → held out",
    )
    return Table(title, columns, tuple(rows))


def _controls_table(run: dict[str, Any]) -> Table:
    rows = [
        (
            "mean of all heads" if row["control"] == "all heads" else row["control"],
            *(Number.column(row, metric) for metric in METRICS),
        )
        for row in run["controls"]
    ]
    null, config = run["null"], run["config"]
    chance = [
        f"{number(null[m]['mean'])} (95 % {number(null[m]['q95'])})" for m in ("sra", "balanced")
    ]
    rows.append(
        (
            f"best head by chance ({config['null']}, {config['permutations']} labellings)",
            *chance,
            NONE,
        )
    )
    return Table(
        "Controls: scorers that know nothing, and the null of the best head",
        ("scorer", "SRA", "balanced", "gating"),
        tuple(rows),
    )


def _ensembles_table(run: dict[str, Any]) -> Table:
    by = run["config"]["by"]
    ways = list(run["curves"])
    rows = [
        (
            str(points[0]["heads"]),
            *(
                cell
                for point in points
                for cell in (
                    Number.column(point, by),
                    heads_text([point["added"]]),
                )
            ),
        )
        for points in zip(*run["curves"].values(), strict=True)
    ]
    counts = run["counts"]
    title = (
        f"Ensembles: heads chosen by {METRIC_NAMES[by]} on {len(counts['select_traces'])} traces, "
        f"the figure on the other {len(counts['held_out_traces'])}"
    )
    columns = ("heads", *(name for way in ways for name in (way, f"{way}: added")))
    return Table(title, columns, tuple(rows))


def caveats(table: Any, run: dict[str, Any], chosen: list[tuple[int, int]]) -> list[str]:
    """What to hold against a probe: its best head, its head set, its labels."""
    return [
        *probe_caveats(table, run),
        *head_set_caveats(table, run, chosen),
        *label_caveats(run, _labels_header(run)),
    ]


def _labels_header(run: Row) -> dict[str, Any] | None:
    labels = run["config"]["labels"]
    return None if labels == "steps" else first_line(Path(labels)) or None


def unbeaten(head: Row, controls: Iterable[Row], metric: str) -> Row | None:
    """The best trivial control, where it lies within the head's interval or above it.

    Example:
        >>> unbeaten({"sra_low": 0.59}, [{"control": "recency", "sra": 0.68}], "sra")["control"]
        'recency'
        >>> unbeaten({"sra_low": 0.70}, [{"control": "recency", "sra": 0.68}], "sra")
    """
    top = best_trivial(controls, metric)
    return top if top is not None and not top[metric] < head[f"{metric}_low"] else None


def probe_caveats(table: pd.DataFrame, run: Row) -> list[str]:
    """What to hold against the best head of a probe.

    Args:
        table: a row a head, as sra.parquet has it.
        run: the content of run.json.
    """
    by, counts = run["config"]["by"], run["counts"]
    best = table.loc[table[by].idxmax()]
    name = f"head {int(best['layer'])}.{int(best['head'])}"
    found = []
    if top := unbeaten(best, run["controls"], "sra"):
        found.append(
            f"{top['control']} alone reaches SRA {top['sra']:.3f}, within the interval of {name} "
            f"({best['sra']:.3f}, from {best['sra_low']:.3f}): look at balanced SRA."
        )
    if not exists(best["balanced"]):
        found.append(
            f"{name} has no balanced SRA: in no trace do pairs of both orders exist, so that what "
            "it sees cannot be told from position."
        )
    elif not best["balanced_p"] <= 0.05:
        found.append(
            f"The balanced SRA of {name} ({best['balanced']:.3f}) is what the best of "
            f"{len(table)} heads reaches by chance (p = {best['balanced_p']:.2f})."
        )
    if counts["beyond_context"]:
        found.append(
            f"{counts['beyond_context']} traces are longer than the model's context; "
            "what it attends to there may mean little."
        )
    if counts["ranked"] < FEW_TRACES:
        found.append(f"{counts['ranked']} traces are few: the intervals are rough.")
    return found


def head_set_caveats(table: pd.DataFrame, run: Row, chosen: Sequence[tuple[int, int]]) -> list[str]:
    """What to hold against each head of the set, and against the set as a whole."""
    places = table.set_index(["layer", "head"])
    found = []
    for metric in ("sra", "balanced"):
        for pair in chosen:
            row = places.loc[pair]
            if top := unbeaten(row, run["controls"], metric):
                found.append(
                    f"Head {pair[0]}.{pair[1]} of the set does not beat {top['control']}: "
                    f"{METRIC_NAMES[metric]} "
                    f"{row[metric]:.3f}, from {row[f'{metric}_low']:.3f}, against "
                    f"{top[metric]:.3f}."
                )
    by, curve = run["config"]["by"], run["curves"][run["config"]["select"]]
    point = curve[len(chosen) - 1]
    held, selected = point[by], point[f"{by}_select"]
    if exists(held) and exists(selected) and held < selected:
        within = "within" if selected <= point[f"{by}_high"] else "below, beyond"
        found.append(
            f"The set's {METRIC_NAMES[by]} on the held-out half is {held:.3f} "
            f"({point[f'{by}_low']:.3f}–{point[f'{by}_high']:.3f}), on the half that it was chosen "
            f"on {selected:.3f}: lower, {within} the interval. The held-out figure is the one to "
            "quote."
        )
    return found


def label_caveats(run: Row, header: Row | None) -> list[str]:
    """What to hold against the labels.

    Args:
        run: the content of a probe's run.json.
        header: of the label file; None where the labels are the trace file's, or it is gone.
    """
    steps = run["counts"]["steps"]
    found = []
    if steps.get("unlabelled"):
        total = sum(steps.get(kind, 0) for kind in ("essential", "redundant", "unlabelled"))
        found.append(
            f"{steps['unlabelled']} of {total} steps have no label and took no part: nothing is "
            "said about how the heads see them."
        )
    source = run["config"]["labels"]
    by = label_way(header or {})
    if by == "rules":
        found.append("The labels are by rules (phrases and repetition): rough, no ground truth.")
    elif by == "ablation":
        found.append(
            "The labels are by cause, as this or another model sees it: a step that a later one "
            "repeats is called redundant."
        )
    elif by == "judges":
        found.append("The labels are by model judges: what they all miss, the figures miss.")
    elif source != "steps" and header is None:
        found.append(f"{source} is not there any more: how the labels were made is not known here.")
    return found


def label_way(header: Row) -> str:
    """How a label file was made: ablation, rules, judges, or empty where it does not say."""
    return str((header.get("settings") or {}).get("by") or header.get("source") or "")


def first_line(path: Path) -> dict[str, Any]:
    """The header of a JSONL file; empty where it has none, or where the file is not there."""
    try:
        with path.open(encoding="utf-8") as file:
            line = json.loads(file.readline())
    except (OSError, ValueError):
        return {}
    found = line.get(HEADER) if isinstance(line, dict) else None
    return found if isinstance(found, dict) else {}
