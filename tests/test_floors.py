"""The three floors: kfh → rl → probing. Imports go down only, and there is no cycle."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = ("probing", "rl", "kfh")  # from the ground up


def modules() -> dict[str, Path]:
    found = {}
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, at_load: bool) -> set[str]:
    """Modules of ours that a file imports, anywhere or (at_load) when it is loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [n for top in tree.body for n in walk(top)] if at_load else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""}
    return {name for name in names if name.split(".")[0] in FLOORS}


def walk(node: ast.AST) -> list[ast.AST]:
    """A statement and those within it that run on load: not functions, not TYPE_CHECKING."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return []
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
        return []
    return [node, *(n for child in ast.iter_child_nodes(node) for n in walk(child))]


def test_imports_go_down_only() -> None:
    for name, path in modules().items():
        floor = FLOORS.index(name.split(".")[0])
        for other in imports(path, at_load=False):
            assert FLOORS.index(other.split(".")[0]) <= floor, f"{name} imports {other}: up a floor"


def test_no_cycle() -> None:
    graph = {name: imports(path, at_load=True) - {name} for name, path in modules().items()}
    assert len(graph) > 20
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_help_is_quick_and_loads_no_torch() -> None:
    code = "import sys, kfh.cli; assert not {'torch', 'transformers', 'pandas'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    taken = []  # seconds of the processor: by the clock a busy machine would decide
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "kfh", "--help"], check=True, capture_output=True)
        after = os.times()
        taken.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
    assert min(taken) < 1.0


def test_no_pickle() -> None:
    for path in modules().values():
        text = path.read_text(encoding="utf-8")
        assert "import pickle" not in text and "torch.save" not in text and "torch.load" not in text
