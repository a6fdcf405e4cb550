"""Edits of attention heads: silenced, set to their mean, or turned towards a step or away from it.

The edited head's output z_m = Σ_n a_{m→n} v_n (before the output projection) is what changes:
- `zero`, `mean` at all positions: z_m becomes 0, or the head's mean over reference tokens.
- `zero`, `mean` from the answer to the steps: of z_m, m a token of the answer, the part that comes
  from the tokens of the steps becomes 0, or the mean of that part; nothing is renormalised.
- `scale`: for the answer's tokens the weights of chosen columns are multiplied by a factor and the
  row is made to sum to one again (docs/PAPER.md, eq. 16), with what an attention sink takes.
  Factor 0 blocks the columns.

As in `probing.attention.capture`, the model runs its own kernel, and only what an edit changes is
computed here: zeros and means are written into the kernel's output; rows of edited heads are
computed from the same queries, keys and mask (`probing.attention.rows`). An edit that changes
nothing is not computed at all. It works on whole sequences, over a cache, and token by token while
an answer is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attention.capture import AttentionCapture
from probing.attention.rows import Rows
from probing.choices import MODES, Head
from probing.errors import ConfigError, ModelError
from probing.models.front import AttentionCall, InFront, Workspace, check_heads, own_output
from probing.models.lengths import in_eval
from probing.models.proof import PROOF_TOLERANCE, proof_input, relative
from probing.settings import unknown

ALL, ANSWER = "all", "answer-to-steps"
BLOCK = "block/answer-to-steps"
MOVED = 1e-3  # a proof's edit must change the logits by this share of the largest, at least


@dataclass(frozen=True, eq=False)
class HeadEdit:
    """What is done to some heads.

    Args:
        kind: `zero`, `mean` or `scale`.
        heads: `(layer, head)` pairs.
        where: `all`: z of every token; `answer-to-steps`: what the edited queries take from the
            edited columns, which the pass names (`HeadEdits.under`). A scale is always the latter.
        factor: of a scale.
        means: of a mean: what z, or its part from the steps, is replaced by, for each head.

    Raises:
        ConfigError: a kind or place that does not exist, a negative factor, a missing mean.
    """

    kind: str
    heads: tuple[Head, ...]
    where: str = ALL
    factor: float = 1.0
    means: Mapping[Head, Float[Tensor, "dim"]] | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.kind not in ("zero", "mean", "scale") or self.where not in (ALL, ANSWER):
            raise ConfigError(unknown("edit", f"{self.kind}/{self.where}", (*MODES, BLOCK)))
        if self.kind == "scale" and self.where == ALL:
            raise ConfigError("attention is scaled from the answer to steps, not everywhere")
        if not (math.isfinite(self.factor) and self.factor >= 0):
            raise ConfigError(f"a factor must be a number from 0 on, is {self.factor}")
        if len(set(self.heads)) != len(self.heads):
            raise ConfigError(f"a head is named twice: {list(self.heads)}")
        if self.kind == "mean" and not set(self.heads) <= set(self.means or {}):
            raise ConfigError("a mean edit needs the mean of every head (probing.answers.edited)")

    @classmethod
    def of_mode(
        cls, mode: str, heads: Sequence[Head], means: Mapping[Head, Tensor] | None = None
    ) -> HeadEdit:
        """The edit of a mode: one of `MODES`, or `BLOCK`, which is a scale by 0.

        Raises:
            ConfigError: no such mode.
        """
        if mode == BLOCK:
            return cls("scale", tuple(heads), ANSWER, 0.0)
        if mode not in MODES:
            raise ConfigError(unknown("mode", mode, (*MODES, BLOCK)))
        kind, where = mode.split("/")
        return cls(kind, tuple(heads), where, means=means)

    @property
    def idle(self) -> bool:
        """Whether it changes nothing."""
        return not self.heads or (self.kind == "scale" and self.factor == 1)

    def of_layer(self, layer: int) -> list[int]:
        """Its heads in a layer."""
        return [head for at, head in self.heads if at == layer]


def scaled_weights(
    weights: Float[Tensor, "*row key"], columns: Bool[Tensor, "*#row key"], factor: float
) -> Float[Tensor, "*row key"]:
    """Attention with the weight of some columns times a factor, summing to one again (eq. 16).

    Equals the softmax of the scores with ln(factor) added in these columns.

    Example:
        >>> scaled_weights(torch.tensor([0.5, 0.25, 0.25]), torch.tensor([True, False, False]), 2.0)
        tensor([0.6667, 0.1667, 0.1667])
    """
    scaled = torch.where(columns, weights * factor, weights)
    return scaled / scaled.sum(-1, keepdim=True)


class EditedRows(NamedTuple):
    """Where in one trace of a batch an edit acts, in one layer."""

    trace: int  # its place in the batch
    at: Int[Tensor, "row"]  # among the queries
    columns: Bool[Tensor, "key"]


def edited_rows(
    call: AttentionCall, queries: Bool[Tensor, "batch query"], columns: Bool[Tensor, "batch token"]
) -> Iterator[EditedRows]:
    """The places of a layer's call; a layer with a window holds the last of the keys only."""
    if queries.shape[1] != call.query.shape[2]:
        raise RuntimeError(
            f"the edit is for {queries.shape[1]} tokens, {call.query.shape[2]} went in"
        )
    seen = columns[:, -call.key.shape[2] :]
    for trace, row in enumerate(queries):
        at = row.nonzero()[:, 0]
        if len(at):
            yield EditedRows(trace, at, seen[trace])


def weighted_values(
    call: AttentionCall,
    value: Float[Tensor, "batch kv key dim"],
    heads: list[int],
    place: EditedRows,
    workspace: Workspace,
    *,
    keep: Bool[Tensor, "key"] | None = None,
    shift: Float[Tensor, "key"] | None = None,
) -> Float[Tensor, "head row dim"]:
    """Σ_n a_{m→n} v_n of some heads, over the columns kept, or with scores shifted; float32."""
    rows = Rows(call, heads, workspace)
    group = call.query.shape[1] // value.shape[1]
    values = value[place.trace, torch.tensor(heads, device=value.device) // group].float()
    out = values.new_empty((len(heads), len(place.at), values.shape[-1]))
    for chunk in rows.chunks(place.trace, place.at, shift):
        weights = chunk.probs[:, :, 0]
        length = weights.shape[-1]
        if keep is not None:
            weights = weights * keep[:length]
        out[chunk.kv, chunk.rows] = weights @ values[chunk.kv, :length]
    return out


@dataclass(frozen=True, eq=False)
class EditPass:
    """One edit in one forward pass.

    `queries` (batch, query) are the edited ones of the tokens that go in, `columns` (batch, token)
    the edited of all tokens so far, those in the cache first. Both are None for edits everywhere.
    """

    edit: HeadEdit
    workspace: Workspace
    queries: Bool[Tensor, "batch query"] | None = None
    columns: Bool[Tensor, "batch token"] | None = None
    computed: bool = False  # compute what changes nothing, too: for the proof

    def apply(self, layer: int, call: AttentionCall, value: Tensor, output: Tensor) -> Tensor:
        """The output of a layer's attention, (batch, query, head, dim), with the edit in it."""
        heads = self.edit.of_layer(layer)
        if not heads or (self.edit.idle and not self.computed):
            return output
        output = output.clone()
        means = self._means(layer, heads, output)
        if self.edit.where == ALL:
            output[:, :, heads] = 0 if means is None else means.to(output.dtype)
            return output
        if self.queries is None or self.columns is None:
            raise RuntimeError("an edit from the answer to steps needs to know both")
        for place in edited_rows(call, self.queries, self.columns):
            new = self._new(call, value, heads, place)
            if means is not None:
                new += means[:, None]
            to = place.at[:, None], torch.tensor(heads, device=output.device)
            output[place.trace].index_put_(to, new.transpose(0, 1).to(output.dtype))
        return output

    def _means(
        self, layer: int, heads: list[int], like: Tensor
    ) -> Float[Tensor, "head dim"] | None:
        if self.edit.kind != "mean" or self.edit.means is None:
            return None
        means = torch.stack([self.edit.means[layer, head] for head in heads])
        return means.to(like.device, torch.float32)

    def _new(
        self, call: AttentionCall, value: Tensor, heads: list[int], place: EditedRows
    ) -> Float[Tensor, "head row dim"]:
        """z of the edited heads and rows; where parts are replaced, without the part."""
        if self.edit.kind != "scale":
            return weighted_values(call, value, heads, place, self.workspace, keep=~place.columns)
        factor = math.log(self.edit.factor) if self.edit.factor else -math.inf
        shift = torch.where(place.columns, factor, 0.0)
        return weighted_values(call, value, heads, place, self.workspace, shift=shift)


class HeadEdits(InFront):
    """Edits heads of a model while a `with` block runs.

    Args:
        model: a loaded transformers model.
        prove: check at once that edits are real (see `prove`).

    Raises:
        ModelError: the model's attention cannot be edited.

    Example:
        >>> with HeadEdits(model) as edits:  # doctest: +SKIP
        ...     with edits.under(HeadEdit("zero", ((2, 3),))):
        ...         logits = model(ids).logits
    """

    def __init__(self, model: torch.nn.Module, *, prove: bool = True) -> None:
        super().__init__(model)
        capture = AttentionCapture(model, prove=prove)  # its rows are the model's own
        self.layers = capture.layers
        self.workspace = Workspace()
        self._active: Any = None
        if prove:
            self.prove()

    @contextmanager
    def under(
        self,
        edit: HeadEdit | None,
        queries: Bool[Tensor, "batch query"] | None = None,
        columns: Bool[Tensor, "batch token"] | None = None,
    ) -> Iterator[None]:
        """Forward passes in this block are edited; None edits nothing.

        Args:
            edit: what is done to which heads.
            queries: which of the tokens that go into the pass are edited (not padding).
            columns: which of all tokens so far (in the cache, then those that go in) are edited:
                the tokens of the steps, or of one step.

        Raises:
            ModelError: a head that the model does not have.
            ValueError: an edited query is an edited column, or a place is missing.
        """
        if edit is not None and not edit.idle:
            check_heads(type(self.model).__name__, self.layers, edit.heads)
            if edit.where == ANSWER:
                _check_places(queries, columns)
        active = None
        if edit is not None:
            active = EditPass(edit, self.workspace, queries, columns)
        with self.following(active):
            yield

    @contextmanager
    def following(self, active: Any) -> Iterator[None]:
        """Give each layer's call to `active.apply` in this block (`EditPass`, an observer).

        Raises:
            RuntimeError: the edits are not entered.
        """
        if not self._previous:
            raise RuntimeError("use the edits within a `with` block")
        before, self._active = self._active, active
        try:
            yield
        finally:
            self._active = before

    @torch.no_grad()
    def prove(self) -> float:
        """Check on two random sequences that edits do what they say, and nothing else.

        All heads of the model are edited at once. By a factor of 1, computed from our rows, the
        logits must stay what they were; without edit they must stay so exactly; with half of the
        columns blocked, or all heads silenced, they must move.

        Returns:
            The largest relative difference by the factor 1.

        Raises:
            ModelError: with the difference, where it is not so.
        """
        ids, queries, mask = proof_input(self._vocabulary(), self._device())
        columns = ~queries & (torch.arange(ids.shape[1], device=ids.device) % 2 == 0)
        heads = tuple((layer, head) for layer, n in self.layers.items() for head in range(n))

        def logits(edit: HeadEdit | None, computed: bool = False) -> Tensor:
            active = edit and EditPass(edit, self.workspace, queries, columns, computed)
            with nullcontext() if self._previous else self, self.following(active):
                out: Tensor = self.model(ids, attention_mask=mask, use_cache=False).logits
            return out[queries]

        with in_eval(self.model):
            plain: Tensor = self.model(ids, attention_mask=mask, use_cache=False).logits[queries]
            idle = relative(logits(HeadEdit("scale", heads, ANSWER, 1.0)), plain)
            by_one = relative(logits(HeadEdit("scale", heads, ANSWER, 1.0), computed=True), plain)
            blocked = relative(logits(HeadEdit("scale", heads, ANSWER, 0.0)), plain)
            silent = relative(logits(HeadEdit("zero", heads)), plain)
        name, allowed = type(self.model).__name__, PROOF_TOLERANCE.get(plain.dtype, 1e-4)
        if idle or not by_one <= allowed:
            raise ModelError(
                f"{name}: an edit that changes nothing moves its logits by {max(idle, by_one):.2g} "
                f"({allowed:.0e} allowed); its heads cannot be edited."
            )
        if not min(blocked, silent) > MOVED:
            raise ModelError(
                f"{name}: silencing all heads moves its logits by {silent:.2g} only, blocking half "
                f"of the columns by {blocked:.2g}; its heads cannot be edited."
            )
        return by_one

    @property
    def _busy(self) -> bool:
        return self._active is not None

    def _attend(
        self, call: AttentionCall, value: Tensor, stock: Callable[..., Any] | None
    ) -> Tensor:
        output = own_output(call, value, stock, self.workspace.budget(call.query.device))
        layer = getattr(call.module, "layer_idx", None)
        if layer is None:
            raise ModelError(f"{type(call.module).__name__} does not say which layer it is")
        edited: Tensor = self._active.apply(int(layer), call, value, output)
        return edited


def _check_places(queries: Tensor | None, columns: Tensor | None) -> None:
    if queries is None or columns is None:
        raise ValueError("an edit from the answer to steps needs queries and columns")
    if bool((queries & columns[:, -queries.shape[1] :]).any()):
        raise ValueError("an edited query is among the edited columns: its row could lose all keys")
