"""Head maps of others, read into our files and held against any other table of heads.

- DuoAttention (arXiv 2410.10819): `full_attention_heads.tsv`, a line a layer, a number for each of
  its key-value heads, tabs between.
- RLKV (arXiv 2510.08525): `adapter_weights.tsv`, the same.
- Retrieval_Head (arXiv 2404.15574): `head_score/*.json`, `{"layer-head": [score, …]}`; of a head's
  scores the mean.
- kfh: the folder of a probe, or of an import.

A number for a key-value head is that of each of the query heads that share it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

from probing.attention.store import ScoreStore
from probing.choices import METRICS, Head
from probing.errors import ConfigError, DataError, ModelError
from probing.files.headers import HEADER, file_hash, file_header, whole_file
from probing.files.jsonl import read_lines
from probing.files.reading import read_json
from probing.files.tables import WRITTEN, read_columns
from probing.folder import ProbeResult
from probing.headset import HeadFigures, HeadSet
from probing.models.identity import ModelCard
from probing.numbers import number
from probing.ranking.select import select_top
from probing.robustness.stability import (
    RESAMPLES,
    Probed,
    ceiling,
    compare_pair,
    drawn,
    overlap,
    probed,
    reliability,
)
from probing.settings import unknown
from probing.types.result import TABLE, HeadTypes, query_scores
from probing.types.scorers import FOLDER, LINES, NULL, less_null

TSV = {"full_attention_heads.tsv": "DuoAttention", "adapter_weights.tsv": "RLKV"}
IMPORTED = "table.parquet"  # of an imported map
NAME = re.compile(r"(\d+)-(\d+)")
PLACES = "give a .tsv of DuoAttention or RLKV, a .json of Retrieval_Head, or a folder of kfh"


@dataclass(frozen=True, eq=False)
class HeadMap:
    """A number for every head of a model.

    Args:
        name: what it is called in messages.
        kind: whose it is, and of what.
        heads: `(layer, head)`, by layer and head; of key-value heads where `grouped`.
        values: one a head.
        grouped: whether it is of key-value heads.
        probe: what is known of its noise; None: nothing.
    """

    name: str
    kind: str
    heads: list[Head]
    values: Float[np.ndarray, "head"]
    grouped: bool = False
    probe: Probed | None = None

    @property
    def per_layer(self) -> int:
        """Heads of a layer, the most."""
        return max(head for _, head in self.heads) + 1

    def over(self, per_layer: int) -> HeadMap:
        """The same for so many query heads a layer; a key-value head's stands for its group.

        Raises:
            ModelError: their number is no multiple of the key-value heads.
        """
        group, rest = divmod(per_layer, self.per_layer)
        if not self.grouped or rest or not group:
            raise ModelError(
                f"{self.name} has {self.per_layer} {'key-value ' * self.grouped}heads a layer: "
                f"they do not fit {per_layer} heads"
            )
        heads = [
            (layer, head * group + place) for layer, head in self.heads for place in range(group)
        ]
        return replace(self, heads=heads, values=np.repeat(self.values, group), grouped=False)


def read_map(place: str | Path) -> HeadMap:
    """Read a head map.

    Args:
        place: a file or folder, see above. Behind a folder of a probe may stand `:` and a metric
            or a head type that was measured there (`runs/x:retrieval`); default SRA.

    Raises:
        DataError: no such file, or one that is damaged; the message says where.
        ConfigError: no such column.
    """
    text, _, column = str(place).partition(":")
    path = Path(text)
    if path.is_dir():
        for name in TSV:
            if (path / name).is_file():
                return _from_tsv(path / name)
        if (path / IMPORTED).is_file():
            return _from_table(path / IMPORTED, path.name, column or "score")
        return _from_probe(path, column or "sra")
    if column:
        raise ConfigError(f"{place}: a column is that of a folder of kfh")
    if path.suffix == ".tsv":
        return _from_tsv(path)
    if path.suffix == ".json":
        return _from_scores(path)
    raise DataError(f"{path}: no head map that is known here; {PLACES}")


def _from_tsv(path: Path) -> HeadMap:
    """A line a layer, tabs between the numbers of its key-value heads."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    rows = []
    for at, line in enumerate(lines, 1):
        try:
            rows.append([float(value) for value in line.split("\t")])
        except ValueError as error:
            raise DataError(f"{path}, line {at}: no numbers with tabs between") from error
        if len(rows[-1]) != len(rows[0]) or not np.isfinite(rows[-1]).all():
            raise DataError(
                f"{path}, line {at}: {len(rows[-1])} numbers, where line 1 has {len(rows[0])}; "
                "or one that is not finite"
            )
    if not rows:
        raise DataError(f"{path}: empty; {PLACES}")
    values = np.array(rows)
    heads = [(layer, head) for layer in range(len(values)) for head in range(values.shape[1])]
    kind = f"{TSV.get(path.name, 'DuoAttention or RLKV')}: full attention by key-value head"
    return HeadMap(path.parent.name or path.stem, kind, heads, values.ravel(), grouped=True)


def _from_scores(path: Path) -> HeadMap:
    """Retrieval scores of each head, one an example; their mean counts."""
    content = read_json(path, "as retrieval scores")
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: no object of retrieval scores; {PLACES}")
    found: dict[Head, float] = {}
    for name, scores in content.items():
        match = NAME.fullmatch(name)
        try:
            values = np.array(scores, dtype=float)
        except (TypeError, ValueError):
            values = np.array([])
        if not match or values.ndim != 1 or not len(values) or not np.isfinite(values).all():
            raise DataError(
                f'{path}: {name!r:.40} must be "layer-head" with a list of numbers, is '
                f"{scores!r:.40}"
            )
        found[int(match[1]), int(match[2])] = float(values.mean())
    layers, heads = (max(place) + 1 for place in zip(*found, strict=True))
    every = [(layer, head) for layer in range(layers) for head in range(heads)]
    if missing := [pair for pair in every if pair not in found]:
        raise DataError(f"{path}: no score of head {missing[0][0]}-{missing[0][1]}")
    values = np.array([found[pair] for pair in every])
    return HeadMap(path.stem, "Retrieval_Head: mean retrieval score", every, values)


def _from_table(path: Path, name: str, column: str) -> HeadMap:
    """A column of a head table of kfh.

    Raises:
        ConfigError: it has no such column.
        DataError: it is damaged, or lacks the figure for a head.
    """
    table = read_columns(path, "import it again")
    columns = [str(c) for c in table if c not in ("layer", "head")]
    if column not in columns:
        raise ConfigError(f"{path}: {unknown('column', column, columns)}")
    values = table[column].to_numpy(float)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: {column} has no figure for every head")
    heads = list(map(tuple, table[["layer", "head"]].to_numpy().tolist()))
    return HeadMap(f"{name}:{column}", f"kfh: {column}", heads, values)


def _from_probe(folder: Path, column: str) -> HeadMap:
    """A metric of a finished probe, or a type beside it, with what is known of its noise."""
    result, name = ProbeResult.load(folder), f"{folder.name}:{column}"
    if column in METRICS:
        known = probed(name, result, column)
        return HeadMap(name, f"kfh: {column}", result.pairs, known.figures, probe=known)
    HeadTypes.load(folder)  # says what to run where it is not there
    found = _from_table(folder / TABLE, folder.name, column)
    return replace(found, probe=_typed(folder, result, found, column))


def _typed(folder: Path, result: ProbeResult, found: HeadMap, column: str) -> Probed | None:
    """A type by trace; None of one that no trace is needed for, or by which all heads are alike."""
    rows, _ = read_lines(folder / LINES)
    lines = {row["id"]: row["heads"] for row in rows}
    if column == "qr":
        left = less_null(result, ScoreStore(folder / FOLDER / NULL, {}).load())
        names, values = list(left.keys), query_scores(left)
    elif column in next(iter(lines.values()), {}):
        names = [name for name in result.ranked if name in lines]
        values = np.array([lines[name][column] for name in names], dtype=float).T
    else:
        return None
    if not np.ptp(found.values):
        return None
    there, problems = ~np.isnan(values).any(axis=0), result.problems()
    groups = tuple(problems[name] for name, use in zip(names, there, strict=True) if use)
    return Probed(found.name, found.values, (), values[:, there], groups) if groups else None


def import_map(
    source: HeadMap, path: Path, out: Path, card: ModelCard, top: int
) -> tuple[HeadSet, HeadMap]:
    """Write a map as `table.parquet`, and its strongest heads as the head set `heads.json`.

    Args:
        source: the map.
        path: the file that it was read from.
        out: folder to write into.
        card: of the model; its heads a layer are those of the table.
        top: heads in the set.

    Raises:
        ModelError: the map is of another shape.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = source.over(card.heads) if source.grouped else source
    layers = max(layer for layer, _ in found.heads) + 1
    if (layers, found.per_layer) != (card.layers, card.heads):
        raise ModelError(
            f"{path}: {layers} layers of {found.per_layer} heads do not fit {card.describe()}"
        )
    table = pd.DataFrame(found.heads, columns=["layer", "head"]).assign(score=found.values)
    origin = {"file": path.name, "hash": file_hash(path), "kind": found.kind}
    header = json.dumps(file_header("head table", model=card.id, source=origin))
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), HEADER: header})
    chosen = [found.heads[place] for place in select_top(_above(found.values), top)]
    head_set = HeadSet(
        heads=tuple(HeadFigures(layer, head) for layer, head in chosen),
        model=card,
        source=f"{found.kind}, the {top} strongest heads of {path.name} ({origin['hash']}). No "
        "SRA was measured: probe the model to know it.",
        header=file_header("head set"),
    )
    with whole_file(out / IMPORTED) as temporary:
        pq.write_table(arrow, temporary, **WRITTEN)
    head_set.save(out / "heads.json")
    return head_set, found


def _above(values: Float[np.ndarray, "head"]) -> Float[np.ndarray, "head"]:
    """The same order from 0 on: `select_top` takes what is below −1 for missing."""
    return np.asarray(values - values.min())


def compare_maps(one: HeadMap, other: HeadMap, top: int, seed: int = 0) -> dict[str, Any]:
    """Two maps held against each other: rank correlation with its ceiling, overlap with chance.

    Args:
        one, other: of models of one shape; one of key-value heads is spread over the query heads.
        top: strongest heads whose overlap is told.
        seed: of resampling.

    Returns:
        `pearson`, `spearman` with intervals where both are probes, `ceiling` (None where the noise
        of one is not known), `overlap` of the strongest `top`, and `heads`.

    Raises:
        ModelError: they are of different shapes.
    """
    if one.grouped and not other.grouped:
        one = one.over(other.per_layer)
    if other.grouped and not one.grouped:
        other = other.over(one.per_layer)
    if one.heads != other.heads:
        raise ModelError(
            f"{one.name} is of {len(one.heads)} heads, {other.name} of {len(other.heads)}: heads "
            "of models of different shapes have no places in common"
        )
    top = min(top, len(one.heads))
    names = [f"{of.name} ({of.kind})" for of in (one, other)]
    strongest = [select_top(_above(of.values), top) for of in (one, other)]
    sides = []
    for of, name, best in zip((one, other), names, strongest, strict=True):
        known = of.probe or Probed(name, of.values, ())
        sides.append(replace(known, name=name, chosen=tuple(one.heads[place] for place in best)))
    found = compare_pair(sides[0], sides[1], one.heads, seed)
    found["ceiling"] = ceiling(*(reliability(of, seed)[1] for of in sides))
    found["overlap"] = vars(overlap({*strongest[0]}, {*strongest[1]}, len(one.heads)))
    found["overlap"] |= _overlap_interval(sides, top, seed)
    found["shared"] = [list(head) for head in sides[0].chosen if head in sides[1].chosen]
    return {**found, "heads": len(one.heads), "k": top}


def _overlap_interval(sides: Sequence[Probed], top: int, seed: int) -> dict[str, int | None]:
    """What the strongest share when problems are drawn anew: 95 %; a map without traces stays."""
    known = [side for side in sides if side.values is not None]
    weights = iter(drawn(known, RESAMPLES, seed)) if known else iter(())
    inside = []
    for side in sides:
        figures = side.figures[None]
        if side.values is not None:
            figures = next(weights) @ side.values.T  # the order is that of the mean
        best = np.argsort(-figures, axis=-1, kind="stable")[:, :top]
        inside.append(np.zeros(figures.shape, dtype=bool))
        np.put_along_axis(inside[-1], best, True, axis=-1)
    if not known:
        return {"low": None, "high": None}
    shared = (inside[0] & inside[1]).sum(axis=-1)
    low, high = np.quantile(shared, [0.025, 0.975], method="nearest")
    return {"low": int(low), "high": int(high)}


def compare_types(
    base: str | Path, trained: str | Path, top: int = 10, seed: int = 0
) -> dict[str, Any]:
    """Where do the heads of a trained model come from? Two probes with types, side by side.

    Args:
        base, trained: folders of probes of one model before and after training, with `types.json`.
        top: strongest heads that are held against each other.
        seed: of resampling.

    Returns:
        `rows`: for SRA and each type measured in both, `kept` holds base and trained against each
        other by it, `into` the base's by it against the trained model's by SRA, each as
        `compare_maps` says; `origins`: of each head of the trained set its place in the base by
        each of them, from 1; `verdict`, in sentences.

    Raises:
        DataError: a folder without a probe or its types.
        ModelError: models of different shapes.
    """
    folders = Path(base), Path(trained)
    tables = [HeadTypes.load(folder) for folder in folders]
    measured = [[row["type"] for row in of.content["types"]] for of in tables]
    both = [name for name in measured[0] if name in measured[1]]
    names = [name for name in both if all(np.isfinite(of.table[name]).all() for of in tables)]
    lost, names = [name for name in both if name not in names], ["sra", *names]
    maps = {name: [read_map(f"{folder}:{name}") for folder in folders] for name in names}
    rows = []
    for name, (one, other) in maps.items():
        kept = compare_maps(one, other, top, seed)
        into = kept if name == "sra" else compare_maps(one, maps["sra"][1], top, seed)
        rows.append({"type": name, "kept": kept, "into": into})
    ranks = {name: rankdata(-one.values, method="min") for name, (one, _) in maps.items()}
    pairs = maps["sra"][0].heads
    origins = [
        {"head": head, **{name: int(of[pairs.index(tuple(head))]) for name, of in ranks.items()}}
        for head in tables[1].content["set"]
    ]
    verdict = [
        f"By {row['type']} of the base, {row['into']['overlap']['shared']} of the "
        f"{row['into']['k']} strongest heads are among the trained model's strongest by SRA; "
        f"chance {number(row['into']['overlap']['expected'], 1)} "
        f"(p = {number(row['into']['overlap']['p'])})."
        for row in rows
    ]
    if lost:
        verdict.append(f"Left out, since not every head has a figure: {', '.join(lost)}.")
    heads = len(pairs)
    return {"rows": rows, "origins": origins, "heads": heads, "k": top, "verdict": verdict}
