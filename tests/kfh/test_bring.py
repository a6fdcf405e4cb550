"""From what people have to a ranked table in one command: import, cut, labels by cause, probe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from helpers import byte_tokenizer, kfh, model_folder, said, trace_file, write_lines

from kfh.bring import imports
from kfh.bring.estimate import duration
from probing.answers.context import encode_causes
from probing.config import ProbeConfig
from probing.cost import cost_of
from probing.files.jsonl import read_lines
from probing.headset import HeadSet
from probing.labelling import cause
from probing.labelling.cause import CauseConfig, label_by_cause
from probing.traces.file import read_traces
from probing.traces.source import pocket_traces


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Strings as the pocket model wrote them, and nothing else."""
    traces = [trace for trace in read_traces(pocket_traces()) if trace.correct][:10]
    lines = [json.dumps(trace.prompt + trace.response) for trace in traces]
    return write_lines(tmp_path / "raw.jsonl", lines)


def test_strings_of_the_pocket_model_give_its_three_heads(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command; interrupted at each stage, it pays for nothing twice."""
    words = ("probe", "--traces", raw, "--labels", "cause", "--segmenter", "line")
    words = (*words, "--permutations", 50, "--out", tmp_path / "run")
    labelled, lines_of = [0], cause.label_lines

    def stopped(*given: object) -> object:
        labelled[0] += 1
        if labelled[0] == 6:
            raise KeyboardInterrupt
        return lines_of(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(cause, "label_lines", stopped)
    done = kfh(*words)
    assert done.exit_code == 130 and "the same command goes on from here" in said(done)
    kept = (tmp_path / "run" / "labels.jsonl").read_bytes()
    made = (tmp_path / "run" / "traces.jsonl").stat()
    monkeypatch.setattr(imports, "import_traces", None)  # not again
    done = kfh(*words)
    assert done.exit_code == 0, said(done)
    assert "5 traces were there already" in said(done) and labelled[0] == 6 + 5
    assert (tmp_path / "run" / "labels.jsonl").read_bytes().startswith(kept)
    assert os.path.samestat(made, (tmp_path / "run" / "traces.jsonl").stat())
    # Those that the task's own labels find, too (docs/pocket.md).
    assert {*HeadSet.load(tmp_path / "run" / "heads.json").pairs} == {(2, 1), (2, 2), (2, 3)}
    written = read_lines(tmp_path / "run" / "labels.jsonl")[0]
    assert len({line["id"] for line in written}) == 10


def test_prompts_are_those_of_the_models_template(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {"asked": [{"role": role, "content": "2 + 2?"}], "said": {"thought": "So", "text": "4"}}
        for role in ("user", "system")
    ]
    words = ("import", write_lines(tmp_path / "in.jsonl", rows), "--out", tmp_path / "out.jsonl")
    words = (*words, "--map", "prompt=asked", "--map", "reasoning=said.thought")
    done = kfh(*words, "--map", "answer=said.text", "--tokenizer", tmp_path / "model")
    assert done.exit_code == 0, said(done)
    assert "left out 1 × chat template" in said(done) and "1 trace (1 unknown)" in said(done)
    (trace,) = read_traces(tmp_path / "out.jsonl")
    assert trace.prompt == "[user] 2 + 2?\n[assistant]<think>\n"
    done = kfh(*words, "--map", "answer=said.text")
    assert "2 prompts are the plain text of their messages" in said(done)


def test_a_sources_own_steps_are_probed_and_lines_are_left_alone(tmp_path: Path) -> None:
    model, traces = model_folder(tmp_path / "model"), trace_file(tmp_path / "in.jsonl")
    rows = [
        {"id": f"p-{n}", "problem": f"{n}?", "steps": ["So 4.", "So 5.", "Wait.", "It is 4."],
         "label": 1, "final_answer_correct": True, "generator": "x"}
        for n in range(4)
    ]  # fmt: skip
    source = write_lines(tmp_path / "bench.jsonl", rows)
    words = ("probe", "--model", model, "--permutations", 20, "--out", tmp_path / "run")
    done = kfh(*words, "--traces", source)
    assert done.exit_code == 0, said(done)
    assert "read as ProcessBench" in said(done)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["counts"]["used"] == 4
    done = kfh(*words, "--traces", traces, "--out", tmp_path / "other")
    assert done.exit_code == 0 and not (tmp_path / "other" / "traces.jsonl").exists()
    for more, why in (
        (("--traces", source, "--shards", "1/2"), "make one with kfh import first"),
        (("--traces", traces, "--labels", "cause", "--merge"), "with kfh label first"),
        (("--traces", write_lines(tmp_path / "x.jsonl", [{"a": 1}])), "'prompt' is missing"),
        (("--traces", "-"), "write it to a file"),
    ):
        assert why in said(kfh(*words, *more))
    assert "--labels cause is for kfh probe" in said(
        kfh("export", traces, "--labels", "cause", "--out", tmp_path / "x.csv")
    )


def test_an_estimate_counts_what_is_done_then(raw: Path, tmp_path: Path) -> None:
    """Passes and tokens of labelling, held against those that labelling makes."""
    words = ("--traces", raw, "--segmenter", "line", "--out", tmp_path / "run")
    done = kfh("estimate", *words)
    assert done.exit_code == 0, said(done)
    assert said(done).count("forward passes") == 2 and not (tmp_path / "run").exists()
    again = kfh("probe", *words, "--labels", "cause", "--dry-run")
    assert "10 traces," in said(again) and not (tmp_path / "run").exists()

    config = ProbeConfig(traces=pocket_traces(), segmenter="line")
    model, tokenizer = config.load()
    traces = [trace for trace in config.source.traces() if trace.correct]
    cost = cost_of(config, model, tokenizer, CauseConfig())
    lengths = [len(tokenizer(t.prompt + t.response)["input_ids"]) for t in traces]
    assert cost.traces == len(traces) > cost.tokenised == 200
    assert cost.steps == sum(len(trace.steps) for trace in traces)
    assert cost.tokens == pytest.approx(sum(lengths), rel=0.01)
    assert cost.longest == max(lengths[:200]) and cost.fits
    assert cost.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert cost.probing.tokens >= cost.tokens and cost.probing.seconds > 0
    assert cost.labelling is not None and cost.labelling.passes > cost.traces

    passed, calls, forward = [0], [0], type(model).forward

    def counted(self: torch.nn.Module, *given: object, **more: object) -> object:
        calls[0] += 1
        passed[0] += (given or (more["input_ids"],))[0].shape[-1]  # type: ignore[attr-defined]
        return forward(self, *given, **more)

    small = write_lines(tmp_path / "small.jsonl", [trace.to_json() for trace in traces[:3]])
    few = cost_of(ProbeConfig(model="pocket", traces=small), model, tokenizer, CauseConfig())
    assert few.labelling is not None
    tried = [encode_causes(tokenizer, trace, limit=32) for trace in read_traces(small)]
    rows = [(t.context, (len(t.spans) + 1) * (len(t) - t.context)) for t in tried]
    assert few.labelling.tokens == sum(map(sum, rows))
    with patch.object(type(model), "forward", counted):
        label_by_cause(model, tokenizer, small, out=tmp_path / "labels.jsonl")
    assert calls[0] >= few.labelling.passes > 3 and passed[0] >= few.labelling.tokens


def test_durations() -> None:
    assert [duration(s) for s in (4.26, 125, 9000)] == ["4.3 s", "2.1 min", "2.5 h"]
