"""A source as records: files of any common kind, a folder of them, standard input, the hub.

Records come one by one, in an order that is the same each time; what cannot be read of a record
comes as a `BadLine` in its place.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from probing.errors import ConfigError, DataError
from probing.files.headers import HEADER
from probing.files.reading import BadLine, json_lines, opened, parse_json, read_json
from probing.files.tables import READ, damaged

STDIN = "-"
HUB = re.compile(r"hub:([^@:]+)(?:@([^:]+))?(?::([^:]+))?")
PACKED = (".gz", ".zst")
KINDS = (".jsonl", ".ndjson", ".json", ".parquet", ".eval")
ROWS = 64  # of a Parquet file at a time
BLOCK = 1 << 20  # characters of a JSON array
ANCHORS = {"problem": "problem.json", "base_solution": "base_solution.json"}
CHUNKS = "chunks_labeled.json"
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_DECODER = json.JSONDecoder()
Found = tuple[str, Any]  # where it stands; the record, or a BadLine


def source_records(source: str) -> Iterator[Found]:
    """The records of a source, each with the place where it stands.

    Args:
        source: `-`, `hub:owner/name[@config][:split]`, a folder, or a file: JSON lines, a JSON
            array or object, Parquet, an inspect_ai log; the texts also in gzip or zstd.

    Raises:
        DataError: it is not there, damaged as a whole, or holds no record.
        ConfigError: it needs a library that is not installed.
    """
    if source == STDIN:
        yield from _text_records("standard input", sys.stdin.buffer)
    elif source.startswith("hub:"):
        yield from hub_records(source)
    elif (path := Path(source).expanduser()).is_dir():
        yield from folder_records(path)
    elif path.is_file():
        yield from file_records(path)
    else:
        raise DataError(f"{source}: no such file or folder")


def kind_of_file(path: Path) -> str:
    """The suffix that says what a file is, without that of its packing."""
    name = path.name.lower()
    for packing in PACKED:
        name = name.removesuffix(packing)
    return Path(name).suffix


def folder_records(folder: Path) -> Iterator[Found]:
    """The records of all files of a folder, by name; of Thought Anchors, a record a problem.

    Raises:
        DataError: no file of a kind that is known.
    """
    anchors = sorted(folder.rglob(CHUNKS))
    for chunks in anchors:
        try:
            parts = {name: read_json(chunks.with_name(file)) for name, file in ANCHORS.items()}
            labeled = read_json(chunks)
        except DataError as error:
            yield str(chunks.parent), BadLine("missing file", str(error))
            continue
        about = {"id": str(chunks.parent.relative_to(folder)) if chunks.parent != folder else None}
        yield str(chunks.parent), {**about, **parts, "chunks_labeled": labeled}
    if anchors:
        return
    files = [path for path in sorted(folder.rglob("*")) if kind_of_file(path) in KINDS]
    files = [path for path in files if path.is_file() and not path.name.startswith(".")]
    if not files:
        raise DataError(f"{folder}: no file that is {', '.join(KINDS)} (.gz, .zst)")
    for path in files:
        yield from file_records(path)


def file_records(path: Path) -> Iterator[Found]:
    """The records of a file; errors as for `source_records`."""
    kind = kind_of_file(path)
    if kind == ".parquet":
        yield from _parquet(path)
    elif kind == ".eval":
        yield from _inspect(path)
    else:
        with opened(path) as file:
            yield from _text_records(str(path), file, whole=kind == ".json")


def _text_records(name: str, file: BinaryIO, whole: bool = False) -> Iterator[Found]:
    """The records of JSON lines, of an array, or of a file that is one object (`whole`)."""
    start = cast("io.BufferedReader", file).peek(64)[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        yield from _array(name, file)
        return
    if whole:
        data = file.read()
        try:
            content = parse_json(data)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise DataError(f"{name}: not JSON ({error})") from error
            file = io.BufferedReader(cast("Any", io.BytesIO(data)))
        except ValueError as error:
            raise DataError(f"{name}: {error}") from error
        else:
            yield from _within(name, content)
            return
    for number, text in json_lines(name, file):
        where = f"{name}, line {number}"
        try:
            record = parse_json(text)
        except UnicodeError as error:
            yield where, BadLine("invalid Unicode", f"not a text in UTF-8 ({error})")
        except ValueError as error:
            yield where, BadLine("not JSON", f"not JSON ({error})")
        else:
            if not (isinstance(record, Mapping) and HEADER in record and "id" not in record):
                yield where, as_record(record)


def as_record(value: Any) -> Any:
    """An object as it is, a string as one, and a BadLine of anything else."""
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, Mapping):
        return value
    return BadLine("not JSON", f"a record must be an object or a string, is {value!r:.40}")


def _within(name: str, content: Any) -> Iterator[Found]:
    """The records of a whole JSON file: one, or those of a log or a table in it."""
    rows = [content]
    for field in ("samples", "rows", "data"):  # inspect_ai; the hub's viewer; others
        if isinstance(content, Mapping) and isinstance(content.get(field), list):
            rows = [
                r["row"] if isinstance(r, Mapping) and "row" in r else r for r in content[field]
            ]
            break
    for number, row in enumerate(rows):
        row = row["row"] if isinstance(row, Mapping) and "row" in row else row
        yield f"{name}, record {number}", as_record(row)


def _array(name: str, file: BinaryIO) -> Iterator[Found]:
    """The elements of a JSON array, read block by block.

    Raises:
        DataError: it is no array, or no UTF-8.
    """
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    try:
        buffer, place, number, block = text.read(BLOCK).lstrip().removeprefix("["), 0, 0, BLOCK
        while True:
            place = cast("re.Match[str]", _BETWEEN.match(buffer, place)).end()
            if buffer.startswith("]", place):
                return
            try:
                end = _DECODER.raw_decode(buffer, place)[1]
                whole = end < len(buffer)  # a number might go on
            except (ValueError, RecursionError):
                whole = False
            if whole:
                yield f"{name}, record {number}", _element(buffer[place:end])
                place, number = end, number + 1
                continue
            more = text.read(block)
            if not more:
                raise DataError(f"{name}: the array is cut short or damaged at record {number}")
            buffer, place = buffer[place:] + more, 0
            block = max(block, len(buffer))
    except UnicodeError as error:
        raise DataError(f"{name}: not a text in UTF-8 ({error})") from error
    finally:
        text.detach()


def _element(text: str) -> Any:
    try:
        return as_record(parse_json(text))
    except UnicodeError as error:
        return BadLine("invalid Unicode", str(error))
    except ValueError as error:
        return BadLine("not JSON", str(error))


def _parquet(path: Path) -> Iterator[Found]:
    import pyarrow.parquet as pq

    number = 0
    with damaged(path, "make or fetch it again"):
        for batch in pq.ParquetFile(path, **READ).iter_batches(batch_size=ROWS):
            rows = batch.to_pylist()
            for row in rows:
                yield f"{path}, row {number}", row
                number += 1


def _inspect(path: Path) -> Iterator[Found]:
    """The samples of an inspect_ai log, through its own reader."""
    try:
        from inspect_ai.log import read_eval_log_samples
    except ImportError as error:
        raise ConfigError(
            f"{path}: an inspect_ai log; pip install inspect_ai, or turn it into JSON with "
            "inspect log convert --to json"
        ) from error
    try:
        for number, sample in enumerate(
            read_eval_log_samples(str(path), all_samples_required=False)
        ):
            yield f"{path}, sample {number}", sample.model_dump(mode="json")
    except Exception as error:  # of many libraries
        raise DataError(f"{path}: cannot be read as an inspect_ai log: {error}") from error


def hub_parts(spec: str) -> tuple[str, str | None, str | None]:
    """Name, configuration and split of `hub:owner/name[@config][:split]`.

    Raises:
        DataError: it is none.
    """
    parts = HUB.fullmatch(spec)
    if parts is None:
        raise DataError(f"{spec}: write hub:owner/name[@config][:split]")
    name, config, split = parts.groups()
    return name, config, split


def hub_records(spec: str) -> Iterator[Found]:
    """The rows of a data set of the hub (or a folder), streamed; errors as for `source_records`."""
    from datasets import load_dataset

    name, config, split = hub_parts(spec)
    try:
        data = load_dataset(name, config, split=split, streaming=True)
        if isinstance(data, dict):
            if len(data) > 1:
                names = ", ".join(f":{key}" for key in data)
                raise DataError(f"{spec}: which split? add one of {names}")
            data = next(iter(data.values()))
        for number, row in enumerate(cast("Any", data)):
            yield f"{spec}, row {number}", row
    except DataError:
        raise
    except Exception as error:  # hub, network and formats: of many libraries
        raise DataError(f"{spec}: cannot be loaded: {error}") from error
