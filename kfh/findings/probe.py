"""The section of a probe in a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kfh.findings.base import (
    NAMES,
    NONE,
    Place,
    Section,
    TextTable,
    counted,
    first_line,
    head_set_caveats,
    header_facts,
    label_caveats,
    label_way,
    number,
    pictures,
    probe_caveats,
    span,
)
from kfh.findings.summary import probe_summary
from probing.errors import DataError
from probing.files.headers import HEADER, read_object

BEST = 10  # heads in the table, beside those of the set


def find_probes(folders: Sequence[Path]) -> list[Place]:
    """Sequence[Path] with a head table, or with the run file of a probe."""
    return [Place(f, (f,)) for f in folders if _is_probe(f)]


def _is_probe(folder: Path) -> bool:
    if (folder / "sra.parquet").is_file():
        return True
    return _kind_of(folder / "run.json") == "probe run"


def _kind_of(path: Path) -> str:
    try:
        header = read_object(path).get(HEADER)
    except DataError:
        return ""
    return str(header.get("kind")) if isinstance(header, dict) else ""


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
    section.tables = [_heads_table(table, run, figures.chosen()), _controls_table(run)]
    section.tables.append(_ensembles_table(run))
    captions = {
        "heatmap": f"{NAMES[by]} of every head, by layer; the set is marked",
        "heads": "all heads from best to worst, with intervals, the best control and the null",
        "layers": "the best head, the mean and the span of the heads of each layer",
        "ensembles": "mean scores of several heads, on the half that they were not chosen on",
    }
    section.pictures = pictures(captions, figures.all(by))
    labels = run["config"]["labels"]
    header = None if labels == "steps" else first_line(Path(labels)) or None
    section.caveats = [
        *probe_caveats(table, run),
        *head_set_caveats(table, run, figures.chosen()),
        *label_caveats(run, header),
    ]
    if header:
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
            f"{', '.join(f'{a}.{b}' for a, b in heads.pairs)}, by {config['select']} {NAMES[by]}",
        ),
        (
            "the set, held out",
            f"{NAMES[by]} "
            + span(point[by], point[f"{by}_low"], point[f"{by}_high"])
            + f" on {len(counts['held_out_traces'])} traces; chosen on "
            f"{len(counts['select_traces'])}: {number(point[f'{by}_select'])}",
        ),
        ("backend, seed", f"{config['backend']}, {config['seed']}"),
    ]


def _heads_table(table: Any, run: dict[str, Any], chosen: list[tuple[int, int]]) -> TextTable:
    """The best heads, and those of the set that are not among them."""
    by = run["config"]["by"]
    p = "balanced_p" if by == "balanced" else "sra_p"
    ordered = table.sort_values(by, ascending=False, kind="stable").reset_index(drop=True)
    rows = []
    for place, row in ordered.iterrows():
        pair = (int(row["layer"]), int(row["head"]))
        if place >= BEST and pair not in chosen:
            continue
        rows.append(
            (
                f"{pair[0]}.{pair[1]}{' *' if pair in chosen else ''}",
                *(
                    span(row[m], row[f"{m}_low"], row[f"{m}_high"])
                    for m in ("sra", "balanced", "gating")
                ),
                number(row[p]),
                f"{number(row['contrast_essential'], 2)}, {number(row['contrast_redundant'], 2)}",
                f"{number(row[f'{by}_select'])} → {number(row[f'{by}_held_out'])}",
            )
        )
    title = (
        f"Best heads by {NAMES[by]} on {run['counts']['ranked']} traces, of {len(table)}; "
        "* in the set; in brackets 95 % over traces; p against the best head by chance"
    )
    columns = (
        "head",
        "SRA",
        "balanced",
        "gating",
        "p",
        "score over S_base: essential, redundant",
        f"{NAMES[by]}: half chosen on → held out",
    )
    return TextTable(title, columns, tuple(rows))


def _controls_table(run: dict[str, Any]) -> TextTable:
    rows = [
        (
            "mean of all heads" if row["control"] == "all heads" else row["control"],
            *(
                span(row[m], row[f"{m}_low"], row[f"{m}_high"])
                for m in ("sra", "balanced", "gating")
            ),
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
    return TextTable(
        "Controls: scorers that know nothing, and the null of the best head",
        ("scorer", "SRA", "balanced", "gating"),
        tuple(rows),
    )


def _ensembles_table(run: dict[str, Any]) -> TextTable:
    by = run["config"]["by"]
    ways = list(run["curves"])
    rows = [
        (
            str(points[0]["heads"]),
            *(
                cell
                for point in points
                for cell in (
                    span(point[by], point[f"{by}_low"], point[f"{by}_high"]),
                    ".".join(map(str, point["added"])),
                )
            ),
        )
        for points in zip(*run["curves"].values(), strict=True)
    ]
    counts = run["counts"]
    title = (
        f"Ensembles: heads chosen by {NAMES[by]} on {len(counts['select_traces'])} traces, the "
        f"figure on the other {len(counts['held_out_traces'])}"
    )
    columns = ("heads", *(name for way in ways for name in (way, f"{way}: added")))
    return TextTable(title, columns, tuple(rows))
