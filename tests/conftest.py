"""Tests run offline, seeded and on one thread; shapes in signatures are checked as they run."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

# jaxtyping's annotations are executed: a wrong shape fails the test that meets it.
install_import_hook(
    [
        "probing.answers.edited",
        "probing.answers.edits",
        "probing.answers.removal",
        "probing.attention.capture",
        "probing.attention.rows",
        "probing.models.split",
        "probing.attention.scores",
        "probing.interventions.copies",
        "probing.intervals",
        "probing.models.decode",
        "probing.models.front",
        "probing.ranking.metrics",
        "probing.ranking.null",
        "probing.traces.tokens",
        "rl.attnpo.completions",
        "rl.attnpo.credit",
        "rl.attnpo.rewards",
    ],
    "typed.typechecked",
)

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# Its failed assertions are to be explained, though test modules import it before it is a plugin.
pytest.register_assert_rewrite("viewer_pages")
torch.set_num_threads(1)
settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")
# A shell that starts tests in the background ignores it, and so would every process they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers for every test, whatever ran before."""
    torch.manual_seed(0)
