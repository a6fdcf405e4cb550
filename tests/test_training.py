"""The trainer against theory: plain GRPO, real gradients, resuming, killing, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from probing.attention.capture import AttentionCapture
from probing.attention.scores import step_scores
from probing.config import ProbeConfig
from probing.errors import ConfigError, DataError, ModelError
from probing.files.headers import data_path
from probing.headset import HeadSet
from probing.models.load import load_model, load_tokenizer
from probing.run import probe
from probing.traces.phrases import phrase_counts
from probing.traces.segmenters import Segmenter
from probing.traces.tokens import decode_with_offsets
from rl.attnpo.completions import Cutter
from rl.attnpo.config import AttnPOConfig
from rl.attnpo.signals import AttentionScorer
from rl.attnpo.trainer import AttnPOTrainer, _margins
from rl.tasks.questions import load_questions
from rl.training.job import Verifier, prompt_dataset, train, trainer_settings
from rl.training.recipe import (
    find_recipe,
    parse_settings,
    read_recipe,
    shipped_recipes,
    train_config,
)

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
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(POCKET)


def config(out, method="attnpo", **settings):
    recipe = read_recipe(find_recipe(method))
    return train_config(Path(out), recipe, SMALL, settings)


def make_trainer(out, method="attnpo", reward_funcs=None, heads="pocket", options=None, **settings):
    """A trainer on the pocket model, with rollouts of its own unless they are given."""
    made = config(out, method, **settings)
    args = trainer_settings(made)
    questions = load_questions(made.data, seed=0)
    tokenizer = load_tokenizer(POCKET)
    return AttnPOTrainer(
        model=load_model(POCKET, device="cpu", dtype="float32"),
        reward_funcs=reward_funcs or Verifier(questions, "</think>"),
        args=args,
        heads=heads,
        label_func=questions.label_func,
        train_dataset=prompt_dataset(questions, tokenizer, made),
        processing_class=tokenizer,
        **(options or {}),
    )


def first_batch(trainer):
    """The generation batch of the first step, scored."""
    trainer.model.train()
    inputs = next(iter(trainer.get_train_dataloader()))
    torch.manual_seed(0)
    return trainer._generate_and_score_completions(inputs)


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


# Steps from sampled ids


def test_ids_keep_their_offsets(tokenizer):
    text = "First, 31 * 8 gives k = 48.\nWait, é 漢🙂 ok.\n</think> k 48 \\boxed{48}"
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids = np.array(encoded["input_ids"])
    decoded, offsets = decode_with_offsets(tokenizer, ids)
    assert decoded == text
    plain = list(zip(offsets.tolist(), encoded["offset_mapping"], strict=True))
    # Bytes of one character all span it; every other token agrees with the tokenizer.
    assert all(ours == list(theirs) for ours, theirs in plain if text[slice(*theirs)].isascii())
    for start, end in offsets[5:]:
        assert end > start


def test_a_response_is_cut_once(tokenizer):
    cutter = Cutter(tokenizer, (tokenizer.eos_token_id,), Segmenter("line"))
    text = "First, 31 * 8 gives k = 48.\nWait, ok.\n</think> k 48 \\boxed{48}"
    ids = tokenizer(text)["input_ids"]
    whole = cutter([*ids, tokenizer.eos_token_id, 5, 5])
    assert (whole.text, whole.length, whole.complete) == (text, len(ids) + 1, True)
    lines = [text[slice(*offset)] for offset in [(s.start, s.end) for s in whole.steps]]
    assert lines == ["First, 31 * 8 gives k = 48.\n", "Wait, ok.\n"]
    again = ["".join(tokenizer.decode(whole.ids[a:b])) for a, b in whole.spans]
    assert again == lines
    answer = tokenizer.decode(whole.ids[whole.answer])
    assert answer == " k 48 \\boxed{48}"
    cut_off = cutter(ids)
    assert not cut_off.finished and cut_off.reasoned and not cut_off.complete
    silent = cutter(ids[:12])
    assert len(silent.spans) == 0 and not silent.answer.any() and not silent.complete


def test_scores_of_a_batch_are_those_of_single_traces(tokenizer):
    model = load_model(POCKET, device="cpu", dtype="float32")
    cutter = Cutter(tokenizer, (tokenizer.eos_token_id,), Segmenter("line"))
    texts = [json.loads(line) for line in data_path("pocket", "traces.jsonl").open()][1:8]
    prompts = [tokenizer(line["prompt"])["input_ids"] for line in texts]
    responses = [cutter(tokenizer(line["response"])["input_ids"]) for line in texts]
    heads = HeadSet.load("pocket").pairs
    capture = AttentionCapture(model, heads)
    found = AttentionScorer(capture, rows=3)(prompts, responses)
    for prompt, response, scores in zip(prompts, responses, found, strict=True):
        ids = torch.tensor([[*prompt, *response.ids.tolist()]])
        answer = torch.zeros_like(ids, dtype=torch.bool)
        answer[0, len(prompt) :] = torch.from_numpy(response.answer)
        with capture:
            mass = capture(ids, answer)[0].numpy()
        expected = step_scores(mass, response.spans + len(prompt)).mean(axis=0)
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-7)


# Advantages


@pytest.mark.pocket
def test_scale_one_is_plain_grpo(tmp_path):
    """γ forced to 1, group-normalised: TRL's own GRPOTrainer gives the same weights."""
    ours = make_trainer(
        tmp_path / "a",
        "attnpo",
        advantage="grpo",
        length_penalty="none",
        rollouts="trl",
        rows_per_forward=0,
        scale_floor=1.0,
        negative_attenuation=False,
    )
    assert ours.args.rescales
    plain_args = GRPOConfig(
        **{
            key: value
            for key, value in ours.args.to_dict().items()
            if key in GRPOConfig.__dataclass_fields__
            and key not in ("generation_batch_size",)
            and GRPOConfig.__dataclass_fields__[key].init
        }
        | {"output_dir": str(tmp_path / "b"), "steps_per_generation": None}
    )
    verifier = ours.reward_funcs[0]

    def complete(completions, completion_ids, **columns):
        ends = [ids[-1] == ours._tokenizer.eos_token_id for ids in completion_ids]
        right = verifier(completions=completions, **columns)
        return [value * end for value, end in zip(right, ends, strict=True)]

    plain = GRPOTrainer(
        model=load_model(POCKET, device="cpu", dtype="float32"),
        reward_funcs=complete,
        args=plain_args,
        train_dataset=ours.train_dataset,
        processing_class=ours._tokenizer,
    )
    plain._get_train_sampler = ours._get_train_sampler  # the same order of prompts
    for trainer in (ours, plain):
        torch.manual_seed(0)
        trainer.train()
    before = weights(load_model(POCKET, device="cpu", dtype="float32"))
    moved = 0.0
    for name, value in weights(plain.model).items():
        assert torch.equal(value, weights(ours.model)[name]), name
        moved += float((value - before[name]).abs().sum())
    assert moved > 0


@pytest.mark.pocket
def test_scale_one_is_plain_rloo(tmp_path):
    """Advantages by token that are all A, and one A a response: the same weights to the bit."""
    ones = {"scale_floor": 1.0, "negative_attenuation": False, "length_penalty": "none"}
    by_token = make_trainer(tmp_path / "a", "attnpo", **ones)
    by_response = make_trainer(tmp_path / "b", "rloo")
    shapes = []
    for trainer in (by_token, by_response):
        stock = trainer._generate_and_score_completions

        def watched(inputs, stock=stock):
            output = stock(inputs)
            shapes.append(output["advantages"].dim())
            return output

        trainer._generate_and_score_completions = watched
        torch.manual_seed(0)
        trainer.train()
    assert shapes == [2, 2, 1, 1]
    found, expected = weights(by_token.model), weights(by_response.model)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.pocket
def test_methods_share_rollouts_and_differ_by_scales(tmp_path):
    """tlmre and attnpo see the same first batch; γ is what parts their advantages."""
    batches = {
        method: first_batch(make_trainer(tmp_path / method, method))
        for method in ("tlmre", "attnpo", "oracle")
    }
    outcome = batches["tlmre"]["advantages"]
    assert outcome.dim() == 1
    for method in ("attnpo", "oracle"):
        assert torch.equal(batches[method]["completion_ids"], batches["tlmre"]["completion_ids"])
        by_token = batches[method]["advantages"]
        assert by_token.shape == batches[method]["completion_ids"].shape
        gamma = by_token / outcome[:, None]
        told = gamma[~gamma.isnan()]
        assert told.min() >= 0 and told.max() <= 1 + 1e-6 and (told < 0.99).any()
    # Groups sum to zero under the leave-one-out advantage.
    torch.testing.assert_close(outcome.view(-1, 4).sum(dim=1), torch.zeros(2), atol=1e-6, rtol=0)


@pytest.mark.pocket
def test_tokens_of_scale_zero_get_no_gradient(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, "oracle", difficulty_alpha=0.0, difficulty_beta=0.0)
    batch = first_batch(trainer)
    live = batch["completion_mask"].bool()
    zero = (batch["advantages"] == 0) & live & (batch["advantages"].abs().sum(1, keepdim=True) > 0)
    assert zero.any(), "the batch has no attenuated token"
    kept = {}
    stock = trainer._get_per_token_logps_and_entropies

    def watched(*args, **options):
        logps, entropies, aux = stock(*args, **options)
        logps.retain_grad()
        kept["logps"] = logps
        return logps, entropies, aux

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", watched)
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, batch).backward()
    gradient = kept["logps"].grad
    assert (gradient[zero] == 0).all()
    moving = live & (batch["advantages"] != 0)
    assert (gradient[moving] != 0).all()


@pytest.mark.pocket
def test_sorting_and_trimming_change_nothing(tmp_path):
    trainer = make_trainer(tmp_path, "tlmre", rows_per_forward=3)
    batch = first_batch(trainer)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    keep = batch["completion_ids"].shape[1]
    live = batch["completion_mask"].bool()
    results = []
    for rows in (0, 3):
        trainer.args.rows_per_forward = rows
        trainer.model.zero_grad()
        logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, keep, compute_entropy=True
        )
        logps[live].sum().backward()
        gradient = trainer.model.model.layers[0].mlp.up_proj.weight.grad.clone()
        results.append((logps[live], entropies[live], gradient))
    for plain, trimmed in zip(*results, strict=True):
        torch.testing.assert_close(plain, trimmed, rtol=1e-4, atol=1e-5)


def test_margins():
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0, 0]])
    assert _margins(mask, 4) == (1, 2)
    assert _margins(torch.ones_like(mask), 4) == (0, 0)


@pytest.mark.pocket
def test_scoring_in_passing_equals_scoring_alone(tmp_path):
    """Where TRL computes old log-probabilities (with vLLM), the same forward pass scores."""
    alone = make_trainer(tmp_path / "a")
    expected = first_batch(alone)
    rollouts = {
        "prompt_ids": [
            ids[m.bool()].tolist()
            for ids, m in zip(expected["prompt_ids"], expected["prompt_mask"], strict=True)
        ],
        "completion_ids": [
            ids[m.bool()].tolist()
            for ids, m in zip(expected["completion_ids"], expected["completion_mask"], strict=True)
        ],
    }
    rollouts["logprobs"] = [[0.0] * len(ids) for ids in rollouts["completion_ids"]]
    passing = make_trainer(
        tmp_path / "b", options={"rollout_func": lambda prompts, trainer: rollouts}
    )
    passing.use_vllm = True  # as with vLLM, whose log-probabilities TRL corrects for
    passing._last_loaded_step = 0
    assert passing.vllm_importance_sampling_correction
    calls = []
    stock = passing.credit.scorer.__call__
    passing.credit.scorer = replace(passing.credit.scorer)
    type(passing.credit.scorer).__call__, kept = (
        lambda self, *a: calls.append(1) or stock(*a),
        AttentionScorer.__call__,
    )
    try:
        found = first_batch(passing)
    finally:
        AttentionScorer.__call__ = kept
    assert not calls and "old_per_token_logps" in found
    torch.testing.assert_close(found["advantages"], expected["advantages"], rtol=1e-4, atol=1e-6)


@pytest.mark.pocket
def test_metrics_are_those_of_the_batch(tmp_path):
    """Every figure of a step, counted again from the batch itself."""
    trainer = make_trainer(tmp_path, "attnpo", difficulty_alpha=0.0)
    batch = first_batch(trainer)
    found = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    live = batch["completion_mask"].bool()
    ids = [row[mask].tolist() for row, mask in zip(batch["completion_ids"], live, strict=True)]
    responses = [trainer.credit.cutter(row) for row in ids]
    tokens = sum(map(len, ids))
    assert found["tokens"] == pytest.approx(tokens / 8)
    counts = [phrase_counts(response.text) for response in responses]
    for kind in ("confused", "forward", "summary"):
        expected = 1000 * sum(count[kind] for count in counts) / tokens
        assert found[f"phrases/{kind}"] == pytest.approx(expected)
    assert found["phrases/confused"] > 10
    # A alone, where a row has a token outside the steps: the last one.
    outcome = batch["advantages"].gather(1, live.sum(dim=1, keepdim=True) - 1)
    gamma = torch.where(outcome == 0, 1.0, batch["advantages"] / outcome)
    assert found["gamma"] == pytest.approx(float(gamma[live].mean()), abs=1e-5)
    below = (gamma < 1 - 1e-6) & live
    assert found["attenuated_tokens"] == pytest.approx(int(below.sum()) / tokens)
    starts = [int(below[row, spans[0]]) for row, r in enumerate(responses) for spans in r.spans]
    assert found["attenuated"] == pytest.approx(sum(starts) / len(starts)) and sum(starts) > 0
    assert found["steps"] == pytest.approx(len(starts) / 8)


# Resuming


def run(out, **settings):
    return config(out, save_strategy="steps", save_steps=2, save_total_limit=5, **settings)


def losses(folder):
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").open()][1:]
    return {line["step"]: (line["loss"], line["tokens"], line["gamma"]) for line in lines}


@pytest.mark.pocket
def test_resumed_run_is_the_uninterrupted_run(tmp_path):
    """Bit for bit, from the middle of the second epoch (6 steps an epoch at 2 prompts a step)."""
    whole = train(run(tmp_path / "whole", max_steps=9, data="pocket:12"))
    train(run(tmp_path / "parts", max_steps=8, data="pocket:12"))
    parts = train(run(tmp_path / "parts", max_steps=9, data="pocket:12"), resume=True)
    assert whole["status"] == parts["status"] == "done"
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    a, b = (load_model(str(tmp_path / name / "model")) for name in ("whole", "parts"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    # Prompts are shuffled anew in each epoch.
    order = [tuple(row) for row in np.array(epoch_orders(tmp_path))]
    assert order[0] != order[1] and sorted(order[0]) == sorted(order[1])


def epoch_orders(tmp_path):
    sampler = make_trainer(tmp_path / "order", "tlmre")._get_train_sampler()
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    return orders


COMMAND = [sys.executable, "-m", "kfh", "train", "--method", "attnpo"]


def settings_of(values):
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def start(out, *more):
    values = {**SMALL, "save_strategy": "steps", "save_steps": 1, "max_steps": 400}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, "--out", str(out), *settings_of(values), *more],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"{path} was never made"
        time.sleep(0.002)


@pytest.mark.pocket
def test_sigkill_while_saving_leaves_the_checkpoint_before(tmp_path):
    process = start(tmp_path)
    wait_for(tmp_path / "checkpoint-1", process)
    wait_for(tmp_path / ".saving", process)  # the next one is being written
    process.kill()
    process.wait()
    whole = sorted(tmp_path.glob("checkpoint-*"))
    assert whole
    for folder in whole:
        names = {path.name for path in folder.iterdir()}
        assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= names
    last = max(int(folder.name.split("-")[1]) for folder in whole)
    resumed = start(tmp_path, "--resume")
    wait_for(tmp_path / f"checkpoint-{last + 1}", resumed)
    resumed.send_signal(signal.SIGINT)  # saves and leaves
    _, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 130, err
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["status"] == "interrupted"
    done = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert (tmp_path / f"checkpoint-{done}").is_dir() and done > last
    steps = [json.loads(x).get("step") for x in (tmp_path / "metrics.jsonl").open()][1:]
    assert steps == list(range(1, done + 1))


@pytest.mark.pocket
def test_policy_is_probed_again(tmp_path):
    """Before training the probe gives what `kfh probe` gives; resuming keeps the start."""
    lines = data_path("pocket", "traces.jsonl").read_text().splitlines()[:41]
    traces = tmp_path / "traces.jsonl"
    traces.write_text("\n".join(lines) + "\n")
    probed = probe(ProbeConfig(POCKET, traces, tmp_path / "probe", permutations=2))
    settings = {"probe_every": 1, "probe_traces": str(traces), "learning_rate": 0.02}
    out = tmp_path / "run"
    train(config(out, save_strategy="steps", save_steps=1, max_steps=1, **settings))
    train(config(out, save_strategy="steps", save_steps=1, max_steps=2, **settings), resume=True)
    found = [json.loads(line) for line in (out / "probe.jsonl").open()][1:]
    assert [line["step"] for line in found] == [0, 1, 2]
    np.testing.assert_allclose(found[0]["all_sra"], probed.table["sra"], atol=1e-6)
    assert found[0]["correlation"] == pytest.approx(1.0)
    assert all(abs(line["correlation"]) < 1 - 1e-6 for line in found[1:])
    pairs = [(head["layer"], head["head"]) for head in found[2]["heads"]]
    assert pairs == HeadSet.load("pocket").pairs
    changed = np.corrcoef(found[2]["all_sra"], found[0]["all_sra"])[0, 1]
    assert found[2]["correlation"] == pytest.approx(changed)


# Bad input


def test_settings_are_checked(tmp_path):
    for settings, message in (
        ({"method": "attnpoo"}, "unknown method"),
        ({"num_iterations": 2}, "num_iterations"),
        ({"importance_sampling_level": "sequence"}, "sequence-level"),
        ({"loss_type": "grpo"}, "mean over tokens"),
        ({"use_liger_kernel": True}, "Liger"),
        ({"mask_truncated_completions": True}, "lengths to 0"),
        ({"top_entropy_quantile": 0.2}, "top_entropy_quantile"),
        ({"method": "dler", "target_length": None}, "target_length"),
        ({"scale_floor": 2.0}, "floor"),
        ({"processes": 2}, "2 processes were asked for, 1 take part"),
        ({"rollouts": "compact", "top_k": 5}, "top_k set"),
        ({"num_generations": 1}, "at least 2 generations"),
    ):
        base = {"output_dir": str(tmp_path), "bf16": False, "num_generations": 2}
        with pytest.raises((ConfigError, ValueError), match=message):
            AttnPOConfig(**{**base, "per_device_train_batch_size": 2, **settings})


def test_recipes(tmp_path):
    """Every shipped recipe is read, and every unknown key is an error."""
    from rl.attnpo.methods import METHODS

    assert set(METHODS) <= set(shipped_recipes())
    for name in shipped_recipes():
        recipe = read_recipe(find_recipe(name))
        made = train_config(tmp_path, recipe)
        if name in METHODS:
            assert trainer_settings(made).method == name
    release = read_recipe(find_recipe("attnpo-ds-qwen-1.5b"))
    batch = release["per_device_train_batch_size"] * release["gradient_accumulation_steps"] * 8
    assert (batch, release["num_generations"]) == (1024, 8)
    bad = tmp_path / "bad.yaml"
    bad.write_text("metod: attnpo\n")
    with pytest.raises(ConfigError, match="unknown setting 'metod'; did you mean method"):
        read_recipe(bad)
    with pytest.raises(ConfigError, match="--set: unknown setting"):
        parse_settings(["lerning_rate=1"])
    with pytest.raises(ConfigError, match="write key=value"):
        parse_settings(["learning_rate"])
    with pytest.raises(ConfigError, match="no recipe"):
        find_recipe("nothing")


def test_head_sets_and_data_are_checked(tmp_path):
    with pytest.raises(ModelError, match="does not fit"):
        make_trainer(tmp_path, heads="deepseek-r1-distill-qwen-1.5b")
    stored = json.loads(data_path("heads", "pocket.json").read_text())
    stored["heads"][0]["head"] = 9
    (tmp_path / "heads.json").write_text(json.dumps(stored))
    with pytest.raises(DataError, match=r"no head 2\.9"):
        make_trainer(tmp_path, heads=tmp_path / "heads.json")
    with pytest.raises(ConfigError, match="needs a head set"):
        make_trainer(tmp_path, heads=None)
    with pytest.raises(ConfigError, match="no room for '</think>'"):
        make_trainer(tmp_path, max_completion_length=2)
    with pytest.raises(DataError, match=r"tried on the response .* ZeroDivisionError|ZeroDivision"):
        make_trainer(tmp_path, reward_funcs=lambda completions, **_: [1 / 0])
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "1 + 1 ?"}\n')
    with pytest.raises(DataError, match="answer"):
        train(config(tmp_path / "x", data=str(questions)))


def test_a_slow_tokenizer_is_refused(tokenizer):
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="without offsets"):
        Cutter(Slow(), (0,), Segmenter("line"))


@pytest.mark.pocket
def test_faults_in_the_first_batch(tmp_path):
    silent = make_trainer(tmp_path / "a", max_completion_length=20)
    with pytest.raises(DataError, match="no response of the first batch holds '</think>'"):
        first_batch(silent)
    graded = make_trainer(
        tmp_path / "b", reward_funcs=lambda completions, **_: [0.5] * len(completions)
    )
    with pytest.raises(DataError, match=r"gave 0\.5"):
        first_batch(graded)
    calls = []

    def fails_later(completions, **_):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("no network")
        return [0.0] * len(completions)

    with pytest.raises(DataError, match=r"raised RuntimeError\('no network'\) at step 1"):
        first_batch(make_trainer(tmp_path / "c", reward_funcs=fails_later))


def test_public_names():
    import rl

    assert all(getattr(rl, name) is not None for name in rl.__all__)
    assert rl.AttnPOTrainer is AttnPOTrainer
    with pytest.raises(AttributeError, match="Nothing"):
        rl.Nothing  # noqa: B018


def test_a_folder_with_another_run_is_not_touched(tmp_path):
    (tmp_path / "run.json").write_text(
        json.dumps({"settings": config(tmp_path, "tlmre").to_json(), "status": "interrupted"})
    )
    with pytest.raises(ConfigError, match="holds a run"):
        train(config(tmp_path, "attnpo"))
    with pytest.raises(ConfigError, match=r"another run \(.*method = 'tlmre', not 'attnpo'"):
        train(config(tmp_path, "attnpo"), resume=True)
