"""What identifies a problem, whatever file its traces stand in.

Figures are held out where their problems are: heads chosen on some traces of a problem have seen
the others too, and a file may be renamed, compressed or edited.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

from probing.files.headers import text_hash
from probing.traces.file import Trace

DIGITS = 16  # of a hash: two of a million problems share one with a chance of 3e-8


def problem_hash(text: str) -> str:
    r"""A problem text as 16 hexadecimal digits: the first of its SHA-256.

    Two texts that differ in white space or in the form of their characters alone (Unicode NFKC)
    are one problem.

    Example:
        >>> problem_hash("What is 2 + 2?")
        '38d46ad3618826cf'
        >>> problem_hash(" What is\n２ + ２? ") == problem_hash("What is 2 + 2?")
        True
    """
    return text_hash(_normal(text)).removeprefix("sha256:")[:DIGITS]


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def problem_key(trace: Trace) -> str:
    """The hash of a trace's problem; of its prompt, where the file names no problem."""
    return problem_hash(trace.problem or trace.prompt)


def problem_marks(trace: Trace) -> set[str]:
    """All that a trace's problem can be known by: hashes of its problem and of its prompt.

    A file that has lost its field `problem` is known by the prompt. A prompt that does not hold
    the problem that the file names (the same for all, say) tells nothing and is left out.
    """
    prompt, problem = (_normal(text or "") for text in (trace.prompt, trace.problem))
    return {problem_hash(text) for text in {problem, prompt} if text and problem in text}


def marks_of(ids: Iterable[str], marks: Mapping[str, set[str]]) -> list[str]:
    """The marks of these traces (`problem_marks`), each once, sorted."""
    return sorted(set().union(*(marks[name] for name in ids)))
