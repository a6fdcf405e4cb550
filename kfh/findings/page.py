"""`kfh report DIR`: what was run and found, with caveats, as one HTML page and as Markdown.

1. Walk the folder; every kind of result finds its places (`kfh.findings.kinds`).
2. Read each place into a section of plain texts and figures; one that is damaged is named.
3. Fill the templates: HTML with its pictures inside, Markdown with pictures as files beside it.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfh.findings.base import Kind, Place, Section
from kfh.findings.kinds import KINDS
from kfh.tables import html_table, markdown, markdown_text
from probing.errors import ConfigError, DataError
from probing.files.headers import HEADER, file_header, whole_file
from probing.numbers import plural

DPI = 120
WIDE = 8.0  # inches; a wider figure is not put beside another
RULES = (
    "A control is beaten where it lies below the whole 95 % interval of the head; a difference is "
    "shown where its interval excludes zero. Everything else is a caveat, in words, at the head of "
    "its section. No caveat means that none of these rules was broken, not that nothing can be "
    "wrong.",
    "p is corrected for the choice of the best among all heads. Held-out figures are of traces "
    "that no head was chosen on.",
)


@dataclass(frozen=True)
class Drawn:
    """A picture as the templates take it: PNG as base64, and the path of its file."""

    caption: str
    data: str
    path: str
    wide: bool  # it needs the width of the page


def run_report(folder: Path, out: Path | None, title: str | None) -> None:
    """`kfh report`: write the page and the Markdown, and say what is in them."""
    from kfh.console import console, warn

    path = out or folder / "report.html"
    if path.suffix != ".html":
        raise ConfigError(f"--out {path}: give a file that ends in .html")
    sections = read_sections(folder)
    written = write_report(sections, path, title or f"Report on {folder.resolve().name}")
    for section in sections:
        console.print(f"{section.title}: {note(section)}", markup=False, highlight=False)
        for text in section.damaged:
            warn(f"could not be read: {text}")
    for file in written:
        console.print(f"→ {file}", markup=False, highlight=False)


def read_sections(folder: Path, kinds: list[Kind] = KINDS) -> list[Section]:
    """Every result in the folder and below, in the order of `KINDS`.

    Raises:
        DataError: no such folder, or nothing in it that kfh has written.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    folders = list(walk(folder))
    sections = [_read(kind, place, folder) for kind in kinds for place in kind.places(folders)]
    if not sections:
        names = ", ".join(kind.name for kind in kinds)
        raise DataError(
            f"{folder}: nothing to report, here or in the folders below ({names}); run for "
            f"example `kfh probe --out {folder}` first"
        )
    return sections


def walk(folder: Path) -> Iterator[Path]:
    """The folder and all those below it, in order; hidden ones and links are not entered."""
    yield folder
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from walk(path)


def _read(kind: Kind, place: Place, root: Path) -> Section:
    """The section of a place; where its files are damaged, a section that says so."""
    where = place.folder.relative_to(root)
    try:
        section = kind.read(place)
    except DataError as error:
        section = Section(kind.name.capitalize(), damaged=[str(error)])
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        text = f"{place.folder}: damaged, or of another version of kfh ({error!r})"
        section = Section(kind.name.capitalize(), damaged=[text])
    if str(where) != ".":
        section.title += f" ({where.as_posix()})"
    return section


def note(section: Section) -> str:
    """How much is to say against a section, in a few words."""
    parts = []
    if section.damaged:
        parts.append(f"{len(section.damaged)} could not be read")
    if section.caveats:
        parts.append(plural(len(section.caveats), "caveat"))
    return ", ".join(parts) or "no caveat"


def write_report(sections: list[Section], path: Path, title: str) -> list[Path]:
    """Write `path` (HTML), the Markdown beside it, and the Markdown's pictures.

    Returns:
        The files: page, Markdown, then pictures.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pictures = path.with_name(f"{path.stem}_figures")
    header = file_header("report", sections=[section.title for section in sections])
    shown, files = [], []
    for place, section in enumerate(sections, 1):
        drawn = []
        for picture in section.pictures:
            data = _png(picture.figure)
            file = pictures / f"{place}-{picture.name}.png"
            with whole_file(file) as temporary:
                temporary.write_bytes(data)
            files.append(file)
            where = os.path.relpath(file, path.parent).replace(os.sep, "/").replace(" ", "%20")
            wide = picture.figure.get_figwidth() > WIDE
            drawn.append(Drawn(picture.caption, base64.b64encode(data).decode(), where, wide))
        shown.append({**vars(section), "pictures": drawn, "note": note(section)})
    environment = Environment(
        loader=PackageLoader("kfh"),
        autoescape=lambda name: name is None or name.endswith(".html.j2"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=False,
    )
    environment.filters |= {"md": markdown_text, "md_table": markdown, "html_table": html_table}
    made = f"kfh {header['version']}, {header['made']}: {header['command']}"
    content: dict[str, Any] = {
        "title": title,
        "made": made,
        "sections": shown,
        "rules": RULES,
        "glossary": glossary(),
        "header": json.dumps({HEADER: header}, ensure_ascii=False),
    }
    targets = [(path, "report.html.j2"), (path.with_suffix(".md"), "report.md.j2")]
    for target, template in targets:
        text = environment.get_template(template).render(content)
        with whole_file(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [target for target, _ in targets] + files


def glossary() -> dict[str, str]:
    """What the words of a report mean, in the order of the alphabet.

    The file holds those of the documentation besides, and what the words are named in the code.
    """
    text = (Path(__file__).parent / "glossary.json").read_text(encoding="utf-8")
    words: dict[str, str] = json.loads(text)["report"]
    return words


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, bbox_inches="tight")
    return file.getvalue()
