"""The kinds of results that `kfh report` and `kfh plot` know: a new kind is a function and a line.

    from kfh.findings.base import Kind, Section
    from kfh.findings.kinds import KINDS

    def read(place):                       # place.folder holds the file
        content = json.loads((place.folder / "mine.json").read_text())
        return Section("Mine", tables=[...], pictures=[...], caveats=[...])

    KINDS.append(Kind("mine", "mine.json", read))

Then `kfh.findings.page.run_report` has a section of each folder that holds `mine.json`, and
`kfh plot` writes its pictures. A kind's `read` may raise DataError; the report
then names the folder as damaged.
"""

from __future__ import annotations

from kfh.findings.base import Kind, side_by_side
from kfh.findings.evaluation import read_evaluation
from kfh.findings.heads import read_sample_size, read_stability, read_types
from kfh.findings.interventions import read_ablation
from kfh.findings.probe import read_probe
from kfh.findings.runs import comparisons, read_comparison, read_runs

# In the order of the report.
KINDS = [
    Kind("probe", "run.json", read_probe),
    Kind("head types", "types.json", read_types),
    Kind("sample size", "sample_size.json", read_sample_size),
    Kind("stability", "stability.json", read_stability),
    Kind("ablation", "ablation.json", read_ablation),
    Kind("training", "run.json", read_runs, side_by_side),
    Kind("comparison", "comparison.json", read_comparison, comparisons),
    Kind("evaluation", "eval.json", read_evaluation, side_by_side),
]
