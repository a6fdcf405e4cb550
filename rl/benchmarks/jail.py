"""A process that shuts itself off from the machine and then runs a program, once for each input.

A script of the standard library alone, started by `rl.benchmarks.sandbox`:
1. Namespaces of its own (Linux 5.12): no network, no process and no file of the machine, but a view
   of Python that cannot be written, and an empty folder in memory.
2. No rights: root becomes a user that owns nothing, another user loses what step 1 has given.
3. Each line of its input, `{"input": …}`, runs the program anew in a fork with limits; it answers
   `{"status": "ok" | "error" | "time", "output": …}`. What is right it is never told.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any, NoReturn

# What a program finds without an import, as LiveCodeBench gives it; of one name the last counts.
STARS = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools "
    "operator io sys json typing builtins"
)
RECURSION = 50_000
WORK = Path("/sandbox")
NOBODY = 65534
SPARE_USER = 2_000_000_000  # and up, by process: nobody's
NEW_USER = 0x10000000  # and files, names, IPC, processes, network:
NEW = 0x20000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000
BIND, RECURSIVE, PRIVATE, NO_SETUID, DETACH = 0x1000, 0x4000, 1 << 18, 2, 2
MOUNT_SETATTR, HERE, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
DEATH_SIGNAL, DUMPABLE, SUBREAPER, NO_NEW_PRIVILEGES = 1, 4, 36, 38
CAPABILITIES = 0x20080522  # the version of their structure


def libc(name: str, *given: Any) -> None:
    """A call of the C library.

    Raises:
        OSError: it failed.
    """
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*given) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def mount(source: str, target: Path | str, kind: str, flags: int, data: str = "") -> None:
    """Mount; raises OSError."""
    where = os.fsencode(target)
    libc("mount", source.encode(), where, kind.encode(), ctypes.c_ulong(flags), data.encode())


def enter(folder: Path, paths: list[str], size: int) -> None:
    """Step 1: from here on this is process 1 of a machine of its own.

    Args:
        folder: an empty one, over which the new root is mounted.
        paths: what stays to be seen.
        size: bytes that its own folder can hold.

    Raises:
        OSError: the system does not allow it.
    """
    user, group = os.geteuid(), os.getegid()
    libc("unshare", NEW | (NEW_USER if user else 0))
    if user:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    if child := os.fork():  # the first child is in the new namespace of processes
        os.closerange(0, 3)
        os.waitpid(child, 0)
        os._exit(0)
    libc("prctl", DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    mount("none", "/", "", RECURSIVE | PRIVATE)
    mount("tmpfs", folder, "tmpfs", NO_SETUID, "mode=755")
    for path in map(Path, paths):
        inside = folder / path.relative_to("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.mkdir(exist_ok=True) if path.is_dir() else inside.touch()
        mount(str(path), inside, "", BIND | RECURSIVE)
    work = folder / WORK.name
    work.mkdir()
    set_all = (ctypes.c_uint64 * 4)(READ_ONLY | NO_SETUID)
    where, length = os.fsencode(folder), ctypes.c_size_t(32)
    libc("syscall", MOUNT_SETATTR, HERE, where, AT_RECURSIVE, set_all, length)
    mount("tmpfs", work, "tmpfs", NO_SETUID, f"mode=1777,size={size}")
    os.chdir(folder)
    libc("pivot_root", b".", b".")
    libc("umount2", b".", DETACH)
    os.chdir(WORK)


def drop_rights(users: list[int]) -> None:
    """Step 2; raises OSError where rights cannot be dropped.

    Args:
        users: root becomes the first of them that there can be.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        for user in users:
            with suppress(OSError):  # not in this namespace of users
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
                break
        if os.geteuid() == 0:
            raise OSError("root cannot become another user")
    libc("capset", (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)())
    # A change of user undoes the signal at the parent's death.
    for option, value in (
        (NO_NEW_PRIVILEGES, 1),
        (DUMPABLE, 0),
        (SUBREAPER, 1),
        (DEATH_SIGNAL, signal.SIGKILL),
    ):
        libc("prctl", option, value, 0, 0, 0)


def tasks_of(user: int) -> int:
    """Threads of a user: its limit of processes counts what it runs elsewhere, too."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if process.stat().st_uid == user:
                count += len(list((process / "task").iterdir()))
    return count


def _descendants() -> list[int]:
    found = [os.getpid()]
    for process in found:  # which grows
        for file in Path(f"/proc/{process}/task").glob("*/children"):
            with suppress(OSError):  # it has ended meanwhile
                found += map(int, file.read_text(encoding="ascii").split())
    return found[1:]


class Programs:
    """Step 3: runs of one program.

    Args:
        code: its text.
        function: to call; empty: the program reads its standard input.
        limits: as `rl.benchmarks.sandbox.Limits` has them; `tasks`: processes and threads.
        alone: nobody else's processes can be signalled from here.
    """

    def __init__(self, code: str, function: str, limits: dict[str, Any], alone: bool) -> None:
        self.code, self.function, self.limits, self.alone = code, function, limits, alone
        self.names: dict[str, Any] = {"__name__": "solution" if function else "__main__"}
        modules = STARS.split()
        lines = [f"from {name} import *" for name in modules] + [f"import {', '.join(modules)}"]
        exec("\n".join(lines), self.names)
        sys.setrecursionlimit(RECURSION)

    def run(self, given: str) -> dict[str, str]:
        """The status and the output of one run."""
        source, target = os.memfd_create("in"), os.memfd_create("out")
        with open(source, "wb", closefd=False) as file:  # not a path
            file.write(given.encode())
        os.lseek(source, 0, os.SEEK_SET)
        if not (child := os.fork()):
            self._in_fork(source, target, given)
        status = self._wait(child)
        self._sweep()
        output = os.pread(target, self.limits["output"], 0).decode(errors="replace")
        os.close(source)
        os.close(target)
        return {"status": status, "output": output}

    def _wait(self, child: int) -> str:
        last = time.monotonic() + self.limits["wall"]
        while time.monotonic() < last:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return "ok" if code == 0 else "time" if code == -signal.SIGXCPU else "error"
            time.sleep(0.002)
        return "time"

    def _sweep(self) -> None:
        """End all that is left of a run, whatever it forked: orphans become children of this."""
        stopped: set[int] = set()
        while not self.alone and (left := set(_descendants()) - stopped):
            for process in left:  # one that stands still forks no more, but takes its place
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGSTOP)
            stopped |= left
        while True:
            for process in [-1] if self.alone else stopped:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return

    def _in_fork(self, source: int, target: int, given: str) -> NoReturn:
        code = 1
        try:
            libc("prctl", DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
            os.setsid()
            result = 9
            os.dup2(target, result)
            null = os.open("/dev/null", os.O_RDWR)
            for number, file in enumerate((source, null if self.function else target, null)):
                os.dup2(file, number)
            os.closerange(3, result)
            os.closerange(result + 1, 256)
            self._limit()
            self.names["random"].seed(0)  # a fork has drawn another
            streams = [open(n, "w" if n else "r", encoding="utf-8") for n in range(3)]  # noqa: PTH123, SIM115
            sys.stdin, sys.stdout, sys.stderr = streams
            self._execute(given, result)
            code = 0
        except SystemExit:
            code = 0
        finally:
            for thread in threading.enumerate():
                if thread is not threading.current_thread() and not thread.daemon:
                    thread.join()
            with suppress(Exception):
                sys.stdout.flush()
            os._exit(code)

    def _limit(self) -> None:
        limits, seconds = self.limits, ceil(self.limits["seconds"])
        for name, soft, hard in (
            ("CPU", seconds, seconds + 1),
            ("AS", limits["memory"], limits["memory"]),
            ("NPROC", limits["tasks"], limits["tasks"]),
            ("FSIZE", limits["output"], limits["output"]),
            ("NOFILE", limits["files"], limits["files"]),
            ("CORE", 0, 0),
        ):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))

    def _execute(self, given: str, result: int) -> None:
        names = self.names
        exec(compile(self.code, "solution.py", "exec"), names)
        if self.function:
            owner = names["Solution"]() if "class Solution" in self.code else None
            call = getattr(owner, self.function) if owner else names[self.function]
            value = call(*(json.loads(line) for line in given.split("\n")))
            os.write(result, json.dumps(value).encode())


def main() -> None:
    """Steps 1 to 3; the first line of standard input has the settings."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    settings = json.loads(requests.readline())
    limits, guarded, user = settings["limits"], settings["guarded"], os.geteuid()
    spare = SPARE_USER + os.getpid()
    sys.path[:] = [*sys.path[1:], *settings["packages"]]  # not the folder of this script
    limits["tasks"] = limits["processes"] + 1 + (tasks_of(user) if user else 0)
    # Imports come first: the spare user may not be able to read root's Python.
    programs = Programs(settings["code"], settings["function"], limits, guarded or not user)
    with suppress(OSError):  # where memory is short, the program goes first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    try:
        if guarded:
            enter(Path(settings["folder"]), settings["paths"], limits["folder"])
        else:
            os.chdir(settings["folder"])
            if not user:
                os.chown(".", spare, spare)
        drop_rights([spare, NOBODY] if guarded else [spare])
        failed = ""
    except (OSError, AttributeError) as error:
        failed = str(error)
    answers.write(json.dumps({"failed": failed}).encode() + b"\n")
    answers.flush()
    if failed:
        return
    for line in requests:
        answers.write(json.dumps(programs.run(json.loads(line)["input"])).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
