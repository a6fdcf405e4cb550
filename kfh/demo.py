"""The embedded model and its traces, and what the demo draws of them."""

from __future__ import annotations

from pathlib import Path

from kfh.console import console
from probing.files import data_path


def pocket_model() -> Path:
    """Folder of the embedded model, the pocket reasoner (data/pocket/README.md)."""
    return data_path("pocket")


def pocket_traces() -> Path:
    """The labelled traces that were sampled from it."""
    return data_path("pocket", "traces.jsonl")


def draw_trace(out: Path, traces: Path) -> None:
    """Draw the longest ranked trace with the head set's score of each step, and print it.

    Args:
        out: folder of a finished probe; `trace.png` is written there.
        traces: its trace file.
    """
    from probing.figures import save_figure, step_strip
    from probing.headset import HeadSet
    from probing.store import ScoreStore
    from probing.traces import read_traces

    scored = ScoreStore(out, {}).load()
    head_set = HeadSet.load(out / "heads.json")
    found = [trace for trace in read_traces(traces) if trace.id in scored]
    trace = max(found, key=lambda item: (len(item.steps), item.id))
    own = scored[trace.id]
    # Heads are stored layer by layer.
    places = [layer * head_set.model.heads + head for layer, head in head_set.pairs]
    ratios = own.scores[places].mean(axis=0) / own.base
    heads = ", ".join(f"{layer}.{head}" for layer, head in head_set.pairs)
    title = f"{trace.id}: how much the answer looks back at each step (heads {heads})"
    save_figure(step_strip(trace, ratios, title), out / "trace.png")
    console.print(f"\n[bold]{trace.problem}[/bold]   score of each step over S_base:")
    for step, ratio in zip(trace.steps, ratios, strict=True):
        text = trace.response[step.start : step.end].strip()
        mark = {"essential": "bold", "redundant": "dim", None: "default"}[step.label]
        bar = "█" * round(5 * min(float(ratio), 3.6))
        console.print(f"{ratio:5.2f} [{mark}]{step.label or 'no label':9}[/] {text[:44]:44} {bar}")
    console.print(trace.response[trace.answer_start :].strip())
    console.print(f"→ {out}: trace.png")
