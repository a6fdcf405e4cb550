"""Execute the notebooks: `python tests/run_notebooks.py [--write] [NAME …]` (make notebooks).

Each is run from the start in a temporary folder that sees the data and results of this tree.
Without --write its outputs are held against the committed ones: a cell that prints must have
printed the same (numbers may differ in the last digits; pictures, and cells tagged `varies`, are
not compared). With --write the outputs are written into the notebooks.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
SEEN = ("data",)  # what a notebook reads through `../`
TIMEOUT = 1800  # seconds a cell; a busy machine is slow
NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def names() -> list[str]:
    """The notebooks, in their order."""
    return sorted(path.name for path in FOLDER.glob("*.ipynb"))


def text_of(output: Any) -> str:
    """The text of an output; empty for a picture."""
    if output.output_type == "stream":
        return str(output.text)
    data = output.get("data", {})
    return "" if any(kind.startswith("image/") for kind in data) else data.get("text/plain", "")


def same_text(ours: str, theirs: str) -> bool:
    """Whether two outputs say the same: words alike, numbers close, space ignored.

    Other processors round in another way; a figure may differ by 0.02 and 2 %.
    """
    if NUMBER.sub("#", ours).split() != NUMBER.sub("#", theirs).split():
        return False
    pairs = zip(NUMBER.findall(ours), NUMBER.findall(theirs), strict=True)
    values = ((float(a.replace("−", "-")), float(b.replace("−", "-"))) for a, b in pairs)
    return all(abs(a - b) <= 0.02 + 0.02 * abs(b) for a, b in values)


def differences(ours: Any, theirs: Any) -> list[str]:
    """In words, where the outputs of one notebook are not those of the other."""
    if [cell.source for cell in ours.cells] != [cell.source for cell in theirs.cells]:
        return ["the cells differ"]
    found = []
    for place, (mine, other) in enumerate(zip(ours.cells, theirs.cells, strict=True)):
        if mine.cell_type != "code":
            continue
        kinds = [[text_of(o) == "" for o in cell.outputs] for cell in (mine, other)]
        if kinds[0] != kinds[1]:
            found.append(f"cell {place}: outputs are missing, or there are others now")
        elif "varies" not in mine.metadata.get("tags", []):
            for one, two in zip(mine.outputs, other.outputs, strict=True):
                if not same_text(text_of(one), text_of(two)):
                    found.append(
                        f"cell {place}: was {text_of(one)!r:.300}, is {text_of(two)!r:.300}"
                    )
    return found


def clean(notebook: Any) -> Any:
    """Without what differs from run to run: times, progress, the machine's Python."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place}"
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        kept: list[Any] = []
        for output in cell.outputs:
            if output.output_type == "stream":
                if output.name == "stderr":
                    continue
                if kept and kept[-1].output_type == "stream":
                    kept[-1].text += output.text
                    continue
            kept.append(output)
        cell.outputs = kept
    return notebook


def execute(name: str) -> Any:
    """The notebook, run anew from its first cell.

    Raises:
        CellExecutionError: a cell failed.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / name, as_version=4)
    # No folder of kernels: `python3` is then the Python that runs this.
    kernels = KernelSpecManager(kernel_dirs=[])
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels)
    with tempfile.TemporaryDirectory() as temporary:
        for part in SEEN:
            (Path(temporary) / part).symlink_to(ROOT / part)
        folder = Path(temporary) / "notebooks"
        folder.mkdir()
        resources = {"metadata": {"path": str(folder)}}
        client = NotebookClient(notebook, km=manager, timeout=TIMEOUT, resources=resources)
        client.owns_km = True  # else the kernel outlives its notebook
        client.execute()
    return clean(notebook)


def cpu_seconds() -> float:
    """CPU seconds of the kernels that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Run those named, or all; 1 where one has other outputs than were committed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the outputs")
    parser.add_argument("names", nargs="*", help="default: all")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # `python` in a cell of bash is the Python that runs this.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # As the committed outputs were made; two threads stall where another process holds a core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    stale = 0
    for name in [Path(n).name for n in options.names] or names():
        started, used = time.perf_counter(), cpu_seconds()
        found: list[str] = []
        try:
            ran = execute(name)
        except CellExecutionError as error:
            ran, found = None, [str(error)]
        if ran is not None and options.write:
            nbformat.write(ran, FOLDER / name)
        elif ran is not None:
            found = differences(nbformat.read(FOLDER / name, as_version=4), ran)
        stale += bool(found)
        took = f"{time.perf_counter() - started:.0f} s, {cpu_seconds() - used:.0f} CPU seconds"
        print(f"{name}: {took}, {len(found)} differences", flush=True)
        for text in found:
            print(f"  {text}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
