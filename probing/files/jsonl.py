"""JSONL files: one reader, one append-only store."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from probing.errors import ConfigError, DataError
from probing.files.headers import HEADER, file_header, whole_file
from probing.files.reading import parse_json

Row = dict[str, Any]
HEADING = f'{{"{HEADER}"'.encode()


class LineStore:
    """A file that grows by lines: a header, then groups of lines, each on disk when `add` returns.

    One process writes. What a kill left unfinished is cut off when the file is opened again; what
    a full disk left unfinished is cut off at once.

    Args:
        path: the file (JSONL).
        kind: of its header: labels, outcomes, responses, …
        header: what else its header says. The file is gone on with only where all of it is the
            same; a message names the entries, and those of `settings`, that differ.

    Attributes:
        cut: number of lines that `open` cut off.
    """

    def __init__(self, path: Path, kind: str, header: Mapping[str, Any] | None = None) -> None:
        self.path, self.kind, self.cut = path, kind, 0
        self.header: Row = json.loads(json.dumps(dict(header or {})))
        self._size = 0

    def open(self, resume: bool, take: Callable[[Row], object] = lambda row: True) -> bool:
        """Read what is there, or begin anew; whether there is something to go on with.

        Args:
            resume: go on with the file, if there is one.
            take: is called with each line behind the header, in order, and says whether the lines
                that it got so far are whole groups. The file is cut back to where it last said so.
                A KeyError, TypeError or ValueError that it raises means a damaged line.

        Raises:
            ConfigError: the file was made with other settings; the message says which.
            DataError: it is of another kind, or a line that was not cut short is damaged.
        """
        self.cut = 0
        self._size = self._read(take) if resume and self.path.exists() else 0
        if self._size:
            os.truncate(self.path, self._size)
            return True
        header = _line({HEADER: file_header(self.kind, **self.header)})
        with whole_file(self.path) as temporary:
            temporary.write_bytes(header)
        self._size = len(header)
        return False

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append a group of lines: all of them, or none where they cannot be written.

        Raises:
            DataError: something else has written to the file.
            OSError: the file cannot be written, as on a full disk.
        """
        lines = b"".join(map(_line, rows))
        with self.path.open("r+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END) != self._size:
                raise DataError(f"{self.path}: something else writes to it; one process may")
            try:
                rest = memoryview(lines)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(self._size)
                raise
        self._size += len(lines)

    def _read(self, take: Callable[[Row], object]) -> int:
        """Hand over the lines; the bytes up to the end of the last whole group."""
        good = kept = number = 0
        try:
            for number, end, row in _objects(self.path, with_end=True):
                if row is None:
                    continue
                if number == 1:
                    self._check(row)
                elif not take(row):
                    continue
                good, kept = end, number
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self.path, number, error) from error
        if not good and number and not self.path.read_bytes().startswith(HEADING):
            raise DataError(f"{self.path}: holds no {self.kind} of kfh; choose another --out")
        self.cut = number - kept
        return good

    def _check(self, row: Row) -> None:
        """Refuse a file of another kind, or of other settings."""
        header = row.get(HEADER)
        if not isinstance(header, dict) or header.get("kind", self.kind) != self.kind:
            raise DataError(f"{self.path}: holds no {self.kind} of kfh; choose another --out")
        was, now = ({key: of.get(key) for key in self.header} for of in (header, self.header))
        then, today = (of.pop("settings", None) or {} for of in (was, now))
        refuse_other_settings(self.path, self.kind, {**was, **then}, {**now, **today})


def read_lines(path: Path) -> tuple[list[Row], bool]:
    """The objects of a JSONL file without its header, and whether its last line is torn.

    A line without its end is what a killed writer leaves; it is left out.

    Raises:
        DataError: the file cannot be read, or a line that has its end holds no object.
    """
    try:
        rows = [row for _, _, row in _objects(path)]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    return [row for row in rows if row is not None and HEADER not in row], None in rows


def _objects(path: Path, *, with_end: bool = False) -> Iterator[tuple[int, int, Row | None]]:
    """The number of each line, the bytes up to its end, its object; None: it was cut short.

    Args:
        with_end: a last line without its end was cut short, even if it can be read.

    Raises:
        DataError: a line that has its end holds no object.
    """
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            end += len(line)
            if not line.strip():
                continue
            ended = line.endswith(b"\n")
            try:
                row = parse_json(line) if ended or not with_end else None
            except ValueError as error:
                if ended:
                    raise _damaged(path, number, error) from error
                row = None
            if ended and not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: no JSON object")
            yield number, end, row


def _damaged(path: Path, number: int, error: Exception) -> DataError:
    return DataError(
        f"{path}, line {number}: damaged ({error!r}); remove the file, or begin anew with "
        "--no-resume"
    )


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()


def refuse_other_settings(
    path: Path,
    what: str,
    held: Mapping[str, Any],
    wanted: Mapping[str, Any],
    by: str = "now asked for",
    advice: str = "Choose another --out, or begin anew with --no-resume.",
) -> None:
    """Refuse to go on with a file whose content was made with other settings.

    The `id` that older files have of their model is not looked at: its folder may have moved, and
    the fingerprints decide. Nor are `batch_tokens`: what fits a machine decides nothing.

    Args:
        path: of the file or folder, for the message.
        what: it holds: scores, labels, responses, …
        held, wanted: its settings and the present ones.
        by, advice: whose the wanted ones are, and what to do, in the message.

    Raises:
        ConfigError: they differ; the message names each setting that does, with both values.
    """
    wanted = json.loads(json.dumps(wanted))  # as they come back from a file
    held, wanted = _deciding(held), _deciding(wanted)
    differing = sorted(k for k in {*held, *wanted} if held.get(k, ...) != wanted.get(k, ...))
    if differing:
        was = ", ".join(f"{key} {held.get(key)!r:.100}" for key in differing)
        now = ", ".join(f"{key} {wanted.get(key)!r:.100}" for key in differing)
        raise ConfigError(f"{path} holds {what} made with {was}; {by} {now}. {advice}")


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    deciding = {key: v for key, v in settings.items() if key != "batch_tokens"}
    if isinstance(model := settings.get("model"), dict):
        deciding["model"] = {key: v for key, v in model.items() if key != "id"}
    return deciding
