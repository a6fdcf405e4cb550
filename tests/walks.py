"""Files to open: which of the project's files run between a question and its answer.

The ground is left out, since nobody has to read it to follow the way: errors, choices, settings
classes, intervals, files, models, style. So are faces (`__init__`), which only pass names on.
"""

from __future__ import annotations

import inspect
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from families import tiny
from helpers import byte_tokenizer, trace_file
from sources import FLOORS, ROOT

GROUND = {
    *("errors", "choices", "settings", "config", "recipe", "intervals"),
    *("files", "models", "style", "__init__"),
    "options",  # turns settings classes into options, as typer does the rest
}


def project_file(filename: str) -> str | None:
    """The path of a source file within the project, without suffix; None for all other code."""
    path = Path(filename)
    if path.suffix != ".py" or not path.is_relative_to(ROOT):
        return None
    path = path.relative_to(ROOT).with_suffix("")
    return path.as_posix() if path.parts[0] in FLOORS and not GROUND & {*path.parts} else None


class Watch:
    """Notes the project files whose functions are called, until a function `last` has returned."""

    def __init__(self, last: str = "") -> None:
        self.last, self.ended = last, False
        self._codes: dict[Any, str | None] = {}

    @property
    def files(self) -> list[str]:
        """Paths without suffix, such as `probing/traces/file`."""
        return sorted({path for path in self._codes.values() if path})

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """What `sys.setprofile` calls; bodies of modules and classes are no functions."""
        code = frame.f_code
        if self.ended or event not in ("call", "return"):
            return
        if code not in self._codes and code.co_flags & inspect.CO_OPTIMIZED:
            self._codes[code] = project_file(code.co_filename)
        if event == "return" and code.co_name == self.last and self._codes.get(code):
            self.ended = True


@contextmanager
def watched(last: str = "") -> Iterator[Watch]:
    """Watch what runs inside; the same for threads that are started there."""
    watch = Watch(last)
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield watch
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def sra_of_a_trace_file(folder: Path) -> list[str]:
    """From a trace file to the mean SRA of every head, by the library."""
    from probing import (
        AttentionCapture,
        encode_trace,
        read_traces,
        score_traces,
        step_ranking_accuracy,
    )

    path, tokenizer = trace_file(folder / "traces.jsonl", 4), byte_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    with watched() as watch:
        traces = {trace.id: trace for trace in read_traces(path)}
        encoded = [encode_trace(tokenizer, trace) for trace in traces.values()]
        values = []
        for scored in score_traces(AttentionCapture(model), encoded):
            essential = [step.label == "essential" for step in traces[scored.id].steps]
            values.append(step_ranking_accuracy(scored.scores, np.array(essential)))
    assert len(values) == 4 and np.isfinite(values).all()
    return watch.files


def the_whole_probe(folder: Path) -> list[str]:
    """From settings to a finished folder, by `probe()`, with a model that is loaded already."""
    from probing import ProbeConfig, probe

    path, tokenizer = trace_file(folder / "traces.jsonl", 8), byte_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    config = ProbeConfig("tiny", path, folder / "probe", permutations=20, device="cpu")
    with watched() as watch:
        result = probe(config, model=model, tokenizer=tokenizer)
    assert result is not None and (folder / "probe" / "heads.json").is_file()
    return watch.files


def a_heatmap(folder: Path) -> list[str]:
    """From the arguments of `kfh plot DIR` to the drawn heatmap, of a finished probe."""
    from kfh.cli import load

    plot: Any = load("plot")
    arguments = [str(folder / "probe"), "--formats", "svg"]
    if not (folder / "probe" / "heads.json").is_file():
        the_whole_probe(folder)
    plot(arguments, standalone_mode=False)  # imports, caches
    with watched(last="heatmap") as watch:
        plot(arguments, standalone_mode=False)
    assert watch.ended, "no function `heatmap` has returned"
    return watch.files


def advantages_of_a_step(folder: Path) -> list[str]:
    """From TRL's batch to advantages by token; responses and their verdicts are given.

    The responses are sampled ones of the pocket reasoner, cut by the paper's segmenter.
    """
    import torch
    from datasets import Dataset

    from probing.files import data_path
    from probing.models import load_model, load_tokenizer
    from rl import AttnPOConfig, AttnPOTrainer

    tokenizer = load_tokenizer(str(data_path("pocket")))
    lines = data_path("pocket", "traces.jsonl").read_text(encoding="utf-8").splitlines()[1:5]
    traces = [json.loads(line) for line in lines]
    ids = [[*tokenizer(t["response"])["input_ids"], tokenizer.eos_token_id] for t in traces]
    prompt = traces[0]["prompt"]

    def given(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        prompt_ids = [tokenizer(prompt)["input_ids"] for _ in prompts]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": None}

    def verdicts(completions: list[str], **_: Any) -> list[float]:
        return [1.0, 1.0, 1.0, 0.0][: len(completions)]

    args = AttnPOConfig(
        str(folder),
        method="attnpo",
        segmenter="attnpo",
        min_chars=20,
        schedule_steps=0,
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=400,
        rows_per_forward=0,
        bf16=False,
        use_cpu=True,
    )
    trainer = AttnPOTrainer(
        model=load_model(str(data_path("pocket")), device="cpu", dtype="float32"),
        heads="pocket",
        reward_funcs=verdicts,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": prompt}] * 4),
        processing_class=tokenizer,
        rollout_func=given,
    )
    trainer.model.train()
    inputs = next(iter(trainer.get_train_dataloader()))
    torch.manual_seed(0)
    trainer.current_gradient_accumulation_steps = 1
    with watched() as watch:
        batch = trainer._generate_and_score_completions(inputs)
        trainer._compute_loss(trainer.model, batch)
    advantages = batch["advantages"]
    assert advantages.dim() == 2 and (advantages.amax(dim=1) > advantages.amin(dim=1)).any()
    return watch.files


WALKS: dict[str, Callable[[Path], list[str]]] = {
    "SRA of a trace file": sra_of_a_trace_file,
    "a heatmap by kfh plot": a_heatmap,
    "advantages of a step": advantages_of_a_step,
    "the whole of probe()": the_whole_probe,
}
