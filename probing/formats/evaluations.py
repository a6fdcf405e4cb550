"""Logs of evaluations: lm-evaluation-harness, lighteval, inspect_ai. Records to drafts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from probing.files.reading import BadLine, parse_json
from probing.formats.drafts import Draft, at, list_in, mapping_in, maybe_text, truth
from probing.formats.reasoning import ASKED, Record, turn_texts, turns_of

# Metrics of a sample that say whether its answer is right, the first that is there.
METRICS = ("exact_match", "math_verify", "extractive_match", "acc", "em", "pass@1", "mathd_verify")


def lm_eval(record: Record) -> Iterator[Draft | BadLine]:
    """A line of `samples_*.jsonl` of lm-evaluation-harness (`--log_samples`).

    As its evaluator writes them (docs/interface.md of the project): `doc_id`, `doc`, `target`,
    `arguments` (`gen_args_0.arg_0`; older: a list of lists), `resps[][]`, `filtered_resps`,
    `metrics[]` and a field for each of these. One response may stand there once for each filter;
    the first counts.
    """
    doc = record.get("doc")
    doc = doc if isinstance(doc, Mapping) else {}
    given = _argument(record.get("arguments"))
    first = list_in(record, "resps")[0]
    texts = first if isinstance(first, list) else [first]
    verdict = _metric(record, record.get("metrics")) if len(texts) == 1 else None
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            yield BadLine("no text", f"the response is {text!r:.40}, not generated text")
            continue
        yield Draft(
            text=text,
            **given,
            problem=maybe_text(doc, *ASKED[1:]),
            id=maybe_text(record, "doc_id"),
            gold=maybe_text(record, "target"),
            correct=verdict,
            number=number if len(texts) > 1 else None,
        )


def lighteval(record: Record) -> Iterator[Draft | BadLine]:
    """A row of lighteval's details (Parquet): `doc`, `model_response`, `metric`.

    Fields as in its reference (`Doc`: `query`, `choices`, `gold_index`, `id`; `ModelResponse`:
    `input`, `text[]`, `reasonings[]`); each may stand under `__doc__` and so on, or as JSON text.
    Older ones (`DetailsLogger.Detail`): `full_prompt`, `predictions[]`, `gold[]`, `metrics`.
    """
    record = _newer(record) if "full_prompt" in record else record
    doc, response, metric = (
        _object(record.get(name, record.get(f"__{name}__")), name)
        for name in ("doc", "model_response", "metric")
    )
    given = _input(response.get("input") or doc.get("query"))
    gold = doc.get("gold_index")
    gold = at(gold, 0) if isinstance(gold, list) else gold
    reference = at(doc.get("choices"), gold) if type(gold) is int and gold >= 0 else None
    texts = list_in(response, "text")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            yield BadLine("wrong type", f"text {number} is {text!r:.40}")
            continue
        thoughts = at(response.get("reasonings"), number)
        yield Draft(
            text=text,
            reasoning=thoughts if isinstance(thoughts, str) and thoughts.strip() else None,
            **given,
            problem=maybe_text(doc, "query"),
            id=maybe_text(doc, "id"),
            gold=reference if isinstance(reference, str) else None,
            correct=_metric(metric, list(metric)) if len(texts) == 1 else None,
            number=number if len(texts) > 1 else None,
        )


def _newer(record: Record) -> Record:
    """A row of older details in the form of those of today."""
    texts, gold = record.get("predictions"), record.get("gold")
    texts = texts[0] if isinstance(texts, list) and texts and isinstance(texts[0], list) else texts
    return {
        "doc": {"query": record.get("example"), "gold_index": 0, "choices": gold},
        "model_response": {"input": record.get("full_prompt"), "text": texts},
        "metric": record.get("metrics"),
    }


def inspect(record: Record) -> Iterator[Draft | BadLine]:
    """A sample of an inspect_ai log: `input`, `target`, `messages[]`, `output`, `scores`.

    Fields as in its reference (`EvalSample`, `ModelOutput`, `ContentReasoning`, `Score`).
    """
    output = record.get("output")
    choice = at(output.get("choices"), 0) if isinstance(output, Mapping) else None
    turn = choice.get("message") if isinstance(choice, Mapping) else None
    turns = record.get("messages")
    turns = turns if isinstance(turns, list) else []
    last = next((n for n in reversed(range(len(turns))) if _is_answer(turns[n])), len(turns))
    turn = turn if isinstance(turn, Mapping) else at(turns, last)
    if not isinstance(turn, Mapping):
        raise BadLine("no response", "no message of the assistant")
    thoughts, text = turn_texts(turn)
    asked = record.get("input")
    target = record.get("target")
    scores = record.get("scores")
    values = scores.values() if isinstance(scores, Mapping) else ()
    said = [truth(each.get("value")) for each in values if isinstance(each, Mapping)]
    name, epoch = maybe_text(record, "id"), record.get("epoch")
    yield Draft(
        text=text,
        reasoning=thoughts,
        messages=_input(asked)["messages"] if not turns[:last] else turns_of(turns[:last]),
        problem=asked if isinstance(asked, str) else None,
        id=f"{name}/{epoch}" if name and type(epoch) is int and epoch > 1 else name,
        gold=maybe_text({"": at(target, 0) if isinstance(target, list) else target}, ""),
        correct=next((value for value in said if value is not None), None),
        model=maybe_text(output, "model") if isinstance(output, Mapping) else None,
    )


def _is_answer(turn: Any) -> bool:
    return isinstance(turn, Mapping) and turn.get("role") == "assistant"


def _argument(arguments: Any) -> dict[str, Any]:
    """The prompt of a request of lm-evaluation-harness."""
    if isinstance(arguments, Mapping):
        first = next(iter(arguments.values()), None)
        given = first.get("arg_0") if isinstance(first, Mapping) else first
    else:
        given = at(at(arguments, 0), 0)
    return _input(at(given, 0) if isinstance(given, list) and len(given) == 1 else given)


def _input(given: Any) -> dict[str, Any]:
    """Prompt or messages of what was put to a model: a text, messages, or messages as JSON text."""
    if isinstance(given, str) and given.lstrip().startswith('[{"role"'):
        try:
            given = parse_json(given)
        except ValueError as error:
            raise BadLine("no prompt", f"messages that are no JSON ({error})") from error
    if isinstance(given, str) and given.strip():
        return {"prompt": given, "messages": ({"role": "user", "content": given},)}
    return {"prompt": None, "messages": turns_of(given)}


def _object(value: Any, name: str) -> Mapping[str, Any]:
    """An object, or one as JSON text; raises BadLine where it is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    return mapping_in({name: value}, name)


def _metric(record: Record, names: Any) -> bool | None:
    """The verdict of the first metric that says yes or no."""
    named = [n for n in names if isinstance(n, str)] if isinstance(names, list) else []
    verdicts = (truth(record.get(name)) for name in (*METRICS, *named))
    return next((verdict for verdict in verdicts if verdict is not None), None)
