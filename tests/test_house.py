"""The house: floors, rooms, circles, copies, docstrings, size, and how many files one must open.

    python tests/test_house.py [--list]      # every measure as a Markdown table; and what it counts

A measure is a number, or the list of what offends. Each has a limit, which is what holds today
(of lines: about that), and a goal: to tighten a limit is to change its number.
"""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from sources import (
    FLOORS,
    ROOT,
    bare_arrays,
    defined,
    edges,
    in_circles,
    is_face,
    modules,
    offered,
    public,
    public_functions,
    raised,
    room,
    tree,
    within,
)

# measure: (limit, goal)
LIMITS: dict[str, tuple[float, float]] = {
    "lines of Python": (44_500, 21_300),
    "lines of the longest module": (400, 400),
    "functions of 60 lines or more": (0, 0),
    "modules in the largest room": (10, 10),
    "modules without a place in the plan": (0, 0),
    "rooms that do not say what they are for": (0, 0),
    "rooms that README.md does not name": (0, 0),
    "modules in circles": (0, 0),
    "rooms in circles": (0, 0),
    "imports up a floor": (0, 0),
    "imports against the order of rooms": (0, 0),
    "imports of rl/pocket by the rest of rl": (0, 0),
    "public names without a docstring": (0, 0),
    "public functions that name no shape of an array": (0, 0),
    "public functions that do not say what they raise": (0, 0),
    "files that decode": (1, 1),
    "calls of os.fsync": (1, 1),
    "definitions that read a box": (1, 1),
    "seconds of kfh --help": (0.6, 0.6),
    "files to open: SRA of a trace file": (6, 6),
    "files to open: a heatmap by kfh plot": (3, 3),
    "files to open: advantages of a step": (12, 12),
    "files to open: the whole of probe()": (14, 14),
}
# Rooms by rank: a rank imports only those before it, never itself. A floor's face is last, but
# for that of `kfh`, which holds the version alone.
ORDER = {
    "probing": [
        "errors choices numbers intervals",
        "files settings",
        "models",
        "traces",
        "attention config headset",
        "answers ranking",
        "folder labelling interventions",
        "cost run robustness viewer formats",
        "types",
        "figures",
    ],
    "rl": [
        "tasks",
        "chains sampling signals benchmarks",
        "pocket words",
        "attnpo",
        "engines evaluation judges training",
        "runs",
    ],
    "kfh": ["tables options", "console", "findings", "bring study", "commands", "cli", "__main__"],
}
RANKS = {
    f"{floor}.{room}": (FLOORS.index(floor), rank)
    for floor, ranks in ORDER.items()
    for rank, rooms in enumerate(ranks)
    for room in rooms.split()
} | {"probing": (0, 99), "rl": (1, 99), "kfh": (2, -1)}
SHAPE = re.compile(r"[\[(](\w+, )+\w+[\])]|\(\w+,\)|(one|same) shape")

MEASURES: dict[str, Callable[[], float | list[str]]] = {}


def measure(name: str) -> Callable[[Callable], Callable]:
    """Enter a function as the measure of that name."""
    return lambda function: MEASURES.setdefault(name, function)


# Who imports whom


@measure("modules in circles")
def _() -> list[str]:
    return in_circles(edges())


@measure("rooms in circles")
def _() -> list[str]:
    return in_circles([(room(a), room(b)) for a, b in edges() if room(a) != room(b)])


@measure("imports up a floor")
def _() -> list[str]:
    """To start `kfh` as a process is one, too."""
    floor = {name: FLOORS.index(name.split(".")[0]) for name in modules()}
    upwards = [f"{a} → {b}" for a, b in edges() if floor[b] > floor[a]]
    return upwards + lines_with(r"\"-m\", \"kfh\"")


@measure("imports against the order of rooms")
def _() -> list[str]:
    pairs = [(a, b) for a, b in edges() if room(a) != room(b) and {room(a), room(b)} <= {*RANKS}]
    return [f"{a} → {b}" for a, b in pairs if RANKS[room(b)] >= RANKS[room(a)]]


@measure("modules without a place in the plan")
def _() -> list[str]:
    return [name for name in modules() if room(name) not in RANKS]


@measure("imports of rl/pocket by the rest of rl")
def _() -> list[str]:
    pairs = [(a, b) for a, b in edges() if a.startswith("rl") and room(b) == "rl.pocket"]
    return [f"{a} → {b}" for a, b in pairs if room(a) != "rl.pocket"]


# Size, and rooms as the reader meets them


def text_of_all() -> dict[str, str]:
    return {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in modules().values()}


@measure("lines of Python")
def _() -> float:
    return sum(text.count("\n") for text in text_of_all().values())


@measure("lines of the longest module")
def _() -> float:
    return max(text.count("\n") for text in text_of_all().values())


@measure("functions of 60 lines or more")
def _() -> list[str]:
    functions = [
        (name, node)
        for name in modules()
        for node in within(tree(name))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    lengths = [(f"{name}.{f.name}", (f.end_lineno or 0) - f.lineno + 1) for name, f in functions]
    return [f"{name}: {length}" for name, length in lengths if length >= 60]


@measure("modules in the largest room")
def _() -> float:
    folders = [path.parent for path in modules().values() if path.name != "__init__.py"]
    return max(folders.count(folder) for folder in folders)


def rooms() -> list[str]:
    return [name for name in modules() if is_face(name) and name not in FLOORS]


@measure("rooms that do not say what they are for")
def _() -> list[str]:
    return [name for name in [*rooms(), *FLOORS] if not ast.get_docstring(tree(name))]


@measure("rooms that README.md does not name")
def _() -> list[str]:
    """A room is named as `attention/`, not within a longer path such as `runs/x`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    def is_named(name: str) -> bool:
        floor, short = name.split(".")
        return bool(re.search(rf"(?<![\w./-])({floor}/)?{short}/(?![\w.*])", readme))

    return [name for name in rooms() if not is_named(name)]


# Public names


@measure("public names without a docstring")
def _() -> list[str]:
    methods = [(name, f) for name, f, _ in public_functions() if f.name[0] != "_"]
    return sorted({n for n, node in [*public().items(), *methods] if not ast.get_docstring(node)})


@measure("public functions that name no shape of an array")
def _() -> list[str]:
    def has_bare(function: ast.FunctionDef) -> bool:
        arguments = function.args
        each = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        annotations = [argument.annotation for argument in each] + [function.returns]
        return any(bare_arrays(annotation) for annotation in annotations if annotation)

    return [n for n, f, docs in public_functions() if has_bare(f) and not SHAPE.search(docs)]


@measure("public functions that do not say what they raise")
def _() -> list[str]:
    """The docstring of the function, or of its class, names each error, or their base."""
    missing = {
        name: {error for error in raised(function) if error not in docs and "KfhError" not in docs}
        for name, function, docs in public_functions()
    }
    return [f"{name}: {', '.join(sorted(errors))}" for name, errors in missing.items() if errors]


# One copy of each thing


def lines_with(pattern: str) -> list[str]:
    """`file:line` of what matches in `probing` and `rl`."""
    return [
        f"{path}:{number}"
        for path, text in text_of_all().items()
        for number, line in enumerate(text.splitlines(), 1)
        if not path.startswith("kfh/") and re.search(pattern, line)
    ]


@measure("files that decode")
def _() -> list[str]:
    places = lines_with(r"batch_select_indices|argmax\(-1")
    return sorted({place.split(":")[0] for place in places})


@measure("calls of os.fsync")
def _() -> list[str]:
    return lines_with(r"os\.fsync")


@measure("definitions that read a box")
def _() -> list[str]:
    return lines_with(r"def (boxed_spans|last_box)\b")


# Time and walks


def help_times(runs: int) -> tuple[float, float]:
    """Seconds of `kfh --help`, least of the runs: of the processor, and by the clock."""
    times = []
    for _ in range(runs):
        before, started = os.times(), time.perf_counter()
        subprocess.run([sys.executable, "-m", "kfh", "--help"], check=True, capture_output=True)
        after, wall = os.times(), time.perf_counter() - started
        used = after.children_user + after.children_system
        times.append((used - before.children_user - before.children_system, wall))
    return min(cpu for cpu, _ in times), min(wall for _, wall in times)


@measure("seconds of kfh --help")
def _() -> float:
    """Of the processor: by the clock a busy machine would decide."""
    return help_times(3)[0]


def walk(question: str) -> Callable[[], list[str]]:
    def files() -> list[str]:
        from walks import WALKS

        with tempfile.TemporaryDirectory() as folder:
            passed = WALKS[question](Path(folder))
        assert passed, "no file of this project ran: another copy of it is imported"
        return passed

    return files


for title in LIMITS:
    if title.startswith("files to open: "):
        MEASURES[title] = walk(title.removeprefix("files to open: "))


@pytest.mark.parametrize("name", LIMITS)
def test_measure(name: str) -> None:
    value = MEASURES[name]()
    number = value if isinstance(value, (int, float)) else len(value)
    assert number <= LIMITS[name][0], f"{name}: {value}"


def test_every_measure_has_a_limit() -> None:
    assert MEASURES.keys() == LIMITS.keys()
    assert len(modules()) > 100 and len(edges()) > 200 and len(public()) > 20


def test_faces_offer_what_is_there() -> None:
    assert {name for face in FLOORS for _, name in offered(face)} >= {"probe", "AttnPOTrainer"}
    for face in filter(is_face, modules()):
        for module, name in offered(face):
            assert name in defined(module), f"{face} offers {name}, which {module} does not define"


def test_circles_are_seen() -> None:
    assert in_circles([("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")]) == ["b", "c"]


def test_docstring_rules() -> None:
    text = "def f(x: Tensor, y: Float[Tensor, 'a b']):\n    raise DataError('no')"
    function = ast.parse(text).body[0]
    assert isinstance(function, ast.FunctionDef) and raised(function) == {"DataError"}
    annotations = [argument.annotation for argument in function.args.args]
    assert [bare_arrays(each) for each in annotations if each] == [True, False]
    assert SHAPE.search("mass by (head, token)") and not SHAPE.search("mass (see the paper)")


def test_start_loads_no_torch() -> None:
    code = "import sys, kfh.cli; assert not {'torch', 'transformers', 'pandas'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_pickle() -> None:
    assert not lines_with(r"import pickle|torch\.(save|load)\b")


def main() -> None:
    """Print every measure as a Markdown table; with --list what each counts, below it."""
    sys.path.insert(0, str(ROOT))
    with redirect_stdout(io.StringIO()):  # what the commands print
        values = {name: MEASURES[name]() for name in LIMITS}
    print("| measure | value | limit | goal |\n|---|---|---|---|")
    for name, value in values.items():
        shown = len(value) if isinstance(value, list) else round(value, 2)
        print(f"| {name} | {shown} | {' | '.join(f'{bound:g}' for bound in LIMITS[name])} |")
    print(f"| seconds of kfh --help by the clock, least of 5 | {help_times(5)[1]:.2f} | – | – |")
    for name, value in values.items() if "--list" in sys.argv else ():
        if isinstance(value, list) and value:
            print(f"\n**{name}**: {', '.join(value)}")


if __name__ == "__main__":
    main()
