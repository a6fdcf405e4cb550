"""The embedded model and its traces, and what the demo does with them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kfh.console import console, print_tables
from kfh.tables import Table
from probing.models.load import pocket_model
from probing.numbers import Number

if TYPE_CHECKING:
    from rl.evaluation.summary import SetFigures


# A short run that shows an effect: smaller batches and a larger step than the recipe's.
DEMO_TRAINING = {
    "per_device_train_batch_size": 64,
    "max_steps": 40,
    "learning_rate": 3e-4,
    "schedule_steps": 0,
    "save_steps": 40,
}
DEMO_PROBLEMS = "pocket-held-out:300"


def draw_trace(out: Path) -> None:
    """Draw the longest ranked trace with the head set's score of each step, and print it.

    Args:
        out: folder of a finished probe; `trace.png` is written there.
    """
    from probing.figures.style import save_figure
    from probing.figures.trace import strip_of
    from probing.folder import ProbeResult

    result = ProbeResult.load(out)
    trace = result.longest()
    save_figure(strip_of(result, trace.id), out / "trace.png")
    ratios = result.ratios(trace, result.chosen)
    console.print(f"\n[bold]{trace.problem}[/bold]   score of each step over S_base:")
    for step, ratio in zip(trace.steps, ratios, strict=True):
        text = trace.response[step.start : step.end].strip()
        mark = {"essential": "bold", "redundant": "dim", None: "default"}[step.label]
        bar = "█" * round(5 * min(float(ratio), 3.6))
        console.print(f"{ratio:5.2f} [{mark}]{step.label or 'no label':9}[/] {text[:44]:44} {bar}")
    console.print(trace.answer_text().strip())
    console.print(f"→ {out}: trace.png")


def train_and_compare(out: Path) -> None:
    """Train with the head set of a finished demo probe, and show what changed.

    Args:
        out: folder of the probe; the run is written to `out/attnpo`, anew.
    """
    from kfh.commands.train import run_train

    folder = out / "attnpo"
    shutil.rmtree(folder, ignore_errors=True)
    sets = [f"{name}={value}" for name, value in DEMO_TRAINING.items()]
    console.print(
        f"\n[bold]Training[/bold] with these heads, {DEMO_TRAINING['max_steps']} steps (AttnPO)"
    )
    before = _measured(pocket_model())
    run_train(
        folder,
        "attnpo",
        sets,
        False,
        heads=str(out / "heads.json"),
        model=None,
        seed=0,
        method=None,
        data=None,
    )
    after = _measured(folder / "model")
    print_tables([before_and_after(before, after)])


def _measured(folder: Path) -> SetFigures:
    """Responses at temperature 1 to held-out problems."""
    from probing.models.decode import Sampling
    from probing.models.load import load_frozen
    from rl.evaluation.job import evaluate_model
    from rl.tasks.questions import load_questions

    model, tokenizer = load_frozen(folder)
    settings = Sampling(temperature=1.0, top_p=1.0, max_tokens=512)
    return evaluate_model(model, tokenizer, load_questions(DEMO_PROBLEMS), settings, 1, batch=128)


def before_and_after(before: SetFigures, after: SetFigures) -> Table:
    """A table of both measurements, with 95 % intervals over problems."""
    rows = [("accuracy", before.accuracy, after.accuracy, 3)]
    rows += [("tokens", before.tokens, after.tokens, 1)]
    if before.redundancy and after.redundancy:
        for name in ("redundant_steps", "redundant_tokens"):
            pair = getattr(before.redundancy, name), getattr(after.redundancy, name)
            rows.append((name.replace("_", " "), *pair, 1))
    title = f"{len(before.correct)} held-out problems, temperature 1; in brackets 95 %"
    cells = [
        (name, Number.of(first, digits), Number.of(second, digits))
        for name, first, second, digits in rows
    ]
    return Table(title, ("", "before", "after"), cells)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/demo"),
) -> None:
    """Probe the embedded pocket model, draw a trace, train with its heads, and compare."""
    from kfh.commands.probe import run_probe
    from probing.config import ProbeConfig

    # Always anew: it takes seconds, and an older demo may have left another model's scores.
    run_probe(ProbeConfig(out=out, resume=False))
    draw_trace(out)
    train_and_compare(out)
