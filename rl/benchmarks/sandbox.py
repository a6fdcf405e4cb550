"""Run a program that nobody has read, without harm: what it prints for each of some inputs.

`rl.benchmarks.jail` is the process in which it runs. Programs for this (bubblewrap, nsjail) must be
installed by the system, and limit no processes of root; Linux itself has what is needed.

| | guarded | not guarded, started by root | not guarded, by a user |
|---|---|---|---|
| network | none | open | open |
| files | Python's, read-only; an empty folder in memory | what others may | all of the user's |
| other processes | none to be seen | none to be signalled | the user's |
| environment | empty | empty | empty, but `/proc` shows the user's processes |
| time, memory, processes, size and number of files | limited | limited | limited |
"""

from __future__ import annotations

import json
import site
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probing.errors import ConfigError

JAIL = Path(__file__).with_name("jail.py")
# Hashes of a fixed seed: a verdict is the same each time. One thread, or a library starts many.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "LANG": "C.UTF-8"}
SEEN = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom")
SLACK = 30  # seconds for a process to start, or to end what a program has forked


@dataclass(frozen=True)
class Limits:
    """What a run of a program may take.

    Args:
        seconds: of the processor; 6 as in LiveCodeBench's own runner.
        wall: seconds by the clock.
        memory: bytes of address space, of each process.
        processes: at a time, threads included.
        output: bytes of what it prints, and of any file that it writes.
        folder: bytes of all its files.
        files: open at a time.
    """

    seconds: float = 6
    wall: float = 15
    memory: int = 4 * 2**30
    processes: int = 16
    output: int = 2**24
    folder: int = 2**26
    files: int = 64


@dataclass(frozen=True)
class Run:
    """One run of a program.

    Args:
        status: ok; error (an exception, or a signal ended it); time (it took too long).
        output: what it printed, or the JSON of what its function gave.
    """

    status: str
    output: str


def runs(
    code: str,
    inputs: Iterable[str],
    *,
    function: str = "",
    limits: Limits = Limits(),  # frozen
    guarded: bool = True,
) -> Generator[Run, None, None]:
    """Run a program once for each input, one after the other; none of the runs sees another.

    Args:
        code: Python.
        inputs: for its standard input; or lines of JSON, the arguments of the function.
        function: to call, of the module or of its class `Solution`; empty: it reads standard input.
        limits: of each run.
        guarded: shut off from network, files and processes (see the top of this file).

    Raises:
        ConfigError: the system does not allow the guard; the message says what to do.
    """
    with tempfile.TemporaryDirectory(prefix="kfh-", ignore_cleanup_errors=True) as folder:
        packages = site.getsitepackages()
        settings = {
            "code": code,
            "function": function,
            "limits": asdict(limits),
            "guarded": guarded,
            "folder": folder,
            "packages": packages,
            "paths": _seen(*packages),
        }
        with _Jail(limits.wall + SLACK) as jail:
            failed = jail.ask(settings).get("failed", "its process ended")
            if failed:
                raise ConfigError(
                    f"this system does not let a program be shut off ({failed}): it could reach "
                    "the network and your files. Run kfh where namespaces are allowed (Linux 5.12 "
                    "and newer; in a container as root with CAP_SYS_ADMIN), or accept that: "
                    "--unguarded-code"
                )
            for given in inputs:
                answer = jail.ask({"input": given})
                yield Run(answer.get("status", "error"), answer.get("output", ""))


def _seen(*more: str) -> list[str]:
    """Files and folders that Python needs, none of them within another."""
    found: list[Path] = []
    for path in map(Path, (*SEEN, sys.base_prefix, *more)):
        if path.exists() and not any(path.is_relative_to(known) for known in found):
            found.append(path)
    return [str(path) for path in found]


class _Jail:
    """The process and its pipes; it ends with this, and everything in it.

    Args:
        seconds: that one answer may take.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-s", str(JAIL)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the parent
        )

    def ask(self, line: dict[str, Any]) -> dict[str, Any]:
        """The answer to a line; empty where there is none."""
        timer = threading.Timer(self.seconds, self.process.kill)
        timer.start()
        try:
            with suppress(BrokenPipeError):  # it has ended: the answer is empty
                assert self.process.stdin and self.process.stdout
                self.process.stdin.write(json.dumps(line).encode() + b"\n")
                self.process.stdin.flush()
                answer = self.process.stdout.readline()
                return json.loads(answer) if answer else {}
            return {}
        finally:
            timer.cancel()

    def __enter__(self) -> _Jail:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.communicate()
