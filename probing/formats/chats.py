"""Logs of chat interfaces: a request and its response. Records to drafts.

Fields as in OpenAI's reference (chat completions, completions, responses, the output of the batch
interface), DeepSeek's (`reasoning_content`) and vLLM's (`reasoning`, its former name
`reasoning_content`; `RequestOutput` of the offline interface).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from probing.files.reading import BadLine
from probing.formats.drafts import Draft, list_in, mapping_in, maybe_text, text_in, truth
from probing.formats.reasoning import GOLD, Record, turn_texts, turns_of

REQUEST = ("request", "request_body", "input", "inputs", "kwargs")
RESPONSE = ("response", "response_body", "output", "completion")


def chat_log(record: Record) -> Iterator[Draft | BadLine]:
    """A request and its response, beside each other or in one object.

    `{"request": {"messages": […]}, "response": {"choices": […]}}`, `{"messages": […], "response":
    …}` or a response with its `messages`. A `body` in either is opened.
    """
    request = _body(next((record[n] for n in REQUEST if record.get(n)), record))
    response = _body(next((record[n] for n in RESPONSE if record.get(n)), record))
    if "messages" not in request and "prompt" not in request and "messages" in record:
        request = record
    yield from _responses(record, request, response)


def batch(record: Record) -> Iterator[Draft | BadLine]:
    """A line of a batch's output, with the line of its input as `request` (`with_requests`).

    `custom_id`, `response.status_code`, `response.body`, `error`.
    """
    if record.get("error"):
        yield BadLine("error of the interface", f"{record['error']!r:.80}")
        return
    response = mapping_in(record, "response")
    if response.get("status_code", 200) != 200:
        yield BadLine("error of the interface", f"status {response['status_code']!r:.20}")
        return
    if "request" not in record:
        raise BadLine("no request", "no line of the batch's input has this custom_id")
    made = {"id": record.get("custom_id"), **record}
    yield from _responses(made, _body(mapping_in(record, "request")), _body(response))


def with_requests(records: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Results of a batch, each with its request: the output holds none, so the input is read too.

    Args:
        records: lines of input and output files with their numbers, in any order.
    """
    requests: dict[str, Any] = {}
    waiting: dict[str, tuple[int, Any]] = {}
    for number, record in records:
        name = record.get("custom_id") if isinstance(record, Mapping) else None
        if not isinstance(name, str):
            yield number, record
        elif "body" in record and "response" not in record:
            requests[name] = record
            if name in waiting:
                result, known = waiting.pop(name)
                yield result, {**known, "request": record}
        elif name in requests:
            yield number, {**record, "request": requests[name]}
        else:
            waiting[name] = number, record
    yield from waiting.values()


def vllm(record: Record) -> Iterator[Draft | BadLine]:
    """vLLM's `RequestOutput` as an object: `prompt`, `outputs[]` with `text`; `request_id`."""
    prompt = text_in(record, "prompt")
    outputs = list_in(record, "outputs")
    for number, output in enumerate(outputs):
        text = output.get("text") if isinstance(output, Mapping) else output
        if not isinstance(text, str):
            yield BadLine("wrong type", f"output {number} has no text, {output!r:.40}")
            continue
        yield Draft(
            text=text,
            prompt=prompt,
            problem=maybe_text(record, "problem", "question"),
            id=maybe_text(record, "id", "request_id"),
            gold=maybe_text(record, *GOLD),
            correct=truth(record.get("correct")),
            number=number if len(outputs) > 1 else None,
        )


def _body(part: Any) -> Mapping[str, Any]:
    """A request or response, out of the `body` that a log puts around it."""
    if isinstance(part, Mapping) and isinstance(part.get("body"), Mapping):
        part = part["body"]
    if not isinstance(part, Mapping):
        raise BadLine("wrong type", f"request and response are objects, here is {part!r:.40}")
    return part


def _responses(record: Record, request: Record, response: Record) -> Iterator[Draft | BadLine]:
    """A draft for each choice of a response."""
    prompt = request.get("prompt") if isinstance(request.get("prompt"), str) else None
    asked = request.get("messages", request.get("input"))
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    turns = () if prompt else turns_of(asked)
    users = [turn["content"] for turn in turns if turn["role"] == "user"]
    choices = _choices(response)
    for number, turn in enumerate(choices):
        try:
            thoughts, text = turn_texts(turn)
        except BadLine as error:
            yield error
            continue
        yield Draft(
            text=text,
            reasoning=thoughts,
            prompt=prompt,
            messages=turns,
            problem=maybe_text(record, "problem", "question") or (users[-1] if users else None),
            id=maybe_text(record, "id") or maybe_text(response, "id"),
            gold=maybe_text(record, *GOLD),
            correct=truth(record.get("correct")),
            model=maybe_text(response, "model") or maybe_text(request, "model"),
            number=number if len(choices) > 1 else None,
        )


def _choices(response: Record) -> list[Mapping[str, Any]]:
    """The turns of a response, as messages."""
    if isinstance(output := response.get("output"), list):  # of the responses interface
        parts: list[Any] = []
        for item in output:
            held = item.get("content") or item.get("summary") if isinstance(item, Mapping) else None
            thinks = isinstance(item, Mapping) and item.get("type") == "reasoning"
            for part in held if isinstance(held, list) else []:
                if isinstance(part, Mapping):
                    parts.append({**part, "type": "reasoning_text"} if thinks else part)
        return [{"content": parts}]
    if isinstance(message := response.get("message"), Mapping):  # of Ollama
        return [message]
    turns: list[Mapping[str, Any]] = []
    for choice in list_in(response, "choices"):
        if not isinstance(choice, Mapping):
            raise BadLine("wrong type", f"a choice must be an object, is {choice!r:.40}")
        message = choice.get("message")
        turns.append(message if isinstance(message, Mapping) else {"content": choice.get("text")})
    return turns
