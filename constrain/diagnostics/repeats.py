"""Monte Carlo errors of multipliers of a training run: the noise of its batches around the point it reached.

The multipliers returned are averages over the last third of a run. Where steps keep their size, the records
of that third are a stationary series, whose average has an error that follows from the means of consecutive
groups of records (batch means). Groups have to be long beside the time over which records are alike, which
the correlation of neighbors tells: a series of n records is worth n (1 - r) / (1 + r) independent ones, and
errors are given from 30 of these on. A multiplier that still moves is alike over all of the series, and gets
none. Another start, or another path of the weights, can settle at another point: of that a run knows nothing.
Measured by `python -m benchmarks.coverage` (docs/how-to/kkt.md).

Sources: Law & Kelton, Simulation Modeling and Analysis (1982), section 9.5; Marriott & Pope, Bias in the
estimation of autocorrelations, Biometrika 41 (1954); Jones, Haran, Caffo & Neath, Fixed-width output analysis
for Markov chain Monte Carlo, JASA 101 (2006).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.solution.noise import RunError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["run_error", "run_errors"]

GROUPS = 8
"""Groups of records whose means are compared: few, so that they are long."""

WORTH = 30
"""Independent records that a series has to be worth."""

COOLED = 0.5
"""Size of the last steps, as a share of that of the first ones, below which a schedule made them small."""

CLIPPED = 0.02
"""Share of records at 0 above which an average is that of a series which a bound reflects."""


def run_errors(history: Sequence[Mapping[str, Any]]) -> dict[str, RunError]:
    """By part key (with the entry's place, `parity:upper[1]`) the error of each recorded multiplier.

    Args:
        history: of a run. Records of training on batches have an `epoch`; those of methods on all rows have
            a `stationarity` as well, and nothing of them is random.
    """
    rows = [row for row in history if "epoch" in row and "stationarity" not in row]
    tail = [row for k, row in enumerate(rows) if 3 * (k + 1) > 2 * len(rows)]
    keys = [key for row in tail[:1] for key in row if key.startswith("multiplier:")]
    series: dict[str, NDArray[np.float64]] = {
        key: np.array([float(row.get(key, np.nan)) for row in tail]) for key in keys
    }
    return {key.split(":", 1)[1]: run_error(own) for key, own in series.items()}


def run_error(series: NDArray[np.float64]) -> RunError:
    """The error of the average of a series of records, or why there is none."""
    count = series.size
    value = float(np.mean(series)) if count else float("nan")
    reason = _refusal(series)
    if reason:
        return RunError(value, records=count, reason=reason)
    means = series[count % GROUPS :].reshape(GROUPS, -1).mean(axis=1)
    return RunError(value, float(np.std(means, ddof=1)) / GROUPS**0.5, GROUPS, count)


def _refusal(series: NDArray[np.float64]) -> str:
    """Why a series is not one whose average has an error; empty where it has one."""
    if not np.isfinite(series).all():
        return "multipliers are not finite"
    if not np.any(np.diff(series)):
        return "the multiplier did not move"
    if series.size < WORTH:
        return f"the last third has {series.size} records, and {WORTH} are needed: epochs={3 * WORTH}"
    if np.count_nonzero(series == 0.0) > CLIPPED * series.size:
        return "the multiplier was cut off at 0 in between"
    steps: NDArray[np.float64] = np.abs(series[1:] - series[:-1])
    quarter = steps.size // 4
    if float(np.mean(steps[-quarter:])) < COOLED * float(np.mean(steps[:quarter])):
        constant = "scheduler=lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)"
        return f"its steps became smaller by a schedule, and {constant} keeps them"
    worth = int(_worth(series))
    if worth < WORTH:
        return f"{series.size} records are worth {worth} independent ones, {WORTH} are needed: more epochs"
    return ""


def _worth(series: NDArray[np.float64]) -> float:
    """Independent records with the same error of the average, by the correlation of neighbors.

    The estimated correlation r is too small by about (1 + 4 r) / n, which is added.
    """
    centered = series - series.mean()
    r = float(centered[1:] @ centered[:-1]) / float(centered @ centered)
    r = min(max(0.0, r + (1 + 4 * r) / series.size), 1.0)
    return series.size * (1 - r) / (1 + r)
