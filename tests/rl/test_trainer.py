"""The trainer against theory: plain GRPO, real gradients, scoring in passing, figures, faults."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from pocket_runs import POCKET, config, first_batch, make_trainer, pocket_model, step_lines, weights
from trl import GRPOConfig, GRPOTrainer

from probing.errors import ConfigError, DataError, ModelError
from probing.files.headers import data_path, problem_hash
from probing.headset import HeadSet, HeadSetWarning
from probing.models.load import load_tokenizer
from probing.traces.phrases import phrase_counts
from rl.attnpo.methods import METHODS, Method
from rl.attnpo.passes import in_trimmed_rows, margins
from rl.attnpo.rewards import PENALTIES
from rl.attnpo.signals import SIGNALS, AttentionSignal
from rl.attnpo.trainer import AttnPOTrainer
from rl.tasks.questions import load_questions
from rl.training.job import _chosen_on, train

pytestmark = pytest.mark.pocket


def test_scale_one_is_plain_grpo(tmp_path):
    """γ forced to 1, group-normalised: TRL's own GRPOTrainer gives the same weights."""
    ours = make_trainer(
        tmp_path / "a",
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
        model=pocket_model(),
        reward_funcs=complete,
        args=plain_args,
        train_dataset=ours.train_dataset,
        processing_class=ours._tokenizer,
    )
    plain._get_train_sampler = ours._get_train_sampler  # the same order of prompts
    for trainer in (ours, plain):
        torch.manual_seed(0)
        trainer.train()
    before = weights(pocket_model())
    moved = 0.0
    for name, value in weights(plain.model).items():
        assert torch.equal(value, weights(ours.model)[name]), name
        moved += float((value - before[name]).abs().sum())
    assert moved > 0


@pytest.mark.slow
def test_scale_one_is_plain_rloo(tmp_path):
    """Advantages by token that are all A, and one A a response: the same weights to the bit."""
    ones = {"scale_floor": 1.0, "negative_attenuation": False, "length_penalty": "none"}
    by_token = make_trainer(tmp_path / "a", "attnpo", **ones)
    by_response = make_trainer(tmp_path / "b", "rloo")
    shapes = []
    for trainer in (by_token, by_response):
        stock = trainer._compute_loss

        def watched(model, inputs, stock=stock):
            loss = stock(model, inputs)
            shapes.append(inputs["advantages"].dim())
            return loss

        trainer._compute_loss = watched
        torch.manual_seed(0)
        trainer.train()
    assert shapes == [2, 2, 1, 1]
    ours, expected = weights(by_token.model), weights(by_response.model)
    assert all(torch.equal(ours[name], value) for name, value in expected.items())


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
    assert margins(mask, 4) == (1, 2)
    assert margins(torch.ones_like(mask), 4) == (0, 0)
    assert margins(torch.zeros_like(mask), 4) == (0, 0)


def test_trimmed_rows_come_back_in_their_places():
    """Each row is given once, with its own columns; what a row gives stays its own."""
    ids = torch.arange(35).view(5, 7)
    mask = torch.tensor([[0, 1, 1, 1, 1, n > 1, n > 3] for n in (4, 1, 3, 0, 2)])
    given = []

    def forward(rows, ids, mask, keep):
        given.append((rows, tuple(ids.shape)))
        values = ids[:, ids.shape[1] - keep :].float()
        return values, -values, torch.tensor(float(len(rows)))

    logps, negative, aux = in_trimmed_rows(forward, ids, mask, 4, 2)
    assert given == [([0, 2], (2, 6)), ([4, 1], (2, 5)), ([3], (1, 4))]
    live = mask[:, -4:].bool()
    assert torch.equal(logps[live], ids[:, -4:][live].float()) and torch.equal(logps, -negative)
    assert float(aux) == pytest.approx(5 / 3)
    assert (logps[3, 2:] == 0).all() and logps[1, 3] == 0  # columns that were not computed


def test_scoring_in_passing_equals_scoring_alone(tmp_path, monkeypatch):
    """Where TRL computes old log-probabilities (with vLLM), the same forward pass scores."""
    expected = first_batch(make_trainer(tmp_path / "a"))
    sampled = {}
    for part in ("prompt", "completion"):
        pairs = zip(expected[f"{part}_ids"], expected[f"{part}_mask"].bool(), strict=True)
        sampled[f"{part}_ids"] = [ids[mask].tolist() for ids, mask in pairs]
    sampled["logprobs"] = [[0.0] * len(ids) for ids in sampled["completion_ids"]]
    options = {"rollout_func": lambda prompts, trainer: sampled}
    passing = make_trainer(tmp_path / "b", options=options)
    passing.use_vllm = True  # as with vLLM, whose log-probabilities TRL corrects for
    passing._last_loaded_step = 0
    assert passing.vllm_importance_sampling_correction

    def alone(self, batch):
        raise AssertionError("the steps were scored in a pass of their own")

    monkeypatch.setattr(AttentionSignal, "__call__", alone)
    batch = first_batch(passing)
    assert "old_per_token_logps" in batch
    torch.testing.assert_close(batch["advantages"], expected["advantages"], rtol=1e-4, atol=1e-6)


def test_metrics_are_those_of_the_batch(tmp_path):
    """Every figure of a step, counted again from the batch itself."""
    trainer = make_trainer(tmp_path, "attnpo", difficulty_alpha=0.0)
    batch = first_batch(trainer)
    figures = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    live = batch["completion_mask"].bool()
    ids = [row[mask].tolist() for row, mask in zip(batch["completion_ids"], live, strict=True)]
    responses = [trainer.cutter(row) for row in ids]
    tokens = sum(map(len, ids))
    assert figures["tokens"] == pytest.approx(tokens / 8)
    counts = [phrase_counts(response.text) for response in responses]
    for kind in ("confused", "forward", "summary"):
        expected = 1000 * sum(count[kind] for count in counts) / tokens
        assert figures[f"phrases/{kind}"] == pytest.approx(expected)
    assert figures["phrases/confused"] > 10
    # A alone, where a row has a token outside the steps: the last one.
    outcome = batch["advantages"].gather(1, live.sum(dim=1, keepdim=True) - 1)
    gamma = torch.where(outcome == 0, 1.0, batch["advantages"] / outcome)
    assert figures["gamma"] == pytest.approx(float(gamma[live].mean()), abs=1e-5)
    below = (gamma < 1 - 1e-6) & live
    assert figures["attenuated_tokens"] == pytest.approx(int(below.sum()) / tokens)
    starts = [int(below[row, spans[0]]) for row, r in enumerate(responses) for spans in r.spans]
    assert figures["attenuated"] == pytest.approx(sum(starts) / len(starts)) and sum(starts) > 0
    assert figures["steps"] == pytest.approx(len(starts) / 8)


# Parts from outside the package


def test_own_signal_penalty_and_method(tmp_path, monkeypatch):
    """Each is entered by its name, and two steps are trained with it."""
    batches, groups = [], []

    def longest_first(batch):
        """Above every baseline for the longest step of a response, 0 for the others."""
        batches.append(batch)
        sizes = [spans[:, 1] - spans[:, 0] for spans in (r.spans for r in batch.responses)]
        return [(size == size.max(initial=0)).astype(float) for size in sizes]

    def halved(correct, lengths, coef, target):
        groups.append((tuple(correct.shape), coef, target))
        return correct * (0.5 + coef * (lengths < lengths.float().mean()))

    monkeypatch.setitem(SIGNALS, "longest", longest_first)
    monkeypatch.setitem(PENALTIES, "halved", halved)
    monkeypatch.setitem(METHODS, "mine", Method("my own", "halved", signal="longest"))
    settings = {"method": "mine", "length_coef": 0.25, "target_length": 100}
    result = train(config(tmp_path, **settings))
    assert (result["status"], result["method"], result["signal"]) == ("done", "mine", "longest")
    assert groups == [((2, 4), 0.25, 100)] * 2
    hashes = [result["own_parts"][name]["hash"] for name in ("longest", "halved")]
    assert len(set(hashes)) == 2 and all(each.startswith("sha256:") for each in hashes)
    assert [len(batch.responses) for batch in batches] == [8, 8]
    lines = step_lines(tmp_path)
    assert all(0 < line["attenuated"] < 1 and line["gamma"] < 1 for line in lines)
    for batch, line in zip(batches, lines, strict=True):
        rewards = torch.tensor([each.length for each in batch.responses])
        assert line["tokens"] == pytest.approx(float(rewards.float().mean()))


def test_parts_that_give_too_little_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(SIGNALS, "short", lambda batch: [r.spans[:1, 0] for r in batch.responses])
    with pytest.raises(DataError, match=r"the signal gave .* scores for responses of"):
        first_batch(make_trainer(tmp_path / "a", signal="short"))
    monkeypatch.setitem(PENALTIES, "flat", lambda correct, *_: correct.float().flatten())
    with pytest.raises(DataError, match=r"'flat' gave rewards of shape \(8,\)"):
        first_batch(make_trainer(tmp_path / "b", length_penalty="flat"))


def test_caveats_of_the_head_set_are_told_and_kept(tmp_path):
    """A set that is worse than chance where it was not chosen says so, in run.json too."""
    weak = replace(HeadSet.load("pocket"), caveats=("worse than recency",))
    weak.save(tmp_path / "weak.json")
    short, told = {"max_steps": 1, "heads": str(tmp_path / "weak.json")}, []
    with pytest.warns(HeadSetWarning, match="worse than recency"):
        result = train(config(tmp_path / "a", **short), tell=told.append)
    assert told == result["caveats"] == ["worse than recency"]
    stored = json.loads((tmp_path / "a" / "run.json").read_text())
    assert stored["caveats"] == ["worse than recency"] and stored["own_parts"] == {}
    # Heads are chosen on traces of problems; the record says how many of these are trained on.
    questions = load_questions(stored["settings"]["data"])
    assert stored["heads_chosen_on"] == f"0 of the {len(questions)} questions"
    chosen = weak.chosen_on or frozenset()
    seen = replace(questions, questions=(questions.questions[0],) * 2)
    asked = problem_hash(questions.questions[0].question)
    mine = replace(weak, selection={"problems_chosen_on": [asked]})
    assert _chosen_on(mine, seen) == "2 of the 2 questions"
    assert _chosen_on(replace(weak, selection=None), seen).startswith("unknown")
    # Nor are the problems that figures are measured on those of the shipped heads.
    held_out = load_questions("pocket-held-out:2000").questions
    assert not chosen & {problem_hash(question.question) for question in held_out}


# Bad input


def test_head_sets_and_data_are_checked(tmp_path):
    with pytest.raises(ModelError, match="does not fit"):
        make_trainer(tmp_path, heads="deepseek-r1-distill-qwen-1.5b")
    stored = json.loads(data_path("heads", "pocket.json").read_text())
    stored["heads"][0]["head"] = 9
    (tmp_path / "heads.json").write_text(json.dumps(stored))
    with pytest.raises(DataError, match=r"no head 2\.9"):
        make_trainer(tmp_path, heads=str(tmp_path / "heads.json"))
    with pytest.raises(ConfigError, match="needs a head set"):
        make_trainer(tmp_path, options={"heads": None})
    with pytest.raises(ConfigError, match="no room for '</think>'"):
        make_trainer(tmp_path, max_completion_length=2)
    with pytest.raises(DataError, match=r"tried on the response .* ZeroDivisionError|ZeroDivision"):
        make_trainer(tmp_path, options={"reward_funcs": lambda completions, **_: [1 / 0]})
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "1 + 1 ?"}\n')
    with pytest.raises(DataError, match="answer"):
        train(config(tmp_path / "x", data=str(questions)))


def test_faults_in_the_first_batch(tmp_path):
    silent = make_trainer(tmp_path / "a", max_completion_length=20)
    with pytest.raises(DataError, match="no response of the first batch holds '</think>'"):
        first_batch(silent)
    half = {"reward_funcs": lambda completions, **_: [0.5] * len(completions)}
    with pytest.raises(DataError, match=r"gave 0\.5"):
        make_trainer(tmp_path / "b", options=half)  # at once
    calls = []

    def fails_later(completions, **_):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("no network")
        return [0.0] * len(completions)

    with pytest.raises(DataError, match=r"raised RuntimeError\('no network'\) at step 1"):
        first_batch(make_trainer(tmp_path / "c", options={"reward_funcs": fails_later}))


def test_public_names():
    import rl

    assert all(getattr(rl, name) is not None for name in rl.__all__)
    assert rl.AttnPOTrainer is AttnPOTrainer
    with pytest.raises(AttributeError, match="Nothing"):
        rl.Nothing  # noqa: B018


def test_a_rope_that_follows_the_length_is_refused_at_the_start(tmp_path):
    """In a wider pass a response's log-probability would depend on the longest of its batch."""
    model = pocket_model()
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model.config.rope_parameters, model.config.max_position_embeddings = rope, 160
    model.save_pretrained(tmp_path / "model")
    load_tokenizer(POCKET).save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"RoPE changes beyond 160.*max_completion_length"):
        make_trainer(tmp_path / "a", model=str(tmp_path / "model"), max_completion_length=160)
    trainer = make_trainer(tmp_path / "b", model=str(tmp_path / "model"), max_completion_length=40)
    ids = torch.ones((1, 161), dtype=torch.long)
    with pytest.raises(ConfigError, match="up to 161 tokens wide"):
        trainer._get_per_token_logps_and_entropies(trainer.model, ids, ids, 40)
