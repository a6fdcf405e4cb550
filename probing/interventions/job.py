"""`intervene`: change steps or heads, let the model answer again, and say what that costs.

1. Settings: all that decides an outcome; outcomes of other settings are not gone on with.
2. What is missing: the traces that have no outcomes of a part yet.
3. The traces as token ids, their steps scored by the head set, nothing changed.
4. Each part on the traces that it lacks; outcomes are kept trace by trace.
5. Effects, differences and claims of all outcomes, those of earlier calls included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probing.answers.context import CauseTrace, PreparedTrace, encode_causes
from probing.attention.capture import AttentionCapture
from probing.attention.scores import score_traces
from probing.errors import ConfigError, DataError, NotFiniteError
from probing.headset import HeadSet
from probing.interventions.heads import silence_heads
from probing.interventions.outcomes import OutcomeStore
from probing.interventions.result import OUTCOMES, InterventionResult
from probing.interventions.setup import ChosenTraces, InterventionConfig, Part, Setup, Verdict
from probing.interventions.steering import steer
from probing.interventions.steps import remove_steps
from probing.models.decode import end_tokens
from probing.models.identity import fits, model_settings, position_limit, too_long
from probing.settings import Progress, no_progress, unknown
from probing.traces.file import Trace
from probing.traces.tokens import EncodedTrace, encode_trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS: dict[str, Part] = {"steps": remove_steps, "heads": silence_heads, "steering": steer}


def own_verdict(trace: Trace) -> bool:
    """Whether a trace's own answer is taken to be right: unless it says that it is not."""
    return trace.correct is not False


def intervene(
    model: PreTrainedModel,
    tokenizer: Any,
    heads: HeadSet,
    traces: ChosenTraces | Iterable[Trace],
    verdict: Verdict,
    *,
    parts: Sequence[str] = ("steps",),
    config: InterventionConfig | None = None,
    own_correct: Callable[[Trace], bool] = own_verdict,
    ends: frozenset[int] | None = None,
    out: Path | None = None,
    resume: bool = True,
    progress: Progress = no_progress,
) -> InterventionResult:
    """Remove steps or change heads, let the model answer again, and hold arms against controls.

    Args:
        model: a causal language model, in eval mode, on its device.
        tokenizer: the model's, a fast one.
        heads: the head set: it ranks the steps, and its heads are silenced and steered.
        traces: with their steps; or what `TraceChoice.choose` gives, which leaves out those that
            the heads were chosen on.
        verdict: `(trace, ids) → bool`: is the new answer right? Its attribute `faults`, exceptions
            by type, is counted where there is one.
        parts: of `steps`, `heads`, `steering`.
        config: what is done and measured; default `InterventionConfig()`.
        own_correct: whether a trace's own answer is right, so that its log-probability counts.
        ends: the tokens that end an answer; default: those that the model names.
        out: folder for outcomes and result, gone on with (`resume`) by the same call; or None.
        progress: `progress(name, traces)` is a context that gives `advance(traces, tokens)`.

    Raises:
        ConfigError: an unknown part, or outcomes of other settings in `out`.
        ModelError: a head set of another model, or a model that cannot be changed like this.
        DataError: no trace can be used, or none has enough steps.
    """
    config = config or InterventionConfig()
    check_parts(parts)
    heads.check(model.config)
    chosen = traces if isinstance(traces, ChosenTraces) else ChosenTraces.of(traces, heads)
    settings = deciding(model, heads, chosen, config)  # 1
    store = OutcomeStore(out / OUTCOMES if out else None, settings)
    store.open(resume)
    ends = end_tokens(model, tokenizer) if ends is None else ends
    setup = Setup(model, tokenizer, heads, (), (), config, verdict, ends)
    complete(store, setup, chosen, parts, own_correct, progress)
    result = summary(store, setup, chosen)  # 5
    if out:
        result.write(out)
    return result


def check_parts(parts: Sequence[str]) -> None:
    """Raise ConfigError where there is no part, or an unknown one."""
    for part in parts or ("",):
        if part not in PARTS:
            raise ConfigError(unknown("part", part, PARTS))


def deciding(
    model: PreTrainedModel, heads: HeadSet, chosen: ChosenTraces, config: InterventionConfig
) -> dict[str, Any]:
    """All that decides the outcomes of a trace, as it stands in headers."""
    return {
        **model_settings(model),
        **chosen.settings,
        "heads": [list(pair) for pair in heads.pairs],
        "heads_answer": heads.answer,
        **config.to_json(),
    }


def complete(
    store: OutcomeStore,
    setup: Setup,
    chosen: ChosenTraces,
    parts: Sequence[str],
    own_correct: Callable[[Trace], bool],
    progress: Progress,
) -> None:
    """Make the outcomes that are not there yet; `setup` is without traces."""
    ids = [trace.id for trace in chosen.traces]
    lacking = {p: [n for n in ids if n not in store.done(p)] for p in PARTS if p in parts}  # 2
    if not any(lacking.values()):
        return
    with progress("scoring steps", len(ids)) as advance:  # 3
        scored = prepare_answers(setup, chosen, own_correct=own_correct, advance=advance)
        prepared = {trace.id: trace for trace in scored}
    for part, names in lacking.items():  # 4
        traces = [prepared[name] for name in names if name in prepared]
        with progress(part, len(traces)) as advance:
            ready = replace(
                setup,
                traces=traces,
                reference=list(prepared.values()),
                advance=partial(advance, 0),
            )
            for trace, outcomes in zip(traces, PARTS[part](ready), strict=True):
                store.add(part, trace.id, outcomes)
                advance(1, 0)


def prepare_answers(
    setup: Setup,
    chosen: ChosenTraces,
    *,
    own_correct: Callable[[Trace], bool] = own_verdict,
    advance: Callable[[int, int], None] = lambda traces, tokens: None,
) -> Iterator[PreparedTrace]:
    """Encode the chosen traces and score their steps by the head set, longest first.

    Left out and counted: traces none of whose answer tokens count, too long for the model, or whose
    ids do not fit; with `skip_bad` those whose attention is not finite.

    Raises:
        ModelError: the head set is of another model, or attention cannot be captured.
        DataError: no trace is left.
    """
    model, heads, config = setup.model, setup.heads, setup.config
    heads.check(model.config)
    causes, encoded = encode_answers(setup, chosen)
    capture = AttentionCapture(model, heads.pairs)
    device = next(model.parameters()).device

    def lost(trace: EncodedTrace, error: NotFiniteError) -> None:
        chosen.report.left_out["attention that is not finite"] += 1
        chosen.report.used -= 1

    for scored in score_traces(
        capture,
        encoded,
        device=device,
        batch_tokens=setup.batch_tokens,
        advance=advance,
        lost=lost if chosen.skip_bad else None,
    ):
        cause, trace, prompt_tokens = causes.pop(scored.id)
        yield PreparedTrace(
            **{item.name: getattr(cause, item.name) for item in fields(cause)},
            group=trace.problem_key,
            prompt_tokens=prompt_tokens,
            answer=_answer_at(cause, config),
            scores=scored.scores.mean(axis=0).astype(np.float64),
            labels=tuple(step.label for step in trace.steps),
            own_correct=own_correct(trace),
        )


def encode_answers(
    setup: Setup, chosen: ChosenTraces
) -> tuple[dict[str, tuple[CauseTrace, Trace, int]], list[EncodedTrace]]:
    """The chosen traces as token ids: what is answered from, by id, and what is scored.

    Left out and counted: traces none of whose answer tokens count, too long for the model, or whose
    ids do not fit.

    Raises:
        DataError: no trace is left.
    """
    tokenizer, config = setup.tokenizer, setup.config
    looking = setup.heads.whole_answer
    causes: dict[str, tuple[CauseTrace, Trace, int]] = {}
    encoded: list[EncodedTrace] = []
    positions = position_limit(setup.model)  # for a new answer, too
    limit, left_out = config.answer_limit or None, chosen.report.left_out
    for trace in chosen.traces:
        try:
            whole = encode_trace(tokenizer, trace, rule=chosen.rule, answer=looking)
        except DataError:
            left_out["token_ids that do not fit its text"] += 1
            continue
        try:
            cause = encode_causes(
                tokenizer, trace, rule=chosen.rule, answer=config.answer, limit=limit
            )
        except DataError:
            left_out[f"no answer token counts ({config.answer})"] += 1
            continue
        if not whole.answer.any():
            left_out[f"no answer token is looked from ({looking})"] += 1
            continue
        answered = _answer_at(cause, config) + config.max_answer_tokens
        if not fits(max(len(whole), answered), positions):
            left_out[too_long(positions)] += 1
            continue
        causes[trace.id] = cause, trace, whole.prompt_tokens
        encoded.append(whole)
    chosen.report.used = len(encoded)
    if not encoded:
        why = ", ".join(f"{count} × {reason}" for reason, count in left_out.items())
        raise DataError(f"{chosen.name}: every trace was left out: {why}")
    return causes, encoded


def _answer_at(cause: CauseTrace, config: InterventionConfig) -> int:
    """The token that the model's own answer begins at."""
    return int(cause.counted.argmax()) if config.answer == "boxed" else cause.behind


def summary(store: OutcomeStore, setup: Setup, chosen: ChosenTraces) -> InterventionResult:
    """The result of all outcomes of the chosen traces.

    Raises:
        DataError: there is none, or no trace has more steps than the fewest to be removed.
    """
    traces, config = chosen.traces, setup.config
    parts = {part: part_counts(part, store, traces, config) for part in PARTS if store.done(part)}
    outcomes = [
        outcome
        for part in parts
        for trace in traces
        for outcome in store.outcomes.get((part, trace.id), [])
    ]
    if not outcomes:
        raise DataError(f"{chosen.name}: no outcome: every trace was left out")
    if "steps" in parts:
        too_few, least = parts["steps"]["too_few_steps"], min(config.remove)
        if too_few[str(least)] == parts["steps"]["traces"]:
            raise DataError(f"{chosen.name}: no trace has more than {least} steps to remove")
    faults = dict(getattr(setup.verdict, "faults", {}))
    counts = {**chosen.to_json(), "verifier_faults": faults, "parts": parts}
    counts["batch_tokens"] = setup.batch_tokens
    head_set = {"heads": store.settings["heads"], "model": asdict(setup.heads.model)}
    return InterventionResult.of(outcomes, store.settings, head_set, counts)


def part_counts(
    part: str, store: OutcomeStore, traces: Sequence[Trace], config: InterventionConfig
) -> dict[str, Any]:
    """Numbers of traces and outcomes; of steps also of the traces too short for each number."""
    by_trace = [store.outcomes[part, t.id] for t in traces if (part, t.id) in store.outcomes]
    counts: dict[str, Any] = {"traces": len(by_trace), "outcomes": sum(map(len, by_trace))}
    if part == "steps":
        counts["too_few_steps"] = {
            str(k): sum(all(outcome.dose != k for outcome in of) for of in by_trace)
            for k in config.remove
        }
    return counts
