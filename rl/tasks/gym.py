"""Tasks of reasoning-gym, each with its own verifier: `rg:TASK`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from probing.errors import DataError
from probing.settings import unknown
from probing.traces.text import last_box
from rl.tasks.base import Question, QuestionSet, Task
from rl.tasks.prompts import MATHS_INSTRUCTION

GENERATED = 500  # questions, unless the number is given
# Where a task of many right answers gives one that is right.
EXAMPLES = ("example_answer", "example_correct_answer", "possible_answer")


class Gym(Task):
    """A task of reasoning-gym; right is a score of 1, without partial credit."""

    name = "reasoning-gym"
    instruction = MATHS_INSTRUCTION

    def questions(self, spec: str, limit: int | None, seed: int) -> QuestionSet:
        """`limit` generated questions (default 500) of `rg:TASK`.

        Raises:
            DataError: no such task, or one without a reference answer to try its verifier on.
        """
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

        name = spec.removeprefix("rg:")
        if name not in DATASETS:
            raise DataError(f"{spec}: {unknown('task of reasoning-gym', name, DATASETS)}")
        try:
            entries = list(reasoning_gym.create_dataset(name, size=limit or GENERATED, seed=seed))
        except Exception as error:
            raise DataError(f"{spec}: reasoning-gym cannot make it: {error}") from error
        if not any(_reference(entry) for entry in entries):
            raise DataError(
                f"{spec}: gives no reference answer on which its verifier could be tried"
            )
        questions = tuple(
            Question(
                f"{name}/{seed}/{number}",
                entry["question"],
                _reference(entry),
                {**entry, "metadata": {"source_dataset": name, **entry["metadata"]}},
            )
            for number, entry in enumerate(entries)
        )
        source = {"spec": spec, "seed": seed, "version": reasoning_gym.__version__}
        return QuestionSet(spec, questions, self, source)

    def correct(self, question: Question, answer: str) -> bool:
        """The verdict of the task's own verifier."""
        score = _scorer(question.meta["metadata"]["source_dataset"])
        return bool(score(gym_answer(answer), question.meta) >= 1.0)

    def reference(self, question: Question) -> str:
        """The bare answer: one of several lines does not fit into a box."""
        return question.answer


def gym_answer(text: str) -> str:
    """What a text after `</think>` gives as its answer to a reasoning-gym task.

    The last `\\boxed{…}`; else the last `<answer>…</answer>`; else what follows the last
    "Answer:"; else the whole text.
    """
    box = last_box(text)
    if box is not None:
        return box
    tagged = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return str((tagged[-1] if tagged else text.rpartition("Answer:")[2]).strip())


def _reference(entry: Mapping[str, Any]) -> str:
    """The answer, or the example that tasks of many right answers give; empty without either."""
    given = entry["answer"]
    for name in EXAMPLES:
        given = entry["metadata"].get(name) if given is None else given
    if given is None:
        return ""
    return given if isinstance(given, str) else json.dumps(given)


@cache
def _scorer(task: str) -> Any:
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(task)
