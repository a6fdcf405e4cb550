"""What findings are made of: sections with facts, tables, pictures and caveats."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.files.headers import HEADER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rl.runs.folders import Run


NAMES = {"sra": "SRA", "balanced": "balanced SRA", "gating": "gating accuracy"}
CONTROLS = ("random-heads", "all-heads", "recency")  # methods that a head set must beat
FEW_TRACES = 20  # fewer give rough intervals
FEW_SEEDS = 3  # fewer say little of the next seed
CUT_OFF = 0.05  # of responses; more, and their length is not known
Row = Mapping[str, Any]


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


def ablation_caveats(content: Row) -> list[str]:
    """What to hold against an ablation: claims that its intervals do not bear, dose by dose.

    That removing low-score steps lowers a measure is no claim of the method: it is a caveat where
    it is so. Where it is not shown, that does not show equality, which is said too.

    Args:
        content: of ablation.json.
    """
    found = []
    for verdict in content["verdicts"]:
        harm = (verdict["arm"], verdict["against"]) == ("low", "none")
        name = f"{verdict['part']}, {verdict['arm']} {verdict['mode']}".strip()
        for dose in verdict["doses"]:
            figure = f"{_signed(dose, 3)} at {dose['dose']:g}, {dose['traces']} traces"
            pair = f"{name} against {verdict['against']}, {verdict['measure']}"
            if harm and dose["holds"]:
                found.append(f"{pair}: {figure}: low-score steps are needed, too.")
            elif harm and dose["low"] < 0:
                found.append(f"{pair}: {figure}: no harm is shown, nor ruled out.")
            elif not harm and not dose["holds"]:
                beaten = verdict["against"] != "none"
                found.append(
                    f"{pair}: {figure}: "
                    + ("the control is not beaten." if beaten else "an effect is not shown.")
                )
    groups = min((row["groups"] for row in content["summary"]), default=0)
    if groups < FEW_TRACES:
        found.append(f"{groups} problems are few: the intervals are rough.")
    return found


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


def heads_text(pairs: Sequence[Sequence[int]]) -> str:
    """Heads as they are written everywhere: `2.3, 2.1`; a dash for none."""
    return ", ".join(f"{layer}.{head}" for layer, head in pairs) or NONE
