"""Every head of the pocket reasoner silenced alone, beside its SRA.

python bench/single_heads.py --probe runs/probe --n 60

For each head and mode: what the answer's log-probability and `follow` (docs/PAPER.md, eq. 18) lose,
means over the first n correct traces with 95 % intervals over problems; and how these rank the
heads beside the SRA of the probe (Spearman).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from probing.ablate_heads import Arm, HeadWork, open_answers
from probing.edited import batches
from probing.effects import group_interval
from probing.files import data_path
from probing.headedits import HeadEdit
from probing.headset import HeadSet
from probing.intervened import choose_traces, prepare_interventions, source_of
from probing.intervention import InterventionConfig, Setup
from probing.models import load_model, load_tokenizer

MODES = ("zero/all", "zero/answer-to-steps")


def measured(setup: Setup) -> dict[tuple[int, int, str], list[tuple[float, float]]]:
    """By layer, head and mode: for each trace the change of log-probability and of `follow`."""
    found: dict[tuple[int, int, str], list[tuple[float, float]]] = {}
    with open_answers(setup) as answers:
        work = HeadWork(setup, answers, sources=False)
        for traces in batches(setup.traces, setup.config.batch_tokens):
            batch = work.prepare(traces)
            before, none = work.measure(batch, Arm("none", "", 0, None), None)
            for layer, heads in answers.layers.items():
                for head in range(heads):
                    for mode in MODES:
                        edit = HeadEdit.of_mode(mode, [(layer, head)])
                        after, _ = work.measure(batch, Arm("single", mode, 0, edit), none)
                        found.setdefault((layer, head, mode), []).extend(
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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = str(data_path("pocket"))
    model, tokenizer = load_model(folder, device="cpu"), load_tokenizer(folder)
    heads = HeadSet.load("pocket", model.config)
    source = source_of(heads, data_path("pocket", "traces.jsonl"))
    choice = choose_traces(source, heads, "all", arguments.n)
    config = InterventionConfig(max_answer_tokens=0)
    traces = list(prepare_interventions(model, tokenizer, choice, heads, config, rule=source.rule))
    setup = Setup(model, tokenizer, heads, traces, traces, config, lambda trace, ids: True)
    sra = pd.read_parquet(arguments.probe / "sra.parquet").set_index(["layer", "head"])["sra"]
    rows = []
    for (layer, head, mode), values in measured(setup).items():
        row: dict[str, object] = {"head": f"{layer}.{head}", "sra": sra[layer, head], "mode": mode}
        for name, column in zip(("logprob", "follow"), np.array(values).T, strict=True):
            there = column[~np.isnan(column)]
            mean, low, high = group_interval(there, np.arange(len(there)))
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high, "n": len(there)}
        rows.append(row)
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    for mode, of in table.groupby("mode"):
        for name in ("logprob", "follow"):
            rho = spearmanr(of["sra"], -of[name])
            print(
                f"{mode}: SRA and loss of {name}: Spearman {rho.statistic:.2f}, p {rho.pvalue:.3f}"
            )


if __name__ == "__main__":
    main()
