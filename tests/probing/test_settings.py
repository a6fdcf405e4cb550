"""Settings classes: choices, bounds, unknown keys, JSON."""

from __future__ import annotations

import doctest
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

import probing.settings
from probing.errors import ConfigError
from probing.settings import check, check_keys, choice, to_json


@dataclass(frozen=True)
class Settings:
    out: Path
    kind: Literal["top", "greedy"] = choice("top", "How heads are picked.")
    other: Literal["a", "b"] | None = choice(None, "May be left out.")
    number: int = choice(3, "Of heads.", least=1, most=9)

    def __post_init__(self) -> None:
        check(self)


def test_worked_example() -> None:
    result = doctest.testmod(probing.settings)
    assert result.attempted and not result.failed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "gredy"}, "unknown kind 'gredy'; did you mean greedy\\? Choose top, greedy"),
        ({"kind": None}, "unknown kind None"),
        ({"other": "c"}, "unknown other 'c'; choose a, b"),
        ({"number": 0}, "number must be at least 1, is 0"),
        ({"number": float("nan")}, "number must be at least 1"),
        ({"number": 10}, "number must be at most 9, is 10"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(Path("x"), **given)


def test_keys_and_json() -> None:
    settings = Settings(Path("x"), other="b")
    assert to_json(settings) == {"out": "x", "kind": "top", "other": "b", "number": 3}
    check_keys(Settings, {"kind": "top"})
    with pytest.raises(ConfigError, match=r"a\.yaml: unknown setting 'nubmer'; did you mean numb"):
        check_keys(Settings, {"nubmer": 1}, "a.yaml")
