"""Judges: who they are, what they are asked, and how their answers are read.

A judge file is YAML:
    max_chars: 200000        # longer traces are left out, counted; default 200000
    prompt: my-prompt.txt    # default: the shipped data/prompts/judge.txt
    judges:
      - name: a              # stands in the label file
        base_url: https://…/v1
        model: …
        key_env: A_KEY       # the environment variable that holds the key; none for local servers
        temperature: 0
        max_tokens: 16384
        format: json_schema  # what is asked of the server: json_schema, json_object or none
        extra: {}            # goes into the body of each request
        timeout: 600         # seconds; requests that take longer are tried again
        retries: 6
        pause: 1.0           # seconds before the first retry; doubled after each
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from string import Template
from typing import Any

from probing.errors import ConfigError
from probing.files.headers import data_path, text_hash
from probing.traces.file import Trace

KINDS = ("essential", "redundant")
FORMATS = ("json_schema", "json_object", "none")
MAX_CHARS = 200_000
FIELDS = ("problem", "steps", "answer", "count")  # of the prompt
NO_KEY = "none"  # what local servers accept
SHORTEST_KEY = 8  # a shorter one could not be told from the words of an answer

SCHEMA = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "step": {"type": "integer"},
                    "label": {"type": "string", "enum": list(KINDS)},
                },
                "required": ["step", "label"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["steps"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Judge:
    """One judge; the fields are those of the judge file.

    Raises:
        ConfigError: a value of the wrong type or out of range, or a key where none belongs.
    """

    name: str
    base_url: str
    model: str
    key_env: str | None = None
    temperature: float = 0.0
    max_tokens: int = 16384
    format: str = "json_schema"
    extra: dict[str, Any] = field(default_factory=dict)
    timeout: float = 600.0
    retries: int = 6
    pause: float = 1.0

    def __post_init__(self) -> None:
        """Check the fields; values are not shown, since one of them may be a key."""
        numbers = ("temperature", "timeout", "pause", "max_tokens", "retries")
        good = {
            **{
                name: isinstance(getattr(self, name), str) for name in ("name", "base_url", "model")
            },
            **{name: _number(getattr(self, name)) for name in numbers},
            "key_env": self.key_env is None or _is_variable(self.key_env),
            "format": self.format in FORMATS,
            "extra": isinstance(self.extra, dict),
        }
        wrong = [name for name, fine in good.items() if not fine]
        if wrong:
            raise ConfigError(f"judge {self.name}: {', '.join(wrong)} cannot be used as given")
        if self.max_tokens < 1 or self.timeout <= 0:
            raise ConfigError(f"judge {self.name}: max_tokens and timeout must be positive")
        if re.search(r"//[^/]*@", self.base_url):
            raise ConfigError(f"judge {self.name}: base_url holds a password; use key_env")

    def key(self) -> str:
        """The key, from the environment.

        Raises:
            ConfigError: the variable is not set, or what it holds is no key.
        """
        if self.key_env is None:
            return NO_KEY
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise ConfigError(f"judge {self.name}: the variable {self.key_env} is not set")
        if len(key) < SHORTEST_KEY:
            raise ConfigError(
                f"judge {self.name}: {self.key_env} holds {len(key)} characters, which is no key"
            )
        return key

    def body(self, prompt: str) -> dict[str, Any]:
        """What decides the answer, as it is sent."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        if self.format == "json_schema":
            schema = {"name": "steps", "schema": SCHEMA}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.format == "json_object":
            body["response_format"] = {"type": "json_object"}
        return {**body, **self.extra}

    def to_json(self) -> dict[str, Any]:
        """The judge as it stands in headers: the name of the variable, never the key."""
        return asdict(self)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _is_variable(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) is not None


@dataclass(frozen=True)
class Panel:
    """The judges of a job, their prompt, and the longest trace that they are sent.

    Args:
        judges: at least one, each with a name of its own.
        prompt: text with `$problem`, `$steps`, `$answer` and `$count`.
        max_chars: of problem, steps and answer together.
    """

    judges: tuple[Judge, ...]
    prompt: str
    max_chars: int = MAX_CHARS

    @classmethod
    def load(cls, path: Path) -> Panel:
        """Read and check a judge file, and that every key is there.

        Raises:
            ConfigError: what is wrong in which field; a key that stands in the file.
        """
        import yaml

        try:
            text = path.read_text(encoding="utf-8")
            content = yaml.safe_load(text)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            raise ConfigError(f"{path}{where}: no YAML") from None
        if not isinstance(content, dict) or not isinstance(content.get("judges"), list):
            raise ConfigError(f"{path}: needs a list `judges`")
        _known(content, {"judges", "prompt", "max_chars"}, str(path))
        judges = tuple(
            _judge(entry, f"{path}, judge {n}") for n, entry in enumerate(content["judges"], 1)
        )
        names = [judge.name for judge in judges]
        if not judges or len(set(names)) < len(names):
            raise ConfigError(f"{path}: needs at least one judge, each with a name of its own")
        for judge in judges:
            if judge.key_env and judge.key() in text:
                raise ConfigError(
                    f"{path}: holds the key of judge {judge.name}: take it out; key_env names the "
                    "variable that holds it"
                )
        limit = content.get("max_chars", MAX_CHARS)
        if type(limit) is not int or limit < 1:
            raise ConfigError(f"{path}: max_chars must be a whole number above 0")
        return cls(judges, _prompt(content.get("prompt"), path), limit)

    def ask(self, trace: Trace) -> str:
        """The prompt for a trace: the problem, its numbered steps whole, the final answer.

        Characters of the response that no step covers (given steps may leave gaps) are not shown.
        """
        steps = (trace.response[step.start : step.end].strip() for step in trace.steps)
        return Template(self.prompt).substitute(
            problem=trace.problem or trace.prompt,
            steps="\n".join(f"[{n}] {text}" for n, text in enumerate(steps, 1)),
            answer=trace.response[trace.answer_start :].strip(),
            count=len(trace.steps),
        )

    def too_long(self, trace: Trace) -> bool:
        """Whether a trace is beyond the limit."""
        return len(trace.problem or trace.prompt) + len(trace.response) > self.max_chars

    def to_json(self) -> dict[str, Any]:
        """The panel as it stands in the header of a label file."""
        return {
            "judges": [judge.to_json() for judge in self.judges],
            "prompt_hash": text_hash(self.prompt),
            "max_chars": self.max_chars,
        }


def _known(entry: dict[Any, Any], known: set[str], where: str) -> None:
    unknown = [str(key) for key in entry if key not in known]
    if unknown:
        hint = "; a key belongs into the environment" if "key" in " ".join(unknown) else ""
        raise ConfigError(
            f"{where}: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}{hint}"
        )


def _judge(entry: Any, where: str) -> Judge:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: must have name, base_url and model")
    _known(entry, {item.name for item in fields(Judge)}, where)
    missing = [name for name in ("name", "base_url", "model") if name not in entry]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} missing")
    return Judge(**entry)


def _prompt(name: Any, beside: Path) -> str:
    """The prompt's text: shipped, or a file beside the judge file."""
    path = beside.parent / str(name) if name else data_path("prompts", "judge.txt")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the prompt cannot be read ({error})") from error
    template = Template(text)
    found = {found["named"] or found["braced"] for found in template.pattern.finditer(text)}
    if found - {None} != set(FIELDS) or not _substitutes(template):
        wanted = ", ".join(f"${name}" for name in FIELDS)
        raise ConfigError(f"{path}: the prompt must hold {wanted} and no other $ (write $$)")
    return text


def _substitutes(template: Template) -> bool:
    try:
        template.substitute(dict.fromkeys(FIELDS, ""))
    except (ValueError, KeyError):
        return False
    return True


class BadVerdict(Exception):
    """An answer of a judge that is not what was asked for; `kind` in two or three words."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def parse_verdict(text: str, count: int) -> list[str]:
    """The labels of `count` steps from a judge's answer.

    Reasoning up to `</think>` and a code fence around the JSON are taken off; nothing is guessed.

    Raises:
        BadVerdict: no JSON, not of the schema, or not each step once.

    Example:
        >>> parse_verdict('{"steps": [{"step": 1, "label": "redundant"}]}', 1)
        ['redundant']
    """
    bare = text.rpartition("</think>")[2].strip()
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n\s*```", bare, re.DOTALL)
    try:
        content = json.loads(fenced[1] if fenced else bare)
    except ValueError as error:
        raise BadVerdict("invalid JSON", f"not JSON ({error})") from error
    steps = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(steps, list) or not all(isinstance(item, dict) for item in steps):
        raise BadVerdict("wrong schema", 'it is no {"steps": [{"step", "label"}, …]}')
    labels: dict[int, str] = {}
    for item in steps:
        number, label = item.get("step"), item.get("label")
        if type(number) is not int or label not in KINDS:
            raise BadVerdict("wrong schema", f"an entry is {item!r:.80}")
        if number in labels:
            raise BadVerdict("wrong steps", f"step {number} stands there twice")
        labels[number] = label
    if set(labels) != set(range(1, count + 1)):
        raise BadVerdict(
            "wrong steps", f"it labels {len(labels)} steps, but they are 1 to {count}, each once"
        )
    return [labels[number] for number in range(1, count + 1)]
