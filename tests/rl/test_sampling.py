"""Decoding against transformers' generate and against theory; endpoints against a real server."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from families import tiny
from helpers import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from probing.errors import ConfigError, ModelError
from probing.models.decode import Draws, Sampling, _likely, choose, encode_prompt, row_seed
from rl.sampling.backends import TransformersSampler, open_sampler

PROMPTS = ["Wait, let me", "12 + 7", "So", "check the sum. But is it 19 or is it 12?"]
ENDS = list(range(2, 300, 7))  # so that some rows end early


def sampler(family: str = "llama", rows: int = 64) -> TransformersSampler:
    tokenizer = byte_tokenizer()
    model = tiny(family, vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = ENDS
    return TransformersSampler(model, tokenizer, rows)


@pytest.mark.parametrize("family", ["llama", "qwen2-window", "gemma2", "gpt_neox"])
def test_greedy_equals_generate_token_for_token(family: str) -> None:
    ours = sampler(family)
    found = ours.sample(PROMPTS, n=1, settings=Sampling.greedy(24))
    lengths = set()
    for prompt, (sample,) in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([encode_prompt(ours.tokenizer, prompt)])
        alone = ours.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24
        )
        assert list(sample.token_ids or ()) == alone[0, ids.shape[1] :].tolist()
        assert sample.finished == (alone[0, -1].item() in ENDS)
        assert sample.tokens == len(sample.token_ids or ())
        kept = list(sample.token_ids or ())[: -1 if sample.finished else None]
        assert sample.text == ours.tokenizer.decode(kept)
        lengths.add(sample.tokens)
    assert len(lengths) > 1  # some rows left the batch before others


def test_samples_do_not_depend_on_batch_order_or_company() -> None:
    settings = Sampling(1.0, 0.9, 40, seed=3)
    together = sampler().sample(PROMPTS, n=3, settings=settings)
    assert sampler(rows=2).sample(PROMPTS, n=3, settings=settings) == together
    backwards = sampler().sample(PROMPTS[::-1], n=3, settings=settings)
    assert backwards[::-1] == together
    assert sampler().sample(PROMPTS[:1], n=1, settings=settings)[0][0] == together[0][0]
    other = sampler().sample(PROMPTS, n=3, settings=Sampling(1.0, 0.9, 40, seed=4))
    texts = [sample.text for row in together for sample in row]
    assert len(set(texts)) > 6 and texts != [sample.text for row in other for sample in row]


def test_each_row_has_its_own_stream_beyond_one_block() -> None:
    draws = Draws([1, 2])
    rows = np.array([1])  # row 0 has finished; its leaving moves no other row
    first = np.concatenate([draws.take(step, np.array([0, 1])) for step in range(1)])
    later = np.concatenate([draws.take(step, rows) for step in range(1, 600)])
    assert first[0] == np.random.default_rng(1).random()
    assert np.array_equal([first[1], *later], np.random.default_rng(2).random(600))


def test_padding_moves_no_absolute_position() -> None:
    """Rotary positions forgive a shift, learned ones do not."""
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(50)
    model.generation_config.eos_token_id = [299]
    ours = TransformersSampler(model, tokenizer)
    together = ours.sample(PROMPTS, n=1, settings=Sampling.greedy(16))
    alone = [ours.sample([prompt], n=1, settings=Sampling.greedy(16))[0] for prompt in PROMPTS]
    assert together == alone


def test_the_context_is_the_limit_and_a_prompt_beyond_it_an_error() -> None:
    ours = sampler()
    ours.ends = frozenset([299])
    (row,) = ours.sample(["So"], n=1, settings=Sampling.greedy(4000))
    assert row[0].tokens == 256 - len(encode_prompt(ours.tokenizer, "So")) and not row[0].finished
    with pytest.raises(ConfigError, match="the model's context 256"):
        ours.sample(["ab " * 300], n=1, settings=Sampling())


@pytest.mark.parametrize(
    ("settings", "chances"),
    [
        (Sampling(1.0, 1.0), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(1.0, 0.8), [5 / 8, 3 / 8, 0, 0]),
        (Sampling(1.0, 0.81), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (Sampling(0.5, 1.0), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (Sampling(1.0, 0.01), [1, 0, 0, 0]),
    ],
)
def test_chances_are_those_of_temperature_and_top_p(settings: Sampling, chances: list) -> None:
    order = [2, 0, 3, 1]  # the most likely token is not the first
    logits = torch.full((1, 4), 0.0)
    logits[0, order] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    # A number in the middle of each of 4000 equal parts of [0, 1): shares without noise.
    draws = (np.arange(4000) + 0.5) / 4000
    tokens = choose(logits.expand(4000, 4), settings, draws)
    counts = Counter(tokens.tolist())
    found = [counts[token] / 4000 for token in order]
    assert found == pytest.approx(chances, abs=0.0006)


@pytest.mark.parametrize("sharp", [0.3, 4.0])
def test_the_nucleus_is_that_of_all_tokens_sorted(sharp: float) -> None:
    """Of a large vocabulary its likely tokens alone are sorted; equal logits keep their order."""
    rows, vocabulary, top_p = 6, 3000, 0.9
    logits = (sharp * torch.randn(rows, vocabulary)).bfloat16().float()  # many are equal
    draws = np.linspace(0.01, 0.99, rows)
    chances, order = torch.softmax(logits.double(), -1).sort(dim=-1, descending=True, stable=True)
    chances = chances.where(chances.cumsum(-1) - chances < top_p, 0.0)
    reach = chances.cumsum(-1)
    places = torch.searchsorted(reach, torch.as_tensor(draws)[:, None] * reach[:, -1:], right=True)
    found = choose(logits, Sampling(1.0, top_p), draws)
    assert found.tolist() == order.gather(-1, places).flatten().tolist()
    assert (_likely(torch.softmax(logits.double(), -1), top_p).numel() < vocabulary) == (sharp > 1)


def test_a_prompt_of_several_rows_goes_in_once() -> None:
    ours, seen = sampler(), []
    ours.model.register_forward_pre_hook(
        lambda model, given, options: seen.append(options["input_ids"].shape[0]), with_kwargs=True
    )
    together = ours.sample(PROMPTS[:2], n=3, settings=Sampling(1.0, 0.9, 12, seed=3))
    assert seen[:2] == [2, 6]
    ours.rows = 1  # each row by itself
    assert ours.sample(PROMPTS[:2], n=3, settings=Sampling(1.0, 0.9, 12, seed=3)) == together


def test_the_ends_of_the_range_choose_possible_tokens() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]] * 2)
    for p in (1.0, 0.5):
        tokens = choose(logits, Sampling(1.0, p), np.array([0.0, np.nextafter(1, 0)]))
        assert tokens.tolist() == [1, 1]


def test_settings_and_backends_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as where it is not installed
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_tokens": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Sampling(**bad)
    with pytest.raises(ConfigError, match="unknown backend"):
        open_sampler("x", "magic")
    with pytest.raises(ConfigError, match="pip install 'kfh\\[vllm\\]'"):
        open_sampler("x", "vllm", tokenizer=byte_tokenizer())
    assert row_seed(0, "a", 1) == row_seed(0, "a", 1) != row_seed(1, "a", 1)


# Endpoints: a server of our own, which fails twice before it answers.


class Handler(BaseHTTPRequestHandler):
    asked: list[tuple[str, dict]]
    failures: list[int]
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            status = self.failures.pop() if self.failures else 200
            self.asked.append((self.path, body))
        text = f"seed {body['seed']}"
        if status != 200:
            content = {"error": {"message": "not now"}}
        elif self.path == "/v1/chat/completions":
            message = {"role": "assistant", "content": text, "reasoning_content": "Hm."}
            content = self.answer({"message": message, "finish_reason": "stop"})
        else:
            content = self.answer({"text": "Hm.</think>" + text, "finish_reason": "length"})
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("retry-after-ms", "1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, choice: dict) -> dict:
        usage = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
        choices = [{"index": 0, **choice}]
        return {"id": "1", "object": "x", "created": 0, "choices": choices, "usage": usage}

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked, Handler.failures = [], []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/v1"
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("raw", [False, True])
def test_endpoint_is_asked_again_until_it_answers(server: str, raw: bool) -> None:
    Handler.failures[:] = [429, 500]
    ours = open_sampler("served", "openai", base_url=server, raw=raw, batch=4)
    assert ours.rendered == raw
    settings = Sampling(0.6, 0.95, 99, seed=5)
    found = ours.sample(["a", "b", "c"], n=2, settings=settings)
    assert len(Handler.asked) == 6 + 2
    for prompt, samples in zip("abc", found, strict=True):
        for number, sample in enumerate(samples):  # the answers come in the order asked
            seed = row_seed(5, prompt, number) % 2**31
            assert sample.text == f"Hm.</think>seed {seed}"
            assert (sample.tokens, sample.finished, sample.token_ids) == (9, not raw, None)
    path, body = Handler.asked[0]
    assert path == ("/v1/completions" if raw else "/v1/chat/completions")
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.6, 0.95, 99)
    sent = body["prompt"] if raw else body["messages"][0]["content"]
    assert sent in ("a", "b", "c") and body["model"] == "served"


def test_endpoint_that_never_answers_is_an_error(server: str) -> None:
    Handler.failures[:] = [500] * 50
    ours = open_sampler("served", "openai", base_url=server)
    with pytest.raises(ModelError, match="up to 6 retries"):
        ours.sample(["a"], n=1, settings=Sampling())
    assert len(Handler.asked) == 7


def test_endpoint_needs_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match="--base-url"):
        open_sampler("served", "openai")
