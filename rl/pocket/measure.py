"""Measure a pocket model: does it overthink, and what do its checks buy?

python -m rl.pocket.measure DIR [--n 600] [--out figures.json]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from probing.files import HEADER, file_header, write_json
from rl.pocket.decode import Decoding, Forbidden, load, respond
from rl.pocket.parse import Reading, read
from rl.pocket.task import Problem, shortest_trace
from rl.pocket.traces import held_out_problems

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MEASURE_SEED = 1_000_000  # the first held-out problems; the traces use others


# What makes the trade-off real: the range in which each figure of the initial policy must lie.
TARGETS = {
    "greedy_over_shortest": (2.5, 10.0),
    "greedy_accuracy": (0.75, 0.90),
    "no_checks_cost": (0.10, 1.0),
    "no_easy_checks_cost": (-1.0, 0.01),
}


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % interval, and the number of problems behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Run:
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


def proportion(hits: NDArray[np.float64]) -> Figure:
    """A share with Wilson's interval, which holds near 0 and 1 too."""
    n, share, z = len(hits), float(hits.mean()), 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Figure(share, float(middle - reach), float(middle + reach), n)


def bootstrap(
    statistic: Callable[..., float], *columns: NDArray[np.float64], draws: int = 2000
) -> Figure:
    """A statistic of paired columns with the percentile interval over resampled problems."""
    rng = np.random.default_rng(0)
    n = len(columns[0])
    picks = (rng.integers(0, n, n) for _ in range(draws))
    values = [statistic(*(column[pick] for column in columns)) for pick in picks]
    low, high = np.quantile(values, [0.025, 0.975])
    return Figure(float(statistic(*columns)), float(low), float(high), n)


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    decoding: Decoding,
) -> Run:
    """Decode a response to every problem, and read it."""
    responses = respond(model, tokenizer, problems, decoding)
    lengths = [len(ids) + 1 for ids in tokenizer(responses)["input_ids"]]
    readings = [read(p, response) for p, response in zip(problems, responses, strict=True)]
    correct = np.array([float(reading.correct) for reading in readings])
    return Run(correct, np.array(lengths, dtype=float), readings)


def figures(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, n: int = 600
) -> dict[str, Figure]:
    """Every figure of the model card, measured on n held-out problems.

    Tokens count the response with its end token. A `cost` is a difference of greedy accuracy,
    paired by problem.
    """
    problems = held_out_problems(n, MEASURE_SEED)
    shortest = [shortest_trace(problem).response for problem in problems]
    floor = np.array([len(ids) + 1 for ids in tokenizer(shortest)["input_ids"]], dtype=float)
    kinds: tuple[Forbidden, ...] = ("none", "all", "easy")
    greedy, unchecked, hard_only = (
        run(model, tokenizer, problems, Decoding(forbid=kind)) for kind in kinds
    )
    sampled = run(model, tokenizer, problems, Decoding(temperature=1.0, seed=MEASURE_SEED))
    hard = np.array([problem.hard_operations for problem in problems])
    length = np.array([len(problem.path) for problem in problems])
    result = {
        "shortest_tokens": bootstrap(np.mean, floor),
        "greedy_tokens": bootstrap(np.mean, greedy.tokens),
        "greedy_over_shortest": bootstrap(_ratio, greedy.tokens, floor),
        "greedy_accuracy": proportion(greedy.correct),
        "greedy_redundant_share": bootstrap(np.mean, greedy.redundant_share),
        "no_checks_accuracy": proportion(unchecked.correct),
        "no_checks_tokens": bootstrap(np.mean, unchecked.tokens),
        "no_checks_cost": bootstrap(_gap, greedy.correct, unchecked.correct),
        "no_easy_checks_accuracy": proportion(hard_only.correct),
        "no_easy_checks_tokens": bootstrap(np.mean, hard_only.tokens),
        "no_easy_checks_cost": bootstrap(_gap, greedy.correct, hard_only.correct),
        "sampled_accuracy": proportion(sampled.correct),
        "sampled_tokens": bootstrap(np.mean, sampled.tokens),
        "sampled_redundant_share": bootstrap(np.mean, sampled.redundant_share),
        "sampled_read_share": proportion(_read(sampled)),
        "greedy_read_share": proportion(_read(greedy)),
    }
    for count in np.unique(hard):
        result[f"greedy_accuracy_hard_{count}"] = proportion(greedy.correct[hard == count])
    for count in np.unique(length):
        result[f"greedy_accuracy_length_{count}"] = proportion(greedy.correct[length == count])
    return result


def missed_targets(measured: Mapping[str, Figure]) -> list[str]:
    """A line for each target that the figures miss."""
    return [
        f"{name} is {measured[name]}, outside {low} to {high}"
        for name, (low, high) in TARGETS.items()
        if not low <= measured[name].value <= high
    ]


def write_figures(measured: Mapping[str, Figure], path: Path) -> None:
    """Write the figures as JSON, with a header, whole or not at all."""
    rows = {
        name: {key: round(number, 4) for key, number in asdict(figure).items()}
        for name, figure in measured.items()
    }
    write_json(path, {HEADER: file_header("pocket figures"), **rows})


def _read(run: Run) -> NDArray[np.float64]:
    return np.array([float(not reading.reasons) for reading in run.readings])


def _ratio(tokens: NDArray[np.float64], floor: NDArray[np.float64]) -> float:
    return float(tokens.mean() / floor.mean())


def _gap(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    return float((before - after).mean())


def main(arguments: list[str] | None = None) -> None:
    """Command line: print the figures, and write them where `--out` says."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--n", type=int, default=600, help="held-out problems")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    measured = figures(*load(options.model), options.n)
    for name, figure in measured.items():
        print(f"{name:26s} {figure}  n={figure.n}")
    if options.out is not None:
        write_figures(measured, options.out)
    for line in missed_targets(measured):
        print(f"target missed: {line}")


if __name__ == "__main__":
    main()
