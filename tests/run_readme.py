"""Run the README's commands as they are written: `python tests/run_readme.py` (make readme).

Blocks of bash and Python run in their order in one empty folder, with the `kfh` and `python` of
the PATH. A block marked `ci-run` changes the environment or is heavy: `.ci/run` has its lines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(bash|python)( ci-run)?\n(.*?)^```$", re.M | re.S)
TIMEOUT = 900  # seconds a block; a busy machine is slow


def blocks() -> list[tuple[str, bool, str]]:
    """Each block of commands: its language, whether `.ci/run` runs it, its text."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return [(kind, bool(mark), text) for kind, mark, text in BLOCK.findall(readme)]


def main() -> int:
    """Run all; 1 with what was printed where one fails."""
    environment = {"HF_HUB_OFFLINE": "1", **os.environ}
    with tempfile.TemporaryDirectory() as folder:
        for kind, elsewhere, text in blocks():
            if elsewhere:
                continue
            started = time.perf_counter()
            command = ["bash", "-euc", text] if kind == "bash" else ["python", "-c", text]
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
            print(f"{time.perf_counter() - started:6.1f} s  {text.splitlines()[0]}", flush=True)
            if done.returncode:
                print(f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
