"""`kfh heads`: what its commands print and write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import check_texts, kfh, model_folder, said, trace_line, write_lines

from kfh.commands.show import probe_figures
from kfh.findings.base import Place
from kfh.findings.heads import read_types
from probing.errors import DataError


def test_types_beside_a_probe(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    traces = write_lines(tmp_path / "t.jsonl", [trace_line(n, steps=7) for n in range(5)])
    run = tmp_path / "probe"
    probe = ("probe", "--model", model, "--traces", traces, "--out", run, "--types")
    assert "--merge" in said(kfh(*probe, "--shards", "1/2"))
    done = kfh(*probe)
    assert "beside the probe's own pass" in done.output, said(done)
    assert done.exit_code == 0 and (run / "types.json").is_file(), said(done)
    done = kfh("heads", "types", run, "--formats", "svg", "--repeated", 8, "--draws", 1)
    assert done.exit_code == 0 and "5 traces were there already" in done.output, said(done)
    for word in ("retrieval", "TRAAC", "FCI", "first-token entropy", "mean of all", "chance"):
        assert word in done.output
    assert (run / "types.svg").is_file() and (run / "types.parquet").is_file()
    section = read_types(Place(run, (run,)))
    assert len(section.tables) == 3 and any("sample" in text for text in section.caveats)
    check_texts(section.pictures[0].figure)
    assert "types" in probe_figures(run, "sra")
    done = kfh("heads", "compare", run, f"{run}:retrieval", "--top", 3)
    assert "3 strongest heads" in done.output, said(done)
    found = tmp_path / "found.json"
    done = kfh("heads", "compare", run, run, "--types", "--top", 3, "--out", found)
    assert "By retrieval of the base" in done.output and "chance 0.6" in done.output, said(done)
    assert all(
        row["kept"]["overlap"]["shared"] == 3 for row in json.loads(found.read_text())["rows"]
    )
    (run / "types.json").write_text(json.dumps({"types": []}))
    with pytest.raises(DataError, match="no scorers"):
        read_types(Place(run, (run,)))


def test_calibration_of_a_probe(tmp_path: Path) -> None:
    traces = write_lines(tmp_path / "t.jsonl", [trace_line(n, steps=7) for n in range(4)])
    run, model = tmp_path / "probe", model_folder(tmp_path / "model")
    given = ("--calibrate", "null", "--null-answer", "no")
    assert "give one of them" in said(kfh("probe", "--out", run, *given[2:]))
    done = kfh("probe", "--model", model, "--traces", traces, "--out", run, *given)
    assert "Less the scores by the answer 'no'" in done.output, said(done)
    assert "TRAAC" not in done.output and "chosen anew" in done.output
    content = json.loads((run / "types.json").read_text())
    assert {*content["calibration"]["metrics"]} == {"sra", "balanced", "gating"}


def test_show_and_import(tmp_path: Path) -> None:
    done = kfh("heads", "show", "pocket")
    assert all(word in done.output for word in ("2.3", "recency", "the set, held out")), said(done)
    assert "AttnPO" in kfh("heads", "show", "deepseek-r1-distill-qwen-1.5b").output
    gates = tmp_path / "adapter_weights.tsv"
    np.savetxt(gates, np.random.default_rng(0).random((4, 2)), delimiter="\t")
    model = model_folder(tmp_path / "model")
    done = kfh("heads", "import", gates, "--model", model, "--out", tmp_path / "map", "--top", 2)
    assert "16 heads; the 2 strongest" in done.output, said(done)
    done = kfh("heads", "compare", gates, tmp_path / "map")
    assert "+1.00" in done.output, said(done)
