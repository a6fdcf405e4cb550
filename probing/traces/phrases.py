"""Transition phrases: the list, what a step opens with, how often they occur."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from probing.errors import DataError
from probing.files.headers import data_path, file_hash, read_object
from probing.files.reading import shaped
from probing.settings import unknown
from probing.traces.file import Step

KINDS = ("confused", "branching", "forward", "backward", "special")
# What the paper calls confused and summary; forward phrases are neither.
PHRASE_GROUPS = {
    "confused": ("confused", "branching"),
    "forward": ("forward",),
    "summary": ("backward", "special"),
}


@dataclass(frozen=True)
class Phrases:
    """Phrases by kind, from a JSON file `{"name", "source", "kinds": {kind: [phrase, …]}}`."""

    name: str
    kinds: dict[str, str]  # phrase → kind
    file_hash: str

    @classmethod
    @lru_cache(maxsize=8)
    def load(cls, path: Path) -> Phrases:
        """Read and check a phrase file.

        Raises:
            DataError: not JSON, an unknown kind, an empty phrase, or a phrase in two kinds.
        """
        try:
            content = read_object(path)
            groups = shaped(dict[str, list[str]], content.get("kinds")).items()
        except (DataError, ValueError) as error:
            raise DataError(
                f'{path}: no phrase file ({error}); it needs {{"kinds": {{"confused": […], …}}}}'
            ) from error
        kinds: dict[str, str] = {}
        for kind, phrases in groups:
            if kind not in KINDS:
                raise DataError(f"{path}: {unknown('kind', kind, KINDS)}")
            for phrase in phrases:
                if not isinstance(phrase, str) or not phrase:
                    raise DataError(f"{path}: {kind} holds {phrase!r}; phrases are texts")
                if kinds.setdefault(phrase, kind) != kind:
                    raise DataError(f"{path}: {phrase!r} is both {kinds[phrase]} and {kind}")
        if not kinds:
            raise DataError(f"{path}: holds no phrase")
        return cls(str(content.get("name", path.stem)), kinds, file_hash(path))

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """One alternation, longest phrase first, so that the longest match wins."""
        longest_first = sorted(self.kinds, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    def counted(self, text: str) -> Iterator[tuple[re.Match[str], str]]:
        """The phrases that count in a text, each with its kind, left to right, not overlapping.

        A forward or backward phrase counts only right after a newline; the others anywhere.
        """
        for match in self.pattern.finditer(text):
            kind, start = self.kinds[match.group()], match.start()
            if kind not in ("forward", "backward") or text[start - 1 : start] == "\n":
                yield match, kind


def opening(text: str, step: Step, phrases: Phrases) -> tuple[str | None, str | None]:
    """Kind of a step and the phrase that it opens with, None where it opens with none.

    A segmenter's own kind stands, but for branching, which it counts as confused.

    Example:
        >>> opening("So. Wait, no", Step(4, 12), Phrases("p", {"Wait": "confused"}, ""))
        ('confused', 'Wait')
    """
    cut = text[step.start : step.end]
    match = phrases.pattern.match(cut.lstrip())
    phrase = match.group() if match else None
    kind = phrases.kinds[phrase] if phrase else None
    if step.kind is not None and not (step.kind == "confused" and kind == "branching"):
        kind = step.kind
    return kind, phrase


def phrase_counts(text: str, phrases: Phrases | None = None) -> dict[str, int]:
    """How often the phrases of each group stand in a text, counted as in segmentation.

    Example:
        >>> phrase_counts("First, 2. Wait, no.\\nSo 3. Alternatively, 4.")
        {'confused': 2, 'forward': 0, 'summary': 1}
    """
    phrases = phrases or Phrases.load(data_path("phrases", "attnpo.json"))
    group = {kind: name for name, kinds in PHRASE_GROUPS.items() for kind in kinds}
    counts = dict.fromkeys(PHRASE_GROUPS, 0)
    for _, kind in phrases.counted(text):
        counts[group[kind]] += 1
    return counts
