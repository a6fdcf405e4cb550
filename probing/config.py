"""The settings of a probe, and how it reports progress."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from probing.choices import (
    BATCH_TOKENS,
    EMBEDDED,
    PERMUTATIONS,
    POCKET,
    Backend,
    BatchTokens,
    Control,
    Looking,
    Metric,
    Null,
    Selection,
)
from probing.errors import ConfigError
from probing.files.headers import part_json
from probing.models.load import MODEL, ModelSource, pocket_model
from probing.models.processes import Shard
from probing.settings import check, choice, to_json
from probing.traces.source import (
    StepCutting,
    TraceChoosing,
    TraceReading,
    TraceSource,
    pocket_traces,
)

RANKING, ARRAY = "Ranking", "Job array"  # panels of the command line


@dataclass(frozen=True)
class ProbeConfig(ModelSource, TraceReading, StepCutting, TraceChoosing):
    """All settings of a probe, checked on creation. Field by field as the command line has them.

    Each field's help says what it is.

    Raises:
        ConfigError: a value that is no choice or out of bounds, or another model without traces.
    """

    traces: Path = choice(
        Path("pocket"),
        "Labelled trace file (JSONL, .gz too); pocket, pocket-long: embedded. "
        "Default: those of the embedded model.",
    )
    out: Path = choice(Path("runs/probe"), "Folder for the results.")
    answer: Looking = choice(
        "all",
        "Answer tokens that look back; bare: the last box, the rest of the answer taken out.",
        panel=RANKING,
    )
    by: Metric = choice("sra", "Metric to pick heads by.", panel=RANKING)
    select: Selection = choice(
        "top",
        "How heads are picked: the best ones, or one by one the best in the mean with those "
        "before (reads all scores once a head).",
        panel=RANKING,
    )
    top: int = choice(3, "Number of heads in the set.", least=1, panel=RANKING)
    null: Null = choice(
        "problems", "What chance is: no ranking of new problems, or permuted labels.", panel=RANKING
    )
    permutations: int = choice(PERMUTATIONS, "Draws of the null.", least=1, panel=RANKING)
    control: Control = choice(
        "none", "Score the traces by untrained models of the same shape, too.", panel=RANKING
    )
    control_draws: int = choice(5, "Untrained models of the control.", least=3, panel=RANKING)
    seed: int = choice(0, "Of bootstrap, null and random weights.", panel=RANKING)
    backend: Backend = choice("transformers", "What captures attention.", panel=MODEL)
    batch_tokens: BatchTokens = choice(
        BATCH_TOKENS,
        "Tokens in a forward pass; auto: as many as memory holds.",
        least=1,
        panel=MODEL,
    )
    resume: bool = choice(True, "Go on from the traces scored in --out.", panel=MODEL)
    shards: str | None = choice(
        None,
        "i/n: only score, into --out/shards, the i-th share of n (1/4 to 4/4): of the batches of "
        "the whole run, which are cut from all traces by length, every n-th. No ranking.",
        panel=ARRAY,
    )
    merge: bool = choice(
        False, "Join all n finished shards in --out and rank; loads no weights.", panel=ARRAY
    )

    def __post_init__(self) -> None:
        """Check what can be known before anything is read; an embedded model becomes its paths."""
        check(self)
        if (self.shards is not None or self.merge) and self.batch_tokens == "auto":
            raise ConfigError(
                "--shards and --merge need a number for --batch-tokens: auto finds one for each "
                "machine, and all shards must cut the same batches"
            )
        if self.shards is not None:
            Shard.parse(self.shards)
            if self.merge:
                raise ConfigError("--shards scores one shard, --merge joins all: give one of them")
        for name in ("traces", "out"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        if str(self.traces) == POCKET and self.model in EMBEDDED:
            object.__setattr__(self, "traces", Path(self.model))
        if (name := str(self.traces)) in EMBEDDED:
            if self.model not in (name, str(pocket_model(name))):
                raise ConfigError("--model needs --traces: labelled traces, best of that model")
            object.__setattr__(self, "traces", pocket_traces(name))
        if self.model in EMBEDDED:
            object.__setattr__(self, "model", str(pocket_model(self.model)))

    @property
    def source(self) -> TraceSource:
        """The trace part of the settings."""
        names = [
            item.name
            for part in (TraceReading, StepCutting, TraceChoosing)
            for item in fields(part)
        ]
        return TraceSource(self.traces, **{name: getattr(self, name) for name in names})

    def to_json(self) -> dict[str, Any]:
        """The settings as they stand in the run file."""
        settings = to_json(self)
        if not isinstance(self.segmenter, str):
            settings["segmenter"] = part_json(self.segmenter)["name"]
        return settings
