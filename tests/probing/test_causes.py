"""Labels by cause, by rule, and their agreement; `kfh label` from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tiny
from helpers import byte_tokenizer, model_folder, trace_file, trace_line, write_lines

from kfh.commands.label import run_cause, run_rules
from probing.answers.context import CauseTrace, encode_causes
from probing.answers.hiding import StepHiding
from probing.errors import ConfigError, DataError, ModelError
from probing.files.headers import data_path
from probing.labelling.agreement import Labelling, cohen_agreement, cohen_kappa, scores_auc
from probing.labelling.cause import CauseConfig, cause_label, label_by_cause
from probing.labelling.rules import numbers, results, rule_labels
from probing.models.load import ModelSource, load_model, load_tokenizer
from probing.traces.file import parse_trace, read_traces
from probing.traces.labels import read_labels
from probing.traces.source import StepSource

LENGTH, CONTEXT = 60, 48
SPANS = np.array([[5, 12], [12, 20], [20, 47], [47, 47]])


def random_trace(seed: int = 0) -> CauseTrace:
    ids = np.random.default_rng(seed).integers(3, 101, LENGTH)
    counted = np.arange(LENGTH) > CONTEXT + 1
    counted[-3] = False  # tokens between that do not count
    return CauseTrace("x", ids, CONTEXT, SPANS, counted)


def full_forward(model: torch.nn.Module, trace: CauseTrace, hidden: slice) -> float:
    """The answer's log-probability by one forward pass of everything with the same mask."""
    seen = torch.ones((len(trace), len(trace))).tril().bool()
    seen[trace.context :, hidden] = False
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    ids = torch.from_numpy(trace.ids)
    with torch.no_grad():
        logits = model(input_ids=ids[None], attention_mask=mask[None, None], use_cache=False).logits
    chances = logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    return float(chances[trace.counted[1:]].sum())


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "family", ["llama", "llama-multi-query", "qwen2", "qwen3", "olmo2", "gpt_neox", "granite"]
)
def test_reuse_equals_a_full_forward_with_the_same_mask(family: str, kernel: str) -> None:
    model, trace = tiny(family, kernel), random_trace()
    ablation = StepHiding(model, packed_queries=30)  # two rows a pass, then one
    assert ablation.rows_at_once(trace) == 2
    assert ablation.prove(trace) < 1e-4
    drops = ablation.drops(trace, deletion=True)
    plain = full_forward(model, trace, slice(0, 0))
    assert drops.answer == pytest.approx(plain, abs=1e-4)
    for step, (start, end) in enumerate(SPANS[:3]):
        hidden = plain - full_forward(model, trace, slice(start, end))
        assert drops.total[step] == pytest.approx(hidden, abs=1e-4)
        shorter = CauseTrace(
            "x",
            np.delete(trace.ids, np.s_[start:end]),
            CONTEXT - (end - start),
            SPANS[:0],
            np.delete(trace.counted, np.s_[start:end]),
        )
        deleted = plain - full_forward(model, shorter, slice(0, 0))
        assert drops.deletion is not None
        assert drops.deletion[step] == pytest.approx(deleted, abs=1e-4)
    assert np.abs(drops.total[:3]).min() > 1e-2, "the steps must matter, or this test says nothing"
    assert np.isnan(drops.total[3]), "a step without a token has no drop"
    assert drops.mean[0] == drops.total[0] / trace.counted.sum()


@pytest.mark.parametrize("family", ["qwen2-window", "mistral-window", "gemma3"])
def test_a_window_shorter_than_the_trace_is_refused(family: str) -> None:
    with pytest.raises(ModelError, match="window of 9 tokens, and trace x has 60"):
        StepHiding(tiny(family)).drops(random_trace())


def test_a_window_longer_than_the_trace_is_proven_and_used() -> None:
    model, trace = tiny("mistral-window", sliding_window=LENGTH), random_trace()
    ablation = StepHiding(model)
    assert ablation.prove(trace) < 1e-4
    plain = full_forward(model, trace, slice(0, 0))
    hidden = plain - full_forward(model, trace, slice(5, 12))
    assert ablation.drops(trace).total[0] == pytest.approx(hidden, abs=1e-4)


def test_a_model_that_ignores_the_mask_does_not_pass_the_proof() -> None:
    model, trace = tiny("llama"), random_trace()
    forward = model.forward

    def causal_only(*args: object, **options: object) -> object:
        mask = options.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.ndim == 4:
            mask[..., :CONTEXT] = 0  # every row sees the whole context
        return forward(*args, **options)

    model.forward = causal_only
    with pytest.raises(ModelError, match="cannot be hidden"):
        StepHiding(model).prove(trace)


def test_attention_without_a_mask_of_four_dimensions_is_refused() -> None:
    model = tiny("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="flash_attention_2"):
        StepHiding(model)


def test_queries_and_counted_tokens() -> None:
    tokenizer = byte_tokenizer()
    line = trace_line(3)
    trace = parse_trace(json.dumps(line))
    text = trace.prompt + trace.response

    def counted(encoded: CauseTrace) -> str:
        return tokenizer.decode(encoded.ids[encoded.counted])

    whole = encode_causes(tokenizer, trace, rule="overlap")
    assert tokenizer.decode(whole.ids) == text
    assert tokenizer.decode(whole.ids[: whole.context]) == text[: text.index("</think>")]
    assert counted(whole) == "\n\nThe sum = 3, \\boxed{3}"
    assert whole.hidden.sum(1).tolist() == (whole.spans[:, 1] - whole.spans[:, 0]).tolist()
    short = encode_causes(tokenizer, trace, rule="overlap", limit=5)
    assert counted(short) == tokenizer.decode(whole.ids[whole.counted][:5])
    assert len(short) == whole.context + (len(whole) - whole.context - whole.counted.sum()) + 5
    values = encode_causes(tokenizer, trace, rule="overlap", answer="values")
    assert counted(values) == " 3,3"
    boxed = encode_causes(tokenizer, trace, rule="overlap", answer="boxed")
    assert counted(boxed) == "3"
    bare = encode_causes(tokenizer, trace, rule="overlap", answer="bare")
    assert (bare.ids.tolist(), counted(bare)) == (boxed.ids.tolist(), "3")
    assert tokenizer.decode(boxed.ids[boxed.context :]) == "</think> \\boxed{3"
    for box in ("\\boxed 3", "\\boxed {3}"):  # what the box begins with is longer, or has no brace
        other = json.dumps({**line, "response": line["response"].replace("\\boxed{3}", box)})
        given = encode_causes(tokenizer, parse_trace(other), rule="overlap", answer="boxed")
        shown = tokenizer.decode(given.ids[given.context :]).replace(" ", "")
        assert counted(given).strip() == "3" and shown == f"</think>{box.rstrip('}')}".replace(
            " ", ""
        )
    empty = parse_trace(json.dumps({**line, "response": "So.</think> no box", "steps": []}))
    with pytest.raises(DataError, match="no token of its answer counts"):
        encode_causes(tokenizer, empty, answer="boxed")


def test_the_drop_finds_the_steps_known_to_be_essential() -> None:
    """The pocket model on its own traces; the figures of more traces are in docs/PAPER.md."""
    folder = str(data_path("pocket"))
    tokenizer, ablation = load_tokenizer(folder), StepHiding(load_model(folder, device="cpu"))
    scores, deleted, truth = {}, {}, {}
    for number, trace in enumerate(read_traces(data_path("pocket", "traces.jsonl"))):
        if number == 40:
            break
        drops = ablation.drops(
            encode_causes(tokenizer, trace, rule="overlap"), deletion=number < 10
        )
        for step, total in enumerate(drops.total):
            scores[trace.id, step], truth[trace.id, step] = float(total), trace.steps[step].label
            if drops.deletion is not None:
                deleted[trace.id, step] = float(drops.deletion[step])
    found, by_deletion = scores_auc(scores, truth), scores_auc(deleted, truth)
    assert found is not None and found > 0.9
    assert by_deletion is not None and by_deletion > 0.9
    config = CauseConfig()
    labels = {key: cause_label(drop, config.high, config.low) for key, drop in scores.items()}
    essential = [truth[key] == "essential" for key, label in labels.items() if label == "essential"]
    assert np.mean(essential) > 0.9


def command(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kfh", "label", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_ablation_goes_on_after_a_kill_and_refuses_other_settings(tmp_path: Path) -> None:
    lines = [trace_line(n, steps=4 + n % 3) for n in range(4)]
    lines.append({**trace_line(9), "steps": []})
    source = StepSource(write_lines(tmp_path / "traces.jsonl", lines))
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    cpu = ModelSource(device="cpu")
    run_cause(source, whole, CauseConfig(deletion=True), cpu)
    found = read_labels(whole)
    assert found.segmenter == {"name": "given"}
    assert {id: len(of) for id, of in found.labels.items()} == {
        f"t/{n}": 4 + n % 3 for n in range(4)
    }
    for row in rows(whole)[1:]:
        assert row["label"] == cause_label(row["total"], 0.5, 0.01)
        assert row["source"] == "ablation" and np.isfinite([row["score"], row["deletion"]]).all()
    text = whole.read_bytes().splitlines(keepends=True)
    torn.write_bytes(b"".join(text[:7]) + text[7][:20])  # within the second trace
    run_cause(source, torn, CauseConfig(deletion=True), cpu)
    assert rows(torn)[1:] == rows(whole)[1:]
    with pytest.raises(ConfigError, match=r"high 0\.5; now asked for high 2\.0"):
        run_cause(source, torn, CauseConfig(high=2.0, deletion=True), cpu)
    torn.write_bytes(b"".join([*text[:3], b"{\n", *text[3:]]))
    with pytest.raises(DataError, match="line 4: damaged"):
        run_cause(source, torn, CauseConfig(deletion=True), cpu)
    with pytest.raises(ConfigError, match="low must lie below high"):
        CauseConfig(high=0.1, low=0.2)


def test_a_moved_model_goes_on_and_traces_may_be_in_memory(tmp_path: Path) -> None:
    """The weights decide, not the folder; an older file has the folder in its header."""
    traces, out = trace_file(tmp_path / "traces.jsonl", 3), tmp_path / "labels.jsonl"
    folder = model_folder(tmp_path / "here")
    run_cause(StepSource(traces), out, CauseConfig(), ModelSource(str(folder), device="cpu"))
    whole = out.read_text(encoding="utf-8")
    header, *lines = whole.splitlines(keepends=True)
    old = json.loads(header)
    old["kfh"]["settings"]["model"]["id"] = str(folder)
    out.write_text("".join([json.dumps(old) + "\n", *lines[:5]]), encoding="utf-8")
    folder = folder.rename(tmp_path / "there")
    run_cause(StepSource(traces), out, CauseConfig(), ModelSource(str(folder), device="cpu"))
    assert out.read_text(encoding="utf-8").splitlines(keepends=True)[1:] == lines
    loaded = load_model(str(folder), device="cpu"), load_tokenizer(str(folder))
    given = list(read_traces(traces))
    report = label_by_cause(*loaded, given, tmp_path / "given.jsonl")
    assert rows(tmp_path / "given.jsonl")[1:] == rows(out)[1:]
    assert report.labels.total() == sum(len(trace.steps) for trace in given)
    assert (report.traces, report.resumed, report.left_out) == (3, 0, {})
    again = label_by_cause(*loaded, given, tmp_path / "given.jsonl")
    assert (again.traces, again.resumed, again.labels) == (3, 3, report.labels)


def test_rules_by_hand(tmp_path: Path) -> None:
    texts = [
        "First, 3 + 4 = 7, so a is there. ",  # stated by a later step: 4
        "Then 7 * 2 = 14 follows at once. ",  # stated by the answer: 3
        "Wait, let me check, 3 + 4 = 7. ",  # confused, nothing new: 1
        "First, 3 + 4 = 7, so a is there. ",  # repeats: 2
        "Maybe 5 * 5 = 25 could be of use. ",  # leads nowhere: 5
        "Good. ",  # 6
    ]
    ends = np.cumsum([len(text) for text in texts]).tolist()
    steps = [{"start": a, "end": b} for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    line = {
        "id": "1",
        "prompt": "What is (3 + 4) * 2?",
        "response": "".join(texts) + "</think>It is \\boxed{14}",
        "steps": steps,
    }
    expected = ["essential", "essential", "redundant", "redundant", "redundant", None]
    assert rule_labels(parse_trace(json.dumps(line))) == expected
    out = tmp_path / "rules.jsonl"
    run_rules(StepSource(write_lines(tmp_path / "traces.jsonl", [line])), out)
    assert list(read_labels(out).labels["1"].values()) == expected
    assert rows(out)[1]["source"] == "rules"
    assert numbers("1,024 and 07, 3.50") == ["1024", "7", "3.50"]
    assert results("a = 4 = 5") == ["5"]


def test_kappa_and_auc_against_theory() -> None:
    # The classic 2 × 2 table 20, 5, 10, 15: observed 0.7, by chance 0.5.
    first = ["e"] * 25 + ["r"] * 25
    second = ["e"] * 20 + ["r"] * 5 + ["e"] * 10 + ["r"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(first, first) == 1 and cohen_kappa([], []) is None
    assert cohen_kappa(["e"], ["e"]) is None
    rng = np.random.default_rng(0)
    coin = rng.choice(["e", "r"], (2, 20_000), p=[0.3, 0.7])
    assert abs(cohen_kappa(*coin.tolist())) < 0.02
    e, r = "essential", "redundant"
    a = Labelling("a", {("1", 0): e, ("1", 1): r, ("1", 2): None, ("2", 0): e}, {})
    scores = {("1", 0): 0.5, ("1", 1): 0.7, ("1", 2): 0.1}
    b = Labelling("b", {("1", 0): e, ("1", 1): e, ("1", 2): r}, scores)
    found = cohen_agreement(a, b)
    assert (found.both, found.same, found.only_first, found.only_second) == (2, 1, 0, 1)
    assert found.different == ((("1", 1), r, e),)
    assert found.auc is None and found.auc_reverse == 0.0
    with pytest.raises(DataError, match="no step in common"):
        cohen_agreement(a, Labelling("c", {("9", 0): e}, {}))


@pytest.mark.slow
def test_command_labels_compares_and_the_probe_takes_it(tmp_path: Path) -> None:
    traces, out = trace_file(tmp_path / "traces.jsonl"), tmp_path / "rules.jsonl"
    done = command("--by", "rules", "--traces", traces, "--out", out)
    assert done.returncode == 0, done.stderr
    done = command("--compare", "steps", out, "--traces", traces, "--show", 2)
    assert done.returncode == 0, done.stderr
    assert "kappa" in done.stdout and "steps | rules.jsonl" in done.stdout
    first = next(step for step in done.stdout.splitlines() if ": essential | redundant" in step)
    assert first.startswith("t/") and " step " in first
    assert "Wait, let me check" in done.stdout or "So " in done.stdout
    for arguments, said in (
        (("--compare", out), "two labellings"),
        (("--compare", "steps", out), "--traces"),
        (("--by", "judges", "--traces", traces, "--out", out), "--judges"),
    ):
        done = command(*arguments)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
