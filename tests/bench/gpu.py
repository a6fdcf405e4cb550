"""What the capture and step-level credit cost on a GPU, on random weights in real shapes.

    python tests/bench/gpu.py                      # Qwen2-1.5B and 7B shapes, bfloat16; one H100
    python tests/bench/gpu.py --small              # tiny shapes, on the CPU too: that it still runs
    python tests/bench/gpu.py --shapes 135M --parts step    # SmolLM2's shape, on a CPU in float32

Nothing is downloaded. On a machine with torch and transformers alone, bring three small wheels
(`pip download --no-deps jaxtyping wadler-lindig lazy-loader`) and put them on PYTHONPATH: parts 1
and 2 need no more. Three parts (`--parts`), each within four minutes:
1. `rows`: masses of sampled layers against the family's own eager attention, in this precision.
2. `capture`: the trunk alone, with the capture of all heads, and with masses from float32 rows
   (`probing.attention.fused` off), in turn, by length and kernel: median ratio to the trunk of the
   same turn, peak memory beyond the trunk. F is the last eighth.
3. `step`: a training step of `attnpo`, `tlmre` and TRL's own GRPO on the same made-up rollouts,
   sampling left out, and the share of scoring. Needs TRL; where it is missing, that is said.
Prints one Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from probing.attention.capture import AttentionCapture
from probing.models.front import trunk_of


class Shape(NamedTuple):
    """A model's sizes."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool


SHAPES = {
    "135M": Shape(576, 1536, 30, 9, 3, 49152, True),  # SmolLM2
    "1.5B": Shape(1536, 8960, 28, 12, 2, 152064, True),  # Qwen2
    "7B": Shape(3584, 18944, 28, 28, 4, 152064, False),
    "small": Shape(64, 128, 4, 4, 2, 1024, False),
}
HEADS = ((0.6, 0), (0.7, 1), (0.8, 1))  # layer as a share of the depth, head
Row = tuple[str, str, int, str, str, str]


@dataclass(frozen=True)
class Setting:
    """What is measured on: shapes, lengths and pairs, and the sizes of a training step."""

    device: torch.device
    dtype: torch.dtype
    shapes: tuple[str, ...]
    lengths: tuple[int, ...]
    kernels: tuple[str, ...]
    pairs: int
    prompts: int
    group: int
    rows: int  # of a micro-batch
    response: int  # tokens
    steps: int


def setting(small: bool, shapes: str | None) -> Setting:
    """The setting of this machine."""
    cuda = torch.cuda.is_available()
    if not (small or cuda or shapes):
        raise SystemExit("no CUDA device: use --small")
    kernels = ("sdpa", "flash_attention_2") if cuda and find_spec("flash_attn") else ("sdpa",)
    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.bfloat16
    if small:
        dtype = dtype if cuda else torch.float32
        return Setting(device, dtype, ("small",), (64, 256), kernels, 2, 2, 2, 2, 96, 2)
    chosen = tuple((shapes or "1.5B,7B").split(","))
    if not cuda:
        return Setting(device, torch.float32, chosen, (1024,), kernels, 3, 2, 4, 4, 256, 6)
    return Setting(device, dtype, chosen, (4096, 16384, 32768), kernels, 5, 8, 8, 8, 2048, 4)


def model_of(shape: str, on: Setting, kernel: str = "sdpa", layers: int | None = None) -> Any:
    """A model of random weights in this shape, in eval mode."""
    sizes = SHAPES[shape]
    config = Qwen2Config(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.feed_forward,
        num_hidden_layers=layers or sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=max(*on.lengths, 2 * on.response),
        tie_word_embeddings=sizes.tied,
        attn_implementation=kernel,
    )
    torch.manual_seed(0)
    with on.device:
        return Qwen2ForCausalLM._from_config(config, dtype=on.dtype).eval()


def made_up(model: Any, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One row of random ids, the last eighth of which answers."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=generator).to(device)
    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[:, -tokens // 8 :] = True
    return ids, answer


@torch.no_grad()
def rows_part(on: Setting) -> Iterator[Row]:
    """1. The capture against eager weights, of models with few layers."""
    for shape in on.shapes:
        model = model_of(shape, on, layers=2)
        ids, answer = made_up(model, min(2048, on.lengths[-1]))
        with AttentionCapture(model) as capture:
            ours = capture(ids, answer).float()
        model.set_attn_implementation("eager")
        weights = model(ids, output_attentions=True).attentions
        theirs = torch.stack([w[:, :, answer[0]].float().sum(2) for w in weights], 1)
        theirs = theirs.flatten(1, 2).to(ours.device)
        worst = float(((ours - theirs).abs() / theirs.clamp_min(1e-3)).max())
        name = str(on.dtype).removeprefix("torch.")
        yield shape, f"rows against eager, {name}", ids.shape[1], "", "", f"{worst:.1e} relative"


@torch.no_grad()
def capture_part(on: Setting) -> Iterator[Row]:
    """2. The trunk with and without the capture, in turn; and by rows, where kernels fuse them."""
    for shape in on.shapes:
        for kernel in on.kernels:
            model = model_of(shape, on, kernel)
            trunk, capture, rows = trunk_of(model), AttentionCapture(model), AttentionCapture(model)
            rows.fused.refused = "not wanted"
            for tokens in on.lengths:
                ids, answer = made_up(model, tokens)

                def plain(ids: Any = ids, trunk: Any = trunk) -> None:
                    trunk(input_ids=ids, use_cache=False)

                def captured(by: Any, ids: Any = ids, answer: Any = answer) -> None:
                    with by:
                        by(ids, answer)

                ways = {"plain": plain, "capture": partial(captured, capture)}
                if capture.fused.layers:
                    ways["capture by rows"] = partial(captured, rows)
                try:
                    yield from _turns(on, shape, kernel, tokens, ways)
                except torch.OutOfMemoryError:
                    yield shape, f"capture, {kernel}", tokens, "", "", "out of memory"
            why = capture.fused.refused or f"layers {len(capture.fused.layers)}"
            yield shape, f"fused kernels, {kernel}", 0, "", "", f"{why}; {_furthest(capture)}"
            del model, trunk, capture, rows


def _furthest(capture: AttentionCapture) -> str:
    """How far the kernels' masses were from those of the rows."""
    found = capture.fused.differences.values()
    return f"largest difference {max(found):.1e}" if found else "none was run"


def _turns(
    on: Setting, shape: str, kernel: str, tokens: int, ways: dict[str, Callable[[], None]]
) -> Iterator[Row]:
    """The rows of one length, each way beside the plain one."""
    for work in ways.values():
        work()  # warm up
    taken: dict[str, list[float]] = {name: [] for name in ways}
    peaks = {}
    for _ in range(on.pairs):
        for name, work in ways.items():
            seconds, peaks[name] = _timed(work, on.device)
            taken[name].append(seconds)
    for name in list(ways)[1:]:
        beyond = (peaks[name] - peaks["plain"]) / 2**20
        memory = f"{beyond:+,.0f} MB" if on.device.type == "cuda" else ""
        pairs = zip(taken[name], taken["plain"], strict=True)
        ratio = statistics.median(ours / plain for ours, plain in pairs)
        what, median = f"{name}, {kernel}", statistics.median(taken[name])
        yield shape, what, tokens, f"{median:.3f}", memory, f"{ratio:.3f} × trunk"


def _timed(work: Any, device: torch.device) -> tuple[float, int]:
    """Seconds and peak bytes of one call."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    started = _now(device)
    work()
    taken = _now(device) - started
    return taken, torch.cuda.max_memory_allocated() if cuda else 0


def _now(device: torch.device) -> float:
    """Seconds: of the clock on a GPU, of the process on a CPU, which others may share."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def step_part(on: Setting) -> Iterator[Row]:
    """3. Training steps on the same rollouts."""
    if not find_spec("trl"):
        yield "", "training step", 0, "", "", "left out: TRL is not installed"
        return
    shape, medians = on.shapes[0], {}
    for method in ("grpo (TRL)", "tlmre", "attnpo"):
        with tempfile.TemporaryDirectory() as folder:
            seconds, scoring, peak = _train(method, shape, on, Path(folder))
        medians[method] = statistics.median(seconds)
        memory = f"{peak / 2**20:,.0f} MB" if on.device.type == "cuda" else ""
        ratio = f"{medians[method] / medians['grpo (TRL)']:.3f} × TRL"
        if method == "attnpo":
            ratio += f", {medians[method] / medians['tlmre']:.3f} × tlmre"
            ratio += f"; scoring {scoring / medians[method]:.1%}"
        taken = f"{medians[method]:.3f}"
        yield shape, f"step of {method}", on.response, taken, memory, ratio


def _train(method: str, shape: str, on: Setting, out: Path) -> tuple[list[float], float, int]:
    """Seconds of the steps after the first, of scoring in a step, and peak bytes."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from probing.files.headers import data_path
    from probing.models.load import load_tokenizer
    from rl.attnpo.config import AttnPOConfig
    from rl.attnpo.trainer import AttnPOTrainer

    tokenizer = load_tokenizer(str(data_path("pocket")))
    model, responses = model_of(shape, on), made_up_responses(tokenizer, on)
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = _now(on.device)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(_now(on.device) - self.began)

    def rollouts(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": ids, "completion_ids": responses[: len(ids)], "logprobs": None}

    def verdict(completions: list[Any], **_: Any) -> list[float]:
        return [float(number % 2) for number in range(len(completions))]

    settings: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": on.steps + 1,
        "per_device_train_batch_size": on.rows,
        "gradient_accumulation_steps": on.prompts * on.group // on.rows,
        "num_generations": on.group,
        "max_completion_length": on.response + 64,
        "bf16": on.device.type == "cuda",
        "use_cpu": on.device.type == "cpu",
        "gradient_checkpointing": on.device.type == "cuda",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "loss_type": "dapo",
        "scale_rewards": "none",
    }
    data = Dataset.from_list([{"prompt": f"Problem: {n}\n<think>\n"} for n in range(64)])
    given = {"reward_funcs": verdict, "train_dataset": data, "processing_class": tokenizer}
    if method.startswith("grpo"):
        trainer: Any = GRPOTrainer(
            model, args=GRPOConfig(**settings), rollout_func=rollouts, **given
        )
    else:
        args = AttnPOConfig(**settings, method=method, schedule_steps=0, rollouts="trl")
        trainer = AttnPOTrainer(
            model, args=args, heads=head_set(model), rollout_func=rollouts, **given
        )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Clock())
    trainer.train()
    logged = [entry.get("seconds_scoring", 0.0) for entry in trainer.state.log_history]
    peak = torch.cuda.max_memory_allocated() if on.device.type == "cuda" else 0
    return seconds[1:], statistics.median(logged[1:-1] or [0.0]), peak


def head_set(model: Any) -> Any:
    """Three heads in the upper half, as trained models have them."""
    from probing.headset import HeadFigures, HeadSet
    from probing.models.identity import ModelCard

    layers = model.config.num_hidden_layers
    heads = tuple(HeadFigures(int(share * layers), head) for share, head in HEADS)
    card = ModelCard.of("random weights", model.config)
    return HeadSet(heads, card, segmenter={"name": "line"})


def made_up_responses(tokenizer: Any, on: Setting) -> list[list[int]]:
    """Responses of about the wished length: a shipped trace's reasoning over and over."""
    from probing.files.headers import data_path
    from probing.traces.file import read_traces

    found = []
    for trace in read_traces(data_path("pocket", "traces.jsonl")):
        reasoning, _, answer = trace.response.partition("</think>")
        ids = tokenizer(reasoning, add_special_tokens=False)["input_ids"]
        last = tokenizer("</think>" + answer, add_special_tokens=False)["input_ids"]
        times = max(1, (on.response - len(last)) // len(ids))
        found.append((ids * times)[: on.response] + last + [tokenizer.eos_token_id])
        if len(found) == on.prompts * on.group:
            return found
    raise ValueError("too few traces are shipped for so many responses")


PARTS = {"rows": rows_part, "capture": capture_part, "step": step_part}


def main() -> None:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="tiny shapes, on the CPU too")
    parser.add_argument("--shapes", help="with a comma between; default 1.5B,7B")
    parser.add_argument("--parts", default=",".join(PARTS))
    given = parser.parse_args()
    on = setting(given.small, given.shapes)
    place = torch.cuda.get_device_name() if on.device.type == "cuda" else "CPU"
    print(f"{place}; torch {torch.__version__}; random weights, {on.dtype}\n")
    print("| shape | what | tokens | seconds | memory | result |\n|---|---|---|---|---|---|")
    for part in given.parts.split(","):
        for row in PARTS[part](on):
            print("| " + " | ".join(map(str, row)) + " |", flush=True)
        if on.device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
