r"""LiveCodeBench: programs that are right if they pass all tests, public and private.

Rows are those of `livecodebench/code_generation_lite` (arXiv 2403.07974; read in the project's
`lcb_runner`, whose rules of comparison these are): `question_content`, `question_id`,
`contest_date`, `starter_code`, `metadata` with `func_name` where a function is asked for,
`public_test_cases` (JSON: `input`, `output`) and `private_test_cases` (JSON, or that text in
pickle, zlib and base64: nothing of a pickle is run here).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pickletools import genops
from typing import Any

from probing.errors import ConfigError, DataError
from probing.files.reading import BadLine, parse_json
from rl.benchmarks.sandbox import Limits, runs
from rl.tasks.base import Question, QuestionSet, Verdict
from rl.tasks.questions import FileTask

FENCED = re.compile(r"^[ \t]*(```+|~~~+)[^\n`]*\n(.*?)^[ \t]*\1[`~]*[ \t]*$", re.M | re.S)
LARGEST = 2**30  # bytes of the tests of a question
LONGEST = 1000  # characters of a number; a longer one is compared as it stands
TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
AROUND = {"PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "STOP"}
WHOLE = "Put the whole program into one block between ```python and ```, at the end of your answer."
STDIN = "Write a program in Python that reads from standard input and writes to standard output."
FUNCTION = "Complete this code in Python:\n```python\n{}\n```"


class LiveCodeBench(FileTask):
    """`livecodebench[@FROM..TO][:FILE or hub:…]`: problems of contests between two dates."""

    name = "livecodebench"
    default = "hub:lighteval/code_generation_lite@release_v5:test"
    parallel = True
    limits = Limits()
    window = ("", "9999")
    guarded = True

    def limit_to(self, at: str) -> None:
        """Ask the problems of a window, both days included.

        Raises:
            DataError: it is not `FROM..TO`.
        """
        found = re.fullmatch(r"(\d{4}-\d\d-\d\d)\.\.(\d{4}-\d\d-\d\d)", at)
        if not found:
            raise DataError(f"livecodebench@{at}: give @2024-08-01..2025-01-31, or leave it out")
        self.window = found[1], found[2]

    def questions(self, spec: str, limit: int | None, seed: int) -> QuestionSet:
        """The problems.

        Raises:
            ConfigError: programs are not allowed to run, or cannot be guarded.
            DataError: see `FileTask.questions`.
        """
        if self.allow_code == "no":
            raise ConfigError(
                f"{spec}: verifying means to run programs that a model wrote: give --allow-code "
                'to kfh eval or rollout (from Python allow_code="guarded")'
            )
        try:
            list(runs("", [""], limits=self.limits))
        except ConfigError:
            if self.allow_code != "unguarded":
                raise
            self.guarded = False
            list(runs("", [""], limits=self.limits, guarded=False))
        found = super().questions(spec, limit, seed)
        found.source.update(window="..".join(self.window), guarded=self.guarded)
        return found

    def question(self, row: Mapping[str, Any], name: str, seed: int) -> Question | None:
        """The problem of a row; None outside the window. Raises BadLine."""
        date = str(row.get("contest_date") or "")[:10]
        if self.window[1] != "9999" and not self.window[0] <= date <= self.window[1]:
            return None
        asked, starter = row.get("question_content"), row.get("starter_code") or ""
        if not isinstance(asked, str) or not asked.strip():
            raise BadLine("missing field", f"question_content is {asked!r:.60}")
        try:
            metadata = row.get("metadata") or {}
            metadata = parse_json(metadata) if isinstance(metadata, str) else metadata
            function = metadata.get("func_name") or ""
            tests = {key: row.get(f"{key}_test_cases") or "[]" for key in ("public", "private")}
            known = tests_of(tests)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise BadLine("bad tests", f"its tests cannot be read: {error}") from error
        if not known:
            raise BadLine("bad tests", "there is no test")
        how = FUNCTION.format(starter.rstrip()) if starter else STDIN
        meta = {"tests": tests, "function": function, "date": date}
        meta |= {key: row[key] for key in ("difficulty", "platform") if key in row}
        text = f"{asked.strip()}\n\n{how}\n{WHOLE}"
        return Question(str(row.get("question_id") or name), text, "", meta)

    def verifies(self, question: Question) -> bool:
        """True: no solution comes with a problem; its tests were read."""
        return True

    def unstated(self, question: Question, answer: str) -> bool:
        """Whether there is no block of code."""
        return last_block(answer) is None

    def correct(self, question: Question, answer: str) -> bool:
        """Whether the program passes all tests."""
        return self.verdict(question, answer).correct

    def verdict(self, question: Question, answer: str) -> Verdict:
        """The verdict, with what became of each test up to the first that is not passed.

        That is `ok`, `wrong` (another output), `error` (an exception, a signal, a limit) or `time`.
        """
        code, function = last_block(answer), question.meta["function"]
        if code is None:
            return Verdict(False, {"tests": ()})
        tests, found = tests_of(question.meta["tests"]), []
        same = same_value if function else same_output
        inputs = [given for given, _ in tests]
        results = runs(code, inputs, function=function, limits=self.limits, guarded=self.guarded)
        for run, (_, expected) in zip(results, tests, strict=False):
            status = run.status
            if status == "ok" and not same(run.output, expected):
                status = "wrong"
            found.append(status)
            if status != "ok":
                results.close()
                break
        return Verdict(found == ["ok"] * len(tests), {"tests": found, "of": len(tests)})


def last_block(answer: str) -> str | None:
    """The code of the last fenced block that is closed; None where there is none.

    Example:
        >>> last_block("First:\\n```\\nx\\n```\\nBetter:\\n```python\\ny = 1\\n```")
        'y = 1'
    """
    found = FENCED.findall(answer)
    return str(found[-1][1]).removesuffix("\n") if found else None


def tests_of(texts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of input and expected output: the public tests, then the private ones.

    Raises:
        ValueError: a text that is none of the forms (see the top of this file).
        KeyError, TypeError: a test without input or output.
    """
    cases = []
    for text in (texts["public"], texts["private"]):
        if isinstance(text, str):
            text = json.loads(text if text.lstrip().startswith("[") else packed_text(text))
        cases += text
    return [(str(case["input"]), str(case["output"])) for case in cases]


def packed_text(packed: str) -> str:
    """The text in base64, zlib and pickle; of a pickle nothing is run, and only a text is taken.

    Raises:
        ValueError: it is not that.
    """
    try:
        opened = zlib.decompressobj()
        data = opened.decompress(base64.b64decode(packed, validate=True), LARGEST)
        if not opened.eof:
            raise ValueError(f"cut off, or more than {LARGEST} bytes")
        parts = [(code.name, value) for code, value, _ in genops(data)]
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(f"neither JSON nor a text in pickle, zlib and base64 ({error})") from None
    others = [name for name, _ in parts if name not in AROUND]
    if len(others) != 1 or others[0] not in TEXTS:
        raise ValueError(f"its pickle holds more than a text ({', '.join(others[:5])}): not read")
    return next(str(value) for name, value in parts if name in TEXTS)


def same_value(given: str, expected: str) -> bool:
    """Whether two values in JSON are equal.

    Example:
        >>> same_value("[1, 2.0]", "[1,2]"), same_value("", "0")
        (True, False)
    """
    try:
        return bool(parse_json(given) == json.loads(expected))
    except ValueError:
        return False


def same_output(given: str, expected: str) -> bool:
    """Whether two outputs are equal line by line, but for blanks around and forms of a number.

    Example:
        >>> same_output("1.0 2\\n", "1 2.00"), same_output("a", "b")
        (True, False)
    """
    pair = [[line.strip() for line in text.strip().split("\n")] for text in (given, expected)]
    if len(pair[0]) != len(pair[1]):
        return False
    return all(a == b or _numbers(a) == _numbers(b) is not None for a, b in zip(*pair, strict=True))


def _numbers(line: str) -> list[Decimal] | None:
    try:
        return [Decimal(word if len(word) < LONGEST else "long") for word in line.split()]
    except InvalidOperation:
        return None
