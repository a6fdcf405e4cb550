"""`kfh export`: labels and scores of steps in forms of others."""

from __future__ import annotations

from kfh.console import console, report_counts, report_left_out, warn
from kfh.options import options
from probing.formats.export import ExportConfig, export
from probing.numbers import plural


@options
def bring_back(config: ExportConfig) -> None:
    """Write labels and scores of steps as a table, into the source's records, or for trainers."""
    report = export(config)
    if report.source:
        report_counts(report.source.to_json())
        report_left_out(report.source.left_out)
    for reason, count in report.left_out.items():
        warn(f"left out {count}: {reason}")
    counts = f"{plural(report.traces, 'trace')}, {plural(report.rows, 'row')}"
    console.print(f"{counts} → {config.out}", soft_wrap=True)
