"""Scorers of steps under a probe's own pairs, halves and intervals, and calibration by an answer.

The head set, published scorers, receiver heads and what each step costs the answer, beside the
probe's controls; and step scores less those by an answer without content, beside the plain ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probing.attention.scores import ScoredTrace
from probing.choices import METRICS
from probing.errors import DataError
from probing.files.headers import json_number
from probing.folder import ProbeResult
from probing.intervals import bootstrap_interval, mean_over_traces
from probing.numbers import exists, number
from probing.ranking.metrics import Measured, RankedTrace, ReadTraces
from probing.ranking.rank import add_figures
from probing.ranking.select import ensembles, select_top
from probing.traces.labels import read_labels
from probing.types.config import TypesConfig
from probing.types.formulas import calibrated

SET, RECEIVER, CAUSE = "head set", "receiver heads", "drop by cause"
LESS_NULL = "head set, less the null answer"
Lines = Mapping[str, Mapping[str, Any]]
Stored = Mapping[str, ScoredTrace]
LINES, FOLDER = "types.jsonl", "types"  # in the folder of a probe
RECEIVERS, NULL = "receivers", "null"  # stores in the second


@dataclass(frozen=True, eq=False)
class TypedTraces:
    """A probe and what was measured of its traces, in the order of its ranking.

    Args:
        config: of the types.
        result: of the probe.
        lines: by trace.
        traces: ranked ones with the scores of all heads.
        scorers: the same with those of other scorers.
        names: of these.
        less: the traces with what the null answer leaves of their scores; read when asked for.
    """

    config: TypesConfig
    result: ProbeResult
    lines: Lines
    traces: Sequence[RankedTrace]
    scorers: Sequence[RankedTrace]
    names: list[str]
    less: Sequence[RankedTrace] | None = None

    @property
    def ids(self) -> list[str]:
        return [trace.id for trace in self.traces]

    @property
    def groups(self) -> list[str]:
        return [trace.group for trace in self.traces]

    def places(self, half: str) -> list[int]:
        """Which of the traces are in a half of the probe: `select` or `held_out`."""
        names = {*self.result.counts[f"{half}_traces"]}
        return [place for place, name in enumerate(self.ids) if name in names]

    def of_type(self, name: str) -> Float[np.ndarray, "head trace"]:
        """A type of every head on every trace."""
        rows = [self.lines[trace]["heads"][name] for trace in self.ids]
        return np.array(rows, dtype=float).T


def in_order(
    config: TypesConfig,
    result: ProbeResult,
    lines: Lines,
    receivers: Stored,
    null: Stored | None,
) -> TypedTraces:
    """The traces in the order of the ranking, which intervals depend on, with all scorers."""
    problems = result.problems()
    ranked = {trace.id: trace for trace in result.ranked_traces(problems)}
    ids = [name for name in result.counts.get("problem_of", ranked) if name in ranked]
    labels = result.labels()
    chosen = result.places(result.chosen)
    left = None if null is None else less_null(result, null)
    drops = _drops(config.causes, {name: result.scored[name].tokens for name in ids})
    more: dict[str, Callable[[str], Any]] = {}
    if null is not None:
        more[LESS_NULL] = lambda name: _rest(result, null, name).scores[chosen].mean(axis=0)
    if "receiver" in config.types:
        kurtosis = np.array([lines[name]["heads"]["receiver"] for name in ids], dtype=float).T
        count = min(config.receivers, max(1, len(kurtosis) // 10))
        places = select_top(mean_over_traces(kurtosis), count)
        more[RECEIVER] = lambda name: receivers[name].scores[places].mean(axis=0)
    if drops:
        more[CAUSE] = drops.__getitem__
    scorers = []
    for name in ids:
        scored = result.scored[name]
        parts = [scored.scores[chosen].mean(axis=0), *lines[name]["steps"].values()]
        given = replace(scored, scores=np.array([*parts, *(of(name) for of in more.values())]))
        row = RankedTrace.of(given, labels[name], problems[name])
        assert row  # it was ranked before
        scorers.append(row)

    names = [SET, *lines[ids[0]]["steps"], *more]
    return TypedTraces(config, result, lines, [ranked[n] for n in ids], scorers, names, left)


def less_null(result: ProbeResult, null: Stored) -> ReadTraces:
    """The ranked traces with what is left of their scores; in the order of the ranking.

    Args:
        result: of the probe.
        null: step scores of each trace by an answer without content, by a token of it.
    """
    problems, labels = result.problems(), result.labels()

    def read(name: str) -> RankedTrace:
        row = RankedTrace.of(_rest(result, null, name), labels[name], problems[name])
        assert row  # it was ranked before
        return replace(row, base=0.0)  # uniform attention leaves nothing

    order = result.counts.get("problem_of", result.ranked)
    return ReadTraces([name for name in order if name in {*result.ranked}], read)


def _rest(result: ProbeResult, null: Stored, name: str) -> ScoredTrace:
    """What is left of a trace's step scores without those of an answer that says nothing."""
    scored = result.scored[name]
    own = np.nan_to_num(scored.scores)
    return replace(scored, scores=calibrated(own, scored.answer_tokens, null[name].scores, 1))


def _drops(
    path: Path | None, tokens: Mapping[str, Int[np.ndarray, "step"]]
) -> dict[str, Float[np.ndarray, "step"]]:
    """What the answer loses without each step, nats a token, as a label file by cause has it.

    Args:
        path: of the file; None: nothing is known.
        tokens: of the steps of each trace; one without tokens needs no figure.

    Raises:
        DataError: it has no score for a step.
    """
    if path is None:
        return {}
    details = read_labels(path).details
    found = {}
    for name, sizes in tokens.items():
        scores = {step: about.get("score") for step, about in details.get(name, {}).items()}
        lost = [step for step in np.flatnonzero(sizes).tolist() if scores.get(step) is None]
        if lost:
            raise DataError(
                f"{path}: no score of step {lost[0]} of trace {name}: is it the label file by "
                "cause (kfh label) of the traces that were probed?"
            )
        found[name] = np.array([scores.get(step) or 0.0 for step in range(len(sizes))])
    return found


def scorer_rows(measured: TypedTraces) -> list[dict[str, Any]]:
    """A row a scorer, as a control has it; the probe's own controls; and the set beside each.

    `less` is the set's SRA less the scorer's on the held-out half, paired by problem.
    """
    of = Measured.of(measured.scorers)
    split = (measured.places("select"), measured.places("held_out"))
    table = pd.DataFrame({"scorer": measured.names})
    add_figures(table, of, split, measured.config.seed)
    table = table.drop(columns=[name for name in table if name.startswith("gating")])
    held_out = of.values["sra"][:, split[1]]
    less = held_out[0] - held_out
    groups = [of.groups[place] for place in split[1]]
    limits = bootstrap_interval(less, groups, seed=measured.config.seed)
    rows = []
    for row, value, (low, high) in zip(
        table.to_dict("records"), mean_over_traces(less), limits, strict=True
    ):
        rows.append({**row, "less": value, "less_low": low, "less_high": high})
    for _, control in measured.result.controls.iterrows():
        kept = {name: control.get(name) for name in table if name != "scorer"}
        rows.append({"scorer": control["control"], **kept, "control": True})
    return [
        {name: v if isinstance(v, str | bool) else json_number(v) for name, v in row.items()}
        for row in rows
    ]


def calibration(measured: TypedTraces, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics before and after the null answer is taken away, with intervals over problems.

    Args:
        measured: with `less`.
        columns: by metric, of all heads, plain and calibrated: (head, trace) each.

    Returns:
        By metric: `heads`, the mean gain of all heads; `set`, the head set's figure on the
        held-out half, plain and calibrated; `chosen`, that of as many heads chosen by the
        calibrated figure on the other half; each with its gain, calibrated less plain; and
        `best`, `best_less_null`, the highest of single heads on all traces.
    """
    result = measured.result
    assert measured.less is not None
    place, half = result.places(result.chosen), measured.places("held_out")
    groups = measured.groups
    plain = _mixed(measured.traces, half, place)
    same = _mixed(measured.less, half, place)
    select = measured.places("select")
    by = columns[result.config.by][1]
    picked = select_top(mean_over_traces(by[:, select]), len(place))
    other = _mixed(measured.less, half, picked)
    found: dict[str, Any] = {}
    for metric in METRICS:
        before, after = columns[metric]

        def gain(values: np.ndarray, of: Sequence[str]) -> dict[str, Any]:
            low, high = bootstrap_interval(values[None], of, seed=measured.config.seed)[0]
            value = mean_over_traces(values[None])[0]
            named = zip(("gain", "gain_low", "gain_high"), (value, low, high), strict=True)
            return {name: json_number(v) for name, v in named}

        own = [groups[at] for at in half]
        found[metric] = {
            "best": json_number(mean_over_traces(before).max()),
            "best_less_null": json_number(mean_over_traces(after).max()),
            "heads": gain((after - before).mean(axis=0), groups),
        }
        for name, values in (("set", same), ("chosen", other)):
            figures = (mean_over_traces(x[metric][None])[0] for x in (plain, values))
            found[metric][name] = {
                **dict(zip(("plain", "less_null"), map(json_number, figures), strict=True)),
                **gain(values[metric] - plain[metric], own),
            }
    heads = [list(result.pairs[at]) for at in picked]
    return {"metrics": found, "chosen": heads, "by": result.config.by}


def _mixed(
    traces: Sequence[RankedTrace], half: Sequence[int], heads: list[int]
) -> dict[str, Float[np.ndarray, "trace"]]:
    """Every metric of the mean score of some heads, on some of the traces."""
    found = [traces[at].measure(ensembles(traces[at], heads)[-1:]) for at in half]
    return {metric: np.array([row[metric][0] for row in found]) for metric in METRICS}


def verdict_scorers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which scorers the head set beats on problems that it was not chosen on."""
    beaten, open_ = list[str](), list[str]()
    for row in rows[1:]:
        if row.get("control") or row["scorer"].startswith(SET):
            continue
        shown = exists(row["less_low"]) and row["less_low"] > 0
        (beaten if shown else open_).append(f"{row['scorer']} ({number(row['less'], signed=True)})")
    words = "The head set's SRA less the scorer's, on held-out problems: "
    sentences = [f"{words}shown above 0 for {', '.join(beaten) or 'none'}."]
    if open_:
        sentences.append(f"Not shown to be better than {', '.join(open_)}.")
    return sentences


def verdict_calibration(found: Mapping[str, Any], null: str) -> list[str]:
    """Whether SRA and gating gain by calibration, in words."""
    sentences = []
    for metric, name in (("sra", "SRA"), ("gating", "gating accuracy")):
        row = found["metrics"][metric]["set"]
        low, high = row["gain_low"], row["gain_high"]
        way = "is not shown to change"
        if exists(low) and (low > 0 or high < 0):
            way = "gains" if low > 0 else "loses"
        sentences.append(
            f"Less the scores by the answer {null!r} the head set's {name} {way} on held-out "
            f"problems: {number(row['plain'])} to {number(row['less_null'])} "
            f"({number(row['gain'], signed=True)}, {number(low, signed=True)} to "
            f"{number(high, signed=True)})."
        )
    return sentences
