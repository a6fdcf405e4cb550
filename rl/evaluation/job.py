"""Evaluate a model on question sets: accuracy, length, and what the length consists of.

1. Load and check the sets; nothing is loaded before the questions are known to be good.
2. Open the backend.
3. Ask: responses are appended to `responses/<set>.jsonl` as batches finish
   (`rl.sampling.responses`).
4. Figures of each set, their means, AES against a base (`rl.evaluation.summary`).
5. Write `eval.json`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.files.headers import HEADER, file_header, refuse_overwriting, write_json
from probing.models.decode import Sampling
from probing.models.lengths import in_eval
from probing.settings import Progress, no_progress, to_json
from rl.evaluation.config import EvalConfig
from rl.evaluation.summary import Base, Overall, SetFigures, overall, set_figures
from rl.sampling.backends import TransformersSampler
from rl.sampling.base import BATCH
from rl.sampling.job import ask_set, load_sets, open_backend, prompt_tokenizer
from rl.sampling.responses import AS_USUAL, Asking, Response, ask
from rl.tasks.base import QuestionSet
from rl.tasks.questions import trained_on

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    sets = load_sets(config)  # 1
    base = Base.load(config.base) if config.base else None
    if base:
        refuse_overwriting(Path(config.out) / "eval.json", base.path)
        base.check(sets)
    tokenizer = prompt_tokenizer(config)
    sampler = open_backend(config, tokenizer)  # 2
    seen = trained_on(config.model, config.adapter)
    started, figures, sampled = time.perf_counter(), [], 0
    for questions in sets:  # 3
        folder = Path(config.out) / "responses"
        store, new = ask_set(config, sampler, tokenizer, questions, folder, progress)
        sampled += new
        found = set_figures(
            questions,
            store.responses,
            budgets=config.budgets,
            think_end=config.think_end,
            tokenizer=tokenizer,
        )
        known = None if seen is None else sum(mark in seen for mark in questions.problems)
        figures.append(replace(found, trained_on=known))
    means = overall(figures) if len(figures) > 1 else None  # 4
    if base:
        *scores, mean_score = base.scores(figures)
        figures = [replace(each, aes=score) for each, score in zip(figures, scores, strict=True)]
        means = replace(means, aes=mean_score) if means else None
    differs = tuple(base.differing(to_json(config))) if base else ()
    seconds = time.perf_counter() - started
    result = EvalResult(config, tuple(figures), means, sampled, seconds, differs)
    _write(result)  # 5
    return result


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: Any,
    questions: QuestionSet,
    sampling: Sampling,
    n: int,
    *,
    asking: Asking = AS_USUAL,
    budgets: tuple[int, ...] = (),
    **options: Any,
) -> SetFigures:
    """Evaluate a loaded model on one set; nothing is written.

    Args:
        model, tokenizer, questions, sampling, n, asking: as for `responses_of`.
        budgets: as in `EvalConfig`.
        **options: other arguments of `responses_of`.
    """
    found = responses_of(model, tokenizer, questions, sampling, n, asking=asking, **options)
    return set_figures(
        questions, found, budgets=budgets, think_end=asking.think_end, tokenizer=tokenizer
    )


def responses_of(
    model: PreTrainedModel,
    tokenizer: Any,
    questions: QuestionSet,
    sampling: Sampling,
    n: int,
    *,
    asking: Asking = AS_USUAL,
    batch: int = BATCH,
    advance: Callable[[int, int], None] = lambda responses, tokens: None,
) -> dict[str, list[Response]]:
    """Verified responses of a loaded model by the question's id; nothing is written.

    The model is put in eval mode and back; its use of the cache does not depend on its config.

    Args:
        model, tokenizer: loaded.
        questions: the set.
        sampling: how to sample.
        n: responses a question.
        asking: how questions become prompts, and responses answers.
        batch: as in `EvalConfig`.
        advance: called with the numbers of new responses and of their tokens.
    """
    responses: dict[str, list[Response]] = {}

    def keep(verified: list[Response]) -> None:
        for response in verified:
            responses.setdefault(response.id, []).append(response)

    with in_eval(model):
        ask(
            TransformersSampler(model, tokenizer, batch),
            tokenizer,
            questions,
            questions.questions,
            sampling,
            n,
            asking,
            keep,
            advance,
        )
    return responses


def _write(result: EvalResult) -> None:
    means = asdict(result.overall) if result.overall else None
    write_json(
        Path(result.config.out) / "eval.json",
        {
            HEADER: file_header("evaluation"),
            "settings": to_json(result.config),
            "benchmarks": {figures.name: figures.to_json() for figures in result.sets},
            "overall": means,
            "base_differs": list(result.base_differs),
        },
    )
