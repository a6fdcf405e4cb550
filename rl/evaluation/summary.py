"""What an evaluation found: the figures of each set, their mean, and how they compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probing.choices import THINK_END
from probing.errors import ConfigError, DataError
from probing.files.headers import read_object
from probing.intervals import Estimate, estimate_mean, estimate_rate, estimate_share
from probing.traces.phrases import PHRASE_GROUPS, Phrases, phrase_counts
from probing.traces.text import answer_part
from rl.evaluation.measures import efficiency_score, pass_figure, within_budget
from rl.sampling.responses import Response
from rl.tasks.base import Question, QuestionSet


@dataclass(frozen=True)
class Redundancy:
    """What only a task can tell that knows its steps' labels, or its shortest responses.

    `redundant_steps` a response, of those that can be read whole; `redundant_tokens`: tokens above
    the shortest correct response, of all; `unreadable`: responses that cannot be read whole, of
    these `unreadable_steps`: with a step that cannot. None: the task does not know it.
    """

    redundant_steps: Estimate | None
    redundant_tokens: Estimate | None
    unreadable: int | None
    unreadable_steps: int | None


@dataclass(frozen=True)
class SetFigures:
    """The figures of one set, with 95 % intervals over questions.

    `pass_at`: by k, where there are several samples; `budgets`: accuracy where a response that
    needs more tokens counts as wrong; `phrases`: per 1000 tokens by group; `faults`: exceptions
    of the verifier; `aes`: against a base, where one is given; `trained_on`: questions that the
    model was trained on (`rl.tasks.questions.trained_on`), None where that is not known.
    """

    name: str
    source: dict[str, Any]
    samples: int
    accuracy: Estimate
    tokens: Estimate
    truncated: Estimate
    pass_at: dict[int, Estimate]
    budgets: dict[int, Estimate]
    phrases: dict[str, Estimate]
    redundancy: Redundancy | None  # under `pocket` in eval.json, where it began
    no_answer: int  # responses that never end their reasoning
    no_box: int  # answers without the box in which alone their reference could be met
    unverified: int  # questions whose reference the verifier does not accept
    faults: dict[str, int]
    correct: list[list[float]]  # a row a question: for means over sets
    lengths: list[list[float]]
    aes: float | None = None
    trained_on: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures, without the rows that they come from."""
        left_out, renamed = ("correct", "lengths", "name"), {"redundancy": "pocket"}
        return {
            renamed.get(key, key): value
            for key, value in asdict(self).items()
            if key not in left_out
        }


@dataclass(frozen=True)
class Overall:
    """Means over benchmarks, each with equal weight."""

    accuracy: Estimate
    tokens: Estimate
    aes: float | None = None


def set_figures(
    questions: QuestionSet,
    responses: Mapping[str, Sequence[Response]],
    *,
    budgets: Sequence[int] = (),
    think_end: str,
    tokenizer: Any = None,
) -> SetFigures:
    """The figures of a set.

    Args:
        questions: the set.
        responses: of each question, by its id; the same number for all.
        budgets: numbers of tokens.
        think_end: the text that ends the reasoning.
        tokenizer: the model's, to count the shortest responses of a task that knows them; default
            the task's own.
    """
    rows = [responses[question.id] for question in questions.questions]
    correct = [[float(r.correct) for r in row] for row in rows]
    lengths = [[float(r.tokens) for r in row] for row in rows]
    flat = [response for row in rows for response in row]
    n = len(rows[0])
    ks = [k for k in (2**i for i in range(1, 12)) if k <= n]
    return SetFigures(
        name=questions.name,
        source=questions.source,
        samples=n,
        accuracy=estimate_share(correct),
        tokens=estimate_mean(lengths),
        truncated=estimate_share([[float(not r.finished) for r in row] for row in rows]),
        pass_at={k: pass_figure(correct, k) for k in ks},
        budgets={b: estimate_share(within_budget(correct, lengths, b)) for b in budgets},
        phrases=_phrase_figures(rows, lengths),
        redundancy=_redundancy(questions, rows, lengths, think_end, tokenizer),
        no_answer=sum(think_end not in response.text for response in flat),
        no_box=_without_box(questions, rows, think_end),
        unverified=len(questions.unverified),
        faults=dict(Counter(r.fault for r in flat if r.fault)),
        correct=correct,
        lengths=lengths,
    )


def _without_box(questions: QuestionSet, rows: Sequence[Sequence[Response]], think_end: str) -> int:
    """How many answers their task calls unstated; those that it calls right are not looked at."""
    return sum(
        questions.task.unstated(question, answer)
        for question, row in zip(questions.questions, rows, strict=True)
        for response in row
        if not response.correct and (answer := answer_part(response.text, think_end)) is not None
    )


def _phrase_figures(
    rows: Sequence[Sequence[Response]], lengths: list[list[float]]
) -> dict[str, Estimate]:
    phrases = Phrases.shipped()
    counts = [[phrase_counts(response.text, phrases) for response in row] for row in rows]
    return {
        group: estimate_rate([[c[group] for c in row] for row in counts], lengths, per=1000)
        for group in PHRASE_GROUPS
    }


def _redundancy(
    questions: QuestionSet,
    rows: Sequence[Sequence[Response]],
    lengths: list[list[float]],
    think_end: str,
    tokenizer: Any,
) -> Redundancy | None:
    """Redundant steps and tokens; None where the task knows neither."""
    floors = shortest_tokens(questions, tokenizer)
    tokens = None
    if floors is not None:
        pairs = zip(lengths, floors, strict=True)
        tokens = estimate_mean([[length - floor for length in row] for row, floor in pairs])
    if not questions.task.labels:
        return Redundancy(None, tokens, None, None) if tokens else None
    steps: list[list[float]] = []  # the mean of each question
    unreadable = unread_steps = 0
    for question, row in zip(questions.questions, rows, strict=True):
        counts = [redundant_steps(questions, question, r.text, think_end) for r in row]
        whole = [count for count in counts if count is not None]
        unread = [r.text for r, count in zip(row, counts, strict=True) if count is None]
        unreadable += len(unread)
        unread_steps += sum(
            not questions.task.steps_readable(question, _as_tasks_read(text, think_end))
            for text in unread
        )
        if whole:
            steps.append([sum(whole) / len(whole)])
    mean = estimate_mean(steps) if steps else None
    return Redundancy(mean, tokens, unreadable, unread_steps)


def shortest_tokens(questions: QuestionSet, tokenizer: Any = None) -> list[int] | None:
    """Tokens of the shortest correct response to each question, with the end token.

    Args:
        questions: the set.
        tokenizer: the model's; default the task's own.

    Returns:
        None where the task does not know them.
    """
    tokenizer = tokenizer or questions.task.tokenizer()
    shortest = [questions.task.shortest(question) for question in questions.questions]
    if tokenizer is None or None in shortest:
        return None
    return [len(ids) + 1 for ids in tokenizer(shortest, add_special_tokens=False)["input_ids"]]


def _as_tasks_read(text: str, think_end: str) -> str:
    """A response with the end of reasoning that tasks know."""
    return text.replace(think_end, THINK_END, 1)


def redundant_steps(
    questions: QuestionSet, question: Question, text: str, think_end: str
) -> int | None:
    """Redundant steps of a response by the task's labels; None where it cannot be read whole."""
    text = _as_tasks_read(text, think_end)
    if not questions.task.readable(question, text):
        return None
    return sum(step.label == "redundant" for step in questions.task.label(question, text))


def overall(sets: Sequence[SetFigures]) -> Overall:
    """Means over sets."""
    return Overall(
        estimate_mean(*(figures.correct for figures in sets)),
        estimate_mean(*(figures.lengths for figures in sets)),
    )


@dataclass(frozen=True)
class Base:
    """A former evaluation, to compute AES against.

    Raises:
        DataError: no such file, or one that `kfh eval` did not write.
    """

    path: Path
    benchmarks: dict[str, dict[str, Any]]
    settings: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Base:
        """Read `eval.json`, or the one in a folder."""
        file = path / "eval.json" if path.is_dir() else path
        try:
            content = read_object(file)
            benchmarks = content["benchmarks"]
            for figures in benchmarks.values():
                float(figures["accuracy"]["value"]), float(figures["tokens"]["value"])
            return cls(file, benchmarks, content["settings"])
        except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file}: no evaluation of kfh eval ({error!r})") from error

    def check(self, sets: Sequence[QuestionSet]) -> None:
        """The same questions stand behind both, before anything is sampled.

        Raises:
            ConfigError: a set that the base lacks, or that has other questions there.
        """
        for questions in sets:
            base = self.benchmarks.get(questions.name)
            if base is None:
                raise ConfigError(
                    f"{self.path} has no {questions.name}: it has {', '.join(self.benchmarks)}"
                )
            was = {k: v for k, v in base["source"].items() if k != "spec"}
            now = {k: v for k, v in questions.source.items() if k != "spec"}
            if was != now:
                raise ConfigError(
                    f"{self.path}: {questions.name} had other questions there ({was}) than here "
                    f"({now}): AES would compare apples with pears"
                )

    def differing(self, settings: Mapping[str, Any]) -> list[str]:
        """In words, which of the settings that decide a length or an accuracy were others."""
        names = ("samples", "preset", "temperature", "top_p", "max_tokens", "template", "think_end")
        return [
            f"{name} {self.settings.get(name)} there, {settings[name]} here"
            for name in names
            if self.settings.get(name) != settings[name]
        ]

    def scores(self, sets: Sequence[SetFigures]) -> list[float | None]:
        """AES of each set and, last, of the means over sets; None where the base is never right."""
        pairs = [
            (
                (figures.accuracy.value, figures.tokens.value),
                tuple(
                    float(self.benchmarks[figures.name][key]["value"])
                    for key in ("accuracy", "tokens")
                ),
            )
            for figures in sets
        ]
        means = [
            [sum(values) / len(pairs) for values in zip(*side, strict=True)]
            for side in zip(*pairs, strict=True)
        ]
        return [_score(*ours, *base) for ours, base in [*pairs, means]]


def _score(*values: float) -> float | None:
    try:
        return efficiency_score(*values)
    except ValueError:
        return None
