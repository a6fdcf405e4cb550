"""Plans of studies: stages that are commands of kfh, in a YAML file that reads like a protocol.

about: one line
needs: what to do where the model is not there
vars: {model: pocket, traces: 200}       # `{model}`, `{traces}` and `{out}` in the commands
small: {traces: 40}                      # other values for --small
keeps: [probe/*.json]                    # what --keep copies, below the folder of the study
stages:
  - name: probe
    about: which heads rank the steps
    run: [kfh probe --model {model} --limit {traces} --out {out}/probe]
    minutes: 4                           # of two cores; {minutes: 4, small: 1} where they differ
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from probing.errors import ConfigError
from probing.settings import check_keys, unknown

PLANS = Path(__file__).parent / "plans"
PACKAGE = "package:"  # package:NAME/GLOB, a file inside an installed package
_VARIABLE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Stage:
    """One stage: commands that are run in turn, once.

    `minutes` is about how long it takes on two cores, of the whole study and of the small one.
    """

    name: str
    run: tuple[str, ...]
    about: str = ""
    minutes: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, given: Any, where: str) -> Stage:
        """A stage as it stands in a plan."""
        entry = _mapping(given, where)
        check_keys(cls, entry, where)
        name, run = entry.get("name"), entry.get("run")
        run = [run] if isinstance(run, str) else run
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(f"{where}: name must be one word, is {name!r}")
        if not isinstance(run, list) or not run or not all(isinstance(r, str) for r in run):
            raise ConfigError(f"{where} ({name}): run must be a command, or a list of them")
        for command in run:
            if shlex.split(command)[:1] != ["kfh"]:
                raise ConfigError(f"{where} ({name}): a command of kfh is wanted, not {command!r}")
        about = entry.get("minutes", 0)
        both = _mapping(about, where) if isinstance(about, Mapping) else {"minutes": about}
        try:
            whole = float(both["minutes"])
            minutes = (whole, float(both.get("small", whole)))
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"{where} ({name}): minutes must be a number, is {about!r}") from None
        return cls(name, tuple(run), str(entry.get("about", "")), minutes)


@dataclass(frozen=True)
class Plan:
    """A study: its stages in order, the values in their commands, and what is kept of it."""

    about: str
    stages: tuple[Stage, ...]
    vars: dict[str, str] = field(default_factory=dict)
    small: dict[str, str] = field(default_factory=dict)
    keeps: tuple[str, ...] = ()
    needs: str = ""

    @classmethod
    def load(cls, name: str) -> Plan:
        """A plan by the name of one that comes with kfh, or from a file.

        Raises:
            ConfigError: there is none, or it is not as the module says.
        """
        path = next((p for p in (Path(name), PLANS / f"{name}.yaml") if p.is_file()), None)
        if path is None:
            shipped = sorted(plan.stem for plan in PLANS.glob("*.yaml"))
            raise ConfigError(f"{unknown('study', name, shipped)}, or give a YAML file")
        try:
            content = _mapping(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read as YAML ({error})") from error
        check_keys(cls, content, str(path))
        listed = content.get("stages")
        if not isinstance(listed, list) or not listed:
            raise ConfigError(f"{path}: stages must be a list of them")
        stages = [Stage.of(entry, f"{path}, stage {n}") for n, entry in enumerate(listed, 1)]
        names = [stage.name for stage in stages]
        if len(set(names)) < len(names):
            raise ConfigError(f"{path}: two stages have one name ({', '.join(names)})")
        values = {
            key: {k: str(v) for k, v in _mapping(content.get(key) or {}, str(path)).items()}
            for key in ("vars", "small")
        }
        for key in values["small"]:
            if key not in values["vars"]:
                raise ConfigError(f"{path}: small: {unknown('value', key, values['vars'])}")
        kept = [str(each) for each in content.get("keeps") or ()]
        return cls(
            str(content.get("about", "")),
            tuple(stages),
            values["vars"],
            values["small"],
            tuple(kept),
            str(content.get("needs", "")),
        )

    def filled(self, out: Path, small: bool, given: Sequence[str]) -> dict[str, list[list[str]]]:
        """The commands of each stage, as lists of words.

        Args:
            out: folder of the study, `{out}` in the commands.
            small: take the values of the small study.
            given: `key=value`, before those of the plan.

        Raises:
            ConfigError: a value that the plan does not have, or a file that is not there.
        """
        values = {**self.vars, **(self.small if small else {})}
        for pair in given:
            key, equals, value = pair.partition("=")
            if not equals or key not in values:
                why = unknown("value", key, values) if equals else "write key=value"
                raise ConfigError(f"--set {pair}: {why}")
            values[key] = value
        values = {key: self._located(value) for key, value in values.items()} | {"out": str(out)}

        def put(word: str, where: str) -> str:
            for name in _VARIABLE.findall(word):
                if name not in values:
                    raise ConfigError(f"{where}: {unknown('value', name, values)}")
            return _VARIABLE.sub(lambda found: values[found[1]], word)

        return {
            stage.name: [
                [put(word, f"stage {stage.name}") for word in shlex.split(command)]
                for command in stage.run
            ]
            for stage in self.stages
        }

    def _located(self, value: str) -> str:
        """A value, or the file that `package:NAME/GLOB` means."""
        if not value.startswith(PACKAGE):
            return value
        name, _, pattern = value.removeprefix(PACKAGE).partition("/")
        spec = find_spec(name)
        places = list(spec.submodule_search_locations or ()) if spec else []
        found = [file for place in places for file in sorted(Path(place).glob(pattern))]
        if not found:
            raise ConfigError(f"{value} is not there. {self.needs}".strip())
        return str(found[0])


def _mapping(given: Any, where: str) -> dict[str, Any]:
    """A mapping with texts as keys, or an error."""
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ConfigError(f"{where}: a mapping of names to values is wanted, not {given!r:.60}")
    return dict(given)
