"""Options of the commands, made from the settings classes: a default and its help stand there alone.

A command is a function whose parameters are settings classes, beside plain parameters of its own:

    @options
    def probe(config: ProbeConfig, name: Annotated[str, typer.Option(help="…")] = "") -> None: ...

Every field of `ProbeConfig` becomes an option: `min_chars` is `--min-chars`, a Literal its choices,
a tuple a text with commas between. The function is called with a `ProbeConfig`.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from probing.errors import ConfigError


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as typer takes it: settings classes among its parameters become options.

    Two classes may share a field; it is one option then, handed to both.

    Raises:
        TypeError: a field of a kind that no option can give.
    """
    hints = get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    classes = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in classes:
            keyword = parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY)
            parameters.setdefault(name, keyword)
            continue
        kinds = get_type_hints(classes[name])
        for item in fields(classes[name]):
            if item.init and item.metadata.get("option", True):
                parameters.setdefault(item.name, option(item, kinds[item.name]))

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        called = {name: given[name] for name in hints if name not in classes}
        for name, cls in classes.items():
            called[name] = settings_of(cls, given)
        return function(**called)

    ordered = sorted(parameters.values(), key=lambda p: p.default is not inspect.Parameter.empty)
    command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in ordered}
    return command


def option(item: Field[Any], kind: Any) -> inspect.Parameter:
    """The option of one field: its name, kind, default, help and panel."""
    about = item.metadata
    default = item.default if item.default_factory is MISSING else item.default_factory()
    if sequence_of(kind):
        kind = str if default is MISSING or default is not None else str | None
        default = comma_text(default)
    declared = typer.Option(
        help=about.get("help") or None,
        rich_help_panel=about.get("panel"),
        min=about.get("least") if kind in (int, float) else None,
    )
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind, declared],
    )


def settings_of(cls: type, given: Mapping[str, Any]) -> Any:
    """An object of a settings class from the values of the command line."""
    kinds = get_type_hints(cls)
    values = {}
    for item in fields(cls):
        if item.init and item.name in given:
            value, element = given[item.name], sequence_of(kinds[item.name])
            if element and isinstance(value, str):
                value = split(value, f"--{item.name.replace('_', '-')}", element)
            values[item.name] = value
    return cls(**values)


def sequence_of(kind: Any) -> Any:
    """The type of the elements of a tuple type, optional or not; None for every other type."""
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for part in parts:
        if get_origin(part) is tuple:
            return get_args(part)[0]
    return None


def comma_text(values: Any) -> Any:
    """A tuple as the command line writes it; None and a missing default as they are."""
    if values is None or values is MISSING:
        return values
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def split(text: str, name: str, element: Callable[[str], Any]) -> tuple[Any, ...]:
    """The values of a text with commas between.

    Raises:
        ConfigError: one of them cannot be read as its type.

    Example:
        >>> split("1, 2,3", "--remove", int)
        (1, 2, 3)
    """
    try:
        return tuple(element(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"{name} {text!r}: write numbers, comma between") from error
