"""Data with labels of steps: Thought Anchors, ProcessBench, PRM800K. Records to drafts.

What a source says of a step becomes a label by a rule; what it says itself stays beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from probing.files.headers import json_number
from probing.files.reading import BadLine
from probing.formats.drafts import Draft, Part, list_in, mapping_in, maybe_text, text_in, truth
from probing.formats.reasoning import Record, asked

IMPORTANCE = "counterfactual_importance_kl"
SAID = ("function_tags", "depends_on", IMPORTANCE, "resampling_importance_kl")


def by_thirds(values: Sequence[float | None]) -> list[str | None]:
    """Essential from the upper third of the values on, redundant in the lower, none between.

    Example:
        >>> by_thirds([0.1, 2.0, 0.3])
        ['redundant', 'essential', None]
    """
    known = sorted(value for value in values if value is not None)
    if len(known) < 3:
        return [None] * len(values)
    low, high = known[len(known) // 3 - 1], known[-(len(known) // 3)]
    if low >= high:
        return [None] * len(values)
    labels = {True: "essential", False: "redundant"}
    return [
        labels[value >= high] if value is not None and not low < value < high else None
        for value in values
    ]


def thought_anchors(record: Record) -> Iterator[Draft | BadLine]:
    """Thought Anchors: a problem's folder with chunks and their importance.

    As on the data set's card (hub: uzaymacar/math-rollouts): `problem` (problem.json: `problem`,
    `gt_answer`), `chunks_labeled` (`chunk`, `function_tags`, `depends_on`, importances), and
    `base_solution` (`prompt`, `solution`, `full_cot`, `is_correct`), as the authors' repository
    writes it. Labels: the thirds of `counterfactual_importance_kl` (`by_thirds`).
    """
    problem, base = mapping_in(record, "problem"), mapping_in(record, "base_solution")
    chunks = [c for c in list_in(record, "chunks_labeled") if isinstance(c, Mapping)]
    values: list[Any] = [c.get(IMPORTANCE) for c in chunks]
    labels = by_thirds([json_number(v) if type(v) in (int, float) else None for v in values])
    parts = [
        Part(text_in(c, "chunk"), label, {name: c[name] for name in SAID if name in c})
        for c, label in zip(chunks, labels, strict=True)
    ]
    prompt = text_in(base, "prompt")
    text = maybe_text(base, "solution") or text_in(base, "full_cot").removeprefix(prompt)
    reasoning = text.partition("</think>")[0]
    for number, part in enumerate(parts):
        if part.text.strip() not in text:
            raise BadLine("step not in the text", f"chunk {number} is not in the solution")
    yield Draft(
        text=text,
        prompt=prompt,
        parts=tuple(part for part in parts if part.text.strip() in reasoning),
        problem=text_in(problem, "problem"),
        id=maybe_text(record, "id") or maybe_text(problem, "nickname"),
        gold=maybe_text(problem, "gt_answer"),
        correct=truth(base.get("is_correct")),
        model=maybe_text(record, "model"),
    )


def processbench(record: Record) -> Iterator[Draft | BadLine]:
    """ProcessBench: steps, and the first of them with an error (−1: none).

    Fields as on the card (hub: Qwen/ProcessBench): `id`, `generator`, `problem`, `steps[]`,
    `final_answer_correct`, `label`. The last step is the answer. Labels: steps before the error
    are essential, the one with it is redundant, those behind it have none.
    """
    steps = list_in(record, "steps")
    error = record.get("label")
    if type(error) is not int:
        raise BadLine("wrong type", f"label must be a whole number, is {error!r:.40}")
    if len(steps) < 2:
        raise BadLine("one paragraph", "a solution of one step is all answer")
    names = [text_in({"step": step}, "step") for step in steps]
    error = len(steps) if error < 0 else error
    parts = [
        Part(text, "essential" if n < error else "redundant" if n == error else None)
        for n, text in enumerate(names[:-1])
    ]
    problem = text_in(record, "problem")
    yield Draft(
        text=names[-1],
        reasoning="\n\n".join(names[:-1]),
        messages=asked(problem),
        parts=tuple(parts),
        problem=problem,
        id=maybe_text(record, "id"),
        correct=truth(record.get("final_answer_correct")),
        model=maybe_text(record, "generator"),
        extra={"first_error": record["label"]},
    )


RATED: dict[Any, str] = {1: "essential", 0: "redundant", -1: "redundant"}


def prm800k(record: Record) -> Iterator[Draft | BadLine]:
    """PRM800K: steps that people rated 1 (right), 0 (right, but no progress) or −1 (wrong).

    Fields as in the README of github.com/openai/prm800k: `question` (`problem`,
    `ground_truth_answer`, `pre_generated_steps[]`), `label` (`steps[]` with `completions[]`,
    `chosen_completion`, `human_completion`; `finish_reason`). Labels: 1 is essential, 0 and −1
    redundant. The answer is what stands behind `# Answer` in the last step.
    """
    question, label = mapping_in(record, "question"), mapping_in(record, "label")
    why = label.get("finish_reason")
    if why in ("bad_problem", "give_up"):
        raise BadLine("not judged to the end", f"finish_reason is {why}")
    rated = [_rated(step) for step in list_in(label, "steps")]
    generated = question.get("pre_generated_steps")
    if isinstance(generated, list) and generated:
        texts = [text_in({"step": step}, "step") for step in generated]
        ratings = [dict(rated[n][1]).get(text) if n < len(rated) else None
                   for n, text in enumerate(texts)]  # fmt: skip
    else:
        chosen = [found for found, _ in rated]
        texts = [text for text, _ in chosen if text is not None]
        ratings = [rating for text, rating in chosen if text is not None]
        if len(texts) < len(chosen):
            raise BadLine("no chosen step", "a step was rated, and none was taken")
    last, marked, answer = texts[-1].rpartition("# Answer") if texts else ("", "", "")
    if not marked:
        raise BadLine("no end of the reasoning", "the last step states no # Answer")
    texts[-1] = last
    parts = [
        Part(text, RATED.get(rating), {"rating": rating})
        for text, rating in zip(texts, ratings, strict=True)
        if text.strip()
    ]
    problem = text_in(question, "problem")
    yield Draft(
        text=f"\\boxed{{{answer.strip()}}}" if answer.strip() else "",
        reasoning="\n".join(text for text in texts if text.strip()),
        messages=asked(problem),
        parts=tuple(parts),
        problem=problem,
        gold=maybe_text(question, "ground_truth_answer"),
        correct=True if why == "solution" else None,
    )


def _rated(step: Any) -> tuple[tuple[str | None, int | None], list[tuple[str, int]]]:
    """The step that was taken with its rating, and all that were rated."""
    if not isinstance(step, Mapping):
        raise BadLine("wrong type", f"a step must be an object, is {step!r:.40}")
    found: list[tuple[str, int]] = []
    for each in step.get("completions") or [] if isinstance(step.get("completions"), list) else []:
        if isinstance(each, Mapping) and isinstance(each.get("text"), str):
            rating = each.get("rating")
            found.append((each["text"], rating if type(rating) is int else 2))
    chosen, human = step.get("chosen_completion"), step.get("human_completion")
    if type(chosen) is int and 0 <= chosen < len(found):
        return found[chosen], found
    if isinstance(human, Mapping) and isinstance(human.get("text"), str):
        return (human["text"], 1), found
    return (human, 1) if isinstance(human, str) else (None, None), found
