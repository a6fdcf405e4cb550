"""`kfh ablate`: interventions on steps and heads, their outcomes, tables and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kfh.console import console, print_tables, progress_bar, warn
from probing.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

    from probing.answers.context import PreparedTrace
    from probing.headset import HeadSet
    from probing.interventions.claims import Claim
    from probing.interventions.outcomes import Outcome, OutcomeStore
    from probing.interventions.setup import Choice, InterventionConfig, Part
    from probing.traces.source import TraceSource
    from rl.tasks.verdicts import AnswerVerifier


# part → module and function that give its outcomes (`probing.interventions.setup.Part`)
PARTS = {
    "steps": ("probing.interventions.steps", "ablate_steps"),
    "heads": ("probing.interventions.heads", "ablate_heads"),
    "steering": ("probing.interventions.steering", "steer"),
}
RESULT = "ablation.json"
OUTCOMES = "outcomes.jsonl"
SHIPPED = "pocket-3"  # the three heads of the embedded model: what one leaves, another does


def numbers(text: str, option: str, kind: Callable[[str], Any] = int) -> tuple[Any, ...]:
    """The numbers of an option such as `1,2,3`.

    Raises:
        ConfigError: it holds something else.
    """
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"{option} takes numbers with commas between, not {text!r}") from error


def words(text: str) -> tuple[str, ...]:
    """The words of an option such as `steps,heads`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def checked_parts(text: str) -> tuple[str, ...]:
    """The parts to run, in the order in which they are known.

    Raises:
        ConfigError: none, or an unknown one.
    """
    asked = words(text)
    unknown = sorted(set(asked) - set(PARTS))
    if unknown or not asked:
        raise ConfigError(f"unknown part {', '.join(unknown) or text!r}; choose {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in asked)


@dataclass(frozen=True, eq=False)
class Job:
    """What one call of `kfh ablate` works on; settings of `kfh.options.ablate`."""

    model: str
    heads: HeadSet
    source: TraceSource
    choice: Choice
    config: InterventionConfig
    parts: tuple[str, ...]
    out: Path
    only: str
    limit: int | None


def run_ablate(
    *,
    model: str | None,
    heads: str | None,
    traces: Path | None,
    parts: str,
    out: Path,
    only: str,
    limit: int | None,
    resume: bool,
    device: str,
    dtype: str,
    trust_remote_code: bool,
    config: dict[str, Any],
    source: dict[str, Any],
) -> None:
    """`kfh ablate`: see `probing.interventions.setup`.

    Without a model the embedded one is taken, with its head set and traces unless others are
    given. Outcomes are on disk as soon as they are there; the same command goes on from them.

    Raises:
        KfhError: a bad setting or trace, a head set of another model, outcomes of other settings.
    """
    from transformers.utils import logging

    from probing.headset import HeadSet
    from probing.interventions.setup import ONLY, InterventionConfig, choose_traces, source_of
    from probing.models.load import load_model, load_tokenizer, pocket_model
    from probing.traces.source import pocket_traces

    logging.disable_progress_bar()
    chosen = checked_parts(parts)
    if only not in ONLY:
        raise ConfigError(f"unknown --only {only!r}; choose {' or '.join(ONLY)}")
    if limit is not None and limit < 1:
        raise ConfigError(f"a limit of {limit} leaves no trace")
    if model is None:
        model, heads, traces = str(pocket_model()), heads or SHIPPED, traces or pocket_traces()
    if heads is None or traces is None:
        raise ConfigError("--model needs --heads and --traces: its head set, and traces, best its")
    settings = InterventionConfig(**config)
    head_set = HeadSet.load(heads)
    file = source_of(head_set, traces, **source)
    choice = choose_traces(file, head_set, only, limit)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    loaded = load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    job = Job(model, head_set, file, choice, settings, chosen, out, only, limit)
    store, judge = carry_out(job, loaded, tokenizer, resume)
    report(job, store, judge)


def carry_out(
    job: Job, model: Any, tokenizer: Any, resume: bool
) -> tuple[OutcomeStore, AnswerVerifier]:
    """Make the outcomes that are not there yet.

    Raises:
        KfhError: see `run_ablate`.
    """
    from probing.interventions.outcomes import OutcomeStore
    from rl.tasks.verdicts import AnswerVerifier

    job.heads.check(model.config)
    judge = AnswerVerifier(tokenizer, job.choice.traces, job.config.answer == "boxed")
    if unknown := judge.without_reference():
        raise DataError(
            f"{job.source.path}: no right answer is known of {len(unknown)} traces, first "
            f"{unknown[0]}: give them `ground_truth`, or an answer in \\boxed{{}}"
        )
    store = OutcomeStore(job.out / OUTCOMES, stored_settings(job, model))
    store.open(resume)
    names = [trace.id for trace in job.choice.traces]
    pending = {part: [n for n in names if n not in store.done(part)] for part in job.parts}
    if any(pending.values()):
        prepared = prepare(job, model, tokenizer, judge)
        for part, ids in pending.items():
            run_part(part, ids, prepared, job, model, tokenizer, judge, store)
    return store, judge


def stored_settings(job: Job, model: Any) -> dict[str, Any]:
    """All that decides the outcomes of a trace, for resuming."""
    from probing.models.identity import model_settings

    return {
        **model_settings(model),
        **job.source.settings(),
        "keep": job.source.keep,
        "labels": job.source.label_json(),
        "heads": [list(pair) for pair in job.heads.pairs],
        "heads_answer": job.heads.answer,
        "only": job.only,  # both decide what means of heads are taken over
        "limit": job.limit,
        **job.config.to_json(),
    }


def prepare(
    job: Job, model: Any, tokenizer: Any, judge: AnswerVerifier
) -> dict[str, PreparedTrace]:
    """The chosen traces, encoded and scored by the head set, by id."""
    from probing.interventions.setup import prepare_interventions

    with progress_bar("scoring steps", len(job.choice.traces)) as advance:
        found = prepare_interventions(
            model,
            tokenizer,
            job.choice,
            job.heads,
            job.config,
            rule=job.source.rule,
            own_correct=judge.own,
            advance=advance,
        )
        return {trace.id: trace for trace in found}


def run_part(
    part: str,
    ids: Sequence[str],
    prepared: dict[str, PreparedTrace],
    job: Job,
    model: Any,
    tokenizer: Any,
    judge: AnswerVerifier,
    store: OutcomeStore,
) -> None:
    """Run one part on the traces of these ids, in their order, and keep what it gives."""
    from probing.interventions.setup import Setup
    from probing.models.decode import end_tokens

    traces = [prepared[name] for name in ids if name in prepared]
    with progress_bar(part, len(traces)) as advance:
        setup = Setup(
            model,
            tokenizer,
            job.heads,
            traces,
            list(prepared.values()),
            job.config,
            judge,
            end_tokens(model, tokenizer),
            lambda tokens: advance(0, tokens),
        )
        for trace, outcomes in zip(traces, function_of(part)(setup), strict=True):
            store.add(part, trace.id, outcomes)
            advance(1, 0)


def function_of(part: str) -> Part:
    """The function of a part, imported when it is needed."""
    module, name = PARTS[part]
    found: Part = getattr(import_module(module), name)
    return found


def report(job: Job, store: OutcomeStore, judge: AnswerVerifier) -> None:
    """Summarise all outcomes of the chosen traces, write `ablation.json`, print the tables.

    Parts that an earlier call ran are summarised too.

    Raises:
        DataError: there is no outcome at all.
    """
    from kfh.findings.interventions import ablation_caveats, ablation_tables, left_out
    from probing.interventions.claims import verdicts
    from probing.interventions.effects import differences, summarise

    parts = [part for part in PARTS if store.done(part)]
    names = [trace.id for trace in job.choice.traces]
    outcomes = [o for p in parts for n in names for o in store.outcomes.get((p, n), [])]
    if not outcomes:
        raise DataError(f"{job.source.path}: no outcome: every trace was left out")
    counted = counts(job, parts, store, judge)
    if "steps" in parts:
        short = counted["parts"]["steps"]["too_few_steps"].values()
        if min(short) == counted["parts"]["steps"]["traces"]:
            least = min(job.config.remove)
            raise DataError(f"{job.source.path}: no trace has more than {least} steps to remove")
    table = summarise(outcomes, job.config.seed)
    against = differences(outcomes, job.config.seed)
    found = list(verdicts(against))
    correlations = dose_response(outcomes, job.config.seed)
    content = write_result(job, store, counted, table, against, found, correlations)
    print_tables(ablation_tables(content), ablation_caveats(content))
    for line in left_out(counted):
        warn(line)
    console.print(f"held out from the choice of heads: {counted['held_out']}", soft_wrap=True)
    console.print(f"→ {job.out}: {RESULT}, {OUTCOMES}; kfh plot {job.out} draws them")


def dose_response(outcomes: Sequence[Outcome], seed: int) -> dict[str, dict[str, Any]]:
    """Steering: the mean rank correlation of factor and `follow`, by arm, with intervals."""
    from probing.intervals import estimate_mean
    from probing.interventions.effects import RESAMPLES
    from probing.interventions.steering import dose_correlations

    groups = {one.trace: one.group for one in outcomes}
    found = {}
    for arm, by_trace in dose_correlations(outcomes).items():
        rows: dict[str, list[float]] = {}
        for trace, value in sorted(by_trace.items(), key=lambda item: groups[item[0]]):
            rows.setdefault(groups[trace], []).append(value)
        mean = estimate_mean([*rows.values()], resamples=RESAMPLES, seed=(seed, len(rows)))
        interval = {"value": mean.value, "low": mean.low, "high": mean.high}
        found[arm] = {**interval, "traces": len(by_trace)}
    return found


def counts(
    job: Job, parts: Iterable[str], store: OutcomeStore, judge: AnswerVerifier
) -> dict[str, Any]:
    """What was used and what was left out; of steps also the traces too short for each k."""
    found: dict[str, Any] = {**job.choice.to_json(), "verifier_faults": judge.faults, "parts": {}}
    for part in parts:
        lists = [store.outcomes.get((part, t.id)) for t in job.choice.traces]
        there = [outcomes for outcomes in lists if outcomes is not None]
        found["parts"][part] = {"traces": len(there), "outcomes": sum(map(len, there))}
        if part == "steps":
            found["parts"][part]["too_few_steps"] = {
                str(k): sum(all(o.dose != k for o in outcomes) for outcomes in there)
                for k in job.config.remove
            }
    return found


def write_result(
    job: Job,
    store: OutcomeStore,
    counted: dict[str, Any],
    table: pd.DataFrame,
    against: pd.DataFrame,
    found: Sequence[Claim],
    correlations: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Write `ablation.json`: settings, counts, summary, differences, verdicts; its content."""
    from probing.files.headers import HEADER, file_header, write_json

    content = {
        HEADER: file_header("ablation", settings=store.settings),
        "head_set": {"heads": store.settings["heads"], "model": asdict(job.heads.model)},
        "counts": counted,
        "summary": table.to_dict("records"),
        "differences": against.to_dict("records"),
        "verdicts": [verdict.to_json() for verdict in found],
        "dose_correlations": correlations,
    }
    write_json(job.out / RESULT, content)
    return content


def ablate(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    model: Annotated[
        str | None, typer.Option(help="Hub id, folder or .gguf file; default: the pocket model.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Head file of `kfh probe`, or a shipped head set.")
    ] = None,
    traces: Annotated[Path | None, typer.Option(help="Trace file (JSONL, .gz too).")] = None,
    parts: Annotated[str, typer.Option(help="Of steps, heads, steering; comma between.")] = "steps",
    remove: Annotated[str, typer.Option(help="Steps: how many to remove.")] = "1,2,3",
    modes: Annotated[
        str,
        typer.Option(help="Heads: zero or mean, then /all positions or /answer-to-steps."),
    ] = "zero/all,mean/all,zero/answer-to-steps",
    factors: Annotated[
        str, typer.Option(help="Steering: factors on the attention to a step.")
    ] = "0,0.001,0.01,0.1,0.5,1,2,8",
    backend: Annotated[
        str, typer.Option(help="What edits heads: transformers or transformer-lens (slow).")
    ] = "transformers",
    draws: Annotated[int, typer.Option(help="Random draws of each control.")] = 5,
    answer: Annotated[
        str,
        typer.Option(
            help="Answer tokens that count: all, values or boxed. boxed: the model answers from "
            "the opened box."
        ),
    ] = "all",
    answer_limit: Annotated[
        int, typer.Option(help="The first so many answer tokens count; 0: all.")
    ] = 0,
    max_answer_tokens: Annotated[
        int, typer.Option(help="Longest greedy answer; 0: log-probabilities alone.")
    ] = 64,
    keep: Annotated[
        str, typer.Option(help="correct: leave wrong answers out; or all.")
    ] = "correct",
    only: Annotated[
        str, typer.Option(help="held-out: leave out what the heads were chosen on; or all.")
    ] = "held-out",
    limit: Annotated[
        int | None, typer.Option(help="The first so many traces; default all.")
    ] = None,
    labels: Annotated[str, typer.Option(help="steps: the file's own; or a label file.")] = "steps",
    skip_bad: Annotated[bool, typer.Option(help="Leave bad lines out (counted).")] = False,
    think_end: Annotated[str, typer.Option(help="The text that ends the reasoning.")] = "</think>",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    batch_tokens: Annotated[int, typer.Option(help="Tokens in a forward pass.")] = 8192,
    resume: Annotated[bool, typer.Option(help="Go on with the outcomes in --out.")] = True,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the model's.")] = False,
    seed: Annotated[int, typer.Option(help="Of random draws and bootstrap.")] = 0,
) -> None:
    """Remove steps or change heads, let the model answer again, and say what that costs."""
    run_ablate(
        model=model,
        heads=heads,
        traces=traces,
        parts=parts,
        out=out,
        only=only,
        limit=limit,
        resume=resume,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        config={
            "remove": numbers(remove, "--remove"),
            "modes": words(modes),
            "factors": numbers(factors, "--factors", float),
            "draws": draws,
            "answer": answer,
            "answer_limit": answer_limit,
            "max_answer_tokens": max_answer_tokens,
            "batch_tokens": batch_tokens,
            "seed": seed,
            "backend": backend,
        },
        source={"labels": labels, "keep": keep, "skip_bad": skip_bad, "think_end": think_end},
    )
