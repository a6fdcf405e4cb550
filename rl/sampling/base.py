"""Sample responses to prompts: from a model of transformers, vLLM, or an endpoint.

Randomness: each response has a seed of its own, of (seed, prompt, number of the sample). With
transformers a response so depends on nothing else but rounding: padding and the size of the batch
change logits in their last digits, which now and then turns a token. The same call on the same
machine gives the same responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

if TYPE_CHECKING:
    from probing.models.decode import Sampling

BATCH = 64  # responses, or requests, at a time
Backend = Literal["transformers", "vllm", "openai"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


@dataclass(frozen=True)
class Sample:
    """One response.

    `text`: what was generated after the prompt, without the end token; `token_ids`: with it,
    None where the backend does not give them; `tokens`: their number, the end token counted;
    `finished`: ended by itself, not by the limit.
    """

    text: str
    token_ids: tuple[int, ...] | None
    tokens: int
    finished: bool


class Sampler(Protocol):
    """What gives responses.

    `rows` is how many responses it likes to be asked for at once; `rendered` whether it takes
    rendered prompts (`rl.tasks.prompts`), or bare questions as an endpoint's chat does.
    """

    rows: int
    rendered: bool

    def sample(self, prompts: Sequence[str], *, n: int, settings: Sampling) -> list[list[Sample]]:
        """n responses to each prompt, in the order of the prompts."""
        ...
