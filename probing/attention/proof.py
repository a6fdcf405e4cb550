"""The proof of a capture: its rows times the values are what the model's own kernel gives.

Two differences are taken, relative to the largest output of a layer:
- `rough`: against the output that the model goes on with, in the model's precision. Half precision
  rounds values and output, so that much is allowed.
- `exact`: against the model's own kernel on float32 copies of queries, keys and values of the
  proof's rows, with their mask. Rounding hides nothing here. In float32 the two are one. The flash
  kernels take no float32: the eager one of the same family stands for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.attention.call import AttentionCall, eager_of, of_queries
from probing.attention.rows import Rows, Workspace, sinks_of
from probing.errors import ModelError, NotFiniteError

PROOF_TOKENS = 40
# Largest relative differences that the proof accepts.
PROOF_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
EXACT_TOLERANCE = 1e-3


class Difference(NamedTuple):
    """How far the rows of a layer are from the kernel; see above."""

    rough: float
    exact: float
    sinks: bool  # whether the call has attention sinks, which a kernel may leave out

    def check(self, name: str, layer: int, dtype: torch.dtype) -> None:
        """Raise ModelError where it is too large."""
        for found, allowed in (
            (self.exact, EXACT_TOLERANCE),
            (self.rough, PROOF_TOLERANCE.get(dtype, 1e-4)),
        ):
            if not found <= allowed:
                why = "Its attention does more than a masked softmax over keys; kfh cannot probe it."
                if self.sinks:
                    why = (
                        "It gives its kernel attention sinks, which sdpa leaves out: load it with "
                        'attn_implementation="eager".'
                    )
                raise ModelError(
                    f"{name}: the attention captured in layer {layer} is not the one that the "
                    f"model used (relative difference {found:.2g}, {allowed:.0e} allowed). {why}"
                )


def rows_against_kernel(
    layer: int,
    call: AttentionCall,
    value: Float[Tensor, "batch kv token dim"],
    output: Float[Tensor, "batch token head dim"],
    stock: Callable[..., Any] | None,
    wanted: Sequence[Int[Tensor, "row"]],
    workspace: Workspace,
) -> Difference:
    """The differences of one layer, over all heads and the wanted rows of each trace.

    Args:
        layer: its number, for messages.
        call: its arguments.
        value: the values that go with them.
        output: what the model's kernel gave.
        stock: this kernel; None: the eager one of the module's file.
        wanted: positions of each trace.
        workspace: where rows are computed.

    Raises:
        NotFiniteError: the kernel's output is not finite.
    """
    rows = Rows(call, None, workspace)
    exactly = call.query.dtype != torch.float32
    ours, theirs, copies = [], [], []
    for trace, at in enumerate(wanted):
        if not len(at):
            continue
        there = at.to(output.device)
        own = output.new_empty((len(at), *output.shape[2:]), dtype=torch.float32)
        grouped = own.unflatten(1, (-1, rows.group)).transpose(0, 1)
        for chunk in rows.chunks(trace, there, int(at[-1])):
            probs = chunk.probs.flatten(1, 2)
            values = value[trace, chunk.kv, : probs.shape[-1]].float()
            part = (probs @ values).unflatten(1, (-1, rows.group))
            grouped[chunk.kv, chunk.rows] = part
        ours.append(own.flatten())
        theirs.append(output[trace, there].float().flatten())
        if exactly:
            copies.append(kernel_on_copies(rows, call, value, stock, trace, there).flatten())
    kernel = torch.cat(theirs)
    if not kernel.isfinite().all():
        what = f"the output of the attention in layer {layer} is"
        raise NotFiniteError.of(what, call.query.dtype)
    rough = relative(torch.cat(ours), kernel)
    exact = relative(torch.cat(ours), torch.cat(copies)) if exactly else rough
    return Difference(rough, exact, sinks_of(call.options) is not None)


def kernel_on_copies(
    rows: Rows,
    call: AttentionCall,
    value: Tensor,
    stock: Callable[..., Any] | None,
    trace: int,
    at: Int[Tensor, "row"],
) -> Float[Tensor, "row head dim"]:
    """What the model's kernel gives for rows of a trace, on float32 copies of what goes in.

    Raises:
        ModelError: the kernel takes no float32, and the family has no eager one.
    """
    if stock is None or "flash" in call.implementation:
        stock = eager_of(call.module)
    own = slice(trace, trace + 1)
    query, key, values = call.query[own][:, :, at], call.key[own], value[own]
    options = {
        name: given.float() if isinstance(given, Tensor) and given.is_floating_point() else given
        for name, given in of_queries(call.options, at).items()
    }
    for name in ("position_bias", "sinks"):
        given = options.get(name)
        if isinstance(given, Tensor) and given.ndim == 4 and len(given) > 1:
            options[name] = given[own]
    mask = rows.additive_mask(trace, at)
    found = stock(call.module, query.float(), key.float(), values.float(), mask, **options)
    output: Tensor = found[0][0]
    return output


def proof_input(vocabulary: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Two random sequences, the second padded on the left; the second half of each answers."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (2, PROOF_TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, : PROOF_TOKENS // 4] = 0
    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[:, PROOF_TOKENS // 2 :] = True
    return ids.to(device), answer.to(device), mask.to(device)


def relative(a: Tensor, b: Tensor) -> float:
    """max |a − b| / max |b|, in float32; infinite where either holds something not a number."""
    a, b = a.float(), b.float()
    difference = (a - b).abs().max() / b.abs().max().clamp_min(1e-30)
    return float(difference.nan_to_num(torch.inf))
