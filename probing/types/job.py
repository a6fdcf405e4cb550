"""Head types and step scorers of a probe: in its own pass, or of a finished one.

1. Of each trace: a pass gives its masses and what most types and scorers need, an answer without
   content behind it (`probing.types.rows`); where asked for, a backward pass. It is the pass that
   scores the traces of a probe (`kfh probe --types`), or one more over those of a finished probe.
   What is kept depends on no head set and no label: a line of `types.jsonl` a trace, and under
   `types` what each head says of each step as a receiver, and by the answer without content. An
   interrupted run goes on.
2. The probe, its traces and its model; it must be the model that was probed. Traces that have no
   line yet get one.
3. Induction and previous-token heads, on random tokens that repeat.
4. All together: `probing.types.result`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.attention.memory import BatchSize
from probing.attention.scores import ScoredTrace, score_traces, step_scores
from probing.attention.store import ScoreStore
from probing.errors import ConfigError, DataError, ModelError
from probing.files.headers import json_value
from probing.files.jsonl import LineStore
from probing.folder import ProbeResult
from probing.models.identity import check_ids, model_settings
from probing.models.proof import output_head
from probing.run import encoded_as
from probing.settings import Progress, no_progress
from probing.traces.tokens import EncodedTrace
from probing.types.config import TypesConfig
from probing.types.doubt import step_doubts
from probing.types.formulas import (
    copied,
    focused,
    forward_influence,
    induction,
    previous_token,
    receiver_score,
    vertical_scores,
)
from probing.types.passes import OutputGradient, pattern_scores
from probing.types.result import HeadTypes, summarise
from probing.types.rows import Read, StepFigures, StepRows, heads_below
from probing.types.scorers import FOLDER, LINES, NULL, RECEIVERS

DIGITS = 7  # significant ones, of figures in lines
READING = ("weights", "dtype", "traces", "segmenter", "rule", "think_end", "answer")
Heads = dict[str, Float[np.ndarray, "head"]]
Steps = dict[str, Float[np.ndarray, "step"]]


class TypesBeside:
    """Takes head types in a pass that scores traces (1); see `probing.run.probe`.

    Args:
        config: the settings; its folder is the probe's.
    """

    def __init__(self, config: TypesConfig) -> None:
        self.config, self.folder = config, Path(config.folder)
        self.left_out: list[str] = []  # in sentences
        self.done: dict[str, dict[str, Any]] = {}  # lines by trace
        self.tokens = 0  # of the traces that were read now
        self.pending: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {}

    def open(self, model: Any, tokenizer: Any, settings: Mapping[str, Any]) -> StepRows:
        """Begin or go on; the capture whose pass it is.

        Args:
            model, tokenizer: of the probe.
            settings: all that decides the scores of a trace.

        Raises:
            ConfigError: the folder holds types of other settings, or the tokenizer has no tokens
                for the answer without content.
            ModelError: the model's attention cannot be captured.
        """
        self.model, self.tokenizer, config = model, tokenizer, self.config
        self.null = _null_ids(tokenizer, config.null_answer) if "qr" in config.types else None
        self.capture = StepRows(model, config.most, self.null)
        self.low = heads_below(self.capture.heads)
        self.gradient = OutputGradient(model) if "gradient" in config.types else None
        self.head: Callable[[Tensor], Tensor] | None = None
        try:
            self.head = output_head(model)
        except ModelError as error:
            self.left_out.append(f"surprisal and entropy are left out: {error}")
        own = {**config.of_traces(), **{name: settings.get(name) for name in READING}}
        names = [RECEIVERS, *([NULL] if self.null is not None else [])]
        self.stores = {name: ScoreStore(self.folder / FOLDER / name, own) for name in names}
        self.lines = LineStore(self.folder / LINES, "head types by trace", {"settings": own})
        self.done.clear()
        resumed = self.lines.open(config.resume, lambda line: bool(self._take(line)))
        for store in self.stores.values():
            store.open(resumed)
        self.resumed = len(self.done)
        return self.capture

    def _take(self, line: dict[str, Any]) -> dict[str, Any]:
        return self.done.setdefault(line["id"], line)

    def masses(
        self, capture: Any, traces: Sequence[EncodedTrace], device: torch.device
    ) -> list[Float[np.ndarray, "head token"]]:
        """As `batch_masses`; what else the pass says waits for `keep`."""
        self.pending.clear()
        read = self.capture.read(traces)
        for trace, found in zip(traces, read, strict=True):
            self.pending[trace.id] = self._measure(trace, found)
        return [found.mass for found in read]

    def keep(self, scored: ScoredTrace) -> None:
        """Write the line of a trace whose masses were good; the others are forgotten."""
        line, found = self.pending.pop(scored.id)
        if scored.id in self.done:
            return
        for name, scores in found.items():
            self.stores[name].add(replace(scored, scores=scores))
        self.lines.add([line])
        self._take(line)
        self.tokens += scored.total_tokens

    def _measure(
        self, trace: EncodedTrace, read: Read
    ) -> tuple[dict[str, Any], dict[str, Float[np.ndarray, "head step"]]]:
        """The line of a trace, and what its steps are to each head, by store."""
        heads, steps = self._of_rows(trace, read.figures)
        if self.head is not None:
            given = step_doubts(read.hidden, trace.ids, trace.spans, self.head)
            steps |= zip(("surprisal", "first-token entropy"), given, strict=True)
        if self.gradient is not None:
            heads["gradient"] = self.gradient(trace.ids, np.flatnonzero(trace.answer))
        line: dict[str, Any] = {"id": trace.id}
        for name, found in (("heads", heads), ("steps", steps)):
            listed = {key: np.asarray(value, dtype=float).tolist() for key, value in found.items()}
            line[name] = json_value(listed, DIGITS)
        stored = {RECEIVERS: np.nan_to_num(vertical_scores(read.figures.attention))}
        if read.null is not None:
            assert self.null is not None
            stored[NULL] = np.nan_to_num(step_scores(read.null, trace.spans)) / len(self.null)
        return line, {name: scores.astype(np.float32) for name, scores in stored.items()}

    def _of_rows(self, trace: EncodedTrace, figures: StepFigures) -> tuple[Heads, Steps]:
        """Types and scorers that come from the one pass over rows."""
        inside = np.zeros(len(trace), dtype=bool)
        for first, last in trace.spans:
            inside[first:last] = True
        written, attention = np.flatnonzero(trace.answer), figures.attention
        shares = copied(figures.looked_at, trace.ids, written, inside)
        heads = {
            "receiver": receiver_score(vertical_scores(attention)),
            "receiver-ranked": receiver_score(vertical_scores(attention, ranked=True)),
            "retrieval": shares.sum(axis=1) / max(len(written), 1),
            "span": figures.span,
            "sink": figures.sink,
        }
        local, distant = focused(figures.distance)
        steps = {
            "TRAAC": figures.mark[self.low].mean(axis=0),
            "FCI": forward_influence(attention),
            "WAAD": figures.waad[local].mean(axis=0),
            "FAI": figures.fai[distant].mean(axis=0),
        }
        return {k: v for k, v in heads.items() if k in self.config.types}, steps

    def patterns(self) -> Heads:
        """Induction and previous-token scores, the mean of inputs of random tokens, repeated."""
        wanted = [name for name in ("induction", "previous") if name in self.config.types]
        if not wanted:
            return {}
        special = {*self.tokenizer.all_special_ids}
        ordinary = [token for token in range(len(self.tokenizer)) if token not in special]
        period = min(self.config.repeated, len(ordinary))
        tokens = 2 * period
        every = {"induction": induction(tokens, period), "previous": previous_token(tokens)}
        rng = np.random.default_rng(self.config.seed)
        found = []
        for _ in range(self.config.draws):
            drawn = rng.choice(ordinary, period, replace=False)
            ids = torch.from_numpy(np.tile(drawn, 2))
            found.append(pattern_scores(self.capture, ids, [every[name] for name in wanted]))
        return dict(zip(wanted, np.mean(found, axis=0).T, strict=True))


def _null_ids(tokenizer: Any, text: str) -> Int[np.ndarray, "token"]:
    found = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    unknown = getattr(tokenizer, "unk_token_id", None)
    if not found or (unknown is not None and unknown in found):
        raise ConfigError(
            f"this model has no tokens for the answer {text!r}: give another that says "
            "nothing (--null-answer), or leave out qr (--types)"
        )
    check_ids(tokenizer, found, "the null answer")
    return np.array(found, dtype=np.int64)


def measure_types(
    config: TypesConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    beside: TypesBeside | None = None,
    progress: Progress = no_progress,
) -> HeadTypes:
    """Measure head types and step scorers of a finished probe and write them into its folder.

    Args:
        config: the settings.
        model, tokenizer: loaded ones, instead of loading the probe's.
        beside: what was taken in the probe's own pass; None: nothing.
        progress: makes progress bars, see `probing.settings`.

    Raises:
        KfhError: no finished probe, its traces have gone, or another model.
    """
    result = ProbeResult.load(config.folder, config.traces)
    beside, started = beside or TypesBeside(config), time.perf_counter()
    probed = replace(result.config, device=config.device)
    taken = beside.tokens > 0
    if not hasattr(beside, "model"):
        model, tokenizer = probed.load(model, tokenizer)  # 2
        weights = model_settings(model)["weights"]
        if weights != result.settings["weights"]:
            raise DataError(f"{config.folder}: {probed.model} is not the model that was probed")
        beside.open(model, tokenizer, result.settings)

    def left() -> Iterator[EncodedTrace]:
        for trace in result.traces(result.ranked):
            if trace.id not in beside.done:
                yield encoded_as(result.config, beside.tokenizer, trace)

    count = len(set(result.ranked) - set(beside.done))
    with progress("head types", count) as advance:
        for scored in score_traces(
            beside.capture,
            left() if count else (),
            device=next(beside.model.parameters()).device,
            batch_tokens=_size(probed.batch_tokens, beside),
            advance=advance,
            masses=beside.masses,
        ):
            beside.keep(scored)
    with beside.capture:
        fixed = beside.patterns()  # 3
    speed: dict[str, float] = {"resumed": beside.resumed, "tokens": beside.tokens}
    speed |= {"seconds": time.perf_counter() - started, "beside": taken}
    stored = {name: store.load() for name, store in beside.stores.items()}
    given = (stored[RECEIVERS], stored.get(NULL), fixed)
    found = summarise(config, result, beside.done, *given)  # 4
    found.content.update(speed=speed, left_out=beside.left_out)
    found.write(Path(config.folder))
    return found


def _size(given: Any, beside: TypesBeside) -> BatchSize:
    auto = given == "auto"
    return BatchSize.auto_of(beside.model, beside.capture) if auto else BatchSize(given)
