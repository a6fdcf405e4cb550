"""Judge answers that a model gave anew to a trace whose context was changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from probing.errors import DataError
from probing.traces.file import Trace
from probing.traces.text import answer_part, boxes, last_box
from rl.pocket.parse import parse_problem
from rl.tasks.prompts import choose_template
from rl.tasks.questions import Question, QuestionSet

if TYPE_CHECKING:
    from probing.answers.context import PreparedTrace


TRUTH = "ground_truth"  # the field of a trace that holds its reference answer


class AnswerVerifier:
    """Whether the answer behind the end of the reasoning is right, by the task's own verifier.

    The reference is the trace's `ground_truth`; where it has none, the box of its own answer if
    that is not known to be wrong. The pocket reasoner, known by its vocabulary, is judged by its
    task; any other model as in mathematics.

    Args:
        tokenizer: of the model.
        traces: those that will be judged.
        boxed: the answer begins inside an opened box, and its first box decides.
    """

    def __init__(self, tokenizer: Any, traces: Iterable[Trace], boxed: bool = False) -> None:
        self.tokenizer, self.boxed = tokenizer, boxed
        kind = "pocket" if choose_template(tokenizer) == "pocket" else "maths"
        self.questions = QuestionSet("answers", (), kind, {})
        self.by_id = {trace.id: question_of(trace) for trace in traces}
        if kind == "pocket":
            self._check_problems()
        self._known: dict[tuple[str, tuple[int, ...]], bool] = {}

    def _check_problems(self) -> None:
        for name, question in self.by_id.items():
            try:
                parse_problem(question.question)
            except ValueError as error:
                raise DataError(
                    f"trace {name}: its problem is none of the pocket task ({error}); only "
                    "such traces can be answered by the pocket reasoner"
                ) from error

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
            self._known[key] = self.judge_text(trace.id, text)
        return self._known[key]

    def judge_text(self, trace_id: str, text: str) -> bool:
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
        return self.judge_text(trace.id, trace.response[trace.answer_start :])


def question_of(trace: Trace) -> Question:
    """The question of a trace with its reference answer; an empty one where none is known."""
    reference = trace.extra.get(TRUTH)
    if reference is None and trace.correct is not False:
        reference = last_box(answer_part(trace.response, trace.think_end) or "")
    return Question(trace.id, trace.problem or trace.prompt, str(reference or ""))
