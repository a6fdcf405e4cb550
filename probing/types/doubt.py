"""What a model doubted of a text: surprisal and entropy of its tokens, from the last hidden state.

The logits of the whole are never made, but those of so many tokens at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 256  # tokens whose logits are made at once


def entropies(logits: Float[Tensor, "*row vocabulary"]) -> Float[Tensor, "*row"]:
    """−Σ p log p in nats, in float32.

    Example: of two tokens alike, log 2.
        >>> round(float(entropies(torch.zeros(2))), 4)
        0.6931
    """
    return torch.distributions.Categorical(logits=logits.float(), validate_args=False).entropy()


def surprisals(
    logits: Float[Tensor, "token vocabulary"], ids: Int[Tensor, "token"]
) -> Float[Tensor, "token"]:
    """−log p of each token by the logits that it was drawn from, in nats, in float32.

    Example:
        >>> logits = torch.log(torch.tensor([[0.25, 0.75]]))
        >>> round(float(surprisals(logits, torch.tensor([0]))[0]), 4)
        1.3863
    """
    logits = logits.float()
    return logits.logsumexp(-1) - logits.gather(-1, ids[:, None])[:, 0]


@torch.no_grad()
def step_doubts(
    hidden: Float[Tensor, "token hidden"],
    ids: Int[np.ndarray, "token"],
    spans: Int[np.ndarray, "step 2"],
    head: Callable[[Tensor], Tensor],
) -> tuple[Float[np.ndarray, "step"], Float[np.ndarray, "step"]]:
    """Mean surprisal of a step's tokens, and the entropy of what its first token was drawn from.

    In nats; 0 for a step without a token. Of the very first token of a trace both are 0.

    Args:
        hidden: the last hidden state.
        ids: of the tokens.
        spans: of the steps; they may overlap.
        head: see `probing.models.proof.output_head`.
    """
    inside = np.zeros(len(ids), dtype=bool)
    for first, last in spans:
        inside[first:last] = True
    inside[0] = False  # drawn from nothing
    opens = np.isin(np.arange(len(ids)), spans[:, 0])
    surprisal, entropy = np.zeros((2, len(ids)))
    tokens = torch.from_numpy(ids).to(hidden.device)
    wanted = np.flatnonzero(inside)
    for at in np.split(wanted, range(CHUNK, len(wanted), CHUNK)):
        logits = head(hidden[at - 1])
        surprisal[at] = surprisals(logits, tokens[at]).cpu().numpy()
        entropy[at[opens[at]]] = entropies(logits[opens[at]]).cpu().numpy()
    means = [surprisal[first:last].mean() if last > first else 0.0 for first, last in spans]
    firsts = [entropy[first] if last > first else 0.0 for first, last in spans]
    return np.array(means), np.array(firsts)
