"""Files as nobody should write them: seeded mutations, and what reads them.

    python tests/probing/mutations.py 10000 1000 [SEED]   # lines of traces, other files

Whatever stands in a file, only the project's own errors (`KfhError`) may come out of reading it.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import pyarrow as pa  # noqa: E402
import pyarrow.compute as pc  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from helpers import byte_tokenizer, model_folder, trace_file, trace_line  # noqa: E402

from kfh.findings.probe import probe_facts, probe_tables  # noqa: E402
from kfh.findings.summary import probe_summary  # noqa: E402
from probing.choices import ANSWERS, LABELS, RULES  # noqa: E402
from probing.config import ProbeConfig  # noqa: E402
from probing.errors import KfhError  # noqa: E402
from probing.folder import ProbeResult  # noqa: E402
from probing.headset import HeadSet  # noqa: E402
from probing.interventions.setup import TraceChoice  # noqa: E402
from probing.run import probe  # noqa: E402
from probing.traces.file import ReadReport, read_traces, write_traces  # noqa: E402
from probing.traces.segmenters import Segmenter, segment_trace  # noqa: E402
from probing.traces.source import SourceReport, TraceSource, prepare_traces  # noqa: E402
from probing.traces.tokens import SampledIds, encode_trace, token_offsets  # noqa: E402
from rl.tasks.questions import load_questions  # noqa: E402

TOKENIZER = byte_tokenizer()
CUTTERS = [Segmenter.parse(name, 20) for name in ("attnpo", "line", "sentence", "paragraph")]
# In the place of any value.
STRANGE: list[Any] = [
    None, True, False, 0, -1, 1.5, -0.0, 2**31, 2**40, 2**63, 2**70, 10**400, 1e308, 1e-320,
    float("nan"), float("inf"), float("-inf"), "", " ", "x", "\x00", "\x1b[31m\x07", "\ud83d",
    "a\udc00b", "\ufeff", "é\u0301ﬁ中👍🏽", "x" * 10_000, "\r\n\u2028\u0085", "</think>", [], {},
    [[]], [{}], [None], {"": None}, {"a": {"b": [1]}}, ["x", 1], [1.0, 2.0], "1", "null",
]  # fmt: skip
ENCODINGS = ("utf-8-sig", "utf-16", "latin-1")


def random_path(content: Any, rng: random.Random) -> list[Any]:
    """Where a value lies in objects and lists, any depth."""
    path: list[Any] = []
    while isinstance(content, (dict, list)) and content and (not path or rng.random() < 0.7):
        key = rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
        path.append(key)
        content = content[key]
    return path


def nested(depth: int) -> Any:
    """Lists and objects in each other."""
    content: Any = 1
    for level in range(depth):
        content = [content] if level % 2 else {"a": content}
    return content


def mutated_object(content: Any, rng: random.Random) -> Any:
    """The content with one to three of its values gone, moved, or another."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *before, last = random_path(content, rng) or [None]
        place = content
        for key in before:
            place = place[key]
        if last is None or not isinstance(place, (dict, list)):
            return rng.choice(STRANGE)
        way = rng.randrange(9)
        if way == 0:
            del place[last]
        elif way == 1 and isinstance(place, list):
            place.insert(rng.randrange(len(place) + 1), copy.deepcopy(place[last]))
        elif way == 1:
            place[f"{last}_"] = place.pop(last)
        elif way == 2 and isinstance(place, list):
            rng.shuffle(place)
        elif way == 3:
            place[last] = nested(rng.choice((2, 50, 150, 300)))
        elif way in (4, 5) and type(place[last]) in (int, float):
            old = place[last] if abs(place[last]) < 1e300 else 7
            place[last] = rng.choice((-old, old + 1, old - 1, float(old), str(old), bool(old)))
        else:
            place[last] = copy.deepcopy(rng.choice(STRANGE))
    return content


def written(content: Any, rng: random.Random) -> bytes:
    """JSON as Python writes it, halves of characters and NaN among it."""
    text = json.dumps(content, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """The bytes cut, flipped, put twice, in another encoding or with something between them."""
    at = rng.randrange(len(content) + 1)
    way = rng.randrange(10)
    if way == 0:
        return content[:at]
    if way == 1:
        return content[at:]
    if way in (2, 3):
        flipped = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 5, 20))):
            if flipped:
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if way == 4:
        between = (b"\xff\xfe", b"\xc3", b"\xed\xa0\xbd", b"\x00", b"\n", b"\r\n", b"\x1b", b"\\")
        return content[:at] + rng.choice(between) + content[at:]
    if way == 5:
        return rng.choice((b"[" * 100_000, b'{"a":' * 5_000, b"[", b"{", b"")) + content
    if way == 6:
        return content[:at] + b"[" * 2_000 + content[at:]
    if way == 7:
        text = content.decode("utf-8", "replace")
        return text.encode(rng.choice(ENCODINGS), "replace")
    if way == 8:
        return content.replace(b"\n", b"\r\n")
    return content + b"\n" + content


def mutated(content: Any, rng: random.Random) -> bytes:
    """The content of a JSON file or line, mutated in its values or its bytes, or in both."""
    way = rng.random()
    values = mutated_object(content, rng) if way < 0.75 else content
    data = written(values, rng)
    return mutated_bytes(data, rng) if way > 0.65 else data


class Trials:
    """Runs readers on mutated files and keeps what is no error of the project's.

    Args:
        folder: for the files.
        seed: of all that is drawn.

    Attributes:
        came: how often each outcome came, by reader.
        wrong: what came out that should not, with the file's bytes.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.came: Counter[str] = Counter()
        self.wrong: list[tuple[str, str, bytes]] = []

    def attempt(self, name: str, data: bytes, read: Callable[[], Any]) -> Any:
        """Call a reader; what it gives, or None where it refuses."""
        try:
            found = read()
        except KfhError as error:
            assert str(error).strip(), "an error without a word"
            self.came[f"{name}: refused"] += 1
            return None
        except Exception:  # noqa: BLE001  # what this is made to find
            self.came[f"{name}: wrong"] += 1
            self.wrong.append((name, traceback.format_exc(), data))
            return None
        self.came[f"{name}: read"] += 1
        return found


def valid_line(rng: random.Random) -> dict[str, Any]:
    """A good trace line, with every field that is known."""
    number = rng.randrange(8)
    line = trace_line(number, steps=3 + number % 3)
    ids = [token_offsets(TOKENIZER, line[name])[0].tolist() for name in ("prompt", "response")]
    line["token_ids"] = {"prompt": ids[0], "response": ids[1], "end": 1, "tokenizer": None}
    line["ground_truth"], line["model"] = str(number), "tiny"
    line["steps"][0] |= {"kind": "confused", "score": 0.5, "votes": {"a": "essential"}}
    return line if rng.random() < 0.6 else {k: v for k, v in line.items() if k != "token_ids"}


def through(path: Path, labels: Path, rng: random.Random) -> int:
    """Read a trace file, cut, tokenise, label and write its traces; their number."""
    count = 0
    for trace in read_traces(path):
        for cut in (trace, segment_trace(trace, rng.choice(CUTTERS))):
            cut.problem_marks, SampledIds.of(cut)
            encode_trace(TOKENIZER, cut, rule=rng.choice(RULES), answer=rng.choice(ANSWERS))
            out = path.with_suffix(".out")
            assert write_traces(out, [cut]) == 1
            assert next(read_traces(out)).to_json() == cut.to_json()
        count += 1
    list(prepare_traces(TraceSource(path, keep="all", segmenter="line", labels=str(labels))))
    return count


def trace_trials(trials: Trials, count: int) -> None:
    """Mutated trace lines: each in a file alone, then all in one with `skip_bad`."""
    rng, path = trials.rng, trials.folder / "line.jsonl"
    labels = trials.folder / "good-labels.jsonl"
    labels.write_bytes(b"\n".join(written(line, rng) for line in label_lines()))
    every = []
    for _ in range(count):
        data = mutated(valid_line(rng), rng)
        path.write_bytes(data)
        trials.attempt("trace line", data, lambda: through(path, labels, rng))
        every.append(data)
    report = ReadReport()
    together = trials.folder / "together.jsonl"
    first = json.dumps(trace_line(99)).encode()
    together.write_bytes(b"\n".join([first, *every]))
    read = trials.attempt(
        "all lines, --skip-bad",
        b"",
        lambda: len(list(read_traces(together, skip_bad=True, report=report))),
    )
    lines = [line for line in together.read_bytes().split(b"\n") if line.strip()]
    if read is not None:
        assert read == report.read and read + sum(report.bad.values()) == len(lines)


def label_lines() -> list[dict[str, Any]]:
    """A good label file."""
    header = {"kfh": {"kind": "labels", "schema": 1, "segmenter": {"name": "line"}}}
    about = {"score": 0.5, "source": "x", "votes": {"a": "essential", "b": None}}
    return [header] + [
        {"id": f"t/{n}", "step": step, "label": LABELS[step % 2], **about}
        for n in range(8)
        for step in range(3)
    ]


def label_trial(trials: Trials, traces: Path) -> None:
    """A label file of which a line, or its bytes, are mutated."""
    rng = trials.rng
    lines: list[Any] = label_lines()
    place = rng.choice((0, 0, rng.randrange(len(lines))))
    data = [written(line, rng) for line in lines]
    data[place] = mutated(lines[place], rng)
    whole = b"\n".join(data)
    whole = whole if rng.random() < 0.7 else mutated_bytes(whole, rng)
    path = trials.folder / rng.choice(("labels.jsonl", "labels.jsonl.gz"))
    packed = gzip.compress(whole, 1) if path.suffix == ".gz" else whole
    path.write_bytes(mutated_bytes(packed, rng) if rng.random() < 0.2 else packed)
    source = TraceSource(
        traces, segmenter="line", labels=str(path), keep="all", skip_bad=rng.random() < 0.5
    )
    trials.attempt("labels", whole, lambda: list(prepare_traces(source, SourceReport())))


def question_trial(trials: Trials) -> None:
    """A question file of which a line, or its bytes, are mutated."""
    rng = trials.rng
    lines = [{"question": f"What is {n} + 1?", "answer": n + 1, "id": n} for n in range(3)]
    data = [written(line, rng) for line in lines]
    data[rng.randrange(3)] = mutated(rng.choice(lines), rng)
    path = trials.folder / "questions.jsonl"
    path.write_bytes(b"\n".join(data))
    skip = rng.random() < 0.5
    trials.attempt(
        "questions", b"\n".join(data), lambda: load_questions(str(path), skip_bad=skip).left_out
    )


def head_trial(trials: Trials, heads: Path, traces: Path) -> None:
    """A head set whose values or bytes are mutated, read and used to choose traces."""
    rng, path = trials.rng, trials.folder / "heads.json"
    data = mutated(json.loads(heads.read_bytes()), rng)
    path.write_bytes(data)

    def used() -> int:
        found = HeadSet.load(path, warn=False)
        found.save(trials.folder / "again.json")
        assert HeadSet.load(trials.folder / "again.json", warn=False).pairs == found.pairs
        only = rng.choice(("held-out", "all"))
        return len(TraceChoice(traces, only=only).choose(found).traces)

    trials.attempt("head set", data, used)


def mutated_table(source: Path, path: Path, rng: random.Random) -> bytes:
    """A Parquet file with a column gone, renamed, of another type or with other values."""
    file = pq.ParquetFile(source)
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    table = file.read()
    name = rng.choice(table.column_names)
    place, column = table.column_names.index(name), table[name]
    way = rng.randrange(9)
    if way == 0:
        table = table.drop_columns([name])
    elif way == 1:
        table = table.rename_columns([f"{n}_" if n == name else n for n in table.column_names])
    elif way == 2:
        table = table.set_column(place, name, pc.cast(column, pa.string()))
    elif way == 3:
        table = table.set_column(place, name, pa.nulls(len(table), column.type))
    elif way == 4:
        values, strange = column.to_pylist(), rng.choice((None, -1, 2, 10**9, float("nan"), "x"))
        try:
            kind = column.type if rng.random() < 0.7 else None
            values[rng.randrange(len(values))] = strange
            table = table.set_column(place, name, pa.array(values, kind))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            table = table.set_column(place, name, pa.array([str(value) for value in values]))
    elif way == 5:
        kept = rng.sample(range(len(table)), rng.randrange(len(table)))
        table = table.take(pa.array(kept, pa.int64()))
    elif way == 6:
        table = table.replace_schema_metadata({})
    elif way == 7:
        metadata = dict(table.schema.metadata or {b"kfh": b"{}"})
        key = rng.choice(list(metadata))
        metadata[key] = mutated(json.loads(metadata[key]), rng)
        table = table.replace_schema_metadata(metadata)
    else:
        table = table.append_column(name, column)
    if len(table) < sum(groups) or rng.random() < 0.1:
        groups = rng.choice(([len(table)], [1] * len(table)))
    with pq.ParquetWriter(path, table.schema) as writer:
        for number, rows in enumerate(groups):
            writer.write_table(table.slice(sum(groups[:number]), rows))
    return path.read_bytes()


def folder_trial(trials: Trials, folder: Path, name: str) -> None:
    """A finished probe of which one file is mutated, read and shown."""
    rng, path = trials.rng, folder / name
    good = path.read_bytes()
    if name.endswith(".json"):
        data = mutated(json.loads(good), rng)
    elif rng.random() < 0.5:
        data = mutated_bytes(good, rng)
    else:
        data = mutated_table(path, trials.folder / "other.parquet", rng)
    path.write_bytes(data)

    def shown() -> None:
        result = ProbeResult.load(folder)
        probe_facts(result), probe_tables(result), probe_summary(result)
        assert result.caveats is not None and result._repr_html_()
        result.ranked_traces(), result.ranked_traces(result.problems())
        for trace in result.traces():
            result.ratios(trace, result.head_set.pairs)

    try:
        trials.attempt(name, data, shown)
    finally:
        path.write_bytes(good)


def file_trials(trials: Trials, count: int, finished: Path) -> None:
    """Mutated label, head-set, question and score files, `count` in all."""
    traces = trace_file(trials.folder / "traces.jsonl")
    kinds = ("labels", "heads", "scores.parquet", "run.json", "sra.parquet", "heads.json")
    folder = Path(shutil.copytree(finished, trials.folder / "probe"))
    for number in range(count):
        kind = "questions" if number % 25 == 24 else kinds[number % len(kinds)]
        if kind == "labels":
            label_trial(trials, traces)
        elif kind == "questions":
            question_trial(trials)
        elif kind == "heads":
            head_trial(trials, folder / "heads.json", traces)
        else:
            folder_trial(trials, folder, kind)


def finished_probe(folder: Path) -> Path:
    """A finished probe of a tiny model."""
    model, traces = model_folder(folder / "model"), trace_file(folder / "probed.jsonl")
    out = folder / "finished"
    settings = {"model": str(model), "traces": traces, "permutations": 10, "device": "cpu"}
    assert probe(ProbeConfig(**settings, out=out))
    return out


def run(lines: int, files: int, seed: int = 0) -> Trials:
    """So many mutated trace lines and other files, read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trials = Trials(folder, seed)
        trace_trials(trials, lines)
        file_trials(trials, files, finished_probe(folder))
        return trials


if __name__ == "__main__":
    done = run(*map(int, sys.argv[1:]))
    for outcome, times in sorted(done.came.items()):
        print(f"{times:7} {outcome}")
    shown: Counter[str] = Counter()
    for reader, trace, data in done.wrong:
        kind = trace.strip().splitlines()[-1]
        shown[f"{reader} {kind[:60]}"] += 1
        if shown[f"{reader} {kind[:60]}"] == 1:
            print(f"\n{reader}: {trace}\n{data[:300]!r}")
    print(f"{len(done.wrong)} came out that should not")
    sys.exit(bool(done.wrong))
