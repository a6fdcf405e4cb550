"""Sample responses, verify them, and keep those on which a model can be probed, as a trace file.

1. Load and check the question sets; open the backend.
2. Ask: all responses, the bad ones too, are appended to `<out>.responses/<set>.jsonl` as batches
   finish (`rl.sampling.responses`), with the token ids as sampled. Another selection asks nothing
   again.
3. Select: the paper probes correct responses to problems that the model solves nearly always.
   What is left out is counted by its first reason.
4. Write the traces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from probing.choices import THINK_END
from probing.errors import ConfigError, DataError
from probing.files.headers import refuse_overwriting
from probing.models.decode import encode_prompt
from probing.models.identity import tokenizer_fingerprint
from probing.settings import Progress, no_progress
from probing.traces.file import Trace, write_traces
from probing.traces.marks import blank_answer
from probing.traces.reports import CutReport
from probing.traces.segmenters import segment_trace
from probing.traces.text import answer_part
from probing.traces.tokens import TOKEN_IDS, SampledIds, decode_with_offsets
from rl.sampling.base import Sampler
from rl.sampling.config import CollectConfig
from rl.sampling.job import ask_set, load_sets, open_backend, prompt_tokenizer
from rl.sampling.responses import Response, ResponseStore, rendered
from rl.tasks.base import Question, QuestionSet

# Why a response is no trace, in the order in which they are looked at.
CUT_OFF = "cut off at the limit of tokens"
NO_END = "without the end of the reasoning"
NO_ANSWER = "without an answer after the reasoning"
WRONG = "wrong"
UNREAD = "not read whole by the task, so without true labels"
HARD = "of problems solved too seldom"
BEYOND = "beyond --per-problem"


@dataclass
class CollectReport:
    """What became of the responses: `traces` and `left_out` add up to `responses`."""

    problems: int = 0
    easy_problems: int = 0
    responses: int = 0
    sampled: int = 0  # of these in this run
    traces: int = 0
    with_ids: int = 0  # traces that hold the ids as sampled
    left_out: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)  # of the verifier; counted as wrong
    bad_questions: list[str] = field(default_factory=list)  # lines left out, in sentences
    unverified: int = 0  # problems whose reference answer the verifier does not accept
    prompts: str = ""
    cut: CutReport = field(default_factory=CutReport)  # of the traces that are cut

    def to_json(self) -> dict[str, Any]:
        """Counts for the header."""
        return {
            "problems": self.problems,
            "easy_problems": self.easy_problems,
            "responses": self.responses,
            "traces": self.traces,
            "with_ids": self.with_ids,
            "left_out": dict(self.left_out),
            "verifier_faults": dict(self.faults),
            "unverified_problems": self.unverified,
            "bad_questions": self.bad_questions,
        }


def share_correct(responses: list[Response]) -> float:
    """Share of a problem's samples that are correct; one cut off never is.

    Example: of 4 samples, 3 correct of which 1 was cut off at the limit: 2 / 4 = 0.5.
    """
    return sum(r.correct and r.finished for r in responses) / len(responses)


def collect_traces(config: CollectConfig, progress: Progress = no_progress) -> CollectReport:
    """Sample, verify, select, and write the trace file.

    Returns:
        Counts of what was kept and left out, as in the header of the file.

    Raises:
        KfhError: a bad setting, question set or model; or no response that can be kept.
    """
    refuse_overwriting(config.out, *config.data)
    sets = load_sets(config)  # 1
    for questions in sets if config.by_task else ():
        if not questions.task.labels:
            raise ConfigError(
                f"--segmenter task: {questions.name} does not know the labels of its steps"
            )
    tokenizer = prompt_tokenizer(config)
    sampler = open_backend(config, tokenizer, keep_ids=True)
    report = CollectReport(prompts=_prompts(sampler, tokenizer))
    report.bad_questions = [text for questions in sets for text in questions.left_out]
    stores = []
    for questions in sets:  # 2
        store, new = ask_set(
            config,
            sampler,
            tokenizer,
            questions,
            config.responses,
            progress,
            keep_ids=True,
            slim=True,
        )
        report.sampled += new
        stores.append(store)
    pairs = zip(sets, stores, strict=True)
    chosen = [_select(config, questions, store, report) for questions, store in pairs]  # 3
    if not report.traces:
        reasons = ", ".join(f"{number} {why}" for why, number in report.left_out.items())
        raise DataError(
            f"no trace is left of {report.responses} responses ({reasons}): see --keep, --easy "
            f"and --max-tokens. The responses are kept in {config.responses}"
        )
    maker = _TraceMaker(config, sampler, tokenizer, report)
    maker.write(list(zip(sets, stores, chosen, strict=True)))  # 4
    return report


def _prompts(sampler: Sampler, tokenizer: Any) -> str:
    """What the field `prompt` of the traces is."""
    if sampler.rendered:
        return "as given to the model"
    if tokenizer is not None:
        return "rendered here; the endpoint's chat rendered its own"
    return "bare questions; the endpoint's chat rendered its own"


def _select(
    config: CollectConfig, questions: QuestionSet, store: ResponseStore, report: CollectReport
) -> set[tuple[str, int]]:
    """(question, sample) of the responses that become traces; the others are counted.

    The store holds no texts: what the text decides is looked at in one pass over the file.
    """
    asked = {question.id: question for question in questions.questions}
    whys = {}
    for response in store.stream():
        why = _reason(config, response)
        if not why and config.by_task:
            text = response.text.replace(config.think_end, THINK_END, 1)
            read = questions.task.readable(asked[response.id], text)
            why = "" if read else UNREAD
        whys[response.id, response.sample] = why
    chosen: set[tuple[str, int]] = set()
    for name, responses in store.responses.items():
        easy = share_correct(responses) >= config.easy
        report.problems += 1
        report.easy_problems += easy
        taken = 0
        for response in sorted(responses, key=lambda item: item.sample):
            report.responses += 1
            if response.fault:
                report.faults[response.fault] += 1
            why = whys[name, response.sample] or ("" if easy else HARD)
            if not why and config.per_problem is not None and taken >= config.per_problem:
                why = BEYOND
            if why:
                report.left_out[why] += 1
                continue
            taken += 1
            report.traces += 1
            chosen.add((name, response.sample))
    return chosen


def _reason(config: CollectConfig, response: Response) -> str:
    """Why a response by itself is no trace; empty where it is one."""
    if not response.finished:
        return CUT_OFF
    answer = answer_part(response.text, config.think_end, config.think_end_at)
    if answer is None:
        return NO_END
    if blank_answer(answer):
        return NO_ANSWER
    return WRONG if config.keep == "correct" and not response.correct else ""


class _TraceMaker:
    """Responses → traces, streamed from the stores to the trace file."""

    def __init__(
        self, config: CollectConfig, sampler: Sampler, tokenizer: Any, report: CollectReport
    ) -> None:
        self.config, self.sampler, self.tokenizer = config, sampler, tokenizer
        self.report = report
        ends = getattr(sampler, "ends", None)
        self.ends = set(ends or getattr(tokenizer, "all_special_ids", None) or ())

    def write(self, parts: list[tuple[QuestionSet, ResponseStore, set[tuple[str, int]]]]) -> None:
        """Write the trace file; the header, which counts, is made before the traces."""
        config, report = self.config, self.report
        report.cut.segmenter = config.cutter.to_json() if config.cutter else None
        report.unverified = sum(len(questions.unverified) for questions, _, _ in parts)
        report.with_ids = sum(
            response.token_ids is not None and self.tokenizer is not None
            for _, store, chosen in parts
            for response in store.stream()
            if (response.id, response.sample) in chosen
        )
        write_traces(
            config.out,
            self._traces(parts),
            model=config.named,
            backend=config.backend,
            responses={
                questions.name: {"file": str(store.path), "settings": store.settings}
                for questions, store, _ in parts
            },
            selection=config.selection_json(),
            counts=report.to_json(),
            prompts=report.prompts,
        )

    def _traces(
        self, parts: list[tuple[QuestionSet, ResponseStore, set[tuple[str, int]]]]
    ) -> Iterator[Trace]:
        seen: set[str] = set()
        for questions, store, chosen in parts:
            by_id = {question.id: question for question in questions.questions}
            for response in store.stream():
                if (response.id, response.sample) not in chosen:
                    continue
                share = share_correct(store.responses[response.id])
                trace = self._trace(questions, by_id[response.id], response, share)
                if trace.id in seen:
                    raise DataError(
                        f"two question sets hold {response.id!r}: collect them one by one"
                    )
                seen.add(trace.id)
                yield trace

    def _trace(
        self, questions: QuestionSet, question: Question, response: Response, share: float
    ) -> Trace:
        config = self.config
        prompt = rendered(self.tokenizer, questions, question, config.asking)
        extra: dict[str, Any] = {
            "model": config.named,
            "ground_truth": question.answer,
            "data": questions.name,
            "sample": response.sample,
            "share_correct": share,
            "tokens": response.tokens,
        }
        text = response.text
        if response.token_ids is not None and self.tokenizer is not None:
            text, extra[TOKEN_IDS] = self._ids(response.token_ids, prompt)
        trace = Trace(
            f"{response.id}/{response.sample}",
            prompt,
            text,
            correct=response.correct,
            problem=question.question,
            extra=extra,
            think_end=config.think_end,
            think_end_at=config.think_end_at,
        )
        if config.by_task:
            known = text.replace(config.think_end, THINK_END, 1)
            steps = tuple(questions.task.label(question, known))
            trace = replace(trace, steps=steps)
        elif config.cutter:
            trace = segment_trace(trace, config.cutter)
            self.report.cut.add([step.kind for step in trace.steps])
        return trace

    def _ids(self, ids: tuple[int, ...], prompt: str) -> tuple[str, dict[str, Any]]:
        """The text that the ids decode to, of which steps are cut, and the ids for the trace."""
        end = ids[-1] if ids[-1] in self.ends else None
        kept = ids if end is None else ids[:-1]
        text, _ = decode_with_offsets(self.tokenizer, np.asarray(kept, dtype=np.int64))
        sampled = SampledIds(
            tuple(encode_prompt(self.tokenizer, prompt)),
            kept,
            end,
            tokenizer_fingerprint(self.tokenizer),
        )
        return text, sampled.to_json()
