"""`kfh label --by judges`: the job of `rl.judges.job`, and what it prints.

`kfh label`: labels of steps, by cause or by rule, and how far labellings agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kfh.console import console, print_tables, progress_bar, report_bad_lines, warn
from kfh.tables import NONE, Table, number
from probing.errors import ConfigError, DataError
from probing.files.headers import file_hash
from probing.labelling.agreement import STEPS, read_labelling
from probing.traces.file import ReadReport
from probing.traces.source import StepSource, step_counts

if TYPE_CHECKING:
    from probing.answers.context import CauseTrace
    from probing.answers.hiding import Drops
    from probing.labelling.agreement import Agreement
    from probing.labelling.cause import CauseConfig
    from rl.judges.job import JudgingReport
    from rl.judges.votes import Consensus


CACHE = "judge-cache"


def run_judges(
    source: StepSource,
    judges: Path,
    out: Path,
    consensus: Consensus,
    concurrency: int,
    rate: float,
    cache: Path | None,
    limit: int | None,
) -> None:
    """Label the steps of a trace file by judges; see `rl.judges.job.JudgingConfig`.

    Args:
        judges: the judge file (`rl.judges.panel`).
        cache: folder of the answers; None: `judge-cache` beside `out`, which labellings of the
            same folder share.
    """
    from rl.judges.job import JudgingConfig, judge_traces
    from rl.judges.panel import Panel

    config = JudgingConfig(
        source,
        Panel.load(judges),
        out,
        cache or out.parent / CACHE,
        consensus,
        concurrency,
        rate,
        limit,
    )
    report = judge_traces(config, progress=progress_bar)
    report_bad_lines(report.reading)
    print_report(report, consensus)
    console.print(f"→ {out}; the judges' answers: {config.cache}", soft_wrap=True)


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
    for reason, count in report.left_out.items():
        warn(f"left out {count} traces: {reason}")
    if report.failed:
        warn(
            f"{report.failed} answers are missing, in {report.incomplete} traces some of the "
            "judges; the same command asks for them again"
        )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in counts.items()) or "0"


WAYS = ("ablation", "rules", "judges")
SHOWN = 160  # characters of a step's text


def needed(value: Path | None, option: str) -> Path:
    """The value of an option that this way of labelling cannot do without.

    Raises:
        ConfigError: it was not given.
    """
    if value is None:
        raise ConfigError(f"kfh label needs {option}")
    return value


def check_label_options(by: str, compare: bool, files: list[str] | None) -> None:
    """Refuse options of `kfh label` that contradict each other.

    Raises:
        ConfigError: an unknown way, or label files where none are read.
    """
    if compare:
        return
    if by not in WAYS:
        raise ConfigError(f"unknown --by {by!r}; choose {', '.join(WAYS)}")
    if files:
        raise ConfigError(f"{files[0]}: label files are for --compare; traces go to --traces")


def run_ablation(
    source: StepSource,
    out: Path,
    config: CauseConfig,
    model: str | None,
    device: str,
    dtype: str,
    resume: bool,
) -> None:
    """`kfh label --by ablation`: see `probing.answers.hiding`.

    Raises:
        KfhError: a bad trace or setting, or a model in which a step cannot be hidden.
    """
    from transformers.utils import logging

    from probing.answers.context import encode_causes
    from probing.answers.hiding import StepHiding
    from probing.files.jsonl import LineStore
    from probing.labelling.cause import labelled_already
    from probing.models.identity import model_settings
    from probing.models.load import load_model, load_tokenizer, pocket_model

    logging.disable_progress_bar()
    report = ReadReport()
    sizes = step_counts(source, report)
    report_bad_lines(report)
    name = model or str(pocket_model())
    tokenizer = load_tokenizer(name)
    loaded = load_model(name, device=device, dtype=dtype)
    ablation = StepHiding(loaded)
    settings = {
        "by": "ablation",
        **asdict(config),
        **model_settings(loaded),
        **source.settings(),
    }
    header = {"segmenter": source.segmenter_json(), "settings": settings}
    store = LineStore(out, "labels", header)
    done = labelled_already(store, sizes, resume)
    left_out: dict[str, str] = {}
    proven = False
    with progress_bar("hiding steps", len(sizes) - len(done)) as advance:
        for trace in source.traces():
            if trace.id in done or trace.id not in sizes:
                continue
            try:
                encoded = encode_causes(
                    tokenizer,
                    trace,
                    rule=source.rule,
                    answer=config.answer,
                    limit=config.limit or None,
                )
            except DataError as error:
                left_out[trace.id] = str(error)
                advance(1, 0)
                continue
            if not proven:
                ablation.prove(encoded)
                proven = True
            drops = ablation.drops(
                encoded, deletion=config.deletion, advance=lambda tokens: advance(0, tokens)
            )
            store.add(label_lines(encoded, drops, config))
            advance(1, 0)
    if left_out:
        first = next(iter(left_out.values()))
        warn(f"left out {len(left_out)} traces, first {first}")
    if len(left_out) == len(sizes):
        raise DataError(f"{source.path}: no trace could be labelled; first {first}")
    _report(out, resumed=len(done))


def label_lines(trace: CauseTrace, drops: Drops, config: CauseConfig) -> list[dict[str, Any]]:
    """The lines of a label file for one trace; a step without a token has neither score nor label.

    `score` is the mean drop per counted answer token, `total` their sum, by which a step is
    labelled, `deletion` the sum with the step deleted instead; all in nats.
    """
    from probing.labelling.cause import cause_label

    lines = []
    for step, total in enumerate(drops.total):
        known = total == total  # not so for not a number
        line = {
            "id": trace.id,
            "step": step,
            "label": cause_label(float(total), config.high, config.low) if known else None,
            "score": float(drops.mean[step]) if known else None,
            "total": float(total) if known else None,
            "source": "ablation",
        }
        if drops.deletion is not None:
            line["deletion"] = float(drops.deletion[step]) if known else None
        lines.append(line)
    return lines


def run_rules(source: StepSource, out: Path) -> None:
    """`kfh label --by rules`: see `probing.labelling.rules`."""
    from probing.labelling.rules import rule_labels
    from probing.traces.labels import write_labels

    report = ReadReport()
    sizes = step_counts(source, report)
    report_bad_lines(report)

    def lines() -> Iterator[dict[str, Any]]:
        with progress_bar("reading steps", len(sizes)) as advance:
            for trace in source.traces():
                for step, label in enumerate(rule_labels(trace)):
                    yield {"id": trace.id, "step": step, "label": label, "source": "rules"}
                advance(1, 0)

    settings = {"by": "rules", "traces": file_hash(source.path), "think_end": source.think_end}
    write_labels(out, lines(), source.segmenter_json(), settings=settings)
    _report(out)
    warn("Rules are rough: hold them against others with --compare")


def _report(out: Path, resumed: int = 0) -> None:
    """Count the labels of a file."""
    from probing.traces.labels import read_labels

    found = read_labels(out)
    counts = Counter(label or "unlabelled" for of in found.labels.values() for label in of.values())
    said = ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
    already = f"; {resumed} traces were there already" if resumed else ""
    console.print(f"{len(found.labels)} traces, {counts.total()} steps ({said}) → {out}{already}")


def run_compare(names: list[str], source: StepSource | None, show: int) -> None:
    """`kfh label --compare A B …`: see `probing.labelling.agreement`.

    Args:
        names: label files; `steps` stands for the trace file's own labels.
        source: the trace file, for `steps` and for the texts.
        show: number of steps to print of those that two labellings differ on.
    """
    from itertools import combinations

    from probing.labelling.agreement import cohen_agreement

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


def label(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[A B ...]", help="With --compare: label files, or `steps`."),
    ] = None,
    by: Annotated[str, typer.Option(help="ablation, rules or judges.")] = "ablation",
    compare: Annotated[
        bool, typer.Option("--compare", help="Do not label: say how far labellings agree.")
    ] = False,
    traces: Annotated[Path | None, typer.Option(help="Trace file (JSONL, .gz too).")] = None,
    out: Annotated[Path | None, typer.Option(help="Label file to write.")] = None,
    segmenter: Annotated[
        str,
        typer.Option(help="given: the file's steps; or attnpo, line, sentence, paragraph, *.json."),
    ] = "given",
    min_chars: Annotated[
        int, typer.Option(help="Steps shorter than this are merged (attnpo).")
    ] = 80,
    skip_bad: Annotated[
        bool, typer.Option(help="Leave bad lines out (counted) instead of stopping.")
    ] = False,
    think_end: Annotated[str, typer.Option(help="The text that ends the reasoning.")] = "</think>",
    model: Annotated[
        str | None, typer.Option(help="Ablation: hub id, folder or .gguf; default: pocket.")
    ] = None,
    answer: Annotated[
        str, typer.Option(help="Ablation: answer tokens that count: all, values or boxed.")
    ] = "all",
    answer_limit: Annotated[
        int, typer.Option(help="Ablation: the first so many answer tokens; 0: all.")
    ] = 32,
    high: Annotated[float, typer.Option(help="Ablation: essential from this drop on, nats.")] = 0.5,
    low: Annotated[float, typer.Option(help="Ablation: redundant up to this drop, nats.")] = 0.01,
    deletion: Annotated[
        bool, typer.Option("--deletion", help="Ablation: delete each step from the text as well.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    resume: Annotated[bool, typer.Option(help="Ablation: go on with the labels in --out.")] = True,
    judges: Annotated[Path | None, typer.Option(help="Judges: YAML file of the judges.")] = None,
    consensus: Annotated[
        Literal["unanimous", "majority"], typer.Option(help="Judges: whose word counts.")
    ] = "unanimous",
    concurrency: Annotated[int, typer.Option(help="Judges: requests at a time.")] = 8,
    rate: Annotated[float, typer.Option(help="Judges: requests a second; 0: no limit.")] = 0.0,
    cache: Annotated[Path | None, typer.Option(help="Judges: folder of their answers.")] = None,
    limit: Annotated[int | None, typer.Option(help="Judges: traces to label; default all.")] = None,
    show: Annotated[int, typer.Option(help="Compare: steps to print of those that differ.")] = 10,
) -> None:
    """Label the steps of traces by cause, by rules or by judges; or compare labellings."""
    from probing.traces.source import StepSource

    check_label_options(by, compare, files)
    if compare:
        cut = StepSource(traces, segmenter, min_chars, skip_bad, think_end) if traces else None
        run_compare(files or [], cut, show)
        return
    path, target = needed(traces, "--traces"), needed(out, "--out")
    source = StepSource(path, segmenter, min_chars, skip_bad, think_end)
    if by == "judges":
        panel = needed(judges, "--judges: the file that names them")
        run_judges(source, panel, target, consensus, concurrency, rate, cache, limit)
    elif by == "rules":
        run_rules(source, target)
    else:
        from probing.labelling.cause import CauseConfig

        config = CauseConfig(answer, answer_limit, high, low, deletion)
        run_ablation(source, target, config, model, device, dtype, resume)
