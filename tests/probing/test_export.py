"""The way back: labels and scores in tables, in the source's records, in the form of trainers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from datasets import load_dataset
from helpers import kfh, model_folder, said, trace_file, trace_line, write_lines

from probing.config import ProbeConfig
from probing.errors import ConfigError, DataError
from probing.folder import ProbeResult
from probing.formats.export import ExportConfig, export
from probing.formats.job import ImportConfig, import_traces
from probing.run import probe
from probing.traces.file import read_traces


def test_a_probe_gives_its_labels_and_scores(tmp_path: Path) -> None:
    model, traces = model_folder(tmp_path / "model"), trace_file(tmp_path / "in.jsonl")
    probe(ProbeConfig(model=str(model), traces=traces, out=tmp_path / "run", permutations=20))
    done = kfh("export", tmp_path / "run", "--out", tmp_path / "steps.parquet")
    assert done.exit_code == 0, said(done)
    table = pd.read_parquet(tmp_path / "steps.parquet")
    result = ProbeResult.load(tmp_path / "run")
    for trace in result.traces():
        rows = table[table.id == trace.id]
        assert rows.head_score.tolist() == list(result.ratios(trace, result.head_set.pairs))
        assert rows.label.tolist() == [step.label for step in trace.steps]
        assert rows.text.tolist() == [trace.response[s.start : s.end] for s in trace.steps]
    assert f"{len(table)} rows" in said(done) and table.label_score.isna().all()


def test_forms_of_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [trace_line(n, steps=4) for n in range(3)]
    lines[1]["steps"][1]["label"] = lines[2]["steps"][0]["label"] = None
    lines[0]["steps"][0]["score"] = 0.5
    path = write_lines(tmp_path / "in.jsonl", [*lines, trace_line(3, correct=False)])

    def rows(to: str) -> list[dict]:
        out = tmp_path / "out.jsonl"
        report = export(ExportConfig(path=path, out=out, to=to))  # type: ignore[arg-type]
        assert report.source and report.source.left_out == {"wrong answer": 1}
        found = [json.loads(text) for text in out.read_text(encoding="utf-8").splitlines()]
        assert len(found) == report.rows
        return found

    traces = list(read_traces(path))[:3]
    supervised = rows("trl")
    assert [row["prompt"] for row in supervised] == [trace.prompt for trace in traces[:2]]
    assert [len(row["labels"]) for row in supervised] == [4, 3]
    for row, trace in zip(supervised, traces, strict=False):
        reasoning = trace.response[: trace.steps[-1].end]
        assert "".join(row["completions"]) == reasoning and len(row["completions"]) < 5
        assert row["labels"][0] is (trace.steps[0].label == "essential")
    export(ExportConfig(path=path, out=tmp_path / "steps.csv"))
    with (tmp_path / "steps.csv").open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["label_score"], first["head_score"]) == ("0.5", "")
    assert first["text"] == traces[0].response[: traces[0].steps[0].end]
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    export(ExportConfig(path=path, out=tmp_path / "traces.parquet", to="traces"))
    data = load_dataset(
        "parquet", data_files=str(tmp_path / "traces.parquet"), split="train",
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert [json.loads(json.dumps(row)) for row in data] == rows("traces")


def test_the_sources_own_records_get_a_column(tmp_path: Path) -> None:
    text = "<think>\nSo 4.\nWait, 4.\n</think>\n\n4"
    records = [
        {"problem": "2 + 2?", "generations": [text, "none", text], "tags": {"a": [1]}},
        {"problem": "x", "generations": []},
    ]
    source = write_lines(tmp_path / "source.jsonl", [*records, "{broken"])
    traces = tmp_path / "traces.jsonl"
    import_traces(ImportConfig(str(source), out=traces))
    config = ExportConfig(path=traces, out=tmp_path / "out.jsonl", to="records", segmenter="line")
    report = export(config)
    assert report.left_out == {"record that cannot be read": 1}
    found = [json.loads(line) for line in config.out.read_text(encoding="utf-8").splitlines()]
    column = [row.pop("kfh") for row in found]
    assert found == records and column[1] == []
    assert [(each["response"], len(each["steps"])) for each in column[0]] == [(0, 2), (2, 2)]
    assert column[0][0]["steps"][1]["start"] == len("So 4.\n")
    moved = source.rename(tmp_path / "moved.jsonl")
    with pytest.raises(DataError, match="no such file"):
        export(config)
    again = ExportConfig(**{**vars(config), "source": str(moved)})
    assert export(again).rows == 2
    write_lines(moved, records)
    with pytest.raises(ConfigError, match="its hash differs"):
        export(again)
    with pytest.raises(ConfigError, match="has lists in its rows"):
        ExportConfig(path=traces, out=tmp_path / "x.csv", to="records")
    with pytest.raises(DataError, match="was not made by kfh import"):
        plain = trace_file(tmp_path / "plain.jsonl")
        export(ExportConfig(path=plain, out=tmp_path / "x.jsonl", to="records"))
