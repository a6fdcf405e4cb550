"""Data sets and logs of others: what each form holds comes out as traces, and nothing silently."""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutations import mutated, mutated_object, written

from probing.errors import ConfigError, DataError, KfhError
from probing.files.jsonl import read_lines
from probing.formats import records
from probing.formats.drafts import Draft, split_response, trace_line
from probing.formats.job import ImportConfig, ImportReport, import_traces, recognised
from probing.formats.judged import by_thirds
from probing.formats.known import FORMATS, TRACE
from probing.formats.mapped import parse_map, values_at
from probing.traces.file import Trace, read_traces
from probing.traces.marks import STYLES

ASK = "What is 2 + 2?"
THINK = "First, 2 + 2 is 4.\n\nWait, let me check: 4."
RIGHT, WRONG = r"So it is \boxed{4}.", r"So it is \boxed{5}."
MARKED = f"<think>\n{THINK}\n</think>\n\n{RIGHT}"
SOLVED = f"<|begin_of_solution|>\n\n{RIGHT}\n\n<|end_of_solution|>"
OPEN = f"<|begin_of_thought|>\n\n{THINK}\n\n<|end_of_thought|>\n\n{SOLVED}"
USER = {"role": "user", "content": ASK}
CHOICE = {"message": {"role": "assistant", "reasoning_content": THINK, "content": RIGHT}}
STEPS = ["We add the numbers.", "2 + 2 = 5.", "So 5 it is.", WRONG]
CHUNKS = ["First, 2 + 2 is 4.", "Wait, let me check: 4.", "It is done."]


def chunk(number: int, text: str) -> dict[str, Any]:
    """A chunk of Thought Anchors."""
    return {
        "chunk": text,
        "chunk_idx": number,
        "function_tags": ["active_computation"],
        "depends_on": [],
        "counterfactual_importance_kl": float(3 - number),
    }


def rated(text: str, rating: int) -> dict[str, Any]:
    """A step of PRM800K."""
    return {
        "completions": [{"text": text, "rating": rating, "flagged": None}],
        "human_completion": None,
        "chosen_completion": 0,
    }


# Written by hand after the descriptions that the readers name: records, and what is in them.
RECORDS: dict[str, list[dict[str, Any]]] = {
    "openr1": [
        {
            "problem": ASK, "solution": "4", "answer": "4", "uuid": "u1", "source": "x",
            "generations": [MARKED, MARKED.replace(RIGHT, WRONG), f"<think>\n{THINK}"],
            "correctness_math_verify": [True, False, False], "correctness_llama": None,
            "is_reasoning_complete": [True, True, False], "finish_reasons": None,
        }
    ],
    "openthoughts": [
        {
            "problem": ASK, "deepseek_reasoning": THINK, "deepseek_solution": RIGHT,
            "ground_truth_solution": r"It is \boxed{4}.", "domain": "math", "source": "x",
            "test_cases": None, "starter_code": None,
        }
    ],
    "s1k": [
        {
            "question": ASK, "solution": "4", "gemini_thinking_trajectory": THINK,
            "gemini_attempt": WRONG, "gemini_grade": "No", "deepseek_thinking_trajectory": THINK,
            "deepseek_attempt": RIGHT, "deepseek_grade": "Yes",
        },
        {"question": f"{ASK} Now?", "solution": "4", "attempt": RIGHT, "cot_type": "math",
         "thinking_trajectories": [THINK]},
    ],
    "thought-anchors": [
        {
            "problem": {"problem": ASK, "level": "Level 5", "type": "Algebra", "gt_answer": "4"},
            "chunks_labeled": [chunk(n, text) for n, text in enumerate(CHUNKS)],
            "base_solution": {
                "prompt": f"Solve: {ASK}\n<think>\n", "is_correct": True, "answer": "4",
                "solution": f"{' '.join(CHUNKS)}\n</think>\n\n{RIGHT}",
            },
        }
    ],
    "processbench": [
        {"id": "gsm8k-0", "generator": "Qwen2-7B-Instruct", "problem": ASK, "steps": STEPS,
         "final_answer_correct": False, "label": 1}
    ],
    "prm800k": [
        {
            "labeler": "x", "generation": None, "is_quality_control_question": False,
            "question": {"problem": ASK, "ground_truth_answer": "4", "pre_generated_steps": None},
            "label": {
                "steps": [rated("2 + 2 = 4.", 1), rated("That is a number.", 0),
                          rated("So it is 4.\n\n# Answer\n\n4", 1)],
                "total_time": 1, "finish_reason": "solution",
            },
        },
        {
            "question": {
                "problem": f"{ASK} Again?", "ground_truth_answer": "4",
                "pre_generated_steps": ["2 + 2 = 4.", "2 + 2 = 5.", "So 5.\n\n# Answer\n\n5"],
            },
            "label": {"steps": [rated("2 + 2 = 4.", 1), {**rated("2 + 2 = 5.", -1),
                                                        "chosen_completion": None}],
                      "finish_reason": "found_error"},
        },
    ],
    "lm-eval": [
        {
            "doc_id": 3, "doc": {"question": ASK, "answer": "#### 4"}, "target": "4",
            "arguments": {"gen_args_0": {"arg_0": f"Q: {ASK}\nA:", "arg_1": {"until": []}}},
            "resps": [[MARKED]], "filtered_resps": ["4"], "filter": "strict-match",
            "metrics": ["exact_match"], "doc_hash": "x", "exact_match": 1.0,
        },
        {
            "doc_id": 4, "doc": {"question": ASK}, "target": "4", "exact_match": 0.0,
            "arguments": [[json.dumps([USER]), {"until": []}]], "resps": [[MARKED]],
            "filtered_resps": ["5"],
        },
    ],
    "lighteval": [
        {
            "doc": {"query": ASK, "choices": ["4"], "gold_index": 0, "id": "7", "task_name": "x"},
            "model_response": {"input": [USER], "text": [RIGHT], "reasonings": [THINK]},
            "metric": {"extractive_match": 1},
        },
        {
            "example": f"{ASK} Again?", "full_prompt": f"Q: {ASK}\nA:", "predictions": [MARKED],
            "gold": ["5"], "metrics": {"em": 0.0}, "choices": [],
        },
    ],
    "inspect": [
        {
            "id": 1, "epoch": 1, "input": ASK, "target": "4",
            "messages": [USER, {"role": "assistant", "content": "x"}],
            "output": {"model": "m", "choices": [{"message": {"role": "assistant", "content": [
                {"type": "reasoning", "reasoning": THINK}, {"type": "text", "text": RIGHT}]}}]},
            "scores": {"match": {"value": "C", "answer": "4"}},
        }
    ],
    "batch": [
        {"id": "b1", "custom_id": "r-1", "error": None,
         "response": {"status_code": 200, "body": {"model": "m", "choices": [CHOICE]}}},
        {"custom_id": "r-1", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "m", "messages": [USER]}},
        {"id": "b2", "custom_id": "r-2", "error": {"code": "x"}, "response": None},
    ],
    "vllm": [{"request_id": "0", "prompt": f"{ASK}\n<think>\n", "outputs": [
        {"index": 0, "text": f"{THINK}\n</think>\n\n{RIGHT}", "finish_reason": "stop"}]}],
    "chat": [
        {"request": {"model": "deepseek-reasoner", "messages": [USER]},
         "response": {"id": "c1", "model": "deepseek-reasoner", "choices": [CHOICE]}},
        {"request": {"messages": [USER]}, "answer": "4", "response": {"choices": [
            {"message": {"reasoning": THINK, "content": RIGHT}}]}},
        {"messages": [USER], "response": {"message": {"thinking": THINK, "content": RIGHT}}},
        {"input": {"input": ASK}, "output": {"output": [
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": THINK}]},
            {"type": "message", "content": [{"type": "output_text", "text": RIGHT}]}]}},
    ],
    "conversations": [{"system": "Think first.", "conversations": [
        {"from": "user", "value": ASK}, {"from": "assistant", "value": OPEN}]}],
    "messages": [
        {"messages": [USER, {"role": "assistant", "content": MARKED}], "answer": "4"},
        {"messages": [USER, {"role": "assistant", "content": f"[THINK]{THINK}[/THINK]{RIGHT}"}]},
    ],
    "solution": [{"problem": ASK, "solution": f"{THINK}\n\n{RIGHT}", "source": "x", "messages": [
        USER, {"role": "assistant", "content": f"{THINK}\n\n{RIGHT}"}]}],
    "pair": [{"question": ASK, "reasoning": THINK, "answer": RIGHT, "is_correct": True}],
    "string": [{"text": f"{ASK}\n{MARKED}"}],
}  # fmt: skip


def compared(reference: str, answer: str) -> bool | None:
    """A verifier for these fixtures: whether the box holds what the reference ends with."""
    return f"{{{reference.rstrip('}.')[-1]}}}" in answer


def imported(
    folder: Path, content: bytes | list[Any], name: str = "in.jsonl", **settings: Any
) -> tuple[list[Trace], ImportReport]:
    """What an import of these records gives, read again as a trace file."""
    source, out = folder / name, folder / "out.jsonl"
    lines = content if isinstance(content, bytes) else "\n".join(map(json.dumps, content)).encode()
    source.write_bytes(lines)
    report = import_traces(ImportConfig(str(source), out=out, **settings), verdict=compared)
    return list(read_traces(out)), report


@pytest.mark.parametrize("name", RECORDS)
def test_each_format_is_known_and_gives_its_texts_and_verdicts(name: str, tmp_path: Path) -> None:
    shown: list[str] = []
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(map(json.dumps, RECORDS[name])), encoding="utf-8")
    import_traces(ImportConfig(str(source), out=tmp_path / "x.jsonl"), show=shown.append)
    assert shown == [f"read as {FORMATS[name]}"]
    traces, report = imported(tmp_path, RECORDS[name])
    verdicts = {
        "openr1": [True, False], "openthoughts": [True], "s1k": [True, False, True],
        "thought-anchors": [True], "processbench": [False], "prm800k": [True, False],
        "lm-eval": [True, False], "lighteval": [True, False], "inspect": [True], "batch": [None],
        "vllm": [None], "chat": [None, True, None, None], "conversations": [None],
        "messages": [True, None], "solution": [True], "pair": [True], "string": [None],
    }  # fmt: skip
    assert [trace.correct for trace in traces] == verdicts[name]
    assert report.verdicts.total() == report.traces == len(traces)
    for trace in traces:
        assert trace.prompt.endswith("<think>\n") and ASK in trace.prompt
        assert trace.think_end == "</think>" and trace.extra["source"]["record"] < 4
        if name not in ("processbench", "prm800k", "thought-anchors"):
            assert trace.response[: trace.reasoning_end].strip() == THINK
            assert trace.response[trace.answer_start :].strip() in (RIGHT, WRONG)
        if name not in ("string", "vllm"):
            assert trace.problem is not None and trace.problem.startswith(ASK)
    lost = {"openr1": {"no end of the reasoning": 1}, "batch": {"error of the interface": 1}}
    assert report.reading.bad == lost.get(name, {})


def test_steps_of_a_source_stand_where_their_text_does(tmp_path: Path) -> None:
    labels = {}
    for name in ("thought-anchors", "processbench", "prm800k"):
        traces, report = imported(tmp_path, RECORDS[name])
        assert report.with_steps == len(traces)
        labels[name] = [
            [(trace.response[s.start : s.end], s.label) for s in trace.steps] for trace in traces
        ]
    essential, redundant = "essential", "redundant"
    assert labels["thought-anchors"] == [
        list(zip(CHUNKS, (essential, None, redundant), strict=True))
    ]
    assert labels["processbench"] == [
        list(zip(STEPS[:-1], (essential, redundant, None), strict=True))
    ]
    assert labels["prm800k"] == [
        [("2 + 2 = 4.", essential), ("That is a number.", redundant), ("So it is 4.", essential)],
        [("2 + 2 = 4.", essential), ("2 + 2 = 5.", redundant), ("So 5.", None)],
    ]
    assert by_thirds([1.0, 1.0, 1.0]) == [None] * 3 and by_thirds([1.0, 2.0]) == [None] * 2


def test_marks_become_one_and_are_counted(tmp_path: Path) -> None:
    """Every style of the table, between its own marks, ends up as the same trace."""
    styles = [style for style in STYLES if style.start]
    texts = [f"{style.start}\n{THINK}\n{style.end}\n\n{RIGHT}" for style in styles]
    rows = [{"question": f"{n}: {ASK}", "response": text} for n, text in enumerate(texts)]
    traces, report = imported(tmp_path, rows)
    assert len(traces) == len(styles) > 8 and report.rewritten.total() == len(styles) - 1
    assert {trace.response for trace in traces} == {MARKED.removeprefix("<think>\n")}
    traces, report = imported(tmp_path, rows[1:2], think_end="[/THINK]")  # Magistral's own
    assert traces[0].think_end == "[/THINK]" and not report.rewritten
    assert traces[0].prompt + traces[0].response == f"1: {ASK}\n{texts[1]}"
    quoted = Draft(text=RIGHT, reasoning=f"{THINK} </think>", prompt=ASK)
    with pytest.raises(DataError, match="holds </think> inside"):
        trace_line(quoted, "</think>")
    worked = split_response(Draft(text="a\n\nb\n \nc", worked=True), "</think>")
    assert (worked.reasoning, worked.answer) == ("a\n\nb", "c")


@pytest.mark.parametrize("name", RECORDS)
def test_mutated_records_are_read_or_counted(name: str, tmp_path: Path) -> None:
    """1,000 of each format: fields gone, null, of other types, half characters, broken bytes."""
    rng = random.Random(name)
    lines = [mutated(rng.choice(RECORDS[name]), rng) for _ in range(600)]
    lines += [written(mutated_object(rng.choice(RECORDS[name]), rng), rng) for _ in range(400)]
    lines = [line for whole in lines for line in whole.split(b"\n") if line.strip()]
    lines = [line for line in lines if len(line) < 200_000][:1000]
    huge = json.loads(json.dumps(RECORDS[name][0]).replace("2 + 2", "x " * 5_000_000, 1))
    good = [json.dumps(record).encode() for record in (*RECORDS[name], huge)]
    read, report = imported(tmp_path, b"\n".join([*good, *lines]), format=name)
    left = report.reading.bad
    assert report.records == len(good) + len(lines) and len(left) > 2
    assert len(read) > len(RECORDS[name]) - 2 and all(left)
    for line in rng.sample(lines, 40):  # alone, and told by their fields
        try:
            imported(tmp_path, line)
        except KfhError as error:
            assert str(error).strip()


def test_sources_of_every_kind_give_the_same_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*RECORDS["openr1"], {**RECORDS["openr1"][0], "uuid": "u2"}]
    lines = "\n".join(map(json.dumps, rows)).encode()
    wanted = [trace.response for trace in imported(tmp_path, lines)[0]]

    def responses(source: str) -> list[str]:
        out = tmp_path / "again.jsonl.gz"
        import_traces(ImportConfig(source, out=out))
        return [trace.response for trace in read_traces(out)]

    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    (tmp_path / "in.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (tmp_path / "viewer.json").write_text(json.dumps({"rows": [{"row": r} for r in rows]}))
    (tmp_path / "lines.json").write_bytes(lines)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "in.jsonl.gz").write_bytes(gzip.compress(lines))
    monkeypatch.setattr(records, "BLOCK", 100)
    for name in ("in.parquet", "in.json", "viewer.json", "lines.json", "a"):
        assert responses(str(tmp_path / name)) == wanted, name
    with (tmp_path / "in.jsonl").open("rb") as stream:
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": stream}))
        assert responses("-") == wanted
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(lines)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert responses(f"hub:{folder}:train") == responses(f"hub:{folder}") == wanted


def test_what_needs_a_library_is_read_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins: what is asked of zstandard and inspect_ai, where they are installed."""
    lines = "\n".join(map(json.dumps, RECORDS["messages"])).encode()
    (tmp_path / "in.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + lines)
    (tmp_path / "in.eval").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    for name in ("zstandard", "inspect_ai.log"):
        monkeypatch.setitem(sys.modules, name, None)
    for name, said in (("in.jsonl.zst", "pip install zstandard"), ("in.eval", "inspect_ai")):
        with pytest.raises(ConfigError, match=said):
            import_traces(ImportConfig(str(tmp_path / name), out=tmp_path / "out.jsonl"))
    zstd = ModuleType("zstandard")
    vars(zstd).update(open=lambda file: BytesIO(file.read()[4:]), ZstdError=ZeroDivisionError)
    log = ModuleType("inspect_ai.log")
    sample = SimpleNamespace(model_dump=lambda mode: RECORDS["inspect"][0])
    vars(log)["read_eval_log_samples"] = lambda path, all_samples_required: iter([sample])
    monkeypatch.setitem(sys.modules, "zstandard", zstd)
    monkeypatch.setitem(sys.modules, "inspect_ai", ModuleType("inspect_ai"))
    monkeypatch.setitem(sys.modules, "inspect_ai.log", log)
    for name, count in (("in.jsonl.zst", 2), ("in.eval", 1)):
        source = ImportConfig(str(tmp_path / name), out=tmp_path / "out.jsonl")
        assert import_traces(source).traces == count


def test_a_folder_of_thought_anchors_is_a_record_a_problem(tmp_path: Path) -> None:
    record = RECORDS["thought-anchors"][0]
    for number in range(2):
        folder = tmp_path / "data" / f"problem_{number}"
        (folder / "chunk_0").mkdir(parents=True)
        for part in ("problem", "chunks_labeled", "base_solution"):
            (folder / f"{part}.json").write_text(json.dumps(record[part]), encoding="utf-8")
        (folder / "chunk_0" / "solutions.json").write_text("[]")
    (folder / "base_solution.json").unlink()
    report = import_traces(ImportConfig(str(tmp_path / "data"), out=tmp_path / "out.jsonl"))
    assert [t.id for t in read_traces(tmp_path / "out.jsonl")] == ["problem_0"]
    assert report.reading.bad == {"missing file": 1}


def test_any_other_form_by_paths(tmp_path: Path) -> None:
    row = {"in": {"q": ASK}, "outs": [{"t": THINK, "a": RIGHT, "ok": 1}, {"t": THINK, "a": WRONG}]}
    paths = ("problem=in.q", "reasoning=outs[].t", "answer=outs[].a", "correct=outs[].ok")
    traces, report = imported(tmp_path, [row, {"outs": 3}], map=paths)
    assert [(t.correct, t.problem) for t in traces] == [(True, ASK), (None, ASK)]
    assert [t.response.endswith(end) for t, end in zip(traces, (RIGHT, WRONG), strict=True)]
    assert report.reading.bad == {"missing field": 1}
    assert values_at(row, ["outs", 1, "a"]) == WRONG
    for wrong, said in (
        (("problem=a", "anwser=b"), "did you mean answer"),
        (("problem=a", "answer"), "write field=path"),
        (("problem=a", "answer=b..c"), "is no path"),
        (("answer=b",), "needs prompt or problem"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_map(wrong)


def test_what_is_not_known_is_said_and_kept_or_left(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "response": MARKED} for n in range(3)]
    rows[0]["correct"], rows[1]["correct"] = True, False
    kept = {keep: imported(tmp_path, rows, keep=keep) for keep in ("all", "known", "correct")}
    assert [len(traces) for traces, _ in kept.values()] == [3, 2, 1]
    assert kept["all"][1].verdicts["unknown"] == 1
    assert kept["correct"][1].left_out == {
        "not known to be right or wrong": 1,
        "wrong answer": 1,
    }
    rows = [{"id": "a", "question": q, "response": MARKED} for q in ("1?", "2?", "2?")]
    traces, report = imported(tmp_path, rows)
    assert [trace.id for trace in traces] == ["a", "a~2", "a~3"] and report.renamed == 2
    _, report = imported(tmp_path, [rows[0]] * 3)
    assert report.reading.bad == {"the same again": 2}


def test_refusals_are_said_in_words_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fields a, b: name them with --map"):
        imported(tmp_path, [{"a": 1, "b": 2}])
    with pytest.raises(DataError, match="no trace in it, read as messages"):
        imported(tmp_path, [{"messages": [USER]}])
    with pytest.raises(ConfigError, match="did you mean openr1"):
        imported(tmp_path, [{}], format="openr")
    with pytest.raises(DataError, match="cut short or damaged at record 1"):
        imported(tmp_path, b'[{"text": "x"}, {"te', "in.json")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="no file that is"):
        import_traces(ImportConfig(str(tmp_path / "nothing"), out=tmp_path / "out.jsonl"))
    (tmp_path / "x.eval").write_bytes(b"PK")
    (tmp_path / "x.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd...")
    for name in ("x.eval", "x.jsonl.zst"):
        with pytest.raises(KfhError, match=r"pip install|damaged|cannot be read"):
            import_traces(ImportConfig(str(tmp_path / name), out=tmp_path / "out.jsonl"))
    with pytest.raises(ConfigError, match="would be overwritten"):
        import_traces(ImportConfig(str(tmp_path / "in.json"), out=tmp_path / "in.json"))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_killed_import_leaves_the_old_file_and_pays_for_no_verdict_twice(tmp_path: Path) -> None:
    imported(tmp_path, [{"question": "2?", "response": MARKED}])
    before = (tmp_path / "out.jsonl").read_bytes()
    rows = [{"question": "2?", "response": f"{MARKED} {n}", "answer": "4"} for n in range(120)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = ImportConfig(str(tmp_path / "in.jsonl"), out=tmp_path / "out.jsonl")
    asked: list[str] = []

    def verdict(reference: str, answer: str) -> bool:
        if len(asked) == 70:
            raise KeyboardInterrupt
        asked.append(answer)
        return compared(reference, answer)

    with pytest.raises(KeyboardInterrupt):
        import_traces(config, verdict=verdict)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    beside = tmp_path / "out.jsonl.verdicts"
    with beside.open("a") as file:  # what a harder kill leaves
        file.write('{"of": "torn')
    first, asked = asked, []
    assert import_traces(config, verdict=verdict).traces == 120
    assert len(first) == 70 and len(asked) == 50 and not set(first) & set(asked)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    resumed = [trace.correct for trace in read_traces(tmp_path / "out.jsonl")]
    asked = []
    import_traces(replace(config, limit=69), verdict=verdict)
    assert [t.correct for t in read_traces(tmp_path / "out.jsonl")] == resumed[:69]


def test_a_trace_file_stays_as_it_is(tmp_path: Path) -> None:
    traces, _ = imported(tmp_path, RECORDS["processbench"])
    source = tmp_path / "out.jsonl"
    assert recognised(str(source)) is TRACE
    import_traces(ImportConfig(str(source), out=tmp_path / "again.jsonl"))
    (line,) = read_lines(tmp_path / "again.jsonl")[0]
    assert Counter(line) == Counter(traces[0].to_json())
