"""What a reader saw and what a cut did, in counts: no trace is dropped or changed in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from probing.errors import DataError
from probing.files.reading import BadLine

FIRST = 3  # traces that a remark names
MANY_SINGLE = 0.2  # share of traces of one step from which on the cut is doubted
ONE_KIND = 0.9  # share of steps of one kind from which on it is
# What to try where a segmenter cuts too little.
OTHERS = {
    "attnpo": "--openings loose, which cuts indented and bulleted text too",
    "attnpo loose": "--segmenter line, sentence or paragraph, or phrases of your own (*.json)",
    "paragraph": "--segmenter line or sentence",
    "line": "--segmenter sentence",
    "sentence": "--segmenter line",
}


@dataclass
class CutReport:
    """What a cut did: how many steps the traces have, and of which kinds.

    Example:
        >>> print(CutReport.of([["forward", "confused"], ["forward"]]))
        2 traces cut: 1.5 steps a trace (median; 1–2), 1 of one step; 67 % forward, 33 % confused
    """

    segmenter: dict[str, Any] | None = None  # as in headers
    sizes: Counter[int] = field(default_factory=Counter)  # number of steps → number of traces
    kinds: Counter[str] = field(default_factory=Counter)  # of steps that have one
    # Language, not that of the phrases → traces of one step.
    other: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, traces: Iterable[Any], segmenter: dict[str, Any] | None = None) -> CutReport:
        """Of traces with their steps, or of the kinds of these.

        Args:
            traces: `Trace` objects, cut by anything, or a list of kinds of each.
            segmenter: as in headers; decides what is proposed where the cut is doubted.
        """
        report = cls(segmenter)
        for each in traces:
            kinds = [step.kind for step in each.steps] if hasattr(each, "steps") else each
            report.add(kinds)
        return report

    def add(self, kinds: Sequence[str | None], other: str | None = None) -> None:
        """Count a trace by the kinds of its steps.

        Args:
            kinds: of the steps.
            other: its language, where no phrase cut it and the phrases are of another.
        """
        self.sizes[len(kinds)] += 1
        self.other.update([other] if other else [])
        self.kinds.update(kind for kind in kinds if kind is not None)

    @property
    def steps(self) -> int:
        """The number of steps."""
        return sum(size * count for size, count in self.sizes.items())

    def __str__(self) -> str:
        """One line; empty where nothing was cut."""
        if not self.sizes:
            return ""
        total, least, most = self.sizes.total(), min(self.sizes), max(self.sizes)
        few = "".join(
            f", {self.sizes[size]} {name}"
            for size, name in ((1, "of one step"), (0, "without a step"))
            if self.sizes[size]
        )
        said = self.kinds.total()
        kinds = ", ".join(f"{n / said:.0%} {k}".replace("%", " %") for k, n in self._by_share())
        return (
            f"{total} traces cut: {median(self.sizes.elements()):g} steps a trace (median; "
            f"{least}–{most}){few}{'; ' if kinds else ''}{kinds}"
        )

    @property
    def warnings(self) -> list[str]:
        """Why the cut is doubted, with the option to try; empty where it is not."""
        reasons, cut = [], self.sizes.total() - self.sizes[0]
        if self.other:
            seen = ", ".join(f"{count} in {language}" for language, count in self.other.items())
            return [
                f"{self.sizes[1]} of {cut} traces are one step: is this the right phrase file? "
                f"They look to be {seen}: try --phrases auto"
            ]
        if cut and self.sizes[1] > MANY_SINGLE * cut:
            reasons.append(f"{self.sizes[1]} of {cut} traces were not cut (one step)")
        kind, count = next(iter(self._by_share()), ("", 0))
        if count and count > ONE_KIND * self.kinds.total():
            reasons.append(f"{count} of {self.kinds.total()} steps are of one kind ({kind})")
        about = self.segmenter or {}
        name = " ".join(filter(None, (about.get("name"), about.get("openings"))))
        other = OTHERS.get(name, "another --segmenter")
        return [f"{' and '.join(reasons)}: try {other}"] if reasons else []

    def _by_share(self) -> list[tuple[str, int]]:
        return self.kinds.most_common()

    def to_json(self) -> dict[str, Any]:
        """For headers and run files."""
        sizes = {str(size): count for size, count in sorted(self.sizes.items())}
        other = {"other": dict(self.other)} if self.other else {}
        return {"segmenter": self.segmenter, "sizes": sizes, "kinds": dict(self.kinds), **other}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> CutReport:
        """From what `to_json` gave."""
        sizes = Counter({int(size): count for size, count in content["sizes"].items()})
        kinds, other = Counter(content["kinds"]), Counter(content.get("other", {}))
        return cls(content["segmenter"], sizes, kinds, other)


@dataclass
class ReadReport:
    """What a reader saw: lines used, lines left out by reason, odd traces, what the cut did."""

    read: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    first_bad: dict[str, str] = field(default_factory=dict)
    remarked: Counter[str] = field(default_factory=Counter)  # traces that are used, but odd
    first_remarked: dict[str, list[str]] = field(default_factory=dict)
    cut: CutReport = field(default_factory=CutReport)  # of steps that were cut anew

    def note(self, kind: str, message: str) -> None:
        """Count a line left out, and keep the first messages of its kind."""
        self.bad[kind] += 1
        if self.bad[kind] <= FIRST:
            before = f"{self.first_bad[kind]}; " if kind in self.first_bad else ""
            self.first_bad[kind] = before + message

    def bad_json(self) -> dict[str, Any]:
        """The bad lines as they stand in a header; empty where there is none."""
        return {"bad_lines": dict(self.bad), "first_bad_lines": self.first_bad} if self.bad else {}

    def bad_line(self, error: BadLine, where: str, skip: bool, hint: str = "") -> None:
        """Count a bad line, or refuse it.

        Args:
            error: what is wrong with it.
            where: file, line and what else names it.
            skip: whether the reader goes on after it.
            hint: a sentence on how to mend it, with a blank behind.

        Raises:
            DataError: it does not.
        """
        if not skip:
            raise DataError(f"{where}: {error}. {hint}Mend it, or pass --skip-bad.") from error
        self.note(error.kind, f"{where}: {error}")

    def remark(self, what: str, trace_id: str) -> None:
        """Count a trace that is used but odd, and keep the first ids of its kind."""
        self.remarked[what] += 1
        named = self.first_remarked.setdefault(what, [])
        if len(named) < FIRST:
            named.append(trace_id)

    def remarks(self) -> list[str]:
        """What is odd, a sentence a kind: how many traces, and the first of them."""
        return [
            f"{count} traces ({', '.join(self.first_remarked[what])}"
            f"{', …' if count > FIRST else ''}) {what}"
            for what, count in self.remarked.items()
        ]
