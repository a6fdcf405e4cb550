"""A layer's output in two parts: the model's kernel up to the answer, rows × values from there on.

The rows of the answer are computed for its masses anyway, and a row times the values is the output
of its query (the proof of the capture says so). Where the answer ends each trace, the kernel need
therefore do no more than the queries before it:
1. The earliest answer token of the batch is the cut (`split_start`); whether a layer's call can be
   cut there, and whether that is cheaper, says `split_at`.
2. The kernel gets queries, keys and values before the cut: causal attention sees nothing behind.
3. Every query from the cut on, padding too, gets its row times the values, so that the output is
   that of the whole kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.models.front import AttentionCall, Workspace, own_output

CUT = ("sdpa", "eager")  # kernels that a prefix can be given to
# Options of a call that change its softmax for later queries, or that a prefix would have to cut.
WHOLE = ("softcap", "s_aux", "sinks", "position_bias")


def split_start(answers: Sequence[Int[Tensor, "_"]], tokens: int) -> tuple[int, float] | None:
    """Where a batch may be cut (1), and which part of the rows from there on are the answer's.

    Args:
        answers: positions of the answer of each trace, ascending.
        tokens: of the batch, padding included.

    Returns:
        The earliest position of an answer, and Σ |F| / (traces · (tokens − cut)). None where an
        answer is no run of tokens, or where nothing stands in front of one.

    Example:
        >>> split_start([torch.tensor([6, 7]), torch.tensor([5, 6, 7])], 8)
        (5, 0.8333333333333334)
    """
    runs = [(int(at[0]), int(at[-1]) + 1) for at in answers if len(at)]
    wanted = sum(map(len, answers))
    if not runs or wanted != sum(end - first for first, end in runs):
        return None
    cut = min(first for first, _ in runs)
    return (cut, wanted / (len(answers) * (tokens - cut))) if cut else None


def part_of(answer: Int[Tensor, "_"], begin: int, end: int) -> slice:
    """Which of the rows begin … end − 1 are those of an answer, which is a run of tokens.

    Example:
        >>> part_of(torch.tensor([5, 6, 7]), 4, 7)
        slice(1, 3, None)
    """
    if not len(answer):
        return slice(0, 0)
    first, last = max(int(answer[0]), begin), min(int(answer[-1]) + 1, end)
    return slice(first - begin, max(first, last) - begin)


def split_at(call: AttentionCall, start: tuple[int, float] | None, chosen: int) -> int | None:
    """The query from which on rows × values give a layer's output; None: its kernel gives it all.

    It is cut where all of this holds:
    - The attention is a plain causal softmax that the kernel can do for a prefix alone: sdpa
      without a mask, or eager with one of each query that hides what comes later; no soft-cap,
      sinks, position bias, window shorter than the tokens, nor any tensor unknown here.
    - No gradient is wanted: the rows carry none.
    - It is cheaper: of the rows (trace × query × head) from the cut on at least half are wanted.
      A row with its product costs about 1.3 of what it costs the kernel, and without it 0.8
      (float32 on a CPU). Not in half precision on a GPU, where the kernel is faster with a row
      than its numbers are written and read.

    Args:
        call: the layer's arguments.
        start: what `split_start` gives for the batch.
        chosen: how many of the layer's heads are wanted.
    """
    name, _, query, _, mask, options = call
    if start is None or torch.is_grad_enabled() or name not in CUT:
        return None
    cut, share = start
    if share * chosen * 2 < query.shape[1] or (query.is_cuda and query.dtype != torch.float32):
        return None
    known = all(key == "position_ids" or not isinstance(x, Tensor) for key, x in options.items())
    window = options.get("sliding_window") or query.shape[2]
    if not known or window < query.shape[2] or any(options.get(key) is not None for key in WHOLE):
        return None
    if name == "sdpa":
        return cut if mask is None else None
    return cut if mask is not None and _hides_later(mask, cut) else None


def _hides_later(mask: Tensor, cut: int) -> bool:
    """Whether the queries before the cut see no key from there on."""
    if mask.ndim != 4:
        return False
    later = mask[:, :, :cut, cut:]
    if mask.dtype == torch.bool:
        return not later.any()
    return bool((later <= torch.finfo(mask.dtype).min / 2).all())


class SplitOutput:
    """The output of a layer that is cut: the kernel's part; the rest is to be written.

    Args:
        call: the layer's arguments.
        value: the values that go with them.
        cut: see `split_at`.
        stock: the model's kernel; None: the eager one of the module's file.
        workspace: of the rows.
    """

    def __init__(
        self,
        call: AttentionCall,
        value: Float[Tensor, "batch kv token dim"],
        cut: int,
        stock: Callable[..., Any] | None,
        workspace: Workspace,
    ) -> None:
        self.cut = cut
        self.values = value.float()
        before = own_output(
            _before(call, cut), value[:, :, :cut], stock, workspace.budget(value.device)
        )
        shape = (before.shape[0], call.query.shape[2], *before.shape[2:])
        self.output: Float[Tensor, "batch token head dim"] = before.new_empty(shape)
        self.output[:, :cut] = before


def _before(call: AttentionCall, cut: int) -> AttentionCall:
    """The call for the queries and keys before the cut (2)."""
    options = dict(call.options)
    places = options.get("position_ids")
    if isinstance(places, Tensor):
        options["position_ids"] = places[..., :cut]
    mask = None if call.mask is None else call.mask[:, :, :cut, :cut]
    query, key = call.query[:, :, :cut], call.key[:, :, :cut]
    return call._replace(query=query, key=key, mask=mask, options=options)
