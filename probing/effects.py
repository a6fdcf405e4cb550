"""From outcomes to effects: means by arm, differences within traces, and what they say.

Every measure of an outcome is summarised alike: `accuracy` (correct), `logprob` (nats, the sum
over the counted answer tokens), and what the part put into `extra`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probing.outcomes import NONE, RANDOM, Outcome

MATCHED = "matched"
OTHER_STEP = "other-step"  # steering: the head set, to another step
CONTROLS = (RANDOM, MATCHED, OTHER_STEP)
KEYS = ["part", "arm", "mode", "dose"]
RESAMPLES = 4000
LEVEL = 0.95


def outcome_table(outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """A row an outcome and measure that it has: keys, draw, trace, group, measure, value."""
    rows = []
    for one in outcomes:
        measured: dict[str, float | None] = {"logprob": one.logprob, **one.extra}
        measured["accuracy"] = None if one.correct is None else float(one.correct)
        key = (one.part, one.arm, one.mode, one.dose, one.draw, one.trace, one.group)
        rows += [(*key, name, value) for name, value in measured.items() if value is not None]
    return pd.DataFrame(rows, columns=[*KEYS, "draw", "trace", "group", "measure", "value"])


def over_draws(table: pd.DataFrame) -> pd.DataFrame:
    """The mean over the draws of each arm within each trace."""
    by = [*KEYS, "measure", "trace", "group"]
    return table.groupby(by, sort=False, as_index=False)["value"].mean()


def group_interval(
    values: Float[np.ndarray, "trace"],
    groups: Int[np.ndarray, "trace"],
    *,
    seed: int = 0,
    share: bool = False,
) -> tuple[float, float, float]:
    """Mean over traces with its 95 % percentile bootstrap interval over groups.

    A group (the traces of one problem) is drawn as a whole; the mean stays one over traces.

    Args:
        values: one a trace.
        groups: the number of each trace's group, from 0.
        seed: of the bootstrap.
        share: values are right or wrong, or differences of these. Where all traces agree the
            bootstrap has no width; then the interval is widened to what n groups that agree
            leave open, 1 - 0.025^(1/n) (Clopper and Pearson 1934).

    Example: three traces 0, 0, 1 of three problems: mean 1/3, interval 0 to 1.
    """
    count = int(groups.max()) + 1
    sums = np.bincount(groups, values, minlength=count)
    sizes = np.bincount(groups, minlength=count).astype(float)
    mean = float(values.mean())
    weights = _resampled(count, seed)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile((weights @ sums) / (weights @ sizes), [tail, 1 - tail])
    if share and np.ptp(values) == 0:
        reach = 1 - tail ** (1 / count)
        low, high = low - reach, high + reach
    return mean, float(low), float(high)


@lru_cache(maxsize=16)
def _resampled(count: int, seed: int) -> Float[np.ndarray, "resample group"]:
    """How often each group is drawn in each resample; the same for every measure."""
    rng = np.random.default_rng([seed, count])
    return rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)


def _figure(frame: pd.DataFrame, measure: str, column: str, seed: int, bounded: bool) -> dict:
    """Mean, interval and numbers of one cell of a table."""
    groups = pd.factorize(frame["group"])[0]
    share = measure == "accuracy"
    value, low, high = group_interval(frame[column].to_numpy(), groups, seed=seed, share=share)
    if share and bounded:
        low, high = max(0.0, low), min(1.0, high)
    return {
        "value": value,
        "low": low,
        "high": high,
        "traces": len(frame),
        "groups": int(groups.max()) + 1,
    }


def summarise(outcomes: Iterable[Outcome], seed: int = 0) -> pd.DataFrame:
    """Mean of each measure by part, arm, mode and dose, with 95 % intervals over groups.

    Columns: the keys, measure, value, low, high, traces, groups; in the order of the outcomes.
    """
    table = over_draws(outcome_table(outcomes))
    rows = [
        {
            **dict(zip([*KEYS, "measure"], key, strict=True)),
            **_figure(frame, str(key[-1]), "value", seed, True),
        }
        for key, frame in table.groupby([*KEYS, "measure"], sort=False)
    ]
    return pd.DataFrame(
        rows, columns=[*KEYS, "measure", "value", "low", "high", "traces", "groups"]
    )


def differences(outcomes: Iterable[Outcome], seed: int = 0) -> pd.DataFrame:
    """Every arm minus `none`, and minus each control of its mode and dose, paired by trace.

    Columns: those of `summarise`, and `against`, the arm that is subtracted. Negative: the
    change hurts (more than the control does). Traces that lack either are left out of the pair.
    """
    table = over_draws(outcome_table(outcomes))
    grouped = table.groupby([*KEYS, "measure"], sort=False)
    cells = {key: frame for key, frame in grouped}  # noqa: C416  # it has `keys`, as a dict has
    rows = []
    for key, frame in cells.items():
        part, arm, mode, dose, measure = key
        for against, other in _references(cells, key):
            pair = frame.merge(other[["trace", "value"]], on="trace", suffixes=("", "_other"))
            if pair.empty:
                continue
            pair["difference"] = pair["value"] - pair["value_other"]
            rows.append(
                {
                    "part": part,
                    "arm": arm,
                    "mode": mode,
                    "dose": dose,
                    "measure": measure,
                    "against": against,
                    **_figure(pair, str(measure), "difference", seed, False),
                }
            )
    columns = [*KEYS, "measure", "against", "value", "low", "high", "traces", "groups"]
    return pd.DataFrame(rows, columns=columns)


def _references(cells: dict[Any, pd.DataFrame], key: Any) -> list[tuple[str, pd.DataFrame]]:
    """What an arm is held against: nothing changed, and the controls of its mode and dose."""
    part, arm, mode, dose, measure = key
    if arm == NONE:
        return []
    found = [
        (NONE, frame)
        for of, frame in cells.items()
        if (of[0], of[1], of[-1]) == (part, NONE, measure)
    ]
    for control in CONTROLS:
        other = cells.get((part, control, mode, dose, measure))
        if other is not None and arm not in CONTROLS:
            found.append((control, other))
    return found
