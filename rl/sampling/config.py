"""Settings of what a model is asked, and of what becomes a trace. Light: the command line's too."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.choices import EMBEDDED, POCKET, THINK_END, EndAt, Keep
from probing.errors import ConfigError
from probing.models.load import MODEL, ModelSource, pocket_model
from probing.settings import check, choice
from probing.traces.segmenters import Segmenter, SegmentFunction
from probing.traces.source import STEPS, StepCutting
from rl.sampling.base import BATCH, Backend
from rl.tasks.base import AllowCode, TaskChoice
from rl.tasks.prompts import THINK_START, Template

if TYPE_CHECKING:
    from probing.models.decode import Sampling
    from rl.sampling.responses import Asking

SAMPLING, KEPT = "Sampling", "What is kept"  # panels of the command line


@dataclass(frozen=True)
class AskConfig(ModelSource, TaskChoice):
    """What is asked of which model, and how; checked on creation.

    Raises:
        ConfigError: values that are out of range or contradict each other.
    """

    model: str = choice(
        POCKET, "Hub id or folder; pocket: the embedded model; of an endpoint: its name there."
    )
    _: KW_ONLY
    data: tuple[str, ...] = choice(
        (),
        "Question set, repeatable: FILE.jsonl, a folder of them, hub:owner/name@config:split, "
        "gpqa, mmlu, livecodebench[:FILE or hub:…], rg:TASK, pocket:N@SEED, pocket-held-out:N, "
        "module:name; default: --task.",
        repeat=True,
    )
    out: Path = choice(help="Folder for the results.")
    resume: bool = choice(True, "Go on with the responses that are there.")
    allow_code: bool = choice(
        False, "Run the programs of responses (livecodebench), shut off from this machine."
    )
    unguarded_code: bool = choice(
        False, "Run them even where they can reach the network and your files."
    )
    samples: int = choice(1, "Responses a question.", least=1, panel=SAMPLING)
    temperature: float = choice(0.6, "0 is greedy.", panel=SAMPLING)
    top_p: float = choice(0.95, "Share of the chances that is sampled from.", panel=SAMPLING)
    max_tokens: int = choice(4096, "Longest response.", panel=SAMPLING)
    seed: int = choice(0, "Of sampling and of generated questions.", panel=SAMPLING)
    template: Template = choice("auto", "How a question becomes a prompt.", panel=SAMPLING)
    think_start: str = choice(THINK_START, "What opens the reasoning.", panel=SAMPLING)
    think_end: str = choice(
        THINK_END, "The text that ends the reasoning; empty: there is none.", panel=SAMPLING
    )
    think_end_at: EndAt = choice(
        "first", "Which one ends it, where there are several.", panel=SAMPLING
    )
    batch: int = choice(BATCH, "Responses, or requests, at a time.", least=1, panel=MODEL)
    backend: Backend = choice("transformers", "Where it runs; openai: any endpoint.", panel=MODEL)
    base_url: str | None = choice(
        None, "Of the endpoint; its key is in OPENAI_API_KEY.", panel=MODEL
    )
    raw: bool = choice(False, "Rendered prompts to the endpoint's completions.", panel=MODEL)
    tokenizer: str | None = choice(
        None, "Hub id or folder, to render an endpoint's prompts.", panel=MODEL
    )

    def __post_init__(self) -> None:
        """Check what can be known before anything is read; an embedded model becomes its path."""
        check(self)
        if not self.data and not self.task:
            raise ConfigError("no question set: give --data SPEC, or --task MODULE:NAME")
        object.__setattr__(self, "data", self.data or (self.task,))
        if self.sampling.temperature == 0 and self.samples > 1:
            raise ConfigError("greedy samples are all the same: use --samples 1")
        if self.backend == "openai" and not self.raw and self.template != "auto":
            raise ConfigError("the endpoint's chat renders prompts itself: --template needs --raw")
        if self.adapter and self.backend != "transformers":
            raise ConfigError(f"--adapter is merged here; backend {self.backend} has its own model")
        if self.model in EMBEDDED:
            object.__setattr__(self, "model", str(pocket_model(self.model)))

    @property
    def asking(self) -> Asking:
        """How questions become prompts, and responses become answers."""
        from rl.sampling.responses import Asking

        return Asking(self.template, self.think_end, self.think_end_at, self.think_start)

    @property
    def sampling(self) -> Sampling:
        """The part of the settings that samplers take, which checks itself."""
        from probing.models.decode import Sampling

        return Sampling(self.temperature, self.top_p, self.max_tokens, self.seed)

    @property
    def code_allowed(self) -> AllowCode:
        """Whether programs that the model wrote may run here."""
        if self.unguarded_code:
            return "unguarded"
        return "guarded" if self.allow_code else "no"

    def samples_of(self, name: str) -> int:
        """Responses to a question of the set of this name."""
        return self.samples


@dataclass(frozen=True)
class CollectConfig(AskConfig, StepCutting):
    """What to ask, and what of the responses to keep as traces.

    Raises:
        ConfigError: values out of range, or no text that ends the reasoning.
    """

    _: KW_ONLY
    out: Path = choice(help="Trace file to write (JSONL, .gz too); all responses lie beside it.")
    samples: int = choice(8, "Responses a problem.", least=1, panel=SAMPLING)
    think_end: str = choice(THINK_END, "The text that ends the reasoning.", panel=SAMPLING)
    keep: Keep = choice(
        "correct", "correct responses, or all that ended by themselves.", panel=KEPT
    )
    easy: float = choice(
        0.9,
        "Keep problems of which this share of samples is correct; 0: all.",
        least=0,
        most=1,
        panel=KEPT,
    )
    per_problem: int | None = choice(
        None, "At most so many traces of a problem; default all.", least=1, panel=KEPT
    )
    segmenter: str | SegmentFunction = choice(
        "attnpo",
        "attnpo, line, sentence, sentencex, paragraph, *.json, module:name; task: its own steps "
        "with their true labels, where it knows them; none: cut no steps.",
        panel=STEPS,
    )

    def __post_init__(self) -> None:
        """Check the selection, too."""
        super().__post_init__()
        if not self.think_end:
            raise ConfigError("traces need the text that ends their reasoning: give --think-end")
        _ = self.cutter

    @property
    def responses(self) -> Path:
        """The folder of all responses."""
        return self.out.with_name(f"{self.out.name}.responses")

    @property
    def cutter(self) -> Segmenter | None:
        """Cuts the steps at once; None leaves that to the task, or to `kfh segment`."""
        return None if self.by_task or self.segmenter == "none" else super().cutter

    @property
    def by_task(self) -> bool:
        """Whether the task gives the steps and their labels."""
        return self.segmenter == "task"

    def selection_json(self) -> dict[str, Any]:
        """The selection as it stands in the header."""
        return {
            "keep": self.keep,
            "easy": self.easy,
            "per_problem": self.per_problem,
            "segmenter": "task" if self.by_task else self.cutter and self.cutter.to_json(),
        }
