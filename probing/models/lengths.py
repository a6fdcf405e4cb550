"""Lengths at which a model's attention changes: RoPE that depends on how long a pass is.

LongRoPE (Ding et al. 2024, arXiv 2402.13753) takes one of two sets of factors, by the longest row
of a pass; dynamic NTK takes a base of its own for every length beyond the one it was trained at,
and keeps it for what comes later. A row then depends on what stands beside it, and on what ran
before. So that it does not:
1. Rows share a pass only where their lengths are of one kind (`Lengths.kind`).
2. A pass over whole texts begins with a RoPE that remembers nothing (`fresh_rope`).
3. Passes that belong together (a context, the answer over its cache, an answer decoded behind it)
   are held at one length (`held_at`).

Nothing of a class is replaced: (2) and (3) call the model's own RoPE module, and set the attribute
of the instance that says whether it follows the length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probing.errors import ModelError

HELD = "held"  # a rope_type that the model's own update does not know, so that nothing is updated


@dataclass(frozen=True)
class Lengths:
    """At which lengths a model's attention changes.

    Args:
        limits: beyond each of them other factors are taken (LongRoPE).
        beyond: beyond it every length has frequencies of its own (dynamic NTK); None: none has.
    """

    limits: tuple[int, ...] = ()
    beyond: int | None = None

    @classmethod
    def of(cls, model: torch.nn.Module) -> Lengths:
        """Those of a loaded model, by its RoPE modules."""
        limits: set[int] = set()
        beyond: list[int] = []
        for rope in _changing(model):
            parameters = rope.config.rope_parameters
            for layer_type, kind in _kinds(rope):
                if "dynamic" in kind:
                    beyond.append(int(rope.original_max_seq_len))
                elif kind == "longrope":
                    own = parameters if layer_type is None else parameters[layer_type]
                    limits.add(int(own["original_max_position_embeddings"]))
        return cls(tuple(sorted(limits)), min(beyond, default=None))

    def __bool__(self) -> bool:
        """Whether the attention changes with the length at all."""
        return bool(self.limits) or self.beyond is not None

    @property
    def first(self) -> int:
        """Tokens up to which nothing changes; of a model that changes."""
        return min(limit for limit in (*self.limits, self.beyond) if limit is not None)

    def kind(self, tokens: int) -> tuple[int, int]:
        """What rows must have in common to share a pass.

        Example:
            >>> Lengths((150,)).kind(150) == Lengths((150,)).kind(3) != Lengths((150,)).kind(151)
            True
        """
        own = self.beyond is not None and tokens > self.beyond
        return sum(tokens > limit for limit in self.limits), tokens if own else 0

    def room(self, tokens: int) -> int | None:
        """How many more tokens make another kind of a text; None: no number does.

        Example:
            >>> Lengths((150,)).room(149), Lengths((150,)).room(151)
            (2, None)
        """
        if self.beyond is not None and tokens > self.beyond:
            return 1
        ends = [*self.limits, *([] if self.beyond is None else [self.beyond])]
        return min((end + 1 - tokens for end in ends if end >= tokens), default=None)


def fresh_rope(model: torch.nn.Module) -> None:
    """Make the model's RoPE forget what was longer (2). Does nothing where it is held."""
    for rope in _changing(model):
        _turn(rope, 1)


@contextmanager
def in_eval(model: torch.nn.Module) -> Iterator[None]:
    """The model in eval mode, its RoPE as new; each module's mode is given back."""
    training = [module for module in model.modules() if module.training]
    if training:  # setting the mode of some hundred modules takes as long as a layer's launches
        model.eval()
    fresh_rope(model)
    try:
        yield
    finally:
        for module in training:  # `model.train()` would wake those that were in eval mode
            module.training = True


@contextmanager
def held_at(model: torch.nn.Module, tokens: int) -> Iterator[None]:
    """Passes in this block rotate as one pass over so many tokens does, whatever their length (3).

    A block inside of another changes nothing: the outer one holds.

    Raises:
        ModelError: the model's RoPE does not let itself be held at this length.
    """
    ropes, lengths = _changing(model), Lengths.of(model)
    before = [rope.rope_type for rope in ropes]
    try:
        for rope in ropes:
            _turn(rope, 1)
            wanted = _turn(rope, tokens)
            rope.rope_type = (
                dict.fromkeys(rope.rope_type, HELD) if isinstance(rope.rope_type, dict) else HELD
            )
            if any(not torch.equal(a, b) for a, b in zip(_turn(rope, 2), wanted, strict=True)):
                raise ModelError(
                    f"{type(rope).__name__} rotates by the length of each pass, and cannot be held "
                    f"at {tokens} tokens: use texts of at most {lengths.first} tokens"
                )
        yield
    finally:
        for rope, kind in zip(ropes, before, strict=True):
            rope.rope_type = kind
            _turn(rope, 1)


def _changing(model: torch.nn.Module) -> list[Any]:
    """The RoPE modules that follow the length of a pass."""
    return [
        module
        for module in model.modules()
        if any("dynamic" in kind or kind == "longrope" for _, kind in _kinds(module))
    ]


def _kinds(module: Any) -> list[tuple[str | None, str]]:
    """Layer type (None: all layers) and kind of RoPE of a module; nothing of other modules."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, dict):
        return [(str(layer_type), str(kind)) for layer_type, kind in kinds.items()]
    return [(None, kinds)] if isinstance(kinds, str) else []


@torch.no_grad()
def _turn(rope: Any, tokens: int) -> list[Tensor]:
    """What the RoPE gives at position 1 (0 of one token) in a pass of so many tokens."""
    device = next(rope.buffers()).device
    x = torch.zeros((1, 2, 2), device=device)
    places = torch.tensor([[min(1, tokens - 1), tokens - 1]], device=device)
    given: list[Tensor] = []
    for layer_type, _ in _kinds(rope):
        options = {} if layer_type is None else {"layer_type": layer_type}
        made = rope(x, places, **options)
        given += [part[:, :1] for part in (made if isinstance(made, tuple) else (made,))]
    return given
