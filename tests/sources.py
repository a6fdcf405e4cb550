"""The project's source, read but not run: modules, who imports whom, what is public."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = ("probing", "rl", "kfh")  # from the ground up
ARRAYS = {"Tensor", "ndarray", "NDArray"}


@cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name; a package's is its `__init__`, the face of a room."""
    named = {}
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


def is_face(name: str) -> bool:
    return modules()[name].name == "__init__.py"


def within(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all within it; what only type checkers read is left out."""
    yield node
    checking = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    for child in node.orelse if checking else ast.iter_child_nodes(node):
        yield from within(child)


@cache
def offered(face: str) -> list[tuple[str, str]]:
    """The names that a face offers, each with its module: those of its stub (`__init__.pyi`)."""
    stub = modules()[face].with_suffix(".pyi")
    found = []
    for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8"))) if stub.is_file() else ():
        if isinstance(node, ast.ImportFrom):
            assert node.level == 1, f"{stub}: lazy_loader reads `from .module import name` alone"
            found += [(f"{face}.{node.module}", alias.name) for alias in node.names]
    return found


@cache
def imported(name: str) -> set[str]:
    """What a module imports, also within functions or by a name in a string, such as "rl.runs".

    An import from a face is an edge to the face, and through it to all that it offers; an import
    of a module is no edge to the face of its room.
    """
    names = {module for module, _ in offered(name)} if is_face(name) else set()
    for node in within(tree(name)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {each if each in modules() else str(node.module) for each in full}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            names.add(node.value)
    return (names & modules().keys()) - {name}


def room(name: str) -> str:
    """The room of a module: `probing.traces` of `probing.traces.file`, or the module alone."""
    return ".".join(name.split(".")[:2])


def edges() -> list[tuple[str, str]]:
    return [(name, other) for name in modules() for other in sorted(imported(name))]


def in_circles(pairs: list[tuple[str, str]]) -> list[str]:
    """The nodes from which a way leads back to themselves."""
    graph: dict[str, set[str]] = {}
    for start, end in pairs:
        graph.setdefault(start, set()).add(end)

    def comes_back(node: str) -> bool:
        seen: set[str] = set()
        ahead = {*graph[node]}
        while ahead - seen:
            ahead, seen = {e for n in ahead - seen for e in graph.get(n, ())}, seen | ahead
        return node in seen

    return [node for node in graph if comes_back(node)]


# Public names


def defined(module: str) -> set[str]:
    """The names at the top of a module: functions, classes, constants, `import name as name`."""
    names: set[str] = set()
    for node in tree(module).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names if alias.asname == alias.name}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def definition(module: str, name: str) -> tuple[str, ast.AST] | None:
    """Where a name is defined, and its function or class; None for a constant."""
    for node in tree(module).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return f"{module}.{name}", node
        if isinstance(node, ast.ImportFrom) and node.module in modules():
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return definition(node.module, alias.name)
    return None


def public() -> dict[str, ast.AST]:
    """The functions and classes that faces offer, by the place of their definition."""
    named = {}
    for face in filter(is_face, modules()):
        for module, name in offered(face):
            if place := definition(module, name):
                named[place[0]] = place[1]
    return named


def public_functions() -> Iterator[tuple[str, ast.FunctionDef, str]]:
    """Public functions and methods, with their docstring and their class's."""
    special = ("__init__", "__post_init__", "__call__", "__enter__")
    for name, node in public().items():
        if isinstance(node, ast.FunctionDef):
            yield name, node, ast.get_docstring(node) or ""
        for part in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(part, ast.FunctionDef) and (part.name in special or part.name[0] != "_"):
                texts = ast.get_docstring(node), ast.get_docstring(part)
                yield f"{name}.{part.name}", part, "\n".join(text or "" for text in texts)


def bare_arrays(annotation: ast.AST) -> bool:
    """Whether an array stands in an annotation without its shape, as `Float[Tensor, "…"]` has."""
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
        last = annotation.slice.elts[-1]
        if isinstance(last, ast.Constant) and isinstance(last.value, str):
            return False
    name = getattr(annotation, "id", getattr(annotation, "attr", ""))
    return name in ARRAYS or any(map(bare_arrays, ast.iter_child_nodes(annotation)))


def raised(function: ast.AST) -> set[str]:
    """Names of the errors that a function itself raises; not those raised again."""
    errors = set()
    for node in within(function):
        if isinstance(node, ast.Raise) and node.exc:
            name = ast.unparse(node.exc).split("(")[0].split(".")[-1]
            errors |= {name} if name[0].isupper() else set()
    return errors - {"NotImplementedError", "KeyboardInterrupt"}
