"""`kfh report`: figures as the files have them, caveats as controls are (not) beaten, escaping."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import model_folder, trace_file
from test_runs import add_result, run_folder
from typer.testing import CliRunner

from kfh.cli import app
from kfh.findings.evaluation import benchmark_caveats, evaluation_caveats, evaluation_table
from kfh.findings.heads import sample_size_caveats
from kfh.findings.page import read_sections
from kfh.findings.runs import comparison_caveats
from kfh.tables import markdown_text
from probing.config import ProbeConfig
from probing.errors import DataError
from probing.folder import ProbeResult
from probing.interventions.claims import claims_of
from probing.interventions.effects import differences, summarise
from probing.interventions.outcomes import Outcome
from probing.interventions.result import InterventionResult
from probing.numbers import Number
from probing.ranking.select import best_control
from probing.robustness.sample_size import measure_folder, write_sample_size
from probing.robustness.stability import compare_probes, write_stability
from probing.run import probe

EVIL = "<script>alert('1')</script> | *a*"


class Page(HTMLParser):
    """The texts of a page: cells by table, list items, tags, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.items: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._into = self.tables[-1][-1]
            self._into.append("")
        elif tag in ("li", "dd"):
            self._into = self.items
            self._into.append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th", "li", "dd"):
            self._into = None

    def handle_data(self, data):
        if self._into is not None:
            self._into[-1] += data


@pytest.fixture(autouse=True)
def coarse(monkeypatch) -> None:
    """Small pictures: their dots are not looked at here."""
    monkeypatch.setattr("kfh.findings.page.DPI", 25)


@pytest.fixture(scope="module")
def probed(tmp_path_factory) -> Path:
    """A finished probe of a tiny model."""
    folder = tmp_path_factory.mktemp("probe")
    model, traces = model_folder(folder / "m"), trace_file(folder / "t.jsonl", 12)
    probe(ProbeConfig(str(model), traces, folder / "run", permutations=20, device="cpu"))
    return folder / "run"


@pytest.fixture
def folder(probed, tmp_path) -> Path:
    """A copy of its result files, to be changed."""
    (tmp_path / "a").mkdir()
    for name in ("run.json", "heads.json", "sra.parquet"):
        (tmp_path / "a" / name).write_bytes((probed / name).read_bytes())
    return tmp_path / "a"


def report(folder: Path, *options: object) -> tuple[Page, str]:
    result = CliRunner().invoke(app, ["report", str(folder), *map(str, options)])
    assert result.exit_code == 0, result.output or result.exception
    page = (folder / "report.html").read_text(encoding="utf-8")
    return Page(page), (folder / "report.md").read_text(encoding="utf-8")


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Tables of a Markdown text, as cells, without the line of dashes."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("| "):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            found[-1].append([shown(cell.strip()) for cell in cells])
        elif not line.startswith("|"):
            found.append([])
    return [table for table in found if table]


def shown(markdown: str) -> str:
    """What a reader of the Markdown sees."""
    text = re.sub(r"\\(.)", r"\1", markdown)
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def change(path: Path, *keys: object, to: object) -> None:
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    path.write_text(json.dumps(content))


def test_every_figure_of_the_heads_is_that_of_the_files(folder):
    page, _ = report(folder)
    table = pd.read_parquet(folder / "sra.parquet")
    run = json.loads((folder / "run.json").read_text())
    rows = {row[0].removesuffix(" *"): row for row in page.tables[0][1:]}
    assert len(rows) >= 10
    by_name = {f"{r.layer}.{r.head}": r for r in table.itertuples()}
    for name, row in rows.items():
        head = by_name[name]
        for cell, metric in zip(row[1:4], ("sra", "balanced", "gating"), strict=True):
            ends = (getattr(head, metric + end) for end in ("", "_low", "_high"))
            assert cell == "{:.3f} ({:.3f}–{:.3f})".format(*ends)
        assert row[4] == f"{head.sra_p:.3f}"
        assert row[6] == f"{head.sra_select:.3f} → {head.sra_held_out:.3f}"
    starred = {row[0][:-2] for row in page.tables[0] if row[0].endswith(" *")}
    heads = json.loads((folder / "heads.json").read_text())["heads"]
    assert starred == {f"{head['layer']}.{head['head']}" for head in heads}
    for row, control in zip(page.tables[1][1:], run["controls"], strict=False):
        assert row[1] == "{sra:.3f} ({sra_low:.3f}–{sra_high:.3f})".format(**control)
    assert f"{run['null']['sra']['q95']:.3f}" in page.tables[1][-1][1]
    for row, point in zip(page.tables[2][1:], run["curves"]["top"], strict=True):
        assert row[1].startswith(f"{point['sra']:.3f} (")


def test_markdown_and_page_agree(folder):
    run_folder(folder / "runs" / "x")
    add_result(folder / "results" / "grpo-0", "grpo", 0)
    page, markdown = report(folder)
    assert markdown_tables(markdown) == page.tables and len(page.tables) >= 5
    said = {shown(line[2:]) for line in markdown.splitlines() if line.startswith("- ")}
    caveats = [text for s in read_sections(folder) for text in s.caveats]
    assert caveats and set(caveats) <= said and set(caveats) <= set(page.items)
    pictures = re.findall(r"\]\((.*?)\)", markdown)
    assert len(pictures) == page.tags.count("img") >= 5
    assert all((folder / path).read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert page.loads and all(link.startswith(("#", "data:image/png")) for link in page.loads)
    assert "prefers-color-scheme: dark" in (folder / "report.html").read_text()


def test_texts_are_shown_and_not_run(folder):
    change(folder / "run.json", "model", "id", to=EVIL)
    change(folder / "run.json", "counts", "left_out", to={EVIL: 3})
    run = run_folder(folder / "runs" / "x", method="attnpo")
    change(run / "run.json", "method", to=EVIL)
    page, markdown = report(folder, "--title", EVIL)
    assert "script" not in page.tags and "script" not in re.findall(r"<(\w+)", markdown)
    assert f"3 {EVIL}" in page.items
    cells = [cell for table in page.tables for row in table for cell in row]
    assert EVIL in cells
    assert markdown_tables(markdown) == page.tables
    assert markdown.startswith(f"# {markdown_text(EVIL)}\n") and shown(markdown_text(EVIL)) == EVIL


def test_a_control_that_is_not_beaten_is_said_and_one_that_is_beaten_is_not(folder):
    table = pd.read_parquet(folder / "sra.parquet")
    chosen = json.loads((folder / "heads.json").read_text())["heads"]
    own = table.set_index(["layer", "head"])
    lows = [own.loc[(head["layer"], head["head"]), "sra_low"] for head in chosen]
    run = json.loads((folder / "run.json").read_text())

    def caveats(sra: float) -> list[str]:
        for row in run["controls"]:
            row["sra"] = sra if row["control"] == "recency" else 0.0
            row["balanced"] = 0.0
        (folder / "run.json").write_text(json.dumps(run))
        return [t for t in read_sections(folder)[0].caveats if "recency" in t]

    assert caveats(min(lows) - 0.01) == []
    one = caveats(sorted(lows)[0])  # it touches the lowest interval alone
    assert sum(t.count(", from ") for t in one if t.startswith("Of the set")) == 1
    every = caveats(max(lows) + 0.01)
    assert sum(t.count(", from ") for t in every if t.startswith("Of the set")) == len(chosen)
    assert any("recency alone reaches SRA" in text for text in every)


def test_the_mean_of_all_heads_is_no_control_to_beat():
    rows = pd.DataFrame({"control": ["all heads", "length"], "sra": [1.0, None]})
    assert best_control(rows, "sra") is None


def test_null_few_traces_labels_and_halves(folder):
    result = ProbeResult.load(folder)
    assert "12 problems are few: the intervals are rough." in result.caveats
    result.counts["problems"] = 20
    assert not [t for t in result.caveats if "problems are few" in t]
    result.table["balanced_p"] = 0.06
    assert any("reaches by chance (p = 0.06)" in t for t in result.caveats)
    result.table["balanced_p"] = 0.05
    assert not any("by chance" in t for t in result.caveats)
    result.table["balanced"] = np.nan
    assert any("has no balanced SRA" in t for t in result.caveats)

    labels = folder / "rules.jsonl"
    labels.write_text(json.dumps({"kfh": {"settings": {"by": "rules"}}}) + "\n")
    change(folder / "run.json", "config", "labels", to=str(labels))
    change(folder / "run.json", "counts", "steps", "unlabelled", to=7)
    for key, value in (("sra", 0.6), ("sra_low", 0.5), ("sra_high", 0.65), ("sra_select", 0.7)):
        change(folder / "run.json", "curves", "top", 2, key, to=value)
    said = " ".join(read_sections(folder)[0].caveats)
    assert "by rules" in said and "7 of " in said
    assert "on the other half, 0.600 (0.500–0.650)" in said
    change(folder / "run.json", "curves", "top", 2, "sra_select", to=0.65)
    labels.unlink()
    said = " ".join(read_sections(folder)[0].caveats)
    assert "beyond the interval" not in said and "is not there any more" in said


def figure(value: float, low: float, high: float) -> dict:
    return {"value": value, "low": low, "high": high, "n": 200}


def test_comparisons_say_what_is_not_shown():
    rows = [{"method": m, "seeds": [0, 1, 2], "unreadable": 0} for m in ("attnpo", "recency")]
    up = {"length": 60.0, "pressure": 0.2, "against": 0.2, "accuracy": figure(0, -0.1, 0.1)}
    up |= {"steps": figure(1.5, 1.2, 1.9), "tokens": figure(1.5, 1.2, 1.9)}
    good = {"method": "attnpo", "against": "recency", "seeds": 3, "settings": 1, "others": 1}
    good |= {"speed_ups": [up], "gap": figure(0.01, -0.02, 0.04), "tokens": {}}

    def caveats(steps: dict | None = None, **changes: object) -> list[str]:
        ups = {"speed_ups": [{**up, "steps": steps}]} if steps else {}
        standings = {"pairs": [{**good, **ups, **changes}], "notes": [], "ends": []}
        return comparison_caveats({"rows": rows, "standings": standings})

    assert caveats() == []
    level = figure(1.1, 0.9, 1.3)
    (text,) = caveats(level)
    assert text == (
        "attnpo against recency: neither sooner at a length, nor more accurate at one, nor shorter "
        "at an accuracy is shown: the control is not beaten."
    )
    assert caveats(level, gap=figure(0.05, 0.01, 0.09)) == []
    assert caveats(level, gap=None) == [text] and caveats(figure(0.7, 0.5, 0.9)) == [text]
    assert caveats(figure(1.5, float("nan"), float("nan"))) == [text]
    assert caveats(level, tokens={"0.80": figure(-9, -20, -1)}) == []
    assert caveats(level, tokens={"0.80": figure(-9, -20, 1)}) == [text]
    assert caveats(level, against="oracle") == []  # no control
    lost = "-5.0 (-9.0 to -1.0) points at equal length"
    (text,) = caveats(gap=figure(-0.05, -0.09, -0.01))
    assert text.endswith(f": {lost}, after fewer steps: accuracy is lost.")
    (text,) = caveats(figure(0.7, 0.5, 0.9), gap=figure(-0.05, -0.09, -0.01), against="oracle")
    assert text.endswith(f": {lost}: accuracy is lost.")
    alone = {**up, "bound": "≤", "steps": figure(1.5, 1.2, 1.9)}  # no more than 1.5: perhaps later
    (text,) = caveats(gap=figure(-0.05, -0.09, -0.01), against="oracle", speed_ups=[alone])
    assert text.endswith(f": {lost}: accuracy is lost.")
    assert caveats(gap=figure(-0.05, -0.09, 0.01)) == []
    (text,) = caveats(gap=figure(-0.05, -0.09, -0.01), seeds=2)  # few: nothing is shown
    assert text.startswith("attnpo against recency (2 seeds)") and "not beaten" in text
    rows[0]["seeds"] = [0, 1]
    assert caveats() == ["Few seeds (attnpo 2): a first look."]


def benchmark(**changes: object) -> dict:
    """The figures of a benchmark against which nothing is to say."""
    figures = {"accuracy": figure(0.8, 0.75, 0.85), "truncated": figure(0.02, 0, 0.04)}
    figures |= {"samples": 2, "no_answer": 0, "unverified": 0, "faults": {}}
    return {**figures, **changes}


def test_evaluations_say_what_is_lost():
    settings = {"max_tokens": 99, "think_end": "</t>"}

    def caveats(base: dict | None = None, **changes: object) -> list[str]:
        return benchmark_caveats(benchmark(**changes), settings, base)

    assert caveats({"accuracy": figure(0.7, 0.6, 0.8)}) == []
    (text,) = caveats({"accuracy": figure(0.9, 0.86, 0.95)})
    assert "the intervals are apart" in text
    (text,) = caveats({"accuracy": figure(0.9, 0.84, 0.95)})
    assert "the intervals overlap" in text
    (text,) = caveats(truncated=figure(0.2, 0.1, 0.3))
    assert "20% of the responses hit the limit of 99 tokens" in text
    assert caveats(no_answer=399) == []
    (text,) = caveats(no_answer=400)  # 200 questions, 2 samples
    assert text == "no response holds </t>: all are wrong."
    (text,) = caveats(no_box=7)
    assert text.startswith("7 responses do not state their answer") and caveats(no_box=0) == []


def test_the_table_counts_answers_that_are_not_stated_where_there_are_some(tmp_path):
    for number in (0, 7):
        table = evaluation_table(evaluation(tmp_path / f"{number}", no_box=number), "m")
        said = [row for row in table.texts if row[0] == "not stated"]
        assert said == ([["not stated", "7"]] if number else [])


def evaluation(folder: Path, **changes: object) -> dict:
    """What `kfh eval` writes of one made-up benchmark, with changes to its figures."""
    tokens = {"tokens": figure(50.0, 40.0, 60.0), "pass_at": {}, "budgets": {}, "phrases": {}}
    content = {
        "kfh": {"kind": "evaluation"},
        "settings": {"model": "m", "temperature": 0.0, "max_tokens": 99, "seed": 0}
        | {"think_end": "</t>", "base": None},
        "benchmarks": {"maths": benchmark(**{**tokens, **changes})},
        "overall": None,
        "base_differs": [],
    }
    folder.mkdir()
    (folder / "eval.json").write_text(json.dumps(content))
    return content


def test_the_report_says_what_the_terminal_says_of_an_evaluation(tmp_path):
    """`kfh eval` said that no response ends its reasoning; the report did not."""
    content = evaluation(tmp_path / "all-cut", no_answer=400, unverified=3, faults={"Timeout": 2})
    said = evaluation_caveats(content)
    (section,) = read_sections(tmp_path)
    assert section.damaged == [] and section.caveats == said and len(said) == 3
    assert said[0] == "maths: no response holds </t>: all are wrong."


def test_an_evaluation_has_rows_of_what_was_measured_alone(tmp_path):
    """No row of a budget that was not asked for."""
    plain = evaluation(tmp_path / "plain")
    names = [row[0] for row in evaluation_table(plain, "x").rows]
    assert names == ["questions × samples", "accuracy", "tokens", "cut off"]
    within = evaluation(tmp_path / "within", budgets={"128": figure(0.3, 0.2, 0.4)})
    rows = {row[0]: row[1:] for row in evaluation_table(within, "x").texts}
    assert rows["accuracy ≤ 128"] == ["0.300 (0.200–0.400)"]
    page, _ = report(tmp_path)
    assert ["accuracy ≤ 128", "0.300 (0.200–0.400)"] in page.tables[1]


def test_runs_and_evaluations_are_reported(tmp_path):
    for seed in range(2):
        run_folder(tmp_path / f"attnpo-{seed}", seed=seed)
    change(tmp_path / "attnpo-1" / "run.json", "status", to="interrupted")
    page, _ = report(tmp_path)
    rows = page.tables[0][1:]
    metrics = [0.8 + 0.01 * k for k in range(1, 7)]
    assert rows[0][5] == f"{metrics[0]:.3f} → {metrics[-1]:.3f}"
    assert rows[1][3:5] == ["6 of 6", "interrupted"]
    said = " ".join(page.items)
    assert "attnpo-1 is not finished: interrupted, 6 of 6 steps" in said
    assert "Few seeds (attnpo 2)" in said


def test_shipped_results_are_reported_as_their_table_has_them(tmp_path):
    source = Path(__file__).parents[2] / "data" / "results" / "trial" / "comparison.json"
    (tmp_path / "comparison.json").write_text(source.read_text())
    page, _ = report(tmp_path)
    content = json.loads(source.read_text())
    speed, *_, greedy, sampled = page.tables
    for name, table in (("greedy", greedy), ("sampled", sampled)):
        for row, method in zip(table[1:], content["rows"], strict=True):
            figures = method["figures"]
            assert row[0] == method["method"]
            assert row[2] == str(Number.of(figures[f"{name}.accuracy"]))
            assert row[4] == str(Number.of(figures[f"{name}.redundant_tokens"], 1))
    pairs = content["standings"]["pairs"]
    ups = [(pair, up) for pair in pairs for up in pair["speed_ups"]]
    for row, (pair, up) in zip(speed[1:], ups, strict=True):
        assert row[0] == f"{pair['method']} against {pair['against']}"
        assert row[3] == str(Number.of(up["steps"], 2, bound=up["bound"]))
        assert row[5] == str(Number.of(up["accuracy"], 1, signed=True, scale=100))


def test_what_is_damaged_is_named_and_the_rest_reported(folder):
    run_folder(folder / "runs" / "good")
    bad = run_folder(folder / "runs" / "bad", seed=1)
    (bad / "run.json").write_text("{")
    (folder / "sra.parquet").write_bytes(b"not parquet")
    (folder / "eval").mkdir()
    (folder / "eval" / "eval.json").write_text('{"benchmarks": {"x": {}}}')
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, result.output or result.exception
    text = (folder / "report.md").read_text()
    assert text.count("**Could not be read**") == 3
    for path in (folder, bad / "run.json", folder / "eval" / "eval.json"):
        assert str(path) in text
    assert "| good | attnpo |" in text


def test_a_damaged_course_is_named_and_the_others_compared(tmp_path):
    kept, out = Path(__file__).parents[2] / "data" / "results" / "trial", tmp_path / "trial"
    for name in ("initial", "tlmre@0.2-0", "tlmre@0.3-0", "attnpo@0.2-0"):
        shutil.copytree(kept / name, out / name)
    (out / "tlmre@0.2-0" / "curve.parquet").write_bytes(b"not parquet")
    (section,) = read_sections(out)
    assert len(section.damaged) == 1 and "tlmre@0.2-0" in section.damaged[0]
    shown = str([table.rows for table in section.tables])
    assert "tlmre@0.3" in shown and "tlmre@0.2" not in shown
    (out / "initial" / "curve.parquet").unlink()  # without it no course can be held against it
    (section,) = read_sections(out)
    assert "before training" in section.damaged[-1] and section.tables


def test_files_of_different_runs_are_not_reported_as_one(folder):
    change(folder / "heads.json", "heads", 0, "head", to=0)
    change(folder / "heads.json", "heads", 0, "layer", to=0)
    (section,) = read_sections(folder)
    chosen = json.loads((folder / "run.json").read_text())["curves"]["top"][0]["added"]
    assert chosen != [0, 0] and "different runs" in section.damaged[0]


def test_nothing_to_report_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="nothing to report"):
        read_sections(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_sections(tmp_path / "none")
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "x.pdf")])
    assert isinstance(result.exception, Exception) and "html" in str(result.exception)


def ablation_content(effect: float, control: float, traces: int = 24) -> dict:
    """What `kfh ablate` writes, of made-up outcomes: nats lost by removing steps."""
    rng = np.random.default_rng(0)
    outcomes = []
    for number in range(traces):
        for arm, mean in (("none", 0.0), ("high", effect), ("random", control), ("low", 0.0)):
            dose = 0.0 if arm == "none" else 1.0
            value = -mean - 0.1 * float(rng.random())
            where = (f"t{number}", f"g{number}")
            outcomes.append(Outcome("steps", arm, "", dose, 0, *where, True, value, 9))
    against = differences(outcomes)
    settings = {"weights": "sha256:0", "traces": "sha256:1"}
    model = {"id": EVIL, "layers": 4, "heads": 4}
    return {
        "kfh": {"command": "kfh ablate", "settings": settings},
        "head_set": {"heads": [[2, 3]], "model": model},
        "counts": {"left_out": {"wrong answer": 3}, "parts": {"steps": {"traces": traces}}},
        "summary": summarise(outcomes).to_dict("records"),
        "differences": against.to_dict("records"),
        "verdicts": [claim.to_json() for claim in claims_of(against)],
    }


def caveats_of(content: dict) -> list[str]:
    return InterventionResult.from_json(content).caveats


def test_interventions_are_reported_with_the_controls_that_they_do_not_beat(tmp_path):
    content = ablation_content(effect=3.0, control=1.0)
    (tmp_path / "ablation.json").write_text(json.dumps(content))
    page, markdown = report(tmp_path)
    assert markdown_tables(markdown) == page.tables and "script" not in page.tags
    for number, (measure, digits) in enumerate((("accuracy", 3), ("logprob", 2))):
        cells = {tuple(row[:2]): row[2:] for row in page.tables[number][1:]}
        for row in content["summary"]:
            if row["measure"] == measure:
                assert cells[row["arm"], f"{row['dose']:g}"][0] == str(Number.of(row, digits))
        columns = {"none": 1, "random": 2}
        for row in content["differences"]:
            if row["measure"] == measure:
                shown_as = cells[row["arm"], f"{row['dose']:g}"][columns[row["against"]]]
                assert shown_as == str(Number.of(row, digits, signed=True))
    logprob = [t for t in caveats_of(content) if "logprob" in t]
    assert not any("high" in text for text in logprob)  # it beats its control
    weak = caveats_of(ablation_content(effect=1.0, control=1.0))
    assert any("high against random, logprob" in t and "not beaten" in t for t in weak)
    none = caveats_of(ablation_content(effect=0.0, control=0.0))
    assert any("high against none, logprob" in t and "not shown" in t for t in none)
    few = caveats_of(ablation_content(effect=3.0, control=1.0, traces=9))
    assert "9 problems are few: the intervals are rough." in few


def test_stability_and_sample_size_are_reported(probed, tmp_path):
    found = compare_probes([probed, probed], ["a", "b"])
    write_stability(found, tmp_path)
    sizes = measure_folder(probed, draws=4, ladder=(5,))
    write_sample_size(sizes, tmp_path)
    page, markdown = report(tmp_path)
    assert markdown_tables(markdown) == page.tables
    (points, probes, pairs) = page.tables
    assert [row[0] for row in points[1:]] == [str(p["problems"]) for p in sizes["points"]]
    assert points[1][2].startswith(f"{sizes['points'][0]['best']:.3f} (")
    assert [row[0] for row in probes[1:]] == ["a", "b"]
    assert pairs[1][1].startswith(f"{found['pairs'][0]['pearson']:.3f} (")
    assert sample_size_caveats({"enough": None, "sentence": "none"}) == ["none"]
    assert sample_size_caveats({"enough": 5, "sentence": "some"}) == []
