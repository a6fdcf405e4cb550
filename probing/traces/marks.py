"""The marks of a reasoning: the styles of known models, which mark counts, what is odd.

A style that is not here needs nothing but `--think-end`; those that are here are proposed where a
file has no such mark as it is read with.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from probing.choices import END_AT, THINK_END
from probing.errors import ConfigError, DataError
from probing.settings import unknown


@dataclass(frozen=True)
class Style:
    """How models of a kind mark their reasoning; no `start` where none is sure to be a mark."""

    name: str
    start: str
    end: str


# Where several fit a file equally often, the first of them is proposed.
STYLES = (
    Style("DeepSeek-R1, Qwen 3, QwQ", "<think>", THINK_END),
    Style("Magistral", "[THINK]", "[/THINK]"),
    Style("OpenThinker, Sky-T1", "<|begin_of_thought|>", "<|end_of_thought|>"),
    Style(
        "gpt-oss",
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    Style("gpt-oss", "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    Style("gpt-oss without its special tokens", "", "assistantfinal"),
    Style("Gemma 4", "<|channel>thought", "<channel|>"),
    Style("Seed-OSS", "<seed:think>", "</seed:think>"),
    Style("Command A Reasoning", "<|START_THINKING|>", "<|END_THINKING|>"),
    Style("Kimi-VL-Thinking", "◁think▷", "◁/think▷"),
    Style("tags in full", "<thinking>", "</thinking>"),
    Style("Granite 3", "Here is my thought process:", "Here is my response:"),
    Style("tags in full", "<reasoning>", "</reasoning>"),
    Style("Apriel", "", "[BEGIN FINAL RESPONSE]"),
    Style("a heading", "", "**Final Answer**"),
)
# The start marks of the styles with an end mark.
STARTS = {
    style.end: tuple(dict.fromkeys(s.start for s in STYLES if s.end == style.end and s.start))
    for style in STYLES
}
# A reasoning that is empty, as a whole: blanks alone, also behind a start mark.
BLANK_REASONING = re.compile(
    rf"\s*(?:(?:{'|'.join(sorted({re.escape(s.start) for s in STYLES if s.start}))})\s*)?"
)
# An answer that is empty, as a whole: blanks, and tokens that end a text or a turn as they stand in
# one that was decoded with them.
BLANK_ANSWER = re.compile(
    r"(?:\s|<\|[^<>|\s]{1,40}\|>|<｜[^<>｜\s]{1,40}｜>|</?s>"
    r"|<(?:eos|bos|pad|endoftext|end_of_turn)>|<turn\|>|\[(?:EOS|eos)\])*"
)


@dataclass(frozen=True)
class EndMark:
    """The text that ends the reasoning, and which one it is where a response has several."""

    text: str = THINK_END
    at: str = "first"

    @classmethod
    def chosen(
        cls,
        said: dict[str, Any] | None,
        text: str | None = None,
        at: str | None = None,
        *,
        anew: bool = False,
        where: str = "the file",
    ) -> EndMark:
        """The mark that a file's header or a head set says, else the default; or what is given.

        Args:
            said: holds `think_end` and `think_end_at`, if it says them.
            text, at: as the user gives them; None: not given.
            anew: steps are cut anew, so that what is given may be another than what is said.
            where: the file, for messages.

        Raises:
            ConfigError: what is given contradicts what is said, or is no choice.
            DataError: what is said is no mark.
        """
        said = said or {}
        found = {"think_end": said.get("think_end"), "think_end_at": said.get("think_end_at")}
        if not all(value is None or isinstance(value, str) for value in found.values()):
            raise DataError(f"{where}: its header gives {found} as the end of the reasoning")
        if found["think_end"] is not None:  # a file that names its mark means the first of them
            found["think_end_at"] = found["think_end_at"] or "first"
        for name, given in (("think_end", text), ("think_end_at", at)):
            if not anew and None not in (given, found[name]) and given != found[name]:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(
                    f"{where}: its header says that the reasoning ends at "
                    f"{found[name]!r}, {option} says {given!r}: its steps are those of the header. "
                    f"Leave {option} out, or cut the steps anew (--segmenter)"
                )
        mark = cls(
            text if text is not None else found["think_end"] or THINK_END,
            at or found["think_end_at"] or "first",
        )
        if not mark.text:
            raise ConfigError("think_end is empty: give the text that ends the reasoning")
        if mark.at not in END_AT:
            raise ConfigError(f"{where}: {unknown('think_end_at', mark.at, END_AT)}")
        return mark

    def to_json(self) -> dict[str, str]:
        """For headers and settings; the default place is left out, as older files do."""
        return {"think_end": self.text} | ({} if self.at == "first" else {"think_end_at": self.at})


def oddities(response: str, mark: EndMark) -> Iterator[str]:
    """What leaves in doubt where the reasoning of a response ends; one phrase each."""
    if response.count(mark.text) > 1:
        other = "last" if mark.at == "first" else "first"
        yield (
            f"hold more than one {mark.text}: the {mark.at} ends the reasoning "
            f"(--think-end-at {other} takes the {other})"
        )
    for start in STARTS.get(mark.text, ()):
        if start in response.lstrip().removeprefix(start):
            yield f"hold {start} inside the reasoning or the answer"


def blank_answer(text: str, special: Iterable[str] = ()) -> bool:
    """Whether an answer is empty: blanks and tokens that end a text, and nothing else.

    Args:
        text: what stands behind the end of the reasoning.
        special: special tokens of the tokenizer, where it is known.

    Example:
        >>> blank_answer("\\n</s>"), blank_answer("7</s>")
        (True, False)
    """
    for token in sorted(filter(None, special), key=len, reverse=True):
        text = text.replace(token, "")
    return BLANK_ANSWER.fullmatch(text) is not None


def proposal(responses: Iterable[str], think_end: str) -> str:
    """Which known end mark the responses hold most often, as a hint; empty where they hold none.

    Example:
        >>> proposal(["[THINK]So[/THINK]7", "So"], "</think>")
        "1 of 2 traces hold `[/THINK]` (Magistral): try --think-end '[/THINK]'"
    """
    held = dict.fromkeys((style for style in STYLES if style.end != think_end), 0)
    total = 0
    for response in responses:
        total += 1
        for style in held:
            held[style] += style.end in response
    best = max(held, key=lambda style: held[style])
    if not held[best]:
        return ""
    return (
        f"{held[best]} of {total} traces hold `{best.end}` ({best.name}): "
        f"try --think-end {shlex.quote(best.end)}"
    )
