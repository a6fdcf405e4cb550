"""`kfh plot trace`: the steps of traces with their scores, as a figure or as a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from kfh.console import console, progress_bar

if TYPE_CHECKING:
    from probing.passes import Head


def run_trace(
    folder: Path,
    html: bool,
    traces: Path | None,
    ids: str,
    limit: int | None,
    heads: str,
    tokens: bool,
    formats: str,
    device: str,
    out: Path | None,
    beside: tuple[Path, ...] = (),
) -> None:
    """Draw one trace, or write the page of many: see `probing.viewer.page`.

    Raises:
        ConfigError: options that do not go together, unknown heads or formats.
        DataError: no finished probe, or files that are not those of the probe.
    """
    from probing.errors import ConfigError

    wanted = tuple(name.strip() for name in ids.split(",") if name.strip())
    chosen = parse_heads(heads)
    if html:
        write_viewer(folder, out, traces, wanted, limit, chosen, tokens, device, beside)
        return
    if limit is not None or not tokens or beside:
        raise ConfigError("--limit, --no-tokens and --beside are of the page; give --html too")
    draw_strip(folder, traces, wanted, chosen, formats, out)


def parse_heads(text: str) -> tuple[Head, ...]:
    """Heads written as LAYER.HEAD, comma between.

    Raises:
        ConfigError: something else.

    Example:
        >>> parse_heads("2.3, 10.0")
        ((2, 3), (10, 0))
    """
    from probing.errors import ConfigError

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not re.fullmatch(r"[0-9]+\.[0-9]+", name):
            raise ConfigError(f"--heads {name!r}: a head is LAYER.HEAD, such as 2.3")
    pairs = [tuple(map(int, name.split("."))) for name in names]
    return tuple((layer, head) for layer, head in pairs)


def write_viewer(
    folder: Path,
    out: Path | None,
    traces: Path | None,
    ids: tuple[str, ...],
    limit: int | None,
    heads: tuple[Head, ...],
    tokens: bool,
    device: str,
    beside: tuple[Path, ...],
) -> None:
    """Write the page, and say what is in it."""
    from transformers.utils import logging

    from probing.viewer.page import LIMIT, ViewerConfig, write_page

    logging.disable_progress_bar()  # ours is enough
    most = LIMIT if limit is None else limit
    config = ViewerConfig(
        folder, out, traces, ids or None, 0 if ids and limit is None else most, heads or None,
        tokens, device, beside,
    )  # fmt: skip
    page = write_page(config, progress_bar)
    for model in page.models:
        name = f"{model.name}: " if len(page.models) > 1 else ""
        held = f"tokens of the set's mean and {model.token_heads} heads"
        console.print(
            f"{name}{page.traces} of {model.scored} scored traces; step scores of {model.heads} of "
            f"{model.all_heads} heads; {held if model.token_heads else 'no tokens'}"
        )
    if page.alone:
        console.print(f"left out: {page.alone} traces that not every probe scored")
    console.print(f"→ {page.path} ({page.size / 1e6:.1f} MB)", highlight=False)


def draw_strip(
    folder: Path,
    traces: Path | None,
    ids: tuple[str, ...],
    heads: tuple[Head, ...],
    formats: str,
    out: Path | None,
) -> None:
    """Draw one trace's steps by the mean of the heads; without an id the one of most steps."""
    from kfh.plots import checked_formats
    from probing.errors import ConfigError
    from probing.finished import FinishedProbe
    from probing.strips import strip_of
    from probing.style import save_figure

    kinds = checked_formats(formats)
    if len(ids) > 1:
        raise ConfigError("a figure shows one trace: give one --ids, or --html for a page of many")
    paths = [out] if out else [folder / f"trace.{kind}" for kind in kinds]
    if out:
        checked_formats(out.suffix[1:])
    probe = FinishedProbe.load(folder, traces)
    figure = strip_of(probe, ids[0] if ids else None, heads or None)
    for path in paths:
        save_figure(figure, path)
        console.print(f"→ {path}")
