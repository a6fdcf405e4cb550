"""Evaluate a model on question sets: accuracy, length, and what the length consists of.

1. Load and check the sets; nothing is loaded before the questions are known to be good.
2. Open the backend.
3. Ask: responses are appended to `responses/<set>.jsonl` as batches finish
   (`rl.sampling.responses`).
4. Figures of each set, their means, AES against a base (`rl.evaluation.summary`).
5. Write `eval.json`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.choices import DTYPES, THINK_END
from probing.errors import ConfigError
from probing.files.headers import HEADER, file_header, write_json
from probing.models.decode import Sampling
from probing.settings import Progress, no_progress
from rl.evaluation.summary import Base, Overall, SetFigures, overall, set_figures
from rl.sampling.backends import BATCH, TransformersSampler
from rl.sampling.base import BACKENDS
from rl.sampling.job import fill, open_backend, prompt_tokenizer, question_specs, response_settings
from rl.sampling.responses import Asking, Response, ResponseStore, ask
from rl.tasks.prompts import TEMPLATES
from rl.tasks.questions import QuestionSet, load_questions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Samples a question in the paper's validation, at temperature 0.6 and top-p 0.95.
PAPER_SAMPLES = {
    "gsm8k": 4,
    "math500": 4,
    "olympiadbench": 4,
    "amc23": 16,
    "aime2024": 16,
    "aime2025": 16,
}
PRESETS = ("paper",)


@dataclass(frozen=True)
class EvalConfig:
    """All settings of an evaluation, checked on creation. As the command line has them.

    Args:
        model: hub id or folder; for `openai` the endpoint's name for it.
        data: specs of question sets (`rl.tasks.questions`); a folder means all its `*.jsonl[.gz]`.
        out: folder for the results.
        samples: responses a question.
        temperature, top_p, max_tokens, seed: see `probing.models.decode.Sampling`.
        limit: at most so many questions of each set.
        preset: `paper` sets the samples by the name of the benchmark.
        backend, base_url, raw, device, dtype, batch: see `rl.sampling.backends.open_sampler`.
        tokenizer: hub id or folder, where the endpoint's model does not name it.
        template: see `rl.tasks.prompts.render_prompt`.
        think_end: the text that ends the reasoning; empty for a model that does not reason.
        budgets: numbers of tokens for accuracy under a budget.
        base: a former evaluation (folder or file) to compute AES against.
        resume: go on with the responses in `out`.
        trust_remote_code: run code that comes with the model.

    Raises:
        ConfigError: values that are out of range or contradict each other.
    """

    model: str
    data: tuple[str, ...]
    out: Path
    samples: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 4096
    seed: int = 0
    limit: int | None = None
    preset: str | None = None
    backend: str = "transformers"
    base_url: str | None = None
    raw: bool = False
    tokenizer: str | None = None
    template: str = "auto"
    think_end: str = THINK_END
    budgets: tuple[int, ...] = ()
    base: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch: int = BATCH
    resume: bool = True
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check what can be known before anything is read."""
        for name, known in (
            ("backend", BACKENDS),
            ("template", TEMPLATES),
            ("dtype", DTYPES),
            ("preset", (*PRESETS, None)),
        ):
            if getattr(self, name) not in known:
                names = ", ".join(str(value) for value in known if value)
                raise ConfigError(f"unknown {name} {getattr(self, name)!r}; choose {names}")
        if not self.data:
            raise ConfigError("no question set: give --data SPEC")
        if self.samples < 1 or self.batch < 1 or any(budget < 1 for budget in self.budgets):
            raise ConfigError("samples, batch and budgets must be at least 1")
        sampling = self.sampling  # checks its own
        if self.preset == "paper" and (sampling.temperature, sampling.top_p) != (0.6, 0.95):
            raise ConfigError("preset paper is temperature 0.6 and top-p 0.95: leave them out")
        if sampling.temperature == 0 and self.samples > 1:
            raise ConfigError("greedy samples are all the same: use --samples 1")
        if max(self.budgets, default=0) > self.max_tokens:
            raise ConfigError(
                f"a budget of {max(self.budgets)} tokens cannot be told from --max-tokens "
                f"{self.max_tokens}: raise the latter"
            )
        if self.backend == "openai" and not self.raw and self.template != "auto":
            raise ConfigError("the endpoint's chat renders prompts itself: --template needs --raw")

    @property
    def sampling(self) -> Sampling:
        """The part of the settings that samplers take."""
        return Sampling(self.temperature, self.top_p, self.max_tokens, self.seed)

    def samples_of(self, name: str) -> int:
        """Responses to a question of this set."""
        if self.preset == "paper":
            return PAPER_SAMPLES.get(re.sub(r"[^a-z0-9]", "", name.lower()), self.samples)
        return self.samples

    def to_json(self) -> dict[str, Any]:
        """The settings as they stand in `eval.json`."""
        paths = {"out": str(self.out), "base": str(self.base) if self.base else None}
        return {**asdict(self), **paths}


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found: figures by set, and their means where there are several sets.

    `base_differs` names settings under which the base was not evaluated as this model was.
    """

    config: EvalConfig
    sets: tuple[SetFigures, ...]
    overall: Overall | None
    sampled: int  # responses of this run; the others were there already
    seconds: float
    base_differs: tuple[str, ...] = ()


def evaluate(config: EvalConfig, progress: Progress = no_progress) -> EvalResult:
    """Evaluate a model and write `eval.json` in `config.out`.

    Raises:
        KfhError: a bad setting, question set or model; the message says what to do.
    """
    import time

    sets = [
        load_questions(spec, limit=config.limit, seed=config.seed)
        for spec in question_specs(config)
    ]  # 1
    names = [questions.name for questions in sets]
    if len(set(names)) < len(names):
        raise ConfigError(f"two question sets have one name ({', '.join(names)}): rename one")
    base = Base.load(config.base) if config.base else None
    if base:
        base.check(sets)
    tokenizer = prompt_tokenizer(config)
    sampler = open_backend(config, tokenizer)  # 2
    started, found, sampled = time.perf_counter(), [], 0
    for questions in sets:  # 3
        store = ResponseStore(
            Path(config.out) / "responses" / f"{file_name(questions.name)}.jsonl",
            response_settings(config, questions, sampler),
            config.samples_of(questions.name),
        )
        store.open(config.resume)
        sampled += fill(config, sampler, tokenizer, questions, store, progress)
        found.append(
            set_figures(
                questions,
                store.responses,
                budgets=config.budgets,
                think_end=config.think_end,
                tokenizer=tokenizer,
            )
        )
    means = overall(found) if len(found) > 1 else None  # 4
    if base:
        *scores, mean_score = base.scores(found)
        found = [replace(one, aes=score) for one, score in zip(found, scores, strict=True)]
        means = replace(means, aes=mean_score) if means else None
    seconds = time.perf_counter() - started
    differs = tuple(base.differing(config.to_json())) if base else ()
    result = EvalResult(config, tuple(found), means, sampled, seconds, differs)
    _write(result)  # 5
    return result


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: Any,
    questions: QuestionSet,
    sampling: Sampling,
    n: int,
    *,
    template: str = "auto",
    think_end: str = THINK_END,
    budgets: tuple[int, ...] = (),
    batch: int = BATCH,
    advance: Callable[[int, int], None] = lambda responses, tokens: None,
) -> SetFigures:
    """Evaluate a loaded model on one set; nothing is written.

    The model is put in eval mode and back; its use of the cache does not depend on its config.

    Args:
        model, tokenizer: loaded.
        questions: the set.
        sampling: how to sample.
        n: responses a question.
        template, think_end, budgets, batch: as in `EvalConfig`.
        advance: called with the numbers of new responses and of their tokens.
    """
    responses: dict[str, list[Response]] = {}

    def keep(found: list[Response]) -> None:
        for response in found:
            responses.setdefault(response.id, []).append(response)

    was_training = model.training
    model.eval()
    try:
        ask(
            TransformersSampler(model, tokenizer, batch),
            tokenizer,
            questions,
            questions.questions,
            sampling,
            n,
            Asking(template, think_end),
            keep,
            advance,
        )
    finally:
        model.train(was_training)
    return set_figures(
        questions, responses, budgets=budgets, think_end=think_end, tokenizer=tokenizer
    )


def _write(result: EvalResult) -> None:
    means = asdict(result.overall) if result.overall else None
    write_json(
        Path(result.config.out) / "eval.json",
        {
            HEADER: file_header("evaluation"),
            "settings": result.config.to_json(),
            "benchmarks": {found.name: found.to_json() for found in result.sets},
            "overall": means,
            "base_differs": list(result.base_differs),
        },
    )


def file_name(name: str) -> str:
    """The name of a set as part of a path."""
    return re.sub(r"[^\w.-]+", "-", name)
