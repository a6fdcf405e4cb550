"""A trace as a context and the answer to it: what hiding, removal and edits of heads work on.

The context is prompt and reasoning. The queries Q are the tokens from the first of the end marker
on: the first token of the answer is predicted from the last of them that stands before it. Of the
answer, the tokens that count are the chosen ones (all, values, the box), up to the last of which
the trace is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from probing.errors import DataError
from probing.traces.file import Step, Trace
from probing.traces.marks import blank_answer
from probing.traces.text import whole_box
from probing.traces.tokens import encode_trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class CauseTrace:
    """A trace as token ids: its context, and which of the tokens behind it count."""

    id: str
    ids: Int[np.ndarray, "token"]
    context: int  # tokens before the first one of the end marker; Q is the rest
    spans: Int[np.ndarray, "step 2"]  # half open, in tokens of the context
    counted: Bool[np.ndarray, "token"]  # those whose log-probability is asked for
    behind: int = 0  # first token behind the end marker; 0: not known

    def __len__(self) -> int:
        """Number of tokens that go through the model."""
        return len(self.ids)

    @property
    def hidden(self) -> Bool[np.ndarray, "step context"]:
        """The columns that each step takes up."""
        places = np.arange(self.context)
        return (places >= self.spans[:, :1]) & (places < self.spans[:, 1:])


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedTrace(CauseTrace):
    """A trace as token ids, with what the interventions need to know of it.

    `ids[:context]` is prompt and reasoning, `ids[context:behind]` the end marker,
    `ids[behind:]` the correct answer up to its last counted token. The model answers from
    `ids[:answer]`: `answer` is `behind`, but where the box alone is asked for it is the place
    behind the opened box.
    """

    group: str  # its problem
    prompt_tokens: int
    answer: int
    scores: Float[np.ndarray, "step"]  # by the head set, nothing changed; not a number: no token
    labels: tuple[str | None, ...]  # of the steps: essential, redundant, None
    own_correct: bool = True  # the answer that follows is correct, so its log-probability counts


def encode_causes(
    tokenizer: PreTrainedTokenizerBase,
    trace: Trace,
    *,
    rule: str = "start",
    answer: str = "all",
    limit: int | None = None,
) -> CauseTrace:
    """Tokenise a trace once and place context, steps and answer on its tokens.

    Args:
        tokenizer: a fast one.
        trace: with its steps.
        rule: how steps take tokens, see `probing.traces.tokens.token_spans`. A token that reaches
            into `</think>` is a query and belongs to no step.
        answer: which answer tokens count. `all`; `values` (numbers and what follows an equals
            sign); `boxed`: what stands in the last \\boxed{…}, which then stands right behind
            `</think>`, since the text between the two would give away what the steps say; `bare`
            is the same.
        limit: use the first so many tokens of the answer only (`all`, `values`); None: all.

    Raises:
        DataError: the answer is empty, or no token of it counts.
    """
    if blank_answer(trace.answer_text(), tokenizer.all_special_tokens):
        raise DataError(f"trace {trace.id}: empty answer, nothing follows {trace.think_end}")
    answer = "boxed" if answer == "bare" else answer
    marks = [Step(trace.reasoning_end, trace.answer_start)]
    if answer == "boxed" and (span := whole_box(trace.response, trace.answer_start)):
        marks.append(Step(*span))
    marked = trace.with_steps([*trace.steps, *marks])  # so that marks, too, become tokens
    encoded = encode_trace(tokenizer, marked, rule=rule, answer=answer)
    steps, ((context, _), *box) = np.split(encoded.spans, [len(trace.steps)])
    whole = encoded if answer == "all" else encode_trace(tokenizer, trace, rule=rule)
    first = int(whole.answer.argmax())  # token of the answer
    kept = np.ones(len(encoded), dtype=bool)
    if box:
        kept[first : box[0][0]] = False
    elif limit is not None:
        kept[first + limit :] = False
    counted = encoded.answer & kept
    if not counted.any():
        raise DataError(f"trace {trace.id}: no token of its answer counts ({answer}); see --answer")
    kept[np.flatnonzero(counted)[-1] + 1 :] = False  # nothing is read off behind the last
    return CauseTrace(
        trace.id,
        encoded.ids[kept],
        int(context),
        np.minimum(steps, context),
        counted[kept],
        first,
    )
