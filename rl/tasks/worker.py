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
from typing import Any

MEMORY = 4 * 2**30  # bytes that the child may take
START = "from rl.tasks.worker import serve; serve(*given[:3])"


class Worker:
    """A child process with the functions of one module; safe in threads and after a fork.

    Args:
        module: its functions are called by name, with what JSON can hold.
        seconds: that one call may take.
        loads: a further module, imported before the first call: its time is not the call's.
    """

    def __init__(self, module: str, seconds: float, *, loads: str) -> None:
        self.module, self.seconds, self.loads = module, seconds, loads
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.stop)

    def _forget(self) -> None:
        """In a forked process: the child and its pipes are the parent's."""
        process = getattr(self, "_process", None)
        if process is not None:
            process.stdin.close()  # unbuffered: nothing is written
            process.stdout.close()
            process.returncode = 0  # not to be waited for here
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def call(self, function: str, *given: Any) -> Any:
        """What a function of the module gives.

        Raises:
            TimeoutError: it took too long, and its process was ended.
            Exception: what it raised, by the name of a built-in exception, else RuntimeError.
        """
        with self._lock:
            try:
                self._start()
                started = time.monotonic()
                assert self._process is not None and self._process.stdin is not None
                self._write(json.dumps([function, *given]).encode() + b"\n")
                line = self._line()
            except BaseException:  # an answer that is still to come belongs to nobody
                self.stop()
                raise
            if not line:
                took, status = time.monotonic() - started, self._ended()
                self._launch()  # the next call finds it ready
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
        if self._process is not None:
            self._process.kill()
            self._ended()

    def _start(self) -> None:
        """A child that has said it is ready."""
        if self._process is None or self._process.poll() is not None:
            self._launch()
        if not self._ready:
            if not self._line():
                status = self._ended()
                raise RuntimeError(f"the process of {self.module} did not start: status {status}")
            self._ready = True

    def _launch(self) -> None:
        paths = [os.path.abspath(path) for path in sys.path]
        clean = "import sys; given = sys.argv[1:]; sys.path[:] = given[3:]"  # not the folder
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{clean}; {START}", self.module, self.loads]
            + [str(self.seconds), *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for this process
        )
        self._ready = False

    def _write(self, line: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        with suppress(BrokenPipeError):  # told by the empty line that is read then
            while line:
                line = line[self._process.stdin.write(line) :]

    def _line(self) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout.readline()

    def _ended(self) -> int:
        """The status of a child that has ended, its pipes closed."""
        assert self._process is not None
        status = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None
        return status


def serve(module: str, loads: str, seconds: str) -> None:
    """In the child: answer calls, line by line, until the pipe closes."""
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
