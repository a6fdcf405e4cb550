"""Random heads to hold chosen ones against: of the same layers, as many in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product
from math import comb, prod

import numpy as np

from probing.errors import ConfigError
from probing.passes import Head

ENUMERATED = 10_000  # so many sets at most are listed; above, they are drawn one by one


@dataclass(frozen=True)
class Control:
    """A set of heads, and the share of them that are chosen ones."""

    heads: tuple[Head, ...]
    overlap: float


def random_heads(
    chosen: Sequence[Head], layers: Mapping[int, int], draws: int, seed: int = 0
) -> list[Control]:
    """Different sets of random heads with as many heads in each layer as the chosen set has.

    Heads that are not chosen are taken first. A layer with too few of them is filled up with chosen
    ones (its set still differs, where any other head is left), and `overlap` says so. Where there
    are fewer such sets than draws, all of them are given.

    Args:
        chosen: the heads to control for.
        layers: heads of each layer of the model.
        draws: sets wanted, at least one.
        seed: of the drawing.

    Raises:
        ConfigError: no other head is in these layers.

    Example:
        >>> [c.heads for c in random_heads([(0, 1)], {0: 3}, 5)]
        [((0, 0),), ((0, 2),)]
    """
    options: list[tuple[list[int], list[int], int, int]] = []  # layer by layer
    for layer in sorted({layer for layer, _ in chosen}):
        own = [head for at, head in chosen if at == layer]
        others = [head for head in range(layers[layer]) if head not in own]
        fill = max(0, len(own) - len(others))
        options.append((others, own, len(own) - fill, layer))
    if not any(take for _, _, take, _ in options):
        raise ConfigError(
            "all heads of these layers are chosen, so there are no random heads of the same "
            "layers to compare with; choose fewer heads (kfh probe --top)"
        )
    count = prod(comb(len(o), n) * comb(len(own), len(own) - n) for o, own, n, _ in options)
    rng = np.random.default_rng(seed)
    if count <= ENUMERATED:
        sets = [_joined(parts) for parts in product(*map(_layer_sets, options))]
        places = rng.permutation(len(sets))[:draws]
        found = [sets[place] for place in sorted(places)]
    else:
        drawn = ((_joined(tuple(_drawn(o, rng) for o in options))) for _ in range(100 * draws))
        found = list(islice(dict.fromkeys(drawn), draws))
    return [Control(heads, len(set(heads) & set(chosen)) / len(heads)) for heads in found]


def _layer_sets(option: tuple[list[int], list[int], int, int]) -> list[tuple[Head, ...]]:
    """Every set of one layer: others first, filled up with chosen heads."""
    others, own, take, layer = option
    return [
        tuple((layer, head) for head in sorted((*new, *old)))
        for new in combinations(others, take)
        for old in combinations(own, len(own) - take)
    ]


def _drawn(
    option: tuple[list[int], list[int], int, int], rng: np.random.Generator
) -> tuple[Head, ...]:
    others, own, take, layer = option
    new = rng.permutation(others)[:take]
    old = rng.permutation(own)[: len(own) - take]
    return tuple((layer, int(head)) for head in sorted((*new, *old)))


def _joined(parts: Sequence[tuple[Head, ...]]) -> tuple[Head, ...]:
    return tuple(head for part in parts for head in part)
