"""A slice of the mutated files of `mutations.py`: nothing but the project's own errors."""

from __future__ import annotations

from mutations import run


def test_mutated_files_are_read_or_refused_in_words() -> None:
    """Lines of traces, labels, head sets, run files, scores, questions; read and used."""
    done = run(800, 120)
    assert not done.wrong, done.wrong[0][1]
    # Both happen, to every kind of file: neither is everything refused nor anything taken.
    kinds = {outcome.partition(":")[0] for outcome in done.came} - {"all lines, --skip-bad"}
    assert len(kinds) == 8
    assert all(done.came[f"{kind}: {how}"] for kind in kinds for how in ("read", "refused"))
