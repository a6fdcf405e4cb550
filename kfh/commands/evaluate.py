"""`kfh eval`: the table that it prints, and where the responses are."""

from __future__ import annotations

from pathlib import Path

from kfh.console import console, print_tables, progress_bar
from kfh.options import options
from rl.evaluation.config import EvalConfig


@options
def evaluate(config: EvalConfig) -> None:
    """Evaluate a model on question sets: accuracy, length, budgets, phrases, AES."""
    from transformers.utils import logging

    from kfh.findings.evaluation import evaluation_caveats, evaluation_table, how
    from probing.files.headers import read_object
    from rl.evaluation.job import evaluate as evaluate_sets

    logging.disable_progress_bar()  # ours are enough
    result = evaluate_sets(config, progress=progress_bar)
    content = read_object(Path(config.out) / "eval.json")
    name = f"{config.named}, {how(content['settings'])}"
    print_tables([evaluation_table(content, name)], evaluation_caveats(content))
    asked = sum(len(figures.correct) * figures.samples for figures in result.sets)
    console.print(
        f"{result.sampled} responses sampled in {result.seconds:.1f} s; "
        f"{asked - result.sampled} were there already\n"
        f"→ {Path(config.out)}: eval.json, responses/",
        soft_wrap=True,
    )
