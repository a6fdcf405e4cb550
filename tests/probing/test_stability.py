"""Stability, sample size and the paper's page: formulas against theory, files, every figure."""

from __future__ import annotations

import json
import shutil
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from helpers import check_texts, overlapping_texts, trace_line, write_lines
from matplotlib.figure import Figure
from typer.testing import CliRunner

from kfh.cli import app
from kfh.commands.show import probe_figures
from probing.choices import METRICS
from probing.config import ProbeConfig
from probing.errors import ConfigError, DataError, ModelError
from probing.figures.robustness import sample_size_figure, stability_figure
from probing.figures.style import RC, styled
from probing.figures.trace import apart, step_strip
from probing.folder import ProbeResult
from probing.ranking.metrics import RankedTrace, metric_table
from probing.robustness.sample_size import (
    SizePoint,
    agreement_by_size,
    enough,
    measure_folder,
    sentence,
    sizes,
)
from probing.robustness.stability import (
    Probed,
    ceiling,
    chance_band,
    compare_pair,
    compare_probes,
    compare_with_first,
    corrected_correlation,
    correlation_interval,
    distinct_names,
    half_correlation,
    overlap,
    pearson,
    read_probes,
    spearman,
    spearman_brown,
)
from probing.run import probe
from probing.traces.file import read_traces
from rl.runs.paper import paper_figure, step_rows

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "data" / "pocket"


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two probes of the pocket model on disjoint traces, 24 each."""
    folder = tmp_path_factory.mktemp("probes")
    lines = (POCKET / "traces.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    found = []
    for number, name in enumerate("ab"):
        traces = write_lines(folder / f"{name}.jsonl", lines[number:52:2])
        out = folder / name
        probe(ProbeConfig(str(POCKET), traces, out, permutations=20, device="cpu"))
        found.append(out)
    return found[0], found[1]


def simulated(
    true: np.ndarray, traces: int, noise: float, seed: int, shared: bool
) -> tuple[Probed, Probed]:
    """Two probes of heads with these true figures (2, head); shared: one set of traces."""
    rng = np.random.default_rng(seed)
    values = true[:, :, None] + noise * rng.normal(size=(2, true.shape[1], traces))
    if shared:
        values += noise * rng.normal(size=(1, true.shape[1], traces))
    found = []
    for name, own in zip("ab", values, strict=True):
        problems = tuple(f"{'' if shared else name}{n}" for n in range(traces))
        found.append(Probed(name, own.mean(1), ((0, 0),), own, problems))
    return found[0], found[1]


def true_figures(rho: float, heads: int = 60) -> np.ndarray:
    z = np.random.default_rng(1).normal(size=(2, heads))
    return np.stack([z[0], rho * z[0] + np.sqrt(1 - rho**2) * z[1]])


def test_correlations_are_scipys() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 30)).round(1)  # with ties
    for ours, reference in ((pearson, stats.pearsonr), (spearman, stats.spearmanr)):
        expected = [reference(x, y).statistic for x, y in zip(a, b, strict=True)]
        np.testing.assert_allclose(ours(a, b), expected, atol=1e-12)
    assert np.isnan(pearson(np.ones(4), np.arange(4.0)))


def test_overlap_is_what_counting_all_sets_gives() -> None:
    first = {0, 1, 4}
    others = [set(c) for c in combinations(range(7), 2)]
    shared = np.array([len(first & other) for other in others])
    for other, count in zip(others, shared, strict=True):
        found = overlap(first, other, 7)
        assert found.shared == count and found.sizes == (3, 2)
        assert found.p == pytest.approx((shared >= count).mean())
        assert found.expected == pytest.approx(shared.mean())
        assert found.jaccard == count / len(first | other)
    low, high = chance_band(270, 10)
    assert (low, high) == (0, 2) and chance_band(4, 4) == (4, 4)


def test_probes_of_noise_overlap_as_chance_does() -> None:
    rng = np.random.default_rng(0)
    pairs = [(0, h) for h in range(30)]
    found = []
    for _ in range(400):
        figures = rng.normal(size=(2, 30))
        a, b = (Probed(n, f, ((0, int(f.argmax())),)) for n, f in zip("ab", figures, strict=True))
        found.append(compare_pair(a, b, pairs)["top"][4])  # k = 5
    shared, p = (np.array([f[key] for f in found]) for key in ("shared", "p"))
    assert abs(shared.mean() - 25 / 30) < 4 * shared.std() / 20
    for level in (0.05, 0.2, 0.6):  # never more often than it says
        assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 400)
    assert (p <= 0.2).mean() > 0.05  # and not never: it can tell


@pytest.mark.parametrize("shared", [False, True])
def test_noise_is_taken_out_of_correlations(shared: bool) -> None:
    """Raw correlations fall short of the truth (shared noise adds to them); corrected do not."""
    true = true_figures(0.6)
    truth = float(pearson(*true))
    raw, corrected, covered, raw_covered = [], [], 0, 0
    limits = []
    for seed in range(40):
        a, b = simulated(true, 40, 2.0, seed, shared)
        raw.append(float(pearson(a.figures, b.figures)))
        value, low, high = corrected_correlation(a, b, 200, seed)
        corrected.append(value)
        covered += low <= truth <= high
        limits.append(correlation_interval(a, b, resamples=200, seed=seed))
    raw_covered = sum(low <= np.mean(raw) <= high for low, high in limits)
    assert abs(np.mean(corrected) - truth) < 0.03
    assert covered >= 34 and raw_covered >= 33
    assert shared or np.mean(raw) < truth - 0.03


def test_reliability_is_the_ceiling_of_the_same_heads() -> None:
    true = true_figures(1.0)
    raw, tops = [], []
    for seed in range(30):
        a, b = simulated(true, 30, 3.0, seed, shared=False)
        raw.append(float(pearson(a.figures, b.figures)))
        tops.append(ceiling(*(spearman_brown(half_correlation(x, 60, seed)) for x in (a, b))))
    # Theory: variance of true figures over that of the means.
    variance = true[0].var()
    assert np.mean(raw) == pytest.approx(variance / (variance + 9 / 30), abs=0.03)
    assert np.mean(tops) == pytest.approx(np.mean(raw), abs=0.03)
    assert ceiling(-0.2, 0.9) == 0
    one = Probed("a", a.figures, ((0, 0),), a.values, ("x",) * 30)
    assert np.isnan(half_correlation(one))


def test_a_probe_is_like_itself(probes: tuple[Path, Path], tmp_path: Path) -> None:
    twin = shutil.copytree(probes[0], tmp_path / "twin")
    found = compare_probes([probes[0], twin])["pairs"][0]
    assert found["pearson"] == pytest.approx(1) and found["spearman"] == pytest.approx(1)
    assert found["corrected"] == pytest.approx(1) and found["corrected_low"] == pytest.approx(1)
    assert found["chosen"]["shared"] == 3 and found["chosen"]["jaccard"] == 1
    assert all(top["shared"] == top["k"] for top in found["top"])
    other = compare_probes([probes[0], probes[1]])
    assert other["pairs"][0]["common_problems"] == 0
    assert other["pairs"][0]["pearson"] > 0.9 and other["probes"][0]["reliability"] > 0.9
    assert other["pairs"][0]["pearson_low"] < other["pairs"][0]["pearson"]


def test_probes_in_folders_of_one_name_are_told_apart(
    probes: tuple[Path, Path], tmp_path: Path
) -> None:
    folders = [tmp_path / "before" / "probe", tmp_path / "after" / "probe", tmp_path / "other"]
    assert distinct_names(folders) == ["before/probe", "after/probe", "other"]
    assert distinct_names([Path("x"), tmp_path / "a" / "x"])[1] == "a/x"
    copies = [shutil.copytree(p, to) for p, to in zip(probes, folders[:2], strict=True)]
    done = CliRunner().invoke(app, ["stability", *map(str, copies), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output or done.exception
    written = json.loads((tmp_path / "stability.json").read_text())
    assert [probe["name"] for probe in written["probes"]] == ["before/probe", "after/probe"]
    with pytest.raises(ConfigError, match="give no folder twice"):
        read_probes([copies[0], copies[0]])


def test_stability_without_what_it_can_do_without(
    probes: tuple[Path, Path], tmp_path: Path
) -> None:
    """No scores: no interval. No trace file: traces stand for problems, and that is said."""
    bare = shutil.copytree(probes[0], tmp_path / "bare")
    (bare / "scores.parquet").unlink()
    found = compare_probes([bare, probes[1]])
    assert found["probes"][0]["resampled"].startswith("nothing")
    assert found["pairs"][0]["pearson_low"] is None and found["pairs"][0]["ceiling"] is None
    assert overlapping_texts(stability_figure(found)) == []
    moved = moved_traces(probes[0], tmp_path / "moved")
    assert compare_probes([moved, probes[1]])["probes"][0]["resampled"] == "problems"
    run = json.loads((moved / "run.json").read_text())
    del run["counts"]["problem_of"]  # an older probe
    (moved / "run.json").write_text(json.dumps(run))
    found = compare_probes([moved, probes[1]])
    assert "is not there" in found["probes"][0]["resampled"]
    assert found["pairs"][0]["pearson_low"] is not None


def moved_traces(folder: Path, to: Path) -> Path:
    """The same probe, whose trace file is elsewhere now."""
    shutil.copytree(folder, to)
    run = json.loads((to / "run.json").read_text())
    run["config"]["traces"] = "moved/away.jsonl"
    (to / "run.json").write_text(json.dumps(run))
    return to


def other_shape(folder: Path, to: Path) -> Path:
    """The same probe, as if of a model with three layers."""
    shutil.copytree(folder, to)
    table = pd.read_parquet(to / "sra.parquet")
    table[table["layer"] < 3].to_parquet(to / "sra.parquet")
    run = json.loads((to / "run.json").read_text())
    run["model"]["layers"] = 3
    for point in (point for points in run["curves"].values() for point in points):
        point["added"][0] = min(point["added"][0], 2)
    (to / "run.json").write_text(json.dumps(run))
    return to


def test_what_cannot_be_compared(probes: tuple[Path, Path], tmp_path: Path) -> None:
    small = other_shape(probes[0], tmp_path / "small")
    with pytest.raises(
        ModelError, match=r"4 layers of 4 heads.*3 layers of 4.*no places in common"
    ):
        read_probes([probes[0], small])
    with pytest.raises(ConfigError, match="at least two"):
        read_probes([probes[0]])
    with pytest.raises(ConfigError, match="as many names"):
        read_probes(list(probes), ["x"])
    with pytest.raises(ConfigError, match="unknown metric"):
        read_probes(list(probes), None, "loss")
    with pytest.raises(DataError, match="no finished probe"):
        read_probes([probes[0], tmp_path])


def test_a_folder_gives_back_what_was_ranked(probes: tuple[Path, Path], tmp_path: Path) -> None:
    result = ProbeResult.load(probes[0])
    traces = result.ranked_traces(result.problems())
    for metric in METRICS:
        values = metric_table(traces)[metric]
        np.testing.assert_allclose(np.nanmean(values, axis=1), result.table[metric], atol=1e-9)
    moved = ProbeResult.load(moved_traces(probes[0], tmp_path / "moved"))
    assert moved.problems() == result.problems()  # the probe says it, the file need not be there
    del moved.counts["problem_of"]  # older ones do not
    with pytest.raises(DataError, match=r"away\.jsonl.*--traces"):
        moved.problems()
    here, wrong = (
        ProbeResult.load(moved.folder, probes[0].parent / f"{name}.jsonl") for name in "ab"
    )
    assert here.problems() == result.problems()
    with pytest.raises(DataError, match="not the trace file"):
        wrong.problems()
    (moved.folder / "scores.parquet").unlink()
    with pytest.raises(DataError, match="no step scores"):
        moved.ranked_traces()
    with pytest.raises(DataError, match="no scores of trace x"):
        ProbeResult.load(probes[0]).longest(["x"])


def ranked(count: int, good: int, heads: int = 20, seed: int = 0) -> list[RankedTrace]:
    """Traces of noise, in which the first heads score essential steps higher."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        essential = np.array([True, False] * 3)
        scores = rng.normal(size=(heads, 6))
        scores[:good] += 2.0 * essential
        tokens = np.full(6, 5)
        found.append(RankedTrace(str(number), str(number), scores, essential, tokens, 0.1))
    return found


def test_sample_size_of_planted_heads_and_of_noise() -> None:
    clear = agreement_by_size(ranked(60, 3), 3, draws=40, ladder=(5, 20))
    assert [point.problems for point in clear] == [5, 20, 60]
    assert clear[0].same == clear[1].same == 1 and clear[1].disjoint == 1
    assert clear[1].held_out == pytest.approx(clear[1].best, abs=0.03)
    assert clear[0].width > clear[1].width > clear[2].width
    noise = agreement_by_size(ranked(60, 0), 3, draws=150, ladder=(5, 20))
    assert noise[0].disjoint == pytest.approx(3 / 20, abs=0.05) and noise[0].chance == 3 / 20
    assert noise[0].picked > 0.6  # the best of twenty heads, by luck
    assert noise[0].held_out == pytest.approx(0.5, abs=0.03)
    assert noise[0].same < 0.05 and noise[2].held_out is None and noise[2].disjoint is None
    again = agreement_by_size(ranked(60, 0), 3, draws=150, ladder=(5, 20))
    assert again == noise


def test_problems_are_drawn_whole() -> None:
    traces = [
        RankedTrace(f"{t.id}/{n}", t.group, t.scores, t.essential, t.tokens, t.base)
        for t in ranked(12, 2)
        for n in range(3)
    ]
    points = agreement_by_size(traces, 2, draws=5, ladder=(5,))
    assert [point.traces for point in points] == [15, 36]
    for bad, message in (({"k": 0}, "cannot be chosen"), ({"draws": 0}, "--draws")):
        with pytest.raises(ConfigError, match=message):
            agreement_by_size(traces, **{"k": 2, "ladder": (5,), **bad})
    with pytest.raises(DataError, match="12 problems are too few"):
        agreement_by_size(traces, 2, ladder=(20,))


def test_the_sentence_says_what_the_points_do() -> None:
    def points(*same: float) -> list[SizePoint]:
        numbers = sizes(100)[-len(same) - 1 :]
        rows = [*same, 1.0]
        made = []
        for n, share in zip(numbers, rows, strict=True):
            made.append(
                SizePoint(
                    n, n, 9, 0.9, (0.8, 1.0), 0.1, 0.9, 0.8, (0.7, 0.9), share, share, None, 0.1
                )
            )
        return made

    assert sizes(100) == [5, 10, 20, 50, 100]
    steady = points(0.95, 0.5, 0.96, 0.93)  # 5 problems agree by luck: 10 do not
    assert enough(steady).problems == 20
    assert sentence(steady, 3).startswith("From 20 problems on, the 3 chosen") and "93 %" in (
        sentence(steady, 3)
    )
    assert enough(points(0.1, 0.2, 0.3, 0.4)) is None
    text = sentence(points(0.1, 0.2, 0.3, 0.4), 1)
    assert text.startswith("No number of problems below 100") and "40 % of draws" in text


def test_numbers_of_a_band_stand_apart() -> None:
    rng = np.random.default_rng(0)
    assert apart([1, 2, 9], 3, 10) == [1, 4, 9]
    for _ in range(100):
        wanted = sorted(rng.uniform(0, 100, 6).tolist())
        found = apart(wanted, 5, 100)
        assert (np.diff(found) >= 5 - 1e-9).all() and max(found) <= 100


def long_trace(tmp_path: Path, steps: int) -> object:
    path = write_lines(tmp_path / f"{steps}.jsonl", [trace_line(3, steps=steps)])
    return next(iter(read_traces(path)))


@pytest.mark.parametrize("steps", [2, 60, 61, 300])
def test_a_strip_draws_every_step(tmp_path: Path, steps: int) -> None:
    trace = long_trace(tmp_path, steps)
    ratios = np.random.default_rng(0).exponential(size=steps)
    ratios[1] = np.nan  # a step without a token
    figure = step_strip(trace, ratios, "pays $5 and $6", np.arange(1, steps + 1))
    bars = [patch for patch in figure.axes[0].patches if hasattr(patch, "get_width")]
    assert len(bars) == steps
    if steps > 60:
        assert len(figure.axes[1].patches) == steps
        assert f"({steps} steps)" in figure.axes[1].get_xlabel()
    check_texts(figure)
    with pytest.raises(DataError, match=f"{steps - 1} scores for {steps} steps"):
        step_strip(trace, ratios[1:])


def ablation_folder(folder: Path) -> Path:
    """Accuracy of arms and doses, as `kfh ablate` writes it."""
    folder.mkdir()
    rows = [
        {
            "part": "steps", "arm": arm, "mode": "", "dose": float(dose), "measure": measure,
            "value": value, "low": value - 0.1, "high": min(1.0, value + 0.1),
            "traces": 40 - dose, "groups": 40 - dose,
        }
        for arm, value in (("none", 0.9), ("low", 0.9), ("high", 0.4), ("random", 0.8))
        for dose in ((0,) if arm == "none" else (1, 2, 3))
        for measure in ("accuracy", "logprob")
    ]  # fmt: skip
    (folder / "ablation.json").write_text(
        json.dumps({"head_set": {"heads": [[2, 3]]}, "summary": rows})
    )
    return folder


def probed_run(folder: Path, method: str = "attnpo") -> Path:
    """A training run with probes of its policy."""
    folder.mkdir()
    info = {"method": method, "seed": 0, "steps": 6, "status": "done"}
    (folder / "run.json").write_text(json.dumps(info))
    rows = [{"step": k, "tokens": 9, "seconds": 1.0} for k in (1, 2)]
    write_lines(folder / "metrics.jsonl", rows)
    lines = [{"step": k, "heads": [], "sra": None, "correlation": 1 - k / 50} for k in (0, 3, 6)]
    write_lines(folder / "probe.jsonl", lines)
    return folder


def test_the_page_has_the_panels_that_have_data(probes: tuple[Path, Path], tmp_path: Path) -> None:
    ablation, run = ablation_folder(tmp_path / "ablation"), probed_run(tmp_path / "run")
    figure, missing = paper_figure(probes[0])
    assert len(missing) == 2 and titles(figure) == ["SRA of heads (outlined: the set)", "ensembles"]
    check_texts(figure)
    figure, missing = paper_figure(probes[0], ablation)
    assert len(missing) == 1 and len(titles(figure)) == 3
    check_texts(figure)
    figure, missing = paper_figure(
        probes[0], ablation, train=[run, probed_run(tmp_path / "g", "grpo")]
    )
    assert missing == [] and len(titles(figure)) == 4
    bars, curves = (
        axes
        for axes in figure.axes
        for letter in "cd"
        if f"({letter})" in axes.get_title(loc="left")
    )
    assert sorted(round(bar.get_height(), 2) for bar in bars.patches) == sorted(
        [0.9] + [0.9] * 3 + [0.4] * 3 + [0.8] * 3
    )
    assert list(curves.lines[0].get_ydata()) == [1.0, 0.94, 0.88]
    check_texts(figure)
    figure, _ = paper_figure(probes[0], checkpoints=[probes[1]])
    pair = compare_with_first(list(probes))[0]
    assert pair["pearson"] > 0.9 and len(titles(figure)) == 3
    check_texts(figure)


def titles(figure: Figure) -> list[str]:
    found = [axes.get_title(loc="left") for axes in figure.axes]
    return [title.partition("$ ")[2] for title in found if title]


def test_the_page_refuses_what_it_was_not_given(probes: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ablation\.json"):
        paper_figure(probes[0], probes[1])
    ablation = ablation_folder(tmp_path / "ablation")
    content = json.loads((ablation / "ablation.json").read_text())
    content["summary"] = [row for row in content["summary"] if row["arm"] != "random"]
    (ablation / "ablation.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="no accuracy with and without"):
        step_rows(ablation)
    (ablation / "ablation.json").write_text('{"summary": [{"part": 3}]}')
    with pytest.raises(DataError, match="no result of `kfh ablate`"):
        step_rows(ablation)
    run = probed_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="one of the two"):
        paper_figure(probes[0], train=[run], checkpoints=[probes[1]])
    (run / "probe.jsonl").unlink()
    with pytest.raises(DataError, match="probe_every"):
        paper_figure(probes[0], train=[run])


def test_figures_of_a_probe(probes: tuple[Path, Path]) -> None:
    figures = probe_figures(probes[0], "balanced")
    assert set(figures) == {"heatmap", "layers", "heads", "ensembles", "strip"}
    for figure in figures.values():
        check_texts(figure)
    with pytest.raises(DataError, match="no scores of trace"):
        probe_figures(probes[0], "sra", trace="nowhere")


def test_stability_and_sample_size_figures(probes: tuple[Path, Path], tmp_path: Path) -> None:
    found = compare_probes(list(probes))
    figure = stability_figure(found)
    left, right = figure.axes
    pair = found["pairs"][0]
    drawn = left.images[0].get_array()
    assert drawn[1, 0] == pytest.approx(pair["pearson"])
    assert drawn[0, 1] == pytest.approx(pair["spearman"])
    assert drawn[0, 0] == pytest.approx(found["probes"][0]["reliability"])
    shared = [top["shared"] for top in pair["top"]]
    assert shared in [list(line.get_ydata()) for line in right.lines]
    check_texts(figure)
    copies = [shutil.copytree(probes[0], tmp_path / f"checkpoint-{n}00") for n in range(5)]
    check_texts(stability_figure(compare_probes([*probes, *copies])))
    measured = measure_folder(probes[0], draws=20, ladder=(5, 10))
    figure = sample_size_figure(measured)
    assert list(figure.axes[0].lines[0].get_ydata()) == [p["best"] for p in measured["points"]]
    assert measured["sentence"] in figure.get_suptitle().replace("\n", " ")
    check_texts(figure)


def test_style_leaves_the_users_settings_alone() -> None:
    before = dict(mpl.rcParams)

    @styled
    def draw() -> float:
        return float(mpl.rcParams["font.size"])

    with mpl.rc_context({"font.size": 30}):
        assert draw() == RC["font.size"] and mpl.rcParams["font.size"] == 30
    assert dict(mpl.rcParams) == before


def test_overlapping_texts_are_found() -> None:
    figure = Figure()
    figure.text(0.5, 0.5, "one"), figure.text(0.52, 0.5, "two"), figure.text(0.1, 0.1, "three")
    assert overlapping_texts(figure) == [("two", "one")]
    with pytest.raises(AssertionError):
        check_texts(figure)


def test_commands(probes: tuple[Path, Path], tmp_path: Path) -> None:
    def kfh(*arguments: object) -> str:
        done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    out = tmp_path / "out"
    said = kfh("stability", *probes, "--names", "one,two", "--out", out, "--formats", "png,svg,pdf")
    found = json.loads((out / "stability.json").read_text())
    assert found["kfh"]["kind"] == "stability of heads" and "one, two" in said
    assert all((out / f"stability.{kind}").stat().st_size > 2000 for kind in ("png", "svg", "pdf"))
    again = compare_probes(list(probes), ["one", "two"])
    assert found["pairs"] == json.loads(json.dumps(again["pairs"]))
    folder = shutil.copytree(probes[0], tmp_path / "probe")
    said = kfh("sample-size", folder, "--sizes", "5,10", "--draws", 20, "--formats", "svg")
    found = json.loads((folder / "sample_size.json").read_text())
    assert " ".join(found["sentence"].split()) in " ".join(said.split())
    kfh("plot", folder, "--formats", "svg")
    assert (folder / "strip.svg").exists() and (folder / "sample_size.svg").exists()
    kfh("plot", "paper", folder, "--formats", "svg", "--out", out)
    assert (out / "paper.svg").exists()
    with pytest.raises(ConfigError, match="--sizes"):
        kfh("sample-size", folder, "--sizes", "many")
