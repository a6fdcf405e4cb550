"""The trace viewer: packing, the numbers of a page, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import byte_tokenizer
from typer.testing import CliRunner
from viewer_pages import blocks, codes, hostile_line, unpack

from kfh.cli import app
from probing.attention.scores import ScoredTrace
from probing.errors import ConfigError, DataError, KfhError, ModelError
from probing.folder import ProbeResult
from probing.headset import HeadSet
from probing.ranking.metrics import step_ranking_accuracy
from probing.traces.file import Step, Trace
from probing.traces.phrases import opening
from probing.traces.tokens import token_offsets
from probing.viewer import views as views_module
from probing.viewer.pack import (
    STEP_SCALE,
    TOKEN_SCALE,
    json_for_html,
    pack_cells,
    token_cells,
    utf16_offsets,
)
from probing.viewer.page import HERE, ViewerConfig, write_page
from probing.viewer.views import OTHERS, check_same, choose_views, shared_traces

pytest_plugins = ["viewer_pages"]


# ---- packing


def test_offsets_are_those_of_utf16() -> None:
    rng = random.Random(0)
    text = "".join(rng.choice("aé語😀𝛼\u2028ש") for _ in range(200))
    places = np.arange(len(text) + 1)
    expected = [len(text[:n].encode("utf-16-le")) // 2 for n in places]
    assert utf16_offsets(text, places).tolist() == expected


@pytest.mark.parametrize("scale", [STEP_SCALE, TOKEN_SCALE])
def test_codes_err_no_more_than_stated(scale: Any) -> None:
    ratios = 2 ** np.random.default_rng(0).uniform(scale.low, scale.high, 5000)
    again = scale.decode(scale.encode(ratios))
    assert np.abs(again / ratios - 1).max() <= scale.error * (1 + 1e-9)
    assert scale.error < {"uint16": 0.00015, "uint8": 0.042}[scale.kind]
    ends = scale.encode(np.array([0.0, 1e-9, 1e9, np.inf, np.nan]))
    assert ends.tolist() == [1, 1, scale.last, scale.last, 0]


def test_json_is_inert_in_a_script() -> None:
    content = {"a": "</script><!-- & \u2028\u2029 \\u003c", "b": ["<"]}
    text = json_for_html(content)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == content
    with pytest.raises(ValueError):
        json_for_html({"a": float("nan")})


def test_cells_cover_the_text_and_keep_every_token() -> None:
    text = hostile_line()["response"] + "x" * 300
    _, offsets = token_offsets(byte_tokenizer(), "Add.\n" + text)
    cells = token_cells(offsets - 5, len(text))
    assert cells.counts.sum() == (offsets[:, 0] >= 5).sum()
    assert cells.counts.max() > 1  # bytes of one character
    units = unpack(pack_cells(text, cells))
    coded = text.encode("utf-16-le")
    joined = b"".join(coded[2 * a : 2 * b] for a, b, _ in units).decode("utf-16-le")
    assert joined == text  # no character cut, none left out
    assert [n for _, _, n in units] == cells.counts.tolist()
    gap = token_cells(np.array([[0, 200], [203, 205]]), 210)
    assert unpack(pack_cells("y" * 210, gap)) == [(0, 200, 1), (203, 205, 1)]


# ---- the numbers of a page


def check_scores(folder: Path, found: dict[str, Any], m: int) -> None:
    """The numbers of model `m` in a page are those of the probe in `folder`."""
    index, model = found["index"], found["index"]["models"][m]
    table = pd.read_parquet(folder / "scores.parquet")
    heads = [(h["layer"], h["head"]) for h in model["heads"]]
    chosen = HeadSet.load(folder / "heads.json").pairs
    assert heads[: model["set"]] == chosen and len(heads) == len(model["grid"])
    set_sra = []
    for number, line in enumerate(index["traces"]):
        stored = table[table["trace"] == line["id"]].set_index(["layer", "head", "step"])["score"]
        steps = range(line["steps"])
        scores = np.array([[stored[layer, head, k] for k in steps] for layer, head in heads])
        scores = np.concatenate([scores[: len(chosen)].mean(axis=0, keepdims=True), scores])
        counts, block = line["models"][m], found[f"trace-{number}"]
        base = counts["answerTokens"] / counts["tokens"]
        shown = STEP_SCALE.decode(codes(block["models"][m]["scores"], "u2", len(heads) + 1))
        np.testing.assert_allclose(shown, scores / base, rtol=STEP_SCALE.error * 1.01)
        labels = [step[2] == "essential" for step in block["steps"]]
        sra = step_ranking_accuracy(scores, np.array(labels))
        decoded = (codes(counts["sra"], "u2", 1)[0].astype(float) - 1) / 65534
        np.testing.assert_allclose(decoded, sra, atol=1e-5)
        set_sra.append(sra[0])
    assert len(index["traces"]) == len(ProbeResult.load(folder).scored) == 7
    assert model["setSra"] == pytest.approx(np.mean(set_sra))


def test_scores_and_sra_are_those_of_the_probe(viewer_probe: Path, page_file: Path) -> None:
    check_scores(viewer_probe, blocks(page_file), 0)


def test_both_probes_of_a_page_keep_their_numbers(
    viewer_probe: Path, other_probe: Path, two_file: Path
) -> None:
    found = blocks(two_file)
    assert [model["name"] for model in found["index"]["models"]] == ["model", "other"]
    check_scores(viewer_probe, found, 0)
    check_scores(other_probe, found, 1)
    first, second = found["trace-0"]["models"]
    assert sum(second["tokens"]) > 1.5 * sum(first["tokens"])  # bytes, each as its model has them


@pytest.mark.parametrize("m", [0, 1])
def test_tokens_add_up_to_step_scores(two_file: Path, m: int) -> None:
    found = blocks(two_file)
    model = found["index"]["models"][m]
    assert model["tokenViews"] == min(model["set"] + OTHERS, len(model["heads"])) + 1
    for number, line in enumerate(found["index"]["traces"]):
        block = found[f"trace-{number}"]
        packed = block["models"][m]
        cells = unpack(packed["cells"])
        mass = TOKEN_SCALE.decode(codes(packed["mass"], "u1", model["tokenViews"]))
        ratios = STEP_SCALE.decode(codes(packed["scores"], "u2", len(model["heads"]) + 1))
        for k, ((start, end, *_), tokens) in enumerate(
            zip(block["steps"], packed["tokens"], strict=True)
        ):
            inside = [c for c, (a, b, _) in enumerate(cells) if a < end and b > start]
            counts = np.array([cells[c][2] for c in inside])
            assert counts.sum() == tokens, line["id"]
            total = (mass[:, inside] * counts).sum(axis=1)
            np.testing.assert_allclose(
                total / tokens, ratios[: model["tokenViews"], k], rtol=TOKEN_SCALE.error * 1.05
            )


def test_kinds_and_the_policy(page_file: Path) -> None:
    steps = blocks(page_file)["trace-6"]["steps"]
    kinds = [(step[3], step[4]) for step in steps]
    assert kinds == [
        ("forward", "First,"),
        ("confused", "Wait"),
        ("backward", "So"),
        ("branching", "Alternatively"),
    ]
    text = page_file.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)
    assert policy and policy[1].startswith("default-src 'none'")
    for tag in ("script", "style"):
        content = re.search(f"<{tag}>(.*?)</{tag}>", text, re.S)
        assert content
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]
    for source in HERE.glob("*.js"):
        assert "innerHTML" not in source.read_text(encoding="utf-8")


def test_a_segmenter_keeps_its_kind() -> None:
    from probing.traces.file import Step
    from probing.traces.phrases import Phrases

    phrases = Phrases("p", {"Alternatively": "branching", "So": "backward"}, "")
    cases = [("Alternatively, x", "confused", "branching"), ("So x", "forward", "forward")]
    for text, given, shown in cases:
        step = Step(0, len(text), kind=given)
        assert opening(text, step, phrases)[0] == shown
    assert opening("x So", Step(0, 4), phrases) == (None, None)


# ---- what is refused, and what is left out


def test_size_decides_how_many_heads(
    viewer_probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = ProbeResult.load(viewer_probe)
    steps = 2 * sum(len(own.tokens) for own in probed.scored.values())
    tokens = sum(own.total_tokens for own in probed.scored.values())
    config = ViewerConfig(viewer_probe, tmp_path / "x.html")
    monkeypatch.setattr(views_module, "STEP_BYTES", 11 * steps)
    monkeypatch.setattr(views_module, "TOKEN_BYTES", 6 * tokens)
    views = choose_views(probed, list(probed.traces()))
    assert (len(views.heads), len(views.token_heads)) == (10, 5)
    best = probed.table.sort_values("sra", ascending=False, kind="stable")
    order = [(int(r.layer), int(r.head)) for r in best.itertuples()]
    assert list(views.heads[3:]) == [h for h in order if h not in views.heads[:3]][:7]
    # Two probes share the room: half as many heads of each.
    monkeypatch.setattr(views_module, "TOKEN_BYTES", 8 * tokens)
    half = choose_views(probed, list(probed.traces()), probes=2)
    assert (len(half.heads), len(half.token_heads)) == (4, 3)
    monkeypatch.setattr(views_module, "TOKEN_BYTES", 2 * tokens)
    with pytest.raises(ConfigError, match=r"too much for one page.*--limit"):
        write_page(config)


def test_without_tokens_no_model_is_loaded(
    viewer_probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probing.models.load_model", lambda *a, **k: pytest.fail("loaded"))
    page = write_page(ViewerConfig(viewer_probe, tmp_path / "x.html", tokens=False, limit=2))
    found = blocks(page.path)
    (held,), (model,) = page.models, found["index"]["models"]
    assert (page.traces, held.token_heads, model["tokenViews"]) == (2, 0, 0)
    assert "mass" not in found["trace-1"]["models"][0] and "trace-2" not in found


def copy_of(folder: Path, place: Path) -> Path:
    shutil.copytree(folder, place)
    return place


def test_refusals(viewer_probe: Path, tmp_path: Path) -> None:
    config = json.loads((viewer_probe / "run.json").read_text())["config"]
    with pytest.raises(DataError, match="no finished probe"):
        write_page(ViewerConfig(tmp_path))
    with pytest.raises(DataError, match="no scores of trace nobody"):
        write_page(ViewerConfig(viewer_probe, tmp_path / "x.html", ids=("nobody",)))
    with pytest.raises(ModelError, match=r"no head 9\.0"):
        write_page(ViewerConfig(viewer_probe, tmp_path / "x.html", heads=((9, 0),)))
    with pytest.raises(ConfigError, match=r"NAME\.html"):
        write_page(ViewerConfig(viewer_probe, tmp_path / "x.png"))
    with pytest.raises(DataError, match=r"trace file of .* is not there.*--traces"):
        _ = ProbeResult.load(viewer_probe, tmp_path / "gone.jsonl").source
    changed = tmp_path / "changed.jsonl"
    changed.write_text(Path(config["traces"]).read_text() + "\n")
    with pytest.raises(DataError, match="not the trace file"):
        _ = ProbeResult.load(viewer_probe, changed).source
    lost = copy_of(viewer_probe, tmp_path / "lost")
    (lost / "scores.parquet").unlink()
    with pytest.raises(DataError, match=r"scores\.parquet is missing"):
        _ = ProbeResult.load(lost).scored
    assert not list(tmp_path.glob("*.html"))


def test_another_model_is_refused(viewer_probe: Path, tmp_path: Path) -> None:
    other = copy_of(viewer_probe, tmp_path / "other")
    run = json.loads((other / "run.json").read_text())
    moved = copy_of(Path(run["config"]["model"]), tmp_path / "model")
    from safetensors.numpy import load_file, save_file

    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.5
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    run["config"]["model"] = str(moved)
    (other / "run.json").write_text(json.dumps(run))
    with pytest.raises(ModelError, match="has changed since"):
        write_page(ViewerConfig(other))
    # The same weights, but scores of something else: the tokens do not add up.
    wrong = copy_of(viewer_probe, tmp_path / "wrong")
    probed = ProbeResult.load(wrong)
    tampered = {k: ScoredTrace(k, v.scores * 1.1, v.tokens, v.answer_tokens, v.total_tokens)
                for k, v in probed.scored.items()}  # fmt: skip
    object.__setattr__(probed, "scored", tampered)
    from probing.viewer.masses import token_masses

    with pytest.raises(ModelError, match="does not add up"):
        next(token_masses(probed, list(probed.traces()), [(0, 0)], device="cpu"))


def test_command(viewer_probe: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(app, ["plot", "trace", str(viewer_probe), "--formats", "png", "--ids", "t/0"])
    assert done.exit_code == 0, done.output
    assert (viewer_probe / "trace.png").stat().st_size > 10_000
    out = tmp_path / "two.html"
    options = ["--html", "--ids", "t/0,t/3", "--heads", "1.2", "--out", str(out)]
    done = run(app, ["plot", "trace", str(viewer_probe), *options])
    assert done.exit_code == 0, done.output
    assert "2 of 7 scored traces" in done.output
    found = blocks(out)["index"]
    assert [line["id"] for line in found["traces"]] == ["t/0", "t/3"]
    assert {"layer": 1, "head": 2} in [
        {k: h[k] for k in ("layer", "head")} for h in found["models"][0]["heads"]
    ]
    for options, reason in (
        (["--ids", "t/0,t/3"], "one trace"),
        (["--no-tokens"], "--html"),
        (["--beside", str(viewer_probe)], "--html"),
        (["--heads", "two"], "LAYER.HEAD"),
        (["--formats", "gif"], "unknown --formats"),
    ):
        failed = run(app, ["plot", "trace", str(viewer_probe), *options])
        assert isinstance(failed.exception, KfhError) and reason in str(failed.exception)


# ---- two probes side by side


def test_probes_of_other_traces_or_steps_are_refused(
    viewer_probe: Path, other_probe: Path, tmp_path: Path
) -> None:
    step = Step(0, 4, "essential")
    trace = Trace("t", "", "So. Wait. </think> 7", (step, Step(4, 10, "redundant")))
    same = replace(
        trace, prompt="another template", steps=(replace(step, kind="forward"), trace.steps[1])
    )
    places = (Path("a"), Path("b"))
    check_same(trace, same, *places)  # the model's own template and kinds may differ
    for changed, reason in (
        (replace(trace, response="So. Wait! </think> 7"), "response is not the same"),
        (replace(trace, think_end="Wait"), "does not end at the same place"),
        (replace(trace, steps=(step,)), r"from step 2 on \(2 and 1 steps\) in a and b"),
        (replace(trace, steps=(step, Step(4, 9, "redundant"))), "from step 2 on"),
        (replace(trace, steps=(step, Step(4, 10))), "step 2 is redundant and not labelled"),
    ):
        with pytest.raises(DataError, match=reason):
            check_same(trace, changed, *places)
    with pytest.raises(ConfigError, match="given twice"):
        write_page(ViewerConfig(viewer_probe, tmp_path / "x.html", beside=(viewer_probe,)))
    first, second = (ProbeResult.load(folder) for folder in (viewer_probe, other_probe))
    vars(second)["scored"] = {"s/0": second.scored["t/0"]}
    with pytest.raises(DataError, match="no trace was scored by all"):
        shared_traces([first, second], None, 0)
    assert not list(tmp_path.iterdir())


def test_traces_of_one_probe_alone_are_left_out_and_counted(
    viewer_probe: Path, other_probe: Path
) -> None:
    first, second = (ProbeResult.load(folder) for folder in (viewer_probe, other_probe))
    scored = second.scored.items()
    vars(second)["scored"] = {name: s for name, s in scored if name not in ("t/0", "t/4")}
    traces, alone = shared_traces([first, second], None, 3)
    assert ([trace.id for trace in traces], alone) == (["t/1", "t/2", "t/3"], 2)
    with pytest.raises(DataError, match="no scores of trace t/4"):
        shared_traces([first, second], ["t/4"], 0)


def test_command_for_two_probes(viewer_probe: Path, other_probe: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.html"
    options = ["--html", "--no-tokens", "--beside", str(other_probe), "--heads", "3.0"]
    done = CliRunner().invoke(
        app, ["plot", "trace", str(viewer_probe), *options, "--out", str(out)]
    )
    assert done.exit_code == 0, done.output or done.exception
    assert "model: 7 of 7 scored traces; step scores of 16 of 16 heads" in done.output
    assert "other: 7 of 7 scored traces; step scores of 8 of 8 heads" in done.output
    index = blocks(out)["index"]
    assert index["title"] == "model and other on traces.jsonl"
    assert index["kfh"]["beside"] == [str(other_probe)] and index["alone"] == 0
