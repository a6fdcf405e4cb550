"""How traces and numbers are packed into a page: offsets of UTF-16, codes of bytes, safe JSON.

Everything is undone in data.js, which has the same constants by way of the page's index.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt


@dataclass(frozen=True)
class Scale:
    """Codes of ratios S / S_base on a logarithmic scale: code 1 is 2^low, the last is 2^high.

    Args:
        low, high: exponents of two; what lies beyond is set to the nearest end.
        kind: of the codes, `uint8` or `uint16`. Code 0 stands for what is not a number.
    """

    low: float
    high: float
    kind: str

    @property
    def last(self) -> int:
        """The largest code."""
        return int(np.iinfo(self.kind).max)

    @property
    def error(self) -> float:
        """Largest relative error of a ratio within the scale: half a code.

        Example:
            >>> round(Scale(0, 2, "uint8").error, 4)
            0.0027
        """
        return float(2 ** ((self.high - self.low) / (self.last - 1) / 2) - 1)

    def encode(self, ratios: Float[np.ndarray, "*any"]) -> UInt[np.ndarray, "*any"]:
        """The codes of ratios (no unit, not negative)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            place = (np.log2(ratios) - self.low) / (self.high - self.low)
        codes = 1 + np.rint(np.clip(place, 0, 1) * (self.last - 1))
        return np.where(np.isnan(ratios), 0, codes).astype(self.kind)

    def decode(self, codes: UInt[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
        """The ratios of codes, as data.js computes them."""
        place = (codes.astype(np.float64) - 1) / (self.last - 1)
        return np.where(codes == 0, np.nan, 2 ** (self.low + place * (self.high - self.low)))

    def to_json(self) -> list[float]:
        """What data.js needs to know."""
        return [self.low, self.high, self.last]


STEP_SCALE = Scale(-12, 16, "uint16")  # ± 0.015 %: ranks and two decimals survive
TOKEN_SCALE = Scale(-14, 16, "uint8")  # ± 4.2 %: more than a shade of colour shows


def utf16_offsets(text: str, offsets: Int[np.ndarray, "*any"]) -> Int[np.ndarray, "*any"]:
    """Offsets in code points (Python) as offsets in UTF-16 units (JavaScript).

    A character beyond U+FFFF takes two units.

    Example:
        >>> utf16_offsets("a\\U0001f600b", np.array([0, 1, 2, 3])).tolist()
        [0, 1, 3, 4]
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    astral = np.concatenate([[0], np.cumsum(points > 0xFFFF)])
    found: np.ndarray = offsets + astral[offsets]
    return found


@dataclass(frozen=True, eq=False)
class Cells:
    """What is shaded as one: a token, or tokens that make one character together."""

    spans: Int[np.ndarray, "cell 2"]  # characters of the response, half open, ascending
    first: Int[np.ndarray, "cell"]  # its first token, counted in the whole sequence
    counts: Int[np.ndarray, "cell"]  # its number of tokens

    def means(self, values: Float[np.ndarray, "*head token"]) -> Float[np.ndarray, "*head cell"]:
        """The mean over each cell's tokens, so that the unit stays that of one token."""
        if not len(self.first):
            return np.zeros((*values.shape[:-1], 0))
        total = np.concatenate(
            [np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1, dtype=np.float64)], -1
        )
        sums: np.ndarray = total[..., self.first + self.counts] - total[..., self.first]
        return sums / self.counts


def token_cells(offsets: Int[np.ndarray, "token 2"], length: int) -> Cells:
    """Cells of a response from the offsets of the whole sequence's tokens.

    Args:
        offsets: characters of each token, counted from the response's first; tokens of the prompt
            lie at or below 0, and never decrease.
        length: of the response in characters.

    Example:
        >>> offsets = np.array([[-3, 0], [0, 2], [2, 3], [2, 3], [3, 3]])  # two bytes make one
        >>> cells = token_cells(offsets, 3)
        >>> cells.spans.tolist(), cells.first.tolist(), cells.counts.tolist()
        ([[0, 2], [2, 3]], [1, 2], [1, 2])
    """
    clipped = np.clip(offsets, 0, length)
    # Tokens of the prompt, or without a character of their own, are shown nowhere.
    tokens = np.flatnonzero(clipped[:, 1] > clipped[:, 0])
    if not len(tokens):
        none = np.zeros(0, dtype=np.int64)
        return Cells(np.zeros((0, 2), dtype=np.int64), none, none)
    starts, ends = clipped[tokens].T
    reached = np.maximum.accumulate(ends)
    begins = np.flatnonzero(np.concatenate([[True], starts[1:] >= reached[:-1]]))
    lasts = np.concatenate([begins[1:], [len(tokens)]]) - 1
    first = tokens[begins]
    return Cells(
        np.stack([starts[begins], reached[lasts]], axis=1), first, tokens[lasts] + 1 - first
    )


def pack_cells(text: str, cells: Cells) -> str:
    """The cells as base64 of variable-length numbers, about a byte a token.

    Each cell is 4 · length + [is there a gap before it] + 2 · [has it several tokens], then the
    gap and the number of tokens where there is one; in UTF-16 units, seven bits a byte, the low
    ones first, the high bit set on all bytes but a number's last.
    """
    units = utf16_offsets(text, cells.spans)
    gaps = units[:, 0] - np.concatenate([[0], units[:-1, 1]])
    several = cells.counts > 1
    heads = 4 * (units[:, 1] - units[:, 0]) + (gaps > 0) + 2 * several
    table = np.stack([heads, gaps, cells.counts], axis=1)
    present = np.stack([np.ones_like(several), gaps > 0, several], axis=1)
    numbers = table[present]  # row by row
    groups = numbers[:, None] >> (7 * np.arange(5))  # of seven bits; 35 are enough for a text
    more = groups[:, 1:] > 0
    codes = (groups & 127) | np.pad(128 * more, ((0, 0), (0, 1)))
    kept = np.pad(more, ((0, 0), (1, 0)), constant_values=True)
    return base64.b64encode(codes[kept].astype(np.uint8).tobytes()).decode()


def pack_codes(codes: UInt[np.ndarray, "*any"]) -> str:
    """Codes as base64 of their bytes, the low byte first."""
    little = codes.astype(codes.dtype.newbyteorder("<"))
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode()


# Within a <script> only `</script` and `<!--` are special; all of these are escaped, so that no
# parser, of HTML or of JavaScript, finds anything of its own in the text of a trace.
_UNSAFE = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def json_for_html(content: Any) -> str:
    """Compact JSON that can stand in a <script> element whatever its texts hold.

    Example:
        >>> json_for_html({"a": "</script>&"})
        '{"a":"\\\\u003c/script\\\\u003e\\\\u0026"}'
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _UNSAFE.items():  # ten times as fast as str.translate
        text = text.replace(character, escape)
    return text
