"""Options of the commands, made from the settings classes, where defaults and help stand alone.

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


def options(function: Callable[..., Any] | None = None, **defaults: Any) -> Any:
    """The function as typer takes it: settings classes among its parameters become options.

    Two classes, or a class and a plain parameter, may share a name; it is one option then, that of
    the first, handed to all.

    Args:
        function: the command.
        defaults: where a field's default is another for this command.

    Raises:
        TypeError: a field of a kind that no option can give.
    """
    if function is None:
        return functools.partial(options, **defaults)
    hints = get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    classes: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in classes:
            keyword = parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY)
            parameters.setdefault(name, keyword)
            continue
        kinds = get_type_hints(classes[name])
        for item in fields(classes[name]):
            if item.init and item.metadata.get("option", True):
                made = option(item, kinds[item.name], defaults.get(item.name, MISSING))
                parameters.setdefault(item.name, made)

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


def option(item: Field[Any], kind: Any, default: Any = MISSING) -> inspect.Parameter:
    """The option of one field: its name, kind, default, help and panel."""
    about = item.metadata
    if default is MISSING:
        factory = item.default_factory
        default = factory() if callable(factory) else item.default
    if sequence_of(kind) or callable_among(kind):
        kind = str | None if default is None else str
        default = comma_text(default)
    name = about.get("option", True)
    if name is True and default is False:  # a flag: there is nothing to switch off
        name = f"--{item.name.replace('_', '-')}"
    declared = typer.Option(
        *([name] if isinstance(name, str) else []),
        help=about.get("help") or None,
        rich_help_panel=about.get("panel"),
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


def parts_of(kind: Any) -> tuple[Any, ...]:
    """The members of a union type; of any other type itself alone."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def sequence_of(kind: Any) -> Any:
    """The type of the elements of a tuple type, optional or not; None for every other type."""
    found = (get_args(part)[0] for part in parts_of(kind) if get_origin(part) is tuple)
    return next(found, None)


def callable_among(kind: Any) -> bool:
    """Whether a field takes a function too: the command line then names it, `module:name`."""
    return any(get_origin(part) is Callable for part in parts_of(kind))


def comma_text(values: Any) -> Any:
    """A tuple as the command line writes it; what is none, as it is."""
    if not isinstance(values, tuple):
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
