"""Ask a model what it has not answered yet: shared by rollouts and evaluations."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from probing.errors import ConfigError, DataError
from probing.settings import Progress
from probing.traces.marks import EndMark
from rl.sampling.backends import TransformersSampler, open_sampler
from rl.sampling.base import Sampler
from rl.sampling.config import AskConfig
from rl.sampling.responses import ResponseStore, ask
from rl.tasks.prompts import THINK_START
from rl.tasks.questions import QuestionSet, load_questions


def load_sets(config: AskConfig) -> list[QuestionSet]:
    """Load and check the question sets of the settings; a folder stands for its files.

    Raises:
        ConfigError: two sets have one name.
        DataError: a set that cannot be loaded, or a folder without one.
    """
    specs = [one for spec in config.data for one in _specs(spec)]
    leave = config.code_allowed
    sets = [
        load_questions(spec, seed=config.seed, allow_code=leave, **config.reading) for spec in specs
    ]
    names = [questions.name for questions in sets]
    if len(set(names)) < len(names):
        raise ConfigError(f"two question sets have one name ({', '.join(names)}): rename one")
    return sets


def _specs(spec: str) -> list[str]:
    """The spec, or the files of the folder that it is."""
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        return [spec]
    files = sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")])
    if not files:
        raise DataError(f"{folder}: no *.jsonl or *.jsonl.gz in this folder")
    return [str(file) for file in files]


def prompt_tokenizer(config: AskConfig) -> Any:
    """The tokenizer that renders prompts; None for an endpoint's chat."""
    if config.backend == "openai" and not config.raw and config.tokenizer is None:
        return None
    from probing.models.load import load_tokenizer

    name = config.tokenizer or config.model
    return load_tokenizer(name, trust_remote_code=config.trust_remote_code)


def open_backend(config: AskConfig, tokenizer: Any, *, keep_ids: bool = False) -> Sampler:
    """The backend of the settings; with `keep_ids` an endpoint is asked for token ids too."""
    return open_sampler(
        config.model,
        config.backend,
        tokenizer=tokenizer,
        base_url=config.base_url,
        raw=config.raw,
        device=config.device,
        dtype=config.dtype,
        attention=config.attention,
        batch=config.batch,
        adapter=config.adapter,
        trust_remote_code=config.trust_remote_code,
        keep_ids=keep_ids,
    )


def response_settings(
    config: AskConfig, questions: QuestionSet, sampler: Sampler
) -> dict[str, Any]:
    """All that decides the responses of a set, for resuming."""
    from probing.models.identity import weights_fingerprint

    local = {}
    if config.think_start != THINK_START:
        local["think_start"] = config.think_start
    if isinstance(sampler, TransformersSampler):
        local["weights"] = weights_fingerprint(sampler.model)
        local["dtype"] = str(next(sampler.model.parameters()).dtype)
    return {
        "model": config.named,
        **local,
        "backend": config.backend,
        "raw": config.raw,
        "template": config.template,
        **EndMark(config.think_end, config.think_end_at).to_json(),
        "samples": config.samples_of(questions.name),
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        "seed": config.seed,
        "questions": questions.source,
    }


def ask_set(
    config: AskConfig,
    sampler: Sampler,
    tokenizer: Any,
    questions: QuestionSet,
    folder: Path,
    progress: Progress,
    *,
    keep_ids: bool = False,
    slim: bool = False,
) -> tuple[ResponseStore, int]:
    """All responses to a set, in `folder/<name of the set>.jsonl`: what is missing there is asked.

    Args:
        config, sampler, tokenizer, questions: see `AskConfig`.
        folder: of the responses.
        progress: shows responses and their tokens.
        keep_ids: keep the token ids as sampled.
        slim: hold neither texts nor ids in memory.

    Returns:
        The store, and the number of responses that are new.

    Raises:
        ConfigError: the file holds responses made with other settings.
    """
    n = config.samples_of(questions.name)
    name = re.sub(r"[^\w.-]+", "-", questions.name)  # as part of a path
    path = folder / f"{name}.jsonl"
    store = ResponseStore(path, response_settings(config, questions, sampler), n, slim=slim)
    store.open(config.resume)
    pending = [q for q in questions.questions if q.id not in store.responses]
    with progress(questions.name, len(pending) * n) as advance:
        asking = replace(config.asking, keep_ids=keep_ids)
        ask(sampler, tokenizer, questions, pending, config.sampling, n, asking, store.add, advance)
    return store, len(pending) * n
