"""How a measured number is written for people, once for every reader: decimals, sign, interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NONE = "–"  # stands where there is no number
MOST = 8  # decimals


def exists(value: Any) -> bool:
    """Whether there is a number at all: JSON has null, tables have not-a-number."""
    return value is not None and value == value


def number(value: Any, digits: int = 3, signed: bool = False) -> str:
    """A number with so many decimals, or the sign for none; never a negative zero.

    Example:
        >>> number(1234.5, 1), number(-0.0001), number(0.25, 2, signed=True), number(None)
        ('1,234.5', '0.000', '+0.25', '–')
    """
    if not exists(value):
        return NONE
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    return text if text.strip("+-0.,") else text.lstrip("+-")


def plural(count: int, noun: str) -> str:
    """A number of things in words. Example: `plural(1, "seed")` is `1 seed`, of 2 `2 seeds`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def interval(low: Any, high: Any, digits: int = 3, signed: bool = False) -> str:
    """The two ends of an interval; empty where one is not known.

    Example:
        >>> interval(0.591, 0.816), interval(-0.2, -0.05, 2)
        ('0.591–0.816', '-0.20 to -0.05')
    """
    if not (exists(low) and exists(high)):
        return ""
    ends = [number(end, digits, signed) for end in (low, high)]
    return (" to " if any(end[0] in "+-" for end in ends) else "–").join(ends)


@dataclass(frozen=True)
class Number:
    """A cell: a measured value, with its 95 % interval where it has one.

    Args:
        digits: decimals. A difference (`signed`) whose interval excludes zero has as many as it
            takes to show that.
        bound: `≥` or `≤` where the value is the least or the most that it can be, as is then
            the end of its interval on that side, the only one that is known.

    Example:
        >>> str(Number(0.714, 0.591, 0.816)), str(Number(-5, -9, 1, digits=1, signed=True))
        ('0.714 (0.591–0.816)', '-5.0 (-9.0 to +1.0)')
        >>> str(Number(4.53, 3.17, None, digits=1, bound="≥"))
        '≥ 4.5 (≥ 3.2)'
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    digits: int = 3
    signed: bool = False
    bound: str = ""

    @classmethod
    def of(
        cls,
        estimate: Any,
        digits: int = 3,
        signed: bool = False,
        scale: float = 1,
        bound: str = "",
    ) -> Number:
        """Of an `Estimate`, of a mapping with `value`, `low`, `high`, or of None.

        Args:
            scale: what all three are multiplied by, such as 100 for points.
        """
        if estimate is None:
            return cls(None)
        fields = estimate if isinstance(estimate, Mapping) else vars(estimate)
        value, low, high = (
            scale * fields[key] if exists(fields.get(key)) else None
            for key in ("value", "low", "high")
        )
        return cls(value, low, high, digits, signed, bound)

    @classmethod
    def column(cls, row: Any, name: str, digits: int = 3, signed: bool = False) -> Number:
        """Of a row that holds `NAME`, `NAME_low` and `NAME_high`."""
        return cls(row[name], row[f"{name}_low"], row[f"{name}_high"], digits, signed)

    @property
    def decimals(self) -> int:
        """The decimals that are shown."""
        if not (self.signed and exists(self.low) and exists(self.high)):
            return self.digits
        assert self.low is not None and self.high is not None
        nearest = max(self.low, -self.high)  # to zero; negative where the interval holds it
        if round(nearest, MOST) <= 0:  # a bound that is zero but for rounding is zero
            return self.digits
        return next((d for d in range(self.digits, MOST) if round(nearest, d)), MOST)

    @property
    def text(self) -> str:
        """The value alone."""
        return self._as_bound(number(self.value, self.decimals, self.signed))

    @property
    def interval(self) -> str:
        """The interval in brackets; empty where there is none."""
        if self.bound:
            end = self.low if self.bound == "≥" else self.high
            ends = self._as_bound(number(end, self.decimals, self.signed)) if exists(end) else ""
        else:
            ends = interval(self.low, self.high, self.decimals, self.signed)
        return f"({ends})" if ends and exists(self.value) else ""

    def _as_bound(self, text: str) -> str:
        return f"{self.bound} {text}".lstrip()

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".rstrip()
