"""Ask a model what has no answer yet: shared by rollouts and evaluations."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.errors import DataError
from probing.settings import Progress
from rl.sampling.backends import TransformersSampler, open_sampler
from rl.sampling.base import Sampler
from rl.sampling.responses import Asking, ResponseStore, ask
from rl.tasks.questions import QuestionSet

if TYPE_CHECKING:
    from rl.evaluation.job import EvalConfig


def question_specs(config: EvalConfig) -> list[str]:
    """The specs, with a folder replaced by its files."""
    specs: list[str] = []
    for spec in config.data:
        folder = Path(spec).expanduser()
        if not folder.is_dir():
            specs.append(spec)
            continue
        files = sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")])
        if not files:
            raise DataError(f"{folder}: no *.jsonl or *.jsonl.gz in this folder")
        specs += map(str, files)
    return specs


def prompt_tokenizer(config: EvalConfig) -> Any:
    """The tokenizer that renders prompts; None for an endpoint's chat."""
    if config.backend == "openai" and not config.raw and config.tokenizer is None:
        return None
    from probing.models.load import load_tokenizer

    name = config.tokenizer or config.model
    return load_tokenizer(name, trust_remote_code=config.trust_remote_code)


def open_backend(config: EvalConfig, tokenizer: Any, *, keep_ids: bool = False) -> Sampler:
    """The backend of the settings; with `keep_ids` an endpoint is asked for token ids too."""
    return open_sampler(
        config.model,
        config.backend,
        tokenizer=tokenizer,
        base_url=config.base_url,
        raw=config.raw,
        device=config.device,
        dtype=config.dtype,
        batch=config.batch,
        trust_remote_code=config.trust_remote_code,
        keep_ids=keep_ids,
    )


def response_settings(
    config: EvalConfig, questions: QuestionSet, sampler: Sampler
) -> dict[str, Any]:
    """All that decides the responses of a set, for resuming."""
    from probing.models.identity import weights_fingerprint

    own = {}
    if isinstance(sampler, TransformersSampler):
        own["weights"] = weights_fingerprint(sampler.model)
        own["dtype"] = str(next(sampler.model.parameters()).dtype)
    return {
        "model": config.model,
        **own,
        "backend": config.backend,
        "raw": config.raw,
        "template": config.template,
        "think_end": config.think_end,
        "samples": config.samples_of(questions.name),
        **asdict(config.sampling),
        "questions": questions.source,
    }


def fill(
    config: EvalConfig,
    sampler: Sampler,
    tokenizer: Any,
    questions: QuestionSet,
    store: ResponseStore,
    progress: Progress,
    *,
    keep_ids: bool = False,
) -> int:
    """Ask what is not answered yet; the number of new responses."""
    n = config.samples_of(questions.name)
    pending = [q for q in questions.questions if q.id not in store.responses]
    with progress(questions.name, len(pending) * n) as advance:
        asking = Asking(config.template, config.think_end, keep_ids)
        ask(sampler, tokenizer, questions, pending, config.sampling, n, asking, store.add, advance)
    return len(pending) * n
