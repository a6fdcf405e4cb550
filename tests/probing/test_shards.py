"""Shards of a probe: joined they are one run, to the bit; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from checkpoints import gpt2_folder
from helpers import byte_tokenizer, kfh, said, trace_line, write_lines

import probing.attention.scores as scores
import probing.models.load as load
from probing.attention.shards import Plan
from probing.attention.store import ScoreStore
from probing.config import ProbeConfig
from probing.errors import ConfigError, DataError, KfhError
from probing.models.processes import Shard
from probing.run import probe

SHARDS = ("1/3", "2/3", "3/3")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> ProbeConfig:
    """Eleven traces, some without a label and one too long for the model's table of positions."""
    folder, tokenizer = tmp_path_factory.mktemp("setting"), byte_tokenizer()
    lines = [trace_line(n, steps=4 + n % 5) for n in range(10)]
    lines.insert(4, trace_line(10, steps=30))
    lengths = sorted(len(tokenizer(i["prompt"] + i["response"])["input_ids"]) for i in lines)
    labels = [
        {"id": line["id"], "step": step, "label": ("essential", "redundant")[step % 2]}
        for line in lines
        for step in range(len(line["steps"]) - 1)
    ]
    return ProbeConfig(
        str(gpt2_folder(folder / "model", lengths[-2] + 1)),
        write_lines(folder / "traces.jsonl", lines),
        folder / "whole",
        labels=str(write_lines(folder / "labels.jsonl", labels)),
        batch_tokens=2 * lengths[-2],
        control="random-weights",
        control_draws=3,
        permutations=20,
        device="cpu",
    )


class Passes:
    """The ids of every batch that goes through a model, while it stands for `score_batch`."""

    def __init__(self) -> None:
        self.made: list[tuple[str, ...]] = []
        self.really = scores.score_batch

    def __call__(self, capture: object, traces: list, *given: object, **more: object) -> list:
        self.made.append(tuple(trace.id for trace in traces))
        return self.really(capture, traces, *given, **more)


@contextmanager
def counted():
    with pytest.MonkeyPatch.context() as patch:
        passes = Passes()
        patch.setattr(scores, "score_batch", passes)
        yield passes


@pytest.fixture(scope="module")
def whole(setting: ProbeConfig) -> SimpleNamespace:
    with counted() as passes:
        result = probe(setting)
    return SimpleNamespace(out=setting.out, result=result, passes=passes.made)


@pytest.fixture(scope="module")
def shards(setting: ProbeConfig, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The folder of three shards, scored in any order."""
    config = replace(setting, out=tmp_path_factory.mktemp("shards"))
    with counted() as passes:
        for shard in ("3/3", "1/3", "2/3"):
            assert probe(replace(config, shards=shard)) is None
    return SimpleNamespace(config=config, passes=passes.made)


@pytest.fixture
def mine(shards: SimpleNamespace, tmp_path: Path) -> ProbeConfig:
    """A copy of the shards, to be joined without control."""
    shutil.copytree(shards.config.out, tmp_path / "out")
    return replace(shards.config, out=tmp_path / "out", control="none", merge=True)


def same_result(one: Path, other: Path) -> None:
    """Everything but times, commands and the name of the folder is the same, to the bit."""
    for name in ("scores.parquet", "sra.parquet"):
        first, second = (pq.read_table(out / name) for out in (one, other))
        assert first.equals(second), name
    metadata = [pq.read_schema(out / "scores.parquet").metadata[b"kfh"] for out in (one, other)]
    first, second = (json.loads(text)["settings"] for text in metadata)
    assert first == second
    for name in ("heads.json", "run.json", "scoring.json"):
        first, second = (json.loads((out / name).read_text()) for out in (one, other))
        for content in (first, second):
            del content["kfh"]
            content.pop("speed", None)
            content.get("config", {}).pop("out", None)
        assert first == second, name
    for draw in sorted(other.glob("random-weights/*")):
        twin = one / draw.relative_to(other)
        first, second = (ScoreStore(folder, {}).load() for folder in (twin, draw))
        assert {*first} == {*second} and len(first) == 10
        assert all(first[name].scores.tobytes() == second[name].scores.tobytes() for name in first)


def test_shards_joined_are_one_run_to_the_bit(
    shards: SimpleNamespace, whole: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(shards.config, out=tmp_path / "out", merge=True)
    shutil.copytree(shards.config.out, config.out)
    sizes = [len(list(config.out.glob(f"shards/{n}-of-3/parts/*"))) for n in (1, 2, 3)]
    assert sum(sizes) == 10 and len(set(sizes)) > 1, "shares are uneven"
    with monkeypatch.context() as patch:
        patch.setattr(load, "load_model", None)  # no weights are loaded
        result = probe(config)
    assert result is not None and whole.result.counts["left_out"] == result.counts["left_out"]
    assert list(result.counts["left_out"].values()) == [1], "one is too long"
    same_result(config.out, whole.out)
    assert (result.speed["traces"], result.speed["resumed"]) == (10, 0)
    assert result.speed["tokens"] == whole.result.speed["tokens"]
    # The shards made the very passes of the whole run, which is why.
    assert sorted(shards.passes) == sorted(whole.passes)
    assert any(len(batch) > 1 for batch in whole.passes) and len(whole.passes) % 3
    # Joined again, with other choices: the scores are those of OUT by now.
    assert not list(config.out.glob("shards/*/parts/*"))
    again = probe(replace(config, top=1))
    assert again is not None and len(again.chosen) == 1
    # And a run without --merge goes on from them, with nothing left to score.
    on = probe(replace(config, merge=False))
    assert on is not None and (on.speed["tokens"], on.speed["resumed"]) == (0, 10)
    same_result(config.out, whole.out)


def test_a_shard_interrupted_goes_on_with_whole_batches(
    shards: SimpleNamespace, mine: ProbeConfig, whole: SimpleNamespace
) -> None:
    """Of a batch of which one trace is there all are scored again: their numbers stay."""
    stored = ScoreStore(mine.out / "shards" / "1-of-3", {})
    record = json.loads((stored.folder / "shard.json").read_text())
    plan = [batch for batch in whole.passes[: len(whole.passes) // 4] if len(batch) > 1]
    batch = next(batch for batch in plan if batch[0] in record["traces"])
    stored._part(batch[1]).unlink()

    shard = replace(mine, merge=False, shards="1/3")
    with pytest.raises(KeyboardInterrupt):
        probe(shard, progress=stop_at("scoring"))
    with pytest.raises(DataError, match=r"shard 1/3 is not finished. Run it with --shards 1/3;"):
        probe(mine)
    with counted() as passes:
        assert probe(shard) is None
    assert passes.made == [batch]
    again = json.loads((stored.folder / "shard.json").read_text())
    assert again["speed"]["resumed"] == len(record["traces"]) - len(batch)
    assert probe(replace(mine, control="random-weights")) is not None
    same_result(mine.out, whole.out)


def stop_at(wanted: str) -> Callable:
    """A progress that is interrupted where this work begins."""

    @contextmanager
    def progress(name: str, total: int):
        if name == wanted:
            raise KeyboardInterrupt
        yield lambda traces, tokens: None

    return progress


def change(path: Path, **settings: object) -> None:
    """Other settings in the `scoring.json` of a shard."""
    content = json.loads((path / "scoring.json").read_text())
    content["settings"] |= settings
    (path / "scoring.json").write_text(json.dumps(content))


def moved(out: Path) -> None:
    shutil.rmtree(out / "3-of-3")
    shutil.copytree(out / "2-of-3", out / "3-of-3")


def halved(out: Path) -> None:
    part = next((out / "2-of-3" / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:100])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: shutil.rmtree(s / "2-of-3"), r"shards: shard 2/3 is missing\. Run it with"),
        (
            lambda s: [shutil.rmtree(s / "2-of-3"), (s / "3-of-3" / "shard.json").unlink()],
            "shard 2/3 is missing, shard 3/3 is not finished",
        ),
        (shutil.rmtree, r"no shards; score them with --shards 1/n to n/n first"),
        (lambda s: (s / "1-of-4").mkdir(), r"more than one split \(1-of-3, 1-of-4, 2-of-3, 3-of"),
        (
            lambda s: change(s / "3-of-3", weights="sha256:1"),
            r"3-of-3 holds scores made with weights 'sha256:1'; shard 1/3 with weights 'sha256:.*"
            r"--shards 3/3 --no-resume",
        ),
        (
            lambda s: change(s / "2-of-3", batches_of=7),
            r"2-of-3 holds .*batches_of 7; now asked for batches_of \d+. Run it again",
        ),
        (lambda s: change(s / "2-of-3", ids="sha256:0"), r"2-of-3 holds .* ids 'sha256:0'; now"),
        (moved, r"3-of-3/shard.json: damaged, or of another folder \(it is that of shard 2/3\)"),
        (lambda s: (s / "2-of-3" / "shard.json").write_text("{}"), r"shard.json: damaged.*shard: "),
        (lambda s: (s / "2-of-3" / "scoring.json").unlink(), "scoring.json: cannot be read"),
        (halved, r"2-of-3/parts/\w+\.safetensors: damaged"),
        (
            lambda s: next((s / "2-of-3" / "parts").iterdir()).unlink(),
            r"2-of-3: the scores of 1 traces are gone, first t/\d+; run .*--shards 2/3",
        ),
    ],
)
def test_shards_that_cannot_be_joined(mine: ProbeConfig, edit: Callable, message: str) -> None:
    edit(mine.out / "shards")
    left = sorted(mine.out.rglob("*"))
    with pytest.raises(KfhError, match=message):
        probe(mine)
    assert sorted(mine.out.rglob("*")) == left, "nothing is moved before all is checked"


def test_shards_of_another_command_are_refused(mine: ProbeConfig, tmp_path: Path) -> None:
    lines = Path(mine.traces).read_text().splitlines()
    fewer = write_lines(tmp_path / "fewer.jsonl", lines[:-1])
    other = gpt2_folder(tmp_path / "other", 300)
    for changes, message in (
        ({"traces": fewer}, "ids 'sha256:.*traces 'sha256:.*now asked for"),
        ({"model": str(other)}, "model .*'fingerprint'"),
        ({"answer": "boxed"}, "answer 'all'; now asked for answer 'boxed'"),
        ({"dtype": "bfloat16"}, "dtype 'torch.float32'; now asked for dtype 'torch.bfloat16'"),
        ({"control": "random-weights", "seed": 1}, "seed 0; now asked for seed 1"),
    ):
        with pytest.raises(ConfigError, match=rf"1-of-3.* holds scores made with {message}"):
            probe(replace(mine, **changes))
    with pytest.raises(DataError, match=r"shard 1/3 is missing, .* control, random-weights/3"):
        probe(replace(mine, control="random-weights", control_draws=4))
    # What OUT holds of other settings is not joined with, nor overwritten in silence.
    change_to = {"kfh": {}, "settings": {"answer": "boxed"}}
    (mine.out / "scoring.json").write_text(json.dumps(change_to))
    with pytest.raises(ConfigError, match="out holds scores made with answer 'boxed'"):
        probe(mine)
    assert probe(replace(mine, resume=False)) is not None


def test_a_shard_goes_on_with_its_own_settings_alone(mine: ProbeConfig) -> None:
    shard = replace(mine, merge=False, shards="2/3")
    with pytest.raises(
        ConfigError, match=r"batches 'sha256:.*', batches_of \d+; .* batches_of 1\."
    ):
        probe(replace(shard, batch_tokens=1))
    assert probe(mine) is not None, "what is refused leaves the shard finished"


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "", "1/0", "-1/4", "2/4/1", "a/b", "1.5/4"])
def test_what_names_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--shards {text}: write i/n.* such as 2/4"):
        ProbeConfig(shards=text)


def test_a_shard_is_not_merged() -> None:
    with pytest.raises(ConfigError, match="--shards scores one shard, --merge joins all"):
        ProbeConfig(shards="1/2", merge=True)
    for given in ({"shards": "1/2"}, {"merge": True}):
        with pytest.raises(ConfigError, match="need a number for --batch-tokens"):
            ProbeConfig(**given, batch_tokens="auto")


def test_more_shards_than_batches_and_every_share_once() -> None:
    """Every batch is one shard's and, of its processes, one's; some shards have none."""
    lengths = {f"t{n}": 10 + 7 * n % 30 for n in range(11)}
    for count, processes in ((1, 1), (3, 2), (20, 1), (4, 3)):
        plans = [Plan(Shard(number + 1, count), lengths, 60) for number in range(count)]
        assert len({json.dumps(plan.batches) for plan in plans}) == 1
        shares = [
            plan.left(set(), SimpleNamespace(rank=rank, count=processes))
            for plan in plans
            for rank in range(processes)
        ]
        assert sum(map(len, shares)) == len(set().union(*shares)) == 11
        assert count < 20 or set() in shares


def test_from_the_command_line(setting: ProbeConfig, tmp_path: Path) -> None:
    """More shards than traces: a shard without any says so, and is joined like the others."""
    lines = Path(setting.traces).read_text().splitlines()
    base = ["probe", "--model", setting.model, "--traces", write_lines(tmp_path / "t", lines[:3])]
    base += ["--permutations", 5, "--device", "cpu", "--out", tmp_path / "out"]
    for number in range(1, 5):
        done = kfh(*base, "--shards", f"{number}/4", "--batch-tokens", 1)
        assert done.exit_code == 0, said(done)
        assert f"shard {number}/4: scored {int(number < 4)} traces" in " ".join(done.output.split())
    done = kfh(*base, "--merge", "--batch-tokens", 1)
    assert done.exit_code == 0, said(done)
    assert "scored 3 traces" in done.output and (tmp_path / "out" / "heads.json").is_file()
    assert "--shards 9/4: write i/n" in said(kfh(*base, "--shards", "9/4"))
