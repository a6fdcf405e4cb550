"""The probe from end to end on tiny models: results, resuming, processes, head sets, figures."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from families import tiny
from helpers import check_texts, model_folder, trace_file, trace_line, write_lines
from typer.testing import CliRunner

import probing
from kfh.cli import app
from kfh.findings.base import Place
from kfh.findings.probe import probe_tables, read_probe
from kfh.findings.runs import run_caveats
from probing.attention.scores import (
    ScoredTrace,
    batch_masses,
    batches_by_length,
    open_capture,
    score_batch,
)
from probing.attention.store import ScoreStore, stored_labels
from probing.choices import EMBEDDED
from probing.config import ProbeConfig
from probing.errors import ConfigError, DataError, KfhError, ModelError
from probing.figures.probe import (
    DIVERGING,
    best_heads,
    ensembles,
    figures_of,
    head_grid,
    heat_colours,
    heatmap,
)
from probing.figures.style import save_figure
from probing.folder import ProbeResult
from probing.headset import HeadSet, HeadSetWarning, shipped_head_sets
from probing.models.identity import config_fingerprint, weights_fingerprint
from probing.models.load import load_model, load_tokenizer, pocket_model
from probing.ranking.metrics import CONTROLS, RankedTrace, metric_table, step_ranking_accuracy
from probing.run import probe
from probing.traces.file import Step, read_traces
from probing.traces.segmenters import Segmenter, segment
from probing.traces.source import StepSource, TraceSource, pocket_traces, prepare_traces
from probing.traces.tokens import encode_trace
from rl.runs.folders import read_run


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("setting")
    return {
        "model": str(model_folder(folder / "model")),
        "traces": trace_file(folder / "traces.jsonl", 8),
        "permutations": 50,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def finished(setting: dict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    out = tmp_path_factory.mktemp("finished")
    return out, probe(ProbeConfig(**setting, out=out))


def table(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "sra.parquet")


def test_table_is_what_the_formulas_give(setting: dict, finished: tuple) -> None:
    """Every figure of the table, computed again by hand from model, traces and labels."""
    out, result = finished
    model, tokenizer = load_model(setting["model"]), load_tokenizer(setting["model"])
    capture = open_capture(model)
    values = []
    for trace in read_traces(setting["traces"]):
        with capture:
            encoded = encode_trace(tokenizer, trace, rule="overlap")
            scored = score_batch(capture, [encoded], next(model.parameters()).device)[0]
        essential = np.array([s.label == "essential" for s in trace.steps])
        values.append(step_ranking_accuracy(scored.scores, essential))
    heads = table(out)
    np.testing.assert_allclose(heads["sra"], np.mean(values, axis=0), atol=1e-6)
    assert list(zip(heads["layer"], heads["head"], strict=True)) == [
        (layer, head) for layer in range(4) for head in range(4)
    ]
    assert ((heads["sra_low"] <= heads["sra"]) & (heads["sra"] <= heads["sra_high"])).all()
    assert heads["sra_p"].between(1 / 51, 1).all()
    assert result.counts["ranked"] == 8


def test_files_have_headers(finished: tuple) -> None:
    import pyarrow.parquet as pq

    out, _ = finished
    for name in ("run.json", "heads.json", "scoring.json"):
        header = json.loads((out / name).read_text())["kfh"]
        assert {"kind", "schema", "version", "command", "made"} <= set(header)
    for name in ("sra.parquet", "scores.parquet"):
        assert b"kfh" in pq.read_schema(out / name).metadata
    assert not (out / "parts").exists()
    scores = pd.read_parquet(out / "scores.parquet")
    assert list(scores) == ["trace", "step", "label", "tokens", "layer", "head", "score"]
    assert len(scores) == sum(4 + n % 4 for n in range(8)) * 16


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on(setting: dict, finished: tuple, tmp_path: Path) -> None:
    from contextlib import contextmanager

    @contextmanager
    def stop_after_two(name: str, total: int):
        seen = 0

        def advance(traces: int, tokens: int) -> None:
            nonlocal seen
            seen += traces
            if name == "scoring" and seen >= 3:
                raise Interrupted

        yield advance

    config = ProbeConfig(**setting, out=tmp_path, batch_tokens=1)
    with pytest.raises(Interrupted):
        probe(config, progress=stop_after_two)
    parts = list((tmp_path / "parts").iterdir())
    assert 2 <= len(parts) <= 3
    result = probe(config)
    assert result.speed["resumed"] == len(parts)
    assert result.speed["traces"] == 8 - len(parts)
    pd.testing.assert_frame_equal(table(tmp_path), table(finished[0]), atol=1e-6)
    again = probe(ProbeConfig(**setting, out=tmp_path, top=5, batch_tokens=1))
    assert again.speed["traces"] == 0 and len(again.head_set.heads) == 5


def test_scores_of_other_settings_are_refused(setting: dict, finished: tuple) -> None:
    out, _ = finished
    with pytest.raises(ConfigError, match=r"segmenter .*'given'.* now asked .*'line'.*--no-resume"):
        probe(ProbeConfig(**setting, out=out, segmenter="line"))


def test_another_segmenter_carries_the_labels(setting: dict, tmp_path: Path) -> None:
    result = probe(ProbeConfig(**setting, out=tmp_path, segmenter="line"))
    assert result.head_set.segmenter == {"name": "line"}
    assert result.head_set.rule == "start"
    assert result.counts["steps"]["essential"] > 0


@pytest.mark.parametrize("answer", ["values", "boxed", "bare"])
def test_answer_tokens_are_stored(setting: dict, tmp_path: Path, answer: str) -> None:
    result = probe(ProbeConfig(**setting, out=tmp_path, answer=answer, by="gating"))
    assert HeadSet.load(tmp_path / "heads.json").answer == answer
    assert result.head_set.selection["by"] == "gating"


def test_bare_answers_are_scored_as_traces_cut_to_their_boxes(
    setting: dict, tmp_path: Path
) -> None:
    lines = [trace_line(number) for number in range(8)]
    for line in lines:  # the answer repeats the words of the essential steps
        line["response"] = line["response"].replace("The sum", "So it is")
    whole = {**setting, "traces": write_lines(tmp_path / "whole.jsonl", lines)}
    for line in lines:
        reasoning, end, answer = line["response"].partition("</think>")
        line["response"] = reasoning + end + answer[answer.rindex(" \\boxed") :]
    cut = {**setting, "traces": write_lines(tmp_path / "cut.jsonl", lines)}
    bare = probe(ProbeConfig(**whole, out=tmp_path / "bare", answer="bare"))
    by_hand = probe(ProbeConfig(**cut, out=tmp_path / "by-hand"))
    ours, theirs = (pd.read_parquet(tmp_path / x / "scores.parquet") for x in ("bare", "by-hand"))
    pd.testing.assert_frame_equal(ours, theirs)
    pd.testing.assert_frame_equal(bare.controls, by_hand.controls)
    whole_answers = probe(ProbeConfig(**whole, out=tmp_path / "all"))
    overlap, of_whole = (
        each.controls.set_index("control").loc["answer overlap", "sra"]
        for each in (bare, whole_answers)
    )
    assert of_whole == 1 and overlap < 0.7


def test_transformer_lens_gives_the_same_table(
    setting: dict, finished: tuple, tmp_path: Path
) -> None:
    probe(ProbeConfig(**setting, out=tmp_path, backend="transformer-lens"))
    ours, theirs = (pd.read_parquet(out / "scores.parquet") for out in (finished[0], tmp_path))
    assert (ours["score"] - theirs["score"]).abs().max() < 1e-4
    figures = [c for c in table(tmp_path) if c.startswith(("sra", "balanced"))]
    difference = table(tmp_path)[figures] - table(finished[0])[figures]
    assert difference.abs().max().max() < 0.02  # ties in float32 may fall either way


@pytest.mark.slow
def test_two_processes_find_the_same(setting: dict, finished: tuple, tmp_path: Path) -> None:
    arguments = ["probe", "--out", str(tmp_path), "--model", setting["model"]]
    arguments += ["--traces", str(setting["traces"]), "--permutations", "50", "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*launch, "--master_port", "29517", "-m", "kfh", *arguments],
        check=True,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    pd.testing.assert_frame_equal(table(tmp_path), table(finished[0]), atol=1e-6)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["speed"]["traces"] == 4, "each process scores half of the traces"


def test_pocket_is_the_embedded_model_and_its_traces() -> None:
    assert load_tokenizer("pocket").get_vocab() == load_tokenizer(str(pocket_model())).get_vocab()
    assert load_model("pocket", device="cpu").config.num_hidden_layers == 4
    assert StepSource("pocket").path == TraceSource(Path("pocket")).path == pocket_traces()
    with pytest.raises(ModelError, match="no such folder"):
        load_model("./pocket")


def test_batches_are_sorted_and_bounded(setting: dict) -> None:
    tokenizer = load_tokenizer(setting["model"])
    traces = [encode_trace(tokenizer, trace) for trace in read_traces(setting["traces"])]
    budget = 3 * min(map(len, traces))
    batches = list(batches_by_length(traces, budget))
    assert sorted(t.id for b in batches for t in b) == sorted(t.id for t in traces)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= budget
    assert [len(b) for b in batches_by_length(traces, 10**6, rows=3)] == [3, 3, 2]
    for bad in ({"batch_tokens": 0}, {"rows": 0}):
        with pytest.raises(ConfigError, match=r"at least 1 row|must be positive"):
            list(batches_by_length(traces, **bad))


def test_a_batch_without_traces_is_a_pass_without_masses(setting: dict) -> None:
    """A process of a sharded run that has none left still makes the pass of the others."""
    capture, passes = open_capture(load_model(setting["model"])), []

    def forward(**arguments):
        passes.append(tuple(arguments["input_ids"].shape))
        return capture.trunk(**arguments)

    with capture:
        assert batch_masses(capture, [], torch.device("cpu"), forward=forward) == []
    assert passes == [(1, 1)]


def test_store_keeps_every_number(tmp_path: Path) -> None:
    """Also of arrays that do not lie in memory row by row."""
    store = ScoreStore(tmp_path, {"a": 1})
    store.open(resume=True)
    scores = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    store.add(ScoredTrace("x/1", scores, np.arange(4), 5, 40))
    loaded = store.load()["x/1"]
    np.testing.assert_array_equal(loaded.scores, scores)
    assert (loaded.answer_tokens, loaded.total_tokens, loaded.base) == (5, 40, 0.125)
    part = next((tmp_path / "parts").iterdir())
    part.write_bytes(b"half")
    with pytest.raises(DataError, match="damaged"):
        store.load()


def test_scores_are_read_trace_by_trace(finished: tuple, tmp_path: Path) -> None:
    """From tables as older ones are, of parts beside a table, and up to where one is damaged."""
    out = finished[0]
    now = {**ScoreStore(out, {}).load()}
    old = tmp_path / "old"
    old.mkdir()
    table = pq.read_table(out / "scores.parquet")
    starts = [0, *np.flatnonzero(np.diff(table["trace"].to_pandas().cat.codes)) + 1, len(table)]
    options: dict = {"compression": "zstd", "write_statistics": False, "use_dictionary": True}
    with pq.ParquetWriter(old / "scores.parquet", table.schema, **options) as writer:
        for start, end in pairwise(starts):
            writer.write_table(table.slice(start, end - start))
    store = ScoreStore(old, {"a": 1})
    read = store.load()
    assert list(read) == list(now) and len(read) == 8
    for name, scored in read.items():
        for key, value in vars(now[name]).items():
            np.testing.assert_array_equal(getattr(scored, key), value)
    labels = stored_labels(out / "scores.parquet")
    assert stored_labels(old / "scores.parquet") == labels
    assert labels["t/0"] == [s.label for t in finished[1].traces(["t/0"]) for s in t.steps]
    # What was scored later counts, and only what is asked for is there, in that order.
    newer = replace(now["t/1"], scores=now["t/1"].scores + 1)
    store.add(newer)
    some = store.load(["t/5", "t/1", "gone"])
    assert list(some) == ["t/5", "t/1"] and "t/0" not in some
    np.testing.assert_array_equal(some["t/1"].scores, newer.scores)
    np.testing.assert_array_equal(some["t/5"].scores, now["t/5"].scores)
    # A damaged row group is no matter of the others.
    content = bytearray((out / "scores.parquet").read_bytes())
    group = pq.ParquetFile(out / "scores.parquet").metadata.row_group(3)
    scores = group.column(group.num_columns - 1)
    content[scores.data_page_offset + scores.total_compressed_size // 2] ^= 1
    (old / "scores.parquet").write_bytes(content)
    damaged = ScoreStore(old, {}).load()
    np.testing.assert_array_equal(damaged["t/2"].scores, now["t/2"].scores)
    with pytest.raises(DataError, match=r"scores\.parquet: damaged.*probe again"):
        _ = damaged["t/3"]


def test_leftovers_of_a_killed_process_are_no_scores(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path, {"a": 1})
    (tmp_path / "parts").mkdir()
    leftover = tmp_path / "parts" / ".0a1b.77.safetensors"
    leftover.write_bytes(b"half")
    store.open(resume=True)
    assert not leftover.exists() and store.load() == {} and store.done(["x"]) == set()


def test_another_labelling_scores_only_what_is_new(setting: dict, tmp_path: Path) -> None:
    """Labels decide which traces can be ranked; scores that are there are not made again."""
    few, all_of_them = (
        write_lines(
            tmp_path / name,
            [
                {"id": f"t/{n}", "step": step, "label": ("essential", "redundant")[step % 2]}
                for n in numbers
                for step in range(4)
            ],
        )
        for name, numbers in (("few.jsonl", range(3)), ("all.jsonl", range(8)))
    )
    out = tmp_path / "out"
    first = probe(ProbeConfig(**setting, out=out, labels=str(few)))
    assert first.counts["ranked"] == first.speed["traces"] == 3
    second = probe(ProbeConfig(**setting, out=out, labels=str(all_of_them)))
    assert second.speed["traces"] == 5 and second.counts["ranked"] == 8
    third = probe(ProbeConfig(**setting, out=out, labels=str(few)))
    assert third.speed["traces"] == 0 and third.counts["ranked"] == 3
    scores = pd.read_parquet(out / "scores.parquet")
    assert scores["trace"].nunique() == 3 and set(scores["label"].dropna()) == {
        "essential",
        "redundant",
    }
    assert probe(ProbeConfig(**setting, out=out, labels=str(few))).speed["traces"] == 0


def test_settings_are_checked(setting: dict, tmp_path: Path) -> None:
    for wrong in (
        {"by": "x"}, {"select": "x"}, {"answer": "x"}, {"top": 0}, {"null": "x"},
        {"dtype": "int8"}, {"backend": "x"}, {"permutations": 0}, {"batch_tokens": 0},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            ProbeConfig(**{**setting, **wrong}, out=tmp_path)
    one = write_lines(tmp_path / "one.jsonl", [trace_line(1)])
    with pytest.raises(DataError, match="at least two problems"):
        probe(ProbeConfig(**{**setting, "traces": one}, out=tmp_path / "one"))


def test_models_that_cannot_be_loaded(setting: dict, tmp_path: Path) -> None:
    for name, message in (
        ("./nowhere", "no such folder"),
        ("nowhere.gguf", "no such file"),
        ("no-such-user/no-such-model", "cannot be loaded|no tokenizer"),
    ):
        with pytest.raises(ModelError, match=message):
            load_tokenizer(name)
    with pytest.raises(ModelError, match="device 'nowhere'"):
        load_model(setting["model"], device="nowhere")


def test_fingerprints(setting: dict) -> None:
    one, two = load_model(setting["model"]), load_model(setting["model"], attention="eager")
    assert config_fingerprint(one.config) == config_fingerprint(two.config)
    assert config_fingerprint(one.config) != config_fingerprint(tiny("qwen2").config)
    assert weights_fingerprint(one) == weights_fingerprint(two)
    two.model.layers[0].mlp.up_proj.weight.data += 0.1
    assert weights_fingerprint(one) != weights_fingerprint(two)


def test_head_sets(finished: tuple, tmp_path: Path) -> None:
    out, result = finished
    found = HeadSet.load(out / "heads.json", tiny("llama").config)
    assert found.pairs == result.head_set.pairs and len(found.pairs) == 3
    assert found.heads[0].p is not None and found.heads[0].held_out
    with pytest.raises(ModelError, match=r"4 layers of 4 heads.*does not fit.*2 layers of 4 heads"):
        HeadSet.load(out / "heads.json", tiny("qwen2", num_hidden_layers=2).config)
    content = json.loads((out / "heads.json").read_text())
    for change, message in (
        ({"kfh": {"schema": 99}}, "Update kfh"),
        ({"heads": []}, "needs heads"),
        ({"heads": [{"layer": 9, "head": 0}]}, "has no head 9.0"),
        ({"heads": [{"layer": 0}]}, "not a head set"),
    ):
        path = tmp_path / "bad.json"
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(DataError, match=message):
            HeadSet.load(path)
    with pytest.raises(DataError, match="cannot be read"):
        HeadSet.load(tmp_path / "none.json")


def test_an_embedded_model_brings_its_own_traces() -> None:
    for name in EMBEDDED:
        config = ProbeConfig(model=name)
        assert config.traces == pocket_traces(name) and config.model == str(pocket_model(name))
    with pytest.raises(ConfigError, match="needs --traces"):
        ProbeConfig(model="pocket", traces=Path("pocket-long"))


def test_shipped_head_set() -> None:
    from transformers import Qwen2Config

    assert shipped_head_sets() == [
        "deepseek-r1-distill-qwen-1.5b",
        "pocket",
        "pocket-3",
        "pocket-long",
    ]
    found = HeadSet.load("deepseek-r1-distill-qwen-1.5b")
    assert found.pairs == [(16, 2), (20, 9), (23, 2)]
    found.check(Qwen2Config(num_hidden_layers=28, num_attention_heads=12))
    with pytest.raises(ModelError, match="does not fit"):
        found.check(Qwen2Config(num_hidden_layers=24, num_attention_heads=12))


@pytest.mark.parametrize("metric", ["sra", "balanced", "gating"])
def test_figures(finished: tuple, tmp_path: Path, metric: str) -> None:
    result = ProbeResult.load(finished[0])
    figures = figures_of(result, metric)
    assert set(figures) == {"heatmap", "layers", "heads", "ensembles"}
    for name, figure in figures.items():
        check_texts(figure)
        for kind in ("png", "svg", "pdf"):
            path = tmp_path / f"{name}.{kind}"
            save_figure(figure, path)
            assert path.stat().st_size > 2000
    title = figures["heatmap"].get_suptitle()
    assert "model" in title and "8 traces" in title and "traces.jsonl" in title
    drawn = figures["heatmap"].axes[0].images[0].get_array()
    np.testing.assert_allclose(drawn, head_grid(result, metric))
    named = {text.get_text() for text in figures["heatmap"].axes[0].texts}
    heads = {f"{layer}.{head}" for layer, head in [*best_heads(result, metric), *result.chosen]}
    assert named == heads and all(head in title for head in heads)
    with pytest.raises(DataError, match="no finished probe"):
        ProbeResult.load(tmp_path)


def test_heatmap_is_centred_at_chance(finished: tuple) -> None:
    result = ProbeResult.load(finished[0])
    image = heatmap(result, "sra").axes[0].images[0]
    far = np.nanmax(np.abs(head_grid(result, "sra") - 0.5))
    assert image.norm(0.5) == 0.5 and image.norm(0.5 + far) <= 1 and image.norm(0.5 - far) >= 0
    texts = [text.get_text() for text in heatmap(result, "sra").axes[1].get_yticklabels()]
    assert "0.50 = chance" in texts
    # Lightness alone tells how far from chance, so that no hue need be told apart.
    for below, above in pairwise(np.linspace(0.5, 1, 20)):
        for side in (1, -1):
            near, farther = (
                np.dot(DIVERGING(0.5 + side * (at - 0.5))[:3], (0.21, 0.72, 0.07))
                for at in (below, above)
            )
            assert farther < near
    grey = heat_colours(np.array([0.2, np.nan]), "continuous")[0](np.nan)
    assert grey[0] == grey[1] == grey[2] < 0.8  # no value has this colour
    classes = heatmap(result, "sra", "classes").axes[0].images[0]
    assert {float(classes.norm(value)) for value in (0.1, 0.5, 0.59)} == {0.0}
    assert classes.norm(0.61) == 1
    with pytest.raises(ConfigError, match="did you mean classes"):
        heatmap(result, "sra", "class")


def test_one_type_from_memory_and_from_disk(finished: tuple) -> None:
    out, result = finished
    again = ProbeResult.load(out)
    assert again.to_json() == result.to_json() and again.caveats == result.caveats
    pd.testing.assert_frame_equal(again.table, result.table)
    pd.testing.assert_frame_equal(again.controls, result.controls)
    assert result.chosen == again.chosen == again.head_set.pairs
    page = again._repr_html_()
    best = result.table["sra"].max()
    assert f"{best:.3f}" in page and "recency" in page
    assert page.count("Caveat:") == len(result.caveats) > 0
    rows = again.ranked_traces(again.problems())
    np.testing.assert_allclose(metric_table(rows)["sra"].mean(axis=1), result.table["sra"])


def test_folders_of_before_are_still_read(finished: tuple, tmp_path: Path) -> None:
    """Without the caveats of the set, held-out figures of controls, or a setting that is new."""
    old = shutil.copytree(finished[0], tmp_path / "old")
    run = json.loads((old / "run.json").read_text())
    del run["set_caveats"], run["config"]["seed"]
    run["config"]["gone"] = 1
    for row in run["controls"]:
        for name in [name for name in row if name.endswith(("_select", "_held_out"))]:
            del row[name]
    (old / "run.json").write_text(json.dumps(run))
    heads = json.loads((old / "heads.json").read_text())
    del heads["caveats"]
    (old / "heads.json").write_text(json.dumps(heads))
    again = ProbeResult.load(old)
    assert again.head_set.pairs == again.chosen and again.head_set.caveats == ()
    assert len(figures_of(again)) == 4
    control = again.controls[again.controls["control"] != "all heads"]["sra"].max()
    said = any("The head set" in caveat for caveat in again.set_caveats)
    assert said == (again.set_point["sra_low"] <= control)


def test_a_set_that_beats_no_control_says_so(setting: dict, tmp_path: Path) -> None:
    """Heads of a random model: chosen by luck, on traces that recency orders as well."""
    lines = [trace_line(n) for n in range(8)]
    for line in lines:  # essential steps last: recency is always right
        for number, step in enumerate(line["steps"]):
            step["label"] = "essential" if number >= 3 else "redundant"
    traces = write_lines(tmp_path / "late.jsonl", lines)
    out = tmp_path / "out"
    base = ("--traces", traces, "--model", setting["model"], "--permutations", 20, "--out", out)
    done = CliRunner().invoke(app, ["probe", *map(str, base)])
    result = ProbeResult.load(out)
    caveat, gating = result.set_caveats
    assert "is no better than recency" in caveat and "against 1.000" in caveat
    weak = result.table.set_index(["layer", "head"]).loc[result.chosen]
    assert (weak["gating_low"] <= 0.5).any()
    for (layer, head), row in weak.iterrows():
        assert (f"{layer}.{head} ({row['gating']:.3f})" in gating) == (row["gating_low"] <= 0.5)
    assert {caveat, gating} <= {*result.caveats} and caveat in done.output
    heads = out / "heads.json"
    assert json.loads(heads.read_text())["caveats"] == [caveat, gating]
    with pytest.warns(HeadSetWarning, match="is no better than recency"):
        assert HeadSet.load(heads).caveats == (caveat, gating)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HeadSet.load(heads)  # warned once
    for figure in (heatmap(result).get_suptitle(), ensembles(result).axes[0].get_title("left")):
        assert " ".join(caveat.split()[:6]) in " ".join(figure.split())
    assert caveat in read_probe(Place(out, (out,))).caveats  # of a report


def test_training_with_such_a_set_says_so(tmp_path: Path) -> None:
    caveat = "The head set is no better than recency."
    heads = tmp_path / "heads.json"
    replace(HeadSet.load("pocket"), caveats=(caveat,)).save(heads)
    small = {
        "data": "pocket:4",
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 160,
        "save_strategy": "no",
    }
    sets = [f"--set={name}={value}" for name, value in small.items()]
    out = tmp_path / "run"
    base = ("train", "--method", "attnpo", "--heads", str(heads), "--out", str(out))
    done = CliRunner().invoke(app, [*base, *sets])
    assert done.exit_code == 0, done.output or done.exception
    assert f"Caveat: {caveat}" in done.output
    assert json.loads((out / "run.json").read_text())["caveats"] == [caveat]
    assert any(caveat in text for text in run_caveats([read_run(out)]))


def test_pocket_names_the_embedded_model(tmp_path: Path) -> None:
    config = ProbeConfig(model="pocket", traces="pocket", out=tmp_path)
    assert Path(config.model).is_dir() and config.source.path.name == "traces.jsonl"
    assert next(prepare_traces(config.source)).steps


def test_a_moved_model_folder_stops_no_resuming(setting: dict, tmp_path: Path) -> None:
    """The fingerprints of the weights decide, not the path: for scores and labels alike."""
    moved = shutil.copytree(setting["model"], tmp_path / "moved")
    assert probe(ProbeConfig(**setting, out=tmp_path / "probe")).speed["traces"] == 8
    again = probe(ProbeConfig(**{**setting, "model": str(moved)}, out=tmp_path / "probe"))
    assert again.speed == {**again.speed, "traces": 0, "resumed": 8}

    def label(model: object) -> str:
        base = ("--traces", setting["traces"], "--out", tmp_path / "labels.jsonl")
        options = map(str, ("label", "--by", "ablation", *base, "--model", model))
        done = CliRunner().invoke(app, [*options, "--device", "cpu"])
        assert done.exit_code == 0, done.output or done.exception
        return done.output

    label(setting["model"])
    assert "8 traces were there already" in " ".join(label(moved).split())
    # What an older kfh wrote holds the path; it is not looked at.
    scoring = tmp_path / "probe" / "scoring.json"
    content = json.loads(scoring.read_text())
    content["settings"]["model"]["id"] = "somewhere/else"
    scoring.write_text(json.dumps(content))
    assert probe(ProbeConfig(**setting, out=tmp_path / "probe")).speed["traces"] == 0
    content["settings"]["weights"] = "sha256:0"
    scoring.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="weights"):
        probe(ProbeConfig(**setting, out=tmp_path / "probe"))


def test_a_control_from_outside(
    setting: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digits(trace: RankedTrace) -> np.ndarray:
        return np.array([sum(map(str.isdigit, text)) for text in trace.texts])

    monkeypatch.setitem(CONTROLS, "digits", digits)
    probe(ProbeConfig(**setting, out=tmp_path))
    result = ProbeResult.load(tmp_path)
    row = result.controls.set_index("control").loc["digits"]
    values = []
    for trace in read_traces(setting["traces"]):
        texts = [trace.response[step.start : step.end] for step in trace.steps]
        scores = np.array([float(sum(map(str.isdigit, text))) for text in texts])
        essential = np.array([step.label == "essential" for step in trace.steps])
        values.append(step_ranking_accuracy(scores, essential))
    assert row["sra"] == pytest.approx(np.mean(values))
    assert result.scorers["digits"]["name"].endswith("digits") and result.scorers["digits"]["hash"]
    assert any("digits" in str(cell) for row in probe_tables(result)[1].rows for cell in row)
    assert any(
        "control: digits" in t.get_text() for t in ensembles(result).axes[0].get_legend().texts
    )
    monkeypatch.setitem(CONTROLS, "digits", lambda trace: np.zeros(1))
    with pytest.raises(DataError, match="'digits' must give"):
        probe(ProbeConfig(**setting, out=tmp_path / "wrong"))


def test_looking_for_the_words_of_the_answer_is_a_control(setting: dict, tmp_path: Path) -> None:
    """Steps that share words with the answer are put first, whoever looks."""
    lines = [trace_line(n) for n in range(8)]
    for number, line in enumerate(lines):
        names = ("Ann", "Bob", "Cid")[number % 3 :] + ("Ann", "Bob", "Cid")[: number % 3]
        texts = [f"Then {name} is {number + 3}.\n" for name in names]
        line["response"] = "".join(texts) + f"</think> {names[1]} is it"
        ends = np.cumsum([0, *map(len, texts)]).tolist()
        line["steps"] = [
            {"start": start, "end": end, "label": "essential" if at == 1 else "redundant"}
            for at, (start, end) in enumerate(itertools.pairwise(ends))
        ]
    traces = write_lines(tmp_path / "overlap.jsonl", lines)
    result = probe(ProbeConfig(**{**setting, "traces": traces}, out=tmp_path / "out"))
    row = result.controls.set_index("control").loc["answer overlap"]
    assert row["sra"] == row["balanced"] == 1.0
    assert any("answer overlap alone reaches SRA 1.000" in text for text in result.caveats)
    assert any("match words: kfh probe --answer bare" in text for text in result.caveats)


def test_a_segmenter_from_outside(
    setting: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from probing import Step\n\n\ndef halves(text):\n"
    source += "    middle = text.index('\\n') + 1\n"
    source += "    return [Step(0, middle), Step(middle, len(text))]\n"
    (tmp_path / "cutting.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    from cutting import halves

    assert [step.start for step in segment("a.\nb.\nc.", halves)] == [0, 3]
    stored = Segmenter.parse(halves).to_json()
    assert stored == Segmenter.parse("cutting:halves").to_json()
    assert stored["name"] == "cutting:halves" and stored["hash"].startswith("sha256:")
    lines = [trace_line(n, steps=2) for n in range(6)]
    settings = {**setting, "traces": write_lines(tmp_path / "two.jsonl", lines)}
    result = probe(ProbeConfig(**settings, out=tmp_path / "run", segmenter=halves))
    assert result.head_set.segmenter == stored and result.counts["ranked"] == 6
    again = ProbeResult.load(tmp_path / "run")
    assert again.config.segmenter == "cutting:halves" and len(again.longest().steps) == 2
    same = probe(ProbeConfig(**settings, out=tmp_path / "run", segmenter="cutting:halves"))
    assert same.speed["traces"] == 0
    with pytest.raises(DataError, match="gave step 1"):
        segment("a.\nb.", lambda text: [Step(0, 3), Step(2, 5)])
    with pytest.raises(ConfigError, match="cannot be imported"):
        segment("a.", "cutting:thirds")


def test_public_names() -> None:
    for name in probing.__all__:
        assert getattr(probing, name).__doc__
    assert callable(probing.segment) and callable(probing.probe)
    with pytest.raises(AttributeError):
        _ = probing.nothing


def kfh(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "kfh", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_command_line(setting: dict, tmp_path: Path) -> None:
    out = tmp_path / "run"
    base = ("--model", setting["model"], "--traces", setting["traces"], "--permutations", 50)
    done = kfh("probe", *base, "--out", out, "--select", "greedy", "--by", "balanced")
    assert done.returncode == 0, done.stderr
    for text in ("recency", "uniform", "best head by chance", "Head set", "held out"):
        assert text in done.stdout
    assert (out / "heatmap.png").exists()
    options = ("--formats", "svg", "--metric", "balanced", "--scale", "classes")
    done = kfh("plot", out, *options)
    assert done.returncode == 0 and (out / "ensembles.svg").exists()
    assert "= chance" not in (out / "heatmap.svg").read_text()
    done = kfh("segment", setting["traces"], "--out", tmp_path / "cut.jsonl", "--segmenter", "line")
    assert done.returncode == 0 and "8 traces" in done.stdout
    trace = next(read_traces(tmp_path / "cut.jsonl"))
    assert trace.extra["segmenter"] == {"name": "line"} and trace.steps[0].label


def test_command_line_errors(setting: dict, tmp_path: Path) -> None:
    bad = write_lines(tmp_path / "bad.jsonl", [trace_line(0), "{", trace_line(1)])
    done = kfh("segment", bad, "--out", tmp_path / "o.jsonl")
    assert done.returncode == 1 and "line 2" in done.stderr and "Traceback" not in done.stderr
    done = kfh("segment", bad, "--out", tmp_path / "o.jsonl", "--skip-bad")
    assert done.returncode == 0 and "left out 1 × not JSON" in done.stderr
    done = kfh("plot", tmp_path)
    assert done.returncode == 1 and "no finished probe" in done.stderr
    done = kfh("plot", tmp_path, "--formats", "gif")
    assert done.returncode == 1 and "unknown --formats" in done.stderr
    assert kfh("--version").stdout.startswith("kfh ")


def test_errors_are_of_one_family() -> None:
    for kind in (ConfigError, DataError, ModelError):
        assert issubclass(kind, KfhError)
