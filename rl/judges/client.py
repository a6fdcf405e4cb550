"""Ask judges: with a limit of rate, retries, and answers kept on disk by the content asked.

An answer that was accepted is on disk before anything else happens, in a file of its own, so a
job that is killed asks no judge again for what it has. (An answer that is still on its way when
the process dies is lost: at most as many as there are requests at once.)
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from probing.errors import ModelError
from probing.files.reading import parse_json
from rl.judges.panel import NO_KEY, BadVerdict, Judge, parse_verdict
from rl.sampling.endpoints import message_text

LONGEST_PAUSE = 60.0  # seconds between two tries
GIVE_UP = 8  # requests of one judge that fail one after another, retries and all
REFUSED = (401, 403, 404)  # no retry and no other trace will mend these


class NoVerdict(Exception):
    """A judge gave no usable answer for one trace; `kind` says why in a few words."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass
class JudgeCounts:
    """What became of the requests to one judge in this run."""

    answered: int = 0  # accepted answers
    cached: int = 0  # answers that were there already
    tries: Counter[str] = field(default_factory=Counter)  # tried again, by reason
    failed: Counter[str] = field(default_factory=Counter)  # traces without an answer, by reason
    tokens: Counter[str] = field(default_factory=Counter)  # prompt and completion, as reported
    damaged: int = 0  # files of the cache that could not be read; asked anew

    def to_json(self) -> dict[str, Any]:
        """Counts for the header."""
        return {
            "answered": self.answered,
            "cached": self.cached,
            "tried_again": dict(self.tries),
            "failed": dict(self.failed),
            "tokens": dict(self.tokens),
            "damaged_cache_files": self.damaged,
        }


class RateLimit:
    """At most `rate` starts a second, evenly spaced; 0: no limit."""

    def __init__(self, rate: float) -> None:
        self.gap = 1 / rate if rate > 0 else 0.0
        self.next = 0.0

    async def wait(self) -> None:
        """Until the next start is due."""
        now = time.monotonic()
        due = max(now, self.next)
        self.next = due + self.gap
        if due > now:
            await asyncio.sleep(due - now)

    def hold(self, seconds: float) -> None:
        """No start for so long: the server said that it is asked too often."""
        self.next = max(self.next, time.monotonic() + seconds)


class AnswerCache:
    """Accepted answers, a file each, named by the hash of what was asked of whom."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def name(judge: Judge, prompt: str) -> str:
        """SHA-256 of judge, address and body: the same question to another judge is another."""
        asked = {"judge": judge.name, "base_url": judge.base_url, "body": judge.body(prompt)}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def path(self, name: str) -> Path:
        """The file of an answer."""
        return self.folder / name[:2] / f"{name}.json"

    def get(self, name: str) -> dict[str, Any] | None:
        """The answer; None where there is none.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            content = parse_json(self.path(name).read_bytes())
        except FileNotFoundError:
            return None
        if not isinstance(content, dict) or not isinstance(content.get("labels"), list):
            raise ValueError("no answer in it")
        return content

    def put(self, name: str, content: dict[str, Any]) -> None:
        """Keep an answer, whole or not at all."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.{os.getpid()}.json")
        temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        temporary.replace(path)


class JudgeClient:
    """One judge, asked by many at once; use it as an async context.

    Args:
        judge: whom to ask.
        cache: where answers are kept.
        rate: requests a second to this judge, retries included; 0: no limit.
    """

    def __init__(self, judge: Judge, cache: AnswerCache, rate: float) -> None:
        from openai import AsyncOpenAI

        self.judge, self.cache, self.limit = judge, cache, RateLimit(rate)
        self.counts = JudgeCounts()
        self.failures = 0  # one after another
        self._key = judge.key()
        # We try again ourselves, so that every request is counted and waits for its turn.
        self.client = AsyncOpenAI(
            base_url=judge.base_url, api_key=self._key, max_retries=0, timeout=judge.timeout
        )

    async def __aenter__(self) -> JudgeClient:
        """Nothing to open."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.client.close()

    def cached(self, prompt: str, count: int) -> list[str] | None:
        """The labels that this judge gave before; None where it has to be asked."""
        try:
            answer = self.cache.get(AnswerCache.name(self.judge, prompt))
        except (ValueError, OSError):
            self.counts.damaged += 1
            return None
        if answer is None or len(answer["labels"]) != count:
            return None
        self.counts.cached += 1
        return [str(label) for label in answer["labels"]]

    async def ask(self, prompt: str, count: int) -> list[str]:
        """The labels of `count` steps, asked for until the answer is good.

        Raises:
            NoVerdict: not after all retries; the trace has no vote of this judge.
            ModelError: the judge cannot be asked at all, or fails again and again.
        """
        refusal = ""
        for attempt in range(self.judge.retries + 1):
            await self.limit.wait()
            try:
                labels, kept = await self._once(prompt, refusal, count)
            except BadVerdict as error:
                kind, detail, pause, of_trace = error.kind, str(error), 0.0, True
                refusal = detail
            except _TryAgain as error:
                kind, detail, pause, of_trace = error.kind, str(error), error.pause, False
            except NoVerdict as error:
                self._failed(error, of_trace=True)
                raise
            else:
                self.cache.put(AnswerCache.name(self.judge, prompt), kept)
                self.counts.answered += 1
                self.failures = 0
                return labels
            if attempt < self.judge.retries:
                self.counts.tries[kind] += 1
                # Half of the pause is by chance, so that those who failed together part.
                growing = min(self.judge.pause * 2**attempt, LONGEST_PAUSE)
                await asyncio.sleep(max(pause, growing * random.uniform(0.5, 1)))
        failure = NoVerdict(kind, f"{detail} (after {self.judge.retries} retries)")
        self._failed(failure, of_trace)
        raise failure

    def _failed(self, error: NoVerdict, of_trace: bool) -> None:
        """Count a failure, and stop the job where the judge and not the trace seems to be why."""
        self.counts.failed[error.kind] += 1
        if of_trace and (self.counts.answered or self.counts.cached):
            return
        self.failures += 1
        if self.failures >= GIVE_UP:
            raise ModelError(
                f"judge {self.judge.name} failed {self.failures} times in a row, last: {error}. "
                "Answers are kept; the same command goes on from here"
            ) from error

    async def _once(
        self, prompt: str, refusal: str, count: int
    ) -> tuple[list[str], dict[str, Any]]:
        """One request: the labels, and what is kept of the answer."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAIError

        asked = prompt
        if refusal:  # the same words to a greedy judge would bring the same answer
            asked = f"{prompt}\n\nYour last answer could not be used: {refusal}."
        body = self.judge.body(asked)
        try:
            answer = await self.client.chat.completions.create(
                model=body["model"], messages=body["messages"], extra_body=body
            )
        except APITimeoutError as error:
            raise _TryAgain("time-out", f"no answer within {self.judge.timeout:g} s") from error
        except APIConnectionError as error:
            raise _TryAgain("no connection", self._clean(error)) from error
        except APIStatusError as error:
            raise self._status(error) from None  # its text may repeat the key
        except (OpenAIError, ValueError) as error:
            raise _TryAgain("unreadable answer", self._clean(error)) from None
        choices = getattr(answer, "choices", None)
        if not choices or choices[0].message is None:
            raise _TryAgain("unreadable answer", "an answer without choices")
        if choices[0].finish_reason == "length":
            raise NoVerdict("cut off", f"the answer hit max_tokens {self.judge.max_tokens}")
        text = self._clean(message_text(choices[0].message))
        labels = parse_verdict(text, count)
        tokens = {
            name: getattr(answer.usage, f"{name}_tokens", None) or 0
            for name in ("prompt", "completion")
        }
        self.counts.tokens.update(tokens)
        return labels, {"judge": self.judge.name, "labels": labels, "text": text, "tokens": tokens}

    def _status(self, error: Any) -> Exception:
        """What an HTTP status means for the job."""
        code, detail = error.status_code, self._clean(error)
        if code in REFUSED:
            return ModelError(
                f"judge {self.judge.name} refuses ({code}): {detail:.300}. Look at base_url, model "
                f"and the key in {self.judge.key_env or 'key_env'}"
            )
        if code in (408, 409, 429) or code >= 500:
            pause = _retry_after(error.response.headers)
            if code == 429:
                self.limit.hold(pause)
            return _TryAgain(str(code), f"{code}: {detail:.300}", pause)
        return NoVerdict(f"refused ({code})", f"{code}: {detail:.300}")

    def _clean(self, text: object) -> str:
        """A text without the key, should a server repeat it."""
        return str(text) if self._key == NO_KEY else str(text).replace(self._key, "[key]")


class _TryAgain(Exception):
    """A request that failed and may succeed later; `pause` is what the server asks for."""

    def __init__(self, kind: str, detail: str, pause: float = 0.0) -> None:
        super().__init__(detail)
        self.kind, self.pause = kind, pause


def _retry_after(headers: Any) -> float:
    """Seconds to wait as the server asks, at most a minute; 0 where it does not say."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return min(max(float(headers.get(name, "")) * unit, 0.0), LONGEST_PAUSE)
        except ValueError:
            continue
    return 0.0
