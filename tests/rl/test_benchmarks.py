"""GPQA, MMLU and LiveCodeBench: rows, orders, verdicts; programs that mean harm do none."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from helpers import model_folder, write_lines

from probing.errors import ConfigError, DataError
from rl.benchmarks import livecodebench, sandbox
from rl.benchmarks.choices import chosen
from rl.benchmarks.livecodebench import LiveCodeBench, packed_text
from rl.benchmarks.sandbox import Limits, runs
from rl.evaluation.config import EvalConfig
from rl.evaluation.job import evaluate
from rl.evaluation.summary import set_figures
from rl.sampling.responses import Asking, Response, ask
from rl.tasks.base import QuestionSet
from rl.tasks.questions import load_questions

CITIES = ["Rome", "Paris", "Bonn", "Oslo"]
GPQA = {
    "Record ID": "rec1",
    "Question": "Capital of France?",
    "Correct Answer": "Paris\n",
    "Incorrect Answer 1": "Rome",
    "Incorrect Answer 2": "Bonn",
    "Incorrect Answer 3": "Oslo",
}
MMLU = {"question": "Capital of France?", "subject": "geography", "choices": CITIES, "answer": 1}
STDIN = {
    "question_id": "abc1",
    "question_content": "Add the numbers of each line.",
    "contest_date": "2024-09-01T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "metadata": "{}",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
}
FUNCTION = {
    **STDIN,
    "question_id": "3001",
    "contest_date": "2025-02-10T00:00:00",
    "starter_code": "class Solution:\n  def add(self, a: List[int], b: int) -> List[int]:\n    ",
    "metadata": '{"func_name": "add"}',
    "public_test_cases": json.dumps([{"input": "[1, 2]\n3", "output": "[4, 5]"}]),
}
SHORT = Limits(seconds=0.5, wall=1, memory=2**30, output=2**20)


def pickled(text: str) -> bytes:
    """A text as protocol 4 writes it, by hand."""
    raw = text.encode()
    return b"\x80\x04X" + len(raw).to_bytes(4, "little") + raw + b"\x94."


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def responds(code: str) -> str:
    return f"I think.</think>\nHere it is:\n```python\n{code}\n```\nDone."


# Choices


def test_choices_are_shuffled_by_the_seed_and_recorded(tmp_path: Path) -> None:
    rows = [{**MMLU, "id": str(n)} for n in range(200)]
    specs = [f"mmlu:{write_lines(tmp_path / 'm.jsonl', rows)}"]
    specs.append(f"gpqa:{write_lines(tmp_path / 'g.jsonl', [GPQA])}")
    for spec in specs:
        first, again, other = (load_questions(spec, seed=seed) for seed in (0, 0, 5))
        assert first.questions == again.questions
        for question in first.questions:
            place = "ABCD".index(question.answer)
            assert question.meta["choices"][place] == "Paris"
            assert f"{question.answer}) Paris" in question.question
        assert (first.questions != other.questions) or spec == specs[1]
    where = [q.answer for q in load_questions(specs[0]).questions]
    assert all(30 < where.count(letter) < 70 for letter in "ABCD")  # 50 each, 3.3 sd
    question = load_questions(specs[0]).questions[7]
    order = question.meta["order"]
    assert [CITIES[n] for n in order] == question.meta["choices"]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("C", "C"),
        (r"So \boxed{C}.", "C"),
        (r"\boxed{\text{c) Bonn}}", "C"),
        ("The answer is C", "C"),
        ("**Answer: (C)**", "C"),
        ("Not A. Therefore\n(C)", "C"),
        (r"\boxed{bonn}", "C"),
        ("The answer is Bonn.", "C"),
        (r"\boxed{A}. Wait, that is wrong: \boxed{C}", "C"),
        (r"\boxed{E}", "E"),
        (r"\boxed{A} and \boxed{C}", None),
        (r"\boxed{A, C}", None),
        (r"\boxed{C) Paris}", None),
        ("The answer is A or C.", None),
        ("The answer is A. The answer is C.", None),
        ("Bonn is a city in Germany.", None),
        ("", None),
    ],
)
def test_the_letter_that_an_answer_chooses(answer: str, letter: str | None) -> None:
    assert chosen(answer, CITIES) == letter


@pytest.mark.parametrize(
    ("task", "row", "says"),
    [
        ("gpqa", MMLU, "line 1: Question must be a text"),
        ("gpqa", {**GPQA, "Incorrect Answer 3": None}, "Incorrect Answer 3 must be a text"),
        ("mmlu", {**MMLU, "answer": 4}, "answer 4 is none of 4 choices"),
        ("mmlu", {**MMLU, "answer": "E"}, "answer 'E' is none of 4 choices"),
        ("mmlu", {**MMLU, "choices": "Rome"}, "choices must be a list"),
        ("mmlu@5", MMLU, "takes nothing behind an @"),
        ("livecodebench@2024", STDIN, "give @2024-08-01..2025-01-31"),
        ("livecodebench", {**STDIN, "question_content": ""}, "question_content is ''"),
        ("livecodebench", {**STDIN, "public_test_cases": "[]"}, "there is no test"),
        ("livecodebench", {**STDIN, "public_test_cases": "[{}]"}, "cannot be read: 'input'"),
        ("livecodebench", {**STDIN, "private_test_cases": "?"}, "neither JSON nor a text"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, task: str, row: dict, says: str) -> None:
    path = write_lines(tmp_path / "bad.jsonl", [row])
    with pytest.raises(DataError, match=says):
        load_questions(f"{task}:{path}", allow_code="guarded")


def test_an_evaluation_of_several_benchmarks(tmp_path: Path) -> None:
    (hub := tmp_path / "hub").mkdir()
    write_lines(hub / "test.jsonl", [MMLU, {**MMLU, "answer": "C"}])
    olympiad = write_lines(tmp_path / "o.jsonl", [{"question": "2, 3?", "final_answer": ["2,3"]}])
    rows = write_lines(tmp_path / "lcb.jsonl", [STDIN])
    specs = (f"mmlu:hub:{hub}:test", str(olympiad), f"livecodebench:{rows}")
    config = EvalConfig(
        model=str(model_folder(tmp_path / "model")),
        data=specs,
        out=tmp_path / "out",
        preset="paper",
        max_tokens=4,
        think_end="",
        allow_code=True,
    )
    found = evaluate(config)
    assert [each.name for each in found.sets] == ["mmlu", "o", "lcb"]
    assert [each.no_box for each in found.sets] == [2, 0, 1]  # random tokens state nothing
    content = json.loads((tmp_path / "out/eval.json").read_text(encoding="utf-8"))
    assert content["benchmarks"]["mmlu"]["accuracy"]["n"] == 2
    lines = (tmp_path / "out/responses/mmlu.jsonl").read_text(encoding="utf-8").splitlines()
    detail = json.loads(lines[1])["detail"]
    assert sorted(detail["order"]) == [0, 1, 2, 3] and detail["chosen"] is None
    assert evaluate(config).sampled == 0  # read again
    assert load_questions(str(olympiad)).questions[0].answer == "2,3"


# Programs


def test_of_a_pickle_only_a_text_is_taken(tmp_path: Path) -> None:
    assert packed_text(packed(pickled("[1]"))) == "[1]"
    touched = tmp_path / "touched"
    # What `pickle.loads` would run: os.system("touch …").
    harm = b"cposix\nsystem\n(S'touch " + os.fsencode(touched) + b"'\ntR."
    for data in (harm, pickled("x")[:-1] + b"(X\x01\x00\x00\x00ae.", b"\x80\x04K\x01.", b"no"):
        with pytest.raises(ValueError, match=r"more than a text|neither JSON"):
            packed_text(packed(data))
    with pytest.raises(ValueError, match="cut off"):
        packed_text(packed(pickled("x" * 10_000))[:20])
    assert not touched.exists()


def loaded(path: Path, *rows: dict, at: str = "") -> QuestionSet:
    return load_questions(f"livecodebench{at}:{write_lines(path, rows)}", allow_code="guarded")


def test_livecodebench_from_rows_to_figures(tmp_path: Path) -> None:
    cases = json.dumps([{"input": "2 2\n5 1\n", "output": "4\n6.0\n"}])
    stdin = {**STDIN, "private_test_cases": packed(pickled(cases))}
    questions = loaded(tmp_path / "lcb.jsonl", stdin, {**FUNCTION, "private_test_cases": "[]"})
    summed = "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))"
    added = FUNCTION["starter_code"] + "return [x + b for x in a]"
    verdicts = [
        (0, responds(summed), True, ("ok", "ok")),
        (0, responds(summed + "\n    break"), False, ("ok", "wrong")),
        (0, responds("print(3)\nraise SystemExit"), False, ("ok", "wrong")),
        (0, responds("print(3)\n1 / 0"), False, ("error",)),
        (0, f"```\n{summed}\n```\n</think>{summed}", False, ()),  # reasoning is no answer
        (1, responds("x = 1\n```\nBetter:\n```python\n" + added), True, ("ok",)),
        (1, responds(added.replace("x + b", "x")), False, ("wrong",)),
        (1, responds(added.replace("add", "sub")), False, ("error",)),
    ]
    responses: dict[str, list[Response]] = {}
    samples: list[list] = [[], []]
    for place, text, *_ in verdicts:
        sample = SimpleNamespace(text=text, tokens=9, finished=True, token_ids=None)
        samples[place].append(sample)
    names = [question.id for question in questions.questions]
    prompts = [question.question for question in questions.questions]
    sampler = SimpleNamespace(
        rows=64,
        rendered=False,
        sample=lambda given, **_: [samples[prompts.index(prompt)] for prompt in given],
    )

    def keep(found: list[Response]) -> None:
        for response in found:
            responses.setdefault(response.id, []).append(response)

    ask(sampler, None, questions, questions.questions, None, 5, Asking(), keep)
    for place, name in enumerate(names):
        told = [(r.correct, tuple((r.detail or {})["tests"])) for r in responses[name]]
        assert told == [tuple(rest) for number, _, *rest in verdicts if number == place]
        assert not any(r.fault for r in responses[name])
    assert "standard input" in prompts[0] and "def add" in prompts[1]
    found = set_figures(questions, {n: responses[n][:3] for n in names}, think_end="</think>")
    assert found.accuracy.n == 2 and found.accuracy.value == pytest.approx(2 / 6)  # pass@1
    assert found.source["guarded"] and found.unverified == 0


def test_a_window_of_dates_and_leave_to_run(tmp_path: Path) -> None:
    path = tmp_path / "lcb.jsonl"
    found = loaded(path, STDIN, FUNCTION, at="@2024-09-02..2025-02-10")
    assert [q.id for q in found.questions] == ["3001"] and found.source["not_asked"] == 1
    assert found.source["window"] == "2024-09-02..2025-02-10"
    with pytest.raises(ConfigError, match="give --allow-code"):
        load_questions(f"livecodebench:{path}")
    config = EvalConfig(data=("x",), out=tmp_path, unguarded_code=True)
    assert config.code_allowed == "unguarded"


def test_without_a_guard_it_needs_more_leave(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sandbox, "SEEN", (*sandbox.SEEN, "/proc/self/nowhere"))
    monkeypatch.setattr(sandbox, "_seen", lambda *_: ["/proc/self/nowhere"])  # cannot be mounted
    write_lines(path := tmp_path / "lcb.jsonl", [STDIN])
    with pytest.raises(ConfigError, match=r"could reach\s+the network .*--unguarded-code"):
        load_questions(f"livecodebench:{path}", allow_code="guarded")
    found = load_questions(f"livecodebench:{path}", allow_code="unguarded")
    assert not found.source["guarded"]
    verdicts = [found.correct(found.questions[0], responds(c)) for c in ("print(3)", "print(4)")]
    assert verdicts == [True, False]


# Each must be wrong: the output of a run that was not harmed would be "done".
HOSTILE = {
    "fork bomb": "import os\nwhile True:\n  try: os.fork() or os.setsid()\n  except OSError: pass",
    "fork bomb left behind": "import os\nif os.fork() == 0:\n  os.setsid()\n"
    "  while True:\n    try: os.fork()\n    except OSError: pass\nos._exit(1)",
    "endless loop": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "10 GB": "x = bytearray(10 * 2**30); print('done')",
    "gigabytes printed": "while True: print('x' * 2**16)",
    "a file too large": "open('x', 'w').write('x' * 2**22); print('done')",
    "files too many": "x = [open(str(n), 'w') for n in range(1000)]; print('done')",
    "folder too full": "for n in range(300): open(str(n), 'w').write('x' * 2**19)\nprint('done')",
    "a file outside": "open('/usr/kfh', 'w'); print('done')",
    "deleting": "import os; os.remove({file!r}); print('done')",
    "reading": "print(open({file!r}).read())",
    "deleting Python": "import os; os.remove(os.__file__); print('done')",
    "killing its parent": "import os\nos.kill(os.getppid(), 9)\nos.kill(-1, 9)\nprint('done')",
    "killing the checker": "import os; os.kill({pid}, 9); print('done')",
    "secrets": "import os\nassert os.environ.get('KFH_SECRET') or any("
    "b'KFH_SECRET' in open(f'/proc/{{p}}/environ', 'rb').read() for p in ({pid}, os.getppid()))\n"
    "print('done')",
    "socket": "import socket; socket.create_connection(('127.0.0.1', {port}), 1); print('done')",
    "datagram": "import socket; s = socket.socket(2, 2); s.sendto(b'x', ('127.0.0.1', {port}))\n"
    "print('done')",
    "closed output": "import os; os.close(1)",
    "exit": "import sys; sys.exit(0)",
    "hard exit": "import os; os._exit(0)",
    "checker patched": "import json, sys\njson.dumps = json.loads = lambda *a, **k: 'done'\n"
    "class Same(str):\n  __eq__ = lambda *a: True\nprint(Same('x'))\n"
    "m = sys.modules['__main__']\nm.Programs.run = lambda *a: {{'status': 'ok', 'output': 'done'}}",
    "root again": "import os; os.setuid(0); print('done')",
    "mount": "import ctypes\nassert not ctypes.CDLL(None).umount2(b'/usr', 2)\nprint('done')",
}


def test_programs_that_mean_harm(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KFH_SECRET", "done")
    file = tmp_path / "mine.txt"
    file.write_text("done", encoding="utf-8")
    tmp_path.chmod(0o777), file.chmod(0o666)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        given = {"file": str(file), "pid": os.getpid(), "port": port}
        question = SimpleNamespace(
            meta={"tests": {"public": [{"input": "", "output": "done"}], "private": "[]"},
                  "function": ""}
        )  # fmt: skip
        task = LiveCodeBench()
        task.limits = SHORT
        assert task.verdict(question, "```\nprint('done')\n```").correct  # type: ignore[arg-type]
        answers = [f"```\n{code.format(**given)}\n```" for code in HOSTILE.values()]
        with ThreadPoolExecutor(8) as pool:
            verdicts = list(pool.map(partial(task.verdict, question), answers))
        wrong = {name for name, each in zip(HOSTILE, verdicts, strict=True) if not each.correct}
        assert wrong == {*HOSTILE} and file.read_text(encoding="utf-8") == "done"
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not Path("/usr/kfh").exists() and Path(os.__file__).exists()
    last = time.monotonic() + 20  # other tests may have theirs at the same time
    while jails() and time.monotonic() < last:
        time.sleep(0.1)
    assert not jails()


def jails() -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if "jail.py" in str(p.info["cmdline"])]


def test_a_run_sees_nothing_of_another() -> None:
    code = "import os\nprint(os.listdir('.'), 'x' in globals())\nx = open('kept', 'w').write('1')"
    first, second = runs(code, ["", ""], limits=SHORT)
    assert first.output == "[] False\n"
    assert second.output == "['kept'] False\n"  # files of one program stay; nothing else does


def test_words_of_a_program_are_data() -> None:
    """Threads that are not joined are waited for; hashes and random numbers are the same."""
    code = (
        "import threading, random\nprint(hash('a'), random.random())\n"
        "def late():\n  import time; time.sleep(0.1); print(sum(deque([1, 2])), gcd(4, 6))\n"
        "threading.Thread(target=late).start()"
    )
    (one,), (two,) = (list(runs(code, [""], limits=SHORT)) for _ in range(2))
    assert one == two and one.status == "ok" and one.output.endswith("\n3 2\n")
    assert livecodebench.same_output("1e3", "1000") and not livecodebench.same_output("1", "1\n2")
    long = "1" * 2000
    assert not livecodebench.same_output(long + "1", long + "2")
