"""Ask a model what it has not answered yet: shared by rollouts and evaluations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probing.choices import THINK_END, Dtype
from probing.errors import ConfigError, DataError
from probing.models.decode import Sampling
from probing.settings import Progress, check, choice
from rl.sampling.backends import BATCH, TransformersSampler, open_sampler
from rl.sampling.base import Backend, Sampler
from rl.sampling.responses import Asking, ResponseStore, ask
from rl.tasks.prompts import Template
from rl.tasks.questions import QuestionSet, load_questions


@dataclass(frozen=True)
class AskConfig:
    """What is asked of which model, and how; checked on creation.

    Raises:
        ConfigError: values that are out of range or contradict each other.
    """

    model: str = choice(help="Hub id or folder; for an endpoint the name by which it knows it.")
    data: tuple[str, ...] = choice(
        help="Question set, repeatable: FILE.jsonl, a folder of them, "
        "hub:owner/name@config:split, rg:TASK, pocket:N@SEED, pocket-held-out:N."
    )
    out: Path = choice(help="Folder for the results.")
    samples: int = choice(1, "Responses a question.", least=1)
    temperature: float = choice(0.6, "0 is greedy.")
    top_p: float = choice(0.95, "Share of the chances that is sampled from.")
    max_tokens: int = choice(4096, "Longest response.")
    seed: int = choice(0, "Of sampling and of generated questions.")
    limit: int | None = choice(None, "Questions of each set; default all.")
    backend: Backend = choice("transformers", "Where the model runs; openai: any such endpoint.")
    base_url: str | None = choice(None, "Of the endpoint; its key is in OPENAI_API_KEY.")
    raw: bool = choice(False, "Rendered prompts to the endpoint's completions.")
    tokenizer: str | None = choice(None, "Hub id or folder, to render an endpoint's prompts.")
    template: Template = choice("auto", "How a question becomes a prompt.")
    think_end: str = choice(THINK_END, "The text that ends the reasoning; empty: there is none.")
    device: str = choice("auto", "auto, cpu, cuda, …")
    dtype: Dtype = choice("auto", "Of the weights.")
    batch: int = choice(BATCH, "Responses, or requests, at a time.", least=1)
    resume: bool = choice(True, "Go on with the responses that are there.")
    trust_remote_code: bool = choice(False, "Run code of the model's.")

    def __post_init__(self) -> None:
        """Check what can be known before anything is read."""
        check(self)
        if not self.data:
            raise ConfigError("no question set: give --data SPEC")
        if self.sampling.temperature == 0 and self.samples > 1:
            raise ConfigError("greedy samples are all the same: use --samples 1")
        if self.backend == "openai" and not self.raw and self.template != "auto":
            raise ConfigError("the endpoint's chat renders prompts itself: --template needs --raw")

    @property
    def sampling(self) -> Sampling:
        """The part of the settings that samplers take, which checks itself."""
        return Sampling(self.temperature, self.top_p, self.max_tokens, self.seed)

    def samples_of(self, name: str) -> int:
        """Responses to a question of the set of this name."""
        return self.samples


def load_sets(config: AskConfig) -> list[QuestionSet]:
    """Load and check the question sets of the settings; a folder stands for its files.

    Raises:
        ConfigError: two sets have one name.
        DataError: a set that cannot be loaded, or a folder without one.
    """
    specs = [one for spec in config.data for one in _specs(spec)]
    sets = [load_questions(spec, limit=config.limit, seed=config.seed) for spec in specs]
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
        batch=config.batch,
        trust_remote_code=config.trust_remote_code,
        keep_ids=keep_ids,
    )


def response_settings(
    config: AskConfig, questions: QuestionSet, sampler: Sampler
) -> dict[str, Any]:
    """All that decides the responses of a set, for resuming."""
    from probing.models.identity import weights_fingerprint

    local = {}
    if isinstance(sampler, TransformersSampler):
        local["weights"] = weights_fingerprint(sampler.model)
        local["dtype"] = str(next(sampler.model.parameters()).dtype)
    return {
        "model": config.model,
        **local,
        "backend": config.backend,
        "raw": config.raw,
        "template": config.template,
        "think_end": config.think_end,
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
        asking = Asking(config.template, config.think_end, keep_ids)
        ask(sampler, tokenizer, questions, pending, config.sampling, n, asking, store.add, advance)
    return store, len(pending) * n
