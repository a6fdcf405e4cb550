"""The errors that kfh raises on purpose. The command line prints them without a traceback."""

from __future__ import annotations


class KfhError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do."""


class DataError(KfhError):
    """A trace, label or head file that cannot be used as it is."""


class ModelError(KfhError):
    """A model or tokenizer that cannot be probed, or that does not fit a head set."""


class ConfigError(KfhError):
    """Settings that contradict each other or the run that they would go on with."""
