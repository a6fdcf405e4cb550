"""`kfh export`: labels and scores of steps in forms of others."""

from __future__ import annotations

from kfh.console import console, report_counts, warn
from kfh.options import options
from probing.formats.export import ExportConfig, export


@options
def bring_back(config: ExportConfig) -> None:
    """Write labels and scores of steps as a table, into the source's records, or for trainers."""
    report = export(config)
    if report.source:
        report_counts(report.source.to_json())
        for reason, count in report.source.left_out.items():
            warn(f"left out {count} traces: {reason}")
    for reason, count in report.left_out.items():
        warn(f"left out {count}: {reason}")
    console.print(f"{report.traces} traces, {report.rows} rows → {config.out}", soft_wrap=True)
