"""`kfh segment` and `kfh probe`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kfh.console import (
    console,
    print_tables,
    progress_bar,
    report_counts,
    report_left_out,
    report_reading,
    warn,
)
from kfh.options import declared, options
from probing.config import ProbeConfig
from probing.errors import ConfigError
from probing.labelling.cause import CauseConfig
from probing.numbers import plural
from probing.traces.reports import ReadReport
from probing.traces.source import StepSource
from probing.types.config import CHEAP, NULL_ANSWER, Calibrate, TypesConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from probing.traces.file import Trace

Loaded = tuple[Any, Any]  # model, tokenizer; or None


@options(segmenter="attnpo")
def segment(
    path: Annotated[Path, typer.Argument(metavar="IN", help="Trace file (JSONL, .gz too).")],
    source: StepSource,
    out: Annotated[Path, typer.Option(help="Trace file to write.")],
) -> None:
    """Cut the reasoning of each trace into steps that tile it."""
    from probing.files.headers import file_hash, refuse_overwriting
    from probing.traces.file import write_traces

    refuse_overwriting(out, source.path)
    cutter = source.cutter
    if cutter is None:
        raise ConfigError("--segmenter given cuts nothing: choose attnpo, line, sentence, …")
    report = ReadReport()
    steps: Counter[str] = Counter()
    with progress_bar("segmenting", 0) as advance:

        def counted() -> Iterator[Trace]:
            for trace in source.traces(report):
                steps.update(step.label or "unlabelled" for step in trace.steps)
                advance(1, 0)
                yield trace

        count = write_traces(
            out,
            counted(),
            segmenter=cutter.to_json(),
            source=str(path),
            hash=file_hash(source.path),
        )
    labels = ", ".join(f"{number} {label}" for label, number in sorted(steps.items()))
    cut = f"{plural(count, 'trace')}, {plural(sum(steps.values()), 'step')}"
    console.print(f"{cut} ({labels}) → {out}")
    report_reading(report)


@options
def probe(
    config: ProbeConfig,
    *,
    cause: CauseConfig,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it will take, as kfh estimate does.")
    ] = False,
    types: Annotated[
        bool,
        typer.Option("--types", help="Head types and scorers, too (kfh heads types)."),
    ] = False,
    calibrate: Annotated[
        Calibrate,
        typer.Option(help="null: also say what scores gain less those by --null-answer."),
    ] = "none",
    null_answer: Annotated[str, declared(TypesConfig, "null_answer")] = NULL_ANSWER,
) -> None:
    """Rank the attention heads of a model on traces with labels and save the head set.

    Traces may be a source that kfh import knows, and --labels cause has this model label them; what
    is made of them stands in --out, and is made once.

    As a job array: --shards i/n scores one share of the traces, and --merge ranks once all n are
    there. Every shard tokenises all traces, for the batches of the whole run, and scores every
    n-th batch, so that the numbers are those of one run.
    """
    wanted = types or calibrate == "null"
    if null_answer != NULL_ANSWER and not wanted:
        raise ConfigError("--null-answer is that of --calibrate null or --types: give one of them")
    if wanted and config.shards:
        raise ConfigError(
            "--types and --calibrate go with the whole probe, not with a shard: give them to "
            "--merge"
        )
    if dry_run:
        from kfh.bring.estimate import run_estimate

        run_estimate(config, cause)
        return
    beside = None
    if wanted:
        from probing.types.job import TypesBeside

        settings = TypesConfig(
            config.out,
            types=CHEAP if types else ("qr",),
            null_answer=null_answer,
            device=config.device,
            resume=config.resume,
        )
        beside = TypesBeside(settings)
    if run_probe(*from_raw(config, cause), beside) and beside:
        from kfh.commands.heads import run_types

        run_types(beside.config, ("png",), beside, calibrate=not types)  # png as the heatmap


def from_raw(config: ProbeConfig, cause: CauseConfig) -> tuple[ProbeConfig, Loaded]:
    """What a probe needs, made in its folder where it is not there: traces, steps, labels.

    1. Import: a source that is no trace file becomes one.
    2. Cut: where it has no steps, and no segmenter is named, by phrases.
    3. Label by cause, with the model that is probed.

    Returns:
        The settings with these files, and the model, where it was loaded to label.
    """
    from kfh.bring.chain import CAUSE, LABELS, alone, imported, with_steps

    config = imported(config, config.out)  # 1
    if config.labels != CAUSE:
        return config, (None, None)
    alone(config, "labels by cause are made by one: make them with kfh label first")
    from transformers.utils import logging

    from kfh.commands.label import run_cause

    logging.disable_progress_bar()
    config, out = with_steps(config), config.out / LABELS  # 2
    loaded = config.load()
    source = replace(config, labels="steps").source
    run_cause(source, out, cause, loaded=loaded, resume=config.resume)  # 3
    return replace(config, labels=str(out)), loaded


def run_probe(config: ProbeConfig, loaded: Loaded = (None, None), beside: Any = None) -> bool:
    """Probe, and say what was left out and found; the heatmap is drawn beside the tables.

    Whether this process did so, and not another or later one.

    Args:
        loaded: model and tokenizer; those that are None are loaded.
        beside: takes more in the pass that scores, see `probing.run.probe`.
    """
    from transformers.utils import logging

    from probing.models.processes import Processes
    from probing.run import probe as probe_model

    logging.disable_progress_bar()  # ours are enough
    model, tokenizer = loaded
    result = probe_model(
        config, model=model, tokenizer=tokenizer, beside=beside, progress=progress_bar
    )
    if result is None:
        if config.shards and Processes(config.device).rank == 0:
            _report_shard(config)
        return False  # another process prints
    from kfh.findings.base import heads_text
    from kfh.findings.probe import probe_tables
    from kfh.findings.summary import probe_summary
    from probing.choices import METRIC_NAMES
    from probing.figures.probe import heatmap
    from probing.figures.style import save_figure

    _report_left_out(result.counts)
    print_tables(probe_tables(result))
    way = f"{result.config.select} {METRIC_NAMES[result.config.by]}"
    console.print(
        f"[bold]Head set[/bold] (*): {heads_text(result.chosen)}, by {way}", soft_wrap=True
    )
    for sentence in probe_summary(result)[2:]:
        console.print(sentence, soft_wrap=True)
    print_tables([], result.caveats)
    save_figure(heatmap(result, result.config.by), result.folder / "heatmap.png")
    if result.speed["traces"]:
        console.print(_speed_text(result.speed, config.batch_tokens == "auto"))
    console.print(
        f"→ {result.folder}: heads.json, sra.parquet, scores.parquet, run.json, heatmap.png"
    )
    return True


def _speed_text(speed: dict[str, float], auto: bool = False) -> str:
    rate = speed["tokens"] / speed["seconds"]
    size, halved = (int(speed[f"batch{end}"]) for end in ("_tokens", "es_halved"))
    batches = f" in batches of {size:,} tokens" if auto else ""
    batches += f", halved {halved} times for want of memory" if halved else ""
    return (
        f"scored {speed['traces']:.0f} traces, {speed['tokens']:,.0f} tokens in "
        f"{speed['seconds']:.1f} s ({rate:,.0f} tokens/s){batches}; "
        f"{speed['resumed']:.0f} were there already"
    )


def _report_shard(config: ProbeConfig) -> None:
    """Say what a shard scored, and how to go on."""
    from probing.attention.shards import FOLDER, read_record
    from probing.models.processes import Shard

    shard = Shard.parse(str(config.shards))
    folder = config.out / FOLDER / shard.folder
    record = read_record(shard, folder)
    console.print(f"shard {shard}: {_speed_text(record.speed)}")
    if record.lost:
        report_left_out({"attention that is not finite": len(record.lost)})
    console.print(f"→ {folder}; when all {shard.count} are there: the same command with --merge")


def _report_left_out(counts: dict[str, Any]) -> None:
    report_counts(counts)
    report_left_out(counts["left_out"])
    if number := counts["steps"].get("without a token"):
        warn(f"left out {plural(number, 'step')} without a token of their own")
    if number := counts["other_tokenizer"]:
        warn(
            f"{number} traces bring token ids of another tokenizer: their text was tokenised with "
            "this model's"
        )
