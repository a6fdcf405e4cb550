"""One process and two give the same; sharded parameters; launches, SIGINT, resuming; docs."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from pocket_runs import POCKET, config, pocket_model, step_lines

from probing.attention.capture import AttentionCapture
from probing.errors import ConfigError
from probing.models.decode import Draws, Sampling, decode
from probing.models.load import load_model, load_tokenizer
from probing.models.processes import check_processes
from probing.traces.marks import EndMark
from rl.attnpo.config import AttnPOConfig
from rl.attnpo.passes import sharding_reasons, uses_fsdp
from rl.tasks.questions import load_questions
from rl.training.callbacks import Interrupt
from rl.training.job import Verifier, prompt_dataset
from rl.training.recipe import find_recipe, parse_settings, read_recipe

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.pocket


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def one_of(rank, count, port, folder):
    """One process, with the environment that torchrun gives it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
    for state in (AcceleratorState, PartialState, GradientState):  # of the tests before
        state._reset_state()
    with (folder / f"{count}.{rank}.log").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    processes.main(folder)


def run_processes(count, folder):
    """Forked, so that what they import is there already."""
    context, port = multiprocessing.get_context("fork"), free_port()
    started = [
        context.Process(target=one_of, args=(rank, count, port, folder)) for rank in range(count)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
    logs = [path.read_text()[-3000:] for path in sorted(folder.glob(f"{count}.*.log"))]
    assert [process.exitcode for process in started] == [0] * count, "\n".join(logs)


def store_rollouts(folder):
    """Four responses to each of two prompts, of different lengths, some right and some wrong."""
    tokenizer, model = load_tokenizer(POCKET), pocket_model()
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
    verdicts = np.array(Verifier(questions, EndMark())(texts, places)).reshape(-1, 4)
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
        run_processes(count, folder)
    return folder, *(json.loads((folder / f"{count}.json").read_text()) for count in (1, 2))


# Float32: the sums over a batch are taken in another order. Gradients agree to about 1e-6 of their
# largest entry; two SGD steps and a sampled-token ratio leave that order of magnitude.
TOLERANCE = 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", list(processes.CASES))
def test_two_processes_train_as_one_does(results, name):
    """A group of four split between two processes (DDP): advantages, loss, figures, weights."""
    folder, one, two = results
    assert two[name]["wrapped"] == "DistributedDataParallel"
    attenuated = 0
    for ours, theirs in zip(two[name]["advantages"], one[name]["advantages"], strict=True):
        assert len(ours) == len(theirs) == processes.GROUP
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)
            attenuated += len(set(b)) > 1
    assert (attenuated > 0) == name.startswith("attnpo")
    assert len(one[name]["lines"]) == 2
    for ours, theirs in zip(two[name]["lines"], one[name]["lines"], strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if key == "entropy":  # TRL's mean over micro-batches, which others make up here
                assert ours[key] == pytest.approx(value, rel=0.01)
                continue
            assert ours[key] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), key
    start = [p.detach().double().flatten().numpy() for p in pocket_model().parameters()]
    before = np.concatenate(start)
    single, double = (np.load(folder / f"{count}-{name}.npy") for count in (1, 2))
    moved = np.abs(single - before).max()
    assert moved > 1e-4
    assert np.abs(single - double).max() < 1e-4 * moved


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_the_pass_of_the_loss_scores_as_one_of_its_own(results, count):
    """Accumulated, in one process and in two (DDP): advantages, figures and weights."""
    folder, found = results[0], results[count]
    own, ours = found["attnpo-own-pass"], found["attnpo-accumulated"]
    for a, b in zip(ours["advantages"], own["advantages"], strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    for a, b in zip(ours["lines"], own["lines"], strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6, nan_ok=True)
    names = ("attnpo-own-pass", "attnpo-accumulated")
    alone, passing = (np.load(folder / f"{count}-{name}.npy") for name in names)
    assert np.abs(alone - passing).max() < 1e-6


@pytest.mark.slow
def test_sharded_parameters(results):
    """FSDP2 by hand: scores, advantages and gradients are those of the whole model."""
    sharded = results[2]["sharded"]
    assert sharded["sharded"] and any(sharded["attenuated"]) and sharded["gradient"] > 0.1
    names = ("gradients-0", "gradients-1", "gradients-scored-0", "gradients-scored-1")
    for name in ("scores", "advantages", "in-passing", *names):
        assert sharded[name] < 1e-4, (name, sharded[name])


@pytest.mark.slow
def test_sigint_to_one_process_stops_both_and_the_run_goes_on(results):
    """Both stop after the same step, the checkpoint is whole, and resuming changes nothing."""
    folder, _, two = results
    resumed = two["resumed"]
    assert resumed["statuses"] == ["interrupted"] * 2 and resumed["done"] == ["done"] * 4
    assert resumed["steps"] == [3, None]  # the main process alone keeps figures
    needed = {"model.safetensors", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth"}
    assert needed <= set(resumed["files"])
    whole, parts = (lines(folder / name) for name in ("whole", "parts"))
    assert len(whole) == 4 and whole == parts
    a, b = (load_model(str(folder / name / "model")) for name in ("whole", "parts"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def lines(folder):
    """Figures of each step, times left out."""
    times = ("seconds", "step_time", "scoring_share")
    return [
        {key: value for key, value in line.items() if not key.startswith(times)}
        for line in step_lines(folder)
    ]


# Launches


def test_what_a_launcher_leaves_is_checked():
    """`accelerate launch --cpu --num_processes 2` starts one process; its environment shows it."""
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    def left(count):
        parser = launch_command_parser()
        args = parser.parse_args(["--cpu", "--num_processes", str(count), "script.py"])
        args.num_machines, args.mixed_precision, args.dynamo_backend = 1, "no", "no"
        added = prepare_simple_launcher_cmd_env(args)[1]
        return {k: v for k, v in added.items() if k.startswith(("ACCELERATE", "MASTER"))}

    check_processes(1, None, {})
    check_processes(1, None, left(1))
    check_processes(1, 1, left(2))  # said to be right
    with pytest.raises(ConfigError, match="asked for several processes and started one"):
        check_processes(1, None, left(2))
    check_processes(2, None, {**left(2), "WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match="2 processes were started, but 1 take part"):
        check_processes(1, None, {"WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match="2 processes were asked for, 1 take part"):
        check_processes(1, 2, {"WORLD_SIZE": "2"})


def test_fsdp_is_checked(monkeypatch, tmp_path):
    """FSDP by accelerate's environment, which the settings do not show."""
    settings = {"per_device_train_batch_size": 2, "num_generations": 2, "bf16": False}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match=r"FSDP on CPU.*version 1.*ram_efficient_loading"):
        AttnPOConfig(output_dir=str(tmp_path), **settings)

    class Gpu:
        fsdp, fsdp_config = None, None
        device = torch.device("cuda")

    good = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    assert sharding_reasons(Gpu(), good) == []
    assert len(sharding_reasons(Gpu(), {**good, "FSDP_VERSION": "1"})) == 1
    assert uses_fsdp(Gpu(), good) and not uses_fsdp(Gpu(), {})


def test_a_second_sigint_leaves_at_once(monkeypatch):
    """Within a second it is the first one, handed on by torchrun; later it is meant."""
    import rl.training.callbacks

    now = [100.0]
    monkeypatch.setattr(rl.training.callbacks.time, "monotonic", lambda: now[0])
    interrupt = Interrupt()
    interrupt._hear(2, None)
    now[0] += 0.5
    interrupt._hear(2, None)
    now[0] += 1
    with pytest.raises(KeyboardInterrupt):
        interrupt._hear(2, None)


def test_partitioned_parameters_are_gathered_for_the_proof(monkeypatch, tmp_path):
    """With DeepSpeed ZeRO-3 a process holds no weights at construction; a stand-in for it."""
    import types

    import rl.attnpo.passes

    model = pocket_model()
    weights = {id(p): p.data for p in model.parameters()}
    for parameter in model.parameters():
        parameter.data = torch.empty(0)

    class GatheredParameters:
        def __init__(self, parameters):
            self.parameters = parameters

        def __enter__(self):
            for parameter in self.parameters:
                parameter.data = weights[id(parameter)]

        def __exit__(self, *_):
            for parameter in self.parameters:
                parameter.data = torch.empty(0)

    zero = types.ModuleType("deepspeed.zero")
    zero.GatheredParameters = GatheredParameters
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.zero", zero)
    monkeypatch.setattr(rl.attnpo.passes, "zero3", lambda: True)
    with rl.attnpo.passes.whole_parameters(model):
        capture = AttentionCapture(model, [(2, 3)])
    assert capture.heads == [(2, 3)]
    assert all(p.numel() == 0 for p in model.parameters())


# docs/cluster


CONFIGS = sorted((ROOT / "docs" / "cluster").glob("*.yaml"))


def launch_settings():
    from accelerate.commands.launch import launch_command_parser

    return {action.dest for action in launch_command_parser()._actions}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_cluster_files_are_accelerates(path):
    """Read by accelerate's own loader; every nested key is an option of accelerate launch."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == 8 * config.num_machines
    nested = {**config.fsdp_config, **config.deepspeed_config}
    assert nested and set(nested) <= launch_settings()
    documented = (ROOT / "docs" / "cluster.md").read_text()
    for key in (*nested, "num_processes"):
        key = "offload" if key.startswith("offload") else key
        assert f"`{key}" in documented, f"docs/cluster.md does not explain {key}"
    recipe = read_recipe(find_recipe("attnpo-ds-qwen-1.5b"))
    accumulation = recipe["gradient_accumulation_steps"]
    if config.num_machines > 1:
        script = (ROOT / "docs" / "cluster" / "slurm.sh").read_text()
        accumulation = int(re.findall(r"gradient_accumulation_steps=(\d+)", script)[0])
        assert f"--set processes={config.num_processes}" in script
    batch = recipe["per_device_train_batch_size"] * accumulation * config.num_processes
    assert (batch, recipe["num_generations"]) == (1024, 8)
    environment = {
        "ACCELERATE_USE_FSDP": str(config.distributed_type.value == "FSDP"),
        "FSDP_VERSION": str(config.fsdp_config.get("fsdp_version")),
        "FSDP_CPU_RAM_EFFICIENT_LOADING": str(
            config.fsdp_config.get("fsdp_cpu_ram_efficient_loading", False)
        ),
    }

    class Gpu:
        fsdp, fsdp_config = None, None
        device = torch.device("cuda")

    assert sharding_reasons(Gpu(), environment) == []


def test_documented_settings_exist():
    """Every setting that docs/cluster.md and the Slurm script name is one of ours or TRL's."""
    text = (ROOT / "docs" / "cluster.md").read_text()
    script = (ROOT / "docs" / "cluster" / "slurm.sh").read_text()
    named = set(re.findall(r"vllm_[a-z_]+|per_device_[a-z_]+|gradient_[a-z_]+", text + script))
    assert len(named) >= 9
    assert named <= set(AttnPOConfig.__dataclass_fields__)
    pairs = re.findall(r"--set ([^\s\\']+)", text + script)
    assert len(pairs) >= 6
    parse_settings([pair for pair in pairs if "=" in pair and "=N" not in pair])  # an error if not
    subprocess.run(["bash", "-n", str(ROOT / "docs" / "cluster" / "slurm.sh")], check=True)
