"""From outcomes to effects: means by arm, differences within traces, and what they say.

Every measure of an outcome is summarised alike: `accuracy` (correct), `logprob` (nats, the sum
over the counted answer tokens), and what the part put into `extra`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from probing.intervals import estimate_mean, estimate_share
from probing.interventions.outcomes import NONE, RANDOM, Outcome

MATCHED = "matched"
STEERING = "steering"
OTHER_STEP = "other-step"  # steering: the head set, to another step
CONTROLS = (RANDOM, MATCHED, OTHER_STEP)
KEYS = ["part", "arm", "mode", "dose"]
RESAMPLES = 4000  # of groups: claims depend on the ends of intervals


def outcome_table(outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """A row an outcome and measure that it has: keys, draw, trace, group, measure, value."""
    rows = []
    for outcome in outcomes:
        measured: dict[str, float | None] = {"logprob": outcome.logprob, **outcome.extra}
        measured["accuracy"] = None if outcome.correct is None else float(outcome.correct)
        key = (
            outcome.part,
            outcome.arm,
            outcome.mode,
            outcome.dose,
            outcome.draw,
            outcome.trace,
            outcome.group,
        )
        rows += [(*key, name, value) for name, value in measured.items() if value is not None]
    return pd.DataFrame(rows, columns=[*KEYS, "draw", "trace", "group", "measure", "value"])


def over_draws(table: pd.DataFrame) -> pd.DataFrame:
    """The mean over the draws of each arm within each trace."""
    by = [*KEYS, "measure", "trace", "group"]
    return table.groupby(by, sort=False, as_index=False)["value"].mean()


def _estimate(frame: pd.DataFrame, measure: str, column: str, seed: int) -> dict[str, Any]:
    """Mean over traces, its interval over groups, and the numbers of both."""
    rows = [values.tolist() for _, values in frame.groupby("group", sort=False)[column]]
    drawn: Any = {"resamples": RESAMPLES, "seed": (seed, len(rows))}
    if measure == "accuracy":
        estimate = estimate_share(rows, difference=column == "difference", **drawn)
    else:
        estimate = estimate_mean(rows, **drawn)
    interval = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {**interval, "traces": len(frame), "groups": estimate.n}


def summarise(outcomes: Iterable[Outcome], seed: int = 0) -> pd.DataFrame:
    """Mean of each measure by part, arm, mode and dose, with 95 % intervals over groups.

    Columns: the keys, measure, value, low, high, traces, groups; in the order of the outcomes.
    """
    table = over_draws(outcome_table(outcomes))
    rows = [
        {
            **dict(zip([*KEYS, "measure"], key, strict=True)),
            **_estimate(frame, str(key[-1]), "value", seed),
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
                    **_estimate(pair, str(measure), "difference", seed),
                }
            )
    columns = [*KEYS, "measure", "against", "value", "low", "high", "traces", "groups"]
    return pd.DataFrame(rows, columns=columns)


def _references(cells: dict[Any, pd.DataFrame], key: Any) -> list[tuple[str, pd.DataFrame]]:
    """What an arm is held against: nothing changed, and the controls of its mode and dose."""
    part, arm, mode, dose, measure = key
    if arm == NONE:
        return []
    references = [
        (NONE, frame)
        for of, frame in cells.items()
        if (of[0], of[1], of[-1]) == (part, NONE, measure)
    ]
    for control in CONTROLS:
        other = cells.get((part, control, mode, dose, measure))
        if other is not None and arm not in CONTROLS:
            references.append((control, other))
    return references


def dose_response(outcomes: Sequence[Outcome], seed: int) -> dict[str, dict[str, Any]]:
    """Steering: the mean rank correlation of factor and `follow`, by arm, with intervals."""
    groups = {outcome.trace: outcome.group for outcome in outcomes}
    by_arm = {}
    for arm, by_trace in dose_correlations(outcomes).items():
        rows: dict[str, list[float]] = {}
        for trace, value in sorted(by_trace.items(), key=lambda item: groups[item[0]]):
            rows.setdefault(groups[trace], []).append(value)
        mean = estimate_mean([*rows.values()], resamples=RESAMPLES, seed=(seed, len(rows)))
        interval = {"value": mean.value, "low": mean.low, "high": mean.high}
        by_arm[arm] = {**interval, "traces": len(by_trace)}
    return by_arm


def dose_correlation(
    doses: Float[np.ndarray, "dose"], responses: Float[np.ndarray, "dose"]
) -> float:
    """Spearman's rank correlation of dose and response; not a number where either is constant.

    Example:
        >>> round(dose_correlation(np.array([0, 0.5, 1, 2]), np.array([-3.0, -1.0, 0.5, 4.0])), 9)
        1.0
    """
    from scipy.stats import spearmanr

    if np.ptp(doses) == 0 or np.ptp(responses) == 0:
        return float("nan")
    return float(spearmanr(doses, responses).statistic)


def dose_correlations(
    outcomes: Iterable[Outcome], measure: str = "follow"
) -> dict[str, dict[str, float]]:
    """For each arm and trace the rank correlation of factor and response.

    The factor 1 of every arm is the trace's outcome without a change. Random draws are correlated
    one by one and averaged within a trace.

    Returns:
        arm → trace → correlation; traces with a constant response are left out.
    """
    series: dict[tuple[str, int, str], dict[float, float]] = {}
    ones: dict[str, float] = {}
    for outcome in outcomes:
        value = outcome.logprob if measure == "logprob" else outcome.extra.get(measure)
        if outcome.part != STEERING or value is None:
            continue
        if outcome.arm == NONE:
            ones[outcome.trace] = value
        else:
            series.setdefault((outcome.arm, outcome.draw, outcome.trace), {})[outcome.dose] = value
    by_arm: dict[str, dict[str, list[float]]] = {}
    for (arm, _, trace), by_dose in series.items():
        whole = {**by_dose, 1.0: ones[trace]} if trace in ones else by_dose
        doses = np.array(sorted(whole))
        rho = dose_correlation(doses, np.array([whole[dose] for dose in doses]))
        if not np.isnan(rho):
            by_arm.setdefault(arm, {}).setdefault(trace, []).append(rho)
    return {
        arm: {trace: float(np.mean(rhos)) for trace, rhos in of.items()}
        for arm, of in by_arm.items()
    }
