"""`kfh ablate`: the job of `probing.interventions.job`, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kfh.console import console, print_tables, progress_bar, warn
from kfh.options import options, split
from probing.choices import Dtype
from probing.errors import ConfigError, DataError
from probing.interventions.setup import InterventionConfig, TraceChoice

POCKET = "pocket"
SHIPPED = "pocket-3"  # the three heads of the embedded model: what one leaves, another does


@options
def ablate(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    config: InterventionConfig,
    choice: TraceChoice,
    model: Annotated[
        str, typer.Option(help="Hub id, folder or .gguf file; pocket: the embedded model.")
    ] = POCKET,
    heads: Annotated[
        str | None, typer.Option(help="Head file of `kfh probe`, or a shipped head set.")
    ] = None,
    parts: Annotated[str, typer.Option(help="Of steps, heads, steering; comma between.")] = "steps",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, …", rich_help_panel="Model")
    ] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.", rich_help_panel="Model")] = "auto",
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run code of the model's.", rich_help_panel="Model"
        ),
    ] = False,
    resume: Annotated[bool, typer.Option(help="Go on with the outcomes in --out.")] = True,
) -> None:
    """Remove steps or change heads, let the model answer again, and say what that costs."""
    run_ablate(
        out,
        config,
        choice,
        model=model,
        heads=heads,
        parts=split(parts, "--parts", str),
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        resume=resume,
    )


def run_ablate(
    out: Path,
    config: InterventionConfig,
    choice: TraceChoice,
    *,
    model: str = POCKET,
    heads: str | None = None,
    parts: tuple[str, ...] = ("steps",),
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    resume: bool = True,
) -> None:
    """Intervene with the task's own verifier, and print what it came to.

    The embedded model has its head set and traces; any other needs both. Outcomes are on disk as
    soon as they are there; the same command goes on from them.

    Raises:
        KfhError: a bad setting or trace, a head set of another model, outcomes of other settings.
    """
    from transformers.utils import logging

    from kfh.findings.interventions import ablation_tables, left_out
    from probing.files.headers import refuse_overwriting
    from probing.headset import HeadSet
    from probing.interventions.job import check_parts, intervene
    from probing.interventions.result import OUTCOMES, RESULT
    from probing.models.load import load_model, load_tokenizer
    from rl.tasks.verdicts import AnswerVerifier

    logging.disable_progress_bar()
    check_parts(parts)
    if model != POCKET and (heads is None or choice.is_pocket):
        raise ConfigError("--model needs --heads and --traces: its head set, and traces, best its")
    head_set = HeadSet.load(heads or SHIPPED)
    refuse_overwriting(out / OUTCOMES, choice.traces, choice.labels)
    chosen = choice.choose(head_set)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    verifier = AnswerVerifier(tokenizer, chosen.traces, config.answer == "boxed")
    if unanswered := verifier.without_reference():
        raise DataError(
            f"{chosen.name}: no right answer is known of {len(unanswered)} traces, first "
            f"{unanswered[0]}: give them `ground_truth`, or an answer in \\boxed{{}}"
        )
    result = intervene(
        load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code),
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
    console.print(f"held out from the choice of heads: {chosen.held_out}", soft_wrap=True)
    console.print(f"→ {out}: {RESULT}, {OUTCOMES}; kfh plot {out} draws them")
