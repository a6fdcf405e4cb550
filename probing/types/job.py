"""Head types and step scorers of a finished probe: one trace after another, then all together.

1. The probe, its traces and its model; it must be the model that was probed.
2. Of each ranked trace: one pass whose rows give most types and scorers (`probing.types.rows`);
   one with an answer without content in the answer's place, over the kept keys and values of the
   context where they serve; and a backward pass where asked for.
   A trace's figures are a line of `types.jsonl`; what each head says of each step as a receiver
   lies in the folder `types`. An interrupted run goes on.
3. Induction and previous-token heads, on random tokens that repeat.
4. All together: `probing.types.result`.

Traces go through the model one at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.attention.scores import ScoredTrace, step_scores
from probing.attention.store import ScoreStore
from probing.errors import ConfigError, DataError, ModelError
from probing.files.headers import json_value
from probing.files.jsonl import LineStore
from probing.folder import ProbeResult
from probing.models.identity import check_ids, model_settings
from probing.models.proof import output_head
from probing.ranking.metrics import RankedTrace
from probing.run import encoded_as
from probing.settings import Progress, no_progress
from probing.traces.file import Trace
from probing.traces.tokens import EncodedTrace
from probing.types.config import TypesConfig
from probing.types.doubt import doubts, step_doubts
from probing.types.formulas import (
    calibrated,
    copied,
    focused,
    forward_influence,
    induction,
    previous_token,
    query_score,
    receiver_score,
    vertical_scores,
)
from probing.types.gradient import OutputGradient
from probing.types.patterns import pattern_scores
from probing.types.result import HeadTypes, summarise
from probing.types.rows import StepFigures, StepRows, heads_below

LINES, RECEIVERS = "types.jsonl", "types"
DIGITS = 7  # significant ones, of figures in lines
Heads = dict[str, Float[np.ndarray, "head"]]
Steps = dict[str, Float[np.ndarray, "step"]]


def measure_types(
    config: TypesConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    progress: Progress = no_progress,
) -> HeadTypes:
    """Measure head types and step scorers beside a finished probe and write them into its folder.

    Args:
        config: the settings.
        model, tokenizer: loaded ones, instead of loading the probe's.
        progress: makes progress bars, see `probing.settings`.

    Raises:
        KfhError: no finished probe, its traces have gone, or another model.
    """
    result = ProbeResult.load(config.folder, config.traces)
    probed = replace(result.config, device=config.device)
    model, tokenizer = probed.load(model, tokenizer)  # 1
    weights = model_settings(model)["weights"]
    if weights != result.settings["weights"]:
        raise DataError(f"{config.folder}: {probed.model} is not the model that was probed")
    work = _Work(config, result, model, tokenizer)
    settings = {**config.of_traces(), "weights": weights, "set": result.chosen}
    settings["labels"] = result.head_set.labels
    store = ScoreStore(Path(config.folder) / RECEIVERS, settings)
    lines = LineStore(Path(config.folder) / LINES, "head types by trace", {"settings": settings})
    done: dict[str, dict[str, Any]] = {}

    def take(line: dict[str, Any]) -> bool:
        done[line["id"]] = line
        return True

    resumed = lines.open(config.resume, take)
    store.open(resumed)
    speed = {"resumed": len(done), "tokens": 0, "seconds": -time.perf_counter()}
    with progress("head types", len(result.ranked)) as advance, work.capture:
        for trace in result.traces(result.ranked):  # 2
            if trace.id in done:
                advance(1, 0)
                continue
            encoded = encoded_as(result.config, tokenizer, trace)
            line, receivers = work.measure(trace, encoded)
            store.add(receivers)
            lines.add([line])
            done[trace.id] = line
            speed["tokens"] += len(encoded)
            advance(1, len(encoded))
        fixed = work.patterns()  # 3
    speed["seconds"] += time.perf_counter()
    found = summarise(config, result, done, store.load(), fixed)  # 4
    found.content.update(speed=speed, left_out=work.left_out)
    found.write(Path(config.folder))
    return found


class _Work:
    """What measures a trace.

    Args:
        config: the settings.
        result: of the probe.
        model, tokenizer: the probed ones.

    Raises:
        ConfigError: the tokenizer has no tokens for the answer without content.
        ModelError: the model's attention cannot be captured.
    """

    def __init__(
        self, config: TypesConfig, result: ProbeResult, model: Any, tokenizer: Any
    ) -> None:
        self.config, self.result, self.tokenizer = config, result, tokenizer
        self.left_out: list[str] = []  # in sentences
        self.capture = StepRows(model, config.most)
        self.low = heads_below(self.capture.heads)
        self.chosen = result.places(result.chosen)
        self.null = self._null_ids() if "qr" in config.types else None
        self.gradient = OutputGradient(model) if "gradient" in config.types else None
        self.head: Callable[[Tensor], Tensor] | None = None
        try:
            self.head = output_head(model)
        except ModelError as error:
            self.left_out.append(f"surprisal and entropy are left out: {error}")

    def measure(self, trace: Trace, encoded: EncodedTrace) -> tuple[dict[str, Any], ScoredTrace]:
        """The line of a trace, and what its steps are to each head as a receiver."""
        behind = self._behind(trace, encoded)
        cache = None if self.null is None else self.capture.new_cache()
        figures, hidden = self.capture.figures(encoded, behind, cache)
        heads, steps = self._of_rows(encoded, figures)
        if self.head is not None:
            given = doubts(hidden, encoded.ids, self.head)
            names = ("surprisal", "first-token entropy")
            steps |= zip(names, step_doubts(*given, encoded.spans), strict=True)
        labels = [step.label for step in trace.steps]
        if self.null is not None:
            of_null = self._calibrated(trace.id, labels, encoded, behind, cache)
            heads |= of_null[0]
            steps |= of_null[1]
        if self.gradient is not None:
            heads["gradient"] = self.gradient(encoded.ids, np.flatnonzero(encoded.answer))
        line = {"id": trace.id}
        for name, found in (("heads", heads), ("steps", steps)):
            listed = {key: np.asarray(value, dtype=float).tolist() for key, value in found.items()}
            line[name] = json_value(listed, DIGITS)
        vertical = np.nan_to_num(vertical_scores(figures.attention)).astype(np.float32)
        scored = self.result.scored[trace.id]
        return line, replace(scored, scores=vertical)

    def _of_rows(self, encoded: EncodedTrace, figures: StepFigures) -> tuple[Heads, Steps]:
        """Types and scorers that come from the one pass over rows."""
        inside = np.zeros(len(encoded), dtype=bool)
        for first, last in encoded.spans:
            inside[first:last] = True
        written, attention = np.flatnonzero(encoded.answer), figures.attention
        heads = {
            "receiver": receiver_score(vertical_scores(attention)),
            "receiver-ranked": receiver_score(vertical_scores(attention, ranked=True)),
            "retrieval": copied(figures.looked_at, encoded.ids, written, inside).mean(axis=1),
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

    def _calibrated(
        self,
        name: str,
        labels: list[str | None],
        encoded: EncodedTrace,
        behind: int,
        cache: Any,
    ) -> tuple[Heads, Steps]:
        """What is left of the step scores without those of an answer that says nothing."""
        assert self.null is not None
        mass = self.capture.mass_behind(encoded.ids, behind, self.null, cache)
        scored = self.result.scored[name]
        null = np.nan_to_num(step_scores(mass, encoded.spans))
        own = np.nan_to_num(scored.scores)
        rest = calibrated(own, scored.answer_tokens, null, len(self.null))
        ranked = RankedTrace.of(replace(scored, scores=rest), labels, name)
        assert ranked  # it was ranked before
        essential = np.array([label == "essential" for label in labels])
        measured = replace(ranked, base=0.0).measure()  # uniform attention leaves nothing
        heads = {"qr": query_score(rest, scored.tokens, essential)}
        heads |= {f"null {metric}": values for metric, values in measured.items()}
        return heads, {"head set, less the null answer": rest[self.chosen].mean(axis=0)}

    def _behind(self, trace: Trace, encoded: EncodedTrace) -> int:
        """The first token behind the end mark."""
        if self.result.config.answer != "all":
            encoded = encoded_as(replace(self.result.config, answer="all"), self.tokenizer, trace)
        return int(encoded.answer.argmax())

    def _null_ids(self) -> Int[np.ndarray, "token"]:
        text = self.config.null_answer
        found = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if not found or (unknown is not None and unknown in found):
            raise ConfigError(
                f"this model has no tokens for the answer {text!r}: give another that says "
                "nothing (--null-answer), or leave out qr (--types)"
            )
        check_ids(self.tokenizer, found, "the null answer")
        return np.array(found, dtype=np.int64)

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
