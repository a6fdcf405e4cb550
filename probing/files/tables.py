"""Parquet files: written with checksums, read so that a damaged one is said to be damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probing.errors import DataError

# Of a page of a Parquet file: a flipped bit is an error then, and no other number.
WRITTEN, READ = {"write_page_checksum": True}, {"page_checksum_verification": True}


@contextmanager
def damaged(path: Path, advice: str) -> Iterator[None]:
    """What reading a file raises where it is damaged or holds something else, as a DataError.

    Args:
        path: of the file, for the message.
        advice: what to do about it.

    Raises:
        DataError: whatever was raised by the libraries, or by what was made of their values.
    """
    from pyarrow import ArrowException

    try:
        yield
    except (
        ArithmeticError,
        ArrowException,
        AttributeError,
        LookupError,
        NotImplementedError,
        OSError,
        TypeError,
        ValueError,
    ) as error:
        raise DataError(f"{path}: damaged, or another file ({error!r:.300}); {advice}") from error


def read_columns(path: Path, advice: str) -> Any:
    """A Parquet file as a data frame.

    Args:
        path, advice: as for `damaged`.

    Raises:
        DataError: it is not there, or damaged.
    """
    import pyarrow.parquet as pq

    with damaged(path, advice):
        return pq.read_table(path, **READ).to_pandas(ignore_metadata=True)
