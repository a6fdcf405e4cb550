"""Small training runs on the pocket model, shared by the tests of trainer, runs and processes."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from probing.files.headers import data_path
from probing.models.load import load_model
from rl.attnpo.credit import Terms
from rl.tasks.questions import load_questions
from rl.training.job import build_trainer, trainer_settings
from rl.training.recipe import find_recipe, read_recipe, train_config

POCKET = str(data_path("pocket"))
SMALL = {
    "data": "pocket:12",
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 160,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "schedule_steps": 0,
    "rows_per_forward": 4,
    "save_strategy": "no",
    "heads": "pocket",
}


def config(out, recipe="attnpo", **settings):
    """Two steps of two prompts with four responses each."""
    return train_config(Path(out), read_recipe(find_recipe(recipe)), SMALL, settings)


def resumable(out, **settings):
    """The same, with a checkpoint every two steps."""
    return config(out, save_strategy="steps", save_steps=2, save_total_limit=5, **settings)


def make_trainer(out, recipe="attnpo", options=None, **settings):
    """The trainer of such a run; `options` go to it before what the settings give."""
    made = config(out, recipe, **settings)
    args = trainer_settings(made)
    questions = load_questions(made.data, seed=0)
    return build_trainer(made, args, questions, **(options or {}))


def made_batch(trainer):
    """The generation batch of the first step, as it goes to the loss."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = next(iter(trainer.get_train_dataloader()))
    torch.manual_seed(0)
    return trainer._generate_and_score_completions(inputs)


def first_batch(trainer):
    """The same, with its advantages as the loss reads them."""
    batch = made_batch(trainer)
    if Terms.are_in(batch):  # the pass of the loss scores
        trainer._compute_loss(trainer.model, batch)
    return batch


def pocket_model():
    """The embedded model in float32."""
    return load_model(POCKET, device="cpu", dtype="float32")


def weights(model):
    """Its parameters, copied."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def step_lines(folder):
    """The lines of metrics.jsonl, without its header."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").open()][1:]
