"""Run folders, their figures, and `kfh plot` on them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import check_texts
from matplotlib.figure import Figure

from probing.errors import DataError
from probing.intervals import Estimate
from rl.runs.figures import all_figures, stability, tradeoff, training
from rl.runs.folders import (
    PolicyPoint,
    find_runs,
    group,
    read_evaluations,
    read_points,
    read_run,
    table,
)
from rl.runs.intervals import averaged, over_seeds, smoothed

ROOT = Path(__file__).parents[2]


def jsonl(path: Path, rows: list[dict], end: str = "\n") -> None:
    lines = [json.dumps(row) for row in [{"kfh": {"kind": "test"}}, *rows]]
    path.write_text("\n".join(lines) + end, encoding="utf-8")


def run_folder(folder: Path, method: str = "attnpo", seed: int = 0, steps: int = 6) -> Path:
    """A training run whose tokens at step k are 100 - k + seed."""
    folder.mkdir(parents=True)
    info = {"kfh": {}, "method": method, "seed": seed, "steps": steps, "status": "done"}
    (folder / "run.json").write_text(json.dumps(info))
    rows = [
        {
            "step": k,
            "tokens": 100 - k + seed,
            "accuracy": 0.8 + 0.01 * k,
            "reward": 0.5,
            "attenuated": None if method == "grpo" else 0.4,
            "seconds": 2.0,
            "phrases": {"confused": 20 - k, "backward": 3, "forward": 1, "special": 0},
            "redundant_steps": None,
        }
        for k in range(1, steps + 1)
    ]
    jsonl(folder / "metrics.jsonl", rows)
    return folder


def add_probe(folder: Path) -> None:
    heads = [{"layer": 2, "head": h, "sra": 0.9 + h / 100, "start_sra": 0.95} for h in (1, 3)]
    rows = [{"step": k, "heads": heads, "sra": 0.92, "correlation": 1 - k / 50} for k in (0, 3, 6)]
    jsonl(folder / "probe.jsonl", rows)


def add_result(folder: Path, method: str, seed: int, n: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    part = {"correct": [1] * (n - 2) + [0] * 2, "tokens_each": [50 + seed + i for i in range(n)]}
    part["redundant_steps_each"] = [None, *[2] * (n - 1)]
    result = {"method": method, "seed": seed, "greedy": part, "sampled": part}
    (folder / "result.json").write_text(json.dumps({**result, "shortest_each": [40] * n}))
    return folder


def test_a_run_is_read(tmp_path: Path) -> None:
    run = read_run(run_folder(tmp_path / "a", seed=3))
    assert (run.method, run.seed, run.status, run.torn, run.repeated) == ("attnpo", 3, "done", 0, 0)
    assert list(run.metrics.index) == [1, 2, 3, 4, 5, 6] and run.metrics["tokens"][6] == 97
    assert run.metrics["phrases.confused"][2] == 18 and run.seconds == 12
    assert run.metrics["redundant_steps"].isna().all()


def test_a_running_run_is_read_and_its_torn_line_counted(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "tok')
    run = read_run(folder)
    assert run.torn == 1 and run.metrics.index.max() == 6


def test_a_torn_line_within_is_an_error_with_its_number(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a")
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace('{"step": 2', '"step": 2'))
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 3"):
        read_run(folder)


def test_the_last_of_repeated_steps_counts(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "tokens": 1.0, "seconds": 9.0, "new_field": 3}) + "\n")
    run = read_run(folder)
    assert run.repeated == 1 and run.metrics["tokens"][5] == 1 and len(run.metrics) == 6
    assert list(run.metrics.index) == sorted(run.metrics.index)
    assert run.seconds == 5 * 2 + 9


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("run.json", "{", r"run\.json"),
        ("run.json", '{"seed": 0}', "no `method`"),
        ("metrics.jsonl", '{"tokens": 3}\n', "without a whole number `step`"),
        ("metrics.jsonl", "[1]\n", "line 1: no JSON object"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, match: str) -> None:
    folder = run_folder(tmp_path / "a")
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=match):
        read_run(folder)


def test_runs_are_found_here_and_one_below(tmp_path: Path) -> None:
    one, two = run_folder(tmp_path / "all" / "a"), run_folder(tmp_path / "all" / "b", "grpo")
    start = add_result(tmp_path / "all" / "initial", "initial", 0)
    (tmp_path / "all" / "logs").mkdir()
    assert find_runs([tmp_path / "all", one]) == ([one, two], [start])
    with pytest.raises(DataError, match="no run of `kfh train`"):
        find_runs([tmp_path / "all" / "logs"])
    with pytest.raises(DataError, match="no such folder"):
        find_runs([tmp_path / "nowhere"])


def test_one_seed_twice_is_refused(tmp_path: Path) -> None:
    runs = [read_run(run_folder(tmp_path / name)) for name in "ab"]
    with pytest.raises(DataError, match="both hold attnpo, seed 0"):
        group(runs)


def test_evaluations(tmp_path: Path) -> None:
    found = [e for s in (1, 0) for e in read_evaluations(add_result(tmp_path / str(s), "pa", s))]
    tokens = table(found, "pa", "greedy", "redundant_tokens")
    assert tokens.shape == (2, 8) and tokens[0, 0] == 10 and tokens[1, 0] == 11
    assert np.isnan(found[0].values["redundant_steps"][0])
    assert table(found, "na", "greedy", "tokens").size == 0
    result = json.loads((tmp_path / "0" / "result.json").read_text())
    result["sampled"]["correct"].pop()
    (tmp_path / "0" / "result.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match="different lengths"):
        read_evaluations(tmp_path / "0")


def test_points_of_an_evaluation(tmp_path: Path) -> None:
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 30}
    sets = {name: {"accuracy": figure, "tokens": figure | {"value": 0.55}} for name in "abcd"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval.json").write_text(json.dumps({"benchmarks": sets}))
    assert find_runs([tmp_path]) == ([], [tmp_path / "one", tmp_path / "two"])
    points = [*read_points(tmp_path / "one"), *read_points(tmp_path / "two")]
    assert points[0].name == "one" and points[0].tokens.value == 0.55
    drawn = all_figures([], points=points)["tradeoff"]
    panels = [axes for axes in drawn.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == [f"{n}, 30 problems" for n in "abcd"]
    assert named(drawn) == ["one", "two"]
    (tmp_path / "one" / "eval.json").write_text('{"benchmarks": {"a": {"tokens": 3}}}')
    with pytest.raises(DataError, match="no evaluation of `kfh eval`"):
        read_points(tmp_path / "one")


def test_a_run_without_a_head_set_has_only_its_correlation(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", "grpo")
    jsonl(folder / "probe.jsonl", [{"step": 0, "heads": [], "sra": None, "correlation": 1.0}])
    figure = stability([read_run(folder)])
    assert figure is not None
    assert [a.get_title(loc="left") for a in figure.axes if a.axison] == ["correlation with step 0"]


def test_average_over_the_steps_that_all_seeds_have() -> None:
    a, b = pd.Series([1.0, 3.0, 5.0], [1, 2, 3]), pd.Series([3.0, np.nan, 9.0, 4.0], [1, 2, 3, 4])
    curve = averaged([a, b])
    assert list(curve.steps) == [1, 3] and list(curve.mean) == [2, 7]
    assert list(curve.low) == [1, 5] and list(curve.high) == [3, 9]  # 2 seeds: both of them


def test_interval_over_seeds_is_students() -> None:
    from scipy.stats import ttest_1samp

    values = np.random.default_rng(0).normal(5, 2, 7)
    ours, reference = over_seeds(values), ttest_1samp(values, 0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high))
    assert over_seeds(np.array([np.nan])).n == 0


def test_smoothing_keeps_a_line_and_the_mean_of_its_window() -> None:
    line = pd.Series(np.arange(9.0))
    assert smoothed(line, 3)[1:7].tolist() == line[1:7].tolist()
    spike = pd.Series([0.0, 0, 3, 0, 0])
    assert smoothed(spike, 3).tolist() == [0, 1, 1, 1, 0] and smoothed(spike, 1) is spike


def named(figure: Figure) -> list[str]:
    """The entries of a figure's legend."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_more_policies_than_looks_are_told_apart() -> None:
    half = Estimate(0.5, 0.4, 0.6, 30)
    points = [PolicyPoint(f"policy {n}", "set", half, half) for n in range(20)]
    figure = tradeoff((), points)
    assert figure is not None and named(figure) == [point.name for point in points]
    lines = [container.lines[0] for container in figure.axes[0].containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 20
    check_texts(figure)


def test_figures_draw_what_the_runs_say(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / f"a{s}", seed=s) for s in range(3)]
    folders.append(run_folder(tmp_path / "g", "grpo"))
    add_probe(folders[0])
    evaluations = [e for f in folders[:3] for e in read_evaluations(add_result(f, "attnpo", 0))]
    runs = [read_run(folder) for folder in folders]
    figures = all_figures(runs, evaluations[:2])
    assert list(figures) == ["training", "tradeoff", "stability", "phrases"]
    titles = [axes.get_title(loc="left") for axes in figures["training"].axes if axes.axison]
    assert "redundant steps per response" not in titles and "reward" in titles
    tokens = figures["training"].axes[titles.index("tokens per response")]
    assert [list(line.get_ydata()) for line in tokens.lines[:1]] == [[100.0 - k for k in range(6)]]
    assert named(figures["training"]) == ["attnpo", "grpo"]
    assert named(stability(runs[:1]) or Figure()) == ["head 2.1", "head 2.3", "attnpo"]
    attenuated = figures["training"].axes[titles.index("share of steps attenuated")]
    assert len(attenuated.lines) == 1  # an outcome-level method has none
    assert "attnpo 3, grpo 1" in figures["training"].get_suptitle()
    assert "t-interval" in figures["training"].get_suptitle()
    for figure in figures.values():
        check_texts(figure)
    assert training([]) is None


def test_a_shorter_seed_is_named_in_the_title(tmp_path: Path) -> None:
    runs = [read_run(run_folder(tmp_path / str(s), seed=s, steps=6 - s)) for s in range(2)]
    figure = training(runs)
    assert figure is not None and "attnpo (5 of 6)" in figure.get_suptitle()
    assert "least to greatest of 2 seeds" in figure.get_suptitle()


def kfh(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kfh", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.slow
def test_plot_command(tmp_path: Path) -> None:
    one, two = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", "grpo")
    with (two / "metrics.jsonl").open("a") as file:
        file.write('{"st')
    done = kfh("plot", one, two, "--formats", "svg", "--smooth", 3)
    assert done.returncode == 0 and "1 cut last line" in done.stderr.replace("\n", " ")
    drawn = (tmp_path / "figures" / "training.svg").read_text()
    assert "moving mean of 3 steps" in drawn and (tmp_path / "figures" / "phrases.svg").exists()
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "sra.parquet").touch()
    done = kfh("plot", one, tmp_path / "probe")
    assert done.returncode == 1 and "drawn alone" in done.stderr
