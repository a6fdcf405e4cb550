"""The reference: commands from what typer made of them, settings from their classes, and the rooms.

What `kfh COMMAND --help` and the docstrings say; nothing is written a second time.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
FLOORS = ("probing", "rl", "kfh")


def rooms() -> list[str]:
    """Every package of the three floors, the floors themselves among them."""
    found = []
    for floor in FLOORS:
        path = importlib.import_module(floor).__path__
        found += [floor, *(m.name for m in pkgutil.iter_modules(path, f"{floor}.") if m.ispkg)]
    return found


def modules(room: str) -> list[str]:
    """The modules of a room."""
    path = importlib.import_module(room).__path__
    names = [m.name for m in pkgutil.iter_modules(path, f"{room}.") if not m.ispkg]
    return [name for name in names if not name.endswith("__main__")]


def room_page(room: str) -> str:
    """What a room is for, and the public names of its modules (by mkdocstrings)."""
    doc = inspect.getdoc(importlib.import_module(room)) or ""
    return "\n\n".join([f"# {room}", doc, *(f"::: {name}" for name in modules(room))])


def faces_page() -> str:
    """The names that `probing` and `rl` offer at the front door, each with its first line."""
    lines = ["# Reference", "[Commands](commands.md), [settings](settings.md), and from Python:"]
    for floor in ("probing", "rl"):
        package = importlib.import_module(floor)
        lines += [f"\n## From {floor}", "", "| name | what it is |", "|---|---|"]
        for name in package.__all__:
            value = getattr(package, name)
            home = full_name(value)
            shown = f"[`{name}`][{home}]" if home.startswith(FLOORS) else f"`{name}`"
            lines.append(f"| {shown} | {plain(first_line(value))} |")
    return "\n".join(lines)


def commands_page(app: Any) -> str:
    """Every command of a typer application with its arguments and options."""
    from typer.main import get_command

    lines = ["# Commands", "As `kfh COMMAND --help` has them."]
    for name, command in walk("kfh", get_command(app)):
        context = command.context_class(command, info_name=name)
        usage = " ".join([name, *command.collect_usage_pieces(context)])
        lines += [f"\n## {name}", f"`{usage}`", "", inspect.cleandoc(command.help or "")]
        panels: dict[str, list[str]] = {}
        for option in command.params:
            panel = getattr(option, "rich_help_panel", None) or "Arguments and options"
            record = option.get_help_record(context) or (option.metavar or option.name, option.help)
            row = f"| `{cell(record[0])}` | {plain(record[1] or '')} |"
            panels.setdefault(panel, []).append(row)
        for panel, rows in panels.items():
            lines += [f"\n| {panel} | |", "|---|---|", *rows]
    return "\n".join(lines)


def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The command and those below it, hidden ones left out."""
    if not command.hidden:
        yield name, command
        for part, child in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {part}", child)


def settings_page() -> str:
    """Every settings class with its fields, and every shipped recipe."""
    lines = ["# Settings", "The classes that hold them; most fields are options of a command."]
    for value in settings_classes():
        lines += [f"\n## {value.__name__}", f"`{full_name(value)}`: {first_line(value)}", ""]
        lines += ["| setting | type | default | |", "|---|---|---|---|"]
        explained = explanations(inspect.getdoc(value) or "")
        own = inspect.get_annotations(value)  # without what is inherited from TRL
        for field in (field for field in dataclasses.fields(value) if field.name in own):
            text = field.metadata.get("help") or explained.get(field.name, "")
            row = (f"`{field.name}`", f"`{cell(field.type)}`", default(field), plain(text))
            lines.append(f"| {' | '.join(row)} |")
    lines += ["\n## Recipes", "Of `kfh train --recipe`; each lies over its method's defaults."]
    for path in sorted((ROOT / "rl").rglob("recipes/*.yaml")):
        text = path.read_text(encoding="utf-8").strip()
        lines += [f"\n**{path.stem}**\n", f"```yaml\n{text}\n```"]
    return "\n".join(lines)


def settings_classes() -> Iterator[type]:
    """The dataclasses of probing and rl whose name ends in `Config`, where they are defined."""
    for name in (name for room in rooms() for name in modules(room)):
        if name.startswith("kfh"):
            continue
        for value in list(vars(importlib.import_module(name)).values()):
            here = isinstance(value, type) and value.__module__ == name
            if here and dataclasses.is_dataclass(value) and value.__name__.endswith("Config"):
                yield value


def default(field: dataclasses.Field[Any]) -> str:
    """The default of a field, as text."""
    if field.default_factory is not dataclasses.MISSING:
        return f"`{cell(repr(field.default_factory()))}`"
    needed = field.default is dataclasses.MISSING
    return "needed" if needed else f"`{cell(repr(field.default))}`"


def explanations(doc: str) -> dict[str, str]:
    """What the section `Args:` of a docstring says, by name; several names may share a text."""
    section = re.search(r"^Args:\n(.*?)(?=^\w|\Z)", doc, re.S | re.M)
    entry = re.compile(r"^    (\w[\w, ]*): (.*?)(?=^    \w|\Z)", re.S | re.M)
    entries = entry.findall(section[1] if section else "")
    return {name: text for names, text in entries for name in names.split(", ")}


def full_name(value: Any) -> str:
    """Where a class or function is defined; empty for what does not know."""
    known = hasattr(value, "__qualname__")
    return f"{value.__module__}.{value.__qualname__}" if known else ""


def first_line(value: Any) -> str:
    """The first line of its docstring."""
    return (inspect.getdoc(value) or "").split("\n")[0]


def cell(text: Any) -> str:
    """Code in a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def plain(text: str) -> str:
    """Text in a cell of a table, where `</think>` is no tag."""
    return re.sub(r"(`[^`]*`)|<", lambda match: match[1] or "&lt;", cell(text))
