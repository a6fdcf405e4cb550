"""`kfh sft`: teach a model a form of reasoning by traces, before any RL. TRL's SFTTrainer does it.

1. Check the settings, and that the folder holds no other run.
2. Traces as token ids, the end token included; the prompts are those of sampling.
3. Load the model, a GGUF file too; freeze its lower layers.
4. Train from the last checkpoint, or from the start. The response alone has a loss.
5. Save the model as safetensors in `model/`, and what came out in `run.json`.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from math import ceil
from pathlib import Path
from typing import Any

from probing.choices import Dtype
from probing.errors import ConfigError, DataError
from probing.files.headers import HEADER, file_hash, file_header, write_json
from probing.models.load import MODEL, ModelSource, choose_device, fast_bfloat16
from probing.settings import check, choice, to_json

IGNORED = -100  # what torch leaves out of a loss


@dataclass(frozen=True)
class SftConfig(ModelSource):
    """What is taught to which model, and how; checked on creation.

    Raises:
        ConfigError: a value out of range.
    """

    _: KW_ONLY
    data: str = choice(
        help="Traces: FILE.jsonl, or questions of a task that writes them, such as words:600@1."
    )
    out: Path = choice(help="Folder of the run.")
    limit: int | None = choice(None, "At most so many traces.", least=1)
    dtype: Dtype = choice("float32", "Of the weights.", panel=MODEL)
    compute: Dtype = choice("auto", "Of the arithmetic; auto: bfloat16 where it is fast.")
    template: str = choice("auto", "How a question becomes a prompt.")
    learning_rate: float = choice(2e-4, "Of AdamW, at its peak; a cosine follows.", least=0)
    epochs: float = choice(1.0, "Passes over the traces, each in another order.", least=0)
    max_steps: int | None = choice(None, "Steps, in place of the epochs.", least=1)
    batch: int = choice(8, "Traces a step.", least=1)
    warmup: int = choice(10, "Steps up to the peak.", least=0)
    freeze: int = choice(0, "Layers, from the lowest, that stay; the embeddings too.", least=0)
    sharpen: float = choice(
        1.0,
        "What multiplies the logits at the end; above 1, slips of the pen are rare.",
        least=0.1,
    )
    save_steps: int = choice(50, "Steps between checkpoints.", least=1)
    seed: int = choice(0, "Of the order, and of the traces that a task writes.")

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(self)


def teach(config: SftConfig, *, resume: bool = False, watch: Sequence[Any] = ()) -> dict[str, Any]:
    """Run, or go on with, a run of supervised fine-tuning.

    Args:
        config: its settings.
        resume: go on where the folder holds this run.
        watch: callbacks that show progress.

    Returns:
        The content of `run.json`: `status` is `done`, or `interrupted` after a SIGINT.

    Raises:
        ConfigError, DataError, ModelError: before the first step, where it can be known.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTTrainer

    from probing.models.checkpoint import check_trainable
    from rl.training.callbacks import Interrupt
    from rl.training.job import RUN_FILE, former_run

    out, former = Path(config.out), former_run(Path(config.out), resume)  # 1
    if former is not None:
        _check_same(config, former["settings"])
        if former["status"] == "done":
            return former
    model, tokenizer = config.load()
    check_trainable(model, tokenizer, config.model)
    rows = [*examples(config, model, tokenizer)]  # 2
    problems = [row.pop("problem") for row in rows]
    steps = config.max_steps or max(1, ceil(len(rows) * config.epochs / config.batch))
    frozen = freeze_lower(model, config.freeze)  # 3
    trainer = SFTTrainer(
        model,
        _arguments(config, steps),
        train_dataset=Dataset.from_list(in_order(rows, config.batch, steps, config.seed)),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    interrupt = Interrupt()
    for callback in (interrupt, *watch):
        trainer.add_callback(callback)
    content = _content(config, rows, frozen)
    content["seconds"] = (former or {}).get("seconds", 0.0)
    write_json(out / RUN_FILE, content)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(out)) if former else None)  # 4
    content["seconds"] += time.perf_counter() - started
    history = trainer.state.log_history
    content["loss"] = [[line["step"], line["loss"]] for line in history if "loss" in line]
    content["status"] = "interrupted" if interrupt.stopped else "done"
    if not interrupt.stopped:  # 5
        _save_model(trainer, config, problems)
    write_json(out / RUN_FILE, content)
    return content


def _save_model(trainer: Any, config: SftConfig, problems: Sequence[str]) -> None:
    """Save the model with which problems it was taught; checkpoints are of no more use."""
    from rl.tasks.questions import write_trained_on

    out = Path(config.out)
    sharpen(trainer.accelerator.unwrap_model(trainer.model), config.sharpen)
    trainer.save_model(str(out / "model"))
    write_trained_on(out / "model", problems, config.model)
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _check_same(config: SftConfig, former: dict[str, Any]) -> None:
    """Raise ConfigError where a folder's run has other settings."""
    settings = to_json(config)
    if changed := [name for name in settings if settings[name] != former.get(name)]:
        raise ConfigError(f"{config.out} holds another run ({', '.join(changed)}): another --out")


def _content(config: SftConfig, rows: Sequence[Any], frozen: int) -> dict[str, Any]:
    """What `run.json` says while the run goes on."""
    return {
        HEADER: file_header("fine-tuning run"),
        "settings": to_json(config),
        "traces": len(rows),
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "taught_tokens": sum(label != IGNORED for row in rows for label in row["labels"]),
        "frozen_parameters": frozen,
        "data_hash": file_hash(Path(config.data)) if _is_file(config.data) else None,
        "status": "running",
        "seconds": 0.0,
        "loss": [],
    }


def _arguments(config: SftConfig, steps: int) -> Any:
    """The settings as TRL has them."""
    from trl import SFTConfig

    on_cpu = choose_device(config.device).type == "cpu"
    return SFTConfig(
        output_dir=str(config.out),
        per_device_train_batch_size=config.batch,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,
        max_steps=steps,
        seed=config.seed,
        use_cpu=on_cpu,
        bf16=config.compute == "bfloat16"
        or (config.compute == "auto" and fast_bfloat16(config.device)),
        optim="adamw_torch_fused",
        gradient_checkpointing=False,
        dataloader_pin_memory=not on_cpu,
        max_length=None,  # nothing is cut in silence
        train_sampling_strategy="sequential",  # TRL's other orders are not those of a resumed run
        logging_steps=1,
        save_steps=config.save_steps,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
    )


def examples(config: SftConfig, model: Any, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """`input_ids`, `labels` and `problem` of each trace: labels of the prompt are `IGNORED`.

    Raises:
        DataError: a trace without a prompt, or too long for the model; a tokenizer without an
            end token.
    """
    from probing.models.decode import encode_prompt
    from probing.models.identity import context_limit

    # The trainer makes the tokenizer's end token the model's, and so that of sampling.
    end, limit = tokenizer.eos_token_id, context_limit(model.config)
    if end is None:
        raise DataError(f"{config.model}: its tokenizer names no token that ends a response")
    traces = taught(config.data, tokenizer, config.template, limit=config.limit, seed=config.seed)
    for name, prompt, response, problem in traces:
        if not prompt:
            raise DataError(f"{config.data}, {name}: no prompt, so nothing to answer")
        before = encode_prompt(tokenizer, prompt)
        after = [*tokenizer(response, add_special_tokens=False)["input_ids"], end]
        if limit is not None and len(before) + len(after) > limit:
            raise DataError(f"{config.data}, {name}: longer than the {limit} tokens of the model")
        labels = [IGNORED] * len(before) + after
        yield {"input_ids": before + after, "labels": labels, "problem": problem}


def in_order(rows: Sequence[Any], batch: int, steps: int, seed: int) -> list[Any]:
    """The rows of so many steps: rows of like length share a batch, so that little is padding.

    The batches of each pass are in an order of its own.
    """
    alike = sorted(rows, key=lambda row: len(row["input_ids"]))
    batches = [alike[start : start + batch] for start in range(0, len(alike), batch)]
    rng, order = random.Random(seed), list[Any]()
    while len(order) < steps * batch:
        rng.shuffle(batches)
        order += [row for group in batches for row in group]
    return order[: steps * batch]


def taught(
    data: str, tokenizer: Any, template: str, *, limit: int | None = None, seed: int = 0
) -> Iterator[tuple[str, str, str, str]]:
    """Name, rendered prompt, response and problem's hash of each trace: a file's, or a task's own.

    Args:
        data: FILE.jsonl, or questions of a task.
        tokenizer, template: render a question as a prompt.
        limit: at most so many.
        seed: of the traces that a task writes.
    """
    from itertools import islice

    from probing.traces.file import read_traces
    from rl.tasks.prompts import render_prompt
    from rl.tasks.questions import load_questions

    if _is_file(data):
        for trace in islice(read_traces(data), limit):
            yield trace.id, trace.prompt, trace.response, trace.problem_key
        return
    asked = load_questions(data, limit=limit, seed=seed)
    for question, problem in zip(asked.questions, asked.problems, strict=True):
        prompt = render_prompt(
            tokenizer, question.question, template, instruction=asked.instruction
        )
        yield question.id, prompt, asked.task.trace(question, seed), problem


def freeze_lower(model: Any, layers: int) -> int:
    """Freeze the lowest layers with the embeddings; returns how many parameters that are.

    With the embeddings a tied head is frozen, too: a gradient of theirs would have to go through
    all layers.

    Raises:
        ConfigError: no layer would be left.
    """
    if layers >= model.config.num_hidden_layers:
        raise ConfigError(f"freeze {layers}: the model has {model.config.num_hidden_layers} layers")
    if not layers:
        return 0
    parts = [model.get_input_embeddings(), *model.get_decoder().layers[:layers]]
    held = {id(weight): weight for part in parts for weight in part.parameters()}
    for weight in held.values():
        weight.requires_grad_(False)
    return sum(weight.numel() for weight in held.values())


def sharpen(model: Any, factor: float) -> None:
    """Multiply the logits by a factor, in the weight of the last norm: sampled at temperature 1 the
    model then is what it was at 1 / factor.

    Raises:
        ConfigError: they are not this weight's multiples.
    """
    import torch

    if factor == 1:
        return
    norm = getattr(model.get_decoder(), "norm", None)
    trial = torch.tensor([[0, 1, 2]], device=model.device)
    with torch.no_grad():
        before = model(trial).logits
        if norm is not None:
            norm.weight.mul_(factor)
        if not torch.allclose(model(trial).logits, factor * before, rtol=0.05, atol=0.5):
            raise ConfigError(f"sharpen {factor}: no norm of this model scales its logits")


def _is_file(data: str) -> bool:
    return data.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst"))
