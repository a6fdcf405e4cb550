"""Ask a question set, verify the responses, and keep them in a file that can be gone on with."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from probing.choices import THINK_END
from probing.errors import DataError
from probing.files.headers import HEADER, file_header
from probing.files.jsonl import refuse_other_settings
from probing.models.decode import Sampling
from rl.sampling.base import Sampler
from rl.tasks.base import Question, QuestionSet
from rl.tasks.prompts import render_prompt


@dataclass(frozen=True)
class Response:
    """One verified response; `tokens` counts the end token, `fault` names an exception of the
    verifier (the response then counts as wrong), `token_ids` are the ids as sampled, where they
    are kept."""

    id: str  # of the question
    sample: int
    text: str
    tokens: int
    finished: bool
    correct: bool
    fault: str | None = None
    token_ids: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The response as a line; without ids where none are kept."""
        line = asdict(self)
        if self.token_ids is None:
            del line["token_ids"]
        return line


@dataclass(frozen=True)
class Asking:
    """How questions become prompts, and responses become answers; whether ids are kept."""

    template: str = "auto"
    think_end: str = THINK_END
    keep_ids: bool = False


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
    prompts = {q.id: prompt_of(sampler, tokenizer, questions, q, asking.template) for q in pending}
    # Prompts of one length together: less padding, and the longest first shows what memory takes.
    ordered = sorted(pending, key=lambda question: len(prompts[question.id]), reverse=True)
    at_once = max(1, sampler.rows // n)
    for start in range(0, len(ordered), at_once):
        chunk = ordered[start : start + at_once]
        sampled = sampler.sample([prompts[q.id] for q in chunk], n=n, settings=sampling)
        found = [
            _verified(questions, question, number, sample, asking)
            for question, samples in zip(chunk, sampled, strict=True)
            for number, sample in enumerate(samples)
        ]
        keep(found)
        advance(len(found), sum(response.tokens for response in found))


def prompt_of(
    sampler: Sampler, tokenizer: Any, questions: QuestionSet, question: Question, template: str
) -> str:
    """What the sampler is given: the rendered prompt, or the bare question with instruction."""
    if not sampler.rendered:
        return bare_prompt(questions, question)
    return render_prompt(tokenizer, question.question, template, instruction=questions.instruction)


def bare_prompt(questions: QuestionSet, question: Question) -> str:
    """The question with its instruction, as an endpoint's chat takes it."""
    instruction = questions.instruction
    return f"{question.question}\n{instruction}" if instruction else question.question


def _verified(
    questions: QuestionSet, question: Question, number: int, sample: Any, asking: Asking
) -> Response:
    before = Counter(questions.faults)
    correct = questions.correct(question, sample.text, think_end=asking.think_end)
    fault = next(iter(questions.faults - before), None)
    return Response(
        question.id,
        number,
        sample.text,
        sample.tokens,
        sample.finished,
        correct,
        fault,
        sample.token_ids if asking.keep_ids else None,
    )


class ResponseStore:
    """Responses of one set: a header with the settings, then a line a response, appended.

    Args:
        path: the file.
        settings: all that decides the responses.
        samples: of one question; questions with fewer are asked anew.
        slim: hold neither texts nor ids in memory; `stream` reads them again.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], samples: int, *, slim: bool = False
    ) -> None:
        self.path, self.settings, self.samples, self.slim = path, settings, samples, slim
        self.responses: dict[str, list[Response]] = {}

    def open(self, resume: bool) -> None:
        """Read what is there, or begin anew.

        A line torn by a kill, and questions without all their samples, are cut off.

        Raises:
            ConfigError: it holds responses made with other settings; the message says which.
            DataError: a line in the middle cannot be read.
        """
        self.responses = {}
        good = self._read() if resume and self.path.exists() else 0
        if good:
            os.truncate(self.path, good)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = {HEADER: file_header("responses", settings=self.settings)}
        self.path.write_text(json.dumps(header, ensure_ascii=False) + "\n", encoding="utf-8")

    def _read(self) -> int:
        """Read the whole questions; the bytes up to the end of the last of them."""
        good = place = 0
        current: list[Response] = []
        lines = self.path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            place += len(line)
            row = self._row(line, number, last=number == len(lines))
            if row is None:
                break
            if number == 1:
                self._same_settings(row)
                good = place
                continue
            try:
                current.append(self._held(_response(row)))
            except TypeError as error:
                raise DataError(f"{self.path}, line {number}: no response ({error})") from error
            if len(current) == self.samples:
                self.responses[current[0].id] = current
                current, good = [], place
        return good

    def _row(self, line: bytes, number: int, *, last: bool) -> dict[str, Any] | None:
        """The object of a line; None for a last line that was torn."""
        try:
            if not line.endswith(b"\n"):
                raise ValueError("it has no end")
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is no object")
        except ValueError as error:
            if last:
                return None
            raise DataError(
                f"{self.path}, line {number}: damaged ({error}); remove the file or use --no-resume"
            ) from error
        return row

    def _same_settings(self, row: dict[str, Any]) -> None:
        held = row.get(HEADER, {}).get("settings", {})
        refuse_other_settings(self.path, "responses", held, self.settings)

    def add(self, responses: Sequence[Response]) -> None:
        """Append responses, all samples of a question one after the other."""
        lines = [json.dumps(response.to_json(), ensure_ascii=False) for response in responses]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        for response in responses:
            self.responses.setdefault(response.id, []).append(self._held(response))

    def stream(self) -> Iterator[Response]:
        """The responses of the file, whole, one in memory at a time."""
        with self.path.open(encoding="utf-8") as file:
            next(file)  # the header
            for line in file:
                yield _response(json.loads(line))

    def _held(self, response: Response) -> Response:
        return replace(response, text="", token_ids=None) if self.slim else response


def _response(row: dict[str, Any]) -> Response:
    ids = row.get("token_ids")
    return Response(**{**row, "token_ids": None if ids is None else tuple(ids)})
