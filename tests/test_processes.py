"""One process and two give the same; sharded parameters; launches, SIGINT, resuming; docs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from probing.files import data_path
from probing.models import load_model, load_tokenizer
from rl.questions import load_questions
from rl.sampling import Draws, Sampling, decode
from rl.train import Verifier, prompt_dataset

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.pocket


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def torchrun(count, *command, check=True, **changes):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", **changes}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count)]
    done = subprocess.run(
        [*launch, "--master_port", str(free_port()), *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def store_rollouts(folder):
    """Four responses to each of two prompts, of different lengths, some right and some wrong."""
    from test_training import config

    tokenizer = load_tokenizer(str(data_path("pocket")))
    model = load_model(str(data_path("pocket")), device="cpu", dtype="float32")
    questions = load_questions("pocket:12", seed=0)
    dataset = prompt_dataset(questions, tokenizer, config(folder))
    prompts = [row["prompt"] for row in dataset for _ in range(4)]
    end = frozenset([tokenizer.eos_token_id])
    new = decode(
        model,
        [tokenizer(prompt)["input_ids"] for prompt in prompts],
        Sampling(temperature=1.0, top_p=1.0, max_tokens=160),
        Draws(list(range(len(prompts)))),
        end,
    )
    texts = [tokenizer.decode(ids) for ids in new]
    places = [row["question_index"] for row in dataset for _ in range(4)]
    verdicts = np.array(Verifier(questions, "</think>")(texts, places)).reshape(-1, 4)
    mixed = [row for row in range(len(dataset)) if 2 <= verdicts[row].sum() <= 3][:2]
    assert len(mixed) == 2, verdicts.tolist()
    ids = {dataset[row]["prompt"]: new[4 * row : 4 * row + 4] for row in mixed}
    (folder / "rollouts.json").write_text(json.dumps({"rows": mixed, "ids": ids}))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What tests/processes.py finds in one process and in two."""
    folder = tmp_path_factory.mktemp("processes")
    torch.manual_seed(0)
    store_rollouts(folder)
    for count in (1, 2):
        torchrun(count, ROOT / "tests" / "processes.py", folder)
    return folder, *(json.loads((folder / f"{count}.json").read_text()) for count in (1, 2))
