"""Question sets: what to ask, the reference answers, and the verifier that tells right from wrong.

A set is named by a spec:
- `FILE.jsonl[.gz]`: lines `{"question", "answer"}`, optionally `id`; maths
- `hub:owner/name[@config][:split]`: a data set of the hub, or of a folder; maths
- `rg:TASK`: a task of reasoning-gym, with its own verifier
- `pocket[:N][@SEED]`, `pocket-held-out[:N]`: problems of the pocket reasoner's task
"""

from __future__ import annotations

import difflib
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from probing.choices import THINK_END
from probing.errors import DataError
from probing.files.headers import HEADER, file_hash
from probing.traces.text import answer_part, last_box
from rl.pocket.parse import is_correct, parse_problem
from rl.pocket.task import Problem, make_problem
from rl.pocket.traces import MEASURE_SEED, held_out_problems
from rl.tasks.maths import maths_correct, maths_readable
from rl.tasks.prompts import MATHS_INSTRUCTION

QUESTION_FIELDS = ("question", "problem", "prompt")
ANSWER_FIELDS = ("answer", "solution")
GENERATED = 500  # questions of a generated set, unless its size is given
HELD_OUT = 600  # problems on which rl.pocket.measure measures
RESERVED = 2000  # held-out problems that no `pocket` set contains
POCKET_SEED = 3_000_000  # above the seeds of training, rl.pocket.measure and rl.pocket.traces


@dataclass(frozen=True)
class Question:
    """One question with its reference answer.

    `id` is unique in its set; `question` is the text put to the model, without template;
    `meta` holds what the verifier needs (reasoning-gym's entry), and fields of the file that kfh
    does not know.
    """

    id: str
    question: str
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class QuestionSet:
    """Questions of one kind with their verifier.

    `source` says where they are from (spec, file hash or revision, number), for headers;
    `unverified` names the questions whose own reference answer the verifier does not accept:
    they stay, since leaving them out would change the benchmark, and count as wrong.
    `faults` counts what went wrong inside the verifier, by type.
    """

    name: str
    questions: tuple[Question, ...]
    kind: str  # maths, pocket or reasoning-gym
    source: dict[str, Any]
    unverified: tuple[str, ...] = ()
    faults: Counter[str] = field(default_factory=Counter, compare=False, repr=False)

    def __len__(self) -> int:
        """The number of questions."""
        return len(self.questions)

    @property
    def instruction(self) -> str:
        """The sentence that asks for reasoning and a box; none for the pocket reasoner."""
        return "" if self.kind == "pocket" else MATHS_INSTRUCTION

    def correct(self, question: Question, response: str, *, think_end: str = THINK_END) -> bool:
        """Whether a response (the text generated after the prompt) is right.

        Without `think_end` it is wrong. reasoning-gym: a score of 1, no partial credit.
        """
        if self.kind == "maths":
            return maths_correct(question.answer, response, think_end, self.faults)
        if self.kind == "pocket":
            answer = answer_part(response, think_end)
            if answer is None:
                return False
            return is_correct(_problem(question.question), THINK_END + answer)
        return self._gym_correct(question, response, think_end)

    def _gym_correct(self, question: Question, response: str, think_end: str) -> bool:
        answer = answer_part(response, think_end)
        if answer is None:
            return False
        score = _gym_scorer(question.meta["metadata"]["source_dataset"])
        try:
            return bool(score(gym_answer(answer), question.meta) >= 1.0)
        except Exception as error:  # noqa: BLE001  # 100 verifiers of others'; counted by type
            self.faults[type(error).__name__] += 1
            return False


def gym_answer(text: str) -> str:
    """What a text after `</think>` gives as its answer to a reasoning-gym task.

    The last `\\boxed{…}`; else the last `<answer>…</answer>`; else what follows the last
    "Answer:"; else the whole text.
    """
    box = last_box(text)
    if box is not None:
        return box
    tagged = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return str((tagged[-1] if tagged else text.rpartition("Answer:")[2]).strip())


def load_questions(spec: str, *, limit: int | None = None, seed: int = 0) -> QuestionSet:
    """Load and check a question set.

    Args:
        spec: see the top of this file.
        limit: at most so many questions, the first ones; the size of a generated set (500).
        seed: of generated sets (`rg:`, and `pocket` where the spec names none).

    Raises:
        DataError: no such file, task or column; a bad line; ids twice; no question; or not one
            reference answer that the verifier accepts.
    """
    if limit is not None and limit < 1:
        raise DataError(f"{spec}: a limit of {limit} leaves no question")
    if spec.startswith("rg:"):
        return _checked(_gym_set(spec, limit or GENERATED, seed))
    if re.match(r"pocket(-held-out)?([:@]|$)", spec):
        return _checked(_pocket_set(spec, limit, seed))
    if spec.startswith("hub:"):
        return _checked(_hub_set(spec, limit))
    if spec.endswith((".jsonl", ".jsonl.gz")):
        return _checked(_file_set(spec, limit))
    raise DataError(
        f"{spec!r} is no question set: give FILE.jsonl[.gz], hub:owner/name[@config][:split], "
        "rg:TASK, pocket[:N][@SEED] or pocket-held-out[:N]"
    )


def final_answer(text: str) -> str:
    """The final answer of a reference: after GSM8K's `####`, or in the last box; else the text.

    Dollar signs around a formula are taken off.

    Example:
        >>> final_answer("She sells 9 * 2 = 18. #### 18")
        '18'
    """
    if "####" in text:
        return text.rpartition("####")[2].strip()
    box = last_box(text)
    answer = text.strip() if box is None else box
    formula = re.fullmatch(r"\$([^$]+)\$", answer)
    return formula[1].strip() if formula else answer


def _checked(found: QuestionSet) -> QuestionSet:
    """The set, with its ids and its verifier tried on a reference response of each question."""
    if not found.questions:
        raise DataError(f"{found.source['spec']}: holds no question")
    twice = [name for name, n in Counter(q.id for q in found.questions).items() if n > 1]
    if twice:
        raise DataError(f"{found.source['spec']}: {len(twice)} ids stand twice, first {twice[0]!r}")
    unverified = tuple(
        question.id for question in found.questions if not _verifies(found, question)
    )
    faults = dict(found.faults)
    if len(unverified) == len(found):
        raise DataError(
            f"{found.source['spec']}: the verifier accepts none of the {len(found)} reference "
            f"answers, first {found.questions[0].answer!r:.80} ({faults or 'no exception'}): "
            "are these answers, or whole solutions?"
        )
    source = {**found.source, "questions": len(found), "unverified": len(unverified)}
    return QuestionSet(found.name, found.questions, found.kind, source, unverified)


def _verifies(found: QuestionSet, question: Question) -> bool:
    """Whether the verifier accepts the reference response, and not by its letters alone."""
    readable = found.kind != "maths" or maths_readable(question.answer, found.faults)
    return readable and found.correct(question, reference_response(found.kind, question))


def reference_response(kind: str, question: Question) -> str:
    """A response that is right by definition: no reasoning, and the reference answer."""
    if kind == "reasoning-gym":  # answers of several lines do not fit into a box
        return f"{THINK_END}{question.answer}"
    return f"{THINK_END} \\boxed{{{question.answer}}}"


def _question(row: Mapping[str, Any], columns: tuple[str, str], where: str, name: str) -> Question:
    """The question of a row of a file or data set; the other fields are kept in `meta`."""
    asked, answer = (row[column] for column in columns)
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        answer = str(answer)
    for column, value in zip(columns, (asked, answer), strict=True):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {column} must be a text that is not empty, is {value!r:.60}")
    meta = {key: value for key, value in row.items() if key not in (*columns, "id")}
    return Question(str(row.get("id", name)), asked, final_answer(answer), meta)


def _columns(names: Iterable[str], where: str) -> tuple[str, str]:
    """The columns of question and answer among those of a data set."""
    names = list(names)
    asked = next((name for name in QUESTION_FIELDS if name in names), None)
    answer = next((name for name in ANSWER_FIELDS if name in names), None)
    if asked is None or answer is None:
        missing = ("answer", ANSWER_FIELDS) if asked else ("question", QUESTION_FIELDS)
        raise DataError(
            f"{where}: no {missing[0]} ({', '.join(missing[1])}) among {', '.join(names)}"
        )
    return asked, answer


def _file_set(spec: str, limit: int | None) -> QuestionSet:
    path = Path(spec).expanduser()
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    questions: list[Question] = []
    for number, row in _lines(path):
        if limit is not None and len(questions) == limit:
            break
        where = f"{path}, line {number}"
        columns = _columns(row, where)
        questions.append(_question(row, columns, where, f"{name}/{len(questions)}"))
    source = {"spec": str(path), "hash": file_hash(path)}
    return QuestionSet(name, tuple(questions), "maths", source)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with their line numbers, without header and empty lines."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as file
        ):
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}, line {number}: no JSON ({error})") from error
                if not isinstance(row, dict):
                    raise DataError(f"{path}, line {number}: {line.strip()!r:.60} is no object")
                if HEADER not in row:
                    yield number, row
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _hub_set(spec: str, limit: int | None) -> QuestionSet:
    from datasets import DatasetDict, load_dataset

    parts = re.fullmatch(r"hub:([^@:]+)(?:@([^:]+))?(?::([^:]+))?", spec)
    if parts is None:
        raise DataError(f"{spec}: write hub:owner/name[@config][:split]")
    name, config, split = parts.groups()
    try:
        data = load_dataset(name, config, split=split)
    except Exception as error:  # hub, network and formats: of many libraries
        raise DataError(f"{spec}: cannot be loaded: {error}") from error
    if isinstance(data, DatasetDict):
        if len(data) > 1:
            raise DataError(f"{spec}: which split? add one of {', '.join(f':{k}' for k in data)}")
        data = next(iter(data.values()))
    short = name.rstrip("/").rpartition("/")[2].lower()
    columns = _columns(data.column_names, spec)
    rows = data.select(range(min(limit or len(data), len(data))))
    questions = tuple(
        _question(row, columns, f"{spec}, row {number}", f"{short}/{number}")
        for number, row in enumerate(rows)
    )
    source = {"spec": spec, "fingerprint": data._fingerprint}
    return QuestionSet(short, questions, "maths", source)


def _gym_set(spec: str, size: int, seed: int) -> QuestionSet:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    task = spec.removeprefix("rg:")
    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=5, cutoff=0.4)
        raise DataError(
            f"{spec}: reasoning-gym has no task {task!r}"
            + (f"; near are {', '.join(near)}" if near else f"; it has {', '.join(DATASETS)}")
        )
    try:
        entries = list(reasoning_gym.create_dataset(task, size=size, seed=seed))
    except Exception as error:
        raise DataError(f"{spec}: reasoning-gym cannot make it: {error}") from error
    if not any(_gym_reference(entry) for entry in entries):
        raise DataError(f"{spec}: gives no reference answer on which its verifier could be tried")
    questions = tuple(
        Question(
            f"{task}/{seed}/{number}",
            entry["question"],
            _gym_reference(entry),
            {**entry, "metadata": {"source_dataset": task, **entry["metadata"]}},
        )
        for number, entry in enumerate(entries)
    )
    source = {"spec": spec, "seed": seed, "version": reasoning_gym.__version__}
    return QuestionSet(spec, questions, "reasoning-gym", source)


def _gym_reference(entry: Mapping[str, Any]) -> str:
    """The answer, or the example that tasks of many right answers give; empty without either."""
    given = entry["answer"]
    for name in ("example_answer", "example_correct_answer", "possible_answer"):
        given = entry["metadata"].get(name) if given is None else given
    if given is None:
        return ""
    return given if isinstance(given, str) else json.dumps(given)


@cache
def _gym_scorer(task: str) -> Any:
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(task)


def _pocket_set(spec: str, limit: int | None, seed: int) -> QuestionSet:
    parts = re.fullmatch(r"(pocket|pocket-held-out)(?::(\d+))?(?:@(\d+))?", spec)
    if parts is None or (parts[1] == "pocket-held-out" and parts[3]):
        raise DataError(f"{spec}: write pocket[:N][@SEED] or pocket-held-out[:N]")
    held_out = parts[1] == "pocket-held-out"
    size = int(parts[2]) if parts[2] else limit or (HELD_OUT if held_out else GENERATED)
    size = min(size, limit or size)
    if held_out:
        if size > RESERVED:
            raise DataError(f"{spec}: {RESERVED} problems are held out, not {size}")
        problems = held_out_problems(size, MEASURE_SEED)
        source: dict[str, Any] = {"spec": parts[1], "seed": MEASURE_SEED}
    else:
        seed = int(parts[3]) if parts[3] else seed
        problems = _pocket_problems(size, POCKET_SEED + seed)
        source = {"spec": parts[1], "seed": POCKET_SEED + seed}
    questions = tuple(
        Question(
            f"{parts[1]}/{source['seed']}/{number}",
            problem.text,
            problem.answer,
            {"hard": problem.hard_operations, "path": len(problem.path)},
        )
        for number, problem in enumerate(problems)
    )
    return QuestionSet(parts[1], questions, "pocket", source)


def _pocket_problems(size: int, seed: int) -> list[Problem]:
    """Distinct problems of a seed, none of them held out."""
    held_out = {problem.text for problem in held_out_problems(RESERVED, MEASURE_SEED)}
    rng = random.Random(seed)
    problems: dict[str, Problem] = {}
    while len(problems) < size:
        problem = make_problem(rng)
        if problem.text not in held_out:
            problems.setdefault(problem.text, problem)
    return list(problems.values())


@lru_cache(maxsize=4096)
def _problem(text: str) -> Problem:
    return parse_problem(text)
