"""`kfh heads`: what else heads are; head sets shown; maps of others read and compared."""

from __future__ import annotations

from pathlib import Path

import typer

from kfh.commands.show import Formats, save_all
from kfh.console import console, print_tables, progress_bar
from kfh.options import options
from probing.choices import FORMATS
from probing.types.config import TypesConfig

heads = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="What else are the heads of a probe? Published head types and step scorers beside it; "
    "head sets shown and shared; head maps of others.",
)


@heads.command(name="types")
@options
def types(config: TypesConfig, formats: Formats = FORMATS) -> None:
    """Measure published head types and step scorers beside a finished probe, in its folder.

    Retrieval, receiver, induction and other heads: correlation with SRA, overlap of the strongest
    with the head set beside chance. Scorers of steps stand under the probe's own pairs, halves and
    intervals.
    """
    run_types(config, formats)


def run_types(config: TypesConfig, formats: Formats = FORMATS) -> None:
    """Measure, print, draw."""
    from transformers.utils import logging

    from kfh.findings.types import types_caveats, types_tables
    from probing.figures.types import types_figure
    from probing.types.job import measure_types

    logging.disable_progress_bar()  # ours is enough
    content = measure_types(config, progress=progress_bar).content
    print_tables(types_tables(content), types_caveats(content))
    for sentence in content["verdict"]:
        console.print(sentence, soft_wrap=True)
    speed, folder = content["speed"], Path(config.folder)
    console.print(
        f"{len(content['types'])} types of {content['counts']['heads']} heads in "
        f"{speed['seconds']:.1f} s; {speed['resumed']} traces were there already"
    )
    console.print(f"→ {folder}: types.parquet, types.json", soft_wrap=True)
    save_all({"types": types_figure(content)}, folder, formats)
