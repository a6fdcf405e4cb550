"""Findings: tables, figures and caveats of each kind of result, written once.

In: folders of results. Out: sections that the terminal, the Markdown and the HTML report show.
"""
