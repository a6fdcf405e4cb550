"""`kfh heads`: what else heads are; head sets shown; maps of others read and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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


SetPlace = Annotated[str, typer.Argument(metavar="SET", help="Head file, or a shipped set.")]


@heads.command(name="show")
@options
def show(place: SetPlace) -> None:
    """Show a head set with its evidence: figures, controls, caveats, where it comes from."""
    from kfh.findings.headset import set_facts, set_tables
    from probing.headset import HeadSet

    head_set = HeadSet.load(place, warn=False)
    for name, text in set_facts(head_set):
        console.print(f"[bold]{name}[/bold]: ", end="")
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    print_tables(set_tables(head_set), head_set.caveats)


@heads.command(name="import")
@options
def import_(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="full_attention_heads.tsv (DuoAttention), adapter_weights.tsv (RLKV), or a "
            "head_score file (Retrieval_Head, .json).",
        ),
    ],
    model: Annotated[str, typer.Option(help="Whose heads they are: hub id or folder.")],
    out: Annotated[Path, typer.Option(help="Folder for table.parquet and heads.json.")],
    top: Annotated[int, typer.Option(min=1, help="Strongest heads, for the set.")] = 10,
) -> None:
    """Read another's head map into a head table and a head set of kfh.

    The model's config is read, no weights: where the map is of key-value heads, each of its
    numbers stands for the query heads that share one.
    """
    from kfh.findings.base import heads_text
    from probing.models.identity import ModelCard
    from probing.models.load import load_config
    from probing.types.maps import import_map, read_map

    card = ModelCard.of(model, load_config(model))
    head_set, found = import_map(read_map(path), path, out, card, top)
    console.print(
        f"{found.kind}: {len(found.heads)} heads; the {top} strongest: "
        f"{heads_text(head_set.pairs)}",
        soft_wrap=True,
    )
    console.print(f"→ {out}: table.parquet, heads.json", soft_wrap=True)


MapPlace = Annotated[
    str,
    typer.Argument(
        help="A map as for import; a folder of kfh heads import; or one of a probe, with a metric "
        "or a measured type behind it where it is not SRA (runs/x:retrieval)."
    ),
]


@heads.command(name="compare")
@options
def compare(
    one: MapPlace,
    other: MapPlace,
    top: Annotated[int, typer.Option(min=1, help="Strongest heads that are compared.")] = 10,
    seed: Annotated[int, typer.Option(help="Of resampling.")] = 0,
) -> None:
    """Hold two head maps against each other: correlation with its ceiling, overlap with chance."""
    from kfh.findings.headset import compared_table, compared_words
    from probing.types.maps import compare_maps, read_map

    found = compare_maps(read_map(one), read_map(other), top, seed)
    print_tables([compared_table(found)])
    console.print(compared_words(found), soft_wrap=True)


@heads.command(name="push")
@options
def push(
    place: SetPlace,
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the hub.")],
    private: Annotated[bool, typer.Option("--private", help="A new one is private.")] = False,
) -> None:
    """Share a head set on the Hugging Face hub, with a card made from its evidence."""
    from probing.headset import HeadSet

    address = HeadSet.load(place, warn=False).push_to_hub(repo, private=private)
    console.print(f"→ {address}", soft_wrap=True)


@heads.command(name="pull")
@options
def pull(
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the hub.")],
    out: Annotated[Path, typer.Option(help="Head file to write.")] = Path("heads.json"),
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; default: the newest.")
    ] = None,
) -> None:
    """Fetch a shared head set from the Hugging Face hub, checked as any head file is."""
    from kfh.findings.base import heads_text
    from probing.headset import HeadSet

    head_set = HeadSet.from_hub(repo, revision=revision, warn=False)
    head_set.save(out)
    print_tables([], head_set.caveats)
    console.print(f"{heads_text(head_set.pairs)} of {head_set.model.describe()} → {out}")
