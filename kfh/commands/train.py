"""`kfh train`, `kfh sft` and `kfh shrink`: the recipe by its layers, and the live line of a run."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from kfh.console import console, print_tables, talk
from kfh.options import declared, options
from probing.choices import POCKET
from probing.headset import HeadSetWarning
from rl.attnpo.methods import METHODS, method_of
from rl.training.recipe import (
    TrainConfig,
    default_recipe,
    parse_settings,
    recipe_settings,
    shipped_recipes,
    train_config,
)
from rl.training.sft import SftConfig
from rl.training.vocabulary import ShrinkConfig


def run_train(
    out: Path, recipe: str | None, sets: list[str], resume: bool, **options: Any
) -> dict[str, Any]:
    """Train; see `rl.training.job`. Layers of settings: the recipe, then options, then `--set`.

    A run that goes on keeps its settings: they stand above a recipe's, and below what is given.
    """
    from transformers import TrainerCallback
    from transformers.utils import logging

    from rl.training.job import former_run, train

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", category=HeadSetWarning)  # its caveats are printed
    former = former_run(out, resume)
    if former is None and recipe is None:
        method_of(options["method"] or "attnpo")
        recipe = default_recipe(options["model"] or POCKET, options["method"])
    named = recipe_settings(recipe) if recipe else {}
    kept = {**former["settings"], "recipe": named.get("recipe")} if former else {}
    config = train_config(out, named, kept, options, parse_settings(sets))

    def tell(text: str) -> None:
        print_tables([], [text])

    class Watch(LiveLine, TrainerCallback):
        """The live line as the trainer takes it."""

    result = train(config, resume=resume, watch=[Watch()], tell=tell)
    if int(os.environ.get("RANK", 0)):
        return result
    last = result["final"]
    if last:
        console.print(
            f"{result['method']}: {result['status']} at step {last['step']}, accuracy "
            f"{last['accuracy']:.3f}, {last['tokens']:.0f} tokens (of the last batch)"
        )
    console.print(
        f"→ {out}: run.json, metrics.jsonl"
        + (", model/" if result["status"] == "done" else "; --resume goes on")
    )
    return result


class LiveLine:
    """A bar with the figures of the last step. Plain lines where there is no terminal."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.text = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the bar."""
        if not state.is_world_process_zero:
            return
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=talk,
        )
        self.task = self.bar.add_task("training", total=state.max_steps, text="")
        self.bar.update(self.task, completed=state.global_step)
        if talk.is_terminal:
            self.bar.start()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Show the step."""
        if self.bar is None or not logs or not {"accuracy", "loss"} & logs.keys():
            return
        text = live_text(logs)
        self.bar.update(self.task, completed=state.global_step, text=text)
        if not talk.is_terminal:
            talk.print(f"step {state.global_step}/{state.max_steps}: {text}", highlight=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()


def live_text(logs: dict[str, Any]) -> str:
    """The figures of a step in one line."""
    if "accuracy" not in logs:
        return f"loss {logs['loss']:.4f}"
    figures = [
        f"reward {logs['reward']:.3f}",
        f"accuracy {logs['accuracy']:.3f}",
        f"tokens {logs['tokens']:.0f}",
    ]
    if logs.get("attenuated") is not None:
        figures.append(f"attenuated {logs['attenuated']:.0%}")
    parts = [f"{name} {logs.get(f'seconds_{name}', 0):.1f}" for name in ("sampling", "scoring")]
    if "step_time" in logs:
        known = ("sampling", "rewards", "scoring")
        update = logs["step_time"] - sum(logs.get(f"seconds_{name}", 0) for name in known)
        parts.append(f"update {update:.1f}")
    return ", ".join(figures) + f"; seconds: {', '.join(parts)}"


def train(
    out: Annotated[Path, declared(TrainConfig, "out")],
    method: Annotated[
        str | None,
        typer.Option(
            help="attnpo, its ablations, oracle, grpo, rloo, tlmre, laser, dler.",
            autocompletion=lambda: list(METHODS),
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="YAML file or shipped recipe; default: the method's, of an own model `any`.",
            autocompletion=shipped_recipes,
        ),
    ] = None,
    model: Annotated[str | None, declared(TrainConfig, "model")] = None,
    heads: Annotated[str | None, declared(TrainConfig, "heads")] = None,
    data: Annotated[str | None, declared(TrainConfig, "data")] = None,
    task: Annotated[str | None, declared(TrainConfig, "task")] = None,
    instruction: Annotated[str | None, declared(TrainConfig, "instruction")] = None,
    skip_bad: Annotated[bool | None, declared(TrainConfig, "skip_bad")] = None,
    attention: Annotated[str | None, declared(TrainConfig, "attention")] = None,
    seed: Annotated[int | None, typer.Option(help="Of order, sampling and random heads.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, any setting; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
) -> None:
    """Train with step-level credit from a head set, or with a baseline.

    What is not given is the recipe's.
    """
    given = {"method": method, "model": model, "heads": heads, "data": data, "seed": seed}
    given |= {"task": task, "instruction": instruction, "skip_bad": skip_bad}
    given |= {"attention": attention}
    result = run_train(out, recipe, set_ or [], resume, **given)
    if result["status"] == "interrupted":
        raise KeyboardInterrupt("interrupted; the same command with --resume goes on from here")


@options
def sft(
    config: SftConfig,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
) -> None:
    """Teach a model to reason as traces do, before training; its responses end where theirs do."""
    from transformers import TrainerCallback
    from transformers.utils import logging

    from rl.training.sft import teach

    class Watch(LiveLine, TrainerCallback):
        """The live line as the trainer takes it."""

    logging.disable_progress_bar()
    result = teach(config, resume=resume, watch=[Watch()])
    if result["status"] == "interrupted":
        raise KeyboardInterrupt("interrupted; the same command with --resume goes on from here")
    console.print(
        f"{result['traces']} traces, {result['taught_tokens']:,} tokens with a loss, "
        f"{result['seconds']:.0f} s; last loss {result['loss'][-1][1]:.4f} nats"
    )
    console.print(f"→ {config.out}: run.json, model/", soft_wrap=True)


@options
def shrink(config: ShrinkConfig) -> None:
    """Leave out the tokens that a task does not use, so that a CPU has less to do.

    The layers stay: heads found in one of the two models are those of the other.
    """
    from transformers.utils import logging

    from rl.training.vocabulary import shrink

    logging.disable_progress_bar()
    record = shrink(config)
    tokens, weights = record["tokens"], record["parameters"]
    console.print(
        f"{tokens['before']:,} → {tokens['after']:,} tokens, {weights['before'] / 1e6:.1f} → "
        f"{weights['after'] / 1e6:.1f} M parameters; {record['texts']:,} texts are cut as before"
    )
    console.print(f"→ {config.out}: vocabulary.json, model/", soft_wrap=True)
