"""`kfh label`: labels of steps by cause, by rules or by judges, and how far labellings agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kfh.console import (
    console,
    print_tables,
    progress_bar,
    report_left_out,
    report_reading,
    warn,
)
from kfh.options import options
from kfh.tables import Table
from probing.errors import ConfigError
from probing.files.headers import file_hash, refuse_overwriting
from probing.labelling.cause import CauseConfig
from probing.models.load import ModelSource
from probing.numbers import NONE, number, plural
from probing.settings import like
from probing.traces.reports import ReadReport
from probing.traces.source import StepSource, step_counts
from rl.judges.config import BY_JUDGES, JudgingConfig

if TYPE_CHECKING:
    from probing.labelling.agreement import Agreement
    from rl.judges.job import JudgingReport


Way = Literal["cause", "ablation", "rules", "judges"]
COMPARE = "Compare"  # panel of the command line


def run_judges(source: StepSource, judges: Path, out: Path, config: JudgingConfig) -> None:
    """`kfh label --by judges`: see `rl.judges.job`.

    Args:
        judges: the judge file (`rl.judges.panel`).
    """
    from rl.judges.job import judge_traces
    from rl.judges.panel import Panel

    refuse_overwriting(out, judges)
    report = judge_traces(source, Panel.load(judges), out, config, progress=progress_bar)
    report_reading(report.reading)
    print_report(report, config.consensus)
    console.print(f"→ {out}; the judges' answers: {config.cache_beside(out)}", soft_wrap=True)


def print_report(report: JudgingReport, consensus: str) -> None:
    """The judges and their agreement, and what is missing."""
    rates = report.agreement["judges"]
    rows = [
        (
            name,
            str(counts["answered"]),
            str(counts["cached"]),
            _listed(counts["tried_again"]),
            _listed(counts["failed"]),
            number(rates[name]["essential"]),
            " ".join(map(number, rates[name]["agrees_with"].values())) or NONE,
        )
        for name, counts in report.requests.items()
    ]
    columns = ("judge", "answers", "on disk", "tried again", "failed", "essential", "agrees")
    print_tables([Table("Judges; agrees: with each other judge, share of steps", columns, rows)])
    kappa = report.agreement["fleiss_kappa"]
    console.print(
        f"Fleiss' κ {'does not exist' if kappa is None else number(kappa)} over "
        f"{report.agreement['steps']} steps; all agree on {number(report.agreement['unanimous'])}"
    )
    labels = ", ".join(f"{count} {label}" for label, count in sorted(report.labels.items()))
    console.print(
        f"{report.labelled} of {report.traces} traces, {sum(report.labels.values())} steps "
        f"({labels}), by {consensus} consensus"
    )
    report_left_out(report.left_out)
    if report.failed:
        warn(
            f"{report.failed} answers are missing, in {report.incomplete} traces some of the "
            "judges; the same command asks for them again"
        )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in counts.items()) or "0"


SHOWN = 160  # characters of a step's text


def needed(value: Path | None, option: str) -> Path:
    """The value of an option that this way of labelling cannot do without.

    Raises:
        ConfigError: it was not given.
    """
    if value is None:
        raise ConfigError(f"kfh label needs {option}")
    return value


def run_cause(
    source: StepSource,
    out: Path,
    config: CauseConfig,
    model: ModelSource | None = None,
    resume: bool = True,
    loaded: tuple[Any, Any] | None = None,
) -> None:
    """`kfh label --by cause`: see `probing.labelling.cause`. Without a model: the embedded one.

    Args:
        loaded: model and tokenizer, where they are at hand.

    Raises:
        KfhError: a bad trace or setting, or a model in which a step cannot be hidden.
    """
    from transformers.utils import logging

    from probing.labelling.cause import label_by_cause

    logging.disable_progress_bar()
    model_, tokenizer = loaded or (model or ModelSource()).load()
    report = label_by_cause(
        model_,
        tokenizer,
        source,
        out,
        config,
        resume=resume,
        progress=progress_bar,
    )
    report_reading(report.reading)
    if report.left_out:
        first = next(iter(report.left_out.values()))
        warn(f"left out {plural(len(report.left_out), 'trace')}, first {first}")
    _print_counts(out, report.traces, report.labels, report.resumed)


def run_rules(source: StepSource, out: Path) -> None:
    """`kfh label --by rules`: see `probing.labelling.rules`."""
    from probing.labelling.rules import no_rules, rule_labels
    from probing.traces.labels import write_labels

    report = ReadReport()
    sizes = step_counts(source, report)
    report_reading(report)
    labels: Counter[str | None] = Counter()
    unruled: dict[str, list[str]] = {}  # why the rules do not apply → ids

    def lines() -> Iterator[dict[str, Any]]:
        with progress_bar("reading steps", len(sizes)) as advance:
            for trace in source.traces():
                if why := no_rules(trace):
                    unruled.setdefault(why, []).append(trace.id)
                for step, label in enumerate(rule_labels(trace)):
                    labels[label] += 1
                    yield {"id": trace.id, "step": step, "label": label, "source": "rules"}
                advance(1, 0)

    settings = {"by": "rules", "traces": file_hash(source.path), **source.mark.to_json()}
    refuse_overwriting(out, source.path)
    write_labels(out, lines(), source.segmenter_json(), settings=settings)
    _print_counts(out, len(sizes), labels)
    for why, ids in unruled.items():
        warn(f"{why} in {len(ids)} traces, whose steps have no label; first {ids[0]}")
    warn("Rules are rough: hold them against others with --compare")


def _print_counts(out: Path, traces: int, labels: Counter[str | None], resumed: int = 0) -> None:
    """The labels of a file."""
    named = sorted((label or "unlabelled", count) for label, count in labels.items())
    said = ", ".join(f"{count} {label}" for label, count in named)
    already = f"; {resumed} traces were there already" if resumed else ""
    counts = f"{plural(traces, 'trace')}, {plural(labels.total(), 'step')}"
    console.print(f"{counts} ({said}) → {out}{already}", soft_wrap=True)


def run_compare(names: list[str], source: StepSource | None, show: int) -> None:
    """`kfh label --compare A B …`: see `probing.labelling.agreement`.

    Args:
        names: label files; `steps` stands for the trace file's own labels.
        source: the trace file, for `steps` and for the texts.
        show: number of steps to print of those that two labellings differ on.
    """
    from itertools import combinations

    from probing.labelling.agreement import cohen_agreement, read_labelling

    if len(names) < 2:
        raise ConfigError("--compare needs two labellings or more: label files, or `steps`")
    _same_segmenter(names)
    found = [read_labelling(name, source) for name in names]
    compared = [cohen_agreement(a, b) for a, b in combinations(found, 2)]
    print_tables([agreement_table(compared)])
    texts = _texts(source, compared, show) if source and show else {}
    for pair in compared:
        if not show or not pair.different:
            continue
        console.print(f"\n[bold]{pair.first} | {pair.second}[/bold] differ on")
        stride = max(1, len(pair.different) // show)  # spread over the whole file
        for key, a, b in pair.different[::stride][:show]:
            text = texts.get(key, "")
            console.print(f"{key[0]} step {key[1]}: {a} | {b}", markup=False, highlight=False)
            if text:
                console.print(f"  {text}", markup=False, highlight=False)


def _same_segmenter(names: list[str]) -> None:
    """Refuse label files whose headers name different segmenters."""
    from probing.labelling.agreement import STEPS
    from probing.traces.labels import read_labels

    cut = {name: read_labels(Path(name)).segmenter for name in names if name != STEPS}
    known = {name: segmenter for name, segmenter in cut.items() if segmenter is not None}
    if len({str(sorted(segmenter.items())) for segmenter in known.values()}) > 1:
        said = ", ".join(f"{name}: {segmenter}" for name, segmenter in known.items())
        raise ConfigError(f"these label the steps of different segmenters ({said})")


def agreement_table(compared: list[Agreement]) -> Table:
    """A row a pair of labellings: how many steps both label, and how far they agree."""
    rows = [
        (
            pair.first,
            pair.second,
            str(pair.both),
            str(pair.same),
            *map(number, (pair.kappa, pair.auc, pair.auc_reverse)),
            str(pair.only_first),
            str(pair.only_second),
        )
        for pair in compared
    ]
    title = (
        "both: steps with a label in both; AUC: scores of one against the labels of the other, "
        "mean over traces; only: labelled by one alone"
    )
    columns = ("first", "second", "both", "same", "kappa", "AUC 1→2", "AUC 2→1", "only 1", "only 2")
    return Table(title, columns, rows)


def _texts(source: StepSource, compared: list[Agreement], show: int) -> dict[tuple[str, int], str]:
    """The texts of the steps that are labelled differently, on one line each."""
    wanted = {key for pair in compared for key, _, _ in pair.different}
    texts = {}
    for trace in source.traces():
        for place, step in enumerate(trace.steps):
            if (trace.id, place) in wanted:
                text = " ".join(trace.response[step.start : step.end].split())
                texts[trace.id, place] = text[:SHOWN] + ("…" if len(text) > SHOWN else "")
    return texts


@dataclass(frozen=True)
class LabelSource(StepSource):
    """The trace file, which label files can be compared without."""

    path: Path | None = like(StepSource, "path", None)  # type: ignore[assignment]  # or none

    def __post_init__(self) -> None:
        """Check what there is."""
        if self.path is not None:
            super().__post_init__()


@options
def label(
    source: LabelSource,
    *,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="With --compare: label files, or `steps`."),
    ] = None,
    by: Annotated[Way, typer.Option(help="ablation is another word for cause.")] = "cause",
    out: Annotated[Path | None, typer.Option(help="Label file to write.")] = None,
    resume: Annotated[bool, typer.Option(help="By cause: go on with the labels in --out.")] = True,
    cause: CauseConfig,
    model: ModelSource,
    judges: Annotated[
        Path | None, typer.Option(help="YAML file of the judges.", rich_help_panel=BY_JUDGES)
    ] = None,
    judging: JudgingConfig,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Do not label: say how far labellings agree.", rich_help_panel=COMPARE
        ),
    ] = False,
    show: Annotated[
        int, typer.Option(help="Steps to print of those that differ.", rich_help_panel=COMPARE)
    ] = 10,
) -> None:
    """Label the steps of traces by cause, by rules or by judges; or compare labellings."""
    if compare:
        run_compare(files or [], source if source.path else None, show)
        return
    if files:
        raise ConfigError(f"{files[0]}: label files are for --compare; traces go to --traces")
    needed(source.path, "--traces")
    target = needed(out, "--out")
    if by == "judges":
        run_judges(source, needed(judges, "--judges: the file that names them"), target, judging)
    elif by == "rules":
        run_rules(source, target)
    else:
        run_cause(source, target, cause, model, resume)
