"""A label file that grows trace by trace and can be gone on with.

The header names all that decides the labels; a run with other settings is refused. The lines of a
trace are appended together; a trace that a kill cut short is cut off and labelled anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probing.errors import DataError
from probing.files import HEADER, file_header, refuse_other_settings


class LabelStore:
    """Labels of some traces, on disk as soon as they are made.

    Args:
        path: the label file.
        segmenter: as the header has it (`probing.labels`).
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
