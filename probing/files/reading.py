"""What others wrote, read with care: JSON and lines of it, plain or in gzip.

Whatever stands in a file, only a DataError (the file) or a ValueError (a text) comes out.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from probing.errors import ConfigError, DataError

DEPTH = 100  # of lists and objects in each other; Python's own limit is some hundreds
# How such files begin.
GZIP, ZSTD, UTF16 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", (b"\xff\xfe", b"\xfe\xff")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half a character, unless the other half follows
AS_LINES = "write one object a line, for instance with jq -c '.[]' FILE > FILE.jsonl"
Kind = TypeVar("Kind")


class BadLine(DataError):
    """A line that is no usable trace; `kind` is the reason in two or three words."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def parse_json(text: str | bytes) -> Any:
    """The content of a JSON text; a byte order mark before it is passed over.

    Raises:
        UnicodeError: bytes that are no UTF-8, or half a character (a lone surrogate).
        ValueError: not JSON, or nested more than 100 deep.
    """
    text = (text.decode() if isinstance(text, bytes) else text).removeprefix("\ufeff")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {DEPTH} deep") from None
    if _deeper(content, DEPTH):
        raise ValueError(f"nested more than {DEPTH} deep")
    if SURROGATE.search(text) or not text.isascii():
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UnicodeError(f"half a character, {error.object[error.start]!r}") from None
    return content


def _deeper(content: Any, depth: int) -> bool:
    """Whether lists and objects lie in each other more than `depth` deep."""
    level = [content]
    for _ in range(depth + 1):
        level = [
            item
            for part in level
            if isinstance(part, (dict, list))
            for item in (part.values() if isinstance(part, dict) else part)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True


def parse_line(text: str | bytes) -> dict[str, Any]:
    """The object of a line.

    Raises:
        BadLine: it is not JSON, or no object; no UTF-8, or half a character in it.
    """
    try:
        line = parse_json(text)
    except UnicodeError as error:
        raise BadLine("invalid Unicode", f"not a text in UTF-8 ({error})") from error
    except ValueError as error:
        raise BadLine("not JSON", f"not JSON ({error})") from error
    if not isinstance(line, dict):
        raise BadLine("not JSON", f"a line must be a JSON object, is {type(line).__name__}")
    return line


def line_id(line: dict[str, Any]) -> str:
    """The id of a line; a whole number is read as its digits.

    Raises:
        BadLine: it has none, or one that is neither text nor whole number.
    """
    value = line.get("id")
    if value is None:
        raise BadLine("missing field", "the field 'id' is missing")
    if type(value) not in (str, int):
        raise BadLine("wrong type", f"'id' must be str, is {value!r:.40}")
    return str(value)


def read_json(path: Path, what: str = "") -> Any:
    """The content of a JSON file; `what` it should be read as goes into the message.

    Raises:
        DataError: it is not there, or no JSON in UTF-8.
    """
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        words = " ".join(["cannot be read", what]).strip()
        raise DataError(f"{path}: {words} ({error})") from error


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to be read as bytes, unpacked where it is gzip or zstd.

    Raises:
        DataError: it cannot be read, here or in the block; its packing is damaged.
        ConfigError: zstd, and nothing that unpacks it is installed.
    """
    with readable(path), path.open("rb") as file:
        start = file.peek(4)[:4]  # by what it begins with, too: a name may lie
        if path.suffix == ".gz" or start[:2] == GZIP:
            yield gzip.GzipFile(fileobj=file)  # type: ignore[misc]
        elif start == ZSTD:
            with _unpacked(path, file) as unpacked:
                yield unpacked
        else:
            yield file


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What reading bytes raises, as a DataError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: damaged gzip, not a text file ({error}); make or fetch it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextmanager
def _unpacked(path: Path, file: BinaryIO) -> Iterator[BinaryIO]:
    """A zstd file unpacked, through the library that is installed; part of Python from 3.14 on."""
    for name in ("compression.zstd", "zstandard"):
        with suppress(ImportError):
            zstd = import_module(name)
            break
    else:
        raise ConfigError(f"{path}: zstd; pip install zstandard, or unpack it (zstd -d)")
    try:
        yield io.BufferedReader(zstd.open(file))
    except zstd.ZstdError as error:
        raise DataError(f"{path}: damaged zstd ({error}); make or fetch it again") from error


def text_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a JSONL file with their numbers, unpacked where it is packed; none is empty.

    Raises:
        DataError: it cannot be read; damaged gzip; not JSON lines but an array, or UTF-16.
        ConfigError: see `opened`.
    """
    with opened(path) as file:
        yield from json_lines(str(path), file)


def json_lines(name: str, file: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers; none is empty.

    Args:
        name: of the file, for messages.
        file: its lines.

    Raises:
        DataError: not JSON lines but an array, or UTF-16.
    """
    first = True
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        if first:
            _check_first(name, line.removeprefix(b"\xef\xbb\xbf").strip())
        first = False
        yield number, line


def _check_first(path: str, line: bytes) -> None:
    """Refuse what is no file of lines, by its first line."""
    if line.startswith(UTF16):
        raise DataError(f"{path}: written in UTF-16; save it as UTF-8")
    if line.startswith(b"["):
        raise DataError(f"{path}: a JSON array, not JSON lines; {AS_LINES}")


def shaped(kind: type[Kind], content: Any) -> Kind:
    """A part of a JSON file as a type says: a dataclass, a TypedDict, a list of texts and so on.

    Numbers are whole where the type says int, and finite; a list may be a tuple there.

    Raises:
        ValueError: it is none; the message says where in the part, and what is wrong.
    """
    from pydantic import ValidationError

    text = json.dumps(content, allow_nan=False)
    try:
        found: Kind = _adapter(cast("Any", kind)).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{where}: {first['msg']}, is {first['input']!r:.60}") from None
    return found


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> Any:
    """What checks a type, made once; pydantic takes a while to import, and to make one."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
