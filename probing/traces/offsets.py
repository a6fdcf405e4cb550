"""Offsets of steps that count bytes of UTF-8 or units of UTF-16, as characters."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from probing.choices import OFFSETS
from probing.files.reading import BadLine

Spans = Sequence[tuple[int, int]]
_ENCODING = {"bytes": "utf-8", "utf-16": "utf-16-le"}


def checked_spans(
    spans: Spans, said: Sequence[Any], response: str, unit: str
) -> list[tuple[int, int]]:
    """The offsets of the steps of a trace, in characters.

    Args:
        spans: the offsets as they stand in the line.
        said: what the steps bring as their `text`; what is no text is not looked at.
        response: what the offsets count in.
        unit: what they count.

    Raises:
        BadLine: offsets that are none in this unit, or that do not hold the text which the step
            brings; the unit that fits, if one does, is named.
    """
    texts = [text if isinstance(text, str) else None for text in said]
    try:
        found = to_characters(response, spans, unit)
    except ValueError as error:
        raise BadLine(
            "offsets out of range",
            f"the offsets of its steps are no {unit} ({error}){_option(response, spans, texts)}",
        ) from error
    number = first_misfit(response, found, texts)
    if number is None:
        return found
    start, end = found[number]
    option = _option(response, spans, texts)
    raise BadLine(
        "text of a step not at its offsets",
        f"step {number} brings the text {texts[number]!r:.60}, but its offsets in {unit} hold "
        f"{response[start:end]!r:.60}{option}",
    )


def _option(response: str, spans: Spans, texts: Sequence[str | None]) -> str:
    """What to try: the unit in which all steps hold their texts; empty where nothing is known."""
    units = fitting_units(response, spans, texts) if any(texts) else []
    return f"; they fit in {units[0]}: --offsets {units[0]}" if units else ""


def to_characters(text: str, spans: Spans, unit: str) -> list[tuple[int, int]]:
    """Spans that count `unit` as spans that count characters of the text.

    Raises:
        ValueError: an offset leaves the text, or stands inside a character.

    Example:
        >>> to_characters("é = 1", [(0, 3), (3, 6)], "bytes")
        [(0, 2), (2, 5)]
    """
    if unit == "characters":
        return [(start, end) for start, end in spans]
    size = 1 if unit == "bytes" else 2
    places = [0, *accumulate(len(c.encode(_ENCODING[unit])) // size for c in text)]

    def character(offset: int) -> int:
        place = bisect_left(places, offset)
        if not 0 <= offset <= places[-1]:
            raise ValueError(f"{offset} leaves the text, which has {places[-1]} {unit}")
        if places[place] != offset:
            raise ValueError(f"{offset} {unit} from the start stands inside a character")
        return place

    return [(character(start), character(end)) for start, end in spans]


def fitting_units(text: str, spans: Spans, texts: Sequence[str | None]) -> list[str]:
    """The units in which every span holds the text that is said to be in it, but for blanks.

    Args:
        text: what the offsets count in.
        spans: the offsets.
        texts: of the spans; None where nothing is said.
    """
    return [unit for unit in OFFSETS if _fits(text, spans, texts, unit)]


def first_misfit(text: str, spans: Spans, texts: Sequence[str | None]) -> int | None:
    """The first span, in characters, that does not hold what is said; None where all do."""
    for place, ((start, end), said) in enumerate(zip(spans, texts, strict=True)):
        if said is not None and text[start:end].split() != said.split():
            return place
    return None


def _fits(text: str, spans: Spans, texts: Sequence[str | None], unit: str) -> bool:
    try:
        return first_misfit(text, to_characters(text, spans, unit), texts) is None
    except ValueError:
        return False
