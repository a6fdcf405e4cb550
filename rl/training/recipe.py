"""Recipes: the settings of a run as a YAML file, checked key by key.

A recipe is flat: keys of `TrainConfig` and of `AttnPOConfig` side by side. `base: OTHER.yaml`
(beside it) takes another recipe's keys first. `--set key=value` comes last.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from probing.choices import DTYPES
from probing.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"


class _Loader(yaml.SafeLoader):
    """YAML as people write settings: `no` is a text (save_strategy: no), 1e-4 is a number."""


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [entry for entry in entries if entry[0] != _BOOL]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(?:true|false|True|False)$"), [*"tTfF"])
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"]
)


@dataclass(frozen=True)
class TrainConfig:
    """What a run is made of, beside the settings of the trainer; checked on creation.

    Args:
        model: hub id or folder; `pocket` is the embedded model.
        data: a question set, see `rl.tasks.questions.load_questions`.
        out: folder of the run.
        heads: a head file, or the name of a shipped head set; None where the method needs none.
        limit: at most so many questions.
        template: prompt template, see `rl.tasks.prompts`.
        think_start: what opens the reasoning.
        dtype: of the weights: auto, float32, bfloat16 or float16. Training in float32 with
            `bf16: true` (autocast) is the usual way.
        probe_every: probe the policy again every so many steps; 0 never.
        probe_traces: the labelled traces for that.
        trust_remote_code: run code that comes with the model.
        trainer: settings of `AttnPOConfig`.

    Raises:
        ConfigError: a value out of range, or `probe_every` without traces.
    """

    model: str
    data: str
    out: Path
    heads: str | None = None
    limit: int | None = None
    template: str = "auto"
    think_start: str = "<think>\n"
    dtype: str = "float32"
    probe_every: int = 0
    probe_traces: str | None = None
    trust_remote_code: bool = False
    trainer: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check what can be known before anything is read."""
        if self.dtype not in DTYPES:
            raise ConfigError(f"unknown dtype {self.dtype!r}; choose {', '.join(DTYPES)}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1, is {self.limit}")
        if self.probe_every < 0 or (self.probe_every and not self.probe_traces):
            raise ConfigError("probe_every needs probe_traces, and must not be negative")

    def to_json(self) -> dict[str, Any]:
        """All settings as they stand in run.json, flat as in a recipe."""
        own = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name not in ("out", "trainer")
        }
        return {**own, **(self.trainer or {})}


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with kfh."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The path of a recipe: a file, or the name of a shipped one.

    Raises:
        ConfigError: there is neither.
    """
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    raise ConfigError(f"no recipe {name!r}: give a file, or one of {', '.join(shipped_recipes())}")


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings of a recipe, those of its base first.

    Raises:
        ConfigError: not YAML, not a mapping, or an unknown key.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of settings to values")
    base = content.pop("base", None)
    check_keys(content, str(path))
    return {**(read_recipe(path.parent / base) if base else {}), **content}


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as settings; values are read as in YAML.

    Example:
        >>> parse_settings(["max_steps=60", "learning_rate=1e-4", "save_strategy=no"])
        {'max_steps': 60, 'learning_rate': 0.0001, 'save_strategy': 'no'}
    """
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: write key=value")
        found[key.strip()] = yaml.load(value, _Loader)
    check_keys(found, "--set")
    return found


def check_keys(settings: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a key that no setting has."""
    known = {*_own_keys(), *_trainer_keys()} - {"out", "trainer", "output_dir"}
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(f"{where}: unknown setting {key!r}{hint}")


def train_config(out: Path, *layers: Mapping[str, Any]) -> TrainConfig:
    """The configuration of layers of settings, later ones first in rank; None leaves a key be."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update({key: value for key, value in layer.items() if value is not None})
    own = {key: value for key, value in merged.items() if key in _own_keys()}
    rest = {key: value for key, value in merged.items() if key not in own}
    for name in ("model", "data"):
        if name not in own:
            raise ConfigError(f"no {name}: name it in the recipe, or give --{name}")
    return TrainConfig(**own, out=out, trainer=rest)


def _own_keys() -> set[str]:
    return {item.name for item in fields(TrainConfig)}


def _trainer_keys() -> set[str]:
    from rl.attnpo.config import AttnPOConfig

    return {item.name for item in fields(AttnPOConfig)}
