"""A ranking after scoring, on made-up scores in the shape of a 1.5B model: seconds and memory.

    python tests/bench/ranking.py [--traces 100] [--layers 28] [--heads 28] [--steps 200]
        [--rollouts 1] [--select top] [--null problems]

Scores of random traces are put into a folder as a probe stores them. Then a process of its own
probes with that folder: all is scored, so that it reads, ranks with every control, interval and
null, and writes. Parts are those of the progress bars, the rest is what lies between them. Peak
memory is the resident size of the process; what it holds before it reads stands in a row of its
own. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

STEP_CHARS = 30


def main() -> None:
    """Make the folder and rank, or, as a worker, rank alone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--traces", type=int, default=100)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--heads", type=int, default=28, help="of a layer")
    parser.add_argument("--steps", type=int, default=200, help="of a trace")
    parser.add_argument("--rollouts", type=int, default=1, help="traces of a problem")
    parser.add_argument("--select", default="top")
    parser.add_argument("--null", default="problems")
    parser.add_argument("--folder", type=Path, default=None, help="kept; default: a temporary one")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(rank(args)))
        return
    if args.folder:
        report(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        report(args)


def report(args: argparse.Namespace) -> None:
    """Make the scores, rank them in a process of its own, and print the table."""
    args.folder.mkdir(parents=True, exist_ok=True)
    make(args)
    options = [f"--{name}={value}" for name, value in vars(args).items() if name != "worker"]
    worker = [sys.executable, __file__, "--worker", *options]
    done = subprocess.run(worker, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(
        f"{args.traces} traces × {args.layers * args.heads} heads × {args.steps} steps, "
        f"{args.rollouts} of a problem, --select {args.select} --null {args.null}; threads: "
        f"{threads}, cores: {os.cpu_count()}\n"
    )
    print("| part | seconds | ms a trace |")
    print("|---|---|---|")
    for name, seconds in found["parts"].items():
        print(f"| {name} | {seconds:.2f} | {1000 * seconds / args.traces:.1f} |")
    print(f"| processor, all threads | {found['processor']:.2f} | |")
    print(f"\nPeak memory {found['peak']:.0f} MB, {found['before']:.0f} MB of it before reading.")


def made_up(args: argparse.Namespace, number: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """A line of the trace file, and scores and tokens of its steps; some heads know the labels."""
    rng = np.random.default_rng(number)
    essential = rng.random(args.steps) < 0.5
    essential[:2] = True, False
    texts = [
        f"Step {place} of it is said.".ljust(STEP_CHARS - 1) + "\n" for place in range(args.steps)
    ]
    labels = np.where(essential, "essential", "redundant").tolist()
    steps = [
        {"start": place * STEP_CHARS, "end": (place + 1) * STEP_CHARS, "label": label}
        for place, label in enumerate(labels)
    ]
    problem = f"Problem {number // args.rollouts}."
    line = {
        "id": f"t/{number}",
        "prompt": f"{problem}\n<think>\n",
        "response": "".join(texts) + "</think>\n\nIt is \\boxed{1}",
        "problem": problem,
        "correct": True,
        "steps": steps,
    }
    logs = rng.normal(-6, 1.5, (args.layers * args.heads, args.steps))
    logs += np.linspace(0, 0.5, len(logs))[:, None] * essential
    return line, np.exp(logs).astype(np.float32), rng.integers(5, 150, args.steps)


def make(args: argparse.Namespace) -> None:
    """The trace file, and a store in which every trace is scored."""
    from probing.attention.scores import ScoredTrace
    from probing.attention.store import ScoreStore
    from probing.run import score_settings

    config = settings(args)
    with config.traces.open("w") as file:
        for number in range(args.traces):
            file.write(json.dumps(made_up(args, number)[0]) + "\n")
    model, _ = tiny(args)
    store = ScoreStore(config.out, score_settings(config, model))
    store.open(resume=False)
    for number in range(args.traces):
        line, scores, tokens = made_up(args, number)
        store.add(ScoredTrace(line["id"], scores, tokens, 300, int(tokens.sum()) + 400))


def settings(args: argparse.Namespace) -> Any:
    """Of the probe."""
    from probing.config import ProbeConfig

    return ProbeConfig(
        "pocket",
        args.folder / "traces.jsonl",
        args.folder / "probe",
        select=args.select,
        null=args.null,
        device="cpu",
    )


def tiny(args: argparse.Namespace) -> tuple[Any, Any]:
    """A model of as many layers and heads that is nothing else, and a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from probing.models.load import load_tokenizer, pocket_model

    tokenizer = load_tokenizer(str(pocket_model()))
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=4 * args.heads,
        intermediate_size=8,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        max_position_embeddings=1 << 16,
    )
    return LlamaForCausalLM(shape).eval(), tokenizer


def rank(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds by part, and memory in MB, of a probe of which all is scored."""
    from probing.run import probe

    model, tokenizer = tiny(args)
    parts: dict[str, float] = {}

    @contextmanager
    def timed(name: str, total: int) -> Iterator[Callable[[int, int], None]]:
        started = time.perf_counter()
        yield lambda traces, tokens: None
        parts[name] = parts.get(name, 0.0) + time.perf_counter() - started

    before, processor, started = peak(), time.process_time(), time.perf_counter()
    result = probe(settings(args), model=model, tokenizer=tokenizer, progress=timed)
    whole = time.perf_counter() - started
    assert result is not None and result.counts["ranked"] == args.traces
    assert result.speed["traces"] == 0
    parts["rest"] = whole - sum(parts.values())
    parts["whole"] = whole
    used = time.process_time() - processor
    return {"parts": parts, "processor": used, "before": before, "peak": peak()}


def peak() -> float:
    """Largest resident size of this process so far, in MB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1024 if sys.platform != "darwin" else size / 1024**2


if __name__ == "__main__":
    main()
