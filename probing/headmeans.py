"""Mean outputs of heads over reference traces: what a mean edit writes in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from jaxtyping import Bool, Float
from torch import Tensor

from probing.edited import EditedAnswers, batches
from probing.headedits import ANSWER, edited_rows, weighted_values
from probing.intervention import PreparedTrace
from probing.passes import Head
from probing.rows import AttentionCall, Workspace

Means = dict[Head, Float[Tensor, "dim"]]


class MeanObserver:
    """Sums what heads put out in the passes that it follows (`HeadEdits.following`).

    Args:
        heads: whose outputs.
        where: `all`: z of every real token; `answer-to-steps`: of the edited queries, the part of
            z that comes from the edited columns.
    """

    def __init__(self, heads: Sequence[Head], where: str) -> None:
        self.where = where
        self.chosen: dict[int, list[int]] = {}
        for layer, head in heads:
            self.chosen.setdefault(layer, []).append(head)
        self.sums: Means = {}
        self.counts: dict[Head, int] = {}
        self.workspace = Workspace()
        self.queries: Bool[Tensor, "batch query"] | None = None
        self.columns: Bool[Tensor, "batch token"] | None = None

    def apply(self, layer: int, call: AttentionCall, value: Tensor, output: Tensor) -> Tensor:
        """Add a layer's outputs to the sums; gives the output as it is."""
        heads = self.chosen.get(layer)
        if heads and self.queries is not None:
            if self.where != ANSWER:
                self._add(layer, heads, output[self.queries][:, heads].transpose(0, 1))
            elif self.columns is not None:
                for place in edited_rows(call, self.queries, self.columns):
                    part = weighted_values(
                        call, value, heads, place, self.workspace, keep=place.columns
                    )
                    self._add(layer, heads, part)
        return output

    def _add(self, layer: int, heads: list[int], found: Float[Tensor, "head token dim"]) -> None:
        for head, of in zip(heads, found.double().sum(1), strict=True):
            key = layer, head
            self.sums[key] = self.sums[key] + of if key in self.sums else of
            self.counts[key] = self.counts.get(key, 0) + found.shape[1]

    def means(self) -> Means:
        """The mean of each head, in float32."""
        return {head: (of / self.counts[head]).float() for head, of in self.sums.items()}


def head_means(
    answers: EditedAnswers,
    traces: Sequence[PreparedTrace],
    heads: Sequence[Head],
    where: str,
    *,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Means:
    """Means over the traces, each token of them weighing the same.

    At all positions: over every token of prompt, reasoning and correct answer (the last token is
    not read). From the answer to the steps: over the queries Q of every trace, of the part of z
    that comes from the steps.
    """
    observer = MeanObserver(heads, where)

    def observe(queries: Tensor, columns: Tensor | None) -> AbstractContextManager[None]:
        observer.queries, observer.columns = queries, columns
        return answers.edits.following(observer)

    for batch in batches(traces, batch_tokens):
        reading = answers.read(batch, observe=observe if where != ANSWER else None)
        answers.log_probabilities(reading, observe=observe)
        advance(sum(map(len, batch)))
    return observer.means()
