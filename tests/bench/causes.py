"""Labels by cause on real traces, and what the reuse of the cache saves.

    python tests/bench/causes.py labels TRACES LABELS [LABELS ...]
    python tests/bench/causes.py speed [--model MODEL] [--tokens 4096] [--steps 40] [--full 2]

`labels` holds label files of `kfh label` against a trace file that brings labels and a number a
step (`importance`): rank correlation with that number, AUC against the labels, and the same for
position alone, per trace and on average. `speed` takes the seconds of all drops of one trace, and
of full forward passes with the same mask, of which every step would need one. Prints Markdown.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from capture import _smollm2, _trace


def main() -> None:
    """Do one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    jobs = parser.add_subparsers(required=True)
    labels = jobs.add_parser("labels")
    labels.add_argument("traces", type=Path)
    labels.add_argument("labels", type=Path, nargs="+")
    labels.add_argument("--field", default="importance", help="number of a step")
    labels.set_defaults(job=compare)
    speed = jobs.add_parser("speed")
    speed.add_argument("--model", default=None, help="default: SmolLM2-135M-Instruct (GGUF)")
    speed.add_argument("--tokens", type=int, default=4096)
    speed.add_argument("--steps", type=int, default=40)
    speed.add_argument("--answer", type=int, default=32, help="answer tokens")
    speed.add_argument("--full", type=int, default=2, help="full forward passes to time")
    speed.set_defaults(job=measure)
    args = parser.parse_args()
    args.job(args)


def compare(args: argparse.Namespace) -> None:
    """A table for each label file: a row a trace, then the means."""
    from probing.traces.file import read_traces

    traces = list(read_traces(args.traces))
    for path in args.labels:
        print(f"\n{path.name}: scores of {_header(path)}\n")
        print(f"| trace | steps | ρ({args.field}) | position ρ | AUC | position AUC | −position |")
        print("|---|---|---|---|---|---|---|")
        rows = [row for trace in traces if (row := _row(trace, path, args.field))]
        for name, steps, *figures in rows:
            print(f"| {name} | {steps} | {' | '.join(f'{x:.3f}' for x in figures)} |")
        means = np.nanmean(np.array([row[2:] for row in rows]), axis=0)
        print(f"| mean of {len(rows)} | | {' | '.join(f'{x:.3f}' for x in means)} |", flush=True)


def _header(path: Path) -> str:
    import json

    first = json.loads(path.read_text(encoding="utf-8").split("\n", 1)[0])
    settings = first.get("kfh", {}).get("settings", {})
    return ", ".join(f"{name} {settings.get(name)}" for name in ("by", "answer", "limit"))


def _row(trace: Any, path: Path, field: str) -> tuple[Any, ...] | None:
    """Id, steps, and the figures of one trace; None where the file has no score of it."""
    from scipy.stats import spearmanr

    from probing.ranking.metrics import step_ranking_accuracy
    from probing.traces.labels import read_labels

    details = read_labels(path).details.get(trace.id, {})
    scored = [n for n in range(len(trace.steps)) if "score" in details.get(n, {})]
    if not scored:
        return None
    scores = np.array([details[n]["score"] for n in scored])
    places = np.array(scored, dtype=float)
    numbers = np.array([trace.steps[n].extra.get(field, np.nan) for n in scored], dtype=float)
    known = ~np.isnan(numbers)
    rho = [spearmanr(x[known], numbers[known]).statistic for x in (scores, places)]
    chosen = np.array([trace.steps[n].label is not None for n in scored])
    essential = np.array([trace.steps[n].label == "essential" for n in scored])[chosen]
    auc = [float(step_ranking_accuracy(x[chosen], essential)) for x in (scores, places, -places)]
    return (trace.id, len(scored), *rho, *auc)


def measure(args: argparse.Namespace) -> None:
    """Seconds (of the wall and of the processor) of all drops, and of full forward passes."""
    import torch

    from probing.answers.context import CauseTrace
    from probing.answers.hiding import StepHiding
    from probing.models.load import load_model

    model_id = args.model or _smollm2()
    model = load_model(model_id, device="cpu")
    ids = _trace(model_id, args.tokens, "cpu")[0][0].numpy()
    context = args.tokens - args.answer - 1
    edges = np.linspace(context // 20, context, args.steps + 1).astype(np.int64)
    spans = np.stack([edges[:-1], edges[1:]], axis=1)
    trace = CauseTrace("speed", ids, context, spans, np.arange(args.tokens) > context)
    ablation = StepHiding(model)
    warm_up(model, ids)
    started = clock()
    drops = ablation.drops(trace)
    reused = clock() - started
    full, gap = np.zeros(2), 0.0
    for step in range(args.full):
        started = clock()
        total = full_forward(model, trace, step)
        full += (clock() - started) / args.full
        gap = max(gap, abs(drops.answer - total - drops.total[step]))
    every = full * (args.steps + 1)
    print(f"{args.tokens} tokens, {args.steps} steps, {args.answer} answer tokens, ", end="")
    print(f"{torch.get_num_threads()} threads; full passes timed: {args.full}\n")
    print("| | seconds | processor seconds |\n|---|---|---|")
    print(f"| all drops, cache reused | {reused[0]:.1f} | {reused[1]:.1f} |")
    print(f"| one full forward with the mask | {full[0]:.1f} | {full[1]:.1f} |")
    print(f"| {args.steps + 1} of these | {every[0]:.0f} | {every[1]:.0f} |")
    print(f"| × | {every[0] / reused[0]:.1f} | {every[1] / reused[1]:.1f} |")
    print(f"\nlargest difference of a total drop: {gap:.2g} nats")


def clock() -> np.ndarray:
    """Seconds of the wall, and of the processor in this process."""
    return np.array([time.perf_counter(), time.process_time()])


def warm_up(model: Any, ids: np.ndarray) -> None:
    """A short forward pass."""
    import torch

    with torch.no_grad():
        model(input_ids=torch.from_numpy(ids[:128])[None], use_cache=False, logits_to_keep=1)


def full_forward(model: Any, trace: Any, step: int) -> float:
    """Log-probability of the answer by one forward pass of everything, the step hidden from Q."""
    import torch

    size, (start, end) = len(trace), trace.spans[step]
    seen = torch.ones((size, size), dtype=torch.bool).tril_()
    seen[trace.context :, start:end] = False
    wanted = torch.from_numpy(np.flatnonzero(trace.counted))
    ids = torch.from_numpy(trace.ids)
    with torch.inference_mode():
        logits = model(
            input_ids=ids[None],
            attention_mask=seen[None, None],
            use_cache=False,
            logits_to_keep=wanted - 1,
        ).logits[0]
        chances = logits.float().log_softmax(-1).gather(-1, ids[wanted][:, None])
    return float(chances.double().sum())


if __name__ == "__main__":
    main()
