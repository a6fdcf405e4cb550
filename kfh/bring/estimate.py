"""`kfh estimate`: what a probe will take, before it is begun."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kfh.bring.chain import CAUSE, imported, with_steps
from kfh.console import console, report_cut, report_left_out, warn
from kfh.options import options
from probing.config import ProbeConfig
from probing.labelling.cause import CauseConfig

if TYPE_CHECKING:
    from probing.cost import Cost, Work

GIGA = 1e9


@options(labels=CAUSE)
def estimate(config: ProbeConfig, *, cause: CauseConfig) -> None:
    """Say how many traces, tokens, passes and seconds a probe takes here, and how much memory.

    The options are those of kfh probe. A source is imported for it, into a place that is cleared;
    a few traces go through the model; nothing is written.
    """
    run_estimate(config, cause)


def run_estimate(config: ProbeConfig, cause: CauseConfig) -> None:
    """`kfh estimate`: see `probing.cost`."""
    from transformers.utils import logging

    from probing.cost import cost_of
    from probing.traces.reports import CutReport
    from probing.traces.source import SourceReport

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        config = imported(replace(config, resume=False), Path(folder))
        by_cause = config.labels == CAUSE
        if by_cause:
            config = with_steps(replace(config, labels="steps"))
        report, loaded = SourceReport(), config.load()
        try:
            cost = cost_of(config, *loaded, cause if by_cause else None, report)
        finally:  # what the cut did tells why there is nothing to measure, too
            report_cut(report.reading.cut if report.reading.cut.sizes else CutReport())
        print_cost(cost)


def print_cost(cost: Cost) -> None:
    """The lines of an estimate."""
    rest = cost.traces - cost.tokenised
    reckoned = f", those of {rest:,} reckoned from their characters" if rest else ""
    lines = [
        f"{cost.traces:,} traces, {cost.steps:,} steps, {cost.tokens:,} tokens{reckoned}; the "
        f"longest has {cost.longest:,}",
        *(
            f"{what}: {_work(work)}"
            for what, work in (("labelling by cause", cost.labelling), ("probing", cost.probing))
            if work
        ),
        f"memory: {cost.weights / GIGA:.2f} GB of weights (loaded), about "
        f"{cost.peak / GIGA:.2f} GB beside them in a pass; {cost.free / GIGA:.2f} GB are free "
        f"({cost.device})",
    ]
    console.print("\n".join(lines), soft_wrap=True, highlight=False)
    report_left_out(cost.left_out)
    if not cost.fits:
        warn("That is more than is free: --batch-tokens auto, --dtype bfloat16, --device-map auto")


def _work(work: Work) -> str:
    return (
        f"{work.passes:,} forward passes, {work.tokens:,} tokens in them, about "
        f"{duration(work.seconds)}"
    )


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, to two digits.

    Example:
        >>> duration(4.26), duration(125), duration(9000)
        ('4.3 s', '2.1 min', '2.5 h')
    """
    for size, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {name}"
    return f"{seconds:.2g} s"
