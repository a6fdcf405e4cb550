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
    return -logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]


@torch.no_grad()
def doubts(
    hidden: Float[Tensor, "token hidden"],
    ids: Int[np.ndarray, "token"],
    head: Callable[[Tensor], Tensor],
) -> tuple[Float[np.ndarray, "token"], Float[np.ndarray, "token"]]:
    """Surprisal of each token and entropy of what it was drawn from, in nats; of the first 0.

    Args:
        hidden: the last hidden state.
        ids: of the tokens.
        head: see `probing.models.proof.output_head`.
    """
    tokens = torch.from_numpy(ids).to(hidden.device)
    found = [torch.zeros(2, 1)]
    for part, after in zip(hidden[:-1].split(CHUNK), tokens[1:].split(CHUNK), strict=True):
        logits = head(part)
        found.append(torch.stack([surprisals(logits, after), entropies(logits)]).cpu())
    surprisal, entropy = torch.cat(found, dim=1).numpy()
    return surprisal, entropy


def step_doubts(
    surprisal: Float[np.ndarray, "token"],
    entropy: Float[np.ndarray, "token"],
    spans: Int[np.ndarray, "step 2"],
) -> tuple[Float[np.ndarray, "step"], Float[np.ndarray, "step"]]:
    """Mean surprisal of a step's tokens, and the entropy of what its first token was drawn from.

    0 for a step without a token.

    Example:
        >>> given = np.array([0, 1.0, 3.0]), np.array([0, 2.0, 5.0])
        >>> tuple(float(x[0]) for x in step_doubts(*given, np.array([[1, 3]])))
        (2.0, 2.0)
    """
    means = [surprisal[first:last].mean() if last > first else 0.0 for first, last in spans]
    firsts = [entropy[first] if last > first else 0.0 for first, last in spans]
    return np.array(means), np.array(firsts)
