"""The errors that kfh raises on purpose. The command line prints them without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class KfhError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do."""


class DataError(KfhError):
    """A trace, label or head file that cannot be used as it is."""


class ModelError(KfhError):
    """A model or tokenizer that cannot be probed, or that does not fit a head set."""


class ConfigError(KfhError):
    """Settings that contradict each other or the run that they would go on with."""


class NotFiniteError(ModelError):
    """A trace for which the model computes numbers that are not finite."""

    @classmethod
    def of(cls, what: str, dtype: object) -> NotFiniteError:
        """The error for what is not finite, with its likely cause by the model's precision."""
        kind = str(dtype).removeprefix("torch.")
        cause = "the weights may be damaged (NaN or infinite numbers in the checkpoint?)"
        if kind == "float16":
            cause = "float16 overflows at 65,504: use bfloat16 or float32 (--dtype)"
        elif kind == "bfloat16":
            cause = f"{cause}; try float32 (--dtype)"
        return cls(f"{what} not finite in {kind}. Likely cause: {cause}")


def memory_lacking(error: BaseException) -> str:
    """Which memory was too small, for an error of torch or Python; empty for any other error.

    Example:
        >>> memory_lacking(MemoryError()), memory_lacking(ValueError())
        ('memory', '')
    """
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "memory"
    # torch's own: not imported for this.
    return "the GPU's memory" if type(error).__name__ == "OutOfMemoryError" else ""


@contextmanager
def in_trace(name: str) -> Iterator[None]:
    """Numbers that are not finite in this block are told with the trace that they are of."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"trace {name}: {error}") from error
