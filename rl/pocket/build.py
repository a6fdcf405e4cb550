"""Make an embedded model anew and check it: `make pocket`, `make pocket-long`.

1. Train it by the recipe of its level (skipped where the folder already holds a model).
2. Measure its figures on held-out problems.
3. Sample and label traces from it.
4. Probe its heads on them.
5. Hold all of it against the targets; a missed one ends in exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from probing.models.load import load_frozen
from rl.pocket.levels import LEVELS, level_of
from rl.pocket.measure import figures, missed_targets, write_figures
from rl.pocket.pretrain import pretrain
from rl.pocket.traces import sample_traces, write_records


def build(out: Path, problems: int = 600, traces: int = 500, level: str = "pocket") -> list[str]:
    """Do the five steps in `out`; return a line for each target missed.

    Args:
        out: folder for model, figures, traces and the probe.
        problems: held-out problems that each figure is measured on.
        traces: labelled traces to sample.
        level: whose model (`rl.pocket.levels.LEVELS`).
    """
    if not (out / "model.safetensors").exists():
        pretrain(level_of(level).recipe, out, lambda line: print(line, flush=True))  # 1
    model, tokenizer = load_frozen(out)
    measured = figures(model, tokenizer, problems, level)  # 2
    write_figures(measured, out / "figures.json")
    for name, figure in measured.items():
        print(f"{name:26s} {figure}  n={figure.n}")
    sampled = sample_traces(model, tokenizer, traces, level=level)  # 3
    write_records(sampled.records, out / "traces.jsonl")
    return missed_targets(measured, level) + probe_heads(out, level)  # 4, 5


def probe_heads(out: Path, level: str = "pocket") -> list[str]:
    """Probe the model in `out` on its traces; return a line for each target of heads missed."""
    from probing.config import ProbeConfig
    from probing.run import probe

    settings = ProbeConfig(str(out), out / "traces.jsonl", out / "probe", device="cpu")
    result = probe(settings)
    if result is None:  # another process reports
        return []
    best = result.curves["top"][2]
    missed = []
    for metric, target in level_of(level).head_targets.items():
        shown = f"{best[metric]:.3f} [{best[metric + '_low']:.3f}, {best[metric + '_high']:.3f}]"
        print(f"best three heads, {metric:10s} {shown}  held out")
        if best[metric] < target:
            missed.append(f"{metric} of the best three heads is {shown}, below {target}")
    return missed


def main() -> None:
    """Command line of `make pocket` and `make pocket-long`."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--level", choices=LEVELS, default="pocket")
    parser.add_argument("--problems", type=int, default=600, help="for each figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    missed = build(options.out, options.problems, level=options.level)
    recipe = json.loads((options.out / "recipe.json").read_text(encoding="utf-8"))
    print(f"trained in {recipe['seconds'] / 60:.1f} min")
    for line in missed:
        print(f"target missed: {line}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
