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

import os
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from probing.errors import ConfigError
from probing.files.headers import data_path, text_hash
from probing.files.reading import parse_json
from probing.settings import unknown
from probing.traces.file import Trace

KINDS = ("essential", "redundant")
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


def _variable(name: str) -> str:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None:
        raise ValueError("should be the name of an environment variable")
    return name


def _address(url: str) -> str:
    if re.search(r"//[^/]*@", url):
        raise ValueError("holds a password; use key_env")
    return url


class _Strict(BaseModel):
    """What stands in a judge file: nothing is converted, and no value stands in a message."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


class Judge(_Strict):
    """A model that labels steps; the fields are those of the judge file.

    Raises:
        ValidationError: a value of the wrong type or out of range, or an unknown field.
    """

    name: str
    base_url: Annotated[str, AfterValidator(_address)]
    model: str
    key_env: Annotated[str, AfterValidator(_variable)] | None = None
    # A whole number stays one: kept answers are found by the text of the request.
    temperature: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0)] = 0.0
    max_tokens: int = Field(16384, ge=1)
    format: Literal["json_schema", "json_object", "none"] = "json_schema"
    extra: dict[str, Any] = Field(default_factory=dict)
    timeout: float = Field(600.0, gt=0)
    retries: int = Field(6, ge=0)
    pause: float = Field(1.0, ge=0)

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
        return self.model_dump()


class JudgeFile(_Strict):
    """The content of a judge file."""

    judges: tuple[Judge, ...] = Field(strict=False)  # YAML gives a list
    prompt: str | None = None
    max_chars: int = Field(MAX_CHARS, ge=1)


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
        try:
            text = path.read_text(encoding="utf-8")
            content = yaml.safe_load(text)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            raise ConfigError(f"{path}{where}: no YAML") from None
        try:
            file = JudgeFile.model_validate(content)
        except ValidationError as error:
            raise ConfigError(f"{path}: {'; '.join(_faults(error))}") from None
        names = [judge.name for judge in file.judges]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"{path}: needs at least one judge, each with a name of its own")
        for judge in file.judges:
            try:
                key = judge.key()
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
            if judge.key_env and key in text:
                raise ConfigError(
                    f"{path}: holds the key of judge {judge.name}: take it out; key_env names the "
                    "variable that holds it"
                )
        return cls(file.judges, _prompt(file.prompt, path), file.max_chars)

    def ask(self, trace: Trace) -> str:
        """The prompt for a trace: the problem, its numbered steps whole, the final answer.

        Characters of the response that no step covers (given steps may leave gaps) are not shown.
        """
        steps = (trace.response[step.start : step.end].strip() for step in trace.steps)
        return Template(self.prompt).substitute(
            problem=trace.problem or trace.prompt,
            steps="\n".join(f"[{n}] {text}" for n, text in enumerate(steps, 1)),
            answer=trace.answer_text().strip(),
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


def _faults(error: ValidationError) -> list[str]:
    """In words, what is wrong in which field of which judge; values are not shown.

    One of them may be a key.
    """
    faults = {}
    for fault in error.errors(include_input=False, include_url=False, include_context=False):
        kind, place = fault["type"], fault["loc"]
        of_judge = len(place) > 1
        where = f"judge {int(place[1]) + 1}: " if of_judge else ""
        name = str(place[2] if len(place) > 2 else place[0] if place else "the file")
        said = re.sub(r"^(Input|Value error,) ", "", fault["msg"])
        if kind == "missing":
            said = "is missing"
        elif kind == "model_type":
            name, said = ("it" if of_judge else "the file"), "should be keys with values"
        elif kind == "extra_forbidden":
            known = (Judge if of_judge else JudgeFile).model_fields
            hint = "; a key belongs into the environment" if "key" in name else ""
            faults[where + name] = where + unknown("key", name, known) + hint
            continue
        faults[where + name] = f"{where}{name} {said}"
    return list(faults.values())


def _prompt(name: Any, beside: Path) -> str:
    """The prompt's text: shipped, or a file beside the judge file."""
    path = beside.parent / str(name) if name else data_path("prompts", "judge.txt")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the prompt cannot be read ({error})") from error
    template = Template(text)
    names = {place["named"] or place["braced"] for place in template.pattern.finditer(text)}
    if names - {None} != set(FIELDS) or not _substitutes(template):
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
        content = parse_json(fenced[1] if fenced else bare)
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
