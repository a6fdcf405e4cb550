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
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import partial, wraps
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo

from probing.errors import ConfigError
from probing.settings import A_NUMBER, union_parts, unknown

NOTHING: Mapping[str, Any] = MappingProxyType({})
KEYWORD = inspect.Parameter.KEYWORD_ONLY
MOST_SHOWN = 22  # characters of choices that stand beside an option; longer ones in its help


def options(function: Callable[..., Any] | None = None, **defaults: Any) -> Any:
    """The function as typer takes it: settings classes among its parameters become options.

    Two classes, or a class and a plain parameter, may share a name; it is one option then, that of
    the first, handed to all. From Python the command can be called as it is written, too.

    Args:
        function: the command.
        defaults: where a field's default is another for this command.
    """
    if function is None:
        return partial(options, **defaults)
    hints = get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    classes: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    made: dict[str, inspect.Parameter] = {}
    for name, plain in inspect.signature(function).parameters.items():
        if name not in classes:
            kind, typed = get_args(hints[name])
            made.setdefault(name, option(name, kind, typed, plain.default))
            continue
        kinds = get_type_hints(classes[name])
        for item in fields(classes[name]):
            if item.init and item.metadata.get("option", True):
                default = defaults.get(item.name, default_of(item))
                made.setdefault(
                    item.name,
                    option(item.name, kinds[item.name], declaration(item), default, item.metadata),
                )

    @wraps(function)
    def command(*settings: Any, **given: Any) -> Any:
        if settings or any(isinstance(given.get(name), cls) for name, cls in classes.items()):
            return function(*settings, **given)
        off = {name for name in given if given.get(f"no_{name}")}
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        given |= dict.fromkeys(off, False)
        called = {name: given[name] for name in hints if name not in classes}
        for name, cls in classes.items():
            names = [item.name for item in fields(cls) if item.init and item.name in given]
            called[name] = cls(**{field: given[field] for field in names})
        return function(**called)

    for name in [name for name, parameter in made.items() if parameter.default is False]:
        # `--no-NAME` of a flag that is off anyway: accepted, and it wins.
        hidden = typer.Option(f"--no-{name.replace('_', '-')}", hidden=True)
        made[f"no_{name}"] = option(f"no_{name}", bool, hidden, False)
    ordered = sorted(made.values(), key=lambda p: p.default is not p.empty)
    command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in ordered}
    return command


def default_of(item: Field[Any]) -> Any:
    """The default of a field, which may have none."""
    made = item.default_factory() if callable(item.default_factory) else item.default
    return inspect.Parameter.empty if made is MISSING else made


def declaration(item: Field[Any]) -> Any:
    """How typer lists a field: as argument or option, with its name, help and panel."""
    about, name = item.metadata, item.metadata.get("option", True)
    shown: Any = {"help": about.get("help") or None, "rich_help_panel": about.get("panel")}
    if about.get("argument"):
        return typer.Argument(metavar=about["argument"], **shown)
    return typer.Option(*([name] if isinstance(name, str) else []), **shown)


def declared(cls: Any, name: str) -> Any:
    """The declaration of a plain parameter that is handed on to a field of a settings class."""
    return declaration(cls.__dataclass_fields__[name])


def option(
    name: str, kind: Any, declared: Any, default: Any, about: Mapping[str, Any] = NOTHING
) -> inspect.Parameter:
    """The parameter of which typer makes an option or an argument.

    A Literal shows and completes its choices and is read by `one_of`, a tuple by `split`.
    """
    declared, flag = copy.copy(declared), f"--{name.replace('_', '-')}"
    argument = isinstance(declared, ArgumentInfo)
    parts = union_parts(kind)
    elements = [get_args(part)[0] for part in parts if get_origin(part) is tuple]
    literals = [part for part in (*elements, *parts) if get_origin(part) is Literal]
    choices = get_args(literals[0]) if literals else ()
    if elements and (argument or about.get("repeat")):
        kind, default = list[elements[0]], list(default) if default == () else default  # type: ignore[valid-type]
    elif elements or choices:
        read = about.get("parse") or (partial(one_of, flag, choices) if choices else elements[0])
        if int in parts:  # a word, or a number
            read = partial(word_or_number, flag, choices)
            declared.metavar, choices = "|".join(("N", *choices)), ()
        declared.parser = partial(split, flag, read) if elements else read
        kind = literals[0] if choices else str
        if len("|".join(choices)) > MOST_SHOWN:  # it would be broken anywhere
            declared.show_choices = False
            declared.help = f"{declared.help or ''} One of {', '.join(choices)}.".strip()
    elif any(get_origin(part) is Callable for part in parts):  # named `module:name`
        kind = str
    if isinstance(default, tuple):
        values = (f"{value:g}" if isinstance(value, float) else str(value) for value in default)
        default = ", ".join(values)
        declared.show_default = bool(default)
    if default is None:
        kind = kind | None
    if default is False and not declared.param_decls:  # there is nothing to switch off
        declared.param_decls = (flag,)
    annotation = Annotated[kind, declared]
    return inspect.Parameter(name, KEYWORD, default=default, annotation=annotation)


def one_of(flag: str, choices: tuple[str, ...], text: str) -> str:
    """The text, which must be one of the choices.

    Raises:
        ConfigError: it is none; the message names the nearest.
    """
    if text not in choices:
        raise ConfigError(unknown(flag, text, choices))
    return text


def word_or_number(flag: str, words: tuple[str, ...], text: str | int) -> str | int:
    """One of the words, or a whole number.

    Raises:
        ConfigError: neither; the message names the nearest word.
    """
    try:
        return text if text in words else int(text)
    except ValueError:
        raise ConfigError(unknown(flag, text, (*words, A_NUMBER))) from None


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
