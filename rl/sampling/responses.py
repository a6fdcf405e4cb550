"""Ask a question set, verify the responses, and keep them in a file that can be gone on with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from probing.choices import THINK_END
from probing.files.jsonl import LineStore
from probing.models.decode import Sampling
from rl.sampling.base import Sampler
from rl.tasks.base import Question, QuestionSet
from rl.tasks.prompts import THINK_START, render_prompt


@dataclass(frozen=True)
class Response:
    """One verified response; `tokens` counts the end token, `fault` names an exception of the
    verifier (the response then counts as wrong), `token_ids` are the ids as sampled, where they
    are kept, `detail` what the task says of its verdict."""

    id: str  # of the question
    sample: int
    text: str
    tokens: int
    finished: bool
    correct: bool
    fault: str | None = None
    token_ids: tuple[int, ...] | None = None
    detail: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The response as a line; without ids and detail where there are none."""
        line = asdict(self)
        for name in ("token_ids", "detail"):
            if line[name] is None:
                del line[name]
        return line


@dataclass(frozen=True)
class Asking:
    """How questions become prompts, and responses become answers; whether ids are kept."""

    template: str = "auto"
    think_end: str = THINK_END
    think_end_at: str = "first"
    think_start: str = THINK_START
    keep_ids: bool = False


AS_USUAL = Asking()


def ask(
    sampler: Sampler,
    tokenizer: Any,
    questions: QuestionSet,
    pending: Sequence[Question],
    sampling: Sampling,
    n: int,
    asking: Asking,
    keep: Callable[[list[Response]], None],
    advance: Callable[[int, int], None] = lambda responses, tokens: None,
) -> None:
    """Sample n responses to each pending question and verify them.

    Args:
        sampler, sampling: see `rl.sampling.base`.
        tokenizer: for rendering; not used where the sampler takes bare questions.
        questions: the set, which verifies.
        pending: those of its questions to ask.
        n: samples a question.
        asking: template and end of the reasoning.
        keep: takes the responses of some questions, all samples of one question together.
        advance: called with the numbers of new responses and of their tokens.
    """
    known = tokenizer if sampler.rendered else None
    prompts = {question.id: rendered(known, questions, question, asking) for question in pending}
    # Prompts of one length together: less padding, and the longest first shows what memory takes.
    ordered = sorted(pending, key=lambda question: len(prompts[question.id]), reverse=True)
    at_once = max(1, sampler.rows // n)
    for start in range(0, len(ordered), at_once):
        chunk = ordered[start : start + at_once]
        sampled = sampler.sample([prompts[q.id] for q in chunk], n=n, settings=sampling)
        pairs = [
            (question, number, sample)
            for question, samples in zip(chunk, sampled, strict=True)
            for number, sample in enumerate(samples)
        ]
        threads = len(os.sched_getaffinity(0)) if questions.task.parallel else 1
        with ThreadPoolExecutor(threads) as pool:
            verify = partial(_verified, questions, asking)
            verified = list((pool.map if questions.task.parallel else map)(verify, pairs))
        keep(verified)
        advance(len(verified), sum(response.tokens for response in verified))


def rendered(tokenizer: Any, questions: QuestionSet, question: Question, asking: Asking) -> str:
    """The prompt of a question; without a tokenizer it and its instruction, as a chat takes it."""
    instruction = questions.instruction
    if tokenizer is None:
        return f"{question.question}\n{instruction}" if instruction else question.question
    return render_prompt(
        tokenizer,
        question.question,
        asking.template,
        think_start=asking.think_start,
        instruction=instruction,
    )


def _verified(questions: QuestionSet, asking: Asking, asked: tuple[Question, int, Any]) -> Response:
    question, number, sample = asked
    verdict = questions.verdict(
        question, sample.text, think_end=asking.think_end, think_end_at=asking.think_end_at
    )
    return Response(
        question.id,
        number,
        sample.text,
        sample.tokens,
        sample.finished,
        bool(verdict.correct),
        verdict.fault,
        sample.token_ids if asking.keep_ids else None,
        verdict.detail,
    )


class ResponseStore:
    """Responses of one set on disk, all samples of a question together.

    Args:
        path: the file (JSONL).
        settings: all that decides the responses.
        samples: of one question; questions with fewer are asked anew.
        slim: hold neither texts nor ids in memory; `stream` reads them again.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], samples: int, *, slim: bool = False
    ) -> None:
        self.path, self.settings, self.samples, self.slim = path, settings, samples, slim
        self.responses: dict[str, list[Response]] = {}
        self._lines = LineStore(path, "responses", {"settings": settings})

    def open(self, resume: bool) -> None:
        """Read what is there, or begin anew; questions without all their samples are cut off.

        Raises:
            ConfigError: it holds responses made with other settings; the message says which.
            DataError: a line that was not cut short is damaged.
        """
        self.responses = {}
        of_question: list[Response] = []

        def take(row: dict[str, Any]) -> bool:
            of_question.append(self._kept(_response(row)))
            if len(of_question) < self.samples:
                return False
            self.responses[of_question[0].id] = of_question.copy()
            of_question.clear()
            return True

        self._lines.open(resume, take)

    def add(self, responses: Sequence[Response]) -> None:
        """Append responses, all samples of a question one after the other."""
        self._lines.add(response.to_json() for response in responses)
        for response in responses:
            self.responses.setdefault(response.id, []).append(self._kept(response))

    def stream(self) -> Iterator[Response]:
        """The responses of the file, whole, one in memory at a time."""
        with self.path.open(encoding="utf-8") as file:
            next(file)  # the header
            for line in file:
                yield _response(json.loads(line))

    def _kept(self, response: Response) -> Response:
        return replace(response, text="", token_ids=None) if self.slim else response


def _response(row: dict[str, Any]) -> Response:
    ids = row.get("token_ids")
    return Response(**{**row, "token_ids": None if ids is None else tuple(ids)})
