"""What findings are made of: sections with facts, tables, pictures and caveats."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.files.headers import HEADER

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from rl.runs.folders import Run


NAMES = {"sra": "SRA", "balanced": "balanced SRA", "gating": "gating accuracy"}
CONTROLS = ("random-heads", "all-heads", "recency")  # methods that a head set must beat
FEW_TRACES = 20  # fewer give rough intervals
FEW_SEEDS = 3  # fewer say little of the next seed
CUT_OFF = 0.05  # of responses; more, and their length is not known
Row = Mapping[str, Any]


def best_trivial(controls: Iterable[Row], metric: str) -> Row | None:
    """The control that goes by position or length alone and has the highest figure, if any has.

    The mean of all heads is no trivial scorer: it is made of what is probed.
    """
    rows = [row for row in controls if row["control"] != "all heads" and _is(row[metric])]
    return max(rows, key=lambda row: row[metric]) if rows else None


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
    if not _is(best["balanced"]):
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
                    f"{NAMES[metric]} "
                    f"{row[metric]:.3f}, from {row[f'{metric}_low']:.3f}, against "
                    f"{top[metric]:.3f}."
                )
    by, curve = run["config"]["by"], run["curves"][run["config"]["select"]]
    point = curve[len(chosen) - 1]
    held, selected = point[by], point[f"{by}_select"]
    if _is(held) and _is(selected) and held < selected:
        within = "within" if selected <= point[f"{by}_high"] else "below, beyond"
        found.append(
            f"The set's {NAMES[by]} on the held-out half is {held:.3f} "
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


def run_caveats(runs: Sequence[Run]) -> list[str]:
    """What to hold against training runs, seen by their own batches."""
    found = []
    seeds: dict[str, int] = {}
    for run in runs:
        seeds[run.method] = seeds.get(run.method, 0) + 1
        if run.status != "done":
            asked = run.info.get("steps")
            found.append(
                f"{run.folder.name} is not finished: {run.status}, "
                f"{len(run.metrics)} of {asked} steps."
            )
        if run.torn:
            found.append(f"{run.folder.name}: {run.torn} cut last line(s) were left out.")
        first, last = ends(run, "accuracy")
        if last < first:
            found.append(
                f"{run.folder.name}: the accuracy of its batches went from {first:.3f} to "
                f"{last:.3f}. Batches hold other problems each time: measure on held-out ones."
            )
    few = [f"{method} {n}" for method, n in seeds.items() if n < FEW_SEEDS]
    if few:
        found.append(f"Few seeds ({', '.join(few)}): another seed may go another way.")
    return found


def ends(run: Run, column: str) -> tuple[float, float]:
    """Means of a column over the first and the last fifth of the steps (one step at least)."""
    if column not in run.metrics or not len(run.metrics):
        return float("nan"), float("nan")
    part = max(1, len(run.metrics) // 5)
    values = run.metrics[column]
    return float(values.iloc[:part].mean()), float(values.iloc[-part:].mean())


def comparison_caveats(rows: Sequence[Row], differences: Sequence[Row]) -> list[str]:
    """What to hold against a comparison: controls not beaten, accuracy lost, few seeds."""
    found = []
    for item in differences:
        pair = f"{item['method']} against {item['against']} ({item['decoding']})"
        shorter, accuracy = item["redundant"], item["accuracy"]
        if not (_is(shorter["high"]) and shorter["high"] < 0):
            control = item["against"] in CONTROLS
            found.append(
                f"{pair}: redundant tokens {_signed(shorter, 1)} %; not shown to be fewer"
                + (": the control is not beaten." if control else ".")
            )
        if _is(accuracy["value"]) and accuracy["value"] < 0:
            points = {
                key: 100 * accuracy[key] for key in ("value", "low", "high") if _is(accuracy[key])
            }
            shown = (
                "accuracy is lost"
                if excludes_zero(accuracy)
                else ("the interval holds zero: a loss is neither shown nor ruled out")
            )
            found.append(f"{pair}: accuracy {_signed(points, 1)} points; {shown}.")
    few = [
        f"{row['method']} {len(row['seeds'])}"
        for row in rows
        if row["method"] != "initial" and len(row["seeds"]) < FEW_SEEDS
    ]
    if few:
        found.append(f"Few seeds ({', '.join(few)}): a first look.")
    bad = [f"{row['method']} {row['unreadable']}" for row in rows if row["unreadable"]]
    if bad:
        found.append(
            f"Responses that could not be read, left out of redundant steps: {', '.join(bad)}."
        )
    return found


def evaluation_caveats(name: str, found: Row, settings: Row, base: Row | None) -> list[str]:
    """What to hold against the figures of one benchmark.

    Args:
        name: of the benchmark.
        found: its figures, as eval.json has them.
        settings: of the evaluation.
        base: the figures of the same benchmark in the base, if there is one.
    """
    said = []
    accuracy = found["accuracy"]
    if found["truncated"]["value"] > CUT_OFF:
        said.append(
            f"{name}: {found['truncated']['value']:.0%} of the responses hit the limit of "
            f"{settings['max_tokens']} tokens: their true length is not known."
        )
    if found["unverified"]:
        said.append(
            f"{name}: the verifier does not accept the reference answers of "
            f"{found['unverified']} questions; they count as wrong unless answered to the letter."
        )
    if found["faults"]:
        kinds = ", ".join(f"{number} × {kind}" for kind, number in found["faults"].items())
        said.append(f"{name}: the verifier failed on responses, counted wrong: {kinds}.")
    if accuracy["n"] < 100:
        said.append(f"{name}: {accuracy['n']} questions are few.")
    if base is not None and accuracy["value"] < base["accuracy"]["value"]:
        was = base["accuracy"]
        apart = accuracy["high"] < was["low"]
        said.append(
            f"{name}: accuracy {accuracy['value']:.3f} is below the base's {was['value']:.3f}; "
            + ("the intervals are apart." if apart else "the intervals overlap.")
        )
    return said


def excludes_zero(figure: Row) -> bool:
    """Whether an interval lies on one side of zero; not where it is not known."""
    if not (_is(figure["low"]) and _is(figure["high"])):
        return False
    return bool(figure["low"] > 0 or figure["high"] < 0)


def _signed(figure: Row, digits: int) -> str:
    if not _is(figure.get("low")) or not _is(figure.get("high")):
        return f"{figure['value']:+.{digits}f}"
    low, high = (f"{figure[key]:+.{digits}f}" for key in ("low", "high"))
    return f"{figure['value']:+.{digits}f} ({low} to {high})"


def _is(value: Any) -> bool:
    """Whether there is a number at all: JSON has null, tables have not-a-number."""
    return value is not None and value == value


def sample_size_caveats(content: Row) -> list[str]:
    """Where no number of problems below all of them was enough, what was found instead."""
    return [] if content["enough"] is not None else [str(content["sentence"])]


NONE = "–"  # stands where there is no figure


@dataclass(frozen=True)
class TextTable:
    """A table of texts; all rows have as many cells as there are columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        """A row of another length would shift its cells under other names."""
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"{self.title}: rows must have {len(self.columns)} cells")


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure, its name (of a file) and what it shows."""

    name: str
    caption: str
    figure: Figure


@dataclass(eq=False)
class Section:
    """One part of a report.

    `facts` are named texts, `caveats` what to hold against the figures, `damaged` what could not
    be read, each with its reason.
    """

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    tables: list[TextTable] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where a section's results lie: its folder, and the folders that hold them."""

    folder: Path
    parts: tuple[Path, ...]


def pictures(captions: Mapping[str, str], drawn: Mapping[str, Figure | None]) -> list[Picture]:
    """Those figures that could be drawn, in the order of their captions."""
    found = ((name, text, drawn.get(name)) for name, text in captions.items())
    return [Picture(name, text, figure) for name, text, figure in found if figure is not None]


def side_by_side(parts: Sequence[Path], folders: Sequence[Path]) -> list[Place]:
    """Parts that lie side by side belong together; the top folder stands for itself."""
    places: dict[Path, list[Path]] = {}
    for part in parts:
        home = part.parent if part.parent in folders else part
        places.setdefault(home, []).append(part)
    return [Place(home, tuple(found)) for home, found in places.items()]


def first_line(path: Path) -> dict[str, Any]:
    """The header of a JSONL file; empty where it has none, or where the file is not there."""
    try:
        with path.open(encoding="utf-8") as file:
            line = json.loads(file.readline())
    except (OSError, ValueError):
        return {}
    found = line.get(HEADER) if isinstance(line, dict) else None
    return found if isinstance(found, dict) else {}


def header_facts(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Command, versions and date of a file's header; what it does not say is left out."""
    versions = [
        f"{name} {header[key]}"
        for key, name in (("version", "kfh"), ("torch", "torch"), ("transformers", "transformers"))
        if header.get(key)
    ]
    facts = [("command", str(header.get("command", NONE))), ("versions", ", ".join(versions))]
    return [*facts, ("made", str(header.get("made", NONE)))]


def number(value: Any, digits: int = 3) -> str:
    """A figure, or the sign for none."""
    return NONE if value is None or value != value else f"{value:,.{digits}f}"


def span(value: Any, low: Any, high: Any, digits: int = 3) -> str:
    """A figure with its interval: `0.714 (0.591–0.816)`."""
    if number(low) == NONE or number(high) == NONE:
        return number(value, digits)
    dash = " to " if low < 0 else "–"
    return f"{number(value, digits)} ({number(low, digits)}{dash}{number(high, digits)})"


def figure_text(figure: Mapping[str, Any] | None, digits: int = 3) -> str:
    """As `span`, of an object with `value`, `low` and `high`."""
    if figure is None:
        return NONE
    return span(figure["value"], figure["low"], figure["high"], digits)


def counted(counts: Mapping[str, Any]) -> str:
    """Counts by name in one line: `450 ranked, 50 wrong answer`."""
    return ", ".join(f"{value} {name}" for name, value in counts.items() if value) or "none"


@dataclass(frozen=True)
class Kind:
    """A kind of result: its name, where it lies among the folders, how it becomes a section."""

    name: str
    find: Callable[[Sequence[Path]], list[Place]]
    read: Callable[[Place], Section]
