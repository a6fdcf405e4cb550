"""The folder of a finished probe: what `run.json` and `sra.parquet` must hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from probing.choices import METRICS
from probing.errors import DataError
from probing.files.headers import HEADER, read_object
from probing.files.reading import shaped
from probing.files.tables import read_columns

Settings = TypeVar("Settings", bound=Any)
Card = TypeVar("Card")
ENDS = ("", "_low", "_high")
# What of a head is shown wherever a probe is.
COLUMNS = (
    *(f"{metric}{end}" for metric in METRICS for end in (*ENDS, "_select", "_held_out")),
    *("sra_p", "balanced_p", "contrast_essential", "contrast_redundant"),
)


@dataclass(frozen=True)
class Counts:
    """What `counts` of `run.json` must hold; more may stand there."""

    read: int
    used: int
    ranked: int
    pairs: int
    beyond_context: int
    select_traces: list[str]
    held_out_traces: list[str]
    steps: dict[str, int]
    left_out: dict[str, int]
    bad_lines: dict[str, int]
    problems: int | None = None
    problem_of: dict[str, str] | None = None


@dataclass(frozen=True)
class Point:
    """What a point of a curve must hold; figures of every metric stand beside it."""

    heads: int
    added: tuple[int, int]


@dataclass(frozen=True)
class Chance:
    """The best head by chance in a metric."""

    mean: float | None
    q95: float | None


@dataclass(frozen=True)
class RunFile:
    """What `run.json` must hold; a part that older folders lack has a default."""

    counts: Counts
    controls: list[dict[str, float | str | None]]
    curves: dict[str, list[Point]]
    null: dict[str, Chance]
    set_caveats: list[str] | None = None
    scorers: dict[str, dict[str, Any]] | None = None
    speed: dict[str, float] | None = None


def read_ranking(
    folder: Path, settings: type[Settings], card: type[Card]
) -> tuple[dict[str, Any], Settings, Card, pd.DataFrame]:
    """The content of `run.json`, the settings and the model in it, and the table of heads.

    Args:
        folder: of the probe.
        settings, card: the classes of the settings and of what identifies a model.

    Raises:
        DataError: no finished probe, or a damaged one; the message says which part.
    """
    advice = f"run `kfh probe --out {folder}` first, or again"
    for name in ("run.json", "sra.parquet"):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: no finished probe ({name} is missing); {advice}")
    path = folder / "run.json"
    run = read_object(path)
    try:
        config, model = _checked(run, settings), shaped(card, run.get("model"))
    except ValueError as error:
        raise DataError(f"{path}: damaged; probe again ({error})") from error
    table = read_columns(folder / "sra.parquet", advice)
    try:
        heads = _check_table(table)
        for way, points in run["curves"].items():
            if any(tuple(point["added"]) not in heads for point in points):
                raise ValueError(f"curves.{way}: a head that sra.parquet does not have")
    except ValueError as error:
        raise DataError(f"{folder}: damaged; probe again ({error})") from error
    return run, config, model, table


def _checked(run: dict[str, Any], settings: type[Settings]) -> Settings:
    """The settings in a run file of the right form.

    Raises:
        ValueError: it has another; the message says where.
    """
    shaped(RunFile, run)
    if not isinstance(run.get("config"), dict) or not isinstance(run.get(HEADER, {}), dict):
        raise ValueError("config or header: no object")
    known = {item.name for item in fields(settings)}  # older ones may hold more
    config = shaped(settings, {name: v for name, v in run["config"].items() if name in known})
    for number, row in enumerate(run["controls"]):
        if not isinstance(row.get("control"), str):
            raise ValueError(f"controls.{number}: no name")
        others = {name: value for name, value in row.items() if name != "control"}
        _numbers(others, f"controls.{number}", METRICS, ENDS)
    for way, points in run["curves"].items():
        for number, point in enumerate(points):
            figures = {k: v for k, v in point.items() if k not in ("heads", "added")}
            _numbers(figures, f"curves.{way}.{number}", METRICS, (*ENDS, "_select"))
    if not run["curves"].get(config.select) or config.top < 1:
        raise ValueError(f"curves: none of {config.select}")
    return config


def _numbers(
    values: Mapping[str, Any], where: str, metrics: tuple[str, ...], ends: tuple[str, ...]
) -> None:
    """Raise ValueError where a value is no number, or a figure of SRA is missing."""
    for name in (f"{metric}{end}" for metric in metrics for end in ends):
        if name not in values:
            raise ValueError(f"{where}: no {name}")
    for name, value in values.items():
        if isinstance(value, (bool, str)) or (value is None and name == "sra"):
            raise ValueError(f"{where}.{name}: {value!r:.40} is no number")


def _check_table(table: pd.DataFrame) -> set[tuple[int, int]]:
    """The heads of a table of the right form.

    Raises:
        ValueError: it has another; the message says where.
    """
    if missing := [name for name in ("layer", "head", *COLUMNS) if name not in table]:
        raise ValueError(f"sra.parquet: no column {missing[0]}")
    for name in table:
        kinds = "iu" if name in ("layer", "head") else "fiu"
        if table[name].dtype.kind not in kinds:
            raise ValueError(f"sra.parquet: column {name} of {table[name].dtype}")
    heads = set(map(tuple, table[["layer", "head"]].to_numpy().tolist()))
    if not len(table) or len(heads) < len(table) or table[["layer", "head"]].to_numpy().min() < 0:
        raise ValueError("sra.parquet: no head, or one twice, or of no layer")
    if not np.isfinite(table["sra"].to_numpy(float)).all():
        raise ValueError("sra.parquet: an SRA that is no number")
    return heads
