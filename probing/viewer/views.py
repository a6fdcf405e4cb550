"""What a page shows: traces that every probe scored alike, and of each probe the heads that fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float

from probing.choices import Head
from probing.errors import ConfigError, DataError
from probing.folder import ProbeResult
from probing.traces.file import Trace

# What a page may hold, before base64 adds a third: 28 × 12 heads of 200 traces of 90 steps fit.
STEP_BYTES = 12 << 20
TOKEN_BYTES = 16 << 20
OTHERS = 4


@dataclass(frozen=True)
class Views:
    """What the head picker offers: the mean of the set, then heads, those of the set first."""

    heads: tuple[Head, ...]
    set_size: int
    token_heads: tuple[Head, ...]  # a beginning of `heads`, or empty

    @property
    def token_views(self) -> int:
        """How many of the views hold tokens: the mean and these heads."""
        return len(self.token_heads) + 1 if self.token_heads else 0

    def means(self, values: Float[np.ndarray, "head *any"]) -> Float[np.ndarray, "view *any"]:
        """The mean of the set's heads, put before the heads' own values."""
        return np.concatenate([values[: self.set_size].mean(axis=0, keepdims=True), values])


@dataclass(frozen=True, eq=False)
class ShownProbe:
    """A probe in a page: its name there, and what is shown of it."""

    name: str
    probe: ProbeResult
    views: Views


def load_probes(folders: Sequence[Path], traces: Path | None) -> tuple[ProbeResult, ...]:
    """The probes to be shown beside each other.

    Args:
        folders: of finished probes; the first decides on order and labels.
        traces: their trace file, where it has moved; a probe whose own is in place keeps that.

    Raises:
        ConfigError: a folder is given twice.
        DataError: no finished probe, or changed files.
    """
    places = [folder.resolve() for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{folder} is given twice: another probe can stand beside it")
    first = ProbeResult.load(folders[0], traces)
    others = [
        ProbeResult.load(folder, None if _in_place(folder) else traces) for folder in folders[1:]
    ]
    return (first, *others)


def _in_place(folder: Path) -> bool:
    """Whether the trace file of a probe lies where it was; without a probe that is for `load`."""
    return Path(ProbeResult.load(folder).config.traces).is_file()


def probe_names(probes: Sequence[ProbeResult]) -> list[str]:
    """The probes' models, told apart by their folders where two bear one name."""
    names = [Path(probe.card.id).name for probe in probes]
    return [
        f"{name} ({probe.folder.name})" if names.count(name) > 1 else name
        for name, probe in zip(names, probes, strict=True)
    ]


def shared_traces(
    probes: Sequence[ProbeResult], ids: Sequence[str] | None, limit: int
) -> tuple[list[Trace], int]:
    """The traces to show, and how many are not shown since not every probe scored them.

    Args:
        probes: the first decides on the order.
        ids: of the traces; None: those that every probe scored.
        limit: most traces; 0: all.

    Raises:
        DataError: a trace that a probe did not score, no trace in common, or a trace that is not
            the same in all probes: response, end of the reasoning, steps by their offsets, labels.
    """
    first, *others = probes
    scored = [set(probe.scored) for probe in probes]
    common = set.intersection(*scored)
    alone = 0 if ids else len(set.union(*scored) - common)
    if not common:
        names = ", ".join(str(probe.folder) for probe in probes)
        raise DataError(f"{names}: no trace was scored by all of these probes")
    mine: Iterator[Trace] = (t for t in first.traces(ids) if ids or t.id in common)
    shown = list(islice(mine, limit or None))
    for other in others:
        theirs = {trace.id: trace for trace in other.traces([trace.id for trace in shown])}
        for trace in shown:
            check_same(trace, theirs[trace.id], first.folder, other.folder)
    return shown, alone


def check_same(trace: Trace, other: Trace, folder: Path, beside: Path) -> None:
    """Raise DataError unless two probes saw the same trace, cut and labelled alike.

    Example:
        >>> from probing.traces.file import Step
        >>> first = Trace("t", "", "So. </think> 7", (Step(0, 3, "essential"),))
        >>> check_same(first, first, Path("a"), Path("b"))
    """

    def differ(what: str, do: str) -> DataError:
        return DataError(f"trace {trace.id}: {what} in {folder} and {beside}; {do}")

    if trace.response != other.response:
        raise differ("the response is not the same", "probe both on the same traces")
    if (trace.reasoning_end, trace.answer_start) != (other.reasoning_end, other.answer_start):
        raise differ("the reasoning does not end at the same place", "use one --think-end")
    spans = [[(step.start, step.end) for step in t.steps] for t in (trace, other)]
    if spans[0] != spans[1]:
        place = next(
            (n for n, (a, b) in enumerate(zip(*spans, strict=False)) if a != b),
            min(map(len, spans)),
        )
        raise differ(
            f"steps are cut otherwise from step {place + 1} on ({len(spans[0])} and "
            f"{len(spans[1])} steps)",
            "probe both with the same steps or --segmenter",
        )
    for number, (a, b) in enumerate(zip(trace.steps, other.steps, strict=True), 1):
        if a.label != b.label:
            labels = f"{a.label or 'not labelled'} and {b.label or 'not labelled'}"
            raise differ(f"step {number} is {labels}", "probe both with the same --labels")


def choose_views(
    probe: ProbeResult,
    shown: Sequence[Trace],
    heads: tuple[Head, ...] | None = None,
    tokens: bool = True,
    probes: int = 1,
) -> Views:
    """The set, the heads asked for, and the best others, as many as the size allows.

    Args:
        probe: with scores of all traces in `shown`.
        shown: the traces of the page.
        heads: asked for beside the set; None: the `OTHERS` best by SRA.
        tokens: whether the attention of single tokens is to be in the page.
        probes: in the page, which share its size.

    Raises:
        ConfigError: an unknown head, or not even the set (and the heads asked for) fits.
    """
    ranked = probe.table.sort_values("sra", ascending=False, kind="stable")
    best = [(int(row.layer), int(row.head)) for row in ranked.itertuples()]
    chosen = list(probe.head_set.pairs)
    probe.places(heads or ())
    asked = [head for head in dict.fromkeys(heads or ()) if head not in chosen]
    order = [*chosen, *asked]
    order += [head for head in best if head not in order]
    sizes = [probe.scored[trace.id] for trace in shown]
    step_bytes = 2 * probes * sum(len(size.tokens) for size in sizes)  # of a view
    token_bytes = probes * sum(size.total_tokens for size in sizes)
    needed = len(chosen) + len(asked)
    most = min(len(order), STEP_BYTES // max(step_bytes, 1) - 1)
    wanted = needed if heads is not None else min(needed + OTHERS, len(order))
    with_tokens = min(wanted, TOKEN_BYTES // max(token_bytes, 1) - 1, most) if tokens else 0
    if most < needed or (tokens and with_tokens < needed):
        shared = f", shared by {probes} probes" if probes > 1 else ""
        raise ConfigError(
            f"{len(shown)} traces of {token_bytes // probes:,} tokens are too much for one page "
            f"({STEP_BYTES >> 20} MB of step scores, {TOKEN_BYTES >> 20} MB of tokens{shared}, for "
            f"{needed} heads and their mean); show fewer with --limit or --ids, or leave the "
            "tokens out (--no-tokens)"
        )
    return Views(tuple(order[:most]), len(chosen), tuple(order[:with_tokens]))
