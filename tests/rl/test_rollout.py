"""kfh rollout: selection by hand, ids as sampled, resumed; traces scored on those very ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import byte_tokenizer, model_folder, trace_line, write_lines
from typer.testing import CliRunner

import rl.sampling.collect
from kfh.cli import app
from probing.attention.store import ScoreStore
from probing.config import ProbeConfig
from probing.errors import ConfigError, DataError
from probing.files.headers import data_path
from probing.models.decode import Sampling, encode_prompt
from probing.models.identity import tokenizer_fingerprint
from probing.models.load import load_model, load_tokenizer
from probing.run import probe
from probing.traces.file import Trace, parse_trace, read_traces
from probing.traces.segmenters import Segmenter
from probing.traces.tokens import TOKEN_IDS, decode_with_offsets, encode_trace, token_offsets
from rl.sampling.backends import TransformersSampler
from rl.sampling.base import Sample
from rl.sampling.collect import UNREAD, CollectConfig, collect_traces, share_correct
from rl.sampling.responses import Response
from rl.tasks.base import Question
from rl.tasks.questions import load_questions

POCKET = data_path("pocket")
TOKENIZER = byte_tokenizer()


# The ids as sampled


def unnatural_ids(text: str) -> list[int]:
    """The text in single bytes: never the tokenizer's own way where it has merges."""
    return [TOKENIZER(character)["input_ids"][0] for character in text]


def sampled_trace(**changes: Any) -> Trace:
    line = trace_line(5)
    ids = {"prompt": unnatural_ids(line["prompt"]), "response": unnatural_ids(line["response"])}
    named = {**ids, "end": 1, "tokenizer": tokenizer_fingerprint(TOKENIZER)}
    return parse_trace(json.dumps({**line, TOKEN_IDS: {**named, **changes}}))


@pytest.mark.parametrize("rule", ["start", "overlap"])
@pytest.mark.parametrize("answer", ["all", "values", "boxed"])
def test_a_trace_is_encoded_as_sampled(rule: str, answer: str) -> None:
    trace = sampled_trace()
    text = trace.prompt + trace.response
    own, _ = token_offsets(TOKENIZER, text)
    encoded = encode_trace(TOKENIZER, trace, rule=rule, answer=answer)
    assert encoded.sampled and encoded.ids.tolist() == unnatural_ids(text) != own.tolist()
    # A token a character: spans and answer can be read off the text.
    shift = len(trace.prompt)
    assert encoded.prompt_tokens == shift
    spans = [[step.start + shift, step.end + shift] for step in trace.steps]
    assert encoded.spans.tolist() == spans
    chosen = "".join(text[place] for place in np.flatnonzero(encoded.answer))
    boxed = trace.response.rpartition("{")[2][:-1]
    whole = trace.response[trace.answer_start :]
    values = f" {boxed},{boxed}"  # what follows the equals sign, and the number in the box
    assert chosen == {"all": whole, "values": values, "boxed": boxed}[answer]


def test_ids_with_a_bos_and_a_character_of_several_tokens() -> None:
    line = {"id": "a", "prompt": "Q\n", "response": "é中.\n</think> 7", "steps": []}
    ids = {"prompt": [0, *unnatural_ids("Q\n")], "response": []}
    for character in line["response"]:
        ids["response"] += TOKENIZER(character)["input_ids"]
    trace = parse_trace(json.dumps({**line, "steps": [{"start": 1, "end": 4}], TOKEN_IDS: ids}))
    encoded = encode_trace(TOKENIZER, trace)
    assert encoded.prompt_tokens == 3 and len(encoded) == 3 + len(ids["response"])
    # é takes two tokens, 中 three: the step starts at the sixth.
    assert encoded.spans.tolist() == [[5, 10]]


def test_ids_of_another_tokenizer_are_not_used_and_wrong_ones_refused() -> None:
    trace = sampled_trace(tokenizer="sha256:other")
    own, _ = token_offsets(TOKENIZER, trace.prompt + trace.response)
    encoded = encode_trace(TOKENIZER, trace)
    assert not encoded.sampled and encoded.ids.tolist() == own.tolist()
    with pytest.raises(DataError, match="trace t/5: token_ids do not decode to its response"):
        encode_trace(TOKENIZER, sampled_trace(response=unnatural_ids("Wait")))
    for bad in ({"response": "12"}, {"response": [1.5]}, {"prompt": None}, {"prompt": [-1]}):
        with pytest.raises(DataError, match="token_ids must be"):
            sampled_trace(**bad)
    for bad, said in (
        ({"prompt": unnatural_ids("Other")}, "do not decode to its prompt"),
        ({"response": [10_000]}, "hold 10000, which is no token"),
        ({"prompt": [2**31 - 1]}, "hold 2147483647, which is no token"),
    ):
        trace = sampled_trace(**bad)
        with pytest.raises(DataError, match=f"trace t/5: token_ids {said}"):
            encode_trace(TOKENIZER, trace)
        left_out = encode_trace(TOKENIZER, trace, skip_bad=True)
        assert not left_out.sampled and left_out.ids.tolist() == own.tolist()


def test_a_probe_scores_the_ids_as_sampled_and_counts_them(tmp_path: Path) -> None:
    """The same text under other ids has other scores; a folder of another tokenizer says so."""
    folder = str(model_folder(tmp_path / "model"))
    fingerprint = tokenizer_fingerprint(load_tokenizer(folder))
    assert fingerprint == tokenizer_fingerprint(TOKENIZER)
    found = {}
    for name, tokenizer in (("sampled", fingerprint), ("other", "sha256:other")):
        lines = []
        for number in range(6):
            line = trace_line(number)
            line[TOKEN_IDS] = {
                "prompt": unnatural_ids(line["prompt"]),
                "response": unnatural_ids(line["response"]),
                "tokenizer": tokenizer,
            }
            lines.append(line)
        traces = write_lines(tmp_path / f"{name}.jsonl", lines)
        out = tmp_path / name
        result = probe(ProbeConfig(model=folder, traces=traces, out=out, permutations=20))
        assert result is not None
        assert result.counts["as_sampled"] == (6 if name == "sampled" else 0)
        assert result.counts["other_tokenizer"] == (0 if name == "sampled" else 6)
        found[name] = ScoreStore(out, {}).load()["t/0"]
    lines[0][TOKEN_IDS] = {**lines[0][TOKEN_IDS], "prompt": [5], "tokenizer": fingerprint}
    config = ProbeConfig(
        model=folder, traces=write_lines(traces, lines), out=tmp_path / "bad", permutations=20
    )
    with pytest.raises(DataError, match=r"trace t/0: token_ids do not decode .* --skip-bad"):
        probe(config)
    result = probe(replace(config, skip_bad=True))
    assert result is not None and result.counts["other_tokenizer"] == 5
    assert result.counts["bad_lines"] == {"token_ids left out, the text tokenised": 1}
    text = lines[0]["prompt"] + lines[0]["response"]
    assert found["sampled"].total_tokens == len(text) > found["other"].total_tokens


# The selection


class Scripted:
    """A sampler whose responses are known: by problem, what each sample is."""

    rendered, rows = True, 6

    def __init__(self, script: dict[str, str]) -> None:
        self.script = script

    def sample(self, prompts: Sequence[str], *, n: int, settings: Sampling) -> list[list[Sample]]:
        return [[self.one(prompt, k) for k in range(n)] for prompt in prompts]

    def one(self, prompt: str, number: int) -> Sample:
        kind = self.script[prompt[0]][number]
        answer = {"c": "4", "t": "4", "w": "5"}.get(kind, "")
        text = f"Hm {number}.\nSo.\n" + {
            "n": "4",
            "e": "</think>\n",
            "s": "</think></s>",
            "2": "</think> \\boxed{5}, no.\n<think>\nNow 4.\n</think> \\boxed{4}",
        }.get(kind, f"</think> \\boxed{{{answer}}}")
        return Sample(text, None, 9, kind != "t")


def scripted(
    folder: Path, script: dict[str, str], monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[rl.sampling.collect.CollectReport, list[Trace]]:
    write_lines(folder / "q.jsonl", [{"question": f"{p}?", "answer": "4"} for p in script])
    tokenizer = byte_tokenizer()
    monkeypatch.setattr(rl.sampling.collect, "prompt_tokenizer", lambda config: tokenizer)
    monkeypatch.setattr(rl.sampling.collect, "open_backend", lambda *a, **k: Scripted(script))
    settings: dict[str, Any] = {"data": (str(folder / "q.jsonl"),), "out": folder / "traces.jsonl"}
    config = CollectConfig("m", **settings, **{"samples": 4, "segmenter": "none", **changes})
    report = collect_traces(config)
    return report, list(read_traces(folder / "traces.jsonl"))


SCRIPT = {"A": "cccc", "B": "ccct", "C": "cwne", "D": "wwww"}


@pytest.mark.parametrize(
    ("changes", "kept", "left_out"),
    [
        ({}, "A0 A1 A2 A3", {"cut": 1, "seldom": 4, "end of": 1, "answer": 1, "wrong": 5}),
        ({"easy": 0.75, "per_problem": 2}, "A0 A1 B0 B1", {"--per": 3, "cut": 1, "seldom": 1}),
        ({"easy": 0.0, "keep": "all"}, "A0 A1 A2 A3 B0 B1 B2 C0 C1 D0 D1 D2 D3", {"cut": 1}),
        ({"easy": 0.25, "per_problem": 1}, "A0 B0 C0", {"--per": 5, "wrong": 5}),
    ],
)
def test_selection_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, kept: str, left_out: dict
) -> None:
    report, traces = scripted(tmp_path, SCRIPT, monkeypatch, **changes)
    found = [f"{str(trace.problem)[0]}{trace.extra['sample']}" for trace in traces]
    assert sorted(found) == kept.split()
    assert report.traces + report.left_out.total() == report.responses == 16
    for words, number in left_out.items():
        assert sum(n for why, n in report.left_out.items() if words in why) == number, words
    header = json.loads((tmp_path / "traces.jsonl").read_text().partition("\n")[0])["kfh"]
    assert header["counts"]["left_out"] == dict(report.left_out)
    assert header["selection"]["easy"] == changes.get("easy", 0.9)
    shares = {str(trace.problem)[0]: trace.extra["share_correct"] for trace in traces}
    known = {"A": 1.0, "B": 0.75, "C": 0.25, "D": 0.0}
    assert shares == {name: known[name] for name in shares}
    assert all(
        trace.correct == (SCRIPT[f[0]][int(f[1])] == "c")
        for trace, f in zip(traces, found, strict=True)
    )


def test_the_last_end_mark_decides_verdict_and_cut_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header hands the choice on; an answer of an end token alone is none."""
    changes = {"easy": 0.0, "segmenter": "line", "think_end_at": "last"}
    report, traces = scripted(tmp_path, {"A": "2cs2"}, monkeypatch, **changes)
    assert report.left_out == {"without an answer after the reasoning": 1}
    assert sorted(report.cut.sizes.items()) == [(2, 1), (5, 2)]
    answers = [trace.response[trace.answer_start :] for trace in traces]
    assert answers == [" \\boxed{4}"] * 3, "read_traces takes it from the header"
    changes["think_end_at"] = "first"
    with pytest.raises(ConfigError, match="made with think_end_at 'last'"):
        scripted(tmp_path, {"A": "2cs2"}, monkeypatch, **changes)
    (tmp_path / "first").mkdir()
    _, traces = scripted(tmp_path / "first", {"A": "2cs2"}, monkeypatch, **changes)
    assert traces[0].response[traces[0].answer_start :].startswith(" \\boxed{5}, no.")


def test_nothing_left_and_bad_settings_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no trace is left of 4 responses \\(4 wrong\\)"):
        scripted(tmp_path, {"D": "wwww"}, monkeypatch)
    for bad in ({"keep": "some"}, {"easy": 1.5}, {"per_problem": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            scripted(tmp_path, {"D": "wwww"}, monkeypatch, **bad)


def test_a_response_cut_off_is_not_correct() -> None:
    made = [Response("q", n, "", 9, n < 3, n != 1) for n in range(4)]
    assert share_correct(made) == 0.5


# From end to end


@pytest.mark.pocket
def test_rollouts_of_the_pocket_model_resumed_and_probed(tmp_path: Path) -> None:
    def run(*options: str) -> tuple[str, list[Trace]]:
        words = "rollout --data pocket:4 --samples 2 --batch 8 --easy 0 --segmenter line"
        command = [*words.split(), "--max-tokens", "330", "--out", str(tmp_path / "t.jsonl")]
        result = CliRunner().invoke(app, [*command, *options])
        assert result.exit_code == 0, result.output
        return result.output, list(read_traces(tmp_path / "t.jsonl"))

    output, whole = run()
    assert "8 responses to 4 problems, 8 sampled" in output
    tokenizer, model = load_tokenizer(str(POCKET)), load_model(str(POCKET))
    sampler = TransformersSampler(model, tokenizer)
    samples = sampler.sample([whole[0].prompt], n=2, settings=Sampling(max_tokens=330))[0]
    for trace in (one for one in whole if one.problem == whole[0].problem):
        ids = trace.extra[TOKEN_IDS]
        again = samples[trace.extra["sample"]]
        assert [*ids["response"], ids["end"]] == list(again.token_ids or ())
        assert ids["prompt"] == encode_prompt(tokenizer, trace.prompt)
        text, _ = decode_with_offsets(tokenizer, np.array(ids["response"]))
        assert text == trace.response and trace.extra["tokens"] == len(ids["response"]) + 1
        assert trace.steps == tuple(Segmenter("line").cut(text[: trace.reasoning_end]))
        assert encode_trace(tokenizer, trace).ids.tolist() == ids["prompt"] + ids["response"]
    # Killed while it wrote: the torn question is asked again, and the traces are the same.
    file = tmp_path / "t.jsonl.responses/pocket.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:8]) + lines[8][:50])
    output, again = run()
    assert "2 sampled in this run" in output
    assert sorted(again, key=lambda t: t.id) == sorted(whole, key=lambda t: t.id)
    output, fewer = run("--per-problem", "1", "--segmenter", "none")
    assert ", 0 sampled" in output and not any(trace.steps for trace in fewer)
    assert len({trace.problem for trace in fewer}) == len(fewer) == len({t.problem for t in whole})
    # The task's own steps and labels, of the responses that it can read; of another task none.
    output, labelled = run("--segmenter", "task")
    pocket = load_questions("pocket:4").task
    for trace in labelled:
        question = Question(trace.id, trace.problem or "", "")
        assert pocket.readable(question, trace.response)
        assert trace.steps == tuple(pocket.label(question, trace.response))
    left = int(output.partition(f" left out: {UNREAD}")[0].split()[-1]) if UNREAD in output else 0
    assert labelled and len(labelled) == len(whole) - left
    asked = tmp_path / "q.jsonl"
    asked.write_text('{"id": "1", "question": "2 + 2", "answer": "4"}\n')
    with pytest.raises(ConfigError, match="does not know the labels of its steps"):
        collect_traces(CollectConfig(data=(str(asked),), out=tmp_path / "o", segmenter="task"))
