"""`kfh train`: from a recipe to a run folder. The steps have the same numbers in `train`.

1. Check the settings, and that the folder holds no other run.
2. Read the questions and render the prompts; every verifier proves itself (`rl.tasks.questions`).
3. Load the model; the head set is checked against it and the capture proven (`AttnPOTrainer`).
4. Train from the last checkpoint, or from the start.
5. Save the model and write what came out.

`run.json` says what the run is; `metrics.jsonl` has a line a step; `probe.jsonl` the probes of
the policy; `checkpoint-N/` what resuming needs; `model/` the trained model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from datasets import Dataset
from transformers import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from probing.errors import ConfigError, DataError
from probing.files.headers import (
    HEADER,
    file_header,
    read_object,
    write_json,
)
from probing.headset import HeadSet
from probing.models.checkpoint import check_trainable
from probing.models.decode import encode_prompt
from probing.models.identity import ModelCard, fits, position_limit
from probing.models.load import ModelSource, choose_device
from probing.traces.marks import EndMark
from probing.traces.source import trace_path
from rl.attnpo.completions import end_mark
from rl.attnpo.config import AttnPOConfig
from rl.attnpo.trainer import AttnPOTrainer
from rl.tasks.base import Question, QuestionSet
from rl.tasks.prompts import render_prompt
from rl.tasks.questions import load_questions, write_trained_on
from rl.training.callbacks import Interrupt, MetricsFile, Reprobe
from rl.training.lora import lora_options, name_base
from rl.training.recipe import TrainConfig

RUN_FILE = "run.json"


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    watch: Sequence[Any] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run, or go on with, a training run.

    Args:
        config: its settings. A run that goes on keeps those that are left out here; of the others
            only `rl.training.recipe.MAY_CHANGE` may be new.
        resume: go on where the folder holds this run.
        watch: callbacks that show progress.
        tell: is told each caveat of the head set and the questions before the first step.

    Returns:
        The content of `run.json`: `status` is `done`, or `interrupted` after a SIGINT.

    Raises:
        ConfigError, DataError, ModelError: before the first rollout, where it can be known.
    """
    out = Path(config.out)
    former = former_run(out, resume)  # 1
    if former is not None:
        config = config.going_on(former["settings"])
        same_length = config.to_json().get("max_steps") == former["settings"].get("max_steps")
        if former["status"] == "done" and same_length:
            return former
    args = trainer_settings(config)
    questions = load_questions(config.data, seed=args.seed, **config.reading)  # 2
    trainer = build_trainer(config, args, questions)  # 3
    interrupt, metrics = Interrupt(), MetricsFile(out)
    for callback in (metrics, interrupt, *_probes(config, trainer), *watch):
        trainer.add_callback(callback)
    content = _run_content(config, args, questions, trainer)
    main = trainer.accelerator.is_main_process
    if main:
        write_json(out / RUN_FILE, content)
        for text in content["caveats"]:
            tell(text)
    checkpoint = get_last_checkpoint(str(out)) if former else None  # 4
    started = time.perf_counter()
    # Whatever was drawn while things were set up, a run with this seed samples the same.
    set_seed(args.seed, device_specific=True)
    trainer.train(resume_from_checkpoint=checkpoint)
    done = trainer.state.global_step >= trainer.state.max_steps
    content["seconds"] = (former or {}).get("seconds", 0.0) + time.perf_counter() - started
    content["status"] = "done" if done and not interrupt.stopped else "interrupted"
    content["final"] = metrics.last
    if content["status"] == "done":  # 5
        _save_model(trainer, config, questions)
    if main:
        write_json(out / RUN_FILE, content)
    return content


def _save_model(trainer: AttnPOTrainer, config: TrainConfig, questions: QuestionSet) -> None:
    """Save the model, and beside it which problems it was trained on."""
    if trainer.is_fsdp_enabled:  # else each process would keep its own part of the model
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    folder = Path(config.out) / "model"
    trainer.save_model(str(folder))
    if trainer.accelerator.is_main_process:
        write_trained_on(folder, questions.problems, config.model)


def former_run(out: Path, resume: bool) -> dict[str, Any] | None:
    """What `run.json` says of an earlier start; None where there is none.

    Raises:
        ConfigError: the folder holds a run, and `resume` is not set.
        DataError: the file is not that of a run.
    """
    path = out / RUN_FILE
    if not path.exists():
        return None
    content = read_object(path)
    status, settings = content.get("status"), content.get("settings")
    if not isinstance(status, str) or not isinstance(settings, dict):
        raise DataError(f"{path}: not the file of a training run")
    if not resume:
        raise ConfigError(f"{out} holds a run ({status}): use --resume, or another --out")
    return content


def build_trainer(
    config: TrainConfig, args: AttnPOConfig, questions: QuestionSet, **options: Any
) -> AttnPOTrainer:
    """The trainer of a run, its head set checked against the model and the capture proven.

    Args:
        config, args: its settings.
        questions: what is trained on.
        **options: other arguments of `AttnPOTrainer`, before those that the settings give.

    Raises:
        ConfigError, ModelError, DataError: see `AttnPOTrainer`.
    """
    heads = HeadSet.load(config.heads) if config.heads else None
    model, tokenizer = ModelSource(
        config.model,
        device="cpu",  # the trainer places it
        dtype=config.dtype,
        attention=config.attention,
        trust_remote_code=config.trust_remote_code,
    ).load()
    check_trainable(model, tokenizer, config.model)
    prompts = prompt_dataset(questions, tokenizer, config)
    _check_positions(model, tokenizer, prompts["prompt"], args.max_completion_length)
    given = {
        "model": model,
        "reward_funcs": Verifier(questions, end_mark(heads, args.think_end, args.think_end_at)),
        "heads": heads,
        "label_func": questions.label_func,
        "train_dataset": prompts,
        **lora_options(config),
        **options,
    }
    try:
        trainer = AttnPOTrainer(args=args, processing_class=tokenizer, **given)
    except (ImportError, RuntimeError) as error:
        if args.report_to in ([], ["none"]):
            raise
        # How transformers says that a tracker is not installed.
        raise ConfigError(
            f"the trainer cannot be set up with report_to = {args.report_to}: {error}"
        ) from error
    name_base(trainer.accelerator.unwrap_model(trainer.model), config.model)
    trainer.remove_callback(PrinterCallback)  # prints every metric of every step
    return trainer


def _check_positions(model: Any, tokenizer: Any, prompts: Sequence[str], most: int | None) -> None:
    """Raise ConfigError where a response of the greatest length could not be written."""
    limit = position_limit(model)
    if limit is None:
        return
    longest = max(len(encode_prompt(tokenizer, prompt)) for prompt in prompts)
    if not fits(longest + (most or 0), limit):
        raise ConfigError(
            f"the longest prompt has {longest} tokens and max_completion_length is {most}: {limit} "
            f"positions are all that the model has. Set max_completion_length to "
            f"{max(limit - longest, 0)} at most, or leave long questions out"
        )


def _probes(config: TrainConfig, trainer: AttnPOTrainer) -> list[Reprobe]:
    """The probe during training, where it is asked for."""
    if not config.probe_every:
        return []
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            "probe_every does not go with FSDP or DeepSpeed: one process alone probes, and "
            "has a part of the model. Probe the checkpoints instead (kfh probe)"
        )
    path = trace_path(str(config.probe_traces))
    folder, every = Path(config.out), config.probe_every
    limit = position_limit(trainer.accelerator.unwrap_model(trainer.model))
    return [Reprobe(folder, path, trainer.head_set, trainer.cutter, every, limit)]


def trainer_settings(config: TrainConfig) -> AttnPOConfig:
    """The trainer's settings; a value that TRL or transformers refuses is a ConfigError."""
    on_cpu = choose_device("auto").type == "cpu"  # which bf16 must be told
    usual = {"save_strategy": "steps", "disable_tqdm": True, "use_cpu": on_cpu}
    settings = {**usual, **(config.trainer or {})}
    try:
        return AttnPOConfig(output_dir=str(config.out), **settings)
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the settings do not fit: {error}") from error


class Verifier:
    """The first reward function: 1 for a response that the question set calls correct."""

    __name__ = "correct"

    def __init__(self, questions: QuestionSet, mark: EndMark) -> None:
        self.questions, self.mark = questions, mark

    def __call__(
        self, completions: Sequence[str], question_index: Sequence[int], **_: Any
    ) -> list[float]:
        """Verdicts of a batch; `question_index` is the column of the data set."""
        pairs = zip(completions, question_index, strict=True)
        return [float(self._correct(self.questions.questions[i], text)) for text, i in pairs]

    def _correct(self, question: Question, text: str) -> bool:
        return self.questions.correct(
            question, text, think_end=self.mark.text, think_end_at=self.mark.at
        )


def prompt_dataset(questions: QuestionSet, tokenizer: Any, config: TrainConfig) -> Dataset:
    """Rendered prompts, with the index of their question."""
    prompts = [
        render_prompt(
            tokenizer,
            question.question,
            config.template,
            think_start=config.think_start,
            instruction=questions.instruction,
        )
        for question in questions.questions
    ]
    return Dataset.from_dict(
        {
            "prompt": [_without_start(tokenizer, prompt) for prompt in prompts],
            "question_index": list(range(len(prompts))),
        }
    )


def _without_start(tokenizer: Any, prompt: str) -> str:
    """The prompt without the BOS that its template wrote, where the tokenizer sets it again."""
    start = tokenizer.bos_token
    if not start or not prompt.startswith(start):
        return prompt
    ids = tokenizer(prompt)["input_ids"]
    return prompt.removeprefix(start) if ids[:2] == [tokenizer.bos_token_id] * 2 else prompt


def _chosen_on(heads: HeadSet, questions: QuestionSet) -> str:
    """On how many of the questions that are trained on the heads were chosen, in words."""
    if heads.chosen_on is None:
        return "unknown: the head set does not say on which problems its heads were chosen"
    seen = sum(mark in heads.chosen_on for mark in questions.problems)
    return f"{seen} of the {len(questions)} questions"


def _run_content(
    config: TrainConfig, args: AttnPOConfig, questions: QuestionSet, trainer: AttnPOTrainer
) -> dict[str, Any]:
    """What `run.json` says while the run goes on."""
    cutter, heads = trainer.cutter, trainer.head_set
    policy = trainer.accelerator.unwrap_model(trainer.model)
    return {
        HEADER: file_header("training run"),
        "method": args.method,
        "seed": args.seed,
        "model": config.model,
        "fingerprint": ModelCard.of(config.model, policy.config).fingerprint,
        "steps": args.max_steps,
        "responses": args.generation_batch_size,  # a step, of all processes
        "heads": trainer.heads,
        "caveats": [
            *(heads.caveats if heads and args.signal == "heads" else ()),
            *questions.left_out,
        ],
        "data": questions.source,
        "heads_chosen_on": _chosen_on(heads, questions) if heads else None,
        "cut": {
            **cutter.segmenter.to_json(),
            **EndMark(cutter.think_end, cutter.think_end_at).to_json(),
            "rule": cutter.rule,
            "answer": cutter.answer,
        },
        "rescaling": vars(args.rescaling) if args.rescales else None,
        "length_penalty": args.length_penalty,
        "advantage": args.advantage,
        "signal": args.signal,
        "own_parts": args.own_parts,
        "processes": trainer.accelerator.num_processes,
        "settings": config.to_json(),
        "status": "running",
        "seconds": 0.0,
        "final": None,
    }
