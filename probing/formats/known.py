"""The formats that are known, and which of them a record is, by its fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from probing.errors import ConfigError, DataError
from probing.files.reading import BadLine
from probing.formats import chats, evaluations, judged, reasoning
from probing.formats.drafts import Draft
from probing.formats.mapped import mapped
from probing.formats.reasoning import ANSWERED, ASKED, GOLD, THOUGHT, Record
from probing.settings import unknown

Reader = Callable[[Record], Iterator[Draft | BadLine]]
LOOKED_AT = 20  # records by which the format is told


@dataclass(frozen=True)
class Format:
    """A form of records.

    Args:
        name: as it is printed.
        fields: names that tell it: all of a group, of one group or another.
        read: a record → drafts, and losses (`BadLine`, raised for a whole record).
        says: what of it is read, for the line that says so.
        joined: puts records together before they are read.
        told: what else a record must be.
    """

    name: str
    fields: tuple[tuple[str, ...], ...]
    read: Reader
    says: str
    joined: Callable[[Iterable[tuple[int, Any]]], Iterator[tuple[int, Any]]] | None = None
    told: Callable[[Record], bool] = lambda record: True

    def fits(self, record: Any) -> bool:
        """Whether a record has the fields, and what else tells it."""
        return (
            isinstance(record, Mapping)
            and any(all(name in record for name in group) for group in self.fields)
            and self.told(record)
        )

    def __str__(self) -> str:
        """Name and fields, in one line."""
        return f"{self.name}: {self.says}"


def each(*groups: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """One name of each group, in all ways."""
    made: tuple[tuple[str, ...], ...] = ((),)
    for group in groups:
        made = tuple((*before, name) for before in made for name in group)
    return made


def trace(record: Record) -> Iterator[Draft | BadLine]:
    """A line of a trace file of kfh; it is taken as it is, and never comes here."""
    raise BadLine("a trace", "lines of a trace file are taken as they are")


TRACE = Format(
    "kfh traces", (("id", "prompt", "response"),), trace, "id, prompt, response, steps[]"
)
# The first that fits counts, so those with fields of their own stand first.
FORMATS = {
    "openr1": Format(
        "OpenR1-Math",
        (("problem", "generations"),),
        reasoning.openr1,
        "problem, generations[], correctness_math_verify[]",
    ),
    "openthoughts": Format(
        "OpenThoughts",
        (("deepseek_reasoning", "deepseek_solution"),),
        reasoning.openthoughts,
        "problem, deepseek_reasoning, deepseek_solution",
    ),
    "s1k": Format(
        "s1K",
        each(
            ("question",),
            (
                "thinking_trajectories",
                "deepseek_thinking_trajectory",
                "gemini_thinking_trajectory",
            ),
        ),
        reasoning.s1k,
        "question, …thinking_trajectory, …attempt, …grade",
    ),
    "thought-anchors": Format(
        "Thought Anchors",
        (("problem", "chunks_labeled"),),
        judged.thought_anchors,
        "problem, base_solution, chunks_labeled[]; labels: the upper and the lower third of "
        "counterfactual_importance_kl",
    ),
    "processbench": Format(
        "ProcessBench",
        (("problem", "steps", "label"),),
        judged.processbench,
        "problem, steps[], label, final_answer_correct; labels: essential before the first error, "
        "redundant that step",
    ),
    "prm800k": Format(
        "PRM800K",
        (("question", "label"),),
        judged.prm800k,
        "question, label.steps[]; labels: rating 1 essential, 0 and −1 redundant",
    ),
    "lm-eval": Format(
        "lm-evaluation-harness samples",
        (("doc_id", "resps"),),
        evaluations.lm_eval,
        "doc, target, arguments, resps[], metrics[]",
    ),
    "lighteval": Format(
        "lighteval details",
        (
            ("doc", "model_response"),
            ("__doc__", "__model_response__"),
            ("full_prompt", "predictions"),
        ),
        evaluations.lighteval,
        "doc, model_response.text[], metric",
    ),
    "inspect": Format(
        "inspect_ai log",
        (("input", "output", "scores"), ("input", "output", "epoch")),
        evaluations.inspect,
        "input, target, messages[], output, scores",
    ),
    "batch": Format(
        "batch results",
        (("custom_id", "response"), ("custom_id", "body")),
        chats.batch,
        "custom_id, response.body.choices[], with body.messages[] of the batch's input",
        chats.with_requests,
    ),
    "vllm": Format("vLLM outputs", (("prompt", "outputs"),), chats.vllm, "prompt, outputs[].text"),
    "chat": Format(
        "chat log",
        (
            *each(chats.REQUEST, chats.RESPONSE),
            ("messages", "response"),
            ("messages", "choices"),
            ("choices",),
        ),
        chats.chat_log,
        "request.messages[], response.choices[].message",
    ),
    "conversations": Format(
        "conversations",
        (("conversations",),),
        reasoning.conversations,
        "conversations[] of from and value",
    ),
    "solution": Format(
        "worked solutions",
        (("problem", "solution"),),
        reasoning.solution,
        "problem, solution (its last paragraph is the answer)",
        told=reasoning.is_worked,
    ),
    "messages": Format(
        "messages",
        (("messages",),),
        reasoning.messages,
        "messages[] of role, content, reasoning",
    ),
    "pair": Format(
        "prompt and response",
        (*each(ASKED, ANSWERED), *each(ASKED, THOUGHT, GOLD)),
        reasoning.pair,
        f"one of {', '.join(ASKED)}; one of {', '.join(ANSWERED)}, or reasoning and answer",
    ),
    "string": Format(
        "strings", (("text",),), reasoning.string, "a text, <think> behind the prompt"
    ),
}


def chosen(name: str, paths: Mapping[str, str], first: Iterable[Any]) -> Format:
    """The format of a source.

    Args:
        name: a key of `FORMATS`, or `auto`: what most of the first records are.
        paths: of fields, by `--map`; these decide alone.
        first: records of the source; those that could not be read are passed over.

    Raises:
        ConfigError: no such format.
        DataError: no format is known that the records fit.
    """
    if paths:
        said = ", ".join(f"{field} from {path}" for field, path in paths.items())
        return Format("a format of your own", (), mapped(paths), said)
    if name != "auto":
        if name not in FORMATS:
            raise ConfigError(unknown("format", name, ["auto", *FORMATS]))
        return FORMATS[name]
    seen = list(islice(first, LOOKED_AT))
    good = [record for record in seen if isinstance(record, Mapping)]
    bad = [record for record in seen if isinstance(record, BadLine)]
    fitting = (next((f for f in (TRACE, *FORMATS.values()) if f.fits(r)), None) for r in good)
    if counts := Counter(each for each in fitting if each):
        return counts.most_common(1)[0][0]
    if not good:
        raise DataError(f"no record that can be read{f'; first: {bad[0]}' if bad else ''}")
    fields = ", ".join(map(str, list(good[0])[:20]))
    raise DataError(
        f"no format is known of records with the fields {fields}: name them with --map, such as "
        "--map problem=… --map reasoning=… --map answer=…; or choose --format " + ", ".join(FORMATS)
    )
