"""What settings classes share: fields with help and bounds, their checks, JSON; and progress.

A settings class is a frozen dataclass whose fields are made by `choice`. What may be chosen stands
in the field's type, as a Literal; the command line takes its options from the same fields.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from probing.choices import METRICS
from probing.errors import ConfigError

A_NUMBER = "a number"  # among choices
MOST_LISTED = 40  # names that a message lists; TRL alone has hundreds of settings

# progress(name, total) is a context that gives advance(traces, tokens)
Progress = Callable[[str, int], AbstractContextManager[Callable[[int, int], None]]]


def no_progress(name: str, total: int) -> AbstractContextManager[Callable[[int, int], None]]:
    """No progress bar."""
    return nullcontext(lambda traces, tokens: None)


def choice(
    default: Any = MISSING,
    help: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    panel: str | None = None,
    option: str | bool = True,
    argument: str | None = None,
    repeat: bool = False,
    parse: Callable[[str], Any] | None = None,
    factory: Any = MISSING,
) -> Any:
    """A field of a settings class.

    Args:
        default: its value where none is given; without one the field is required.
        help: one line, shown by `kfh COMMAND --help` and in the reference.
        least, most: bounds of a number, both allowed values.
        panel: heading under which the command line lists it.
        option: its name on the command line, where that is not the field's; False: none.
        argument: how the command line names it, where it is an argument there and no option.
        repeat: the option of a tuple is given once for each value, not with commas between.
        parse: reads the text of a value, of a tuple that of each; else its type does.
        factory: makes the default, where it is a list or a mapping.
    """
    about: dict[str, Any] = {"help": help, "least": least, "most": most, "panel": panel}
    about |= {"option": option, "argument": argument, "repeat": repeat, "parse": parse}
    return field(default=default, default_factory=factory, metadata=about)


def like(cls: Any, name: str, default: Any) -> Any:
    """The field of another settings class, with another default."""
    return field(default=default, metadata=cls.__dataclass_fields__[name].metadata)


def unknown(kind: str, name: object, known: Iterable[object]) -> str:
    """The message for a name that does not exist: the nearest that do, and all if they are few.

    Example:
        >>> unknown("metric", "sar", ["sra", "gating"])
        "unknown metric 'sar'; did you mean sra? Choose sra, gating"
    """
    names = [str(item) for item in known]
    near = difflib.get_close_matches(str(name), names, 3, cutoff=0.5)
    hints = [f"did you mean {' or '.join(near)}?"] if near else []
    if len(names) <= MOST_LISTED:
        hints.append(f"{'Choose' if near else 'choose'} {', '.join(names)}")
    return f"unknown {kind} {name!r}{'; ' if hints else ''}{' '.join(hints)}"


def union_parts(kind: Any) -> tuple[Any, ...]:
    """The members of a union type; of any other type itself alone."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def literals(cls: type) -> dict[str, tuple[Any, ...]]:
    """What may be chosen, by field: the values of its Literal, or of that of a tuple's elements.

    None is among them where the field is optional. Numbers that are taken too are not.
    """
    found = {}
    for name, kind in get_type_hints(cls).items():
        parts = union_parts(kind)
        elements = [get_args(part)[0] for part in parts if get_origin(part) is tuple]
        kinds = [part for part in (*parts, *elements) if get_origin(part) is Literal]
        if values := [value for part in kinds for value in get_args(part)]:
            found[name] = (*values, *(None for part in parts if part is type(None)))
    return found


def check(settings: Any) -> None:
    """Check every field of a settings object: its choices and its bounds. For `__post_init__`.

    Of a tuple every value is checked.

    Raises:
        ConfigError: a value that is none of the choices (with the nearest), or out of bounds.
    """
    known, kinds = literals(type(settings)), get_type_hints(type(settings))
    for item in fields(settings):
        given = getattr(settings, item.name)
        counts = int in union_parts(kinds[item.name])  # a number may stand for a word
        for value in given if isinstance(given, tuple) else (given,):
            if counts and type(value) is int:
                pass
            elif item.name in known and value not in known[item.name]:
                names = [choice for choice in known[item.name] if choice is not None]
                raise ConfigError(unknown(item.name, value, [*names, *[A_NUMBER] * counts]))
            least, most = item.metadata.get("least"), item.metadata.get("most")
            if value is None or isinstance(value, str):
                continue
            if least is not None and not value >= least:  # a NaN is out of bounds too
                raise ConfigError(f"{item.name} must be at least {least}, is {value}")
            if most is not None and not value <= most:
                raise ConfigError(f"{item.name} must be at most {most}, is {value}")


def check_keys(cls: type, given: Mapping[str, Any], where: str = "") -> None:
    """Refuse keys that are no field of a settings class.

    Raises:
        ConfigError: an unknown key, with the nearest known one; `where` stands before it.
    """
    known = [item.name for item in fields(cls)]
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}{': ' if where else ''}{unknown('setting', key, known)}")


def to_json(settings: Any) -> dict[str, Any]:
    """All settings as they stand in a file: paths as text, the rest as it is."""
    values = ((item.name, getattr(settings, item.name)) for item in fields(settings))
    return {name: str(value) if isinstance(value, Path) else value for name, value in values}


def check_metric(metric: str) -> None:
    """Raise ConfigError for a metric that does not exist."""
    if metric not in METRICS:
        raise ConfigError(unknown("metric", metric, METRICS))
