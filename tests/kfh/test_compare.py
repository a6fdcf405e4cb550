"""The comparison of methods: statistics against theory and simulation, runs with a fake trainer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kfh.commands.compare import make_table, run_compare, run_comparison
from kfh.findings.runs import write_comparison
from probing.errors import ConfigError, DataError
from probing.files.headers import data_path, read_object
from probing.intervals import Estimate
from rl.attnpo.methods import METHODS
from rl.runs import job
from rl.runs.comparison import read_rows
from rl.runs.folders import course_rows, read_course, write_course
from rl.runs.intervals import hierarchical_bootstrap, seed_spread
from rl.runs.job import check_results, measure_arm, stop, train_all
from rl.runs.standings import read_contenders
from rl.runs.trial import START, Arm, CompareConfig
from rl.tasks.questions import load_questions

ROOT = Path(__file__).parents[2]

# A trainer that only counts: it goes on from its last step, and ends as the method's name says.
TRAINER = """
import json, shutil, signal, sys, time
from pathlib import Path
from typing import Any
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[-1] == "--resume"
out, method, pace = Path(given["--out"]), given["--method"], float(sys.argv[1])
sets = dict(a.split("=") for a in sys.argv if "=" in a)
steps, every = int(sets["max_steps"]), int(sets["save_steps"])
out.mkdir(parents=True, exist_ok=True)
info = {"method": method, "seed": int(given["--seed"]), "status": "running", "responses": 8}
(out / "run.json").write_text(json.dumps(info))
metrics = out / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
print("starts after step", done, flush=True)
try:
    for step in range(done + 1, steps + 1):
        if method == "broken" and step == 2:
            sys.exit("the loss is not a number")
        if method == "short" and step == 3:
            break
        time.sleep(pace)
        with metrics.open("a") as file:
            file.write(json.dumps({"step": step, "seconds": 1.5, "tokens": 10.0}) + chr(10))
        if step % every == 0:
            shutil.copytree(MODEL, out / f"checkpoint-{step}", dirs_exist_ok=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
if method != "no-model":
    shutil.copytree(MODEL, out / "model", dirs_exist_ok=True)
"""


def config(tmp_path: Path, *methods: str, pace: float = 0, **changes: object) -> CompareConfig:
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER.replace("MODEL", repr(str(data_path("pocket")))))
    base = CompareConfig(
        tmp_path / "out",
        methods,
        seeds=1,
        steps=3,
        every=2,
        reported="pocket-held-out:4",
        validation="pocket:3@100",
        command=(sys.executable, str(script), str(pace)),
    )
    return replace(base, **changes)


def itself(mean: np.ndarray) -> np.ndarray:
    return mean


def gap(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return ours - theirs


def half(figure: Estimate) -> float:
    return (figure.high - figure.low) / 2


def test_one_seed_gives_the_interval_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(10, 2, (1, 400))
    figure = hierarchical_bootstrap(itself, values)
    assert figure.value == pytest.approx(values.mean()) and figure.n == 400
    assert half(figure) == pytest.approx(1.96 * values.std() / 20, rel=0.06)


def test_alike_problems_give_students_interval_over_seeds() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(10, 2, (12, 1)), 30, axis=1)
    figure = hierarchical_bootstrap(itself, values, draws=20_000)
    assert half(figure) == pytest.approx(2.201 * values[:, 0].std(ddof=1) / 12**0.5, rel=0.06)


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds: int) -> None:
    """Seeds and problems both vary. Without the widening far fewer intervals hold it."""
    hits = {None: 0, 1.0: 0}
    trials = 150
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        values = rng.normal(0, 1, (seeds, 1)) + rng.normal(0, 1, (1, 40))
        values = values + rng.normal(0, 1, (seeds, 40))
        for spread in hits:
            figure = hierarchical_bootstrap(itself, values, draws=400, spread=spread)
            hits[spread] += figure.low <= 0 <= figure.high
    assert 0.90 <= hits[None] / trials <= 0.99
    assert hits[1.0] / trials < 0.88


def test_differences_are_paired_over_problems_and_seeds() -> None:
    rng = np.random.default_rng(0)
    problems, seeds = rng.normal(100, 30, (1, 200)), rng.normal(0, 5, (5, 1))
    theirs = problems + seeds + rng.normal(0, 0.1, (5, 200))
    ours = theirs - 7
    paired = hierarchical_bootstrap(gap, ours, theirs)
    assert paired.value == pytest.approx(-7) and half(paired) < 1e-9
    assert half(hierarchical_bootstrap(itself, ours)) > 3
    shuffled = hierarchical_bootstrap(gap, ours[:, rng.permutation(200)], theirs)
    assert half(shuffled) > 2


def test_change_in_per_cent_is_of_the_means() -> None:
    theirs = np.random.default_rng(0).uniform(20, 60, (3, 50))
    figure = hierarchical_bootstrap(lambda a, b: 100 * (a / b - 1), 0.77 * theirs, theirs)
    assert (figure.value, figure.low, figure.high) == pytest.approx((-23, -23, -23))


def test_missing_values_do_not_enter_the_mean() -> None:
    values = np.random.default_rng(0).normal(5, 1, (4, 60))
    holes = values.copy()
    holes[:, ::3] = np.nan
    whole = np.delete(values, np.arange(0, 60, 3), axis=1)
    assert hierarchical_bootstrap(itself, holes).value == pytest.approx(whole.mean())
    ratio = half(hierarchical_bootstrap(itself, holes)) / half(
        hierarchical_bootstrap(itself, whole)
    )
    assert ratio == pytest.approx(1, abs=0.15)
    holes[0, 1:50] = np.nan  # each seed has equal weight, however much of it is missing
    few = hierarchical_bootstrap(itself, holes)
    assert few.value == pytest.approx(np.nanmean(holes, axis=1).mean())
    assert few.low > 3 and few.high < 7
    with pytest.raises(ValueError, match="share one shape"):
        hierarchical_bootstrap(gap, values, whole)


def test_spread_factor() -> None:
    assert seed_spread(5) == pytest.approx(1.584, abs=1e-3)
    assert seed_spread(1) == 1 and seed_spread(1000) == pytest.approx(1, abs=0.003)


def result_file(folder: Path, method: str, seed: int, tokens: list[int], right: list[int]) -> Path:
    folder.mkdir(parents=True)
    part = {"correct": right, "tokens_each": tokens, "unreadable": seed}
    content = {"method": method, "seed": seed, "seconds": 60.0 + seed, "problems": {"n": 4}}
    content |= {"shortest_each": [10, 20, 10, 20], "greedy": part, "sampled": part}
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def test_rows(tmp_path: Path) -> None:
    folders = [
        result_file(tmp_path / f"{m}-{s}", m, s, [extra + floor for floor in (10, 20, 10, 20)], hit)
        for m, s, extra, hit in (
            ("tlmre", 0, 40, [1, 1, 1, 0]),
            ("tlmre", 1, 60, [1, 1, 0, 0]),
            ("attnpo", 0, 30, [1, 1, 1, 1]),
            ("attnpo", 2, 90, [0, 0, 0, 0]),
        )
    ]
    rows = read_rows(folders)
    assert [row.method for row in rows] == ["tlmre", "attnpo"] and rows[0].seeds == (0, 1)
    assert rows[0].figures["greedy.redundant_tokens"].value == 50
    assert rows[0].figures["sampled.accuracy"].value == 5 / 8
    assert rows[0].seconds.value == 60.5 and rows[0].unreadable == 2
    assert "greedy.redundant_steps" not in rows[0].figures
    damaged = read_object(folders[1] / "result.json") | {"problems": {"n": 5}}
    (folders[1] / "result.json").write_text(json.dumps(damaged))
    with pytest.raises(DataError, match="differ in `problems`"):
        read_rows(folders)


def measured(folder: Path, method: str, pressure: float | None) -> Path:
    """A run's folder with a course on the reported problems alone."""
    result_file(folder, method, 0, [80] * 4, [1] * 4)
    content = read_object(folder / "result.json")
    content |= {"pressure": pressure, "problems": ["reported:4", ""], "made_with": {}}
    (folder / "result.json").write_text(json.dumps(content))
    steps = [0] if method == "initial" else [10, 20]
    numbers = (np.ones(4), np.full(4, 90), np.full(4, 10))
    rows = [
        course_rows(step, 100.0 * step, "reported", numbers[0], numbers[1] - step, numbers[2])
        for step in steps
    ]
    write_course(folder, rows)
    return folder


def test_without_a_validation_methods_of_one_pressure_are_held_against_each_other(
    tmp_path: Path,
) -> None:
    """There is nothing to choose; of several pressures nothing could choose one."""
    start = measured(tmp_path / "initial", "initial", None)
    one, other = (measured(tmp_path / method, method, 0.2) for method in ("tlmre", "attnpo"))
    content = write_comparison(tmp_path, [start, one, other], [])
    (pair,) = content["standings"]["pairs"]
    assert pair["speed_ups"][0]["steps"]["value"] == pytest.approx(1)
    assert (tmp_path / "gains.png").exists() and (tmp_path / "courses.png").exists()
    more = measured(tmp_path / "more", "attnpo", 0.3)
    assert read_contenders([start, one, other, more]) == []


def test_several_pressures_without_a_validation_are_said_not_to_be_chosen(tmp_path: Path) -> None:
    setting = config(tmp_path, "tlmre", validation="", pressure=("tlmre=0.2,0.3",))
    for arm in setting.arms:
        result_file(setting.folder(arm), "tlmre", 0, [50] * 4, [1] * 4)
    assert make_table(setting, {})["notes"][-1].startswith("No --validation")
    one = replace(setting, pressure=("tlmre=0.2",))
    assert not any("--validation" in note for note in make_table(one, {})["notes"])


@pytest.mark.pocket
def test_the_measured_figures_are_those_of_the_answers(tmp_path: Path) -> None:
    setting = CompareConfig(tmp_path, ("grpo",))
    sets = [load_questions(spec) for spec in ("pocket-held-out:6", "pocket:3@100")]
    measure_arm(setting, START, sets)
    found = read_object(tmp_path / "initial" / "result.json")
    for part in (found["greedy"], found["sampled"]):
        assert part["accuracy"] == sum(part["correct"]) / 6 and len(part["tokens_each"]) == 6
        beyond = np.subtract(part["tokens_each"], found["shortest_each"])
        assert part["redundant_tokens"] == pytest.approx(beyond.mean()) and beyond.mean() > 20
        assert part["unreadable"] == part["redundant_steps_each"].count(None)
    course = read_course(tmp_path / "initial")
    assert course["reported"].correct[0].astype(int).tolist() == found["sampled"]["correct"]
    sampled = np.subtract(found["sampled"]["tokens_each"], found["shortest_each"])
    assert course["reported"].redundant.tolist() == [sampled.tolist()]
    assert course["validation"].correct.shape == (1, 3)


@pytest.mark.pocket
@pytest.mark.parametrize(("given", "dtype"), [((), "float32"), (("bf16=true",), "bfloat16")])
def test_runs_are_measured_as_they_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], dtype: str
) -> None:
    seen, measured = [], job.answers_to

    def watched(questions: Any, model: Any, *how: Any) -> Any:
        seen.append(str(model.dtype))
        return measured(questions, model, *how)

    monkeypatch.setattr(job, "answers_to", watched)
    setting = CompareConfig(tmp_path, ("grpo",), settings=given)
    measure_arm(setting, START, [load_questions("pocket-held-out:2")])
    assert seen == [f"torch.{dtype}"] * 2  # sampled, then greedily


@pytest.mark.slow
@pytest.mark.pocket
def test_a_comparison_runs_resumes_and_names_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("broken", "short", "no-model"):  # methods to the trainer of this file
        monkeypatch.setitem(METHODS, name, METHODS["grpo"])
    setting = config(tmp_path, "attnpo", "broken", "short", "no-model", jobs=2)
    failed = run_comparison(setting)
    out = setting.out
    assert {arm.method for arm in failed} == {"broken", "short", "no-model"}
    assert str(out / "logs" / "broken-0.log") in failed[Arm("broken", None, 0)]
    assert "the loss is not a number" in (out / "logs" / "broken-0.log").read_text()
    assert "ended at step 2 of 3" in failed[Arm("short", None, 0)]
    assert "no trained model" in failed[Arm("no-model", None, 0)]
    text = (out / "table.md").read_text()
    assert run_compare(setting, table=True)  # from what is there
    printed = capsys.readouterr().out
    assert "Methods, greedy, on 4 held-out problems" in text
    assert "Methods, greedy, on 4 held-out problems" in printed and "table.md" in printed
    assert "| initial | – |" in text and "| attnpo | 1 |" in text and "broken-0 (ended" in text
    assert "Of one seed, over problems alone: attnpo" in text
    written = read_object(out / "comparison.json")
    assert written["rows"][1]["seconds"]["value"] == 4.5
    result = (out / "attnpo-0" / "result.json").read_text()
    # The model was copied: greedy answers are the initial policy's.
    start = read_object(out / "initial" / "result.json")
    assert json.loads(result)["greedy"] == start["greedy"]
    course = read_course(out / "attnpo-0")["reported"]
    assert course.steps.tolist() == [2, 3] and course.sampled.tolist() == [160, 240]
    assert (course.redundant[0] == read_course(out / "initial")["reported"].redundant[0]).all()
    assert not list((out / "attnpo-0").glob("checkpoint-*")) and (out / "courses.png").exists()
    changed = (out / "attnpo-0" / "result.json").stat().st_mtime_ns
    pair = replace(setting, methods=("attnpo", "oracle"))
    for number in (1, 2):  # as a job array
        assert run_compare(replace(pair, shards=f"{number}/2"))
        assert (out / "oracle-0" / "result.json").exists() == (number == 2)
    assert "1 of 1 runs of shard 2/2" in capsys.readouterr().out
    assert (out / "attnpo-0" / "result.json").stat().st_mtime_ns == changed
    assert run_compare(pair, table=True)
    assert "| attnpo against oracle (1 seed) |" in (out / "table.md").read_text()
    with pytest.raises(ConfigError, match=r"attnpo-0.*was made with"):
        run_comparison(replace(setting, methods=("attnpo",), steps=4))


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    setting = config(tmp_path, "attnpo", "tlmre", steps=4000, jobs=2, pace=0.02)
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys; from pathlib import Path; import kfh.commands.compare as compare\n"
        "import rl.runs.job as job\n"
        "job.measure_arm = lambda *a: None\n"
        "config = compare.CompareConfig(\n"
        f"    Path({str(setting.out)!r}), ('attnpo', 'tlmre'), seeds=1, steps=4000, every=4000,\n"
        f"    jobs=2, command={setting.command!r},\n"
        ")\n"
        "try:\n"
        "    compare.run_compare(config)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    command = [sys.executable, str(driver)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment)
    files = [setting.out / f"{method}-0" / "metrics.jsonl" for method in setting.methods]
    deadline = time.monotonic() + 60
    while not all(file.exists() for file in files) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    logs = [setting.log(arm) for arm in setting.arms]
    assert all(log.read_text().endswith("interrupted\n") for log in logs)
    steps = [len(file.read_text().splitlines()) for file in files]
    time.sleep(0.2)
    assert steps == [len(file.read_text().splitlines()) for file in files]  # nobody is left
    assert all(0 < count < 4000 for count in steps)
    quick = config(tmp_path, "attnpo", "tlmre", steps=steps[0] + 3)
    assert not train_all(quick, lambda arm: None)
    assert f"starts after step {steps[0]}" in logs[0].read_text()
    with pytest.raises(DataError, match="no run is finished"):
        make_table(quick, {})


def test_a_process_that_will_not_leave_is_ended() -> None:
    code = "import signal, time; signal.signal(2, signal.SIG_IGN); print(1, flush=True)"
    command = [sys.executable, "-c", f"{code}; time.sleep(60)"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    stop([process], patience=0.2)
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL


def test_options(tmp_path: Path) -> None:
    setting = CompareConfig(tmp_path, small=True, settings=("group=4",))
    assert setting.methods == ("grpo", "tlmre", "attnpo") and setting.seeds == 3
    assert CompareConfig(tmp_path).seeds == 5 and len(CompareConfig(tmp_path).methods) == 8
    setting = CompareConfig(tmp_path, ("attnpo", "dler"), ("attnpo=0.2,0.3",), 2)
    names = "attnpo@0.2-0 attnpo@0.3-0 dler-0 attnpo@0.2-1 attnpo@0.3-1 dler-1"
    assert " ".join(arm.name for arm in setting.arms) == names
    assert "length_coef=0.3" in setting.train(setting.arms[1])
    assert Arm("dler", 100.0, 0).settings == ["target_length=100"]
    shares = [replace(setting, shards=f"{number}/4") for number in (1, 2, 3, 4)]
    shared = [arm for share in shares for arm in share.arms]
    assert sorted(shared) == sorted(setting.arms)
    assert [share.starts for share in shares] == [True, False, False, False]
    for wrong, why in (
        ({"methods": ("pa", "pa")}, "twice"),
        ({"methods": ("initial",)}, "no method"),
        ({"shards": "3/2"}, "write i/n"),
        ({"settings": ("x",)}, "key=value"),
        ({"settings": ("max_steps=3",)}, "--steps"),
        ({"pressure": ("grpo=1",)}, "no length penalty"),
        ({"pressure": ("pa=much",)}, "METHOD=0.2,0.3"),
        ({"pressure": ("pa=0.2,0.2",)}, "each value once"),
        ({"pressure": ("pa=0.2",), "methods": ("na",)}, "unknown method 'pa'"),
        ({"model": "other"}, "--reported names the questions"),
        ({"task": "mine:Task"}, "--reported names the questions"),
        ({"settings": ("data=x",)}, "--data"),
        ({"jobs": 0}, "jobs"),
        ({"seeds": 0}, "seeds"),
    ):
        with pytest.raises(ConfigError, match=why):
            CompareConfig(tmp_path, **wrong)
    with pytest.raises(ConfigError, match="was made with"):
        other = CompareConfig(tmp_path, ("grpo",))
        (tmp_path / "initial").mkdir()
        (tmp_path / "initial" / "result.json").write_text('{"made_with": {}}')
        check_results(other)
