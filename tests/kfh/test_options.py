"""Options made from settings classes: kinds of fields, defaults, choices, panels, names."""

from __future__ import annotations

import doctest
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

import kfh.options
from kfh.options import declared, options
from probing.errors import ConfigError
from probing.settings import check, choice, like

Kind = Literal["top", "greedy"]


def pair(text: str) -> tuple[int, ...]:
    """A head as the viewer's option has it."""
    return tuple(map(int, text.split(".")))


@dataclass(frozen=True)
class Settings:
    folder: Path = choice(help="Where.", argument="DIR")
    data: tuple[str, ...] = choice(help="Repeatable.", repeat=True)
    kind: Kind = choice("top", "How.", panel="Ranking")
    maybe: Kind | None = choice(None, "Or not.")
    kinds: tuple[Kind, ...] = choice(("top", "greedy"), "All of them.")
    sizes: tuple[float, ...] = choice((0.5, 2.0), "Sizes.", least=0)
    heads: tuple[tuple[int, int], ...] = choice((), "Heads.", parse=pair)
    names: tuple[str, ...] | None = choice(None, "Names.")
    flag: bool = choice(False, "Off.")
    resume: bool = choice(True, "On.")
    min_chars: int = choice(80, "Least.", least=0)
    hidden: int = choice(7, option=False)
    path: str = choice("x", "Other name.", option="--traces")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Less(Settings):
    min_chars: int = like(Settings, "min_chars", 20)


def run(function: Any, *arguments: str) -> Any:
    """Call the command with these words."""
    app = typer.Typer(add_completion=False)
    app.command()(function)
    result = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "80"}, catch_exceptions=False)
    assert not result.exit_code, result.output
    return result.output


def given(*arguments: str, **defaults: Any) -> tuple[Settings, Less, dict[str, Any]]:
    """What the function of a command is given."""
    told: list[Any] = []

    @options(**defaults)
    def command(
        config: Settings,
        *,
        formats: Annotated[tuple[Kind, ...], typer.Option(help="Formats.")] = ("top",),
        min_chars: Annotated[int, declared(Settings, "min_chars")] = 1,
        less: Less,
    ) -> None:
        told.extend([config, less, {"formats": formats, "min_chars": min_chars}])

    run(command, "here", "--data", "a", *arguments)
    return tuple(told)  # type: ignore[return-value]


def test_every_kind_of_field_is_an_option() -> None:
    config, less, plain = given()
    assert config == Settings(Path("here"), ("a",)) and plain["formats"] == ("top",)
    assert less.min_chars == plain["min_chars"] == 80, "one option, the first's, handed to all"
    words = "--data b,c --kind greedy --maybe top --kinds greedy --sizes 1, --heads 2.3,10.0"
    more = "--names x --flag --no-resume --min-chars 5 --traces y --formats greedy,top"
    config, less, plain = given(*words.split(), *more.split())
    expected = Settings(
        Path("here"), ("a", "b,c"), "greedy", "top", ("greedy",), (1.0,), ((2, 3), (10, 0)),
        ("x",), True, False, 5, path="y",
    )  # fmt: skip
    assert config == expected and less.min_chars == plain["min_chars"] == 5
    assert plain["formats"] == ("greedy", "top")
    assert given(kind="greedy")[0].kind == "greedy"
    assert not given("--no-flag")[0].flag and not given("--flag", "--no-flag")[0].flag
    assert given("--heads", "")[0].heads == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--kind gredy", r"unknown --kind 'gredy'; did you mean greedy\? Choose top, greedy"),
        ("--maybe gredy", "unknown --maybe 'gredy'; did you mean greedy"),
        ("--kinds top,gredy", "unknown --kinds 'gredy'; did you mean greedy"),
        ("--formats gredy", "unknown --formats 'gredy'; did you mean greedy"),
        ("--sizes 1,a", "--sizes '1,a': write numbers, comma between"),
        ("--sizes -1", "sizes must be at least 0, is -1"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_nearest(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        given(*words.split())


def test_help_has_the_fields_texts_choices_and_panels() -> None:
    @options
    def command(config: Settings) -> None: ...

    text = run(command, "--help")
    assert "DIR" in text and "Where." in text and "[default: top, greedy]" in text
    assert "Ranking" in text and "<top|greedy>" in text and "[default: 0.5, 2]" in text
    assert "--no-resume" in text and "--no-flag" not in text and "hidden" not in text


def test_a_command_can_be_called_as_it_is_written() -> None:
    @options
    def command(config: Settings, number: Annotated[int, typer.Option()] = 3) -> int:
        return config.min_chars + number

    settings = Settings(Path("here"), ())
    assert command(settings) == command(config=settings) == 83


def test_worked_example() -> None:
    result = doctest.testmod(kfh.options)
    assert result.attempted and not result.failed
