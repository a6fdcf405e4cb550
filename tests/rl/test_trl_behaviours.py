"""Every behaviour of TRL's GRPOTrainer: the same in ours step for step, or refused for its reason.

A row a behaviour. `AttnPOTrainer` with `method="grpo"`, which scores no step, is held against TRL's
own trainer: every figure that TRL logs, and every weight, after two steps from one seed. Methods
that score steps are held against it with γ = 1, and by what a scale does to a token's gradient.
`python tests/rl/test_trl_behaviours.py` prints the table of docs/trl.md.
"""

from __future__ import annotations

import dataclasses
import gc
import re
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from families import tiny
from pocket_runs import first_batch, made_batch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from probing.errors import ConfigError, DataError
from rl.attnpo.config import AttnPOConfig
from rl.attnpo.methods import PAPERS
from rl.attnpo.trainer import AttnPOTrainer
from rl.training.recipe import find_recipe, read_recipe

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs/trl.md"
Settings = dict[str, Any]

COMMON: Settings = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 10,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "shuffle_dataset": False,  # ours shuffles by epoch
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}
# Of ours alone: sampled and passed over as TRL does it; cut so that a random model reasons.
OURS: Settings = {"rollouts": "trl", "rows_per_forward": 0, "think_end": "e", "segmenter": "line"}
# Steps are scored, by every head, and no scale is other than 1.
SCALED_BY_ONE: Settings = {
    "method": "all-heads",
    "advantage": "grpo",
    "length_penalty": "none",
    "scale_floor": 1.0,
    "negative_attenuation": False,
    "schedule_steps": 0,
}
TIMES = ("time", "runtime", "per_second")
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if shout %}!{% endif %}"


# What a trainer is given


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A token a character; a random model writes each of them, and the end, every few tokens."""
    words = ["</s>", *string.ascii_lowercase[:10], " ", "?", "!", "\n"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", pad_token="</s>", padding_side="left"
    )
    made.chat_template = CHAT
    return made


@pytest.fixture(scope="module", autouse=True)
def searched() -> Iterator[None]:
    """Every run collects garbage: what the imports made is not searched each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model, its tokenizer, and a reward model beside it."""
    path = tmp_path_factory.mktemp("model")
    size = {"vocab_size": len(tokenizer()), "pad_token_id": 0, "eos_token_id": 0}
    tiny("llama", num_hidden_layers=2, bos_token_id=None, **size).save_pretrained(path)
    tokenizer().save_pretrained(path)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, **size,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(path / "judge")
    tokenizer().save_pretrained(path / "judge")
    return path


def prompts(kind: str = "text") -> Any:
    """Eight prompts with a column beside them."""
    texts = [f"ab{letter}?" for letter in "cdfghija"]
    rows = {"prompt": texts, "wanted": [*"abcabcab"]}
    if kind == "chat":
        rows["prompt"] = [[{"role": "user", "content": text}] for text in texts]
    if kind == "stream":
        return Dataset.from_dict(rows).to_iterable_dataset()
    return Dataset.from_dict(rows)


def text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def correct(completions: Any, completion_ids: Any, **_: Any) -> list[float]:
    """A verifier that calls wrong what has no end, as ours does with any verifier."""
    pairs = zip(map(text_of, completions), completion_ids, strict=True)
    return [float("e" in text and ids[-1] == 0 and len(ids) % 2 == 0) for text, ids in pairs]


def share(completions: Any, wanted: Any, **_: Any) -> list[float]:
    """A graded reward with a column of the data set."""
    pairs = zip(map(text_of, completions), wanted, strict=True)
    return [text.count(letter) / 8 for text, letter in pairs]


async def later(completions: Any, **_: Any) -> list[float]:
    return [text_of(each).count("b") / 4 for each in completions]


def sometimes(completions: Any, **_: Any) -> list[float | None]:
    return [None if len(text_of(each)) % 2 else 0.5 for each in completions]


def telling(completions: Any, log_metric: Any, log_extra: Any, trainer_state: Any, **_: Any) -> Any:
    """Logs, and knows the step."""
    sizes = [float(len(text_of(each))) for each in completions]
    log_metric("size", sum(sizes) / len(sizes))
    log_extra("size", sizes)
    return [trainer_state.global_step * size / 10 for size in sizes]


class Halved(TrainerCallback):
    """Halves the learning rate after the first step."""

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any, **_: Any) -> None:
        optimizer.param_groups[0]["lr"] /= 2


def rolled(prompts: Any, trainer: Any, turns: bool = False) -> Settings:
    """A `rollout_func`: the same letters for everyone, and a field for the reward functions."""
    ids = [trainer._tokenizer(prompt)["input_ids"] for prompt in prompts]
    new = [[1 + (i * k) % 9 for k in range(3 + i)] + [5, 0] for i in range(len(ids))]
    fields: Settings = {"prompt_ids": ids, "completion_ids": new, "logprobs": None}
    fields["wanted"] = ["b"] * len(ids)
    return fields | ({"env_mask": [[1] * len(each) for each in new]} if turns else {})


def lora() -> Settings:
    peft = pytest.importorskip("peft")
    return {"peft_config": peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"])}


def judged(path: Path) -> Settings:
    return {"reward_funcs": [correct, str(path / "judge")]}


def frozen(path: Path) -> Settings:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.model.layers[0].requires_grad_(False)
    return {"model": model, "processing_class": tokenizer()}


# The rows


@dataclass(frozen=True)
class Row:
    """A behaviour: what makes it, and what is said of it where it is not TRL's.

    `ours` are settings by another name than TRL's. `refused`: the error that it is, and what of its
    text stands in the table; `with_scores`: the same for methods that score steps alone.
    """

    name: str
    settings: Settings = field(default_factory=dict)
    given: Callable[..., Settings] = dict
    ours: Settings = field(default_factory=dict)
    refused: tuple[type[Exception], str] | None = None
    with_scores: str | None = None

    def options(self, path: Path) -> Settings:
        """Arguments of the trainer."""
        takes = self.given.__code__.co_argcount if hasattr(self.given, "__code__") else 0
        return self.given(path) if takes else self.given()


def rewards(*functions: Any) -> Callable[[], Settings]:
    return lambda: {"reward_funcs": list(functions)}


TURNS = "a response would be cut, and its length taken, at the end of its first turn"
IMAGES = "they would not follow rows that are sorted by length"
KERNELS = (
    "Liger's layers take the place of the model's, with which reading attention is not proven",
    "it changes the model's attention to sample, with which reading it is not proven",
)
ROWS = [
    Row("a model by its folder, one reward, text prompts"),
    Row("several rewards, a column of the data", given=rewards(correct, share)),
    Row("`reward_weights`", {"reward_weights": [1.0, 0.3]}, rewards(correct, share)),
    Row("async rewards", given=rewards(correct, later)),
    Row("`None` of a reward after the first", given=rewards(correct, sometimes)),
    Row("`log_metric`, `log_extra`, `trainer_state` in rewards", given=rewards(correct, telling)),
    Row("a reward model", given=judged),
    Row(
        "a graded first reward",
        given=rewards(share),
        refused=(DataError, "it must give 1 for a correct response and 0 for a wrong one"),
    ),
    Row(
        "`None` of the first reward",
        given=rewards(sometimes),
        refused=(DataError, "it must give 1 for a correct response and 0 for a wrong one"),
    ),
    Row("conversational prompts", given=lambda: {"train_dataset": prompts("chat")}),
    Row(
        "`chat_template_kwargs`",
        {"chat_template_kwargs": {"shout": True}},
        lambda: {"train_dataset": prompts("chat")},
    ),
    Row("an iterable data set", given=lambda: {"train_dataset": prompts("stream")}),
    Row(
        "images",
        given=lambda: {"train_dataset": prompts().add_column("image", [None] * 8)},
        refused=(ConfigError, IMAGES),
    ),
    Row("`tools`", given=lambda: {"tools": [text_of]}, refused=(ConfigError, TURNS)),
    Row(
        "`environment_factory`",
        given=lambda: {"environment_factory": object},
        refused=(ConfigError, TURNS),
    ),
    Row("`rollout_func`, its fields in rewards", given=lambda: {"rollout_func": rolled}),
    Row(
        "`rollout_func` with `env_mask`",
        given=lambda: {"rollout_func": lambda *given: rolled(*given, turns=True)},
        refused=(DataError, TURNS),
    ),
    Row(
        "`temperature`, `top_p`, `top_k`, `min_p`, `repetition_penalty`",
        {"temperature": 1.2, "top_p": 0.9, "top_k": 9, "min_p": 0.01, "repetition_penalty": 1.1},
    ),
    Row("`generation_kwargs`", {"generation_kwargs": {"min_new_tokens": 3}}),
    Row("`pad_to_multiple_of`", {"pad_to_multiple_of": 8}),
    Row(
        "`gradient_accumulation_steps`",
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    ),
    Row("`num_iterations`", {"num_iterations": 2}),
    Row("`steps_per_generation`", {"steps_per_generation": 2, "per_device_train_batch_size": 4}),
    Row("`generation_batch_size`", {"generation_batch_size": 16}),
    Row(
        "groups larger than a batch",
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    ),
    Row("`gradient_checkpointing`", {"gradient_checkpointing": True}),
    Row("`loss_type` `grpo`", {"loss_type": "grpo"}),
    Row("`loss_type` `bnpo`", {"loss_type": "bnpo", "num_iterations": 2}),
    Row("`loss_type` `dr_grpo`", {"loss_type": "dr_grpo"}),
    Row("`loss_type` `cispo`", {"loss_type": "cispo", "epsilon_high": 5.0}),
    Row("`loss_type` `sapo`", {"loss_type": "sapo", "num_iterations": 2}),
    Row("`loss_type` `luspo`", {"loss_type": "luspo"}),
    Row("`loss_type` `vespo`", {"loss_type": "vespo", "num_iterations": 2}),
    Row("`epsilon_high`, `delta`", {"epsilon_high": 0.28, "delta": 1.5, "num_iterations": 2}),
    Row(
        "`importance_sampling_level` `sequence`",
        {"importance_sampling_level": "sequence", "loss_type": "grpo", "num_iterations": 2},
        with_scores="one ratio a response gives all of its tokens the same gradient, whatever "
        "their scales",
    ),
    Row(
        "`off_policy_mask_threshold`",
        {"off_policy_mask_threshold": 1e-4, "num_iterations": 2, "learning_rate": 0.02},
    ),
    Row("`mask_truncated_completions`", {"mask_truncated_completions": True}),
    Row("`top_entropy_quantile`", {"top_entropy_quantile": 0.5}),
    Row("`entropy_coef`", {"entropy_coef": 0.1}),
    Row(
        "`use_adaptive_entropy`",
        {"use_adaptive_entropy": True, "entropy_target": 9.0, "entropy_coef_delta": 0.1},
    ),
    Row("`scale_rewards` `group`", {"scale_rewards": "group"}),
    Row("`scale_rewards` `batch`", {"scale_rewards": "batch"}, ours={"advantage": "batch"}),
    Row(
        "`scale_rewards` against `advantage`",
        {"scale_rewards": "none"},
        refused=(ConfigError, "contradicts advantage"),
    ),
    Row(
        "`multi_objective_aggregation` `normalize_then_sum`",
        {"multi_objective_aggregation": "normalize_then_sum"},
        rewards(correct, share),
        with_scores="it divides by deviations, whatever advantage = 'rloo' says (set it to grpo)",
    ),
    Row("`beta`, with its reference model", {"beta": 0.1}),
    Row("`use_bias_correction_kl` off", {"beta": 0.1, "use_bias_correction_kl": False}),
    Row(
        "`sync_ref_model`",
        {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1},
    ),
    Row("LoRA (`peft_config`)", {"learning_rate": 0.05}, lora),
    Row("LoRA with `beta`", {"learning_rate": 0.05, "beta": 0.1}, lora),
    Row("a loaded model, some of it frozen", given=frozen),
    Row("`model_init_kwargs`", {"model_init_kwargs": {"attn_implementation": "eager"}}),
    Row("`cast_lm_head_to_fp32`", {"cast_lm_head_to_fp32": True}),
    Row("checkpoints, the model card", {"save_strategy": "steps", "save_steps": 2}),
    Row("callbacks", given=lambda: {"callbacks": [Halved()]}),
    Row("`log_completions`", {"log_completions": True, "num_completions_to_print": 1}),
    Row(
        "evaluation, `num_generations_eval`",
        {"eval_strategy": "steps", "eval_steps": 1, "num_generations_eval": 2},
        lambda: {"eval_dataset": prompts().select(range(2)), "reward_funcs": [correct, share]},
    ),
    Row(
        "`load_best_model_at_end`",
        {
            **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"},
            **{"save_steps": 1, "load_best_model_at_end": True},
            **{"metric_for_best_model": "eval_reward", "save_total_limit": 1},
        },
        lambda: {"eval_dataset": prompts().select(range(2))},
    ),
    Row(
        "`use_liger_kernel`",
        {"use_liger_kernel": True},
        with_scores=KERNELS[0],
    ),
    Row(
        "`use_transformers_continuous_batching`",
        {"use_transformers_continuous_batching": True},
        with_scores=KERNELS[1],
    ),
]
# Of these only the settings are tried: what they turn on is not on every machine.
NOT_RUN = ("`use_liger_kernel`", "`use_transformers_continuous_batching`")
SAME = [row for row in ROWS if row.refused is None and row.name not in NOT_RUN]
REFUSED = [row for row in ROWS if row.refused is not None]


def named(row: Row) -> str:
    return re.sub("[`,]", "", row.name)


# Runs


@dataclass(frozen=True)
class Run:
    """What a run of two steps leaves."""

    trainer: Any
    before: Mapping[str, torch.Tensor]
    weights: Mapping[str, torch.Tensor]
    logs: list[Mapping[str, Any]]


def copied(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def trained(row: Row, path: Path, out: Path, ours: Settings | None) -> Run:
    """A run of ours with these settings; of TRL's own trainer where there are none."""
    kinds: Any = (GRPOConfig, GRPOTrainer) if ours is None else (AttnPOConfig, AttnPOTrainer)
    settings = COMMON | row.settings
    if ours is not None:
        settings = settings | OURS | ours | row.ours
        settings |= {"scale_rewards": None} if row.ours else {}
    options = {"reward_funcs": correct, "train_dataset": prompts(), "model": str(path)}
    args = kinds[0](output_dir=str(out), **settings)
    trainer = kinds[1](**{**options, **row.options(path)}, args=args)
    before = copied(trainer.model)
    torch.manual_seed(0)
    trainer.train()
    return Run(trainer, before, copied(trainer.model), trainer.state.log_history)


@pytest.fixture(scope="session")
def stock(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row], Run]:
    """The run of TRL's trainer, made once a row."""
    runs: dict[str, Run] = {}

    def run(row: Row) -> Run:
        if row.name not in runs:
            runs[row.name] = trained(row, folder, tmp_path_factory.mktemp("stock"), None)
        return runs[row.name]

    return run


def check_same(ours: Run, theirs: Run) -> None:
    """Every weight to 2e-5, and every figure that TRL logs."""
    moved = 0.0
    for name, value in theirs.weights.items():
        torch.testing.assert_close(ours.weights[name], value, rtol=0, atol=2e-5)
        moved = max(moved, float((value - theirs.before[name]).abs().max()))
    assert moved > 4e-4, "nothing was trained"
    assert len(ours.logs) == len(theirs.logs)
    for line, expected in zip(ours.logs, theirs.logs, strict=True):
        kept = {k: v for k, v in expected.items() if not any(time in k for time in TIMES)}
        assert {k: line.get(k) for k in kept} == pytest.approx(kept, rel=1e-4, abs=2e-5)
    rewards = [line["reward_std"] for line in theirs.logs if "reward_std" in line]
    assert max(rewards) > 0


@pytest.mark.slow
@pytest.mark.parametrize("row", SAME, ids=named)
def test_the_same_as_trl(row: Row, folder: Path, stock: Any, tmp_path: Path) -> None:
    ours = trained(row, folder, tmp_path, {"method": "grpo"})
    check_same(ours, stock(row))


@pytest.mark.parametrize("row", REFUSED, ids=named)
def test_refused_for_its_reason(row: Row, folder: Path, tmp_path: Path) -> None:
    assert row.refused is not None
    kind, reason = row.refused
    with pytest.raises(kind, match=re.escape(reason)):
        trained(row, folder, tmp_path, {"method": "grpo"})


# Methods that score steps

SCORED = [
    row
    for row in SAME
    if row.name.strip("`") in ("num_iterations", "steps_per_generation", "gradient_checkpointing")
    or row.name.strip("`") in ("mask_truncated_completions", "off_policy_mask_threshold")
]


@pytest.mark.slow
@pytest.mark.parametrize("row", SCORED, ids=named)
def test_scales_of_one_are_trl(row: Row, folder: Path, stock: Any, tmp_path: Path) -> None:
    """Steps are cut, scored and credited; γ = 1 leaves the weights where TRL leaves them."""
    ours = trained(row, folder, tmp_path, SCALED_BY_ONE)
    assert ours.trainer.signal is not None and "gamma" in ours.logs[0]
    check_same(ours, stock(row))


@pytest.mark.parametrize("row", [row for row in ROWS if not row.refused], ids=named)
def test_settings_of_methods_that_score_steps(row: Row, tmp_path: Path) -> None:
    settings = {**COMMON, **row.settings, "method": "attnpo"}
    if "scale_rewards" in settings:
        settings |= {"advantage": {"group": "grpo"}.get(settings["scale_rewards"], "batch")}
    if row.with_scores is None:
        assert AttnPOConfig(str(tmp_path), **settings).rescales
        return
    with pytest.raises(ConfigError, match=re.escape(row.with_scores)):
        AttnPOConfig(str(tmp_path), **settings)
    settings |= {"method": "recency", "advantage": "grpo"}
    if row.with_scores.startswith("one ratio"):  # whatever scores
        with pytest.raises(ConfigError, match=re.escape(row.with_scores)):
            AttnPOConfig(str(tmp_path), **settings)
    else:
        assert AttnPOConfig(str(tmp_path), **settings).rescales


LOSSES = [row for row in SAME if re.search("loss_type|delta|mask|entropy_q|level", row.name)]


@pytest.mark.slow
@pytest.mark.parametrize("row", [ROWS[0], *LOSSES], ids=named)
def test_a_scale_multiplies_the_gradient_of_its_token(
    row: Row, folder: Path, tmp_path: Path
) -> None:
    """∂loss/∂log π of a token with advantage γA is γ times that with A, clipped or not."""
    args = AttnPOConfig(str(tmp_path), **{**COMMON, **OURS, "method": "grpo", **row.settings})
    trainer = AttnPOTrainer(str(folder), [correct, share], args, train_dataset=prompts())
    batch, kept = made_batch(trainer), {}
    compute = trainer._get_per_token_logps_and_entropies

    def watched(*given: Any, **options: Any) -> Any:
        logps, entropies, aux = compute(*given, **options)
        logps.retain_grad()
        kept["logps"] = logps
        return logps, entropies, aux

    trainer._get_per_token_logps_and_entropies = watched
    noise = torch.randn(batch["completion_ids"].shape)
    gamma = (torch.rand(noise.shape) * 1.5 - 0.3).clamp(0, 1)  # some of it 0, some 1

    def gradient(advantages: torch.Tensor) -> torch.Tensor:
        trainer._compute_loss(trainer.model, {**batch, "advantages": advantages}).backward()
        return kept["logps"].grad

    outcome = batch["advantages"]
    gradient(outcome)
    for far in (0.0, 0.3):  # on the policy that sampled, and off it, where some is clipped
        batch["old_per_token_logps"] = kept["logps"].detach() + far * noise
        plain = gradient(outcome)
        scaled = gradient(outcome[:, None] * gamma)
        assert plain.abs().max() > 1e-3
        if row.with_scores is None:
            torch.testing.assert_close(scaled, gamma * plain, rtol=1e-4, atol=1e-7)
        else:  # the reason for which it is refused
            real = batch["completion_mask"].bool() & (scaled != 0)
            each = [values[own] for values, own in zip(scaled, real, strict=True) if own.any()]
            assert each and all(torch.allclose(v, v[:1].expand_as(v), rtol=1e-4) for v in each)


def stepped(prompts: Any, trainer: Any) -> Settings:
    """Right responses of three steps and more; each fourth one has no end."""
    given = rolled(prompts, trainer)
    new = [
        [*[1, 2, 14, 3, 4, 6, 14, 7, 8, 9][: 8 + i % 3], *[2] * (9 if i % 4 == 3 else i % 3), 14, 5]
        for i in range(8)
    ]
    given["completion_ids"] = [
        [*ids, 1, 2, 3, *([3] if i % 4 == 3 else [0])] for i, ids in enumerate(new)
    ]
    return given


def scoring(folder: Path, out: Path, **settings: Any) -> Any:
    """A trainer whose steps are scored by all heads, with scales of all kinds."""
    given = {"method": "all-heads", "schedule_steps": 0, "difficulty_alpha": 0.0, **settings}
    args = AttnPOConfig(str(out), **{**COMMON, **OURS, **given})
    trainer = AttnPOTrainer(str(folder), [correct, share], args, train_dataset=prompts())
    trainer.rollout_func = stepped
    return trainer


def gamma_of(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The scales of a batch: the last token of a response stands outside its steps."""
    last = batch["completion_mask"].sum(dim=1, keepdim=True).clamp_min(1) - 1
    outcome = batch["advantages"].gather(1, last)
    return torch.where(outcome == 0, 1.0, batch["advantages"] / outcome)


def test_later_updates_keep_the_scores_of_the_policy_that_sampled(
    folder: Path, tmp_path: Path
) -> None:
    expected = first_batch(scoring(folder, tmp_path / "a"))
    batch = first_batch(scoring(folder, tmp_path / "b", num_iterations=2))
    assert "old_per_token_logps" in batch and (gamma_of(batch) < 0.99).any()
    torch.testing.assert_close(batch["advantages"], expected["advantages"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("more", [{}, {"num_iterations": 2}], ids=["one-update", "two-updates"])
def test_masked_responses_change_no_score(folder: Path, tmp_path: Path, more: Settings) -> None:
    """With rows sorted by the tokens in the loss and trimmed; figures count what is in it."""
    batches, figures = [], []
    for masked in (False, True):
        given = {"mask_truncated_completions": masked, "rows_per_forward": 4, **more}
        trainer = scoring(folder, tmp_path / str(masked), **given)
        batches.append(first_batch(trainer))
        figures.append(trainer._metrics["train"]["gamma"][-1])
    whole, part = batches
    assert part["completion_mask"].sum() < whole["completion_mask"].sum()
    torch.testing.assert_close(part["advantages"], whole["advantages"], rtol=1e-4, atol=1e-6)
    gamma, live = gamma_of(part), part["completion_mask"].bool()
    assert (gamma < 0.99).any()
    assert figures[1] == pytest.approx(float(gamma[live].mean()), abs=1e-5)


def test_a_run_with_several_updates_a_batch_goes_on(folder: Path, tmp_path: Path) -> None:
    """From between two batches bit for bit; a checkpoint within one is warned of."""
    settings = {**COMMON, "num_iterations": 2, "shuffle_dataset": True, "max_steps": 4}
    settings |= {"save_strategy": "steps", "save_steps": 2, **OURS, "method": "grpo"}

    def run(checkpoint: str | None) -> dict[str, torch.Tensor]:
        args = AttnPOConfig(str(tmp_path), **settings)
        trainer = AttnPOTrainer(str(folder), [correct, share], args, train_dataset=prompts())
        torch.manual_seed(0)
        trainer.train(resume_from_checkpoint=checkpoint)
        return copied(trainer.model)

    whole, again = run(None), run(str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    with pytest.warns(UserWarning, match="checkpoints fall between two updates"):
        AttnPOConfig(str(tmp_path), **{**settings, "save_steps": 1})


# The model card


def test_the_card_cites_the_method(folder: Path, stock: Any, tmp_path: Path) -> None:
    def card(trainer: Any) -> str:
        trainer.create_model_card(model_name="mine")
        return (Path(trainer.args.output_dir) / "README.md").read_text(encoding="utf-8")

    mine = card(scoring(folder, tmp_path / "a"))
    assert "with AttnPO (all-heads)" in mine and "papers/2602.09953" in mine
    assert PAPERS["attnpo"]["citation"] in mine and "2402.03300" not in mine
    assert PAPERS["attnpo"]["citation"] in (ROOT / "README.md").read_text(encoding="utf-8")
    length = scoring(folder, tmp_path / "b", method="tlmre")
    assert "with TLMRE" in card(length) and "papers/2502.04463" in card(length)
    plain = trained(ROWS[0], folder, tmp_path / "c", {"method": "grpo"}).trainer
    assert card(plain) == card(stock(ROWS[0]).trainer)


# How much is computed, and what vLLM's rounding costs


def test_each_part_of_a_batch_is_cut_to_its_longest(folder: Path, tmp_path: Path) -> None:
    """The tokens that the passes of the update compute, padding among them."""

    def masks(rows: int) -> list[torch.Tensor]:
        given = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
        given |= {"rows_per_forward": rows, "max_steps": 1}
        trainer = scoring(folder, tmp_path / str(rows), **given)
        trainer.rollout_func, seen = rolled, []

        def see(module: Any, _: Any, inputs: Settings) -> None:
            if torch.is_grad_enabled():
                seen.append(inputs["attention_mask"])

        trainer.model.register_forward_pre_hook(see, with_kwargs=True)
        trainer.train()
        return seen

    as_in_trl, trimmed = masks(0), masks(4)
    assert len(as_in_trl) == len(trimmed) == 4
    assert all(mask.any(dim=0).all() for mask in trimmed)
    computed, fewer = (sum(mask.numel() for mask in each) for each in (as_in_trl, trimmed))
    real = sum(int(mask.sum()) for mask in trimmed)
    assert computed == 16 * (4 + 20)  # all as wide as the longest of all
    assert real == sum(4 + 5 + i for i in range(16)) < fewer < 0.95 * computed


def test_the_large_recipe_trims_and_corrects_by_token() -> None:
    recipe = read_recipe(find_recipe("attnpo-ds-qwen-1.5b"))
    assert recipe["rows_per_forward"] == recipe["per_device_train_batch_size"]
    assert recipe["vllm_importance_sampling_mode"].startswith("token_")


@pytest.mark.parametrize("mode", ["sequence_mask", "token_mask", "token_truncate"])
def test_the_share_that_the_correction_for_vllm_cuts(
    folder: Path, tmp_path: Path, mode: str
) -> None:
    """A ratio of 3 and more is out of bounds: of a token, or of the product over a response."""
    trainer = scoring(folder, tmp_path, method="grpo", vllm_importance_sampling_mode=mode)
    drawn = torch.Generator().manual_seed(0)

    def sampled(prompts: Any, trainer: Any) -> Settings:
        made = rolled(prompts, trainer)
        sizes = [len(ids) for ids in made["completion_ids"]]
        return {
            **made,
            "logprobs": [(3 * torch.randn(n, generator=drawn) - 3).tolist() for n in sizes],
        }

    trainer.use_vllm, trainer._last_loaded_step, trainer.rollout_func = True, 0, sampled
    batch = made_batch(trainer)
    live = batch["completion_mask"].bool()
    apart = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]) * live
    apart = apart.sum(dim=1, keepdim=True) if mode.startswith("sequence") else apart
    out = (apart.exp() >= 3) & live
    cut = trainer._metrics["train"]["ratio_cut"]
    assert cut == [pytest.approx(float(out.sum() / live.sum()))] and 0 < cut[0] < 1


# The page


def table() -> str:
    """The rows as docs/trl.md has them."""
    lines = [
        "| behaviour | methods that score no step | methods that score steps |",
        "|---|---|---|",
    ]
    for row in ROWS:
        said = "same as TRL" if row.name not in NOT_RUN else "left to TRL, not tested"
        if row.refused:
            said = f"refused: {row.refused[1]}"
        scored = "same as TRL with γ = 1" if row in SCORED else "taken"
        scored = "γ times the gradient" if row in LOSSES and row not in SCORED else scored
        scored = "refused likewise" if row.refused else scored
        scored = f"refused: {row.with_scores}" if row.with_scores else scored
        lines.append(f"| {row.name} | {said} | {scored} |")
    return "\n".join(lines)


def test_the_page_has_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), "docs/trl.md lacks: " + table()


def test_the_page_has_every_default_that_differs() -> None:
    theirs = {each.name: each for each in dataclasses.fields(GRPOConfig)}
    differ = {
        each.name: (theirs[each.name].default, each.default)
        for each in dataclasses.fields(AttnPOConfig)
        if each.name in theirs and each.default != theirs[each.name].default
    }
    found = re.findall(r"^\| `(\w+)` \| `(.+?)` \| `(.+?)` \|", PAGE.read_text("utf-8"), re.M)
    assert {name: (theirs, ours) for name, theirs, ours in found} == {
        name: (repr(stock), repr(mine)) for name, (stock, mine) in differ.items()
    }


if __name__ == "__main__":
    print(table())
