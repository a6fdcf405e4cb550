"""The answer's attention mass of known sequences, in the passes that another's loop makes.

They are found in any order, as rows padded on either side or packed behind one another; so that
loop need not say how it makes its batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attention.capture import CapturePass
from probing.attention.fused import FusedMasses
from probing.choices import Head
from probing.errors import ModelError
from probing.models.front import AttentionCall, InFront, Workspace, eager_of

# What a packed call says of its sequences: each is given alone here.
_OF_PACKING = ["position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"]


class _Piece(NamedTuple):
    """Where a known sequence stands in the pass that is made."""

    row: int
    place: slice
    key: bytes
    collected: CapturePass


class PassingSequences(InFront):
    """Takes the answer's rows of known sequences in the passes that another's loop makes.

    1. A hook before the forward of the model finds known sequences among the ids that go in.
    2. In each layer the rows of a sequence come from its part of queries, keys and mask alone; the
       model's kernel gives the output from the same call as ever.
    3. In the first pass with one at the start of a row, and in the first with one behind another,
       the rows times the values must be that output, in every layer: real sequences prove it, also
       where no process has all parameters.

    Args:
        model: a transformers model, or what FSDP wraps it into.
        heads: `(layer, head)` pairs.

    Raises:
        ModelError: from the pass: the rows are not those of the model's kernel; or the loop gives
            its ids or positions in a form that is not known.
    """

    def __init__(self, model: torch.nn.Module, heads: Sequence[Head]) -> None:
        super().__init__(model)
        self.heads = list(heads)
        self.proven: set[bool] = set()  # at the start of a row; behind something else
        self.fused = FusedMasses()  # by which way the masses come, and why
        self._workspace, self._pieces = Workspace(), list[_Piece]()
        self._answers: Mapping[bytes, Bool[np.ndarray, "token"]] = {}
        self.masses: dict[bytes, Float[np.ndarray, "head token"]] = {}

    @staticmethod
    def key(ids: Any) -> bytes:
        """What a sequence of token ids is known by."""
        return np.ascontiguousarray(ids, dtype=np.int64).tobytes()

    @contextmanager
    def over(
        self, answers: Mapping[bytes, Bool[np.ndarray, "token"]]
    ) -> Iterator[dict[bytes, Float[np.ndarray, "head token"]]]:
        """Masses of these sequences, by their `key`, as the passes in this block come over them.

        Args:
            answers: F of each sequence, by its `key`.
        """
        self._answers, self.masses = answers, {}
        hooks = (
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.model.register_forward_hook(self._end),
        )
        with self:
            try:
                yield self.masses
            finally:
                self._answers, self._pieces = {}, []
                for hook in hooks:
                    hook.remove()

    def _begin(self, model: torch.nn.Module, args: Any, given: dict[str, Any]) -> None:
        """Find the sequences that are wanted (1)."""
        ids = given.get("input_ids", args[0] if args else None)
        if ids is None or ids.ndim != 2:
            raise ModelError("passes without input_ids (batch, token) cannot be scored")
        rows = ids.cpu().numpy()
        for row, place in places_of(ids, given.get("attention_mask"), given.get("position_ids")):
            key = self.key(rows[row, place])
            if key in self._answers and key not in self.masses:
                answer = torch.from_numpy(self._answers[key])[None]
                verify = (place.start > 0) not in self.proven
                own = (answer, self.heads, self._workspace, self.fused)
                collected = CapturePass(*own, verify=verify)
                self._pieces.append(_Piece(row, place, key, collected))

    def _end(self, model: torch.nn.Module, args: Any, output: Any) -> None:
        """Keep the masses of the pass; see whether it proved what was taken (3)."""
        pieces, self._pieces = self._pieces, []
        for piece in pieces:
            for layer, found in piece.collected.differences.items():
                found.check(type(self.model).__name__, layer, self._dtype)
            self.proven.add(piece.place.start > 0)
            self.masses[piece.key] = piece.collected.mass()[0].cpu().numpy()

    @property
    def _busy(self) -> bool:
        return bool(self._pieces)

    @torch.no_grad()
    def _attend(
        self, call: AttentionCall, value: Tensor, stock: Callable[..., Any] | None
    ) -> Tensor:
        _, module, query, key, mask, options = call
        kernel = stock or eager_of(module)
        output: Tensor = kernel(module, query, key, value, mask, **options)[0]
        device = query.device.type
        if torch.is_autocast_enabled(device):  # under it the kernel is given these
            lower = torch.get_autocast_dtype(device)
            call = call._replace(query=query.to(lower), key=key.to(lower))
            value = value.to(lower)
        self._dtype = call.query.dtype
        with torch.autocast(device, enabled=False):  # rows are float32
            for row, place, _, collected in self._pieces:  # 2
                part, own = part_of_call(call, row, place), slice(row, row + 1)
                layer = collected.enter_layer(part)
                collected.add(layer, part)
                there = (own, slice(None), place)
                collected.verify(layer, part, value[there], output[own, place], stock)  # 3
        return output


def places_of(
    ids: Int[Tensor, "batch token"], mask: Tensor | None, positions: Tensor | None
) -> list[tuple[int, slice]]:
    """Where the sequences of a pass stand: row and tokens.

    Args:
        ids: what goes in.
        mask: (batch, token), 1 for real tokens; None where there is no padding.
        positions: (batch, token). Without a mask one row may be several sequences, one behind the
            other, whose positions begin at 0 each.

    Raises:
        ModelError: a mask or positions of another form.

    Example:
        >>> packed = torch.tensor([[0, 1, 2, 0, 1]])
        >>> tuple(place.start for _, place in places_of(packed, None, packed))
        (0, 3)
    """
    if any(given is not None and given.ndim != 2 for given in (mask, positions)):
        raise ModelError("masks and positions must be (batch, token): those of images are not read")
    if mask is not None:
        at = [row.nonzero()[:, 0].tolist() for row in mask.cpu()]
        return [(row, slice(own[0], own[-1] + 1)) for row, own in enumerate(at) if own]
    if positions is None or len(ids) > 1:
        return [(row, slice(0, ids.shape[1])) for row in range(len(ids))]
    starts = (positions[0] == 0).nonzero()[:, 0].tolist()
    return [(0, slice(*pair)) for pair in pairwise([*starts, ids.shape[1]])]


def part_of_call(call: AttentionCall, row: int, place: slice) -> AttentionCall:
    """The call of a layer for one of its sequences alone.

    Raises:
        ModelError: the model adds a bias by position, or sinks by token: these are not cut.
    """
    name, module, query, key, mask, options = call
    for option in ("position_bias", "sinks"):
        if isinstance(options.get(option), Tensor):
            raise ModelError(f"a model with {option} is not scored in passes of another's loop")
    own = slice(row, row + 1)
    if mask is not None:
        mask = mask[own if len(mask) > 1 else slice(None)]
        mask = mask[:, :, place, place] if mask.ndim == 4 else None
    options = {name: value for name, value in options.items() if name not in _OF_PACKING}
    return AttentionCall(name, module, query[own, :, place], key[own, :, place], mask, options)
