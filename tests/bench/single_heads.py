"""Every head of the pocket reasoner silenced alone, beside its SRA.

python tests/bench/single_heads.py --probe runs/probe --n 60 --also 2.2+2.3

For each head and mode: what the answer's log-probability and `follow` (docs/PAPER.md, eq. 18) lose,
means over the first n correct traces with 95 % intervals over problems; and how these rank the
heads beside the SRA of the probe (Spearman).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from probing.answers.edited import batches
from probing.answers.edits import HeadEdit
from probing.choices import Head
from probing.files.headers import data_path
from probing.headset import HeadSet
from probing.intervals import estimate_mean
from probing.interventions.heads import Arm, HeadWork, open_answers
from probing.interventions.job import prepare_answers
from probing.interventions.setup import InterventionConfig, Setup, TraceChoice
from probing.models.load import load_model, load_tokenizer

MODES = ("zero/all", "zero/answer-to-steps")


def measured(
    setup: Setup, also: Sequence[tuple[Head, ...]]
) -> dict[tuple[tuple[Head, ...], str], list[tuple[float, float]]]:
    """By heads and mode: for each trace the change of log-probability and of `follow`."""
    found: dict[tuple[tuple[Head, ...], str], list[tuple[float, float]]] = {}
    with open_answers(setup) as answers:
        work = HeadWork(setup, answers, sources=False)
        single = [((layer, head),) for layer, n in answers.layers.items() for head in range(n)]
        for traces in batches(setup.traces, setup.batch_tokens, answers.lengths):
            batch = work.prepare(traces)
            before, none = work.measure(batch, Arm("none", "", 0, None), None)
            for heads, mode in product([*single, *also], MODES):
                edit = HeadEdit.of_mode(mode, heads)
                after, _ = work.measure(batch, Arm("silenced", mode, 0, edit), none)
                found.setdefault((heads, mode), []).extend(
                    (
                        b["logprob"] - a["logprob"],
                        b["extra"].get("follow", np.nan) - a["extra"].get("follow", np.nan),
                    )
                    for a, b in zip(before, after, strict=True)
                )
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probe", type=Path, required=True, help="folder of kfh probe")
    parser.add_argument("--n", type=int, default=60)
    parser.add_argument("--also", nargs="*", default=[], help="sets of heads, such as 2.2+2.3")
    arguments = parser.parse_args()
    also = [
        tuple((int(layer), int(head)) for layer, head in (h.split(".") for h in text.split("+")))
        for text in arguments.also
    ]
    torch.set_num_threads(1)
    folder = str(data_path("pocket"))
    model, tokenizer = load_model(folder, device="cpu"), load_tokenizer(folder)
    heads = HeadSet.load("pocket", model.config)
    choice = TraceChoice(only="all", limit=arguments.n).choose(heads)
    config = InterventionConfig(max_answer_tokens=0)
    empty = Setup(model, tokenizer, heads, (), (), config, lambda trace, ids: True)
    traces = list(prepare_answers(empty, choice))
    setup = replace(empty, traces=traces, reference=traces)
    sra = pd.read_parquet(arguments.probe / "sra.parquet").set_index(["layer", "head"])["sra"]
    rows = []
    for (heads_of, mode), values in measured(setup, also).items():
        row: dict[str, object] = {
            "heads": "+".join(f"{layer}.{head}" for layer, head in heads_of),
            "sra": sra[heads_of[0]] if len(heads_of) == 1 else np.nan,
            "mode": mode,
        }
        for name, column in zip(("logprob", "follow"), np.array(values).T, strict=True):
            there = column[~np.isnan(column)]
            mean = estimate_mean(there[:, None].tolist())
            row |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
            row["n"] = mean.n
        rows.append(row)
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    for mode, of in table.dropna(subset="sra").groupby("mode"):
        for name in ("logprob", "follow"):
            rho = spearmanr(of["sra"], -of[name])
            print(
                f"{mode}: SRA and loss of {name}: Spearman {rho.statistic:.2f}, p {rho.pvalue:.3f}"
            )


if __name__ == "__main__":
    main()
