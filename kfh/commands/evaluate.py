"""`kfh eval`: its settings from the command line, and the table that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kfh.console import console, print_tables, progress_bar


def run_eval(*, budgets: str, data: list[str], **settings: Any) -> None:
    """`kfh eval`: see `rl.evaluation.job`. Without a model the embedded one is evaluated."""
    from transformers.utils import logging

    from kfh.findings.evaluation import evaluation_caveats, evaluation_table, how
    from probing.files.headers import read_object
    from probing.models.load import pocket_model
    from rl.evaluation.job import EvalConfig, evaluate

    logging.disable_progress_bar()  # ours are enough
    if settings["model"] is None:
        settings["model"] = str(pocket_model())
    config = EvalConfig(data=tuple(data), budgets=_numbers(budgets), **settings)
    result = evaluate(config, progress=progress_bar)
    content = read_object(Path(config.out) / "eval.json")
    name = f"{config.model}, {how(content['settings'])}"
    print_tables([evaluation_table(content, name)], evaluation_caveats(content))
    asked = sum(len(figures.correct) * figures.samples for figures in result.sets)
    console.print(
        f"{result.sampled} responses sampled in {result.seconds:.1f} s; "
        f"{asked - result.sampled} were there already\n"
        f"→ {Path(config.out)}: eval.json, responses/",
        soft_wrap=True,
    )


def _numbers(text: str) -> tuple[int, ...]:
    from probing.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"--budgets {text!r}: write numbers, comma between") from error
