"""What a task is: questions, how they are asked, and what counts as right.

A task of one's own is a class of a dozen lines, made known under a name of its own:

    class Doubling(Task):
        name = "doubling"

        def questions(self, spec, limit, seed):
            asked = tuple(Question(f"d/{n}", f"2 * {n}?", str(2 * n)) for n in range(limit or 100))
            return QuestionSet(self.name, asked, self, {"spec": spec})

        def correct(self, question, answer):
            return answer.strip() == question.answer

    TASKS["doubling"] = Doubling

Then `load_questions("doubling")`, `evaluate` and `train` take it; the command line takes
`--data MODULE:Doubling`, from a module that Python finds; `--task MODULE:Doubling` has it read what
`--data` names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal

from probing.choices import THINK_END
from probing.errors import ConfigError
from probing.files.headers import load_part, part_json, problem_hash
from probing.settings import choice
from probing.traces.file import Step
from probing.traces.text import answer_part

AllowCode = Literal["no", "guarded", "unguarded"]  # may programs of a model run here?
# (row of the training data, response) → its steps with labels; the offsets are characters.
LabelFunc = Callable[[dict[str, Any], str], Sequence[Step]]


@dataclass(frozen=True)
class TaskChoice:
    """Which task reads, asks and verifies questions; part of the settings of all that asks."""

    _: KW_ONLY
    task: str | None = choice(
        None, "Task that reads and verifies --data: module:name; default: as --data says."
    )
    instruction: str | None = choice(
        None, "Stands after each question; empty: none; default: the task's."
    )
    limit: int | None = choice(None, "At most so many questions of a set.", least=1)
    skip_bad: bool = choice(False, "Leave bad lines of a question file out, counted.")

    @property
    def reading(self) -> dict[str, Any]:
        """The same as arguments of `load_questions`."""
        return {name: getattr(self, name) for name in TaskChoice.__annotations__ if name != "_"}


@dataclass(frozen=True)
class Question:
    """One question with its reference answer.

    `id` is unique in its set; `question` is the text put to the model, without template;
    `meta` holds what the verifier needs (reasoning-gym's entry), and fields of the file that kfh
    does not know.
    """

    id: str
    question: str
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether a response is right; what its task says of that; the exception that said no."""

    correct: bool
    detail: dict[str, Any] | None = None
    fault: str | None = None


class Task(ABC):
    """One kind of question: `questions` and `correct` are its own, the rest where it can."""

    name: ClassVar[str]
    instruction: str = ""  # stands after each question: asks for reasoning, a box, …
    parallel: ClassVar[bool] = False  # whether verdicts are reached at the same time, in threads
    allow_code: AllowCode = "no"

    @abstractmethod
    def questions(self, spec: str, limit: int | None, seed: int) -> QuestionSet:
        """The questions that a spec (`name`, `name:…`, `name@…`) means.

        Args:
            spec: as the user wrote it.
            limit: at most so many questions; the size of a set that is generated.
            seed: of a set that is generated.

        Raises:
            DataError: the spec means nothing to this task.
        """

    @abstractmethod
    def correct(self, question: Question, answer: str) -> bool:
        """Whether an answer, the text behind the end of the reasoning, is right.

        What it raises is counted by `QuestionSet.correct`, and the answer is wrong.
        """

    def verdict(self, question: Question, answer: str) -> Verdict:
        """Whether an answer is right, with what is worth keeping of how it was found."""
        return Verdict(self.correct(question, answer))

    def reference(self, question: Question) -> str:
        """An answer that is right by definition: here the reference answer in a box."""
        return f" \\boxed{{{question.answer}}}"

    def verifies(self, question: Question) -> bool:
        """Whether the verifier accepts the reference answer of a question."""
        return self.correct(question, self.reference(question))

    def unstated(self, question: Question, answer: str) -> bool:
        """Whether an answer lacks what alone could hold the reference, such as a box.

        It is wrong whatever it means; evaluations count such answers.
        """
        return False

    def label(self, question: Question, response: str) -> Sequence[Step]:
        """The steps of a response with their true labels, for a task that knows them."""
        raise NotImplementedError(f"the task {self.name} does not know the labels of its steps")

    def readable(self, question: Question, response: str) -> bool:
        """Whether `label` understands the whole response; else it counts as unreadable."""
        return True

    def steps_readable(self, question: Question, response: str) -> bool:
        """Whether `label` understands every step, whatever the answer makes of them."""
        return self.readable(question, response)

    def shortest(self, question: Question) -> str | None:
        """The shortest correct response, where the task knows it."""
        return None

    def trace(self, question: Question, seed: int) -> str:
        """A response to learn from (`kfh sft`), for a task that can write one; drawn by the seed.

        Raises:
            ConfigError: this one cannot.
        """
        raise ConfigError(f"the task {self.name} writes no responses to learn from")

    def speaks(self, tokenizer: Any) -> bool:
        """Whether a model with this tokenizer knows this task alone.

        Such a model gets the task's own prompt, and its answers are judged by the task.
        """
        return False

    def prompt(self, question: str, think_start: str) -> str:
        """The prompt for a model that knows this task alone, ending in the opened reasoning."""
        return f"{question}\n{think_start}"

    def tokenizer(self) -> Any:
        """The tokenizer of the model that knows this task alone; None where there is none."""
        return None

    def check(self, question: str) -> None:
        """Refuse a text that is no question of this task.

        Raises:
            ValueError: it is none; the message says why.
        """
        return  # any text may be one

    @property
    def labels(self) -> bool:
        """Whether the task knows the labels of its steps, that is: has a `label` of its own."""
        return type(self).label is not Task.label


def left_out(name: str, source: Mapping[str, Any]) -> list[str]:
    """The lines that were left out of the question set of this name, in sentences.

    Args:
        name: of the set.
        source: of the set, as headers have it.
    """
    first = source.get("first_bad_lines", {})
    return [
        f"{name}: left out {number} × {kind}, first {first[kind]}"
        for kind, number in source.get("bad_lines", {}).items()
    ]


@dataclass(frozen=True)
class QuestionSet:
    """Questions of one task, which verifies.

    `source` says where they are from (spec, file hash or revision, number), for headers;
    `unverified` names the questions whose own reference answer the verifier does not accept:
    they stay, since leaving them out would change the benchmark, and count as wrong.
    `faults` counts what went wrong inside the verifier, by type.
    """

    name: str
    questions: tuple[Question, ...]
    task: Task = field(compare=False)
    source: dict[str, Any]
    unverified: tuple[str, ...] = ()
    faults: Counter[str] = field(default_factory=Counter, compare=False, repr=False)

    def __len__(self) -> int:
        """The number of questions."""
        return len(self.questions)

    @property
    def problems(self) -> tuple[str, ...]:
        """The hash of each question's problem (`probing.files.headers.problem_hash`)."""
        return tuple(problem_hash(question.question) for question in self.questions)

    @property
    def left_out(self) -> list[str]:
        """The lines of its file that were left out, in sentences."""
        return left_out(self.name, self.source)

    @property
    def instruction(self) -> str:
        """The sentence that stands after each question; empty where there is none."""
        return self.task.instruction

    def correct(
        self,
        question: Question,
        response: str,
        *,
        think_end: str = THINK_END,
        think_end_at: str = "first",
    ) -> bool:
        """Whether a response is right (see `verdict`); `faults` counts the exceptions."""
        found = self.verdict(question, response, think_end=think_end, think_end_at=think_end_at)
        return self._counted(found)

    def verdict(
        self,
        question: Question,
        response: str,
        *,
        think_end: str = THINK_END,
        think_end_at: str = "first",
    ) -> Verdict:
        """The verdict on a response (the text generated after the prompt).

        Without `think_end` it is wrong, whatever its reasoning says; with several the first or
        the last counts (`think_end_at`).
        """
        answer = answer_part(response, think_end, think_end_at)
        if answer is None:
            return Verdict(False)
        return _caught(lambda: self.task.verdict(question, answer))

    def verifies(self, question: Question) -> bool:
        """Whether the verifier accepts the reference answer of a question."""
        return self._counted(_caught(lambda: Verdict(bool(self.task.verifies(question)))))

    def _counted(self, verdict: Verdict) -> bool:
        if verdict.fault:
            self.faults[verdict.fault] += 1
        return bool(verdict.correct)

    @property
    def label_func(self) -> LabelFunc | None:
        """True labels for training, where the task knows them; rows hold `question_index`."""
        if not self.task.labels:
            return None
        return lambda row, text: self.task.label(self.questions[row["question_index"]], text)


def _caught(verdict: Callable[[], Verdict]) -> Verdict:
    """A verdict; an exception in it means no."""
    try:
        return verdict()
    except Exception as error:  # noqa: BLE001  # verifiers of others raise anything
        return Verdict(False, fault=type(error).__name__)


# The name before the first `:` or `@` of a spec → what gives the task: its class, a function, or
# `module:name` of either. The shipped ones are named, not imported: a task stands on this module,
# so it comes in as one from outside does, and nothing here depends on it.
TASKS: dict[str, Callable[[], Task] | str] = {
    "hub": "rl.tasks.questions:Maths",
    "rg": "rl.tasks.gym:Gym",
    "gpqa": "rl.benchmarks.choices:GPQA",
    "mmlu": "rl.benchmarks.choices:MMLU",
    "livecodebench": "rl.benchmarks.livecodebench:LiveCodeBench",
    "pocket": "rl.pocket.questions:Pocket",
    "pocket-held-out": "rl.pocket.questions:Pocket",
    "pocket-long": "rl.pocket.questions:Pocket",
    "pocket-long-held-out": "rl.pocket.questions:Pocket",
    "words": "rl.words.questions:Words",
    "words-held-out": "rl.words.questions:Words",
}


def load_task(entry: Callable[[], Task] | str) -> Task:
    """The task of an entry of `TASKS`, or of `module:name`.

    Raises:
        ConfigError: no such module, nothing of this name in it, or it gives no task.
    """
    try:
        task = load_part(entry)() if isinstance(entry, str) else entry()
    except TypeError as error:  # as of a class without `correct`
        raise ConfigError(f"{entry}: gives no task ({error})") from error
    if not isinstance(task, Task):
        raise ConfigError(f"{entry}: gives {task!r:.60}, which is no rl.Task")
    return task


def speaker(tokenizer: Any) -> str | None:
    """Name in `TASKS` of the task that is all that the model of a tokenizer knows; else None."""
    return next((n for n, entry in TASKS.items() if load_task(entry).speaks(tokenizer)), None)


def task_source(task: Task) -> dict[str, Any]:
    """Name and hash of the source of a task that does not come with kfh, for headers."""
    kind = type(task)
    return {} if kind.__module__.startswith("rl.") else {"task": part_json(kind)}
