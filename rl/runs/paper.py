"""`kfh plot paper`: the panels of the paper's Figure 2 on one page, for any probed model.

(a) SRA by layer and head, (b) ensembles, (c) interventions on steps, (d) stability of the heads.
A panel without data is left out, and the others close up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probing.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from probing.folder import ProbeResult
    from rl.runs.folders import Run


Panel = Callable[["Axes"], None]
ABLATION_FILE = "ablation.json"
ARMS = {
    "none": "as it is",
    "low": "low-score\nremoved",
    "high": "high-score\nremoved",
    "random": "random\nremoved",
}
SHAPES = {1: (1, 1), 2: (1, 2), 3: (1, 3), 4: (2, 2)}  # panels → rows, columns


def paper_figure(
    folder: Path,
    ablation: Path | None = None,
    train: Sequence[Path] = (),
    checkpoints: Sequence[Path] = (),
) -> tuple[Figure, list[str]]:
    """The page, and what it lacks.

    Args:
        folder: of a finished probe.
        ablation: folder of `kfh ablate`, for (c).
        train: runs of `kfh train` that were probed as they went, for (d).
        checkpoints: or probes of later checkpoints, in order, held against the first probe.

    Raises:
        ConfigError: both runs and probes for (d).
        DataError: a folder without the results that it was named for.
        ModelError: probes of another shape.
    """
    from matplotlib.figure import Figure

    from probing.figures.probe import probe_title
    from probing.figures.style import RC, panel_letters, spell, wrapped
    from probing.folder import ProbeResult

    if train and checkpoints:
        raise ConfigError("--train and --stability draw the same panel: give one of the two")
    result = ProbeResult.load(folder)
    panels: list[Panel] = [partial(_heatmap, result), partial(_ensembles, result)]
    missing = []
    if ablation:
        rows, heads = step_rows(ablation)
        panels.append(partial(draw_interventions, rows=rows, heads=heads))
    else:
        missing.append("interventions (--ablation, a folder of `kfh ablate`)")
    if train:
        runs, without = probed_runs(train)
        panels.append(partial(_over_training, runs))
        if without:
            missing.append(f"{without} runs without probes of the policy")
    elif checkpoints:
        panels.append(partial(_over_checkpoints, against_start(folder, checkpoints)))
    else:
        missing.append("stability (--train, runs with probe_every; or --stability, probes)")
    lines, columns = SHAPES[len(panels)]
    from matplotlib import rc_context

    with rc_context(RC):
        figure = Figure(figsize=(4.9 * columns, 3.5 * lines + 0.5))
        grid = list(figure.subplots(lines, columns, squeeze=False).flat)
        for draw, axes in zip(panels, grid, strict=True):
            draw(axes)
        panel_letters(grid)
        probed = probe_title(result, result.config.by).partition(": ")[2]
        text = "\n".join([f"Key-Focus Heads of {probed}", *result.set_caveats])
        title = wrapped(spell(text), 4.7 * columns)
        figure.suptitle(title, x=0.02, ha="left")
        figure.tight_layout(w_pad=2, h_pad=2)
    return figure, missing


def _heatmap(result: ProbeResult, axes: Axes) -> None:
    from probing.choices import METRIC_NAMES
    from probing.figures.probe import draw_heatmap

    metric = result.config.by
    draw_heatmap(axes, result, metric, "classes")  # as the paper has it
    axes.set_title(f"{METRIC_NAMES[metric]} of heads (outlined: the set)", loc="left")


def _ensembles(result: ProbeResult, axes: Axes) -> None:
    from probing.figures.probe import draw_ensembles
    from probing.figures.style import legend_above, plain

    draw_ensembles(axes, result)
    plain(axes, "ensembles")
    legend_above(axes)


def step_rows(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Accuracy by arm and number of steps removed, from `ablation.json`; the heads that scored.

    Raises:
        DataError: the file is missing, damaged, or has no accuracy after steps were removed.
    """
    from probing.files.headers import read_object

    path = folder / ABLATION_FILE
    content = read_object(path)
    try:
        rows = [
            row
            for row in content["summary"]
            if (row["part"], row["measure"]) == ("steps", "accuracy") and row["arm"] in ARMS
        ]
        heads = ", ".join(f"{layer}.{head}" for layer, head in content["head_set"]["heads"])
        [float(row[key]) for row in rows for key in ("value", "low", "high", "dose", "traces")]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no result of `kfh ablate` ({error!r})") from error
    if {row["arm"] for row in rows} != set(ARMS):
        raise DataError(
            f"{path}: no accuracy with and without low-score, high-score and random steps; run "
            "`kfh ablate --parts steps` with --max-answer-tokens above 0"
        )
    return rows, heads


def draw_interventions(axes: Axes, rows: Sequence[dict[str, Any]], heads: str) -> None:
    """Accuracy as it is, and with steps removed: a group an arm, a bar a number of steps.

    Args:
        axes: to draw on.
        rows: of `step_rows`.
        heads: whose scores rank the steps, for the title.
    """
    from probing.figures.style import BLUE, GREEN, GREY, ORANGE, SMALL, plain

    colours = {"none": GREY, "low": BLUE, "high": ORANGE, "random": GREEN}
    doses = sorted({row["dose"] for row in rows if row["arm"] != "none"})
    width = 0.8 / len(doses)
    ticks = []
    for place, arm in enumerate(ARMS):
        bars = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["dose"])
        shift = (len(bars) - 1) / 2
        for number, row in enumerate(bars):
            x, y = place + (number - shift) * width, row["value"]
            axes.bar(x, y, 0.88 * width, color=colours[arm], alpha=1 - 0.22 * number, lw=0)
            ends = [[max(0.0, y - row["low"])], [max(0.0, row["high"] - y)]]
            axes.errorbar(x, y, yerr=ends, color="black", lw=0.9, capsize=2)
            if arm != "none":
                ticks.append((x, f"{row['dose']:g}"))
    axes.set_xticks([x for x, _ in ticks], [text for _, text in ticks], fontsize=SMALL)
    for place, (_, name) in enumerate(ARMS.items()):
        # In points: a title of many lines leaves the axes low, and a share of them little.
        axes.annotate(
            name,
            (place, 0),
            (0, -16),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
            va="top",
        )
    axes.set_xlabel("number of steps", labelpad=26)
    counts = sorted({int(row["traces"]) for row in rows})
    traces = "–".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    axes.set_ylabel(f"accuracy, {traces} traces")
    axes.set_ylim(0, None)
    plain(axes, f"steps removed by score (heads {heads})")


def probed_runs(folders: Sequence[Path]) -> tuple[list[Run], int]:
    """Training runs with probes of the policy, and the number of runs without.

    Raises:
        DataError: none of the folders holds such a run.
    """
    from rl.runs.folders import find_runs, read_run

    runs = [read_run(folder) for folder in find_runs(folders)[0]]
    probed = [run for run in runs if run.probe]
    if not probed:
        raise DataError(
            f"{folders[0]}: no run was probed as it went; train with --set probe_every=10 "
            "--set probe_traces=FILE, or give probes of checkpoints with --stability"
        )
    return probed, len(runs) - len(probed)


def _over_training(runs: Sequence[Run], axes: Axes) -> None:
    from probing.figures.style import plain
    from rl.runs.figures import draw_correlation

    draw_correlation(axes, runs)
    plain(axes, "stability over training")


def against_start(folder: Path, checkpoints: Sequence[Path]) -> list[dict[str, Any]]:
    """Pearson correlation of each later probe with the first, with its interval and ceiling."""
    from probing.robustness.stability import compare_with_first

    return compare_with_first([folder, *checkpoints])


def _over_checkpoints(pairs: Sequence[dict[str, Any]], axes: Axes) -> None:
    from probing.figures.style import BLUE, GREY, plain, spell

    for x, pair in enumerate(pairs):
        y = pair["pearson"]
        low, high = (pair[f"pearson_{end}"] for end in ("low", "high"))
        ends = None if low is None else [[max(0.0, y - low)], [max(0.0, high - y)]]
        axes.errorbar(x, y, yerr=ends, color=BLUE, marker="o", ms=4, capsize=3)
        if pair["ceiling"] is not None:
            label = "ceiling (reliability)" if x == 0 else None
            axes.plot([x - 0.3, x + 0.3], [pair["ceiling"]] * 2, color=GREY, ls=":", label=label)
    names = [spell(pair["b"]) for pair in pairs]
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 3 else 0, ha="center")
    lowest = min(pair["pearson_low"] or pair["pearson"] for pair in pairs)
    axes.set(xlim=(-0.6, len(pairs) - 0.4), ylim=(min(0.8, lowest - 0.05), 1.02))
    axes.set_ylabel(f"Pearson with {spell(pairs[0]['a'])}")
    plain(axes, "stability")
    if np.any([pair["ceiling"] is not None for pair in pairs]):
        axes.legend(loc="lower right")
