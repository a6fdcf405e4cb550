"""Responses from vLLM and from OpenAI-compatible endpoints; see `rl.sampling.base.Sampler`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from probing.choices import THINK_END
from probing.errors import ConfigError, ModelError
from probing.models.decode import Sampling, encode_prompt, row_seed
from rl.sampling.base import Sample

RETRIES = 6  # of a request, with growing pauses; 429, 5xx and lost connections are tried again
TIMEOUT = 3600.0  # seconds; a long reasoning trace takes its time


class VllmSampler:
    """vLLM in this process. Not run by the tests, which have no GPU.

    Raises:
        ConfigError: vLLM is not installed.
    """

    rendered = True
    rows = 2048  # it makes batches itself; so many responses are asked for between two savings

    def __init__(
        self, model: str, tokenizer: Any, *, dtype: str = "auto", trust_remote_code: bool = False
    ) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            raise ConfigError(
                f"backend vllm needs vLLM (pip install 'kfh[vllm]'): {error}"
            ) from error
        self.tokenizer = tokenizer
        self.llm = LLM(model=model, dtype=dtype, trust_remote_code=trust_remote_code)

    def sample(self, prompts: Sequence[str], *, n: int, settings: Sampling) -> list[list[Sample]]:
        """n responses to each prompt."""
        from vllm import SamplingParams

        # Token ids, not text: vLLM would set a second BOS before a rendered chat template.
        tokens = [{"prompt_token_ids": encode_prompt(self.tokenizer, text)} for text in prompts]
        params = [
            SamplingParams(
                n=n,
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_tokens,
                seed=row_seed(settings.seed, text, 0) % 2**31,
                skip_special_tokens=False,
            )
            for text in prompts
        ]
        return [
            [
                Sample(o.text, tuple(o.token_ids), len(o.token_ids), o.finish_reason == "stop")
                for o in request.outputs
            ]
            for request in self.llm.generate(tokens, params)
        ]


class EndpointSampler:
    """An OpenAI-compatible endpoint, one request a response, `rows` of them at a time.

    The key comes from OPENAI_API_KEY; without it a dummy is sent, which local servers accept. A
    server that parses the reasoning returns it apart (`reasoning_content`, or `reasoning`): the
    text is then reasoning + `</think>` + content, as the model wrote it.

    Args:
        model: the name by which the endpoint knows it.
        base_url: its address, default OPENAI_BASE_URL.
        raw: completions of rendered prompts, instead of chat.
        rows: requests at a time.
        ask_ids: ask for token ids (`return_token_ids`, which vLLM's server knows).

    Raises:
        ConfigError: no address.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None,
        *,
        raw: bool = False,
        rows: int = 64,
        ask_ids: bool = False,
    ) -> None:
        from openai import OpenAI

        address = base_url or os.environ.get("OPENAI_BASE_URL")
        if not address:
            raise ConfigError("backend openai needs --base-url, such as http://localhost:8000/v1")
        self.model, self.rendered, self.rows, self.address = model, raw, rows, address
        self.ask_ids = ask_ids
        self.client = OpenAI(
            base_url=address,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            max_retries=RETRIES,
            timeout=TIMEOUT,
        )

    def sample(self, prompts: Sequence[str], *, n: int, settings: Sampling) -> list[list[Sample]]:
        """n responses to each prompt (a question, or with `raw` a rendered prompt)."""
        jobs = [(prompt, number) for prompt in prompts for number in range(n)]
        with ThreadPoolExecutor(max(1, min(self.rows, len(jobs)))) as pool:
            futures = [pool.submit(self._one, *job, settings) for job in jobs]
            try:
                samples = [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [samples[start : start + n] for start in range(0, len(samples), n)]

    def _one(self, prompt: str, number: int, settings: Sampling) -> Sample:
        from openai import OpenAIError

        options: dict[str, Any] = {
            "model": self.model,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
            "seed": row_seed(settings.seed, prompt, number) % 2**31,
        }
        if self.ask_ids:
            options["extra_body"] = {"return_token_ids": True}
        try:
            answer: Any
            if self.rendered:
                answer = self.client.completions.create(prompt=prompt, **options)
            else:
                messages: list[Any] = [{"role": "user", "content": prompt}]
                answer = self.client.chat.completions.create(messages=messages, **options)
        except OpenAIError as error:
            raise ModelError(
                f"{self.address} gives no answer (up to {RETRIES} retries): {error}"
            ) from error
        if not answer.choices or answer.usage is None:
            raise ModelError(f"{self.address} answers without choices or without usage (tokens)")
        choice = answer.choices[0]
        text = choice.text if self.rendered else message_text(choice.message)
        ids = getattr(choice, "token_ids", None)
        return Sample(
            text,
            tuple(ids) if ids else None,
            answer.usage.completion_tokens,
            choice.finish_reason == "stop",
        )


def message_text(message: Any) -> str:
    """Reasoning, `</think>` and content of a chat message; the content where nothing is apart.

    A message cut off in its reasoning has no content: no `</think>` is made up for it.
    """
    content = message.content or ""
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    if not reasoning:
        return content
    return f"{reasoning}{THINK_END}{content}" if content else str(reasoning)
