"""Tables and numbers: one way to write each, whatever shows it."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from kfh.tables import Table, html_table, markdown, terminal
from probing.intervals import Estimate
from probing.numbers import Number, number


def shown(table: Table, width: int) -> list[str]:
    file = io.StringIO()
    Console(width=width, file=file).print(terminal(table, width))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def heads(rows: int = 3) -> Table:
    cells = (Number(0.714, 0.591, 0.816),) * 3
    columns = ("head", "SRA", "balanced", "gating", "p", "score over S_base: essential, redundant")
    row = ("12.10 *", *cells, "0.001", "1.32, 0.85", "0.714 → 0.703")
    return Table("Best heads", (*columns, "SRA: half chosen on → held out"), [row] * rows)


def test_a_negative_interval_is_written_one_way():
    """The terminal wrote -0.20–-0.05, the report -0.200 to -0.050."""
    cell = Number.of(Estimate(-0.1, -0.2, -0.05, 9), 2)
    table = Table("", ("what", "how much"), [("difference", cell)])
    text = "-0.10 (-0.20 to -0.05)"
    assert str(cell) == text and "–" not in text
    assert any(text in line for line in shown(table, 80))
    assert text in markdown(table) and text in html_table(table)
    assert str(Number(0.1, -0.2, 0.3, 1)) == "0.1 (-0.2 to 0.3)"
    assert str(Number(0.714, 0.591, 0.816)) == "0.714 (0.591–0.816)"


def test_no_number_is_a_negative_zero():
    assert number(-0.0001) == "0.000" and number(-0.004, 2, signed=True) == "0.00"
    assert number(-0.0) == "0.000" and number(-0.006, 2) == "-0.01"
    assert str(Number(-0.001, -0.004, 0.004, 2)) == "0.00 (0.00–0.00)"


def test_a_difference_whose_interval_excludes_zero_shows_that():
    """Claims were printed as `yes, -0.00 (-0.00 to -0.00)`."""
    tiny = Number(-0.00003, -0.00004, -0.00002, 2, signed=True)
    assert str(tiny) == "-0.00003 (-0.00004 to -0.00002)"
    assert str(Number(0.001, -0.002, 0.003, 2, signed=True)) == "0.00 (0.00–0.00)"
    assert str(Number(0.15, 1e-17, 0.29, signed=True)) == "+0.150 (0.000 to +0.290)"  # rounding
    assert str(Number(0.3, 0.1, 0.5, 2, signed=True)) == "+0.30 (+0.10 to +0.50)"


def test_what_does_not_exist_is_a_dash_in_every_kind_of_input():
    nan = float("nan")
    for cell in (Number(None), Number(nan, 0.1, 0.2), Number.of(None), Number.of({"value": None})):
        assert str(cell) == "–"
    assert str(Number(0.5, nan, nan)) == "0.500"
    assert str(Number.column({"sra": 0.5, "sra_low": 0.4, "sra_high": 0.6}, "sra")) == (
        "0.500 (0.400–0.600)"
    )
    assert str(Number.of({"value": 0.05, "low": -0.01, "high": 0.1}, 1, True, 100)) == (
        "+5.0 (-1.0 to +10.0)"
    )


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_word_and_no_number_is_broken_and_no_line_too_long(width):
    lines = shown(heads(), width)
    assert max(map(len, lines)) <= width
    words = " ".join(" ".join(row) for row in heads().texts).split()
    found = " ".join(lines).split()
    assert all(found.count(word) >= words.count(word) for word in {*words})


def test_80_columns_hold_the_heads_of_a_probe_side_by_side():
    lines = shown(heads(), 80)
    (first, second) = [line for line in lines if re.search(r"0\.714|0\.591", line)][:2]
    assert " ".join(first.split()) == "12.10 * 0.714 0.714 0.714 0.001 1.32, 0.85 0.714 → 0.703"
    assert second.split() == ["(0.591–0.816)"] * 3
    assert any("head 12.10 *" in line for line in shown(heads(), 50))  # a block a row


def test_markup_and_tags_in_cells_are_texts():
    table = Table("a | b", ("[bold]x[/bold]",), [("<script>[red]",)])
    assert any("<script>[red]" in line for line in shown(table, 80))
    assert "<script>" not in html_table(table) and "&lt;script&gt;" in html_table(table)
    assert "<script>" not in markdown(table) and "a \\| b" in markdown(table)


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="must have 2 cells"):
        Table("t", ("a", "b"), [("1",)])
