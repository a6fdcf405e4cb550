"""Options of the commands, made from the settings classes, where defaults and help stand alone.

A command is a function whose parameters are settings classes, beside plain parameters of its own:

    @options
    def probe(config: ProbeConfig, name: Annotated[str, typer.Option(help="…")] = "") -> None: ...

Every field of `ProbeConfig` becomes an option: `min_chars` is `--min-chars`, a Literal its choices,
a tuple a text with commas between, or an option that may be repeated. The function is called with a
`ProbeConfig`. What is none of the choices is refused with the nearest that are.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo

from probing.errors import ConfigError
from probing.settings import union_parts, unknown

EMPTY = inspect.Parameter.empty
MOST_SHOWN = 22  # characters of choices that stand beside an option; longer ones in its help


def options(function: Callable[..., Any] | None = None, **defaults: Any) -> Any:
    """The function as typer takes it: settings classes among its parameters become options.

    Two classes, or a class and a plain parameter, may share a name; it is one option then, that of
    the first, handed to all.

    Args:
        function: the command.
        defaults: where a field's default is another for this command.
    """
    if function is None:
        return functools.partial(options, **defaults)
    hints = get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    classes: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    made: dict[str, inspect.Parameter] = {}
    empty: set[str] = set()  # options of tuples that are () where they are not given
    for name, plain in inspect.signature(function).parameters.items():
        alone = [(name, *get_args(hints[name]), plain.default, {})] if name not in classes else []
        for field, kind, declared, default, about in alone or declared_fields(
            hints[name], defaults
        ):
            made.setdefault(field, option(field, kind, declared, default, **about))
            empty |= {field} if default == () else set()

    @functools.wraps(function)
    def command(*settings: Any, **given: Any) -> Any:
        if settings or any(isinstance(given.get(name), cls) for name, cls in classes.items()):
            return function(*settings, **given)  # from Python, as it is written
        for name, value in given.items():
            if isinstance(value, list) or (value is None and name in empty):
                given[name] = tuple(value or ())
            elif given.get(f"no_{name}"):
                given[name] = False
        called = {name: given[name] for name in hints if name not in classes}
        for name, cls in classes.items():
            names = [item.name for item in fields(cls) if item.init and item.name in given]
            called[name] = cls(**{field: given[field] for field in names})
        return function(**called)

    flags = [no_flag(name) for name, parameter in made.items() if parameter.default is False]
    ordered = sorted([*made.values(), *flags], key=lambda p: p.default is not EMPTY)
    command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in ordered}
    return command


def declared_fields(cls: Any, defaults: dict[str, Any]) -> Iterable[tuple[str, Any, Any, Any, Any]]:
    """Name, type, declaration, default, and how it is read, of each field that is an option."""
    kinds = get_type_hints(cls)
    for item in fields(cls):
        if item.init and item.metadata.get("option", True):
            made = item.default_factory
            default = defaults.get(item.name, made() if callable(made) else item.default)
            default = EMPTY if default is MISSING else default
            about = {name: item.metadata.get(name) for name in ("repeat", "parse")}
            yield item.name, kinds[item.name], declaration(item, default), default, about


def declaration(item: Field[Any], default: Any = None) -> Any:
    """How typer lists a field: as argument or option, with its name, help and panel."""
    about, name = item.metadata, item.metadata.get("option", True)
    shown: dict[str, Any] = {
        "help": about.get("help") or None,
        "rich_help_panel": about.get("panel"),
    }
    if about.get("argument"):
        return typer.Argument(metavar=about["argument"], **shown)
    if name is True and default is False:  # a flag: there is nothing to switch off
        name = f"--{item.name.replace('_', '-')}"
    return typer.Option(*([name] if isinstance(name, str) else []), **shown)


def declared(cls: Any, name: str) -> Any:
    """The declaration of a plain parameter that is handed on to a field of a settings class."""
    return declaration(cls.__dataclass_fields__[name])


def no_flag(name: str) -> inspect.Parameter:
    """The hidden `--no-NAME` of a flag that is off anyway: accepted, and it wins."""
    hidden = typer.Option(f"--no-{name.replace('_', '-')}", hidden=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(f"no_{name}", kind, default=False, annotation=Annotated[bool, hidden])


def option(
    name: str, kind: Any, declared: Any, default: Any, repeat: Any = None, parse: Any = None
) -> inspect.Parameter:
    """The parameter of which typer makes an option or an argument.

    A Literal shows and completes its choices and is read by `one_of`, a tuple by `split`.
    """
    declared, flag = copy.copy(declared), f"--{name.replace('_', '-')}"
    parts = union_parts(kind)
    elements = [get_args(part)[0] for part in parts if get_origin(part) is tuple]
    choices = [part for part in (*elements, *parts) if get_origin(part) is Literal]
    if elements and (repeat or isinstance(declared, ArgumentInfo)):
        kind = list[elements[0]]  # type: ignore[valid-type]
    elif elements or choices:
        read = parse or (
            functools.partial(one_of, flag, get_args(choices[0])) if choices else elements[0]
        )
        declared.parser = functools.partial(split, flag, read) if elements else read
        kind = choices[0] if choices else str
        if len("|".join(get_args(kind))) > MOST_SHOWN:  # it would be broken anywhere
            declared.show_choices = False
            declared.help = f"{declared.help or ''} One of {', '.join(get_args(kind))}.".strip()
    elif any(get_origin(part) is Callable for part in parts):  # named `module:name`
        kind = str
    if isinstance(default, tuple):
        values = (f"{value:g}" if isinstance(value, float) else str(value) for value in default)
        default = ", ".join(values) or None
    if default is None:
        kind = kind | None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, declared]
    )


def one_of(flag: str, choices: tuple[str, ...], text: str) -> str:
    """The text, which must be one of the choices.

    Raises:
        ConfigError: it is none; the message names the nearest.
    """
    if text not in choices:
        raise ConfigError(unknown(flag, text, choices))
    return text


def split(flag: str, read: Callable[[str], Any], text: str) -> tuple[Any, ...]:
    """The values of a text with commas between.

    Raises:
        ConfigError: one of them cannot be read.

    Example:
        >>> split("--remove", int, "1, 2,3")
        (1, 2, 3)
    """
    try:
        return tuple(read(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"{flag} {text!r}: write numbers, comma between") from error
