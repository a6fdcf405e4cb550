"""Seconds of a training step: `kfh train` beside a bare PyTorch loop, and the share of scoring.

python tests/bench/training.py [--steps 8] [--threads 1]            # the pocket model on CPU
python tests/bench/training.py --credit [--steps 20]   # what attnpo costs beyond tlmre, on CPU
python tests/bench/training.py --sampling MODEL.gguf [--tokens 150]  # rollouts on CPU
python tests/bench/training.py --gpu-scoring MODEL.gguf [--tokens 1024]   # scoring on a GPU

The bare loop has the same model, the same rollouts (`probing.models.decode.decode`, from the same
seeds) and
the same update: rows sorted by length and trimmed, token-mean policy gradient, AdamW, clipping. It
has no TRL, no accelerate, no metrics. Both run in one process, turn by turn, so that a busy machine
slows both. `--credit` holds a step of attnpo, scored in the pass of the loss and in one of its own,
against a step of tlmre on the same prompts and rollouts: processor time, in turn, nothing learned.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from probing.attention.capture import AttentionCapture
from probing.files.headers import data_path
from probing.headset import HeadSet
from probing.models.decode import Draws, Sampling, decode, encode_prompt, end_tokens
from probing.models.load import load_model, load_tokenizer
from rl.attnpo.rescale import rloo_advantage
from rl.attnpo.rewards import tlmre
from rl.tasks.prompts import render_prompt
from rl.tasks.questions import load_questions
from rl.training.job import build_trainer, trainer_settings
from rl.training.recipe import find_recipe, read_recipe, train_config

PROMPTS, GROUP, ROWS = 16, 8, 16


def pocket() -> Any:
    """The embedded model in float32."""
    return load_model(str(data_path("pocket")), device="cpu", dtype="float32")


class BareLoop:
    """A step without any framework."""

    def __init__(self, lr: float, max_tokens: int) -> None:
        self.model = pocket()
        self.tokenizer = load_tokenizer(str(data_path("pocket")))
        self.questions = load_questions("pocket:4000")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.0)
        self.settings = Sampling(temperature=1.0, top_p=1.0, max_tokens=max_tokens)
        self.end = self.tokenizer.eos_token_id

    def step(self, number: int) -> None:
        """Sample, reward, update."""
        chosen = self.questions.questions[number * PROMPTS : (number + 1) * PROMPTS]
        asked = [question for question in chosen for _ in range(GROUP)]
        render = "Problem: {}\n<think>\n".format
        prompts = [encode_prompt(self.tokenizer, render(q.question)) for q in asked]
        seeds = torch.randint(2**62, (len(prompts),)).tolist()
        self.model.eval()
        new = decode(self.model, prompts, self.settings, Draws(seeds), frozenset([self.end]))
        texts = [self.tokenizer.decode([i for i in ids if i != self.end]) for ids in new]
        right = [self.questions.correct(q, text) for q, text in zip(asked, texts, strict=True)]
        lengths = torch.tensor([len(ids) for ids in new]).view(PROMPTS, GROUP)
        advantage = rloo_advantage(tlmre(torch.tensor(right).view(PROMPTS, GROUP), lengths))
        self.model.train()
        self.update(prompts, new, advantage.flatten())

    def update(
        self, prompts: list[list[int]], new: list[list[int]], advantage: torch.Tensor
    ) -> None:
        """One policy-gradient step: mean over all tokens of −A · log π."""
        order = sorted(range(len(new)), key=lambda i: -(len(prompts[i]) + len(new[i])))
        total = sum(map(len, new))
        loss: Any = 0.0
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            width = len(prompts[rows[0]]) + len(new[rows[0]])
            ids = torch.zeros((len(rows), width), dtype=torch.long)
            mask = torch.zeros((len(rows), width))
            for place, row in enumerate(rows):
                start_, end = len(prompts[row]), len(prompts[row]) + len(new[row])
                ids[place, :end] = torch.tensor(prompts[row] + new[row])
                mask[place, start_:end] = 1
            logits = self.model(input_ids=ids).logits[:, :-1].float()
            logps = -torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            ).view(len(rows), -1)
            loss = loss - (logps * mask[:, 1:] * advantage[rows][:, None]).sum() / total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def kfh_steps(method: str, steps: int, out: Path, bare: BareLoop) -> dict[str, list[float]]:
    """Seconds of each step of a `kfh train` run and its parts; a bare step after each."""
    from transformers import TrainerCallback

    # Scored from the first step on, as it is for most of a run.
    recipe = read_recipe(find_recipe(method))
    config = train_config(out, recipe, {"max_steps": steps, "schedule_steps": 0, "heads": "pocket"})
    questions = load_questions(config.data)
    seconds: dict[str, list[float]] = {"kfh": [], "bare": [], "scoring": [], "sampling": []}

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds["kfh"].append(time.perf_counter() - self.began)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "seconds_scoring" in logs:
                seconds["scoring"].append(logs["seconds_scoring"])
                seconds["sampling"].append(logs["seconds_sampling"])
                began = time.perf_counter()
                bare.step(state.global_step)
                seconds["bare"].append(time.perf_counter() - began)

    trainer = build_trainer(config, trainer_settings(config), questions)
    trainer.add_callback(Turns())
    trainer.train()
    return seconds


def credit_beside_outcome(steps: int) -> None:
    """Medians of the ratios of processor time to that of a step of tlmre, which is taken last."""
    trainers, seconds = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("own pass", "in the loss", "tlmre again", "tlmre"):
            method = "tlmre" if name.startswith("tlmre") else "attnpo"
            # Nothing is learned, so that all policies stay one and sample the same.
            changes = {"max_steps": 1, "schedule_steps": 0, "heads": "pocket", "learning_rate": 0.0}
            recipe = read_recipe(find_recipe(method))
            config = train_config(Path(folder) / name.replace(" ", "-"), recipe, changes)
            trainer = build_trainer(config, trainer_settings(config), load_questions(config.data))
            trainer.own_pass = name == "own pass"
            trainer.current_gradient_accumulation_steps = 1
            trainer.create_optimizer()
            trainer.model.train()
            trainers[name] = trainer
        batches = iter(trainers["tlmre"].get_train_dataloader())
        for number in range(steps + 1):
            inputs, taken = next(batches), {}
            names = list(trainers)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                torch.manual_seed(number)
                began = time.process_time()
                trainers[name].training_step(trainers[name].model, inputs, None)
                trainers[name].optimizer.step()
                trainers[name].optimizer.zero_grad()
                taken[name] = time.process_time() - began
            seconds.append(taken)
    base = [taken["tlmre"] for taken in seconds[1:]]
    print(f"tlmre: {statistics.median(base):.3f} s of processor a step, over {steps} steps")
    for name in list(trainers)[:-1]:
        ratios = [taken[name] / step for taken, step in zip(seconds[1:], base, strict=True)]
        logged = trainers[name]._metrics["train"]["seconds_scoring"][1:]
        print(
            f"{name:12} {statistics.median(ratios):.4f} × tlmre "
            f"(quartiles {', '.join(f'{q:.3f}' for q in statistics.quantiles(ratios)[::2])}), "
            f"scoring {statistics.median(logged):.4f} s"
        )


def report(method: str, seconds: dict[str, list[float]]) -> None:
    """Medians without the first step, which warms up."""
    middle = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    ratio = statistics.median(
        ours / bare for ours, bare in zip(seconds["kfh"][1:], seconds["bare"][1:], strict=True)
    )
    print(
        f"{method:8} step {middle['kfh']:.2f} s (sampling {middle['sampling']:.2f}, scoring "
        f"{middle['scoring']:.3f} = {middle['scoring'] / middle['kfh']:.1%}), bare loop "
        f"{middle['bare']:.2f} s, ratio {ratio:.2f}, over {len(seconds['kfh']) - 1} steps",
        flush=True,
    )


def gpu_scoring(model_id: str, tokens: int) -> None:
    """Scoring beside sampling's and the update's forward and backward, on a GPU, in bfloat16."""
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: this part needs one")
    model = load_model(model_id, device="cuda", dtype="bfloat16")
    rows, generator = 32, torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(0, vocabulary, (rows, tokens), generator=generator).cuda()
    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[:, -tokens // 8 :] = True
    layers = model.config.num_hidden_layers
    capture = AttentionCapture(model, [(layers // 2, 0), (2 * layers // 3, 1), (layers - 4, 2)])

    def timed(work: Any) -> float:
        times = []
        for _ in range(6):
            torch.cuda.synchronize()
            began = time.perf_counter()
            work()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    def update() -> None:
        model.zero_grad()
        for chunk in ids.split(8):
            logits = model(input_ids=chunk).logits[:, :-1].float()
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), chunk[:, 1:].flatten()
            ).backward()

    def scoring() -> None:
        with capture:
            for part, mark in zip(ids.split(8), answer.split(8), strict=True):
                capture(part, mark)

    def sampling() -> None:
        with torch.no_grad():
            model.generate(
                ids[:, : tokens // 8],
                max_new_tokens=tokens - tokens // 8,
                do_sample=True,
                min_new_tokens=tokens - tokens // 8,
                pad_token_id=0,
            )

    model.train()
    parts = {"sampling": sampling, "scoring": scoring, "update": update}
    found = {name: timed(work) for name, work in parts.items()}
    total = sum(found.values())
    shares = ", ".join(
        f"{name} {value:.2f} s ({value / total:.1%})" for name, value in found.items()
    )
    print(f"{torch.cuda.get_device_name()}, {rows} × {tokens} tokens: {shares}")


def sampling(name: str, most: int, turns: int = 3) -> None:
    """Tokens that 32 rows, 8 of each of 4 prompts, give in a second of the processor, in turn."""
    tokenizer = load_tokenizer(name)
    kinds = ("float32", "bfloat16")
    models = {kind: load_model(name, device="cpu", dtype=kind) for kind in kinds}
    asked = ("Tom has 3 apples and buys 4. How many has he?", "Name three colours.")
    asked += ("What is the capital of France?", "A train leaves at 3 and takes 2 hours. And then?")
    prompts = [
        encode_prompt(tokenizer, render_prompt(tokenizer, question, "chat-no-think"))
        for question in asked
        for _ in range(8)
    ]
    for turn in range(turns):
        for (kind, model), how in itertools.product(models.items(), ((1.0, 1.0), (0.6, 0.95))):
            ends, started = end_tokens(model, tokenizer), time.process_time()
            given = decode(model, prompts, Sampling(*how, most), Draws(range(32)), ends)
            taken, count = time.process_time() - started, sum(map(len, given))
            said = f"turn {turn + 1}, {kind}, temperature and top-p {how}: {count} tokens"
            print(f"{said} in {taken:.1f} s, {count / taken:.0f} a second", flush=True)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--credit", action="store_true")
    parser.add_argument("--gpu-scoring", metavar="MODEL")
    parser.add_argument("--sampling", metavar="MODEL")
    parser.add_argument("--tokens", type=int, default=1024)
    args = parser.parse_args()
    if args.gpu_scoring:
        gpu_scoring(args.gpu_scoring, args.tokens)
        return
    torch.set_num_threads(args.threads)
    if args.sampling:
        sampling(args.sampling, min(args.tokens, 150))
        return
    if args.credit:
        credit_beside_outcome(args.steps)
        return
    HeadSet.load("pocket")
    for method in ("attnpo", "tlmre"):
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            bare = BareLoop(2e-4, 320)
            report(method, kfh_steps(method, args.steps + 1, Path(folder), bare))


if __name__ == "__main__":
    main()
