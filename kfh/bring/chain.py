"""From raw records to what a probe reads: imported and cut, each kept, so that it is done once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from kfh.bring.imports import run_import
from kfh.console import say
from probing.choices import GIVEN
from probing.config import ProbeConfig
from probing.errors import ConfigError, DataError
from probing.formats.job import ImportConfig, recognised
from probing.formats.known import TRACE
from probing.formats.records import STDIN, kind_of_file
from probing.traces.file import header_of, read_traces

CAUSE = "cause"  # of --labels: made by the model that is probed
TRACES, LABELS = "traces.jsonl", "labels.jsonl"


def is_raw(source: Path) -> bool:
    """Whether a source is to be imported: it is no trace file, and records of a known format.

    Raises:
        ConfigError: standard input, which is read only once.
        DataError: a folder or data set of which nothing is known.
    """
    if str(source) == STDIN:
        raise ConfigError("--traces -: write it to a file, or kfh import - first")
    there = source.exists() or str(source).startswith("hub:")
    if not there or (source.is_file() and header_of(source).get("kind") == "traces"):
        return False
    try:
        kind = recognised(str(source))
    except DataError:
        if not source.is_file():
            raise
        return False  # what is wrong with it, its reader says
    lines = source.is_file() and kind_of_file(source) in (".jsonl", "")
    return not (kind is TRACE and lines)


def imported(config: ProbeConfig, folder: Path) -> ProbeConfig:
    """The settings with a trace file: imported into `folder`, or there already.

    Raises:
        ConfigError: several processes or shards would do it.
        KfhError: as for `import_traces`.
    """
    if not is_raw(config.traces):
        return config
    alone(config, f"{config.traces} is no trace file: make one with kfh import first")
    about = ImportConfig(
        str(config.traces),
        out=folder / TRACES,
        keep="all" if config.keep == "all" else "possible",
        think_end=config.think_end,
        tokenizer=config.model,
    )
    held = header_of(about.out).get("imported") if about.out.is_file() else None
    if config.resume and held == about.deciding:
        say(f"{about.out}: imported already")
    else:
        run_import(about, config.trust_remote_code)
    return replace(config, traces=about.out)


def with_steps(config: ProbeConfig) -> ProbeConfig:
    """The settings with a segmenter: by phrases, where the file has no steps and none is named."""
    if config.segmenter != GIVEN:
        return config
    read = read_traces(config.traces, **{**config.reading, "skip_bad": True})
    if any(trace.steps for trace in read):
        return config
    say(f"{config.traces} has no steps: cut by phrases (--segmenter attnpo)")
    return replace(config, segmenter="attnpo")


def alone(config: ProbeConfig, advice: str) -> None:
    """Refuse what one process must do before others share the rest.

    Raises:
        ConfigError: this one is not alone.
    """
    if config.shards or config.merge or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"several processes or shards share this probe, but {advice}")
