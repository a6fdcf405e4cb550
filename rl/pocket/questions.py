"""The pocket reasoner's questions, and the labels of its steps."""

from __future__ import annotations

from typing import Any

from probing.traces.file import Step
from rl.attnpo.trainer import LabelFunc
from rl.tasks.questions import QuestionSet


def pocket_labels(questions: QuestionSet) -> LabelFunc | None:
    """The true labels, for the one task that knows them."""
    if questions.kind != "pocket":
        return None
    from rl.pocket.parse import parse_problem, read

    problems = [parse_problem(question.question) for question in questions.questions]

    def label(row: dict[str, Any], text: str) -> list[Step]:
        reading = read(problems[row["question_index"]], text)
        return [Step(step.start, step.end, step.label) for step in reading.steps]

    return label
