"""Train an embedded model in one run: `python -m rl.pocket.pretrain --level pocket --out DIR`.

Muon on the matrices, AdamW on the rest, one cosine; traces are drawn afresh for every step.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from probing.errors import ConfigError
from probing.files.headers import whole_file
from probing.models.load import fast_bfloat16, load_frozen, pocket_model
from rl.pocket import task
from rl.pocket.levels import LEVELS, PretrainConfig
from rl.pocket.tokens import EOS, PAD, build_tokenizer, vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM


IGNORED = -100
STATE = "training.safetensors"  # in the folder of a model that is being trained


def build_model(config: PretrainConfig) -> Qwen2ForCausalLM:
    """A Qwen2 with tied embeddings, 0.6 M parameters by default: fresh, or as `start` says."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(config.seed)
    ids = vocabulary()
    settings = Qwen2Config(
        vocab_size=len(ids),
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
    )
    model = Qwen2ForCausalLM(settings)
    if config.start is not None:
        model.load_state_dict(load_frozen(pocket_model(config.start))[0].state_dict())
    return model


def batches(
    config: PretrainConfig, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, labels), both [batch, longest], right-padded; prompts carry no loss.

    Traces of like length share a batch, so that little is padding; the batches are shuffled.
    """
    import torch

    rng = random.Random(config.seed)
    group = 16
    while True:
        examples = []
        for _ in range(group * config.batch):
            problem = task.make_problem(rng, config.task)
            response = task.make_trace(rng, problem, config.task).response
            prompt = tokenizer(problem.prompt)["input_ids"]
            examples.append((len(prompt), prompt + tokenizer(response + EOS)["input_ids"]))
        examples.sort(key=lambda example: len(example[1]))
        order = list(range(group))
        rng.shuffle(order)
        for index in order:
            chosen = examples[index * config.batch : (index + 1) * config.batch]
            longest = max(len(ids) for _, ids in chosen)
            ids = torch.zeros(len(chosen), longest, dtype=torch.long)
            labels = torch.full_like(ids, IGNORED)
            for row, (start, tokens) in enumerate(chosen):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, start : len(tokens)] = ids[row, start : len(tokens)]
            yield ids, labels


def loss_of(model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss in nats. Padding sits on the right, where causal attention does not
    look, so no mask is needed; without one the attention kernel takes its fast path."""
    import torch
    import torch.nn.functional as functional

    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1])
    return functional.cross_entropy(
        logits.float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


def use_float32_attention(model: Qwen2ForCausalLM) -> None:
    """Let attention run in float32 inside bfloat16 autocast: a third faster on processors."""
    import torch
    import torch.nn.functional as functional
    from transformers import AttentionInterface

    def attend(
        module: object,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        with torch.autocast("cpu", enabled=False):
            out = functional.scaled_dot_product_attention(
                query.float(),
                key.float().repeat_interleave(groups, 1),
                value.float().repeat_interleave(groups, 1),
                is_causal=True,
                scale=scaling,
            )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("pocket_float32", attend)
    model.set_attn_implementation("pocket_float32")


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, roughly, by five Newton-Schulz steps (Muon)."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Momentum whose update is made orthogonal, scaled to AdamW's usual size of update.

    Keller Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024; the scale
    0.2 * sqrt(longer side) is that of "Muon is scalable for LLM training", arXiv 2502.16982.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], decay: float, momentum: float = 0.95):
        self.matrices, self.decay, self.momentum = matrices, decay, momentum
        self.averages = [matrix.detach().clone().zero_() for matrix in matrices]

    def step(self, rate: float) -> None:
        """Update the matrices from their gradients, and clear these."""
        import torch

        with torch.no_grad():
            for matrix, average in zip(self.matrices, self.averages, strict=True):
                if matrix.grad is None:
                    continue
                average.lerp_(matrix.grad, 1 - self.momentum)
                update = orthogonal(matrix.grad.lerp(average, self.momentum))
                matrix.mul_(1 - rate * self.decay)
                matrix.add_(update, alpha=-rate * 0.2 * math.sqrt(max(matrix.shape)))
                matrix.grad = None


def rate_at(step: int, config: PretrainConfig) -> float:
    """Share of the peak rate at a step: linear warm-up, then a cosine down to `final_rate`."""
    length = math.ceil(config.steps / config.cycles)
    cycle, place = divmod(step, length)
    if place < config.warmup:
        return 0.5**cycle * (place + 1) / config.warmup
    done = (place - config.warmup) / max(1, length - config.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return 0.5**cycle * (config.final_rate + (1 - config.final_rate) * cosine)


def pretrain(config: PretrainConfig, out: Path, report: Callable[[str], None] = print) -> float:
    """Train, save model and tokenizer to `out`, return the seconds of work.

    Interrupted, the same call goes on from the state that is saved every `log_every` steps, and
    ends with the same bits.

    Raises:
        ConfigError: `out` holds the state of another recipe.
    """
    import torch

    torch.set_num_threads(config.threads)
    tokenizer, model = build_tokenizer(), build_model(config)
    usual_attention = model.config._attn_implementation
    use_float32_attention(model)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(matrix) for matrix in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = Muon(matrices, config.weight_decay)
    adam = torch.optim.AdamW(rest, config.adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
    state = TrainingState(out / STATE, config, model, muon, adam)
    done, seen, before = state.load()
    began, recent = time.perf_counter() - before, 0.0
    drawn = islice(batches(config, tokenizer), done, config.steps)
    for step, (ids, labels) in enumerate(drawn, done):
        loss = loss_of(model, ids, labels)
        loss.backward()
        share = rate_at(step, config)
        muon.step(config.muon_rate * share)
        for group in adam.param_groups:
            group["lr"] = config.adam_rate * share
        adam.step()
        adam.zero_grad()
        seen, recent = seen + ids.numel(), recent + loss.item()
        if (step + 1) % config.log_every == 0:
            took = time.perf_counter() - began
            state.save(step + 1, seen, took)
            mean, recent = recent / config.log_every, 0.0
            report(
                f"step {step + 1:5d}  loss {mean:.4f}  {seen / took:,.0f} tokens/s  {took:.0f} s"
            )
    model.set_attn_implementation(usual_attention)
    model.model.norm.weight.data *= config.sharpen
    save(model, tokenizer, out)
    took = time.perf_counter() - began
    settings = asdict(config)
    recipe = {"recipe": settings, "seconds": round(took, 1), "tokens": seen}
    (out / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
    state.path.unlink(missing_ok=True)
    return took


class TrainingState:
    """What going on needs, in one safetensors file: weights, both optimizers, steps done.

    The traces need no state: they are drawn again from the seed.
    """

    def __init__(
        self,
        path: Path,
        config: PretrainConfig,
        model: Qwen2ForCausalLM,
        muon: Muon,
        adam: torch.optim.AdamW,
    ) -> None:
        self.path, self.recipe = path, json.dumps(asdict(config))
        self.muon, self.adam = muon, adam
        self.weights = {f"model.{name}": value.data for name, value in model.named_parameters()}
        self.weights |= {f"muon.{index}": value for index, value in enumerate(muon.averages)}

    def save(self, step: int, seen: int, seconds: float) -> None:
        """Write the state after so many steps, tokens and seconds, whole or not at all."""
        from safetensors.torch import save_file

        moments = self.adam.state_dict()["state"]
        tensors = {f"adam.{i}.{key}": v for i, row in moments.items() for key, v in row.items()}
        facts = {"step": step, "seen": seen, "seconds": seconds, "recipe": self.recipe}
        with whole_file(self.path) as path:
            save_file(self.weights | tensors, path, {key: str(v) for key, v in facts.items()})

    def load(self) -> tuple[int, int, float]:
        """Take the state up; returns steps, tokens and seconds: zeros where there is none.

        Raises:
            ConfigError: it is of another recipe.
        """
        from safetensors import safe_open

        if not self.path.is_file():
            return 0, 0, 0.0
        moments: dict[int, dict[str, torch.Tensor]] = {}
        with safe_open(self.path, "pt") as file:
            facts = file.metadata()
            if facts["recipe"] != self.recipe:
                raise ConfigError(
                    f"{self.path} is of another recipe: remove it, or take another --out"
                )
            for name, value in self.weights.items():
                value.copy_(file.get_tensor(name))
            for name in set(file.keys()) - self.weights.keys():
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = file.get_tensor(name)
        self.adam.load_state_dict({**self.adam.state_dict(), "state": moments})
        return int(facts["step"]), int(facts["seen"]), float(facts["seconds"])


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write safetensors (float16: half the size), config and tokenizer to `out`.

    The config says float32, so that a plain `from_pretrained` computes in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    model.float()
    path = out / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(out)


def main(arguments: list[str] | None = None) -> None:
    """Command line of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--level", choices=LEVELS, default="pocket")
    for name in ("seed", "steps", "threads"):
        parser.add_argument(f"--{name}", type=int, help="default: that of the level")
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in ("seed", "steps", "threads")}
    changes = {name: value for name, value in given.items() if value is not None}
    config = replace(LEVELS[options.level].recipe, **changes)
    took = pretrain(config, options.out, lambda line: print(line, flush=True))
    print(f"trained in {took / 60:.1f} min; saved to {options.out}")


if __name__ == "__main__":
    main()
