"""Settings of the page of traces. Light: the command line's too."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from probing.choices import Head
from probing.errors import ConfigError
from probing.settings import check, choice

LIMIT = 200
PAGE = "Page (--html)"  # panel of the command line


def parse_head(text: str) -> Head:
    """A head written as LAYER.HEAD.

    Raises:
        ConfigError: something else.

    Example:
        >>> parse_head("10.0")
        (10, 0)
    """
    if not re.fullmatch(r"[0-9]+\.[0-9]+", text):
        raise ConfigError(f"--heads {text!r}: a head is LAYER.HEAD, such as 2.3")
    layer, head = map(int, text.split("."))
    return layer, head


@dataclass(frozen=True)
class ViewerConfig:
    """Which traces of a finished probe are shown, and what of them; a figure takes a part of it.

    Raises:
        ConfigError: a limit below 0.
    """

    folder: Path = choice(help="Folder of a finished kfh probe.", argument="DIR")
    out: Path | None = choice(None, "File to write; default: trace.html or trace.* in DIR.")
    traces: Path | None = choice(None, "The probe's trace file, where it has moved.")
    ids: tuple[str, ...] = choice(
        (), "Traces, comma between; default: the longest, or --limit of them."
    )
    limit: int | None = choice(
        None, f"Most traces; default {LIMIT}, 0 is all.", least=0, panel=PAGE
    )
    heads: tuple[Head, ...] = choice(
        (),
        "Such as 2.3,2.1. Figure: their mean; default: the head set. Page: heads beside the set "
        "whose tokens are shown; default: the 4 best by SRA.",
        parse=parse_head,
    )
    tokens: bool = choice(True, "Attention of single tokens; loads the model.", panel=PAGE)
    device: str = choice("auto", "auto, cpu, cuda, …", panel=PAGE)
    beside: tuple[Path, ...] = choice(
        (),
        "Folder of another probe of the same traces, repeatable: its heads can be seen beside "
        "those of DIR, step by step.",
        repeat=True,
        panel=PAGE,
    )

    def __post_init__(self) -> None:
        """Check what can be known before anything is read."""
        check(self)

    @property
    def most(self) -> int:
        """Most traces that are shown, of those that are asked for; 0: all."""
        return (0 if self.ids else LIMIT) if self.limit is None else self.limit

    @property
    def page(self) -> Path:
        """The page to write.

        Raises:
            ConfigError: the file has another ending.
        """
        path = self.out or self.folder / "trace.html"
        if path.suffix not in (".html", ".htm"):
            raise ConfigError(f"--out {path}: the page is written to a file NAME.html")
        return path
