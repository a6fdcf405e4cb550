"""Transition phrases: the list, what a step opens with, how often they occur."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from probing.choices import LANGUAGES
from probing.errors import DataError
from probing.files.headers import data_path, file_hash, read_object
from probing.files.reading import shaped
from probing.settings import unknown
from probing.traces.file import Step
from probing.traces.text import UNSPACED

KINDS = ("confused", "branching", "forward", "backward", "special")
# What the paper calls confused and summary; forward phrases are neither.
PHRASE_GROUPS = {
    "confused": ("confused", "branching"),
    "forward": ("forward",),
    "summary": ("backward", "special"),
}
# What may stand between the start of a line and its first word: blanks, then marks of a list, of
# a heading or of a quotation, each with a blank behind it, then bold face.
LIST_MARK = r"(?:[*+\-•◦▪‣–—·#>]+|\(?(?:\d{1,3}|[A-Za-z])[.):]|\(\d{1,3}\)|\d{1,3}、)"
_BEFORE = re.compile(rf"([^\S\n]*(?:{LIST_MARK}[^\S\n]+)*)(?:\*{{1,3}}|_{{1,3}})?")
LONGEST_BEFORE = 60  # characters
SHIPPED: dict[str, str] = {name: f"{name}.json" for name in LANGUAGES[1:]}
SHIPPED["en"] = "attnpo.json"  # the published list
PLACES = ("paper", "sentences")
# A sentence starts behind these, and quotes or blanks.
_SENTENCE_START = re.compile(r"(?:^|[\n。！？｡!?；;…])[\s\"'“”‘’「」『』（）()*]*\Z")
# A letter of a script that puts spaces between words.
_LETTER = re.compile(rf"(?![{UNSPACED}])[^\W\d_]")


@dataclass(frozen=True)
class Phrases:
    """Phrases by kind, from a JSON file `{"name", "source", "kinds": {kind: [phrase, …]}}`.

    `places` says where a phrase counts: by the rules of the paper, which tell the start of a
    sentence by its capital; or at the start of `sentences`, for scripts without capitals.
    """

    name: str
    kinds: dict[str, str]  # phrase → kind
    file_hash: str
    places: str = "paper"
    language: str | None = None

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
        if (places := content.get("places", PLACES[0])) not in PLACES:
            raise DataError(f"{path}: {unknown('places', places, PLACES)}")
        name, language = str(content.get("name", path.stem)), content.get("language")
        return cls(name, kinds, file_hash(path), places, str(language) if language else None)

    @classmethod
    def shipped(cls, language: str = "en") -> Phrases:
        """The list that comes with kfh for a language; the published one is English."""
        return cls.load(data_path("phrases", SHIPPED[language]))

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """One alternation, longest phrase first, so that the longest match wins."""
        longest_first = sorted(self.kinds, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    @cached_property
    def loose_pattern(self) -> re.Pattern[str]:
        """As `pattern`, but with a straight or a curly apostrophe, and ending with a word."""
        longest_first = sorted(self.kinds, key=len, reverse=True)
        return re.compile("|".join(map(_as_words, longest_first)))

    @cached_property
    def loose_kinds(self) -> dict[str, str]:
        """Kinds of the phrases, all with straight apostrophes."""
        return {_straight(phrase): kind for phrase, kind in self.kinds.items()}

    def counted(
        self, text: str, openings: str = "strict"
    ) -> Iterator[tuple[re.Match[str], str, int]]:
        """The phrases that count in a text, left to right, not overlapping.

        A forward or backward phrase counts only at the start of a line, but not of the text; the
        others anywhere. A list for `sentences` counts at the start of sentences alone.

        Args:
            text: a reasoning.
            openings: `strict`: the paper's rules, by which a line starts right behind a newline,
                and a phrase may be a part of a word. `loose`: blanks and marks of a list may
                stand before it, its apostrophe may be curly, and it is made of whole words.

        Yields:
            The match, the kind of its phrase, and where a step that it opens starts: at the
            phrase, or with what stands before it on its line (`loose`).
        """
        if self.places == "sentences":
            for match in self.pattern.finditer(text):
                start, kind = match.start(), self.kinds[match.group()]
                opens = _SENTENCE_START.search(text, max(0, start - LONGEST_BEFORE), start)
                if opens and (kind not in ("forward", "backward") or text[:start].strip()):
                    yield match, kind, start
            return
        if openings == "strict":
            for match in self.pattern.finditer(text):
                kind, start = self.kinds[match.group()], match.start()
                if kind not in ("forward", "backward") or text[start - 1 : start] == "\n":
                    yield match, kind, start
            return
        for match in self._whole_words(text):
            kind = self.loose_kinds[_straight(match.group())]
            line = line_start(text, match.start())
            if kind not in ("forward", "backward") or (line is not None and text[:line].strip()):
                yield match, kind, match.start() if line is None else line

    def _whole_words(self, text: str) -> Iterator[re.Match[str]]:
        """The matches of `loose_pattern` that do not begin inside a word."""
        # Looked at here, since a look behind each place of the text would take 100 times as long.
        place = 0
        while match := self.loose_pattern.search(text, place):
            start = match.start()
            if start and _letter(text[start]) and _letter(text[start - 1]):
                place = start + 1
            else:
                place = match.end()
                yield match


def line_start(text: str, place: int) -> int | None:
    """Where the line of a place starts, if blanks and marks of a list alone lie between."""
    start = text.rfind("\n", max(0, place - LONGEST_BEFORE), place) + 1
    if start == 0 and place > LONGEST_BEFORE:
        return None
    return start if _BEFORE.fullmatch(text, start, place) else None


def _straight(phrase: str) -> str:
    return phrase.replace("’", "'")


def _letter(char: str) -> bool:
    return _LETTER.match(char) is not None


def _as_words(phrase: str) -> str:
    """A phrase as an expression that takes both apostrophes and does not end inside a word."""
    after = f"(?!{_LETTER.pattern})" if _letter(phrase[-1]) else ""
    return re.escape(_straight(phrase)).replace("'", "['’]") + after


def opening(text: str, step: Step, phrases: Phrases) -> tuple[str | None, str | None]:
    """Kind of a step and the phrase that it opens with, None where it opens with none.

    A segmenter's own kind stands, but for branching, which it counts as confused. Blanks and marks
    of a list before the phrase are skipped.

    Example:
        >>> opening("So. Wait, no", Step(4, 12), Phrases("p", {"Wait": "confused"}, ""))
        ('confused', 'Wait')
    """
    cut = text[step.start : step.end].lstrip()
    match = phrases.pattern.match(cut) if step.kind else None  # what cut it there, by the paper
    kind = phrases.kinds[match.group()] if match else None
    if match is None:
        before = _BEFORE.match(cut)
        # `**` may be a part of the phrase.
        places = (0, before.end(1), before.end()) if before else (0,)
        found = (phrases.loose_pattern.match(cut, place) for place in places)
        match = next(filter(None, found), None)
        kind = phrases.loose_kinds[_straight(match.group())] if match else None
    phrase = match.group() if match else None
    if step.kind is not None and not (step.kind == "confused" and kind == "branching"):
        kind = step.kind
    return kind, phrase


def phrase_counts(text: str, phrases: Phrases | None = None) -> dict[str, int]:
    """How often the phrases of each group stand in a text, counted as in segmentation.

    Example:
        >>> phrase_counts("First, 2. Wait, no.\\nSo 3. Alternatively, 4.")
        {'confused': 2, 'forward': 0, 'summary': 1}
    """
    phrases = phrases or Phrases.shipped()
    group = {kind: name for name, kinds in PHRASE_GROUPS.items() for kind in kinds}
    counts = dict.fromkeys(PHRASE_GROUPS, 0)
    for _, kind, _ in phrases.counted(text):
        counts[group[kind]] += 1
    return counts
