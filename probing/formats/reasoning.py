"""Data sets of reasoning traces: records to drafts. Each function names where its fields stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from probing.choices import THINK_END
from probing.files.reading import BadLine
from probing.formats.drafts import (
    Draft,
    Message,
    at,
    list_in,
    maybe_text,
    style_of,
    text_in,
    truth,
)

Record = Mapping[str, Any]
GOLD = ("answer", "ground_truth", "final_answer", "expected_answer", "target", "gold", "solution")
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


def openr1(record: Record) -> Iterator[Draft | BadLine]:
    """OpenR1-Math-220k: several generations a problem, each with its verdict.

    Fields as on the data set's card (hub: open-r1/OpenR1-Math-220k): `problem`, `generations[]`,
    `correctness_math_verify[]`, `correctness_llama[]` where the former is empty, `answer`, `uuid`.
    """
    problem = text_in(record, "problem")
    verdicts = record.get("correctness_math_verify")
    others = record.get("correctness_llama")
    generations = list_in(record, "generations")
    for number, text in enumerate(generations):
        if not isinstance(text, str):
            yield BadLine("wrong type", f"generation {number} is {text!r:.40}")
            continue
        verdict = truth(at(verdicts, number))
        yield Draft(
            text=text,
            messages=asked(problem),
            problem=problem,
            id=maybe_text(record, "uuid", "id"),
            gold=maybe_text(record, "answer", "solution"),
            correct=truth(at(others, number)) if verdict is None else verdict,
            number=number if len(generations) > 1 else None,
        )


def openthoughts(record: Record) -> Iterator[Draft | BadLine]:
    """OpenThoughts, configuration `metadata`: reasoning and solution apart.

    Fields as on the cards (hub: open-thoughts/OpenThoughts-114k): `problem`,
    `deepseek_reasoning`, `deepseek_solution`, `ground_truth_solution`. `correct`, as in
    open-r1/OpenThoughts-114k-math, is a verdict.
    """
    problem = text_in(record, "problem")
    yield Draft(
        text=text_in(record, "deepseek_solution"),
        reasoning=text_in(record, "deepseek_reasoning"),
        messages=asked(problem),
        problem=problem,
        id=maybe_text(record, "id"),
        gold=maybe_text(record, "ground_truth_solution"),
        correct=truth(record.get("correct")),
        model="DeepSeek-R1",
    )


def s1k(record: Record) -> Iterator[Draft | BadLine]:
    """s1K and s1K-1.1: a trajectory and an attempt, of one model or of two.

    Fields as on the cards (hub: simplescaling/s1K, simplescaling/s1K-1.1): `question`, `solution`,
    `thinking_trajectories[]` and `attempt`; or `deepseek_thinking_trajectory`,
    `deepseek_attempt`, `deepseek_grade`, and the same of `gemini`.
    """
    question = text_in(record, "question")
    made: list[tuple[Any, ...]] = []
    for model in ("deepseek", "gemini"):
        if f"{model}_thinking_trajectory" in record:
            names = f"{model}_thinking_trajectory", f"{model}_attempt", f"{model}_grade"
            made.append((model, *map(record.get, names)))
    if not made:
        thoughts = at(record.get("thinking_trajectories"), 0)
        made.append((None, thoughts, record.get("attempt"), None))
    for number, (model, thoughts, attempt, grade) in enumerate(made):
        if not isinstance(thoughts, str) or not isinstance(attempt, str):
            yield BadLine("missing field", f"no text of thoughts or attempt ({model or 's1K'})")
            continue
        yield Draft(
            text=attempt,
            reasoning=thoughts,
            messages=asked(question),
            problem=question,
            gold=maybe_text(record, "solution"),
            correct=truth(grade),
            model=model,
            number=number if len(made) > 1 else None,
        )


def conversations(record: Record) -> Iterator[Draft | BadLine]:
    """ShareGPT's form: turns of `from` and `value`, and a `system` text beside them.

    As in bespokelabs/Bespoke-Stratos-17k and the default of OpenThoughts-114k, where the reasoning
    stands between `<|begin_of_thought|>` and `<|end_of_thought|>`.
    """
    turns = []
    for turn in list_in(record, "conversations"):
        if not isinstance(turn, Mapping):
            raise BadLine("wrong type", f"a turn must be an object, is {turn!r:.40}")
        role = turn.get("from", turn.get("role"))
        role = ROLES.get(role, role) if isinstance(role, str) else None
        turns.append({**turn, "role": role, "content": turn.get("value", turn.get("content"))})
    if isinstance(system := record.get("system"), str) and system.strip():
        turns.insert(0, {"role": "system", "content": system})
    yield dialogue(record, turns)


def messages(record: Record) -> Iterator[Draft | BadLine]:
    """Turns of `role` and `content`; the last one of the assistant is the response.

    The reasoning stands in it with marks, or beside it (`reasoning_content`, `reasoning`,
    `thinking`), as in the chat form of OpenAI, DeepSeek, vLLM and Ollama.
    """
    yield dialogue(record, list_in(record, "messages"))


def solution(record: Record) -> Iterator[Draft | BadLine]:
    """NuminaMath: `problem` and a worked `solution`, whose last paragraph is the answer.

    Fields as on the card (hub: AI-MO/NuminaMath-CoT, NuminaMath-1.5): `problem`, `solution`,
    `answer`. The solution is the reference itself: it counts as right.
    """
    problem = text_in(record, "problem")
    yield Draft(
        text=text_in(record, "solution"),
        worked=True,
        messages=asked(problem),
        problem=problem,
        id=maybe_text(record, "uuid", "id"),
        gold=maybe_text(record, "answer"),
        correct=True,
    )


def is_worked(record: Record) -> bool:
    """Whether a record with a solution has no trace of a model beside it, in `messages`."""
    try:
        draft = dialogue(record, list_in(record, "messages"))
    except BadLine:
        return True
    return draft.reasoning is None and style_of(draft.text, THINK_END) is None


ASKED = ("prompt", "question", "problem", "instruction", "query", "input")
ANSWERED = ("response", "completion", "generation", "output", "generated_text", "model_output")
THOUGHT = ("reasoning", "reasoning_content", "thinking", "thoughts", "thought", "cot")


def pair(record: Record) -> Iterator[Draft | BadLine]:
    """A text that was asked and one that was answered, under one of the usual names.

    `prompt` is taken as the exact text that was given to the model, the others as a question. The
    response may be a list of several; the reasoning may stand apart. No data set's own form.
    """
    question = text_in(record, *ASKED[1:]) if not record.get("prompt") else None
    given = record.get("prompt")
    prompt = given if isinstance(given, str) else None
    turns = asked(question) if question else turns_of(given) if prompt is None else ()
    thoughts = maybe_text(record, *THOUGHT)
    name = next((name for name in ANSWERED if record.get(name)), None)
    if name is None and thoughts:
        name = next((name for name in GOLD if record.get(name)), None)
    several = record.get(name) if name else None
    texts = several if isinstance(several, list) else [several]
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            yield BadLine("missing field", f"no text in {', '.join(ANSWERED)}")
            continue
        yield Draft(
            text=text,
            reasoning=thoughts,
            prompt=prompt,
            messages=turns,
            problem=maybe_text(record, *ASKED[1:]) or (prompt and prompt.strip()),
            id=maybe_text(record, "id"),
            gold=maybe_text(record, *(gold for gold in GOLD if gold != name)),
            correct=truth(record.get("correct", record.get("is_correct"))),
            model=maybe_text(record, "model"),
            number=number if len(texts) > 1 else None,
        )


def string(record: Record) -> Iterator[Draft | BadLine]:
    """A whole text, prompt and response, as a string or under `text`; `<think>` ends the prompt."""
    yield Draft(text=text_in(record, "text"), whole=True, id=maybe_text(record, "id"))


# Turns


def asked(question: str) -> tuple[Message, ...]:
    """One turn of the user."""
    return ({"role": "user", "content": question},)


def turn_texts(turn: Mapping[str, Any]) -> tuple[str | None, str]:
    """Reasoning, where it stands apart, and text of a turn, whose content may be in parts.

    Parts are those of OpenAI (`text`, `output_text`, `reasoning_text`), Anthropic (`thinking`)
    and inspect_ai (`reasoning`).

    Raises:
        BadLine: it has no text.
    """
    thoughts = [turn.get(name) for name in ("reasoning_content", "reasoning", "thinking")]
    content = turn.get("content")
    texts: list[Any] = [content] if isinstance(content, str) else []
    for part in content if isinstance(content, list) else []:
        if not isinstance(part, Mapping):
            raise BadLine("wrong type", f"a part of a message must be an object, is {part!r:.40}")
        thoughts += [part.get("reasoning"), part.get("thinking")]
        thinks = "reasoning" in str(part.get("type"))
        (thoughts if thinks else texts).append(part.get("text"))
    said = [text for text in thoughts if isinstance(text, str) and text.strip()]
    texts = [text for text in texts if isinstance(text, str)]
    if not texts:
        raise BadLine("missing field", f"a message without text, {content!r:.40}")
    return (said[0] if said else None), "".join(texts)


def turns_of(turns: Any) -> tuple[Message, ...]:
    """The turns that were asked, without the reasoning of those before.

    Raises:
        BadLine: one is no object, or has no role or text; or there is none.
    """
    if not isinstance(turns, list) or not turns:
        raise BadLine("no prompt", f"no messages that were asked, {turns!r:.40}")
    made = []
    for turn in turns:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
            raise BadLine("wrong type", f"a message needs role and content, is {turn!r:.40}")
        made.append({"role": turn["role"], "content": turn_texts(turn)[1]})
    return tuple(made)


def dialogue(record: Record, turns: list[Any]) -> Draft:
    """The draft of a list of turns whose last one of the assistant is the response.

    Raises:
        BadLine: it is none.
    """
    while turns and isinstance(turns[-1], Mapping) and turns[-1].get("role") != "assistant":
        turns = turns[:-1]
    if not turns or not isinstance(turns[-1], Mapping):
        raise BadLine("no response", "no turn of the assistant")
    thoughts, text = turn_texts(turns[-1])
    before = turns_of(turns[:-1])
    users = [turn["content"] for turn in before if turn["role"] == "user"]
    problem = maybe_text(record, "problem", "question")
    return Draft(
        text=text,
        reasoning=thoughts,
        messages=before,
        problem=problem or (users[-1] if users else None),
        id=maybe_text(record, "id", "uuid"),
        gold=maybe_text(record, *GOLD),
        correct=truth(record.get("correct", record.get("is_correct"))),
        model=maybe_text(record, "model"),
    )
