"""A real HTTP server that judges, with faults: what the tests of the judges ask."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY = "sk-secret-0123456789"
FAULTS = ("429", "500", "time-out", "invalid JSON", "wrong schema", "wrong steps")
Content = tuple[str, str]  # model and prompt


def number_of(*parts: object) -> int:
    """The same number for the same parts, everywhere."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:12], 16)


def label_of(model: str, problem: str, step: int) -> str:
    """What a judge says: the judges agree on most steps."""
    truth = number_of(problem, step) % 2
    errs = number_of(model, problem, step) % 6 == 0
    return ("essential", "redundant")[truth ^ errs]


class JudgeServer(ThreadingHTTPServer):
    """Counts answered requests by content; holds or fails them as it is told."""

    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.answered: Counter[Content] = Counter()
        self.faults: dict[Content, list[str]] = {}  # yet to come
        self.plan = lambda content: []  # the faults of a content, when it is first asked
        self.sent: Counter[str] = Counter()  # faults by kind
        self.keys: set[str] = set()
        self.bodies: list[dict] = []
        self.times: list[float] = []
        self.busy = self.most_busy = 0
        self.delay = 0.002
        self.hold_after: int | None = None  # so many answers; later requests wait, then fail
        self.released = threading.Event()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed, or would not wait."""


class Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"].partition("\n\nYour last answer")[0]
        content = (body["model"], prompt)
        with server.lock:
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.keys.add(self.headers["Authorization"])
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
            faults = server.faults.setdefault(content, list(server.plan(content)))
            fault = faults.pop(0) if faults else ""
            held = server.hold_after is not None and server.answered.total() >= server.hold_after
            if fault and not held:
                server.sent[fault] += 1
            if not fault and not held:
                server.answered[content] += 1
            released = server.released
        try:
            if held:
                released.wait(60)
                self.close_connection = True
                return
            if fault == "time-out":
                server.over.wait(60)
                self.close_connection = True
                return
            time.sleep(server.delay)
            self.reply(content, fault)
        finally:
            with server.lock:
                server.busy -= 1

    def reply(self, content: Content, fault: str) -> None:
        if fault.isdigit():  # with the key in it, as some servers do
            self.send(int(fault), {"error": {"message": f"not now, {KEY}"}})
            return
        steps = content[1].partition("\nSTEPS\n")[2].partition("\n\nFINAL ANSWER\n")[0]
        problem = content[1].partition("\nPROBLEM\n")[2].partition("\n")[0]
        count = steps.count("\n[") + 1 + (fault == "wrong steps")
        labels = [
            {"step": n, "label": label_of(content[0], problem, n)} for n in range(1, count + 1)
        ]
        answer: object = {"steps": labels, "note": f"asked with {KEY}"}
        if fault == "wrong schema":
            answer = {"labels": labels}
        text = json.dumps(answer)
        if fault == "invalid JSON":
            text = text[: len(text) // 2]
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 50, "completion_tokens": 7, "total_tokens": 57}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.send(
            200, {"id": "1", "object": "x", "created": 0, "choices": [choice], "usage": usage}
        )

    def send(self, status: int, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("retry-after-ms", "5")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    """A running server."""
    server = JudgeServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.released.set()
        server.shutdown()
        server.server_close()


def judge_file(path: Path, server: JudgeServer, judges: str = "abc", **changes: object) -> Path:
    """A judge file: its judges differ by name and model."""
    import yaml

    entries = [
        {
            "name": name,
            "base_url": server.url,
            "model": f"model-{name}",
            "key_env": "KFH_TEST_KEY",
            "max_tokens": 500,
            "pause": 0.01,
            **changes,
        }
        for name in judges
    ]
    path.write_text(yaml.safe_dump({"judges": entries}), encoding="utf-8")
    return path
