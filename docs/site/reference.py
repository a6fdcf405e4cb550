"""The reference: the rooms by their docstrings, settings by their classes.

Commands are in `commands.py` beside this file. Nothing is written a second time.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from probing.settings import A_NUMBER, literals, union_parts

ROOT = Path(__file__).resolve().parent.parent.parent
FLOORS = ("probing", "rl", "kfh")
ENTITIES = {"<": "&lt;", "|": "&#124;"}

# Modules that import what only their place has: what they plug into, or Triton. No settings there.
ELSEWHERE = ("_plugin", ".kernels")


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
    """What a room is for, its public names, and all that its modules document (mkdocstrings)."""
    package = importlib.import_module(room)
    parts = [f"# {room}", inspect.getdoc(package) or "", public_names(package)]
    return "\n\n".join([*parts, *(f"::: {name}" for name in modules(room))])


def index_page() -> str:
    """Every room with the first line of what it is for."""
    rows = [
        f"| [{room}]({room}.md) | {plain(first_line(importlib.import_module(room)))} |"
        for room in rooms()
    ]
    head = "# Reference\n\n[Commands](commands.md), [settings](settings.md), and from Python:\n"
    return "\n".join([head, "| room | |", "|---|---|", *rows])


def public_names(package: Any) -> str:
    """A table of a package's face: each name, a link, and the first line of its docstring."""
    rows = []
    for name in getattr(package, "__all__", []):
        value = getattr(package, name)
        home = full_name(value)
        shown = f"[`{name}`][{home}]" if home.startswith(FLOORS) else f"`{name}`"
        rows.append(f"| {shown} | {plain(first_line(value))} |")
    return "\n".join(["| name | what it is |", "|---|---|", *rows]) if rows else ""


def glossary_table() -> str:
    """The words of reports and of the documentation, and what each is named in the code."""
    content = json.loads((ROOT / "kfh/findings/glossary.json").read_text(encoding="utf-8"))
    rows = []
    for word, text in sorted(
        {**content["report"], **content["documentation"]}.items(), key=lambda w: w[0].casefold()
    ):
        name = content["names"].get(word)
        rows.append(f"| {word} | {plain(text)}{f' (`{name}`)' if name else ''} |")
    return "\n".join(["| word | what it is |", "|---|---|", *rows])


def settings_page() -> str:
    """Every settings class with its fields, and every shipped recipe."""
    lines = ["# Settings", "The classes that hold them; most fields are options of a command."]
    for value in settings_classes():
        lines += [f"\n## {value.__name__}", f"`{full_name(value)}`: {first_line(value)}", ""]
        lines += ["| setting | values | default | |", "|---|---|---|---|"]
        explained = explanations(inspect.getdoc(value) or "")
        ours = (base for base in value.__mro__ if base.__module__.startswith(FLOORS))  # not TRL's
        own = {name for base in ours for name in inspect.get_annotations(base)}
        for field in (field for field in dataclasses.fields(value) if field.name in own):
            text = field.metadata.get("help") or explained.get(field.name, "")
            row = (f"`{field.name}`", values(value, field), default(field), plain(text))
            lines.append(f"| {' | '.join(row)} |")
    lines += ["\n## Recipes", "Of `kfh train --recipe`; each lies over its method's defaults."]
    for path in sorted((ROOT / "rl").rglob("recipes/*.yaml")):
        text = path.read_text(encoding="utf-8").strip()
        lines += [f"\n**{path.stem}**\n", f"```yaml\n{text}\n```"]
    return "\n".join(lines)


def settings_classes() -> Iterator[type]:
    """The dataclasses of probing and rl whose name ends in `Config`, where they are defined."""
    for name in (name for room in rooms() for name in modules(room)):
        if name.startswith("kfh") or name.endswith(ELSEWHERE):
            continue
        for value in list(vars(importlib.import_module(name)).values()):
            here = isinstance(value, type) and value.__module__ == name
            if here and dataclasses.is_dataclass(value) and value.__name__.endswith("Config"):
                yield value


def values(cls: type, field: dataclasses.Field[Any]) -> str:
    """What a field may be: its choices, or its type with its bounds."""
    try:
        choices = literals(cls).get(field.name)
    except NameError:  # a type that is known to type checkers alone
        choices = None
    if choices:
        number = int in union_parts(get_type_hints(cls)[field.name])
        return ", ".join([*(f"`{choice}`" for choice in choices), *[A_NUMBER] * number])
    least, most = field.metadata.get("least"), field.metadata.get("most")
    bounds = [f"≥ {least}"] * (least is not None) + [f"≤ {most}"] * (most is not None)
    return ", ".join([f"`{cell(field.type)}`", *bounds])


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
    """The first line of its docstring; empty for a type hint, which has none of its own."""
    return (inspect.getdoc(value) or "").split("\n")[0] if hasattr(value, "__name__") else ""


def cell(text: Any) -> str:
    """Code in a cell of a table, between backticks: there a bar parts no cells."""
    return " ".join(str(text).split())


def plain(text: str) -> str:
    """Text in a cell of a table, where `</think>` is no tag and a bar parts no cells."""
    return re.sub(r"(`[^`]*`)|[<|]", lambda match: match[1] or ENTITIES[match[0]], cell(text))
