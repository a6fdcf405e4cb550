"""Cut the reasoning of a trace into steps that tile it: no gap, no overlap.

The segmenter `attnpo` (paper section 3, docs/PAPER.md section 1), in the numbers used below:
1. Find all phrases, left to right, not overlapping, at each place the longest that matches.
2. A forward or backward phrase counts only right after a newline; the others count anywhere.
3. Cut at every phrase that counts, and at 0. A piece has the kind of its opening phrase.
4. Merge pieces shorter than `min_chars`.
Phrases of other languages come with kfh, too (`--phrases`); of a script without capitals or spaces
a phrase counts at the start of a sentence, whatever its kind (2), and a character for 2.5 (4).
With `openings="loose"` (1) takes whole words and both apostrophes, and (2) lets blanks and marks of
a list stand before the phrase, with which the step then begins: for indented or bulleted text.
`line`, `sentence` and `paragraph` cut at a pattern instead of (1–3) and do not merge; no step of
theirs is blank. `sentencex` does so where the library of that name sees a sentence end: it knows
abbreviations, in the text's own language.

A segmenter of your own is a function `text → list[Step]`, given as `segmenter=cut`, or by name as
`--segmenter module:cut`. Its name and the hash of its source go into the headers of what is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from probing.choices import LANGUAGES, MIN_CHARS, OPENINGS
from probing.errors import ConfigError, DataError
from probing.files.headers import data_path, load_part, part_json, text_hash
from probing.settings import unknown
from probing.traces.file import Step, Trace
from probing.traces.marks import BLANK_REASONING
from probing.traces.phrases import LIST_MARK, SHIPPED, Phrases
from probing.traces.text import language_of

SegmentFunction = Callable[[str], Sequence[Step]]

DENSE = 2.5  # characters that one of a script without spaces stands for
SHORT_TAIL = 15  # a backward piece with at most so many characters beside its phrase goes right

LIBRARY = "sentencex"

_NEWLINE = r"(?:\r\n|[\n\r\x85\u2028\u2029])"
_BLANK = r"[^\S\n\r\x85\u2028\u2029]"  # on a line: also a space that does not break, or a wide one
_CLOSING = "\"')\\]”’」』）"  # quotes and brackets that close behind a sentence
# Each pattern matches what ends a step; the step keeps what it matched.
_ENDS = {
    "line": re.compile(rf"{_NEWLINE}(?:{_BLANK}*{_NEWLINE})*"),
    "paragraph": re.compile(rf"{_NEWLINE}{_BLANK}*{_NEWLINE}\s*|\u2029\s*"),
    # A full stop inside a number or an abbreviation of one letter ends no sentence.
    "sentence": re.compile(
        rf"(?:(?<!\b[A-Za-z])[.!?]+[{_CLOSING}]*\s+(?=\S)|[。！？｡]+[{_CLOSING}]*\s*|{_NEWLINE}\s*)"
    ),
}
_NUMBERED = rf"(?:{LIST_MARK}|\d{{1,3}}(?:\.\d+)*\.|[ivxIVX]+\.)"
# What is no step by itself, but stands before one: of a sentence the number in a list, too.
_NO_STEP = {
    "line": re.compile(r"\s*"),
    "paragraph": re.compile(r"\s*"),
    "sentence": re.compile(rf"\s*(?:{_NUMBERED}{_BLANK}+)*(?:{_NUMBERED})?"),
}


@dataclass(frozen=True)
class Segmenter:
    """How steps are cut; stored in whatever is made from them.

    Args:
        name: `attnpo`, `line`, `sentence`, `paragraph` or `sentencex`.
        min_chars: pieces shorter than this are merged (`attnpo` only).
        phrases: a phrase file of the user's, or a language (`attnpo` only); default the published
            list, which is English. `auto`: of each text its own language.
        function: a segmenter of the user's, `text → list[Step]`; then `name` is `module:name`.
        openings: where a phrase opens a step, `strict` (the paper) or `loose` (`attnpo` only).
    """

    name: str = "attnpo"
    min_chars: int = MIN_CHARS
    phrases: str | None = None
    function: SegmentFunction | None = None
    openings: str = "strict"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: no such segmenter, or a setting that it does not have.
        """
        if self.openings not in OPENINGS:
            raise ConfigError(unknown("openings", self.openings, OPENINGS))
        if self.openings != "strict" and self.name != "attnpo":
            raise ConfigError(
                f"openings {self.openings} are for phrases (attnpo); the segmenter {self.name} "
                "knows none"
            )
        if self.function is None and self.name not in ("attnpo", *_ENDS, LIBRARY):
            known = [
                "attnpo",
                *_ENDS,
                LIBRARY,
                "a phrase file (*.json)",
                "a function (module:name)",
            ]
            raise ConfigError(unknown("segmenter", self.name, known))
        if self.name == LIBRARY and not find_spec(LIBRARY):
            raise ConfigError(f"the segmenter {LIBRARY} needs: pip install 'kfh[sentences]'")
        if self.min_chars < 0:
            raise ConfigError(f"min_chars must not be negative, is {self.min_chars}")

    @classmethod
    def parse(
        cls,
        text: str | SegmentFunction,
        min_chars: int = MIN_CHARS,
        openings: str = "strict",
    ) -> Segmenter:
        """A segmenter by its name, a phrase file (`*.json`), the language of one, or a function.

        Raises:
            ConfigError: an unknown name, or `module:name` that is no function; openings of a
                segmenter without phrases.
        """
        if not isinstance(text, str):
            name = part_json(text)["name"]
            return cls(name, min_chars, function=text, openings=openings)
        if text.endswith(".json") or text in LANGUAGES:
            return cls("attnpo", min_chars, None if text == "en" else text, openings=openings)
        function = load_part(text) if ":" in text else None
        return cls(text, min_chars, function=function, openings=openings)

    @property
    def phrase_path(self) -> Path:
        """The phrase file in use; of `auto` that of the published list."""
        if self.phrases and self.phrases not in LANGUAGES:
            return Path(self.phrases)
        return data_path("phrases", SHIPPED.get(self.phrases or "en", SHIPPED["en"]))

    def phrases_of(self, text: str) -> Phrases:
        """The phrases that cut this text."""
        if self.phrases == "auto":
            return Phrases.shipped(language_of(text))
        return Phrases.load(self.phrase_path)

    @property
    def phrases_hash(self) -> str:
        """The hash of the phrase file; of `auto` one of all that are shipped."""
        if self.phrases == "auto":
            return text_hash(" ".join(Phrases.shipped(name).file_hash for name in SHIPPED))
        return Phrases.load(self.phrase_path).file_hash

    def to_json(self) -> dict[str, Any]:
        """Name and settings, with the hash of phrases or function, for headers and head sets."""
        if self.function:
            return {**part_json(self.function), "name": self.name}
        if self.name == LIBRARY:
            return {"name": self.name, "version": version(LIBRARY)}
        if self.name != "attnpo":
            return {"name": self.name}
        return {
            "name": self.name,
            "min_chars": self.min_chars,
            "phrases": self.phrases,
            "phrases_hash": self.phrases_hash,
            # Of the paper's rules older files say nothing.
            **({} if self.openings == "strict" else {"openings": self.openings}),
        }

    def cut(self, text: str) -> list[Step]:
        """Steps that tile `text`; see `segment`."""
        if not text:
            return []
        if self.function:
            return _checked(self.function(text), text, self.name)
        if self.name in _ENDS:
            ends = (match.end() for match in _ENDS[self.name].finditer(text))
            return _cut_at_ends(text, ends, _NO_STEP[self.name])
        if self.name == LIBRARY:
            return _cut_at_ends(text, _sentence_ends(text), _NO_STEP["sentence"])
        phrases, minimum = self.phrases_of(text), self.min_chars
        if phrases.places == "sentences":
            minimum = math.ceil(minimum / DENSE)
        pieces = _merge_short(_cut_at_phrases(text, phrases, self.openings), minimum)
        return [Step(p.start, p.end, kind=p.kind) for p in pieces]

    def cut_reasoning(self, text: str) -> list[Step]:
        """As `cut`, of all that stands before the end of the reasoning: an empty block of it, that
        is blanks, or a start mark and blanks, has no step.
        """
        return [] if BLANK_REASONING.fullmatch(text) else self.cut(text)


def segment(
    text: str,
    segmenter: str | Segmenter | SegmentFunction = "attnpo",
    *,
    min_chars: int = MIN_CHARS,
    openings: str = "strict",
) -> list[Step]:
    """Cut a reasoning text into steps.

    Args:
        text: what stands before `</think>`.
        segmenter: a name (`attnpo`, `line`, `sentence`, `paragraph`, `sentencex`), the path
            of a phrase file, a `Segmenter`, or a function `text → list[Step]`.
        min_chars: minimum length of a step in characters (`attnpo` only).
        openings: where a phrase opens a step, `strict` or `loose` (`attnpo` only).

    Returns:
        Steps whose character offsets tile `text`: the first starts at 0, each starts where the
        one before ends, the last ends at `len(text)`. An empty text has none.

    Raises:
        ConfigError: unknown segmenter.
        DataError: a phrase file that cannot be used, or steps of a function that do not tile.

    Example:
        >>> [s.start for s in segment("One. Wait, two?", min_chars=0)]
        [0, 5]
    """
    if not isinstance(segmenter, Segmenter):
        segmenter = Segmenter.parse(segmenter, min_chars, openings)
    return segmenter.cut(text)


def segment_trace(trace: Trace, segmenter: Segmenter) -> Trace:
    """The trace with new steps; labels of its old steps are carried over (`carry_labels`)."""
    steps = segmenter.cut_reasoning(trace.response[: trace.reasoning_end])
    return trace.with_steps(carry_labels(trace.steps, steps), segmenter=segmenter.to_json())


def carry_labels(old: tuple[Step, ...], new: list[Step]) -> list[Step]:
    """Label new steps by the label that covers most of their labelled characters.

    A tie, or no labelled character, leaves a step without a label. Kinds and offsets stay.
    """
    labelled = []
    first = 0
    for step in new:
        while first < len(old) and old[first].end <= step.start:
            first += 1
        cover = {"essential": 0, "redundant": 0}
        index = first
        while index < len(old) and old[index].start < step.end:
            label = old[index].label
            if label is not None:
                shared = min(old[index].end, step.end) - max(old[index].start, step.start)
                cover[label] += shared
            index += 1
        essential, redundant = cover["essential"], cover["redundant"]
        label = "essential" if essential > redundant else "redundant"
        labelled.append(
            Step(step.start, step.end, None if essential == redundant else label, step.kind)
        )
    return labelled


def _checked(steps: Sequence[Step], text: str, name: str) -> list[Step]:
    """The steps of a function of the user's, which must tile the text as those of any other."""
    end = 0
    for number, step in enumerate(steps):
        if not isinstance(step, Step) or not end == step.start < step.end:
            raise DataError(
                f"the segmenter {name} gave step {number} as {step!r:.80}; steps are "
                f"probing.Step(start, end), each from where the one before ends, here {end}"
            )
        end = step.end
    if end != len(text):
        raise DataError(f"the segmenter {name} ends at {end} of {len(text)} characters")
    return list(steps)


def _cut_at_ends(text: str, ends: Iterable[int], no_step: re.Pattern[str]) -> list[Step]:
    """Steps between the ends; what is no step goes to the one behind it, at the end before it."""
    cuts = [0]
    for end in ends:
        if cuts[-1] < end < len(text) and not no_step.fullmatch(text, cuts[-1], end):
            cuts.append(end)
    if len(cuts) > 1 and not text[cuts[-1] :].strip():
        cuts.pop()
    return [Step(start, end) for start, end in pairwise([*cuts, len(text)])]


def _sentence_ends(text: str) -> Iterator[int]:
    """Where sentences end by the library sentencex, in the language of the text; a line break ends
    one, too. At some line breaks, and at blanks of several bytes, the library panics."""
    from sentencex import get_sentence_boundaries

    language, start = language_of(text), 0
    for line in re.split(f"((?:{_NEWLINE})+)", text):
        if line.strip():
            for found in get_sentence_boundaries(language, re.sub(r"[^\S\x00-\x7f]", " ", line)):
                yield start + found["end_index"]
        start += len(line)


@dataclass
class _Piece:
    start: int
    end: int
    kind: str  # confused, forward, backward or special
    phrase: int  # length of the phrase that opens it

    @property
    def size(self) -> int:
        return self.end - self.start


def _cut_at_phrases(text: str, phrases: Phrases, openings: str = "strict") -> list[_Piece]:
    """Pieces from phrase to phrase (1–3); branching counts as confused."""
    pieces = [_Piece(0, len(text), "forward", 0)]
    for match, kind, start in phrases.counted(text, openings):
        if openings == "loose" and not text[:start].strip():
            start = 0
        start = max(start, pieces[-1].start)
        kind = "confused" if kind == "branching" else kind
        piece = _Piece(start, len(text), kind, match.end() - start)
        if start == pieces[-1].start:
            pieces.pop()
        else:
            pieces[-1].end = start
        pieces.append(piece)
    return pieces


def _side_to_merge(pieces: list[_Piece], index: int) -> int:
    """Where the short piece goes (4): −1 to its left, +1 to its right, 0 nowhere."""
    piece = pieces[index]
    after = pieces[index + 1] if index + 1 < len(pieces) else None
    left = -1 if index > 0 else 0
    right = 1 if after is not None and after.kind != "special" else 0
    if piece.kind == "special":
        return 0
    if piece.kind == "confused":
        return right
    if after is not None and after.kind == "confused" and index + 2 < len(pieces):
        return left
    if piece.kind == "forward" or piece.size - piece.phrase <= SHORT_TAIL:
        return right
    return left


def _merge_short(pieces: list[_Piece], min_chars: int) -> list[_Piece]:
    """Merge pieces shorter than `min_chars`, left to right (4); the left part names the kind."""
    pieces = [*pieces]
    index = 0
    while index < len(pieces):
        side = 0 if pieces[index].size >= min_chars else _side_to_merge(pieces, index)
        if side == 0:
            index += 1
            continue
        index = index + min(side, 0)  # the left one of the two, looked at again
        pieces[index].end = pieces.pop(index + 1).end
    return pieces
