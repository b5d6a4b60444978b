"""Mangasarian-Fromovitz qualification: is there a direction into the feasible set, to first order?

Independent gradients (LICQ) make multipliers unique; MFCQ makes the set of multipliers bounded. It holds when
the gradients of equalities are independent and a direction d satisfies grad h d = 0, grad g d < 0 for active
inequalities and active bounds: a linear program. Where it fails, gradients of what is active balance each
other without the objective (Motzkin's alternative), and there may be no multipliers at all.

Source: Nocedal & Wright, Numerical Optimization (2006), definition 12.6; John (1948), "Extremum problems with
inequalities as subsidiary conditions", for the combination without the objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy import optimize

from constrain.diagnostics.fit import best_fit
from constrain.diagnostics.jacobian import gradients
from constrain.solvers.fritz_john import NOTHING, fritz_john

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from constrain.diagnostics.jacobian import Entry, Gradients, Qualification
    from constrain.runtime.evaluator import Evaluator
    from constrain.solvers.fritz_john import FritzJohn

    Vector = NDArray[np.float64]
    Mask = NDArray[np.bool_]

__all__ = ["Alone", "alone", "mangasarian_fromovitz"]

MOST = 5_000
"""Coordinates of the linear program; beyond, it is not solved."""
UNBALANCED, UNTOLD = 1e-3, 0.1
"""Share of the objective's gradient that multipliers of moderate size must leave, so that it is said that
there are none: where larger ones balance it, and where nothing does (the point may be no optimum)."""
NEAR = 1e-5
"""Violation up to which a point counts as feasible."""
LARGE = 1e3
"""Ratio of the pull of a constraint to that of the objective from which multipliers are doubted."""
ASIDE = 1e-2
"""Relative distance at which gradients are compared with those at the point."""
VANISHED = 1e-5
"""Ratio to the gradient at that distance below which one counts as zero."""
ROUNDING = 1e-10
"""Length of a combination of gradients that may be rounding."""
LISTED = 1e-3
"""Weight from which a gradient is named."""


def mangasarian_fromovitz(
    entries: Sequence[Entry],
    rows: Vector,
    at_lower: Mask,
    at_upper: Mask,
    independence: Qualification,
) -> bool | None:
    """Whether the qualification holds; None where the linear program is too large.

    Args:
        entries: the chosen ones; those that bind count.
        rows: (entries, decisions) their gradients.
        at_lower: (decisions,) coordinates at their lower bound.
        at_upper: (decisions,) coordinates at their upper bound.
        independence: of the same entries; where it is complete it decides.
    """
    if independence.vanishing:
        return False
    if independence.rank == independence.active:
        return True
    used = [k for k, e in enumerate(entries) if e.binding]
    matrix = rows[used] / np.linalg.norm(rows[used], axis=1)[:, None]
    equality = np.array([entries[k].equality for k in used], dtype=bool)
    fixed = at_lower & at_upper
    first = matrix[equality][:, ~(at_lower | at_upper)]
    if equality.any() and np.linalg.matrix_rank(first, tol=1e-7) < equality.sum():
        return False
    held = (at_lower ^ at_upper) & ~fixed
    if not held.any():  # a combination of the gradients is enough
        matrix = matrix[:, ~fixed] @ matrix[:, ~fixed].T
        signs = np.zeros(matrix.shape[1])
    else:
        matrix, signs = matrix[:, ~fixed], np.where(at_lower, -1.0, np.where(at_upper, 1.0, 0.0))[~fixed]
    if matrix.shape[1] > MOST:
        return None
    return _direction(matrix, equality, signs) > 1e-7


def _direction(matrix: Vector, equality: Mask, signs: Vector) -> float:
    """The largest t with grad h d = 0, grad g d <= -t, sign_j d_j <= -t and |d_j| <= 1."""
    size = matrix.shape[1]
    bounds = np.diag(signs)[signs != 0]
    below = np.vstack([matrix[~equality], bounds])
    found = cast("Any", optimize).linprog(
        np.append(np.zeros(size), -1.0),
        A_ub=np.hstack([below, np.ones((len(below), 1))]) if len(below) else None,
        b_ub=np.zeros(len(below)) if len(below) else None,
        A_eq=np.hstack([matrix[equality], np.zeros((int(equality.sum()), 1))]) if equality.any() else None,
        b_eq=np.zeros(int(equality.sum())) if equality.any() else None,
        bounds=[(-1.0, 1.0)] * size + [(0.0, 1.0)],
        method="highs",
    )
    return float(-found.fun) if found.status == 0 else 0.0


@dataclass(frozen=True)
class Alone:
    """Gradients that balance each other where no multipliers balance the objective.

    Attributes:
        weights: by the name of the constraint or bound, sizes add up to 1; those above 1e-3.
        fitted: (entries,) multipliers that balance it best among those that pull no more than the objective.
        rest: (decisions,) what they leave of its gradient.
    """

    weights: dict[str, float]
    fitted: Vector
    rest: Vector


def alone(
    evaluator: Evaluator,
    entries: Sequence[Entry],
    found: Gradients,
    ends: tuple[Mask, Mask],
    fit: tuple[Vector, Vector],
    tolerance: float,
) -> Alone | None:
    """Weights of active gradients that add up to nothing, at a point that has no multipliers.

    Multipliers count as none when they would outweigh the objective a million times: the combination of all
    gradients with weights that add up to 1 then has a weight below 1e-6 of the objective. Where gradients
    depend on each other at all points nearby as well, as those of copies do, an optimum has multipliers
    (constant positive linear dependence, Qi & Wei 2000), and nothing is said.

    Args:
        evaluator: at the point.
        entries: the chosen ones.
        found: gradients.
        ends: (decisions,) coordinates at their lower, and at their upper bound.
        fit: (entries,) multipliers of any size that balance the objective best, and (decisions,) what they
            leave.
        tolerance: of the judgment.

    Returns:
        None where constraints do not hold, where multipliers exist or that is not clear, and where no
        combination is found.
    """
    force, lengths = found.objective + found.rest, np.linalg.norm(found.rows, axis=1)
    pull, left = (float(np.max(np.abs(x), initial=0.0)) for x in (force, fit[1]))
    holds = all(e.residual <= NEAR and (e.residual >= -NEAR or not e.equality) for e in entries)
    small = left <= tolerance and (np.abs(fit[0]) * np.maximum(lengths, 1.0) <= LARGE * pull).all()
    binding = [e for e in entries if e.binding]
    if small or not holds or not binding:
        return None
    combined = _combined(evaluator, binding, ends)
    if combined is None:
        return None
    weights, gone = combined
    used = np.array([e.binding for e in entries], dtype=bool)
    used[used] = ~gone
    caps, equality = pull / lengths[used], np.array([e.equality for e in entries], dtype=bool)[used]
    share = UNBALANCED if left <= tolerance * max(1.0, pull) else UNTOLD
    rest = best_fit(force, found.rows[used], equality, *ends, caps / NOTHING)[1]
    if float(np.max(np.abs(rest), initial=0.0)) <= max(tolerance, share * pull):
        return None
    fitted = np.zeros(len(entries))
    fitted[used], rest = best_fit(force, found.rows[used], equality, *ends, caps)
    named = dict(zip([e.label for e in binding], weights.rows.tolist(), strict=True))
    for side, values in (("lower", weights.lower), ("upper", weights.upper)):
        places: list[int] = np.flatnonzero(values).tolist()
        named |= {f"{_coordinate(evaluator, k)} at its {side} bound": float(values[k]) for k in places}
    return Alone({name: w for name, w in named.items() if abs(w) > LISTED}, fitted, rest)


def _combined(
    evaluator: Evaluator, binding: Sequence[Entry], ends: tuple[Mask, Mask]
) -> tuple[FritzJohn, Mask] | None:
    """A combination of active gradients that is 0 here and not nearby, and which gradients vanish here."""
    equality = np.array([e.equality for e in binding], dtype=bool)
    none: list[Vector | None] = [None] * len(evaluator.program.parts)
    rows = gradients(evaluator, binding, none).rows
    decisions, (low, high) = evaluator.decisions, evaluator.decisions.bounds()
    x = decisions.get()
    aside = np.random.default_rng(0).choice([-1.0, 1.0], size=len(x)) * ASIDE * (1 + np.abs(x))
    aside = np.where(ends[0], np.abs(aside), np.where(ends[1], -np.abs(aside), aside))
    decisions.set(np.clip(x + aside, low, high))
    try:
        others = gradients(evaluator, binding, none).rows
    finally:
        decisions.set(x)
    if not (np.isfinite(rows).all() and np.isfinite(others).all()) or not others.any(axis=1).all():
        return None
    gone = np.linalg.norm(rows, axis=1) <= VANISHED * np.linalg.norm(others, axis=1)
    here = fritz_john(rows, equality, *ends, gone)
    if here is None or (here.residual > NOTHING and not gone.any()):
        return None
    beside = fritz_john(others, equality, *ends, np.zeros_like(gone))
    apart = beside is not None and beside.residual > max(ROUNDING, LARGE * here.residual)
    return (here, gone) if gone.any() or apart else None


def _coordinate(evaluator: Evaluator, k: int) -> str:
    """The name of a coordinate of the flat vector of decisions: `w[1, 0]`."""
    for block in evaluator.decisions.blocks:
        size = block.tensor.numel()
        if k < size:
            place = np.unravel_index(k, tuple(block.tensor.shape))
            return f"{block.name}[{', '.join(str(int(i)) for i in place)}]" if place else block.name
        k -= size
    raise IndexError(k)
