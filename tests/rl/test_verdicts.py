"""Verdicts in mathematics: the table of pairs, what answers lack, and the process behind them."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import write_lines

from probing.traces.file import Trace
from probing.traces.text import boxes
from rl.evaluation.summary import set_figures
from rl.sampling.responses import Response
from rl.tasks import maths
from rl.tasks.answers import boxed_answers
from rl.tasks.maths import final_answer, maths_correct, maths_unstated, maths_verdict
from rl.tasks.questions import load_questions
from rl.tasks.verdicts import question_of
from rl.tasks.worker import Worker

HERE = Path(__file__).parent
# No answer is found in any time: SymPy adds up all terms.
HANGS = r"\boxed{\sum_{k=1}^{10^{12}} \frac{1}{k^2+1}}"


def rows(name: str) -> list[dict]:
    """The rows of a table, without its header."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[1:]]


def differs(row: dict) -> bool:
    """Whether the verdict is not the expected one."""
    gold = final_answer(row["solution"]) if "solution" in row else row["gold"]
    return maths_correct(gold, f"Hm.</think>{row['answer']}") != row["right"]


def test_the_table_of_pairs() -> None:
    table = rows("verdicts.jsonl")
    wrong = [row for row in table if differs(row)]
    assert wrong == [], f"{len(wrong)} of {len(table)}"
    sides = Counter((row["kind"], row["right"]) for row in table)
    kinds = {kind for kind, _ in sides}
    assert len(table) >= 220 and min(sides[kind, right] for kind in kinds for right in (0, 1)) >= 3
    pairs = [(row.get("gold", row.get("solution")), row["answer"]) for row in table]
    assert len({*pairs}) == len(pairs) and all(row["why"] for row in table)


def test_the_known_misses_are_still_missed() -> None:
    """One that is had belongs into the other table."""
    missed = rows("verdicts_missed.jsonl")
    assert 0 < len(missed) <= 12 and all(row["why"] for row in missed)
    assert [row for row in missed if not differs(row)] == []


# Which answers are looked at


def test_answers_whose_reference_needs_a_box_are_counted(tmp_path: Path) -> None:
    lines = [{"question": "Who?", "answer": "\\text{Evelyn}"}, {"question": "n?", "answer": "2"}]
    questions = load_questions(str(write_lines(tmp_path / "x.jsonl", lines)))
    texts = [
        ("I see.</think>Evelyn won it, I think.", "</think>Two."),  # one without a box; no text
        ("</think>\\boxed{Bob}", "</think>2"),
        ("</think>The answer is Bob.", "</think>"),
        ("Evelyn never ends", "</think>\\boxed{2}"),
    ]
    responses = {
        question.id: [
            Response(
                question.id, n, pair[column], 9, True, questions.correct(question, pair[column])
            )
            for n, pair in enumerate(texts)
        ]
        for column, question in enumerate(questions.questions)
    }
    found = set_figures(questions, responses, think_end="</think>")
    assert found.no_box == 1 and found.to_json()["no_box"] == 1 and found.no_answer == 1
    assert found.correct == [[0, 0, 0, 0], [0, 1, 0, 1]]
    assert maths_unstated("\\text{Evelyn}", "It is Evelyn.")
    for reference in ("yes", "C", "\\text{(C)}", "12", "(1,2)"):
        assert not maths_unstated(reference, "I do not know.")


def test_the_boxes_of_a_trace_are_its_reference() -> None:
    trace = Trace("t", "p", "</think>$x=\\boxed{2}$ or $x=\\boxed{3}$")
    assert question_of(trace).answer == "2, 3" and question_of(trace, boxed=True).answer == "3"


@pytest.fixture
def alone() -> Iterator[None]:
    """Time without the collector, which goes through all that earlier tests have left."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("unit", ["\\boxed{", "\\boxed{{", "\\boxed{\\{", "\\boxed ", "{\\boxed{}"])
def test_boxes_are_read_in_one_pass(unit: str) -> None:
    """Unclosed boxes were searched to the end each; twice the text took four times the time."""
    started = time.thread_time()
    for number in (5_000, 100_000):
        assert len(boxes(unit * number)) == (number if "}" in unit else 0)
    assert time.thread_time() - started < 1


@pytest.mark.usefixtures("alone")
def test_nested_boxes_are_read_in_one_pass() -> None:
    started = time.thread_time()
    nested = boxes("\\boxed{" * 100_000 + "}" * 100_000)
    assert nested[0] == (7, 800_000 - 1) and nested[-1] == (700_000, 700_000)
    assert len(boxed_answers("\\boxed{1}, " * 50_000)) == 1
    assert time.thread_time() - started < 2


# The process


@pytest.fixture
def hasty() -> Iterator[Worker]:
    """As the verifier's process, but of less patience."""
    worker = Worker("rl.tasks.maths", 0.7, loads="rl.tasks.equality")
    yield worker
    worker.stop()


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process ends within some seconds."""
    for _ in range(int(seconds * 50)):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_verdict_has_its_limit_in_a_thread_too(hasty: Worker) -> None:
    assert maths.TIMEOUT == 5
    found: list[object] = []

    def judge() -> None:
        found.append(hasty.call("decide", "1/2", "\\boxed{0.5}"))
        first, started = hasty.pid, time.monotonic()
        try:
            hasty.call("decide", "5", HANGS)
        except TimeoutError as error:
            found.append(str(error))
        found.append(time.monotonic() - started)
        found.append(hasty.call("decide", "1/2", "\\boxed{0.6}"))
        found.append(gone(first) and hasty.pid != first)

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join()
    right, says, seconds, wrong, restarted = found
    assert (right, says, wrong, restarted) == (True, "no verdict within 0.7 s", False, True)
    assert 0.6 < seconds < 3


def test_faults_are_wrong_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hasty: Worker
) -> None:
    monkeypatch.setattr(maths, "_worker", lambda: hasty)
    path = write_lines(tmp_path / "x.jsonl", [{"question": "f?", "answer": "x+1"}])
    found = load_questions(str(path))
    (question,) = found.questions
    assert not found.correct(question, f"</think>{HANGS}")
    assert not found.correct(question, "</think>\\boxed{10^{10^{10}}!}")
    assert found.correct(question, "</think>\\boxed{1+x}")
    assert found.faults == {"TimeoutError": 1, "MemoryError": 1}
    with pytest.raises(RuntimeError, match="did not start"):
        Worker("rl.tasks.nowhere", 1, loads="rl.tasks.nothing").call("decide", "5", "6")


def test_equal_texts_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maths, "_worker", lambda: pytest.fail("the process was asked"))
    tower = "9^{9^{9^9}}"
    assert maths_correct(tower, f"</think>So $\\boxed{{{tower}}}$." + " Well." * 2000)
    assert maths_correct("\\dfrac{1}{2}", "</think>\\boxed{ \\frac{1}{2}. }")
    assert not maths_correct("5", "5 without an end of the reasoning")


def test_threads_get_their_own_verdicts() -> None:
    pairs = [(str(n), f"\\boxed{{{2 * n}/{2 + n % 2}}}", n % 2 == 0) for n in range(60)]
    with ThreadPoolExecutor(6) as pool:
        verdicts = list(pool.map(lambda pair: maths_correct(pair[0], pair[1], ""), pairs))
    assert verdicts == [right for *_, right in pairs]


def test_a_forked_process_has_a_child_of_its_own(hasty: Worker) -> None:
    assert hasty.call("decide", "1/2", "\\boxed{0.5}")
    mine = hasty.pid
    child = os.fork()
    if child == 0:
        right = False
        try:
            right = hasty.call("decide", "1/4", "\\boxed{0.25}") and hasty.pid != mine
            hasty.stop()
        finally:
            os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert hasty.pid == mine and not hasty.call("decide", "1/2", "\\boxed{0.6}")


def test_an_interrupted_call_leaves_no_answer_to_the_next(
    hasty: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(pipe: object) -> bytes:
        raise KeyboardInterrupt

    assert hasty.call("decide", "1/2", "\\boxed{0.5}")
    monkeypatch.setattr(hasty._child, "_line", interrupt.__get__(hasty._child))
    with pytest.raises(KeyboardInterrupt):
        hasty.call("decide", "1/2", "\\boxed{0.50}")
    assert not hasty.call("decide", "1/2", "\\boxed{0.6}")


@pytest.mark.parametrize("busy", [False, True])
def test_no_process_is_left_behind(busy: bool) -> None:
    """Not even by one that is killed while its child computes what takes for ever."""
    lines = [
        "import os, threading, time",
        "from rl.tasks.worker import Worker",
        "worker = Worker('rl.tasks.maths', 1, loads='rl.tasks.equality')",
        "worker.call('decide', '1/2', r'\\boxed{0.5}')",
        "print(worker.pid, flush=True)",
        f"threading.Thread(target=worker.call, args=('decide', '5', r'{HANGS}')).start()"
        if busy
        else "",
        "time.sleep(60)",
    ]
    process = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    time.sleep(0.2 if busy else 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert gone(pid)


@pytest.mark.parametrize(
    ("reference", "answer", "verdict"),
    [
        (r"We add, so it is $\boxed{\frac12}$.", r"Hence \boxed{0.5}.", True),
        ("She sells 18. #### 18", r"\boxed{17}", False),
        ("Paris", "It lies in France.", None),  # a text that the answer does not state
        ("Paris", r"\boxed{Rome}", False),
        ("def f(x): return x + 1\n" * 20, r"\boxed{7}", None),  # a program
        (r"\boxed{\frac{1}{", r"\boxed{7}", None),  # cannot be read
    ],
)
def test_a_verdict_is_given_only_where_it_can_be(
    reference: str, answer: str, verdict: bool | None
) -> None:
    assert maths_verdict(reference, answer) is verdict


def test_a_verdict_that_takes_too_long_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*given: object) -> bool:
        raise TimeoutError

    monkeypatch.setattr(maths, "maths_correct", late)
    assert maths_verdict("4", r"\boxed{4}") is None
