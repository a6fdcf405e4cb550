"""Head sets: the heads chosen on a model, with what they were chosen by, as a JSON file."""

from __future__ import annotations

import random
import tempfile
import warnings
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from probing.choices import LOOKING, RULES, Head
from probing.errors import ConfigError, DataError, ModelError
from probing.files.headers import HEADER, SCHEMA, data_path, file_header, read_object, write_json
from probing.files.reading import shaped
from probing.models.identity import ModelCard
from probing.settings import check_keys, unknown

FILE = "heads.json"  # on the hub


class HeadSetWarning(UserWarning):
    """A head set is loaded that does not beat the best control."""


@dataclass(frozen=True)
class HeadFigures:
    """One head of a set; a figure is None where the source does not give it."""

    layer: int
    head: int
    sra: float | None = None
    sra_interval: tuple[float, float] | None = None
    balanced: float | None = None
    balanced_interval: tuple[float, float] | None = None
    gating: float | None = None
    p: float | None = None  # of the metric chosen by, corrected for the choice among all heads
    held_out: dict[str, float] | None = None  # metrics on the traces not used to choose


@dataclass(frozen=True)
class _Cut:
    """What of `segmenter` others cut their traces by."""

    name: str
    min_chars: int | None = None
    phrases: str | None = None


@dataclass(frozen=True)
class HeadSet:
    """Heads to train with, and everything needed to score steps with them in the same way.

    `caveats` says, in sentences, where the set does not beat the best control on the traces that
    it was not chosen on.
    """

    heads: tuple[HeadFigures, ...]
    model: ModelCard
    segmenter: dict[str, Any] | None = None
    rule: str = "start"  # how steps take tokens: start or overlap
    think_end: str | None = None  # what ended the reasoning; None: not known
    think_end_at: str | None = None  # which one, first or last
    answer: str = "all"  # which answer tokens are F: all, values, boxed or bare
    traces: dict[str, Any] | None = None  # file, hash, number used
    labels: dict[str, Any] | None = None
    selection: dict[str, Any] | None = None  # by, how, split, problems, controls, ensemble
    source: str | None = None
    caveats: tuple[str, ...] = ()
    header: dict[str, Any] = field(default_factory=dict)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The heads as `(layer, head)`."""
        return [(head.layer, head.head) for head in self.heads]

    @property
    def chosen_on(self) -> frozenset[str] | None:
        """What the problems that the heads were chosen on are known by (`Trace.problem_marks`).

        None where the set does not say: an older or a published one.
        """
        return frozenset((self.selection or {}).get("problems_chosen_on") or ()) or None

    @property
    def whole_answer(self) -> str:
        """`answer`, for traces that are taken as they are.

        Raises:
            ConfigError: the heads looked back from bare answers.
        """
        if self.answer == "bare":
            raise ConfigError(
                "this head set looks back from bare answers (kfh probe --answer bare), for which "
                "the rest of each answer was taken out; a response that is not cut has none. Use "
                "a set by --answer all"
            )
        return self.answer

    def save(self, path: str | Path) -> None:
        """Write the set, whole or not at all."""
        content: dict[str, Any] = {HEADER: self.header or file_header("head set")}
        for item in fields(self):
            if item.name not in ("header", "heads", "model"):
                content[item.name] = getattr(self, item.name)
        content["model"] = asdict(self.model)
        content["heads"] = [asdict(head) for head in self.heads]
        write_json(Path(path), content)

    @classmethod
    def load(cls, path: str | Path, config: Any = None, *, warn: bool = True) -> HeadSet:
        """Read and check a head set; one with caveats gives a `HeadSetWarning`, once a set.

        Args:
            path: a head file, or the name of a shipped one (see `shipped_head_sets`).
            config: the config of the model to use it with; its shape is then checked.
            warn: whether to warn of caveats: a command that prints them does not.

        Raises:
            DataError: not a head set, or one of a newer schema.
            ModelError: the set is of a model with another shape.
        """
        path = Path(path)
        shipped = shipped_head_sets()
        if not path.exists() and str(path) in shipped:
            path = data_path("heads", f"{path}.json")
        elif not path.exists() and path.suffix != ".json":
            raise DataError(f"{unknown('head set', str(path), shipped)}, or give a head file")
        content = read_object(path, "as a head set")
        head_set = cls._from_json(path, content)
        if config is not None:
            head_set.check(config)
        for text in head_set.caveats if warn else ():
            _warn_once(f"{path}: {text}")
        return head_set

    @classmethod
    def _from_json(cls, path: Path, content: dict[str, Any]) -> HeadSet:
        given = content.get(HEADER)
        header: dict[str, Any] = given if isinstance(given, dict) else {}
        schema = header.get("schema")
        if type(schema) is int and schema > SCHEMA:
            raise DataError(
                f"{path}: written by kfh {header.get('version')} in schema {schema}; "
                f"this kfh reads up to {SCHEMA}. Update kfh."
            )
        try:
            if type(schema) is not int:
                raise ValueError("no header of kfh")
            head_set = shaped(cls, {**content, "header": header})
            for head in content["heads"]:
                check_keys(HeadFigures, head)
            for name, known in (("rule", RULES), ("answer", LOOKING)):
                if (given := getattr(head_set, name)) not in known:
                    raise ValueError(unknown(name, given, known))
            if head_set.segmenter is not None:
                shaped(_Cut, head_set.segmenter)
            for name in ("problems_chosen_on", "problems_held_out"):
                shaped(list[str], (head_set.selection or {}).get(name) or [])
        except (ConfigError, ValueError) as error:
            raise DataError(f"{path}: not a head set, or a damaged one ({error})") from error
        heads = head_set.heads
        if not heads or len(set(head_set.pairs)) != len(heads):
            raise DataError(f"{path}: a head set needs heads, and none of them twice")
        for layer, head in head_set.pairs:
            if not (0 <= layer < head_set.model.layers and 0 <= head < head_set.model.heads):
                raise DataError(f"{path}: {head_set.model.describe()} has no head {layer}.{head}")
        return head_set

    def push_to_hub(self, repo: str, *, private: bool = False, client: Any = None) -> str:
        """Share the set on the Hugging Face hub: `heads.json`, and a card made from its evidence.

        The file is shared as it is: the paths and the command that it names are seen by all who
        see the repository.

        Args:
            repo: OWNER/NAME; made where it is not there.
            private: whether a new one is.
            client: instead of the hub's own (`huggingface_hub.HfApi`).

        Returns:
            The address of the repository.

        Raises:
            ConfigError: the hub does not take it.
        """
        from probing.files.card import card_text
        from probing.files.hub import upload

        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / FILE)
            content = (Path(folder) / FILE).read_bytes()
        files = {FILE: content, "README.md": card_text(self, repo).encode()}
        message = f"Key-Focus Heads of {self.model.id}"
        return upload(repo, files, message, private=private, client=client)

    @classmethod
    def from_hub(
        cls,
        repo: str,
        config: Any = None,
        *,
        revision: str | None = None,
        client: Any = None,
        warn: bool = True,
    ) -> HeadSet:
        """Fetch a shared set and check it; arguments and errors as for `load`.

        Args:
            repo: OWNER/NAME.
            config: of the model to use it with.
            revision: branch, tag or commit; None: the newest.
            client: instead of the hub's own (`huggingface_hub.HfApi`).
            warn: whether to warn of caveats.

        Raises:
            DataError: it cannot be fetched, or is no head set.
            ModelError: the set is of a model with another shape.
        """
        from probing.files.hub import download

        return cls.load(download(repo, FILE, revision, client=client), config, warn=warn)

    def others(self, seed: int) -> list[Head]:
        """As many heads as the set has, drawn from the model's others.

        Raises:
            ModelError: it has too few.
        """
        every = [(i, k) for i in range(self.model.layers) for k in range(self.model.heads)]
        others = [pair for pair in every if pair not in self.pairs]
        if len(others) < len(self.pairs):
            raise ModelError(
                f"the model has {len(others)} heads beside the set: too few to draw from"
            )
        return random.Random(seed).sample(others, len(self.pairs))

    def check(self, config: Any) -> None:
        """Raise ModelError unless the model of this config has the set's shape."""
        other = ModelCard.of(str(getattr(config, "_name_or_path", "") or "the model"), config)
        if (other.layers, other.heads) != (self.model.layers, self.model.heads):
            raise ModelError(
                f"this head set is of {self.model.describe()}; it does not fit "
                f"{other.describe()}. Probe that model to get its own heads."
            )


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, HeadSetWarning, stacklevel=3)


def shipped_head_sets() -> list[str]:
    """Names of the head sets that come with kfh (published ones)."""
    return sorted(path.stem for path in data_path("heads").glob("*.json"))
