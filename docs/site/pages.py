"""Pages of the documentation that are made when it is built; mkdocs calls the `on_…` functions.

Start is the README, the notebooks are shown with their outputs, the reference comes from
`reference.py` beside this file.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import commands
import reference
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from reference import ROOT

DOTTED = re.compile(r"(?<!\[)`((?:probing|rl|kfh)(?:\.\w+)+)`")
OUTSIDE = {  # files outside docs/ that are pages, or linked from one
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CITATION.cff": "CITATION.cff",
    "data/pocket/README.md": "pocket.md",
    "data/pocket-long/README.md": "pocket-long.md",
}
FETCHED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"(https?:[^\"]+)")
LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")


def on_config(config: Any) -> Any:
    """Put the notebooks and the rooms into the navigation."""
    for entry in config.nav:
        if "Notebooks" in entry:
            entry["Notebooks"] = [f"notebooks/{path.stem}.md" for path in notebooks()]
        if "Reference" in entry:
            entry["Reference"] += [{room: f"reference/{room}.md"} for room in reference.rooms()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here."""
    from kfh.cli import whole

    pages: dict[str, str | bytes] = {
        "reference/index.md": reference.index_page(),
        "reference/commands.md": commands.commands_page(whole()),
        "reference/settings.md": reference.settings_page(),
    }
    for source, page in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("```bash ci-run", "```bash")
        pages[page] = LINK.sub(lambda match: f"]({site_path(match[1])})", text)
    for room in reference.rooms():
        pages[f"reference/{room}.md"] = reference.room_page(room)
    for path in notebooks():
        pages |= notebook(path)
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    return files


def site_path(target: str) -> str:
    """Where a link of a README leads on the site."""
    target = target.removeprefix("docs/")
    if target.startswith("notebooks/"):
        return target.replace(".ipynb", ".md")
    return OUTSIDE.get(target, target)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The glossary gets its table; names such as `probing.run.probe` lead to the reference."""
    return DOTTED.sub(linked, markdown.replace("<!-- glossary -->", reference.glossary_table()))


def linked(match: re.Match[str]) -> str:
    """The name as a link, where it is that of a documented module, class or function."""
    try:
        value = pkgutil.resolve_name(match[1])
    except (ImportError, AttributeError):
        return match[0]
    if inspect.ismodule(value) and not hasattr(value, "__path__"):
        return f"[{match[0]}][{match[1]}]"
    home = reference.full_name(value)
    ours = home.startswith(reference.FLOORS)  # not so a type hint: its class is Python's
    return f"[{match[0]}][{home}]" if ours and inspect.getdoc(value) else match[0]


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse what a reader's browser would fetch from elsewhere.

    Raises:
        PluginError: a script, style or picture with an address of the net.
    """
    if fetched := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} fetches {fetched[1]}; the site needs no network")
    return output


def notebooks() -> list[Path]:
    """The notebooks, in their order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def notebook(path: Path) -> dict[str, str | bytes]:
    """A notebook as a page, with its outputs as they are committed, and its pictures."""
    from nbconvert import MarkdownExporter

    names = {"unique_key": path.stem, "output_files_dir": ""}
    body, resources = MarkdownExporter().from_filename(str(path), names)
    pictures = {f"notebooks/{name}": data for name, data in resources["outputs"].items()}
    body = body.replace("![png](", "![Output of the cell above](")
    body = body.replace('<table border="1" class="dataframe">', "<table>")  # the site's own look
    return {f"notebooks/{path.stem}.md": body, **pictures}
