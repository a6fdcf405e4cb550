"""JSONL files: one reader, one append-only store."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probing.errors import ConfigError, DataError
from probing.files.headers import HEADER, file_header


class LabelStore:
    """Labels of some traces, on disk as soon as they are made.

    Args:
        path: the label file.
        segmenter: as the header has it (`probing.traces.labels`).
        settings: all else that decides the labels; JSON types.
        sizes: number of steps of each trace that is to be labelled, by id.
    """

    def __init__(
        self,
        path: Path,
        segmenter: dict[str, Any],
        settings: dict[str, Any],
        sizes: Mapping[str, int],
    ) -> None:
        self.path, self.sizes = path, sizes
        self.header = {"segmenter": segmenter, "settings": settings}

    def open(self, resume: bool) -> set[str]:
        """Read what is there, or begin anew; the ids of the traces already labelled.

        Raises:
            ConfigError: it holds labels made with other settings; the message says which.
            DataError: a line that is not the last cannot be read.
        """
        if resume and self.path.exists():
            done, good = self._read()
            if good:
                os.truncate(self.path, good)
                return done
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = json.dumps({HEADER: file_header("labels", **self.header)}, ensure_ascii=False)
        self.path.write_text(header + "\n", encoding="utf-8")
        return set()

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Append the lines of one trace, all its steps in order."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> tuple[set[str], int]:
        """Ids of the whole traces, and the bytes up to the end of the last of them."""
        done: set[str] = set()
        place = good = steps = 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            place += len(line)
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("it has no end")
                row = json.loads(line)
                if number == 1:
                    self._same(row[HEADER])
                    good = place
                    continue
                trace_id, step = str(row["id"]), int(row["step"])
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):
                    break
                raise DataError(
                    f"{self.path}, line {number}: damaged ({error!r}); remove the file or use "
                    "--no-resume"
                ) from error
            steps = steps + 1 if step else 1
            if step != steps - 1 or trace_id not in self.sizes or trace_id in done:
                raise DataError(
                    f"{self.path}, line {number}: step {step} of {trace_id} is out of order; "
                    "remove the file or use --no-resume"
                )
            if steps == self.sizes[trace_id]:
                done.add(trace_id)
                good, steps = place, 0
        return done, good

    def _same(self, held: dict[str, Any]) -> None:
        was = {"segmenter": held.get("segmenter"), **(held.get("settings") or {})}
        now = {"segmenter": self.header["segmenter"], **self.header["settings"]}
        refuse_other_settings(self.path, "labels", was, now)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The objects of a JSONL file without its header, and whether its last line is torn.

    A line without its end is what a killed writer leaves; it is left out.

    Raises:
        DataError: the file cannot be read, or a line that has its end holds no object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    rows: list[dict[str, Any]] = []
    *whole, rest = text.split("\n")
    for number, line in enumerate([*whole, rest], 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number > len(whole):
                return rows, True
            raise DataError(f"{path}, line {number}: no JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: no JSON object")
        if HEADER not in row:
            rows.append(row)
    return rows, False


def refuse_other_settings(
    path: Path, what: str, held: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Refuse to go on with a file whose content was made with other settings.

    Args:
        path: of the file or folder, for the message.
        what: it holds: scores, labels, responses, …
        held, wanted: its settings and the present ones.

    Raises:
        ConfigError: they differ; the message names each setting that does, with both values.
    """
    wanted = json.loads(json.dumps(wanted))  # as they come back from a file
    differing = sorted(k for k in {*held, *wanted} if held.get(k, ...) != wanted.get(k, ...))
    if differing:
        was = ", ".join(f"{key} {held.get(key)!r:.100}" for key in differing)
        now = ", ".join(f"{key} {wanted.get(key)!r:.100}" for key in differing)
        raise ConfigError(
            f"{path} holds {what} made with {was}; now asked for {now}. "
            "Choose another --out, or begin anew with --no-resume."
        )
