"""Samplers: transformers in this process, vLLM, or an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probing.choices import Dtype, Kernel
from probing.errors import ConfigError
from probing.models.decode import Draws, Sampling, decode, encode_prompt, end_tokens, row_seed
from probing.settings import unknown
from rl.sampling.base import BACKENDS, BATCH, Sample, Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def open_sampler(
    model: str,
    backend: str = "transformers",
    *,
    tokenizer: Any = None,
    base_url: str | None = None,
    raw: bool = False,
    device: str = "auto",
    dtype: Dtype = "auto",
    attention: Kernel = "auto",
    batch: int = BATCH,
    adapter: str | None = None,
    trust_remote_code: bool = False,
    keep_ids: bool = False,
) -> Sampler:
    """Open a backend.

    Args:
        model: hub id or folder; for `openai` the name by which the endpoint knows it.
        backend: `transformers`, `vllm` or `openai` (any compatible endpoint).
        tokenizer: a loaded one; default the model's.
        base_url: of the endpoint, such as `http://localhost:8000/v1`.
        raw: send rendered prompts to the endpoint's completions instead of questions to its chat.
        device, dtype, attention, adapter: as in `probing.models.load.load_model`.
        batch: responses generated at a time; requests at a time.
        trust_remote_code: run code that comes with the model.
        keep_ids: ask the endpoint's completions for token ids too; other backends give them.

    Raises:
        ConfigError: unknown backend, or one that is not installed, or no address.
        ModelError: the model cannot be loaded.
    """
    if backend not in BACKENDS:
        raise ConfigError(unknown("backend", backend, BACKENDS))
    if backend == "openai":
        from rl.sampling.endpoints import EndpointSampler

        return EndpointSampler(model, base_url, raw=raw, rows=batch, ask_ids=keep_ids and raw)
    from probing.models.load import ModelSource, load_tokenizer

    if backend == "vllm":
        from rl.sampling.endpoints import VllmSampler

        tokenizer = tokenizer or load_tokenizer(model, trust_remote_code=trust_remote_code)
        return VllmSampler(model, tokenizer, dtype=dtype, trust_remote_code=trust_remote_code)
    source = ModelSource(
        model,
        device=device,
        dtype=dtype,
        attention=attention,
        adapter=adapter,
        trust_remote_code=trust_remote_code,
    )
    return TransformersSampler(*source.load(tokenizer=tokenizer), batch)


class TransformersSampler:
    """Batched decoding of any causal language model, with a cache; finished rows leave the batch.

    Args:
        model: in eval mode, on its device.
        tokenizer: the model's.
        rows: responses decoded at a time.
    """

    rendered = True

    def __init__(self, model: PreTrainedModel, tokenizer: Any, rows: int = BATCH) -> None:
        if rows < 1:
            raise ConfigError(f"a batch needs at least 1 row, not {rows}")
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.ends = end_tokens(model, tokenizer)

    def sample(self, prompts: Sequence[str], *, n: int, settings: Sampling) -> list[list[Sample]]:
        """n responses to each prompt; rows are decoded in the order of their prompts' lengths."""
        encoded = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        rows = [(place, number) for place in range(len(prompts)) for number in range(n)]
        rows.sort(key=lambda row: len(encoded[row[0]]), reverse=True)  # the largest batch first
        samples: dict[tuple[int, int], Sample] = {}
        for start in range(0, len(rows), self.rows):
            chunk = rows[start : start + self.rows]
            draws = Draws([row_seed(settings.seed, prompts[p], number) for p, number in chunk])
            new = decode(self.model, [encoded[p] for p, _ in chunk], settings, draws, self.ends)
            for row, ids in zip(chunk, new, strict=True):
                samples[row] = self._sample(ids)
        return [[samples[place, number] for number in range(n)] for place in range(len(prompts))]

    def _sample(self, ids: list[int]) -> Sample:
        finished = bool(ids) and ids[-1] in self.ends
        # Special tokens stay: some models mark the end of their reasoning with one.
        text = self.tokenizer.decode(
            ids[:-1] if finished else ids,
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return Sample(text, tuple(ids), len(ids), finished)
