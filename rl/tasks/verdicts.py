"""Verify answers that a model gave anew to a trace whose context was changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from probing.errors import DataError
from probing.traces.file import Trace
from probing.traces.text import answer_part, boxes
from rl.tasks.answers import boxed_answers
from rl.tasks.base import TASKS, Question, QuestionSet, load_task, speaker
from rl.tasks.questions import Maths

if TYPE_CHECKING:
    from probing.answers.context import PreparedTrace


TRUTH = "ground_truth"  # the field of a trace that holds its reference answer


class AnswerVerifier:
    """Whether the answer behind the end of the reasoning is right, by the task's own verifier.

    The reference is the trace's `ground_truth`; where it has none, the box of its own answer if
    that is not known to be wrong. A model that knows one task alone is judged by that task; any
    other as in mathematics.

    Args:
        tokenizer: of the model.
        traces: those whose answers are verified.
        boxed: the answer begins inside an opened box, and its first box decides.

    Raises:
        DataError: a trace whose problem is none of the task that the model knows alone.
    """

    def __init__(self, tokenizer: Any, traces: Iterable[Trace], boxed: bool = False) -> None:
        self.tokenizer, self.boxed = tokenizer, boxed
        self.by_id = {trace.id: question_of(trace, boxed) for trace in traces}
        name = speaker(tokenizer)
        task = load_task(TASKS[name]) if name else Maths()
        for trace_id, question in self.by_id.items():
            try:
                task.check(question.question)
            except ValueError as error:
                raise DataError(
                    f"trace {trace_id}: its problem is none of the {name} task ({error}); only "
                    "such traces can be answered by a model that knows no other"
                ) from error
        self.questions = QuestionSet("answers", (), task, {})
        self._known: dict[tuple[str, tuple[int, ...]], bool] = {}

    @property
    def faults(self) -> dict[str, int]:
        """Exceptions of the verifier by type; such an answer is wrong."""
        return dict(self.questions.faults)

    def without_reference(self) -> list[str]:
        """Ids of the traces of which no right answer is known."""
        return [name for name, question in self.by_id.items() if not question.answer]

    def __call__(self, trace: PreparedTrace, ids: Sequence[int]) -> bool:
        """The verdict on the ids generated behind `trace.ids[:trace.answer]`."""
        key = trace.id, tuple(ids)
        if key not in self._known:
            given = [*trace.ids[trace.behind : trace.answer].tolist(), *ids]
            text = self.tokenizer.decode(
                given, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            self._known[key] = self.verifies(trace.id, text)
        return self._known[key]

    def verifies(self, trace_id: str, text: str) -> bool:
        """The verdict on what stands behind the end of the reasoning."""
        question = self.by_id[trace_id]
        if not question.answer:
            return False
        if self.boxed:
            spans = boxes(text)
            text = text[: spans[0][1] + 1] if spans else ""
        text = text.split(self.tokenizer.eos_token or "\0")[0]
        return self.questions.correct(question, text, think_end="")

    def own(self, trace: Trace) -> bool:
        """Whether the trace's own answer is right: as it says, else by the verifier."""
        if trace.correct is not None:
            return trace.correct
        return self.verifies(trace.id, trace.answer_text())


def question_of(trace: Trace, boxed: bool = False) -> Question:
    """The question of a trace with its reference answer; an empty one where none is known.

    With `boxed` its last box is the reference, else all that stand together.
    """
    reference = trace.extra.get(TRUTH)
    if reference is None and trace.correct is not False:
        given = boxed_answers(
            answer_part(trace.response, trace.think_end, trace.think_end_at) or ""
        )
        reference = ", ".join(given[-1:] if boxed else given)
    return Question(trace.id, trace.problem or trace.prompt, str(reference or ""))
