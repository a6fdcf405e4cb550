"""One process that computes for this one and can be ended: nothing in it takes longer than allowed.

A computation that hangs in C code cannot be interrupted from inside, and a signal reaches the main
thread alone. So a child process computes, started when it is first needed and kept; an alarm of
the system ends it when one computation takes too long, and the next one finds a new child. It
reads from a pipe that closes with this process, so it is left behind by no end of it.
"""

from __future__ import annotations

import atexit
import builtins
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

MEMORY = 4 * 2**30  # bytes that the child may take
# Modules are found as they are here, whatever the working folder holds.
START = (
    "import sys; given = sys.argv[1:]; sys.path[:] = given[3:]; "
    "from rl.tasks.worker import serve; serve(*given[:3])"
)


class Worker:
    """A child process with the functions of one module; safe in threads and after a fork.

    Args:
        module: its functions are called by name, with what JSON can hold.
        seconds: that one call may take.
        loads: a further module, imported before the first call: its time is not the call's.
    """

    def __init__(self, module: str, seconds: float, *, loads: str) -> None:
        self.module, self.seconds, self.loads = module, seconds, loads
        self._lock = threading.Lock()
        self._child: _Child | None = None
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.stop)

    @property
    def pid(self) -> int | None:
        """Of the child; None where there is none."""
        return self._child.process.pid if self._child else None

    def call(self, function: str, *given: Any) -> Any:
        """What a function of the module gives.

        Raises:
            TimeoutError: it took too long, and its process was ended.
            RuntimeError: the process did not start, or ended by itself.
            Exception: what the function raised, by the name of a built-in exception, else
                RuntimeError.
        """
        with self._lock:
            try:
                child = self._child = self._child or self._launched()
                child.wait_until_ready()
                started = time.monotonic()
                line = child.ask(json.dumps([function, *given]).encode() + b"\n")
            except BaseException:  # an answer that is still to come belongs to nobody
                self.stop()
                raise
            if not line:
                took, status = time.monotonic() - started, child.end()
                self._child = self._launched()  # starts while the caller goes on
                if took >= 0.9 * self.seconds:
                    raise TimeoutError(f"no verdict within {self.seconds:g} s")
                raise RuntimeError(f"the process of {self.module} ended with status {status}")
        answer = json.loads(line)
        if "error" in answer:
            kind = getattr(builtins, answer["error"], None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                raise kind(answer["message"])
            raise RuntimeError(f"{answer['error']}: {answer['message']}")
        return answer["value"]

    def stop(self) -> None:
        """End the child, if there is one; a later call starts another."""
        child, self._child = self._child, None
        if child:
            child.end()

    def _launched(self) -> _Child:
        return _Child(self.module, self.loads, str(self.seconds))

    def _forget(self) -> None:
        """In a forked process: the child is the parent's, and so may the lock be."""
        self._lock = threading.Lock()
        child, self._child = self._child, None
        if child:
            child.disown()


class _Child:
    """One process and its pipes, which are not buffered."""

    def __init__(self, *given: str) -> None:
        paths = [str(Path(path).absolute()) for path in sys.path]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *given, *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self.name, self.ready = given[0], False

    def wait_until_ready(self) -> None:
        """Raises RuntimeError where it ends instead."""
        if not self.ready and not self._line():
            raise RuntimeError(f"the process of {self.name} did not start: status {self.end()}")
        self.ready = True

    def ask(self, line: bytes) -> bytes:
        """The answer to a line; empty where the process ends."""
        pipe = self.process.stdin
        with suppress(BrokenPipeError):  # it has ended: the answer is empty
            while line and pipe:
                line = line[pipe.write(line) :]
        return self._line()

    def _line(self) -> bytes:
        return self.process.stdout.readline() if self.process.stdout else b""

    def end(self) -> int:
        """Kill it, and give its status."""
        self.process.kill()
        status = self.process.wait()
        self._close()
        return status

    def disown(self) -> None:
        """Close this side of the pipes; another process waits for its end."""
        self._close()
        self.process.returncode = 0

    def _close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def serve(module: str, loads: str, seconds: str) -> None:
    """In the child: answer calls, line by line, until the pipe closes.

    Args:
        module, loads, seconds: as of the `Worker`.
    """
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no answer
    importlib.import_module(loads)
    functions = importlib.import_module(module)
    answers.write(b"ready\n")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, in C code too
    for line in sys.stdin.buffer:
        name, *given = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, float(seconds))
        answer = _answer(getattr(functions, name), given)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer).encode() + b"\n")


def _answer(function: Callable[..., Any], given: list[Any]) -> dict[str, Any]:
    try:
        return {"value": function(*given)}
    except Exception as error:  # noqa: BLE001  # goes to the caller, by name
        return {"error": type(error).__name__, "message": str(error)[:200]}
