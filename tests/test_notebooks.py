"""The notebooks as committed: whole, with outputs, without traces of a machine (run_notebooks.py).

That they run, and print the same, is for `make notebooks`.
"""

from __future__ import annotations

import ast
import re
from copy import deepcopy

import nbformat
import pytest
import run_notebooks as notebooks

MOST_BYTES = 1_500_000
MOST_LINES = 5  # of a function: logic belongs to the packages
MACHINE = re.compile(
    r"(?<![\w./:])/(?!think)[A-Za-z][\w.-]+/|[A-Z]:\\\\|file://|\bUsers\b|localhost"
)
NAMES = [
    "1_one_trace.ipynb",
    "2_find_and_doubt.ipynb",
    "3_interventions.ipynb",
    "4_training.ipynb",
    "5_your_own_model.ipynb",
    "6_what_else.ipynb",
    "7_before_and_after.ipynb",
]


def read(name: str):
    return nbformat.read(notebooks.FOLDER / name, as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def plain_source(cell) -> str:
    """The Python of a cell; a cell of another language has none."""
    if cell.source.startswith("%%"):
        return "pass"
    return "\n".join(line for line in cell.source.split("\n") if not line.startswith("%"))


def test_all_are_there_and_small() -> None:
    assert notebooks.names() == NAMES
    sizes = [(notebooks.FOLDER / name).stat().st_size for name in NAMES]
    assert sum(sizes) < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_committed(name: str) -> None:
    cells = code(read(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        kinds = {output.output_type for output in cell.outputs}
        assert "error" not in kinds
        assert all(o.name == "stdout" for o in cell.outputs if o.output_type == "stream")
        last = ast.parse(plain_source(cell)).body[-1]
        shows = isinstance(last, ast.Expr) and isinstance(last.value, ast.Name)
        assert cell.outputs or not (shows or "print(" in cell.source), cell.source
    assert any("image/png" in o.get("data", {}) for cell in cells for o in cell.outputs)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_tells_of_a_machine(name: str) -> None:
    notebook = read(name)
    texts = [cell.source for cell in notebook.cells]
    for cell in code(notebook):
        for output in cell.outputs:
            texts.append(output.get("text", ""))
            texts += [str(v) for k, v in output.get("data", {}).items() if k.startswith("text/")]
    for text in texts:
        found = MACHINE.search(re.sub(r"</?\w+[^>]*>", "", text))
        assert found is None, text[max(0, found.start() - 60) : found.end() + 60]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_the_pattern_finds_paths_of_machines() -> None:
    for text in ("in /home/x/y", "'/tmp/a/b'", r"C:\\a", "file:///x", '"/opt/venv/lib"'):
        assert MACHINE.search(text), text
    for text in (
        "../data/pocket",
        "and/or",
        "S_k / S_base",
        "8/9",
        "essential/redundant",
        "a</think>",
    ):
        assert not MACHINE.search(text), text


@pytest.mark.parametrize("name", NAMES)
def test_they_teach_and_call_the_packages(name: str) -> None:
    notebook = read(name)
    for cell in code(notebook):
        for node in ast.walk(ast.parse(plain_source(cell))):
            if isinstance(node, ast.FunctionDef):
                lines = {n.lineno for statement in node.body for n in ast.walk(statement)
                         if isinstance(n, ast.stmt)}  # fmt: skip
                assert len(lines) <= MOST_LINES, node.name
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "What one must not conclude" in text
    assert any("assert " in cell.source for cell in code(notebook))


def test_texts_are_the_same_but_for_the_last_digits() -> None:
    assert notebooks.same_text("head 2.3  0.996", "head 2.3 0.990")
    assert not notebooks.same_text("head 2.3 0.996", "head 2.3 0.940")
    assert not notebooks.same_text("13 heads", "14 heads")
    assert not notebooks.same_text("heads: 2", "head: 2")
    assert notebooks.same_text("−0.50 (1e-04)", "-0.51 (2e-04)")


def test_what_is_stale_is_found() -> None:
    ours = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                "print(1)", outputs=[nbformat.v4.new_output("stream", text="12\n")]
            )
        ]
    )
    assert notebooks.differences(ours, deepcopy(ours)) == []
    other = deepcopy(ours)
    other.cells[0].outputs[0].text = "15\n"
    assert "was '12" in notebooks.differences(ours, other)[0]
    ours.cells[0].metadata["tags"] = ["varies"]
    assert notebooks.differences(ours, other) == []
    other.cells[0].outputs = []
    assert "outputs are missing" in notebooks.differences(ours, other)[0]
    other.cells[0].source = "print(2)"
    assert notebooks.differences(ours, other) == ["the cells differ"]
