"""Question sets: what to ask, and the reference answers. Files and data sets of the hub are maths.

A set is named by a spec:
- `FILE.jsonl[.gz]`: lines `{"question", "answer"}`, optionally `id`; maths
- `hub:owner/name[@config][:split]`: a data set of the hub, or of a folder; maths
- `gpqa`, `mmlu`, `livecodebench`, each with `:` and one of the above: `rl.benchmarks`
- `rg:TASK`: a task of reasoning-gym, with its own verifier
- `pocket[:N][@SEED]`, `pocket-held-out[:N]`: problems of the pocket reasoner's task
- a name in `rl.tasks.base.TASKS`, or `MODULE:NAME`: a task of one's own

A task that is named beside the spec (`task`) reads it in place of the one that the spec names: a
subclass of `Maths` that has a `correct` of its own takes files and data sets of the hub as it does.
"""

from __future__ import annotations

import difflib
import math
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from probing.errors import ConfigError, DataError
from probing.files.headers import HEADER, file_hash, file_header, read_object, write_json
from probing.files.reading import BadLine, parse_line, text_lines
from probing.formats.records import hub_parts
from probing.traces.reports import ReadReport
from rl.tasks.base import TASKS, AllowCode, Question, QuestionSet, Task, load_task, task_source
from rl.tasks.maths import final_answer, maths_correct, maths_readable, maths_unstated
from rl.tasks.prompts import MATHS_INSTRUCTION

QUESTION_FIELDS = ("question", "problem", "prompt")
ANSWER_FIELDS = ("answer", "final_answer", "solution")
TRAINED_ON = "trained_on.json"  # in the folder of a trained model
Origin = Callable[[], dict[str, Any]]  # where rows are from, for headers; once they are read


class FileTask(Task):
    """A task whose questions are the rows of a file or of a data set of the hub.

    A subclass reads a row. Specs are `FILE.jsonl[.gz]` or `hub:owner/name[@config][:split]`, behind
    `name:` or `name@at:` where the task has a name in `TASKS`.
    """

    default = ""  # the spec where there is nothing behind the name
    skip_bad = False  # whether bad lines and rows are left out, counted

    @abstractmethod
    def question(self, row: Mapping[str, Any], name: str, seed: int) -> Question | None:
        """The question of a row; None where it is not asked.

        Args:
            row: of the file or data set.
            name: the id of the question, unless the row has one.
            seed: of what is drawn.

        Raises:
            BadLine: what is wrong with it.
        """

    def limit_to(self, at: str) -> None:
        """Ask only what `name@at` means.

        Raises:
            DataError: that means nothing to this task.
        """
        raise DataError(f"{self.name}@{at}: {self.name} takes nothing behind an @")

    def questions(self, spec: str, limit: int | None, seed: int) -> QuestionSet:
        """The rows in their order.

        Raises:
            DataError: it cannot be read, or a bad line; the message says where.
        """
        named = re.fullmatch(rf"{self.name}(?:@([^:]*))?(?::(.+))?", spec)
        if named and named[1]:
            self.limit_to(named[1])
        place = (named[2] or self.default) if named else spec
        name, rows, origin = (_hub_rows if place.startswith("hub:") else _file_rows)(place)
        if named and place.startswith("hub:"):
            config = hub_parts(place)[1]
            name = f"{self.name}-{config}" if config and place != self.default else self.name
        questions: list[Question] = []
        report, seen, not_asked = ReadReport(), set(), 0
        for where, row in rows:
            if limit is not None and len(questions) == limit:
                break
            try:
                row = parse_line(row) if isinstance(row, bytes) else row
                if HEADER in row:
                    continue
                question = self.question(row, f"{name}/{len(questions) + not_asked}", seed)
                if question and question.id in seen:
                    raise BadLine(
                        "duplicate id", f"the id {question.id!r} stands on an earlier line"
                    )
            except BadLine as error:
                report.bad_line(error, where, self.skip_bad)
                continue
            if question is None:
                not_asked += 1
                continue
            seen.add(question.id)
            questions.append(question)
        source = origin() | ({"spec": spec, "not_asked": not_asked} if named else {})
        return QuestionSet(name, tuple(questions), self, {**source, **report.bad_json()})


class Maths(FileTask):
    """Questions of a file or a data set of the hub; answers are compared by `rl.tasks.maths`."""

    name = "maths"
    instruction = MATHS_INSTRUCTION

    def question(self, row: Mapping[str, Any], name: str, seed: int) -> Question:
        """The question of a row with columns of question and answer."""
        return _question(row, _columns(row), name)

    def correct(self, question: Question, answer: str) -> bool:
        """Whether the last box, or else what the text gives, equals the reference."""
        return maths_correct(question.answer, answer, think_end="")

    def unstated(self, question: Question, answer: str) -> bool:
        """Whether the reference is a text, and the answer has neither box nor "the answer is"."""
        return maths_unstated(question.answer, answer)

    def verifies(self, question: Question) -> bool:
        """Whether the reference is equal to itself, and not by its letters alone."""
        return maths_readable(question.answer) and super().verifies(question)


def load_questions(
    spec: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    task: str | None = None,
    instruction: str | None = None,
    allow_code: AllowCode = "no",
) -> QuestionSet:
    """Load and check a question set.

    Args:
        spec: see the top of this file.
        limit: at most so many questions, the first ones; the size of a generated set (500).
        seed: of generated sets (`rg:`, and `pocket` where the spec names none), of the order of
            choices.
        skip_bad: leave bad lines of a file, or rows of a data set, out; `source` counts them.
        task: name in `TASKS`, or `module:name`, of the task that the spec is given to.
        instruction: stands after each question in place of the task's own; empty: none.
        allow_code: whether programs that a model wrote may run here, to verify them: `guarded`,
            shut off from the machine, or `unguarded`.

    Raises:
        ConfigError: no task of this name, or one that may not run programs, or not guard them.
        DataError: no such file, task or column; a bad line; ids twice; no question; or not one
            reference answer that the verifier accepts.
    """
    if limit is not None and limit < 1:
        raise DataError(f"{spec}: a limit of {limit} leaves no question")
    asked = load_task(TASKS.get(task, task)) if task else find_task(spec)
    asked.allow_code = allow_code
    if isinstance(asked, FileTask):
        asked.skip_bad = skip_bad
    loaded, given = asked.questions(spec, limit, seed), {}
    if instruction is not None:
        asked.instruction = given["instruction"] = instruction
    if task in TASKS:
        given["task"] = task
    return _checked(replace(loaded, source={**loaded.source, **given}))


def find_task(spec: str) -> Task:
    """The task that a spec names.

    Raises:
        DataError: none; the message gives the forms of a spec and the nearest name.
    """
    name = re.split("[:@]", spec, maxsplit=1)[0]
    if name in TASKS:
        return load_task(TASKS[name])
    if spec.endswith((".jsonl", ".jsonl.gz")):
        return Maths()
    near = difflib.get_close_matches(name, TASKS, 1)
    why = f"; did you mean {near[0]}?" if near else ""
    if named := re.match(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec):
        try:
            return load_task(named[0])
        except ConfigError as error:
            why = why or f" ({error})"
    raise DataError(
        f"{spec!r} is no question set{why}. Give FILE.jsonl[.gz], hub:owner/name[@config][:split], "
        "gpqa, mmlu or livecodebench[:FILE or hub:…], rg:TASK, pocket[:N][@SEED], "
        "pocket-held-out[:N] or MODULE:NAME of a task"
    )


def _checked(loaded: QuestionSet) -> QuestionSet:
    """The set, with its ids and its verifier tried on a reference response of each question."""
    spec, questions = loaded.source["spec"], loaded.questions
    if not questions:
        raise DataError("; ".join([f"{spec}: holds no question", *loaded.left_out]))
    twice = [name for name, n in Counter(q.id for q in questions).items() if n > 1]
    if twice:
        raise DataError(f"{spec}: {len(twice)} ids stand twice, first {twice[0]!r}")
    unverified = tuple(q.id for q in questions if not loaded.verifies(q))
    if len(unverified) == len(questions):
        raise DataError(
            f"{spec}: the verifier accepts none of the {len(questions)} reference answers, first "
            f"{questions[0].answer!r:.80} ({dict(loaded.faults) or 'no exception'}): are these "
            "answers, or whole solutions?"
        )
    counts = {"questions": len(questions), "unverified": len(unverified)}
    source = {**loaded.source, **task_source(loaded.task), **counts}
    # Faults of the trial are no faults of responses.
    return replace(loaded, source=source, unverified=unverified, faults=Counter())


def _question(row: Mapping[str, Any], columns: tuple[str, str], name: str) -> Question:
    """The question of a row of a file or data set; the other fields are kept in `meta`.

    Raises:
        BadLine: what is wrong with it.
    """
    texts = []
    for column in columns:
        value: Any = row.get(column)
        if column == "final_answer" and isinstance(value, list):  # as OlympiadBench has it
            value = ", ".join(map(str, value))
        if type(value) in (int, float) and column == columns[1] and abs(value) < math.inf:
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            said = f"{column} must be a text that is not empty, is {value!r:.60}"
            raise BadLine("missing field" if value is None else "wrong type", said)
        texts.append(value)
    given = row.get("id")
    if isinstance(given, (bool, dict, list)):
        raise BadLine("wrong type", f"id {given!r:.60} is neither text nor number")
    meta = {key: value for key, value in row.items() if key not in (*columns, "id")}
    asked, answer = texts
    return Question(name if given is None else str(given), asked, final_answer(answer), meta)


def _columns(names: Iterable[str]) -> tuple[str, str]:
    """The columns of question and answer among those of a data set.

    Raises:
        BadLine: there is none.
    """
    names = list(names)
    asked = next((name for name in QUESTION_FIELDS if name in names), None)
    answer = next((name for name in ANSWER_FIELDS if name in names), None)
    if asked is None or answer is None:
        missing = ("answer", ANSWER_FIELDS) if asked else ("question", QUESTION_FIELDS)
        raise BadLine(
            "missing field", f"no {missing[0]} ({', '.join(missing[1])}) among {', '.join(names)}"
        )
    return asked, answer


def _file_rows(spec: str) -> tuple[str, Iterator[tuple[str, bytes]], Origin]:
    """The name of a file, its lines, each with its place, and where they are from."""
    path = Path(spec).expanduser()
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    rows = ((f"{path}, line {number}", text) for number, text in text_lines(path))
    return name, rows, lambda: {"spec": str(path), "hash": file_hash(path)}


def _hub_rows(spec: str) -> tuple[str, Iterator[tuple[str, dict[str, Any]]], Origin]:
    """The name of a data set, its rows, each with its place, and where they are from."""
    from datasets import DatasetDict, load_dataset

    name, config, split = hub_parts(spec)
    try:
        data = load_dataset(name, config, split=split)
    except Exception as error:  # hub, network and formats: of many libraries
        raise DataError(f"{spec}: cannot be loaded: {error}") from error
    if isinstance(data, DatasetDict):
        if len(data) > 1:
            raise DataError(f"{spec}: which split? add one of {', '.join(f':{k}' for k in data)}")
        data = next(iter(data.values()))
    short = name.rstrip("/").rpartition("/")[2].lower()
    rows = ((f"{spec}, row {number}", row) for number, row in enumerate(data))
    return short, rows, lambda: {"spec": spec, "fingerprint": data._fingerprint}


def write_trained_on(folder: Path, problems: Iterable[str], base: str) -> None:
    """Write beside a model what it was trained on, so that an evaluation can tell; if anything.

    Args:
        folder: of the model.
        problems: their hashes (`probing.files.headers.problem_hash`).
        base: the model that training began with; what that one was trained on counts, too.
    """
    if every := sorted({*problems, *(trained_on(base) or ())}):
        header = {HEADER: file_header("problems trained on")}
        write_json(folder / TRAINED_ON, {**header, "problems": every})


def trained_on(*models: str | Path | None) -> frozenset[str] | None:
    """Hashes of the problems that a model was trained on; None where no folder says.

    Args:
        *models: its folder, that of its adapter.
    """
    paths = [Path(model) / TRAINED_ON for model in models if model]
    said = [read_object(path)["problems"] for path in paths if path.is_file()]
    return frozenset().union(*said) if said else None
