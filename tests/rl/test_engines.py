"""The credit in other engines' loops, against the trainer's; verl's own structures where verl is.

Without verl the batch is of the same shape: ragged tensors, and the arguments of its estimators.
"""

from __future__ import annotations

from itertools import chain, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import tiny
from pocket_runs import made_batch, make_trainer

from probing.attention.passing import PassingSequences, places_of
from probing.errors import ConfigError, DataError, ModelError
from rl.attnpo.signals import StepScorer
from rl.engines.verl import (
    SIZES,
    STEPS,
    PassScorer,
    StepEstimator,
    VerlConfig,
    refused,
    row_credit,
)

pytestmark = pytest.mark.pocket


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A batch of the trainer on TRL, scored in a pass of its own: what it made, and its own ids."""
    trainer = make_trainer(tmp_path_factory.mktemp("run"), rollouts="trl")
    trainer.own_pass = True
    batch = made_batch(trainer)
    ids = [
        [
            row[own].tolist()
            for row, own in zip(batch[f"{n}_ids"], batch[f"{n}_mask"] > 0, strict=True)
        ]
        for n in ("prompt", "completion")
    ]
    outcomes = trainer._passage.outcomes
    assert (
        batch["advantages"][:, 0] != batch["advantages"][:, -1]
    ).any() and outcomes.correct.any()
    return SimpleNamespace(
        trainer=trainer,
        prompts=ids[0],
        sampled=ids[1],
        mask=batch["completion_mask"],
        verdicts=outcomes.correct.float(),
        expected=batch["advantages"],
    )


def packed(model, rows):
    """verl's forward without padding: one row, positions that begin again."""
    ids = torch.tensor([[*chain(*rows)]])
    positions = torch.tensor([[*chain(*(range(len(row)) for row in rows))]])
    return model(input_ids=ids, attention_mask=None, position_ids=positions, use_cache=False).logits


def padded(model, rows, left=False):
    """Rows padded to one length, with a mask."""
    width = max(map(len, rows))
    ids, mask = torch.zeros((2, len(rows), width), dtype=torch.long)
    for place, row in enumerate(rows):
        own = slice(width - len(row), width) if left else slice(0, len(row))
        ids[place, own], mask[place, own] = torch.tensor(row), 1
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def scored(batch, run, chunks=((5, 2, 0), (7, 1), (3, 4, 6))):
    """Steps and sizes of the batch, from passes over its rows in some order."""
    trainer = batch.trainer
    scorer = PassScorer(trainer.model, trainer.head_set, trainer.cutter)
    rows = [[*q, *o] for q, o in zip(batch.prompts, batch.sampled, strict=True)]

    @torch.no_grad()
    def passes():
        return [run(trainer.model, [rows[place] for place in chunk]) for chunk in chunks]

    return (*scorer(batch.prompts, batch.sampled, passes), passes())


@pytest.mark.parametrize("run", [packed, padded, lambda *a: padded(*a, left=True)])
def test_passes_of_others_score_as_a_pass_of_our_own(sampled, run):
    outputs, fields, plain = scored(sampled, run)
    assert all(torch.equal(a, b) for a, b in zip(outputs, plain, strict=True))
    responses = [sampled.trainer.cutter(ids) for ids in sampled.sampled]
    own = StepScorer(sampled.trainer.model, sampled.trainer.heads).scores(
        sampled.prompts, responses
    )
    seen = 0
    for steps, scores, each in zip(fields[STEPS].unbind(), own, responses, strict=True):
        if each.complete and len(each.spans) >= 2:
            assert np.array_equal(steps[:, :2].numpy(), each.spans)
            np.testing.assert_allclose(steps[:, 2].numpy(), scores, rtol=1e-4, atol=1e-7)
            seen += 1
        else:
            assert steps[:, 2].isnan().all()
    assert seen > 3


def verl_arguments(batch):
    """Rewards on the last token, mask and groups as verl gives them to an estimator."""
    rewards = torch.zeros(batch.mask.shape)
    rewards[torch.arange(8), batch.mask.sum(1) - 1] = batch.verdicts
    index = np.array([f"{place // 4}-uid" for place in range(8)], dtype=object)
    return {
        "token_level_rewards": rewards,
        "response_mask": batch.mask,
        "index": index,
        "config": None,
    }


def settings(batch):
    return VerlConfig("pocket", rescaling=batch.trainer.args.rescaling)


def test_verl_advantages_are_those_of_the_trainer(sampled):
    """To 1e-6; from ragged tensors and arguments as verl's are."""
    _, fields, _ = scored(sampled, packed)
    estimator = StepEstimator()
    with estimator.given(fields[STEPS], fields[SIZES], settings(sampled), 1):
        advantages, returns = estimator(**verl_arguments(sampled))
    live = sampled.mask.bool()
    torch.testing.assert_close(advantages[live], sampled.expected[live], rtol=0, atol=1e-6)
    assert (advantages[~live] == 0).all() and torch.equal(advantages, returns)
    figures = estimator.figures()
    assert figures.pop("attnpo/attenuated") + figures.pop("attnpo/spared") > 0
    assert sum(figures.values()) == 8  # every response has its reason
    assert figures["attnpo/by_step"] > 0


def test_rows_in_another_order_and_rows_that_fill_up(sampled):
    """Groups go by their index; verl's rows without a token get nothing, and change nothing."""
    _, fields, _ = scored(sampled, packed)
    given = {**verl_arguments(sampled), "steps": padded_steps(fields), "sizes": fields[SIZES]}
    order = torch.tensor([6, 1, 3, 0, 7, 5, 2, 4])
    mixed = {name: each[order] for name, each in given.items() if isinstance(each, torch.Tensor)}
    empty = {name: torch.cat([each, torch.zeros_like(each[:1])]) for name, each in mixed.items()}
    empty["sizes"][-1] = torch.tensor([0, 127, 1, 0])
    index = np.array([*given["index"][order.numpy()], "pad"], dtype=object)
    rewards, mask = empty["token_level_rewards"], empty["response_mask"]
    credited = row_credit(
        rewards, mask, index, empty["steps"], empty["sizes"], settings(sampled), 1
    )
    live = sampled.mask.bool()[order]
    ours, expected = credited.advantages[:-1], sampled.expected[order]
    torch.testing.assert_close(ours[live], expected[live], rtol=0, atol=1e-6)
    assert (credited.advantages[-1] == 0).all()
    with pytest.raises(DataError, match="must give 1 for a correct response"):
        row_credit(2 * rewards, mask, index, empty["steps"], empty["sizes"], settings(sampled), 1)
    mask[0, 1] = 0
    with pytest.raises(DataError, match="one turn"):
        row_credit(rewards, mask, index, empty["steps"], empty["sizes"], settings(sampled), 1)


def padded_steps(fields):
    return torch.nested.to_padded_tensor(fields[STEPS], 0)


def test_in_verls_own_worker_estimator_and_batch(sampled):
    """Where verl is installed: its packing, its worker's call, its registry, its DataProto."""
    pytest.importorskip("verl")
    plugin = pytest.importorskip("rl.engines.verl_plugin")
    from tensordict import TensorDict
    from verl.protocol import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    def ragged(rows):
        rows = [torch.tensor(row) for row in rows]
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    whole = [[*q, *o] for q, o in zip(sampled.prompts, sampled.sampled, strict=True)]
    fields = {
        "prompts": sampled.prompts,
        "responses": sampled.sampled,
        "input_ids": whole,
        "position_ids": [range(len(row)) for row in whole],
    }
    data = TensorDict({name: ragged(rows) for name, rows in fields.items()}, batch_size=8)
    tu.assign_non_tensor(data, temperature=1.0)
    trainer = sampled.trainer
    engine = SimpleNamespace(
        pad_to_length=False, use_ulysses_sp=False, _get_packed_pad_size=lambda length: 0
    )

    @torch.no_grad()
    def infer_batch(batch):
        inputs, _ = FSDPEngineWithLMHead.prepare_model_inputs(engine, batch)
        logits = trainer.model(**inputs, use_cache=False).logits[0].sum(-1)
        logits = torch.nested.nested_tensor_from_jagged(logits, batch["input_ids"].offsets())
        return tu.get_tensordict({"log_probs": logits}, {"metrics": {}})

    worker = object.__new__(plugin.AttnPOWorker)
    worker.actor = SimpleNamespace(infer_batch=infer_batch)
    worker.scorer = PassScorer(trainer.model, trainer.head_set, trainer.cutter)
    worker.enable_routing_replay, worker.profiler = False, None
    output = worker.compute_log_prob(data)
    assert output.batch_size == torch.Size([8]) and "log_probs" in output
    given = verl_arguments(sampled)
    names = ("token_level_rewards", "response_mask")
    batch = DataProto.from_dict(
        {name: given[name] for name in names}, non_tensors={"uid": given["index"]}
    )
    call = plugin.ESTIMATOR.given(output[STEPS], output[SIZES], settings(sampled), 1)
    with call:
        done = compute_advantage_for_multi_trajectories(batch, [], "attnpo", config=None)
    live = sampled.mask.bool()
    ours = done.batch["advantages"][live]
    torch.testing.assert_close(ours, sampled.expected[live], rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match="trainer_mode=attnpo"):
        compute_advantage_for_multi_trajectories(batch, [], "attnpo", config=None)


# Passes that are not as they should be


def taken(model, rows, run, heads=((1, 0), (0, 1))):
    """Masses of rows whose second half answers, from one pass."""
    passing = PassingSequences(model, heads)
    keys = [PassingSequences.key(row) for row in rows]
    answers = {k: np.arange(len(row)) >= len(row) // 2 for k, row in zip(keys, rows, strict=True)}
    with passing.over(answers) as masses, torch.no_grad():
        run(model, rows)
    return passing, [masses[key] for key in keys]


ROWS = [list(range(3, 15)), list(range(20, 41)), [5, 4, 3, 2, 1, 9, 8, 7]]


@pytest.mark.parametrize(
    ("family", "kernel"),
    [("llama", "sdpa"), ("llama", "eager"), ("mistral-window", "sdpa"), ("gemma2", "eager")],
)
def test_masses_of_packed_rows_are_those_of_single_ones(family, kernel):
    """Of other families as well: windows and soft-caps are cut with the sequence."""
    model = tiny(family, kernel)
    passing, together = taken(model, ROWS, packed)
    assert passing.proven == {False, True} and not passing._busy
    for row, mass in zip(ROWS, together, strict=True):
        _, (alone,) = taken(model, [row], padded)
        np.testing.assert_allclose(mass, alone, rtol=2e-4, atol=1e-6)
        assert mass.sum(1) == pytest.approx(len(row) - len(row) // 2, rel=1e-4)


def test_under_autocast_rows_are_of_what_the_kernel_is_given():
    """As verl passes: parameters in float32, queries and keys in bfloat16."""
    model = tiny("llama")
    _, expected = taken(model, ROWS, packed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        passing, masses = taken(model, ROWS, packed)
    assert passing.proven == {False, True}
    for mass, exact in zip(masses, expected, strict=True):
        assert 0 < np.abs(mass - exact).max() < 0.05 < exact.max()


def test_rows_that_are_not_the_kernels_are_refused(monkeypatch):
    """A loop that packs without saying so: tokens look across, and the proof tells it."""
    model = tiny("llama")

    def unsaid(model, rows):
        ids, ones = torch.tensor([[*chain(*rows)]]), torch.ones((1, sum(map(len, rows))))
        return model(input_ids=ids, attention_mask=ones.long(), use_cache=False)

    def told(ids, mask, positions):
        ends = np.cumsum([0, *map(len, ROWS)]).tolist()
        return [(0, slice(*pair)) for pair in pairwise(ends)]

    monkeypatch.setattr("probing.attention.passing.places_of", told)
    with pytest.raises(ModelError, match="is not the one that the model used"):
        taken(model, ROWS, unsaid)


def test_positions_of_images_are_not_read():
    ids = torch.zeros((1, 4), dtype=torch.long)
    with pytest.raises(ModelError, match="images"):
        places_of(ids, None, torch.zeros((4, 1, 4)))


def test_a_response_that_no_pass_came_over_is_told(sampled):
    with pytest.raises(DataError, match=r"response \d of the worker came by in no pass"):
        scored(sampled, packed, chunks=((0, 1),))


# What is refused


def test_settings_are_checked():
    given = {"heads": "pocket", "rescaling": {"delay": 0}, "cut": {"segmenter": "line"}}
    assert VerlConfig.of(given).rescaling.delay == 0
    for wrong, message in (
        ({"head": "pocket"}, "did you mean heads"),
        ({}, "heads is missing"),
        ({"heads": "pocket", "rescaling": {"delai": 0}}, "rescaling: .*did you mean delay"),
        ({"heads": "pocket", "length_penalty": "laser"}, "target_length"),
    ):
        with pytest.raises(ConfigError, match=message):
            VerlConfig.of(wrong)


def test_what_does_not_go_with_credit_by_step_is_refused_at_once():
    plain = {"algorithm": {"adv_estimator": "attnpo"}, "actor_rollout_ref": {"actor": {}}}
    assert refused(plain) == []
    actor = {"strategy": "megatron", "ulysses_sequence_parallel_size": 2}
    wrong = {
        "algorithm": {"adv_estimator": "grpo", "rollout_correction": {"bypass_mode": True}},
        "actor_rollout_ref": {"actor": actor},
    }
    text = "; ".join(refused(wrong))
    for part in ("adv_estimator", "fsdp2", "a part of the tokens", "leaves out the pass"):
        assert part in text
    assert len(refused(wrong)) == 4


def test_the_estimator_alone_says_which_trainer_it_needs(sampled):
    with pytest.raises(ConfigError, match="trainer_mode=attnpo"):
        StepEstimator()(**verl_arguments(sampled))
