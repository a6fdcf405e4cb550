"""Shards: a probe's scoring as several commands that know nothing of each other (a job array).

1. The last bits of a score depend on what shares the pass of its trace: kernels choose their way
   by shape. So every shard cuts the batches of the whole run, for which it tokenises all traces,
   and scores every n-th batch, whole (`Plan`).
2. Shard 2 of 4 writes into `OUT/shards/2-of-4` alone: a store as a whole run has it
   (`probing.attention.store`), and beside it `shard.json` once its share is scored.
3. `join` checks that all shards are there, finished and alike, then moves their parts into the
   store of `OUT`, as if one run had scored them. Killed, it can be called again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from probing.attention.scores import batches_by_length
from probing.attention.store import ScoreStore, settings_of
from probing.choices import BatchTokens, Head
from probing.errors import DataError
from probing.files.headers import HEADER, file_header, read_object, text_hash, write_json
from probing.files.jsonl import refuse_other_settings
from probing.files.reading import shaped
from probing.models.lengths import Lengths
from probing.models.processes import Processes, Shard
from probing.traces.tokens import EncodedTrace

FOLDER, RECORD = "shards", "shard.json"
SUMMED = ("traces", "tokens", "seconds", "resumed")  # of speeds
OWN = ("ids", "batches_of", "batches", "seed")  # settings that the store of a whole run has not


@dataclass(frozen=True, eq=False)
class Plan:
    """The batches of a whole run, and which of them are a shard's: every n-th.

    Args:
        shard: which.
        lengths: tokens of each trace that the model can take, in the order of the file.
        batch_tokens: of a batch, padding included.
        kinds: at which lengths the model's attention changes.

    Attributes:
        batches: the ids of each; longest trace first within a stretch of the file, so that
            every n-th is about an n-th of the work.
    """

    shard: Shard
    lengths: Mapping[str, int]
    batch_tokens: int
    kinds: Lengths = field(default_factory=Lengths)
    batches: list[list[str]] = field(init=False)

    def __post_init__(self) -> None:
        """Cut the batches as `score_traces` does, which sees no more of a trace than its length."""
        found = batches_by_length(
            map(self.blank, self.lengths), self.batch_tokens, None, self.kinds
        )
        object.__setattr__(self, "batches", [[trace.id for trace in batch] for batch in found])

    def blank(self, name: str) -> EncodedTrace:
        """A trace that takes its place in a batch and is not scored."""
        ids = np.zeros(self.lengths[name], dtype=np.int64)
        return EncodedTrace(name, ids, 0, np.zeros((0, 2), dtype=np.int64), ids > 0)

    @property
    def own(self) -> list[list[str]]:
        """The batches of the shard."""
        return self.batches[self.shard.number - 1 :: self.shard.count]

    def left(self, done: set[str], processes: Processes) -> set[str]:
        """What this process of the shard scores: its batches, whole, of which a trace is not done.

        Args:
            done: traces whose scores are there.
            processes: that share the shard's batches.
        """
        mine = self.own[processes.rank :: processes.count]
        return {name for batch in mine if not done.issuperset(batch) for name in batch}

    def settings(self, ids: Sequence[str]) -> dict[str, Any]:
        """What decides the batches; `ids` are those of all traces, too long ones included."""
        batches = text_hash(json.dumps(self.batches))
        return {**share_settings(ids, self.batch_tokens), "batches": batches}

    def finish(self, store: ScoreStore, **known: Any) -> None:
        """Say that the shard's traces are scored, and what else of a `Record` is known."""
        traces = [name for batch in self.own for name in batch]
        lost = sorted(set(traces) - store.done(traces))
        content = {"shard": str(self.shard), "traces": traces, "lost": lost, **known}
        write_json(store.folder / RECORD, {HEADER: file_header("shard"), **content})


def share_settings(ids: Sequence[str], batch_tokens: BatchTokens) -> dict[str, Any]:
    """What decides the batches of a model and is known without it."""
    return {"ids": text_hash("\n".join(ids)), "batches_of": batch_tokens}


def begin(store: ScoreStore, resume: bool) -> None:
    """Open the store of a shard, which is finished no more; errors as for `ScoreStore.open`."""
    store.open(resume)  # first: a command of other settings, which is refused, leaves all as it was
    (store.folder / RECORD).unlink(missing_ok=True)


@dataclass(frozen=True)
class Record:
    """What a finished shard says of one of its stores.

    Args:
        shard: `i/n`.
        traces: ids of its share.
        lost: those of them without scores, since these were not finite.
        heads: in the order of the scores.
        position_limit: tokens that the model can take at all; None: any number.
        speed: traces, tokens and seconds of its scoring; traces scored before, as `resumed`.
    """

    shard: str
    traces: list[str]
    lost: list[str]
    heads: list[Head]
    position_limit: int | None
    speed: dict[str, float]


@dataclass(frozen=True)
class Joined:
    """A store with the scores of all shards, and what they say of it; see `Record`."""

    store: ScoreStore
    records: tuple[Record, ...]

    @property
    def speed(self) -> dict[str, float]:
        """Of all shards together: seconds are those of their machines, added up."""
        speeds = [record.speed for record in self.records]
        return {**speeds[0], **{name: sum(speed[name] for speed in speeds) for name in SUMMED}}


def join(
    out: Path, places: Mapping[str, Mapping[str, Any]], ids: Sequence[str], resume: bool
) -> list[Joined]:
    """Make one store of those of all shards, at each of some places; checked before one is moved.

    Args:
        out: the run's output folder, which holds `shards/`.
        places: folder below that of a shard (empty: itself) → the settings that its scores must
            have been made with; a store of `out` is made at the same place.
        ids: of all traces, in the order of the file.
        resume: go on with the scores that `out` has, as those that were joined before.

    Raises:
        ConfigError: a shard, or the store of `out`, was made with other settings or traces.
        DataError: a shard is missing, not finished or damaged; the message names it.
    """
    folders = _folders(out / FOLDER)
    found = [
        _checked(out, place, settings, folders, ids if resume else ())
        for place, settings in places.items()
    ]
    for joined, place in zip(found, places, strict=True):
        joined.store.open(resume)
        for folder in folders.values():
            joined.store.take(ScoreStore(folder / place, {}))
    return found


def _folders(folder: Path) -> dict[Shard, Path]:
    """The folder of each shard, whether it is there or not."""
    found = [re.fullmatch(r"([0-9]+)-of-([0-9]+)", path.name) for path in folder.glob("*-of-*")]
    names = sorted(match[0] for match in found if match)
    counts = {int(match[2]) for match in found if match}
    if not counts:
        raise DataError(f"{folder}: no shards; score them with --shards 1/n to n/n first")
    if len(counts) > 1:
        raise DataError(
            f"{folder}: shards of more than one split ({', '.join(names)}); remove those that are "
            "not to be joined"
        )
    count = counts.pop()
    shards = (Shard(number, count) for number in range(1, count + 1))
    return {shard: folder / shard.folder for shard in shards}


def _checked(
    out: Path,
    place: str,
    settings: Mapping[str, Any],
    folders: Mapping[Shard, Path],
    ids: Sequence[str],
) -> Joined:
    """The store to be made at a place, and what the shards say of theirs; see `join`.

    Args:
        ids: of traces whose scores `out` may have from an earlier call.
    """
    paths = {shard: folder / place for shard, folder in folders.items()}
    _refuse_unfinished(out / FOLDER, place, paths)
    records = {shard: read_record(shard, path) for shard, path in paths.items()}
    held = {shard: settings_of(path) for shard, path in paths.items()}
    first = next(iter(paths))
    for shard, path in paths.items():
        again = f"Run it again, with --shards {shard} --no-resume."
        wanted = {**held[shard], **settings}
        refuse_other_settings(path, "scores", held[shard], wanted, advice=again)
        also = f"shard {first} with"
        refuse_other_settings(path, "scores", held[shard], held[first], also, again)
    store = ScoreStore(out / place, {k: v for k, v in held[first].items() if k not in OWN})
    there = store.done(ids)
    for shard, record in records.items():
        scored = {*ScoreStore(paths[shard], {}).load(), *record.lost, *there}
        if gone := sorted(set(record.traces) - scored):
            raise DataError(
                f"{paths[shard]}: the scores of {len(gone)} traces are gone, first {gone[0]}; run "
                f"it again, with --shards {shard}"
            )
    return Joined(store, tuple(records.values()))


def _refuse_unfinished(folder: Path, place: str, paths: Mapping[Shard, Path]) -> None:
    """Raise DataError where a shard has not finished a store."""
    states = {
        shard: "is not finished" if path.is_dir() else "is missing"
        for shard, path in paths.items()
        if not (path / RECORD).is_file()
    }
    if states:
        named = ", ".join(f"shard {shard} {state}" for shard, state in states.items())
        what = f" for its control, {place}" if place else ""
        raise DataError(
            f"{folder}: {named}{what}. Run it with --shards {next(iter(states))}; it goes on from "
            "what it has scored"
        )


def read_record(shard: Shard, folder: Path) -> Record:
    """The record of a shard in the folder of one of its stores.

    Raises:
        DataError: it is not there, damaged, or that of another shard.
    """
    path = folder / RECORD
    content = read_object(path)
    try:
        record = shaped(Record, {item.name: content.get(item.name) for item in fields(Record)})
        if record.shard != str(shard):
            raise ValueError(f"it is that of shard {record.shard}")
    except ValueError as error:
        raise DataError(
            f"{path}: damaged, or of another folder ({error}); run it with --shards {shard}"
        ) from error
    return record
