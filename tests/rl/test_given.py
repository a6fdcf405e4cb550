"""What the trainer is given beside its settings: chats, rewards, a set to evaluate on, no work."""

from __future__ import annotations

import pytest
import torch
from pocket_runs import POCKET, config, first_batch, make_trainer, pocket_model

from probing.errors import ConfigError, DataError, ModelError
from probing.models.load import load_model, load_tokenizer
from rl.attnpo.trainer import AttnPOTrainer
from rl.sampling.rollouts import RoundedRollouts, compact_rollouts
from rl.training.job import train, trainer_settings

pytestmark = pytest.mark.pocket

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TOKENIZER = load_tokenizer(POCKET)


def sampled(prompts, trainer=None):
    """Rollouts without a model: of four responses the first and the last end."""
    whole = [*TOKENIZER("So 4.\n</think> \\boxed{4}")["input_ids"], TOKENIZER.eos_token_id]
    ids = [TOKENIZER(prompt)["input_ids"] for prompt in prompts]
    new = [whole, whole[:-1], whole[:3], whole] * (len(ids) // 4)
    return {"prompt_ids": ids, "completion_ids": new, "logprobs": None}


def test_a_chat_is_trained_as_its_text_is(tmp_path):
    """The same prompts as texts and as messages; `</think>` is a special token for the second."""
    plain = make_trainer(tmp_path / "plain", "tlmre")
    tokenizer, seen = load_tokenizer(POCKET), []
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})

    def as_in_trl(completions, question_index, **_):
        texts = [completion[0]["content"] for completion in completions]
        seen.append(texts)
        return plain.reward_funcs[0](completions=texts, question_index=question_index)

    chat = AttnPOTrainer(
        model=pocket_model(),
        reward_funcs=as_in_trl,
        args=trainer_settings(config(tmp_path / "chat", "tlmre")),
        train_dataset=plain.train_dataset.map(
            lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]}
        ),
        processing_class=tokenizer,
    )
    batches = [first_batch(trainer) for trainer in (plain, chat)]
    for name in ("prompt_ids", "completion_ids", "advantages"):
        assert torch.equal(batches[0][name], batches[1][name]), name
    accuracy = [trainer._metrics["train"]["accuracy"][-1] for trainer in (plain, chat)]
    assert accuracy[0] == accuracy[1] > 0 and chat.args.rollouts == "compact"
    assert len(seen[0]) == 1 and "</think>" in seen[0][0]  # the trial
    assert len(seen[1]) == 8 and any("</think>" in text for text in seen[1])
    picture = {"role": "user", "content": [{"type": "image", "image": "a.png"}]}
    with pytest.raises(ConfigError, match="messages with images"):
        compact_rollouts([[picture]], chat)


def test_a_message_that_the_tokenizer_parsed_stays(tmp_path):
    trainer = make_trainer(tmp_path, "tlmre")
    response = trainer.cutter(trainer._tokenizer("So 4.</think> 4")["input_ids"])
    message = {"role": "assistant", "reasoning_content": "So 4.", "content": " 4"}
    given = []
    trainer.reward_funcs = [lambda completions, **_: given.append(completions) or [1.0]]
    trainer._tokenizer.response_schema = {"type": "object"}
    trainer.model.eval()
    trainer.num_generations_eval = 1
    row = {"prompt": "Q", "question_index": 0}
    trainer._calculate_rewards([row], ["Q"], [[message]], [response.ids.tolist()])
    assert given == [[[message]]]


def test_the_trial_of_rewards_leaves_nothing_behind(tmp_path):
    """What a reward function logs is of the batch alone."""
    texts = []

    def logs(completions, log_metric, log_extra, **_):
        texts.append(completions)
        log_metric("responses", len(completions))
        log_extra("text", completions)
        return [0.0] * len(completions)

    options = {"reward_funcs": logs, "rollout_func": sampled}
    trainer = make_trainer(tmp_path, "tlmre", options=options)
    first_batch(trainer)
    assert [len(each) for each in texts] == [1, 8]
    assert trainer._metrics["train"]["responses"] == [8]
    assert [*trainer._logs["extra"]["text"]] == texts[1]


def test_evaluation_counts_as_training_does(tmp_path):
    """Two of four responses end; a verifier that calls all right does not change that."""

    def right(completions, **_):
        return [1.0] * len(completions)

    data = make_trainer(tmp_path / "a", "tlmre").train_dataset.select(range(2))
    options = {"rollout_func": sampled, "reward_funcs": right, "eval_dataset": data}
    trainer = make_trainer(tmp_path / "b", "tlmre", options=options)
    first_batch(trainer)
    figures = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    measured = trainer.evaluate()
    assert measured["eval_accuracy"] == figures["accuracy"] == 0.5
    assert measured["eval_rewards/right/mean"] == measured["eval_reward"] == 0.5
    lengths = [len(ids) for ids in sampled(["Q"] * 4)["completion_ids"]]
    assert measured["eval_tokens"] == figures["tokens"] == sum(lengths) / 4
    assert measured["eval_tokens_correct"] == figures["tokens_correct"] == lengths[0]


def test_a_run_that_would_train_nothing_is_refused(tmp_path):
    frozen = pocket_model().requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter of the model requires a gradient"):
        make_trainer(tmp_path / "a", options={"model": frozen})
    with pytest.raises(DataError, match=r"has 1 prompts, a step takes 2 \(8 responses, 4 to a"):
        train(config(tmp_path / "b", data="pocket:1"))
    assert not (tmp_path / "b" / "run.json").exists()


@pytest.mark.parametrize("lora", [0, 2])
def test_rounded_rollouts_are_those_of_the_policy_loaded_in_that_precision(tmp_path, lora):
    """At the first step, and when the policy has moved; what they differ by is in the metrics."""
    if lora:
        pytest.importorskip("peft")
    settings = {"bf16": True, "max_completion_length": 24, "lora_r": lora}
    trainer = make_trainer(tmp_path, "tlmre", **settings)
    rounded, prompts = trainer.rollout_func, trainer.train_dataset["prompt"][:4]
    trainer.model.train()
    assert isinstance(rounded, RoundedRollouts)

    def drawn(roll, *given):
        torch.manual_seed(1)
        return roll(prompts, trainer, *given)["completion_ids"]

    loaded = load_model(POCKET, device="cpu", dtype="bfloat16")
    first = drawn(rounded)
    assert first == drawn(compact_rollouts, loaded)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.2 * torch.randn_like(parameter))
    assert drawn(rounded) != first
    pairs = zip(rounded.copy.parameters(), trainer.model.parameters(), strict=True)
    assert all(torch.equal(mine, own.bfloat16()) for mine, own in pairs)
    gaps = trainer._metrics["train"]["sampling_gap"]
    assert len(gaps) == 2 and 0 < gaps[0] < 0.1
