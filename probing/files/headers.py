"""Files with one writer: whole or absent, and with a header that says what made them.

Every file of kfh carries a header: JSON under the key `kfh`, JSONL as its first line
`{"kfh": {…}}`, Parquet and safetensors as metadata under the key `kfh`. Readers accept
files without a header, since users bring their own.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import inspect
import json
import math
import os
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, SupportsFloat, cast

from probing.errors import ConfigError, DataError
from probing.files.reading import read_json

HEADER = "kfh"
SCHEMA = 1
PROBLEM_DIGITS = 16  # two of a million problems share a hash with a chance of 3e-8
# Kind of result → the file that holds it, and the kind that the file's header names.
RESULTS = {
    "probe": ("run.json", "probe run"),
    "head types": ("types.json", "head types"),
    "training": ("run.json", "training run"),
    "ablation": ("ablation.json", "ablation"),
    "stability": ("stability.json", "stability of heads"),
    "sample size": ("sample_size.json", "sample size"),
    "comparison": ("comparison.json", "comparison"),
    "comparison result": ("result.json", "comparison result"),
    "evaluation": ("eval.json", "evaluation"),
}
# What lies beside a `run.json`, where that is damaged, gone, or has no header.
BESIDE = {"probe": "sra.parquet", "training": "metrics.jsonl"}


def data_path(*parts: str) -> Path:
    """Path of a shipped data file: inside the installed wheel, else in the source tree.

    Raises:
        FileNotFoundError: the file is in neither place (a broken installation).
    """
    here = Path(__file__).parents[1]  # the package `probing`
    for root in (here / "data", here.parent / "data"):
        path = root.joinpath(*parts)
        if path.exists():
            return path
    raise FileNotFoundError(f"data/{'/'.join(parts)} is missing: reinstall kfh")


def kfh_version() -> str:
    """Version of the installed distribution, or `unknown` where it runs uninstalled."""
    try:
        return version("kfh")
    except PackageNotFoundError:
        return "unknown"


def file_header(kind: str, **inputs: Any) -> dict[str, Any]:
    """The header of a file of this `kind`: who made it, when, from what."""
    return {
        "kind": kind,
        "schema": SCHEMA,
        "version": kfh_version(),
        "command": " ".join([Path(sys.argv[0]).name, *map(shlex.quote, sys.argv[1:])]),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **inputs,
    }


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success move it there, on failure remove it.

    A reader sees the old file or the new one, never half of one. A link stays; its file is new.

    Raises:
        OSError: it cannot be written. Known before work is done: a folder, a device or a pipe has
            its name (IsADirectoryError), or a file has that of its folder (NotADirectoryError).
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(path))
    if path.exists() and not path.is_file():  # to move a file there would take its place
        raise OSError(errno.EINVAL, "is a device or a pipe, not a file", str(path))
    if path.parent.is_file():
        raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder", str(path.parent))
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: matplotlib and others choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_overwriting(out: Path | str, *inputs: Path | str | None) -> None:
    """Refuse to write a file over one that it is made from, under whatever name or link.

    Raises:
        ConfigError: `out` is one of the inputs; those that are None or no file are none.
    """
    for path in (Path(path) for path in inputs if path is not None):
        if path.exists() and Path(out).exists() and path.samefile(out):
            raise ConfigError(f"{out} is the input {path} and would be overwritten: choose another")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON, whole or not at all; what is no number becomes null."""
    with whole_file(path) as temporary:
        text = json.dumps(json_value(content), indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def json_value(value: Any, significant: int | None = None) -> Any:
    """The value as JSON has it: null for every float that is infinite or not a number.

    Args:
        value: of dictionaries, lists and tuples; what else it holds stays.
        significant: digits that floats keep; default all.
    """
    if isinstance(value, dict):
        return {key: json_value(inner, significant) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner, significant) for inner in value]
    if not isinstance(value, float):
        return value
    return json_number(value if significant is None else float(f"{value:.{significant}g}"))


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as `sha256:<hex>`; the file is streamed."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def text_hash(text: str) -> str:
    """SHA-256 of a text in UTF-8, as `sha256:<hex>`."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def problem_hash(text: str) -> str:
    r"""A problem text as 16 hexadecimal digits: the first of its SHA-256.

    Two texts that differ in white space or in the form of their characters alone (Unicode NFKC)
    are one problem.

    Example:
        >>> problem_hash("What is 2 + 2?")
        '38d46ad3618826cf'
        >>> problem_hash(" What is\n２ + ２? ") == problem_hash("What is 2 + 2?")
        True
    """
    return text_hash(normal_text(text)).removeprefix("sha256:")[:PROBLEM_DIGITS]


def normal_text(text: str) -> str:
    """A text in Unicode's form NFKC, its white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def read_object(path: Path, what: str = "") -> dict[str, Any]:
    """A JSON file that holds an object; `what` it should be read as goes into the message.

    Raises:
        DataError: it does not, or is not there.
    """
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds no JSON object")
    return content


def json_number(value: SupportsFloat | None, digits: int | None = None) -> float | None:
    """A float for JSON: null for what is infinite or not a number, which JSON has no word for.

    Args:
        value: the number; None stays None.
        digits: behind the point; default all.
    """
    if value is None or not math.isfinite(number := float(value)):
        return None
    return number if digits is None else round(number, digits)


def kind_of(folder: Path) -> tuple[str, ...]:
    """The kinds of results (`RESULTS`) that a folder holds, by the headers of its files.

    A file without a header (an older one) is taken by its name; of a `run.json` without one what
    lies beside it decides. Empty where the folder holds no result.
    """
    contents = {}
    for file in {file for file, _ in RESULTS.values()}:
        try:
            contents[file] = read_object(folder / file) if (folder / file).is_file() else None
        except DataError:
            contents[file] = {}
    return tuple(
        kind for kind, (file, _) in RESULTS.items() if _holds(folder, kind, contents[file])
    )


def _holds(folder: Path, kind: str, content: dict[str, Any] | None) -> bool:
    """Whether a file of this content makes its folder one of this kind; None: no such file."""
    header = (content or {}).get(HEADER)
    named = header.get("kind") if isinstance(header, dict) else None
    if named in {name for _, name in RESULTS.values()}:
        return bool(named == RESULTS[kind][1])
    if kind == "training" and "method" in (content or {}):
        return True
    return (folder / BESIDE[kind]).is_file() if kind in BESIDE else content is not None


def load_part(name: str) -> Callable[..., Any]:
    """A function of the user's by `module:name`, as an option takes it.

    Raises:
        ConfigError: no such module, or nothing in it of that name that can be called.
    """
    module, _, path = name.partition(":")
    try:
        part: Any = importlib.import_module(module)
        for attribute in path.split("."):
            part = getattr(part, attribute)
    except (AttributeError, ImportError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be imported as module:name ({error})") from error
    if not callable(part):
        raise ConfigError(f"{name} is no function, but {type(part).__name__}")
    return cast("Callable[..., Any]", part)


def part_json(part: Callable[..., Any]) -> dict[str, Any]:
    """`name` (module:name) and `hash` of the source of a function of the user's, for headers.

    The hash is None where there is no source, as of a function that is typed into a console.
    """
    name = f"{part.__module__}:{getattr(part, '__qualname__', type(part).__qualname__)}"
    try:
        source = inspect.getsource(part if hasattr(part, "__qualname__") else type(part))
    except (OSError, TypeError):
        return {"name": name, "hash": None}
    return {"name": name, "hash": text_hash(source)}
