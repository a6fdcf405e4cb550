"""`kfh heads`, `kfh stability`, `kfh sample-size`: heads beside a probe, measured and printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kfh.commands.show import Formats, Traces, save_all
from kfh.console import console, print_tables, progress_bar
from kfh.options import options
from probing.choices import DRAWS, FORMATS, LADDER, Metric
from probing.errors import ConfigError
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


def run_types(
    config: TypesConfig, formats: Formats = FORMATS, beside: Any = None, calibrate: bool = False
) -> None:
    """Measure, print, draw.

    Args:
        config: the settings.
        formats: of the figure.
        beside: what was taken in the probe's own pass, see `probing.types.job.measure_types`.
        calibrate: print what calibration does, and nothing else.
    """
    from transformers.utils import logging

    from kfh.findings.heads import calibration_table, types_caveats, types_tables
    from probing.figures.types import types_figure
    from probing.types.job import measure_types

    logging.disable_progress_bar()  # ours is enough
    content = measure_types(config, beside=beside, progress=progress_bar).content
    tables, sentences = types_tables(content), content["verdict"]
    if calibrate:
        tables, sentences = [calibration_table(content)], sentences[-2:]
    print_tables(tables, types_caveats(content))
    for sentence in sentences:
        console.print(sentence, soft_wrap=True)
    speed, folder = content["speed"], Path(config.folder)
    how = f"{speed['resumed']} traces were there already"
    if speed["beside"]:
        how = "the traces beside the probe's own pass"
    console.print(
        f"{len(content['types'])} types of {content['counts']['heads']} heads in "
        f"{speed['seconds']:.1f} s; {how}"
    )
    console.print(f"→ {folder}: types.parquet, types.json", soft_wrap=True)
    if not calibrate:
        save_all({"types": types_figure(content)}, folder, formats)


SetPlace = Annotated[str, typer.Argument(metavar="SET", help="Head file, or a shipped set.")]


@heads.command(name="show")
@options
def show(place: SetPlace) -> None:
    """Show a head set with its evidence: figures, controls, caveats, where it comes from."""
    from kfh.findings.heads import set_facts, set_tables
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
    types: Annotated[
        bool,
        typer.Option(
            "--types",
            help="Two probes of one model before and after training, by SRA and every head type "
            "measured in both: where do its heads come from?",
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file for what was found.")] = None,
) -> None:
    """Hold two head maps against each other: correlation with its ceiling, overlap with chance."""
    from kfh.findings.heads import compared_table, compared_types, compared_words
    from probing.files.headers import HEADER, file_header, write_json
    from probing.types.maps import compare_maps, compare_types, read_map

    if types:
        found = compare_types(one, other, top, seed)
        tables, sentences = compared_types(found), found["verdict"]
    else:
        found = compare_maps(read_map(one), read_map(other), top, seed)
        tables, sentences = [compared_table(found)], [compared_words(found)]
    print_tables(tables)
    for sentence in sentences:
        console.print(sentence, soft_wrap=True)
    if out:
        write_json(out, {HEADER: file_header("compared heads"), **found})
        console.print(f"→ {out}", soft_wrap=True)


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


@options
def stability(
    folders: Annotated[
        tuple[Path, ...], typer.Argument(metavar="DIR", help="Folders that kfh probe wrote.")
    ],
    names: Annotated[
        tuple[str, ...], typer.Option(help="Of the probes, comma between; default: their folders'.")
    ] = (),
    metric: Annotated[Metric, typer.Option(help="Of the heads.")] = "sra",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/stability"),
    formats: Formats = FORMATS,
    seed: Annotated[int, typer.Option(help="Of bootstrap and halves.")] = 0,
) -> None:
    """Hold probes of one model's shape against each other: are they the same heads?"""
    from kfh.findings.heads import stability_caveats, stability_tables
    from probing.figures.robustness import stability_figure
    from probing.robustness.stability import compare_probes, write_stability

    with progress_bar("comparing", len(folders) * (len(folders) - 1) // 2) as advance:
        content = compare_probes(folders, names or None, metric, seed, lambda: advance(1, 0))
    print_tables(stability_tables(content), stability_caveats(content))
    console.print(f"→ {write_stability(content, out)}", soft_wrap=True)
    save_all({"stability": stability_figure(content)}, out, formats)


@options
def sample_size(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that kfh probe wrote.")],
    traces: Traces = None,
    metric: Annotated[
        Metric | None, typer.Option(help="Of the heads; default: the probe's --by.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="Heads in a set; default: the probe's.")] = None,
    sizes: Annotated[
        tuple[int, ...], typer.Option(help="Numbers of problems to draw, comma between.")
    ] = LADDER,
    draws: Annotated[int, typer.Option(help="Subsets of each size.")] = DRAWS,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default: DIR.")] = None,
    formats: Formats = FORMATS,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Rank the heads again on fewer problems: how many traces are enough?"""
    from kfh.findings.heads import sample_size_caveats, sample_size_table
    from probing.figures.robustness import sample_size_figure
    from probing.robustness.sample_size import measure_folder, write_sample_size

    if not sizes or min(sizes) < 1:
        raise ConfigError(f"--sizes takes numbers of problems from 1 on, not {sizes}")
    ladder = sorted(set(sizes))
    with progress_bar("drawing", 0) as advance:
        content = measure_folder(
            folder, traces, top, metric, draws, seed, ladder, lambda: advance(1, 0)
        )
    print_tables([sample_size_table(content)], sample_size_caveats(content))
    if content["enough"] is not None:  # else the caveat says it
        console.print(content["sentence"], style="bold", soft_wrap=True)
    place = out or folder
    console.print(f"→ {write_sample_size(content, place)}", soft_wrap=True)
    save_all({"sample_size": sample_size_figure(content)}, place, formats)
