"""Recipes: the settings of a run as a YAML file, checked key by key.

A recipe is flat: keys of `TrainConfig` and of `AttnPOConfig` side by side. `base: OTHER.yaml`
(beside it) takes another recipe's keys first. `--set key=value` comes last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from probing.choices import EMBEDDED, POCKET, Dtype, Kernel
from probing.errors import ConfigError
from probing.files.headers import text_hash
from probing.settings import check, choice, unknown
from rl.tasks.base import TaskChoice

EVERY_LINEAR = "all-linear"  # peft's word: each but the language-model head
RECIPES = Path(__file__).parent / "recipes"
# What may be another when a run goes on: how long it is, and when it writes.
MAY_CHANGE = frozenset(
    ["max_steps", "save_steps", "save_strategy", "save_total_limit", "logging_steps"]
)


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
class TrainConfig(TaskChoice):
    """What a run is made of, beside the settings of the trainer; checked on creation.

    Each field's help says what it is; `trainer` holds settings of `AttnPOConfig`.

    Raises:
        ConfigError: a value out of range, `probe_every` without traces, or what an adapter is like
            without one.
    """

    model: str = choice(help="Hub id, folder or .gguf file; pocket, pocket-long: embedded.")
    data: str = choice(
        help="Questions: FILE.jsonl, hub:OWNER/NAME, rg:TASK, pocket:N or module:name; default: "
        "--task, else the recipe's."
    )
    out: Path = choice(help="Folder of the run.")
    heads: str | None = choice(None, "Head file of `kfh probe`, or a shipped head set.")
    template: str = choice("auto", "Prompt template, see rl.tasks.prompts.")
    think_start: str = choice("<think>\n", "What opens the reasoning.")
    dtype: Dtype = choice("float32", "Of the weights; with bf16: true, float32 is the usual way.")
    attention: Kernel = choice(
        "auto", "Its kernel: sdpa, eager, flash_attention_2; auto: the model's own."
    )
    lora_r: int = choice(
        0, "Rank of a LoRA adapter that is trained in place of all weights; 0: none.", least=0
    )
    lora_alpha: int | None = choice(None, "Its scale is this over lora_r; default: 2 · lora_r.")
    lora_dropout: float = choice(0.0, "Of what goes into the adapter.", least=0.0, most=1.0)
    lora_target_modules: str = choice(
        EVERY_LINEAR, "The linear layers that it is made for, by name, with a comma between."
    )
    lora_first_layer: int = choice(
        0, "The lowest layer with an adapter: nothing is computed backwards below it.", least=0
    )
    probe_every: int = choice(0, "Probe the policy again every so many steps; 0: never.", least=0)
    probe_traces: str | None = choice(None, "The labelled traces for that.")
    trust_remote_code: bool = choice(False, "Run code that comes with the model.")
    recipe: str | None = choice(None, "Name and hash of the recipe that the settings begin with.")
    trainer: Mapping[str, Any] | None = choice(None, "Settings of AttnPOConfig.")

    def __post_init__(self) -> None:
        """Check what can be known before anything is read."""
        check(self)
        if self.probe_every and not self.probe_traces:
            raise ConfigError("probe_every needs probe_traces")
        names = [item.name for item in fields(self) if item.name.startswith("lora_")]
        defaults = {item.name: item.default for item in fields(self)}
        given = [name for name in names if getattr(self, name) != defaults[name]]
        if given and not self.lora_r:
            raise ConfigError(f"{', '.join(given)}: without lora_r there is no adapter")

    def to_json(self) -> dict[str, Any]:
        """All settings as they stand in run.json, flat as in a recipe."""
        names = [item.name for item in fields(self) if item.name not in ("out", "trainer")]
        flat = {**{name: getattr(self, name) for name in names}, **(self.trainer or {})}
        settings: dict[str, Any] = json.loads(json.dumps(flat, default=str))
        return settings

    def going_on(self, former: Mapping[str, Any]) -> TrainConfig:
        """The settings to go on with a run with: these, and what they leave out as it was.

        Args:
            former: the settings of the run, as `to_json` gave them.

        Raises:
            ConfigError: these are of another run; the message names each setting that differs.
        """
        given = self.to_json()
        if given["recipe"] is None or former.get("recipe") is None:  # the library's; an old run's
            given["recipe"] = former.get("recipe")
        defaults = {item.name: item.default for item in _settings()}
        now = {**former, **given}
        changed = [
            key
            for key in sorted(now.keys() - MAY_CHANGE)
            if now[key] != former.get(key, defaults.get(key))
        ]
        if changed:
            was = ", ".join(f"{key} = {former.get(key)!r}, not {now[key]!r}" for key in changed)
            raise ConfigError(
                f"{self.out} holds another run ({was}): use another --out. What may change: "
                f"{', '.join(sorted(MAY_CHANGE))}"
            )
        return train_config(self.out, now)


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with kfh."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def default_recipe(model: str, method: str | None = None) -> str:
    """The recipe of a run that names none: the method's for `pocket`, else one for the model.

    Example:
        >>> default_recipe("pocket", "dler"), default_recipe("pocket-long"), default_recipe("x/y")
        ('dler', 'pocket-long', 'any')
    """
    if model not in EMBEDDED:
        return "any"
    return model if model != POCKET else method or "attnpo"


def find_recipe(name: str) -> Path:
    """The path of a recipe: a file, or the name of a shipped one.

    Raises:
        ConfigError: there is neither.
    """
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    raise ConfigError(f"{unknown('recipe', name, shipped_recipes())}, or give a YAML file")


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings of a recipe, those of its base first.

    Raises:
        ConfigError: not YAML, not a mapping, or an unknown key.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, RecursionError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of settings to values")
    base = content.pop("base", None)
    check_keys(content, str(path))
    return {**(read_recipe(path.parent / base) if base else {}), **content}


def recipe_settings(name: str) -> dict[str, Any]:
    """The settings of a recipe with its name and hash, by which a run knows it again."""
    settings = read_recipe(find_recipe(name))
    digest = text_hash(json.dumps(settings, sort_keys=True, default=str))
    return {"recipe": f"{Path(name).stem} {digest}", **settings}


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as settings; values are read as in YAML.

    Raises:
        ConfigError: a text without `=`, or an unknown key.

    Example:
        >>> parse_settings(["max_steps=60", "learning_rate=1e-4", "save_strategy=no"])
        {'max_steps': 60, 'learning_rate': 0.0001, 'save_strategy': 'no'}
    """
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: write key=value")
        settings[key.strip()] = yaml.load(value, _Loader)
    check_keys(settings, "--set")
    return settings


def check_keys(settings: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a key that no setting has."""
    known = {item.name for item in _settings()} - {"out", "trainer", "recipe", "output_dir"}
    for key in settings:
        if key not in known:
            raise ConfigError(f"{where}: {unknown('setting', key, sorted(known))}")


def train_config(out: Path, *layers: Mapping[str, Any]) -> TrainConfig:
    """The configuration of layers of settings, later ones first in rank; None leaves a key be.

    A layer with a task of its own and no data gives the task's own questions.

    Raises:
        ConfigError: no layer names the model or the data, or a value is out of range.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        given = {key: value for key, value in layer.items() if value is not None}
        if given.get("task"):
            given.setdefault("data", given["task"])
        merged.update(given)
    names = {item.name for item in fields(TrainConfig)}
    run = {key: value for key, value in merged.items() if key in names}
    for name in ("model", "data"):
        if name not in run:
            raise ConfigError(f"no {name}: name it in the recipe, or give --{name}")
    trainer = {key: value for key, value in merged.items() if key not in names}
    return TrainConfig(**run, out=out, trainer=trainer)


def _settings() -> list[Field[Any]]:
    """Every setting, of the run and of its trainer."""
    from rl.attnpo.config import AttnPOConfig

    return [*fields(AttnPOConfig), *fields(TrainConfig)]
