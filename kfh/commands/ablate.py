"""`kfh ablate`: the job of `probing.interventions.job`, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kfh.console import console, print_tables, progress_bar, warn
from kfh.options import options
from probing.choices import POCKET
from probing.errors import ConfigError, DataError
from probing.interventions.setup import InterventionConfig, TraceChoice
from probing.models.load import ModelSource

PartName = Literal["steps", "heads", "steering"]  # of `probing.interventions.job.PARTS`
SHIPPED = "pocket-3"  # the three heads of the embedded model: what one leaves, another does


@options
def ablate(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    config: InterventionConfig,
    choice: TraceChoice,
    *,
    heads: Annotated[
        str | None, typer.Option(help="Head file of `kfh probe`, or a shipped head set.")
    ] = None,
    parts: Annotated[tuple[PartName, ...], typer.Option(help="What to do; comma between.")] = (
        "steps",
    ),
    resume: Annotated[bool, typer.Option(help="Go on with the outcomes in --out.")] = True,
    source: ModelSource,
) -> None:
    """Remove steps or change heads, let the model answer again, and say what that costs."""
    # The embedded model has its head set and traces; any other needs both. Answers are judged by
    # the task's own verifier.
    from transformers.utils import logging

    from kfh.findings.interventions import ablation_tables, left_out
    from probing.files.headers import refuse_overwriting
    from probing.headset import HeadSet
    from probing.interventions.job import intervene
    from probing.interventions.result import OUTCOMES, RESULT
    from rl.tasks.verdicts import AnswerVerifier

    logging.disable_progress_bar()
    if source.model != POCKET and (heads is None or choice.is_pocket):
        raise ConfigError("--model needs --heads and --traces: its head set, and traces, best its")
    head_set = HeadSet.load(heads or SHIPPED)
    refuse_overwriting(out / OUTCOMES, choice.traces, choice.labels)
    chosen = choice.choose(head_set)
    model, tokenizer = source.load()
    verifier = AnswerVerifier(tokenizer, chosen.traces, config.answer == "boxed")
    if unanswered := verifier.without_reference():
        raise DataError(
            f"{chosen.name}: no right answer is known of {len(unanswered)} traces, first "
            f"{unanswered[0]}: give them `ground_truth`, or an answer in \\boxed{{}}"
        )
    result = intervene(
        model,
        tokenizer,
        head_set,
        chosen,
        verifier,
        parts=parts,
        config=config,
        own_correct=verifier.own,
        out=out,
        resume=resume,
        progress=progress_bar,
    )
    print_tables(ablation_tables(result), result.caveats)
    for line in left_out(result.counts):
        warn(line)
    if config.batch_tokens == "auto":
        console.print(f"--batch-tokens auto: {result.counts['batch_tokens']:,} tokens a pass")
    console.print(f"held out from the choice of heads: {chosen.held_out}", soft_wrap=True)
    console.print(f"→ {out}: {RESULT}, {OUTCOMES}; kfh plot {out} draws them")
