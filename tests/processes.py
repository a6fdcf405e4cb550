"""Run by rl/test_processes.py in one process and in two: the same checks.

The folder holds rollouts.json; results go to FOLDER/COUNT.json. By hand, under a real launcher:
torchrun --nproc_per_node 2 tests/processes.py FOLDER.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, set_seed
from pocket_runs import first_batch, made_batch, make_trainer, resumable, weights
from transformers import TrainerCallback

from rl.attnpo.completions import Batch
from rl.attnpo.credit import Terms
from rl.training.job import train

GROUP = 4
# name → method, rows_per_forward, gradient_accumulation_steps
CASES = {
    "tlmre": ("tlmre", 0, 1),
    "attnpo": ("attnpo", 0, 1),
    "tlmre-trimmed": ("tlmre", 1, 1),
    "attnpo-trimmed": ("attnpo", 1, 1),
    "attnpo-accumulated": ("attnpo", 1, 2),
    "attnpo-own-pass": ("attnpo", 1, 2),
}


class Fixed:
    """`rollout_func`: the stored response of each prompt and place in its group."""

    def __init__(self, folder: Path) -> None:
        stored = json.loads((folder / "rollouts.json").read_text())
        self.rows: list[int] = stored["rows"]
        self.ids: dict[str, list] = stored["ids"]

    def __call__(self, prompts, trainer):
        first = trainer.accelerator.process_index * len(prompts)
        ids = [self.ids[p][(first + place) % GROUP] for place, p in enumerate(prompts)]
        prompt_ids = [trainer._tokenizer(prompt)["input_ids"] for prompt in prompts]
        logprobs = [[0.0] * len(sampled) for sampled in ids]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": logprobs}


def fixed_trainer(folder, name, method, rows, accumulation=1, batch=GROUP, **settings):
    """A trainer whose global batch is `batch` responses, with stored rollouts."""
    fixed = Fixed(folder)
    count = PartialState().num_processes
    trainer = make_trainer(
        folder / f"{count}-{name}",
        method,
        options={"rollout_func": fixed},
        per_device_train_batch_size=batch // count // accumulation,
        gradient_accumulation_steps=accumulation,
        rows_per_forward=rows,
        score_rows=2,
        optim="sgd",
        learning_rate=0.1,
        processes=count,
    )
    trainer.train_dataset = trainer.train_dataset.select(fixed.rows)
    return trainer


def keep_advantages(trainer):
    """Advantages by token of every response of every batch, all processes in order."""
    kept, own = [], {}
    make, compute = trainer._generate_and_score_completions, trainer._compute_loss

    def numbered(inputs):
        output = make(inputs)
        output["place"] = torch.arange(len(output["advantages"]))  # TRL shuffles and splits
        return output

    def watched(model, inputs):
        loss = compute(model, inputs)
        own.update(zip(inputs["place"].tolist(), by_response(inputs), strict=True))
        if len(own) == trainer.args.generation_batch_size // PartialState().num_processes:
            kept.append(gather_object([own[place] for place in sorted(own)]))
            own.clear()
        return loss

    trainer._generate_and_score_completions, trainer._compute_loss = numbered, watched
    return kept


def by_response(output):
    mask = output["completion_mask"].bool()
    values = output["advantages"]
    values = values if values.dim() == 2 else values[:, None].expand(mask.shape)
    return [row[own].tolist() for row, own in zip(values, mask, strict=True)]


def train_case(folder, name):
    """Two steps: advantages, loss, norm of the gradient, metrics, weights."""
    trainer = fixed_trainer(folder, name, *CASES[name])
    trainer.own_pass = name.endswith("own-pass")
    advantages = keep_advantages(trainer)
    trainer.train()
    logs = [line for line in trainer.state.log_history if "accuracy" in line]
    left_out = ("seconds", "step_time", "epoch")
    lines = [{k: v for k, v in line.items() if not k.startswith(left_out)} for line in logs]
    summed = {k: v.double().flatten().tolist() for k, v in weights(trainer.model).items()}
    if PartialState().is_main_process:
        flat = np.concatenate([np.array(value) for value in summed.values()])
        np.save(folder / f"{PartialState().num_processes}-{name}.npy", flat)
    wrapped = type(trainer.model_wrapped).__name__
    return {"advantages": advantages, "lines": lines, "wrapped": wrapped}


def sharded(folder):
    """Scores and the training step on parameters sharded over the processes (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    state = PartialState()
    trainer = fixed_trainer(folder, "sharded", "attnpo", 1, batch=8)
    trainer.current_gradient_accumulation_steps = 1
    whole_batch = first_batch(trainer)
    whole_scores = trainer.signal(stored_batch(trainer, slice(0, 8)))
    gradients = {}
    for rows in (0, 1):
        trainer.args.rows_per_forward = rows
        trainer._compute_loss(trainer.model, whole_batch).backward()
        for parameter in trainer.model.parameters():
            torch.distributed.all_reduce(parameter.grad)
        named = trainer.model.named_parameters()
        gradients[rows] = {name: p.grad / state.num_processes for name, p in named}
        trainer.model.zero_grad()
    trainer.settle()
    assert trainer.signal.passes is None

    for layer in trainer.model.model.layers:
        fully_shard(layer)
    trainer.model_wrapped = fully_shard(trainer.model)
    trainer.settle()
    results = {"sharded": trainer.signal.passes is not None}
    # Zero differences mean something only where there are scales and gradients.
    results["attenuated"] = gather_object([len(set(x)) > 1 for x in by_response(whole_batch)])
    results["gradient"] = float(sum(value.abs().sum() for value in gradients[0].values()))
    worst = 0.0
    # Rows of each process: uneven passes, none at all in one, none in both.
    for shares in ((slice(0, 5), slice(0, 0)), (slice(0, 1), slice(1, 8)), (slice(0, 0),) * 2):
        here = shares[state.process_index]
        scores = trainer.signal(stored_batch(trainer, here))
        for ours, theirs in zip(scores, whole_scores[here], strict=True):
            assert ours.shape == theirs.shape
            worst = max(worst, np.abs(ours - theirs).max(initial=0) / theirs.max(initial=1e-12))
    results["scores"] = float(max(gather_object([worst])))
    again = first_batch(trainer)
    results["advantages"] = largest(again["advantages"], whole_batch["advantages"])
    for rows in (0, 1):
        trainer.args.rows_per_forward = rows
        trainer._compute_loss(trainer.model, whole_batch).backward()
        pairs = [
            (parameter.grad.full_tensor(), gradients[rows][name])
            for name, parameter in trainer.model.named_parameters()
        ]
        results[f"gradients-{rows}"] = max(largest(*pair) for pair in pairs)
        trainer.model.zero_grad()
        to_score = made_batch(trainer)
        assert Terms.are_in(to_score)
        trainer._compute_loss(trainer.model, to_score).backward()
        pairs = [
            (parameter.grad.full_tensor(), gradients[rows][name])
            for name, parameter in trainer.model.named_parameters()
        ]
        results[f"gradients-scored-{rows}"] = max(largest(*pair) for pair in pairs)
        trainer.model.zero_grad()
    trainer.use_vllm, trainer._last_loaded_step = True, 0  # TRL scores old log-probabilities
    trainer.args.rows_per_forward = 1
    passing = first_batch(trainer)
    assert "old_per_token_logps" in passing
    results["in-passing"] = largest(passing["advantages"], whole_batch["advantages"])
    return results


def stored_batch(trainer, here):
    """Some of the eight stored responses, the same in every process, all to be scored."""
    fixed = trainer.rollout_func
    pairs = [(p, ids) for p in sorted(fixed.ids)[:2] for ids in fixed.ids[p]][here]
    one = torch.ones(len(pairs))
    return Batch(
        prompts=[trainer._tokenizer(prompt)["input_ids"] for prompt, _ in pairs],
        responses=[trainer.cutter(ids) for _, ids in pairs],
        mask=torch.ones((len(pairs), 1), dtype=torch.bool),
        advantage=one,
        correct=one.bool(),
        p=one,
        needs_scores=one.bool(),
    )


def largest(ours, theirs):
    """max |a − b| / max |b|."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))


class SignalAt(TrainerCallback):
    """SIGINT to one process, twice in a row as torchrun does, within a step."""

    def __init__(self, step: int, process: int) -> None:
        self.step, self.process = step, process

    def on_step_begin(self, args, state, control, **_):
        if state.global_step + 1 == self.step and PartialState().process_index == self.process:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)


def resumed(folder):
    """A run of four steps, and one that SIGINT to one process stops after three."""
    settings = {"max_steps": 4, "per_device_train_batch_size": 4}
    whole = train(resumable(folder / "whole", **settings))
    stopped = train(resumable(folder / "parts", **settings), watch=[SignalAt(3, process=1)])
    names = sorted(path.name for path in (folder / "parts" / "checkpoint-3").iterdir())
    steps = gather_object([stopped["final"] and stopped["final"]["step"]])
    statuses = gather_object([stopped["status"]])
    done = train(resumable(folder / "parts", **settings), resume=True)
    return {
        "statuses": statuses,
        "steps": steps,
        "files": names,
        "done": gather_object([whole["status"], done["status"]]),  # of two runs, by two
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    results = {"processes": state.num_processes}
    for name in CASES:
        set_seed(0)
        results[name] = train_case(folder, name)
    if state.num_processes > 1:
        results["sharded"] = sharded(folder)
        results["resumed"] = resumed(folder)
    if state.is_main_process:
        (folder / f"{state.num_processes}.json").write_text(json.dumps(results))
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
