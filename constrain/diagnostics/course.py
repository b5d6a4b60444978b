"""Traps that the course of a training run shows: cycles, mixtures that beat every iterate, no way out.

What is read is the history that training records, one row per epoch, with exact values on the full data:
`objective`, `violation`, and per entry `residual:KEY` and `multiplier:KEY`. Its first third does not count.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.solution.records import Status, Warn
from constrain.solvers.guard import SWINGS, cycle_length

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.lowering.program import Program
    from constrain.solution.mixture import Mixture

__all__ = ["growing", "read_course"]

LEAST = 12
"""Records in the rest below which nothing is said."""

RELEVANT = 0.1
"""Least effect of a bouncing multiplier (times the spread of the residual), as a share of the objective."""

LASTING = 0.5
"""Least swing of the later half of cycles, as a share of the earlier one's: runs that converge lose more."""

TRAVEL = 0.9
"""Share of all movement after which a run counts as frozen: with a decayed rate, the rest shows nothing."""

STUCK = 0.05
"""Residual at the end, as a share of its swing, up to which a run found the bound after all."""

FALLING = 0.9
"""A violation whose mean falls to less than this share from one quarter to the next is on its way."""


def read_course(
    program: Program,
    history: Sequence[Mapping[str, Any]],
    status: Status,
    objective: float,
    tolerance: float,
    *,
    convex: bool,
    mixture: Mixture | None = None,
) -> list[Warn]:
    """C303 oscillation, C304 mixture-needed, C305 infeasible, W218 saddle-point.

    Args:
        program: the moment form.
        history: of a run.
        status: of its result.
        objective: of its result, in the user's sense.
        tolerance: of the judgment.
        convex: the problem is certified convex, so that averaging decisions replaces mixing them.
        mixture: of iterates that were kept, if it is better than the result.
    """
    found: list[Warn] = _saddle(history)
    rows = [row for row in history if "epoch" in row]
    tail = rows[len(rows) // 3 :]
    if len(tail) >= LEAST:
        mixed = [] if mixture is None else [_offer(mixture, status)]
        if not convex and not mixed:
            mixed = _mixture(program, tail, status, objective, tolerance)
        found += mixed
        quiet = bool(mixed) or status in (Status.OPTIMAL, Status.STATIONARY)
        found += [] if quiet else _cycles(rows, tail, tolerance)
    return found + _no_way_out(tail, status, tolerance)


def _saddle(history: Sequence[Mapping[str, Any]]) -> list[Warn]:
    """Curvature that a second-order method left in its last record."""
    curvature = float(history[-1].get("curvature", 0.0)) if history else 0.0
    if not curvature < 0.0:
        return []
    return [
        Warn(
            "W218",
            "saddle-point",
            "gradients balance, but the Lagrangian curves down along directions that keep the active "
            f"constraints (least curvature {curvature:.2g} on the scaled problem): this is no local optimum, "
            "and no step from it led to a better one; start elsewhere: x.value = ...",
        )
    ]


def _series(rows: Sequence[Mapping[str, Any]], kind: str) -> dict[str, NDArray[np.float64]]:
    """Recorded numbers of one kind by entry."""
    keys = [key for row in rows[:1] for key in row if key.startswith(f"{kind}:")]
    return {key.split(":", 1)[1]: np.array([float(row.get(key, np.nan)) for row in rows]) for key in keys}


# ---------------------------------------------------------------------------------------- oscillation
def _cycles(
    rows: Sequence[Mapping[str, Any]], tail: Sequence[Mapping[str, Any]], tolerance: float
) -> list[Warn]:
    """Cycles to the end, and cycles that only a falling rate froze.

    Args:
        rows: of the whole run.
        tail: without its first third.
        tolerance: of the judgment.
    """
    names: dict[str, int] = {}
    size = float(np.mean(np.abs([float(row["objective"]) for row in tail])))
    prices, whole_prices = _series(tail, "multiplier"), _series(rows, "multiplier")
    whole = _series(rows, "residual")
    for key, residual in _series(tail, "residual").items():
        period, swing = _cycle(residual, prices[key], size), float(np.std(residual))
        if not period or _settled(residual, prices[key]):
            moving = _moving(whole[key], whole_prices[key])
            residuals, price = whole[key][moving], whole_prices[key][moving]
            counts = _lasting(residuals) and _priced(residuals, price, size) and _stuck(residual, residuals)
            period = _cycle(residuals, price, size) if counts else 0
        if period and swing > 10 * tolerance:
            names.setdefault(key.split("[")[0].split(":")[0], period)
    if not names:
        return []
    apart = (rows[-1]["epoch"] - rows[0]["epoch"]) / (len(rows) - 1)  # epochs from record to record
    listed = ", ".join(f"{name} (about every {period * apart:.0f} epochs)" for name, period in names.items())
    return [
        Warn(
            "C303",
            "oscillation",
            f"violations come back in cycles: {listed}; no iterate settles. A gain (gain=0.3), averaged "
            'multipliers, or method="augmented" damps the cycle',
        )
    ]


def _cycle(residual: NDArray[np.float64], price: NDArray[np.float64], size: float) -> int:
    """Records per cycle; 0 without one."""
    return cycle_length(residual) or (_bounces(price) if _priced(residual, price, size) else 0)


def _priced(residual: NDArray[np.float64], price: NDArray[np.float64], size: float) -> bool:
    """Whether the swing of a residual matters at its price, next to the size of the objective."""
    return residual.size > 0 and float(np.mean(np.abs(price))) * float(np.std(residual)) > RELEVANT * size


def _moving(residual: NDArray[np.float64], price: NDArray[np.float64]) -> slice:
    """The records after the start of a run and before it is frozen.

    Steps decay with the learning rate, and a cycle that they drive slows down and stops wherever it is: with
    half a cosine 97 % of the way lies in the first three quarters. Beyond it there is nothing to see.
    """
    way = np.zeros(residual.size)
    for values in (residual, price):
        spread = float(np.std(values))
        if spread > 0:
            steps = np.abs(values[1:] - values[:-1])
            way[1:] += np.cumsum(steps) / spread
    stop = int((way < TRAVEL * float(way[-1])).sum()) + 1
    return slice(residual.size // 6, stop)


def _lasting(residual: NDArray[np.float64]) -> bool:
    """Whether the swings of the later half are about as large as those of the earlier one."""
    if residual.size < LEAST:
        return False
    half = residual.size // 2
    return float(np.std(residual[half:])) >= LASTING * float(np.std(residual[:half]))


def _stuck(residual: NDArray[np.float64], moving: NDArray[np.float64]) -> bool:
    """Whether a run ended away from the bound: not where it wanted to be, but anywhere."""
    last = residual[-max(2, residual.size // 4) :]
    return float(np.mean(np.abs(last))) > STUCK * float(np.std(moving))


def _bounces(multiplier: NDArray[np.float64]) -> int:
    """Records per cycle of a multiplier that falls to 0 and comes back, faster than records; 0 without."""
    middle = float(np.mean(multiplier))
    if not middle > 0:
        return 0
    sides = np.where(multiplier < 0.1 * middle, -1, np.where(multiplier > 1.2 * middle, 1, 0))
    swings = int((np.diff(sides[sides != 0]) != 0).sum())
    return max(2, round(2 * multiplier.size / swings)) if swings >= 2 * SWINGS else 0


def _settled(residual: NDArray[np.float64], multiplier: NDArray[np.float64]) -> bool:
    """Whether the last quarter stands still where complementarity wants it: at 0, or without a price."""
    last = residual[-max(2, residual.size // 4) :]
    swing = float(np.std(residual))
    free = float(np.max(np.abs(multiplier[-last.size :]))) <= 1e-3 * float(np.max(np.abs(multiplier)))
    return float(np.std(last)) < 0.3 * swing and (free or abs(float(np.mean(last))) < 0.3 * swing)


# -------------------------------------------------------------------------------------------- mixtures
def _offer(mixture: Mixture, status: Status) -> Warn:
    """C304 with the mixture that linear programming found among the iterates that were kept."""
    what = f"has the objective {mixture.single:.4g}" if status.solved else "holds no constraint"
    return Warn(
        "C304",
        "mixture-needed",
        f"drawing one of {len(mixture)} iterates at random holds every constraint on average with the "
        f"objective {mixture.objective:.4g}, and the best single one {what}: solution.mixture has them with "
        "their probabilities",
    )


def _mixture(
    program: Program,
    tail: Sequence[Mapping[str, Any]],
    status: Status,
    objective: float,
    tolerance: float,
) -> list[Warn]:
    """Drawing one of the last iterates at random meets the constraints on average, and is better."""
    kinds = {part.key: part.kind for part in program.parts}
    residuals = _series(tail, "residual")
    if not residuals or {key.split("[")[0] for key in residuals} != set(kinds):
        return []
    room = max(tolerance, 1e-2 * float(np.mean([np.std(r) for r in residuals.values()])))
    for key, values in residuals.items():
        mean = float(np.mean(values))
        if (abs(mean) if kinds[key.split("[")[0]] == "==" else mean) > room:
            return []
    mixed = float(np.mean([float(row["objective"]) for row in tail]))
    better = program.sign * (objective - mixed)
    spread = float(np.std([float(row["objective"]) for row in tail]))
    if status.solved and better <= max(0.05 * abs(objective), 0.25 * spread, 100 * tolerance):
        return []
    if not status.solved and all(float(np.std(r)) <= 10 * room for r in residuals.values()):
        return []
    what = "meets no constraint" if not status.solved else f"has the objective {objective:.4g}"
    return [
        Warn(
            "C304",
            "mixture-needed",
            f"drawing one of the last {len(tail)} iterates at random holds every constraint on average with "
            f"the objective {mixed:.4g}, and the best single one {what}; a randomized decision does better "
            "than any fixed one, and one more than the number of constraints is enough to mix",
        )
    ]


# ------------------------------------------------------------------------------------------ infeasible
def growing(history: Sequence[Mapping[str, Any]], tolerance: float) -> dict[str, float]:
    """Constraints whose multipliers kept growing while their violation stayed, with that violation.

    Args:
        history: the last records of a run.
        tolerance: violations up to it are none.
    """
    names: dict[str, float] = {}
    residuals = _series(history, "residual")
    for key, values in _series(history, "multiplier").items() if len(history) >= LEAST else ():
        size, residual = np.abs(values), residuals[key]
        pieces = np.array_split(size, 4)
        rising = all(float(np.mean(b)) > 1.05 * float(np.mean(a)) for a, b in pairwise(pieces))
        early, late = (float(np.mean(np.abs(x))) for x in np.array_split(residual, 2))
        if rising and late > tolerance and late >= FALLING * early:
            names[key.split("[")[0].split(":")[0]] = late
    return names


def _no_way_out(tail: Sequence[Mapping[str, Any]], status: Status, tolerance: float) -> list[Warn]:
    """Multipliers that keep growing while the violation does not fall."""
    if status.solved or status is Status.DIVERGED:
        return []
    names = growing(tail, tolerance)
    if not names and status not in (Status.INFEASIBLE, Status.LIKELY_INFEASIBLE):
        return []
    seen = ", ".join(f"{name} stays violated by {size:.3g}" for name, size in names.items())
    what = f"multipliers grow without end and {seen}" if names else "no point satisfies all constraints"
    if not names and status is Status.LIKELY_INFEASIBLE:
        what = "the penalty reached its limit while the violation stayed"
    return [
        Warn(
            "C305",
            "infeasible",
            f"{what}; solution.infeasibility() looks for the smallest set of constraints that exclude each "
            "other, and for the least that they have to give way",
        )
    ]
