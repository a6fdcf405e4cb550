"""Head maps of others: their published file formats, bad files, comparison; sets on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import hypergeom, spearmanr

from probing.errors import ConfigError, DataError, ModelError
from probing.headset import HeadSet
from probing.models.identity import ModelCard
from probing.types.maps import compare_maps, import_map, read_map

CARD = ModelCard("owner/model", "llama", 3, 4, None)
GATES = np.array([[0.1, 0.9], [0.4, 0.3], [1.0, 0.0]])


def tsv(path: Path, values: np.ndarray = GATES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, values, delimiter="\t")  # as the published files were written
    return path


def scores(path: Path, **changes: Any) -> Path:
    """Two scores a head; their mean is layer + head / 10."""
    heads = {f"{i}-{k}": [i + k / 10 - 0.5, i + k / 10 + 0.5] for i in range(3) for k in range(4)}
    path.write_text(json.dumps({**heads, **changes}))
    return path


def test_published_formats(tmp_path: Path) -> None:
    duo = read_map(tsv(tmp_path / "duo" / "full_attention_heads.tsv").parent)
    rlkv = read_map(tsv(tmp_path / "rlkv" / "adapter_weights.tsv"))
    assert duo.kind.startswith("DuoAttention") and rlkv.kind.startswith("RLKV") and duo.grouped
    assert duo.values.tolist() == rlkv.values.tolist() == GATES.ravel().tolist()
    wide = duo.over(4)
    assert wide.heads == [(i, k) for i in range(3) for k in range(4)]
    assert wide.values.reshape(3, 4).tolist() == np.repeat(GATES, 2, axis=1).tolist()
    found = read_map(scores(tmp_path / "llama.json"))
    np.testing.assert_allclose(found.values, [i + k / 10 for i in range(3) for k in range(4)])


def test_import_and_back(tmp_path: Path) -> None:
    path = tsv(tmp_path / "full_attention_heads.tsv")
    head_set, _ = import_map(read_map(path), path, tmp_path / "out", CARD, 4)
    assert head_set.pairs == [(2, 0), (2, 1), (0, 2), (0, 3)]
    loaded = HeadSet.load(tmp_path / "out" / "heads.json", warn=False)
    assert loaded.pairs == head_set.pairs and "No SRA was measured" in str(loaded.source)
    again = read_map(tmp_path / "out")
    assert again.values.tolist() == read_map(path).over(4).values.tolist()
    with pytest.raises(ConfigError, match="did you mean score"):
        read_map(f"{tmp_path / 'out'}:scores")
    with pytest.raises(ModelError, match="do not fit"):
        import_map(read_map(path), path, tmp_path / "x", ModelCard("m", "llama", 2, 4, None), 1)
    with pytest.raises(ModelError, match="do not fit 3 heads"):
        read_map(path).over(3)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.tsv", "0.1\t0.2\n0.3\n", "line 2: 1 numbers, where line 1 has 2"),
        ("a.tsv", "0.1\tx\n", "line 1: no numbers"),
        ("a.tsv", "0.1\tnan\n", "line 1"),
        ("a.tsv", "", "empty"),
        ("a.json", '{"0-0": [1], "1.0": [2]}', "'1.0' must be"),
        ("a.json", '{"0-0": [1], "0-1": []}', "'0-1' must be"),
        ("a.json", '{"0-0": [1], "0-1": ["high"]}', "'0-1' must be"),
        ("a.json", '{"0-0": [1], "1-1": [1]}', "no score of head 0-1"),
        ("a.json", "[1]", "no object of retrieval scores"),
        ("a.csv", "1", "no head map"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said) as error:
        read_map(tmp_path / name)
    assert name in str(error.value)


def test_compare(tmp_path: Path) -> None:
    one = read_map(tsv(tmp_path / "full_attention_heads.tsv"))
    other = read_map(scores(tmp_path / "s.json"))
    found = compare_maps(one, other, 4)
    assert found["spearman"] == pytest.approx(spearmanr(one.over(4).values, other.values)[0])
    # Of (2,0) (2,1) (0,2) (0,3) and (2,3) (2,2) (2,1) (2,0) two are the same.
    assert found["shared"] == [[2, 0], [2, 1]] and found["overlap"]["expected"] == 16 / 12
    assert found["overlap"]["p"] == pytest.approx(hypergeom.sf(1, 12, 4, 4))
    assert found["ceiling"] is None and found["spearman_low"] is None
    with pytest.raises(ModelError, match="different shapes"):
        compare_maps(
            other, read_map(scores(tmp_path / "t.json", **{"0-4": [1], "1-4": [1], "2-4": [1]})), 2
        )


class Hub:
    """A stand-in for the hub's client: repositories are folders."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, list[Any]()

    def create_repo(self, repo: str, **options: Any) -> str:
        self.calls.append((repo, options))
        return f"https://hub/{repo}"

    def create_commit(self, repo: str, operations: Any, commit_message: str) -> None:
        (self.root / repo).mkdir(parents=True)
        for operation in operations:
            (self.root / repo / operation.path_in_repo).write_bytes(operation.path_or_fileobj)

    def hf_hub_download(self, repo: str, name: str, revision: str | None = None) -> str:
        path = self.root / repo / name
        if revision or not path.is_file():
            raise FileNotFoundError(f"404 {repo} {name}")
        return str(path)


def test_hub_round_trip(tmp_path: Path) -> None:
    hub, pocket = Hub(tmp_path), HeadSet.load("pocket", warn=False)
    assert pocket.push_to_hub("me/heads", private=True, client=hub) == "https://hub/me/heads"
    assert hub.calls == [("me/heads", {"private": True, "exist_ok": True})]
    again = HeadSet.from_hub("me/heads", client=hub, warn=False)
    assert again == pocket
    card = (tmp_path / "me" / "heads" / "README.md").read_text()
    for head in pocket.heads:
        assert f"| {head.layer}.{head.head} | {head.sra:.3f}" in card
    assert str((pocket.traces or {})["hash"]) in card and 'HeadSet.from_hub("me/heads")' in card
    assert "| recency |" in card and "| the set, held out |" in card
    published = HeadSet.load("deepseek-r1-distill-qwen-1.5b", warn=False)
    published.push_to_hub("me/published", client=hub)
    card = (tmp_path / "me" / "published" / "README.md").read_text()
    assert "No figures come with this set" in card and "base_model" in card
    with pytest.raises(DataError, match=r"me/heads at v9: cannot fetch heads\.json"):
        HeadSet.from_hub("me/heads", revision="v9", client=hub)
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        pocket.push_to_hub("heads", client=hub)
    (tmp_path / "me" / "heads" / "heads.json").write_text("{}")
    with pytest.raises(DataError, match="no header of kfh"):
        HeadSet.from_hub("me/heads", client=hub)
