"""Measure a pocket model: does it overthink, and what do its checks buy?

python -m rl.pocket.measure DIR [--n 600] [--out figures.json]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from probing.files.headers import HEADER, file_header, write_json
from probing.intervals import Estimate, estimate_mean, estimate_rate, estimate_share
from probing.models.load import load_frozen
from rl.chains.questions import MEASURE_SEED
from rl.chains.reading import Reading
from rl.pocket.decode import Decoding, Forbidden, respond
from rl.pocket.levels import LEVELS, level_of
from rl.pocket.parse import read
from rl.pocket.task import Problem, shortest_trace
from rl.pocket.traces import held_out_problems

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Answers:
    """What one way of decoding gave, an entry a problem: right or wrong, tokens with the end
    token, and the readings."""

    correct: NDArray[np.float64]
    tokens: NDArray[np.float64]
    readings: list[Reading]

    @property
    def redundant_share(self) -> NDArray[np.float64]:
        """Share of the labelled steps of each response that are redundant."""
        labels = [[step.label for step in r.steps if step.label] for r in self.readings]
        return np.array([row.count("redundant") / max(1, len(row)) for row in labels])

    @property
    def whole(self) -> NDArray[np.float64]:
        """Whether each response can be read whole, 1 or 0."""
        return np.array([float(not reading.reasons) for reading in self.readings])


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    decoding: Decoding,
) -> Answers:
    """Decode a response to every problem, and read it."""
    responses = respond(model, tokenizer, problems, decoding)
    lengths = [len(ids) + 1 for ids in tokenizer(responses)["input_ids"]]
    readings = [read(p, response) for p, response in zip(problems, responses, strict=True)]
    correct = np.array([float(reading.correct) for reading in readings])
    return Answers(correct, np.array(lengths, dtype=float), readings)


def figures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    n: int = 600,
    level: str = "pocket",
) -> dict[str, Estimate]:
    """Every figure of the model card, measured on n held-out problems of a level.

    Tokens count the response with its end token. A `cost` is a difference of greedy accuracy,
    paired by problem.
    """
    problems = held_out_problems(n, MEASURE_SEED, level)
    whole = Decoding(max_new_tokens=level_of(level).max_tokens)
    shortest = [shortest_trace(problem).response for problem in problems]
    floor = np.array([len(ids) + 1 for ids in tokenizer(shortest)["input_ids"]], dtype=float)
    kinds: tuple[Forbidden, ...] = ("none", "all", "easy")
    greedy, unchecked, hard_only = (
        answer(model, tokenizer, problems, replace(whole, forbid=kind)) for kind in kinds
    )
    sampling = replace(whole, temperature=1.0, seed=MEASURE_SEED)
    sampled = answer(model, tokenizer, problems, sampling)
    hard = np.array([problem.hard_operations for problem in problems])
    length = np.array([len(problem.path) for problem in problems])
    result = {"shortest_tokens": _mean(floor), "greedy_tokens": _mean(greedy.tokens)}
    result["greedy_over_shortest"] = estimate_rate(_rows(greedy.tokens), _rows(floor))
    result |= {
        "greedy_accuracy": _share(greedy.correct),
        "greedy_redundant_share": _mean(greedy.redundant_share),
    }
    for name, answers in (("no_checks", unchecked), ("no_easy_checks", hard_only)):
        lost = _rows(greedy.correct - answers.correct)
        result |= {
            f"{name}_accuracy": _share(answers.correct),
            f"{name}_tokens": _mean(answers.tokens),
            f"{name}_cost": estimate_share(lost, difference=True),
        }
    result |= {
        "sampled_accuracy": _share(sampled.correct),
        "sampled_tokens": _mean(sampled.tokens),
        "sampled_redundant_share": _mean(sampled.redundant_share),
        "sampled_read_share": _share(sampled.whole),
        "greedy_read_share": _share(greedy.whole),
    }
    for count in np.unique(hard):
        result[f"greedy_accuracy_hard_{count}"] = _share(greedy.correct[hard == count])
    for count in np.unique(length):
        result[f"greedy_accuracy_length_{count}"] = _share(greedy.correct[length == count])
    return result


def missed_targets(measured: Mapping[str, Estimate], level: str = "pocket") -> list[str]:
    """A line for each target of a level that the figures miss."""
    return [
        f"{name} is {measured[name]}, outside {low} to {high}"
        for name, (low, high) in level_of(level).targets.items()
        if not low <= measured[name].value <= high
    ]


def write_figures(measured: Mapping[str, Estimate], path: Path) -> None:
    """Write the figures as JSON, with a header, whole or not at all."""
    rows = {
        name: {key: round(number, 4) for key, number in asdict(figure).items()}
        for name, figure in measured.items()
    }
    write_json(path, {HEADER: file_header("pocket figures"), **rows})


def _rows(values: NDArray[np.float64]) -> list[list[float]]:
    """A row a problem, of one value."""
    return [[float(value)] for value in values]


def _mean(values: NDArray[np.float64]) -> Estimate:
    return estimate_mean(_rows(values))


def _share(values: NDArray[np.float64]) -> Estimate:
    return estimate_share(_rows(values))


def main(arguments: list[str] | None = None) -> None:
    """Command line: print the figures, and write them where `--out` says."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--level", choices=LEVELS, default="pocket")
    parser.add_argument("--n", type=int, default=600, help="held-out problems")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    measured = figures(*load_frozen(options.model), options.n, options.level)
    for name, figure in measured.items():
        print(f"{name:26s} {figure}  n={figure.n}")
    if options.out is not None:
        write_figures(measured, options.out)
    for line in missed_targets(measured, options.level):
        print(f"target missed: {line}")


if __name__ == "__main__":
    main()
