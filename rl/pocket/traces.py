"""Sample labelled traces from a pocket model.

python -m rl.pocket.traces DIR --n 500 --out traces.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.models.load import load_frozen
from probing.traces.file import parse_trace, write_traces
from rl.chains.questions import distinct_problems
from rl.chains.reading import Reading
from rl.pocket.decode import Decoding, respond
from rl.pocket.levels import LEVELS, level_of
from rl.pocket.parse import read
from rl.pocket.task import Problem, make_problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


TRACE_SEED = 2_000_000  # held out, too, and none of those that are measured on


@dataclass(frozen=True)
class Sampled:
    """The records kept, and how many responses were drawn and left out, by reason."""

    records: list[dict[str, Any]]
    drawn: int
    unreadable: int
    incorrect: int


def held_out_problems(n: int, seed: int, level: str = "pocket") -> list[Problem]:
    """n distinct problems of a level (`rl.pocket.levels.LEVELS`).

    Training draws its problems from seeds below 1,000,000: give more.

    Raises:
        ValueError: a seed that training may have used.
        ConfigError: no such level.
    """
    if seed < 1_000_000:
        raise ValueError(f"held-out problems need a seed of at least 1,000,000, not {seed}")
    return distinct_problems(n, seed, lambda rng: make_problem(rng, level_of(level).task))


def record(
    problem: Problem, response: str, reading: Reading, name: str, level: str = "pocket"
) -> dict[str, Any]:
    """One line of a trace file; offsets are characters of `response`, half open."""
    steps = [{"start": s.start, "end": s.end, "label": s.label} for s in reading.steps]
    return {
        "id": name,
        "model": level,
        "problem": problem.text,
        "prompt": problem.prompt,
        "response": response,
        "ground_truth": problem.answer,
        "correct": reading.correct,
        "steps": steps,
    }


def sample_traces(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    n: int,
    seed: int = TRACE_SEED,
    incorrect_share: float = 0.1,
    level: str = "pocket",
) -> Sampled:
    """n labelled traces at temperature 1, one a problem; at most `incorrect_share` of them wrong.

    A response that the parser cannot read whole is left out and counted: no label is a guess.
    """
    kept: list[dict[str, Any]] = []
    drawn = unreadable = incorrect = wrong = 0
    problems = held_out_problems(4 * n, seed, level)
    for start in range(0, len(problems), n):
        chunk: Sequence[Problem] = problems[start : start + n]
        limit = level_of(level).max_tokens
        decoding = Decoding(temperature=1.0, seed=seed + start, max_new_tokens=limit)
        for problem, response in zip(
            chunk, respond(model, tokenizer, chunk, decoding), strict=True
        ):
            if len(kept) == n:
                return Sampled(kept, drawn, unreadable, incorrect)
            drawn += 1
            reading = read(problem, response)
            if reading.reasons:
                unreadable += 1
            elif not reading.correct and wrong >= incorrect_share * n:
                incorrect += 1
            else:
                wrong += not reading.correct
                name = f"{level}-{drawn - 1:05d}"
                kept.append(record(problem, response, reading, name, level))
    if len(kept) < n:
        raise ValueError(
            f"only {len(kept)} of {drawn} responses could be kept ({unreadable} unreadable): "
            "the model is not trained, or speaks another language than the task"
        )
    return Sampled(kept, drawn, unreadable, incorrect)


def write_records(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a trace file (`.jsonl` or `.jsonl.gz`) with its header, whole or not at all."""
    traces = (parse_trace(json.dumps(row)) for row in records)
    write_traces(path, traces, maker="rl.pocket.traces")


def main(arguments: list[str] | None = None) -> None:
    """Command line: sample, write, and say what was left out."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--level", choices=LEVELS, default="pocket")
    parser.add_argument("--n", type=int, help="default: as many as ship with the level")
    parser.add_argument("--seed", type=int, default=TRACE_SEED)
    parser.add_argument("--out", type=Path, required=True, help="a .jsonl or .jsonl.gz file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model, tokenizer = load_frozen(options.model)
    n = options.n or LEVELS[options.level].traces
    sampled = sample_traces(model, tokenizer, n, options.seed, level=options.level)
    write_records(sampled.records, options.out)
    print(
        f"kept {len(sampled.records)} of {sampled.drawn} responses in {options.out}; "
        f"left out {sampled.unreadable} unreadable, {sampled.incorrect} incorrect ones"
    )


if __name__ == "__main__":
    main()
