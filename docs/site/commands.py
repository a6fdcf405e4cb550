"""The page of commands: what `kfh COMMAND --help` says, from what typer made of each."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from reference import cell, plain


def commands_page(kfh: Any) -> str:
    """Every command of the loaded `kfh` with its arguments and options."""
    lines = ["# Commands", "As `kfh COMMAND --help` has them."]
    for name, command in walk("kfh", kfh):
        context = command.context_class(command, info_name=name)
        usage = " ".join([name, *command.collect_usage_pieces(context)])
        lines += [f"\n## {name}", f"`{usage}`", "", inspect.cleandoc(command.help or "")]
        panels: dict[str, list[str]] = {}
        for option in command.params:
            if getattr(option, "hidden", False):  # `--no-…` of a flag that is off anyway
                continue
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
