"""Head types of a probe, all together: a table of heads, scorers under its own terms, a verdict.

`types.parquet` has a row a head: SRA and the types. `types.json` has what is said of each type and
of each scorer of steps, with settings and counts. Scorers stand under the pairs, halves and
intervals of the probe's own ranking.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from probing.choices import METRICS, Head
from probing.errors import DataError
from probing.files.headers import (
    HEADER,
    file_header,
    json_number,
    json_value,
    read_object,
    whole_file,
    write_json,
)
from probing.files.tables import WRITTEN, read_columns
from probing.folder import ProbeResult
from probing.intervals import bootstrap_interval, mean_over_traces
from probing.numbers import number
from probing.ranking.metrics import Measured, RankedTrace
from probing.ranking.select import ensembles, select_top
from probing.robustness.stability import Probed, correlation_interval, overlap, spearman
from probing.settings import to_json
from probing.types.config import TypesConfig
from probing.types.formulas import query_score
from probing.types.scorers import (
    Lines,
    Stored,
    TypedTraces,
    calibration,
    in_order,
    scorer_rows,
    verdict_calibration,
    verdict_scorers,
)

FILE, TABLE = "types.json", "types.parquet"


@dataclass(frozen=True, eq=False)
class HeadTypes:
    """What else the heads of a probe are, and what other scorers of its steps do.

    Args:
        table: a row a head: `layer`, `head`, the probe's metrics, and a column a type.
        content: of `types.json`.

    Example:
        >>> HeadTypes.load("runs/x").content["verdict"]  # doctest: +SKIP
    """

    table: pd.DataFrame
    content: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write `types.parquet` and `types.json`, each whole."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pandas(self.table, preserve_index=False)
        header = json.dumps(file_header("head types", model=self.content["model"]["id"]))
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), HEADER: header})
        with whole_file(folder / TABLE) as temporary:
            pq.write_table(table, temporary, **WRITTEN)
        write_json(folder / FILE, {HEADER: file_header("head types"), **self.content})

    @classmethod
    def load(cls, folder: str | Path) -> HeadTypes:
        """Read what `write` wrote.

        Raises:
            DataError: it is not there, or damaged.
        """
        folder, advice = Path(folder), f"run `kfh heads types {folder}` first, or again"
        if not (folder / FILE).is_file():
            raise DataError(f"{folder}: no head types ({FILE} is missing); {advice}")
        content = read_object(folder / FILE)
        for part in ("types", "scorers", "verdict", "correlations"):
            if not isinstance(content.get(part), (list, dict)):
                raise DataError(f"{folder / FILE}: damaged, no {part}; {advice}")
        return cls(read_columns(folder / TABLE, advice), content)


def summarise(
    config: TypesConfig,
    result: ProbeResult,
    lines: Lines,
    receivers: Stored,
    null: Stored | None,
    fixed: Mapping[str, Float[np.ndarray, "head"]],
) -> HeadTypes:
    """Everything that is said of the types and the scorers, but for how long it took.

    Args:
        config: the settings.
        result: of the probe.
        lines: of each ranked trace, by id: `heads` and `steps`.
        receivers: what each head says of each step as a receiver.
        null: step scores by a token of an answer without content; None: it was not asked for.
        fixed: types that no trace is needed for, (head,) each.
    """
    measured = in_order(config, result, lines, receivers, null)
    values = {n: measured.of_type(n) for n in config.types if n not in (*fixed, "qr")}
    before = Measured.of(measured.traces).values
    after = None
    if measured.less is not None:
        after = Measured.of(measured.less).values
        values["qr"] = query_scores(measured.less)
    figures = {name: mean_over_traces(values[name]) for name in values} | dict(fixed)
    figures = {name: figures[name] for name in config.types}
    table = result.table[["layer", "head", *METRICS]].assign(**figures)
    for metric, rest in (after or {}).items():
        table[f"{metric}_less_null"] = mean_over_traces(rest)
    sra = before["sra"]
    rows = [_type_row(measured, name, figures, values.get(name), sra) for name in config.types]
    scorers = scorer_rows(measured)
    names = ["sra", "balanced", *config.types]
    known = np.nan_to_num(table[names].to_numpy(float).T, nan=-np.inf)
    matrix = [[json_number(spearman(a, b)) for b in known] for a in known]
    verdict = [*_verdict_types(rows, result.chosen, len(table)), *verdict_scorers(scorers)]
    less = None
    if after is not None:
        less = calibration(
            measured, {metric: (before[metric], after[metric]) for metric in METRICS}
        )
        verdict += verdict_calibration(less, config.null_answer)
    content: dict[str, Any] = {
        "settings": to_json(config),
        "model": vars(result.card),
        "counts": {
            "heads": len(table),
            "traces": len(measured.ids),
            "problems": len({*measured.groups}),
        },
        "set": result.chosen,
        "types": rows,
        "correlations": {"names": names, "matrix": matrix},
        "scorers": scorers,
        "calibration": less,
        "verdict": verdict,
    }
    return HeadTypes(table, json_value(content))


def query_scores(less: Iterable[RankedTrace]) -> Float[np.ndarray, "head trace"]:
    """The QR score of every head on every trace, from scores less those by the null answer."""
    return np.array([query_score(row.scores, row.tokens, row.essential) for row in less]).T


def _type_row(
    measured: TypedTraces,
    name: str,
    figures: Mapping[str, Float[np.ndarray, "head"]],
    values: Float[np.ndarray, "head trace"] | None,
    sra: Float[np.ndarray, "head trace"],
) -> dict[str, Any]:
    """What is said of a type: correlation with SRA, overlap with the set, and as a selector."""
    result, own = measured.result, figures[name]
    chosen = result.places(result.chosen)
    # Of a small model ten heads would be most of all.
    top = min(measured.config.top, max(len(chosen), len(own) // 4))
    strongest = select_top(_ordered(own), top)
    low, high = _correlation_interval(measured, name, values, sra)
    half = measured.places("select")
    of_half = own if values is None else mean_over_traces(values[:, half])
    picked = select_top(_ordered(of_half), len(chosen))
    pairs = result.pairs
    return {
        "type": name,
        "rho": float(spearman(_ordered(own), result.table["sra"].to_numpy(float))),
        "rho_low": low,
        "rho_high": high,
        "strongest": [[*pairs[place], float(own[place])] for place in strongest[:3]],
        "among": [list(pairs[place]) for place in chosen if place in strongest],
        "overlap": asdict(overlap({*strongest}, {*chosen}, len(own))),
        "selected": [list(pairs[place]) for place in picked],
        "held_out": _ensemble(measured, picked),
    }


def _correlation_interval(
    measured: TypedTraces,
    name: str,
    values: Float[np.ndarray, "head trace"] | None,
    sra: Float[np.ndarray, "head trace"],
) -> tuple[float, float]:
    """95 % interval over problems of Spearman's ρ with SRA; none of a type without traces."""
    if values is None:
        return float("nan"), float("nan")
    known = ~np.isnan(values).any(axis=0)
    problems = tuple(group for group, use in zip(measured.groups, known, strict=True) if use)
    if len({*problems}) < 2 or np.ptp(values[:, known].mean(axis=1)) == 0:
        return float("nan"), float("nan")
    one, other = (
        Probed(of, rows[:, known].mean(axis=1), (), rows[:, known], problems)
        for of, rows in ((name, values), ("sra", sra))
    )
    return correlation_interval(one, other, spearman, seed=measured.config.seed)


def _ordered(values: Float[np.ndarray, "head"]) -> Float[np.ndarray, "head"]:
    """A head without a figure is below all others."""
    known = values[~np.isnan(values)]
    least = known.min() - 1 if len(known) else 0.0
    return np.where(np.isnan(values), least, values) - least  # `select_top` takes none below −1


def _ensemble(measured: TypedTraces, heads: list[int]) -> dict[str, float | None]:
    """SRA of the mean score of some heads on the held-out half, with its interval."""
    traces = [measured.traces[place] for place in measured.places("held_out")]
    found = np.array([t.measure(ensembles(t, heads)[-1:])["sra"] for t in traces]).T
    groups = [trace.group for trace in traces]
    low, high = bootstrap_interval(found, groups, seed=measured.config.seed)[0]
    value = float(mean_over_traces(found)[0])
    return {"sra": value, "sra_low": json_number(low), "sra_high": json_number(high)}


def _verdict_types(
    rows: Sequence[Mapping[str, Any]], chosen: Sequence[Head], heads: int
) -> list[str]:
    """A sentence a type: how many of the set are among its strongest heads, beside chance."""
    sentences = []
    for row in rows:
        found = row["overlap"]
        top, shared = found["sizes"][0], found["shared"]
        named = ", ".join(f"{layer}.{head}" for layer, head in row["among"])
        sentences.append(
            f"{shared} of {len(chosen)} heads of the set{f' ({named})' if named else ''} are among "
            f"the {top} strongest of {heads} by {row['type']}; chance {found['expected']:.1f} "
            f"(p = {number(found['p'])})."
        )
    return sentences
