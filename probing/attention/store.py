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
        path = self.folder / "scoring.json"
        if not resume:
            shutil.rmtree(self.parts, ignore_errors=True)
            self.table.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        for leftover in self.parts.glob(".*"):  # of a process that was killed while it wrote
            leftover.unlink()
        if path.exists():
            self._same_settings(path)
            return
        write_json(path, {HEADER: file_header("scoring settings"), "settings": self.settings})

    def _same_settings(self, path: Path) -> None:
        stored = read_object(path).get("settings")
        if not isinstance(stored, dict):
            raise DataError(f"{path}: damaged; remove it or use --no-resume")
        refuse_other_settings(self.folder, "scores", stored, self.settings)

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

    def load(self, ids: Iterable[str] | None = None) -> dict[str, ScoredTrace]:
        """All scores that are there, by trace id; or those of `ids`, in their order."""
        parts = [path for path in self.parts.glob("*.safetensors") if path.name[0] != "."]
        stored = {**self._read_table(), **{t.id: t for t in map(self._read_part, parts)}}
        return stored if ids is None else {name: stored[name] for name in ids if name in stored}

    def _read_part(self, path: Path) -> ScoredTrace:
        from safetensors import SafetensorError, safe_open

        try:
            with damaged(path, PART), safe_open(path, framework="numpy") as file:
                sizes = file.get_tensor("sizes").tolist()
                scores, tokens = file.get_tensor("scores"), file.get_tensor("tokens")
                return _scored(file.metadata()["id"], scores, tokens, sizes)
        except SafetensorError as error:
            raise DataError(f"{path}: damaged ({error}); {PART}") from error

    @contextmanager
    def table_writer(
        self, scored: Mapping[str, ScoredTrace], heads: Sequence[Head]
    ) -> Iterator[Callable[[Trace], None]]:
        """Write the table: call what this gives with each trace; then the parts are dropped.

        Args:
            scored: the scores of these traces, by id.
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
        with whole_file(self.table) as temporary:
            schema = _schema().with_metadata(metadata)
            with pq.ParquetWriter(temporary, schema, compression="zstd", **WRITTEN) as writer:
                yield lambda trace: writer.write_table(
                    _row_group(trace, scored[trace.id], layers, numbers, schema)
                )
        shutil.rmtree(self.parts, ignore_errors=True)

    def _table_sizes(self) -> dict[str, tuple[int, int]]:
        """Sizes of the answer and of the whole, by the ids in the table."""
        if not self.table.exists():
            return {}
        with damaged(self.table, TABLE):
            return shaped(dict[str, tuple[int, int]], parse_json(_metadata(self.table)[b"sizes"]))

    def _read_table(self) -> dict[str, ScoredTrace]:
        sizes = self._table_sizes()
        traces = {}
        for name, columns in _row_groups(self.table, "tokens", "score") if sizes else ():
            scores, tokens = np.ascontiguousarray(columns["score"].T), columns["tokens"][:, 0]
            with damaged(self.table, TABLE):
                traces[name] = _scored(name, scores, tokens, sizes[name])
        return traces


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
    found = {
        name: [label if isinstance(label, str) else None for label in columns["label"][:, 0]]
        for name, columns in _row_groups(table, "label")
    }
    for label in {label for labels in found.values() for label in labels} - {*LABELS}:
        raise DataError(f"{table}: damaged, it holds the label {label!r:.40}; {TABLE}")
    return found


def _metadata(table: Path) -> dict[bytes, bytes]:
    import pyarrow.parquet as pq

    return dict(pq.read_schema(table).metadata or {})


def _row_groups(table: Path, *columns: str) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The id of each trace, and its columns as (step, head).

    Raises:
        DataError: the table is damaged.
    """
    import pyarrow.parquet as pq

    with damaged(table, TABLE):
        file = pq.ParquetFile(table, **READ)
        for number in range(file.num_row_groups):
            group = file.read_row_group(number, columns=["trace", "step", *columns])
            steps = int(group["step"][-1].as_py()) + 1
            values = {name: group[name].to_pandas().to_numpy() for name in columns}
            name = group["trace"][0].as_py()
            if not isinstance(name, str):
                raise ValueError(f"a trace is called {name!r:.40}")
            yield name, {key: column.reshape(steps, -1) for key, column in values.items()}


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
    rows = n_heads * n_steps
    steps = np.repeat(np.arange(n_steps, dtype=np.int32), n_heads)
    labels = np.repeat([step.label for step in trace.steps], n_heads).tolist()
    columns = {
        "trace": pa.array([trace.id] * rows).dictionary_encode(),
        "step": steps,
        "label": pa.array(labels, pa.string()).dictionary_encode(),
        "tokens": np.repeat(scored.tokens.astype(np.int32), n_heads),
        "layer": np.tile(layers, n_steps),
        "head": np.tile(numbers, n_steps),
        "score": scored.scores.T.reshape(-1),
    }
    return pa.table(columns, schema=schema)
