"""Time and memory of an import: many records, streamed.

    python tests/bench/importing.py [RECORDS] [BYTES]      # 100,000 of 4,000

Records are those of OpenR1-Math with a verdict of the source's; with `--gold` the half of them has
a reference answer instead, which is compared.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from probing.formats.job import ImportConfig, import_traces
from rl.tasks.maths import maths_verdict


def main() -> None:
    """Write the records, import them, and print seconds and the most memory."""
    numbers = [int(text) for text in sys.argv[1:] if text.isdigit()]
    count, size = (*numbers, *(100_000, 4_000)[len(numbers) :])
    gold = "--gold" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for number in range(count):
                thought = f"So {number} + 1 is {number + 1}. Wait, let me check.\n" * (size // 45)
                text = f"<think>\n{thought}</think>\n\nSo \\boxed{{{number + 1}}}."
                verdict = None if gold and number % 2 else True
                row = {"problem": f"What is {number} + 1?", "answer": str(number + 1)}
                row |= {"generations": [text], "correctness_math_verify": [verdict]}
                file.write(json.dumps(row) + "\n")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started = time.perf_counter()
        config = ImportConfig(str(source), out=Path(folder) / "traces.jsonl")
        report = import_traces(config, verdict=maths_verdict)
        seconds = time.perf_counter() - started
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{report.records} records of {source.stat().st_size / count:.0f} bytes: {seconds:.1f} "
            f"s, {most:.0f} MB at most ({before:.0f} before), {dict(report.verdicts)}"
        )


if __name__ == "__main__":
    main()
