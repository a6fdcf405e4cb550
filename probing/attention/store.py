"""Step scores on disk: one part a trace while a run goes on, one Parquet table when it is done.

`parts/<hash of id>.safetensors` appear one by one, each whole or absent, so that an interrupted
run, or several processes at once, can be put together. `scoring.json` says which settings the
parts belong to. `scores.parquet` (trace, step, label, tokens, layer, head, score) replaces the
parts in the end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from probing.attention.scores import ScoredTrace
from probing.choices import LABELS, Head
from probing.errors import DataError
from probing.files.headers import HEADER, file_header, read_object, whole_file, write_json
from probing.files.jsonl import refuse_other_settings
from probing.files.reading import parse_json, shaped
from probing.files.tables import READ, WRITTEN, damaged
from probing.traces.file import Trace

SETTINGS = "scoring.json"
PART, TABLE = "remove it and run again", "probe again, with --no-resume"


class ScoreStore:
    """The scores of one run in its folder.

    Args:
        folder: the run's output folder.
        settings: all that decides the scores; a store of other settings is refused.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.parts = folder / "parts"
        self.table = folder / "scores.parquet"
        self.settings = json.loads(json.dumps(dict(settings)))

    def open(self, resume: bool) -> None:
        """Begin or go on; one process does this for all.

        Raises:
            ConfigError: the folder holds scores of other settings.
        """
        path = self.folder / SETTINGS
        if not resume:
            shutil.rmtree(self.parts, ignore_errors=True)
            self.table.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        for leftover in self.parts.glob(".*"):  # of a process that was killed while it wrote
            leftover.unlink()
        if path.exists():
            refuse_other_settings(self.folder, "scores", settings_of(self.folder), self.settings)
            return
        write_json(path, {HEADER: file_header("scoring settings"), "settings": self.settings})

    def _part(self, trace_id: str) -> Path:
        name = hashlib.sha256(trace_id.encode()).hexdigest()[:24]
        return self.parts / f"{name}.safetensors"

    def done(self, ids: Iterable[str]) -> set[str]:
        """Those of the ids whose scores are there."""
        tabled = set(self._table_sizes())
        return {trace_id for trace_id in ids if trace_id in tabled or self._part(trace_id).exists()}

    def add(self, trace: ScoredTrace) -> None:
        """Write one part, whole or not at all."""
        from safetensors.numpy import save_file

        sizes = np.array([trace.answer_tokens, trace.total_tokens], dtype=np.int64)
        with whole_file(self._part(trace.id)) as temporary:
            # safetensors writes memory as it lies: another order would be read back scrambled.
            scores, tokens = map(np.ascontiguousarray, (trace.scores, trace.tokens))
            save_file(
                {"scores": scores, "tokens": tokens, "sizes": sizes},
                temporary,
                metadata={"id": trace.id, HEADER: json.dumps(file_header("step scores"))},
            )

    def load(self, ids: Iterable[str] | None = None) -> StoredScores:
        """All scores that are there, by trace id; or those of `ids`, in their order.

        Raises:
            DataError: a part or the table is damaged; of a single trace's scores on reading them.
        """
        table = _Table(self.table) if self.table.exists() else None
        known = {**(dict.fromkeys(table.groups) if table else {}), **self._parts()}
        if ids is not None:
            known = {name: known[name] for name in ids if name in known}
        return StoredScores(known, table)

    def take(self, other: ScoreStore) -> None:
        """Move the parts of another store, of the same settings, here: one by one, each whole."""
        self.parts.mkdir(parents=True, exist_ok=True)
        for path in other._files():
            path.replace(self.parts / path.name)

    def _parts(self) -> dict[str, Path]:
        """The part of each trace that has one."""
        return {_part_id(path): path for path in self._files()}

    def _files(self) -> list[Path]:
        return sorted(path for path in self.parts.glob("*.safetensors") if path.name[0] != ".")

    @contextmanager
    def table_writer(
        self, scored: Mapping[str, ScoredTrace], heads: Sequence[Head]
    ) -> Iterator[Callable[[Trace], None]]:
        """Write the table: call what this gives with each trace; then the parts are dropped.

        Args:
            scored: the scores of these traces, by id; what `load` gave is read as it is needed.
            heads: in the order of the scores.

        Yields:
            A function that writes the scores of a trace with today's labels, as a row group.
        """
        import pyarrow.parquet as pq

        header = file_header("step scores", settings=self.settings)
        sizes = {t.id: [t.answer_tokens, t.total_tokens] for t in scored.values()}
        metadata = {HEADER: json.dumps(header), "sizes": json.dumps(sizes)}
        layers = np.array([layer for layer, _ in heads], dtype=np.int16)
        numbers = np.array([head for _, head in heads], dtype=np.int16)
        schema = _schema().with_metadata(metadata)
        # Scores hardly repeat: a dictionary of them would make the file larger.
        repeated = [name for name in schema.names if name != "score"]
        options = {"compression": "zstd", "use_dictionary": repeated, **WRITTEN}
        with whole_file(self.table) as temporary:
            with pq.ParquetWriter(temporary, schema, **options) as writer:
                yield lambda trace: writer.write_table(
                    _row_group(trace, scored[trace.id], layers, numbers, schema)
                )
            if isinstance(scored, StoredScores):
                scored.close()  # an open file cannot be replaced everywhere
        shutil.rmtree(self.parts, ignore_errors=True)

    def _table_sizes(self) -> dict[str, tuple[int, int]]:
        """Sizes of the answer and of the whole, by the ids in the table."""
        return _sizes(_metadata(self.table), self.table) if self.table.exists() else {}


def settings_of(folder: Path) -> dict[str, Any]:
    """All that decided the scores of a store that is gone on with.

    Raises:
        DataError: its `scoring.json` is damaged, or not there.
    """
    stored = read_object(folder / SETTINGS).get("settings")
    if not isinstance(stored, dict):
        raise DataError(f"{folder / SETTINGS}: damaged; remove it or use --no-resume")
    return stored


class StoredScores(Mapping[str, ScoredTrace]):
    """Scores by trace id that are read from disk when they are asked for; see `ScoreStore.load`.

    The trace that was read last stays in memory. What `scores.parquet` held when it was opened is
    lost once the file is written anew.

    Args:
        parts: the part of each trace; None where the table has it.
        table: open.

    Raises:
        DataError: on reading a trace whose scores are damaged.
    """

    def __init__(self, parts: dict[str, Path | None], table: _Table | None) -> None:
        self._of, self._table = parts, table
        self._last: ScoredTrace | None = None

    def __getitem__(self, trace_id: str) -> ScoredTrace:
        part = self._of[trace_id]
        if self._last is None or self._last.id != trace_id:
            if part is None:
                assert self._table is not None
                self._last = self._table.scored(trace_id)
            else:
                self._last = _read_part(part)
        return self._last

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def close(self) -> None:
        """Close the table: no trace that it has can be read any more."""
        if self._table is not None:
            self._table.file.close()


def _part_id(path: Path) -> str:
    with _opened(path) as file:
        return str(file.metadata()["id"])


def _read_part(path: Path) -> ScoredTrace:
    with _opened(path) as file:
        sizes = file.get_tensor("sizes").tolist()
        scores, tokens = file.get_tensor("scores"), file.get_tensor("tokens")
        return _scored(file.metadata()["id"], scores, tokens, sizes)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with damaged(path, PART), safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise DataError(f"{path}: damaged ({error}); {PART}") from error


def _scored(name: str, scores: np.ndarray, tokens: np.ndarray, sizes: Sequence[int]) -> ScoredTrace:
    """A trace as it was stored.

    Raises:
        ValueError: the parts do not fit together.
    """
    answer, total = sizes
    fit = scores.ndim == 2 and scores.dtype.kind == "f" and tokens.dtype.kind == "i"
    if not fit or tokens.shape != scores.shape[1:] or not 0 <= answer <= total or not total:
        raise ValueError(f"the scores of trace {name} do not fit together")
    return ScoredTrace(name, scores, tokens.astype(np.int64), int(answer), int(total))


def stored_settings(table: Path) -> dict[str, Any]:
    """All that decided the scores in a `scores.parquet`.

    Raises:
        DataError: it is no such file, or damaged.
    """
    with damaged(table, "not the scores of a probe? Probe again"):
        settings = parse_json(_metadata(table)[HEADER.encode()])["settings"]
        texts = [settings[name] for name in ("weights", "dtype", "rule", "answer")]
        shaped(list[str], texts), shaped(dict[str, Any], settings["segmenter"])
        return dict(settings)


def stored_labels(table: Path) -> dict[str, list[str | None]]:
    """The labels of the steps of each trace in a `scores.parquet`; None where there is none.

    Raises:
        DataError: it is damaged.
    """
    file = _Table(table)
    found = {name: file.by_step(name, "label") for name in file.groups}
    for label in {label for labels in found.values() for label in labels} - {*LABELS}:
        raise DataError(f"{table}: damaged, it holds the label {label!r:.40}; {TABLE}")
    return found


def _metadata(table: Path) -> dict[bytes, bytes]:
    import pyarrow.parquet as pq

    return dict(pq.read_schema(table).metadata or {})


def _sizes(metadata: dict[bytes, bytes], table: Path) -> dict[str, tuple[int, int]]:
    with damaged(table, TABLE):
        return shaped(dict[str, tuple[int, int]], parse_json(metadata[b"sizes"]))


class _Table:
    """An open `scores.parquet`: a row group a trace, of rows in the order step, head.

    Raises:
        DataError: it is damaged; of a single row group on reading it.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self.path = path
        with damaged(path, TABLE):
            self.file = pq.ParquetFile(path, **READ)
            metadata = dict(self.file.schema_arrow.metadata or {})
            names = map(self._name, range(self.file.num_row_groups))
            self.groups = {name: number for number, name in enumerate(names)}
        self.sizes = _sizes(metadata, path) if b"sizes" in metadata or self.groups else {}

    def _name(self, number: int) -> str:
        """The trace of a row group, from its statistics or, where they do not say it, its rows."""
        column = self.file.metadata.row_group(number).column(0)
        stored = column.statistics if column.path_in_schema == "trace" else None
        if stored is not None and stored.has_min_max and stored.min == stored.max:
            name = stored.min
        else:
            name = self.file.read_row_group(number, columns=["trace"])["trace"][0].as_py()
        if not isinstance(name, str):
            raise ValueError(f"a trace is called {name!r:.40}")
        return name

    def _read(self, name: str, *columns: str) -> tuple[Any, int, int]:
        """The row group of a trace, and its numbers of steps and of heads."""
        group = self.file.read_row_group(self.groups[name], columns=["step", *columns])
        steps = int(group["step"][-1].as_py()) + 1
        heads, rest = divmod(group.num_rows, steps)
        if rest:
            raise ValueError(f"trace {name} has {group.num_rows} scores of {steps} steps")
        return group, steps, heads

    def by_step(self, name: str, column: str) -> list[Any]:
        """What a column says of each step of a trace."""
        with damaged(self.path, TABLE):
            group, steps, heads = self._read(name, column)
            return list(group[column].take(np.arange(steps) * heads).to_pylist())

    def scored(self, name: str) -> ScoredTrace:
        """The scores of a trace."""
        with damaged(self.path, TABLE):
            group, steps, heads = self._read(name, "tokens", "score")
            scores = np.ascontiguousarray(group["score"].to_numpy().reshape(steps, heads).T)
            tokens = group["tokens"].to_numpy()[::heads]
            return _scored(name, scores, tokens, self.sizes[name])


def _schema() -> Any:
    import pyarrow as pa

    text = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("trace", text),
            ("step", pa.int32()),
            ("label", text),
            ("tokens", pa.int32()),
            ("layer", pa.int16()),
            ("head", pa.int16()),
            ("score", pa.float32()),
        ]
    )


def _row_group(
    trace: Trace, scored: ScoredTrace, layers: np.ndarray, numbers: np.ndarray, schema: Any
) -> Any:
    """Rows of one trace in the order step, head."""
    import pyarrow as pa

    n_heads, n_steps = scored.scores.shape
    labels = pa.array([step.label for step in trace.steps], pa.string())
    columns = {
        "trace": _repeated(pa.array([trace.id]), n_heads * n_steps),
        "step": np.repeat(np.arange(n_steps, dtype=np.int32), n_heads),
        "label": _repeated(labels, n_heads),
        "tokens": np.repeat(scored.tokens.astype(np.int32), n_heads),
        "layer": np.tile(layers, n_steps),
        "head": np.tile(numbers, n_steps),
        "score": scored.scores.T.reshape(-1),
    }
    return pa.table(columns, schema=schema)


def _repeated(texts: Any, times: int) -> Any:
    """Every text so many times in turn, each stored once."""
    import pyarrow as pa

    coded = texts.dictionary_encode()
    places = coded.indices.take(np.repeat(np.arange(len(texts)), times))
    return pa.DictionaryArray.from_arrays(places, coded.dictionary)
