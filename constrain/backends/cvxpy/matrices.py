"""Matrix inequalities: extreme eigenvalues as semidefinite constraints whose dual values are at hand.

`lambda_min(M) >= b` is M - b I >> 0, and `lambda_max(M)` anywhere else is the least t with t I - M >> 0. The
dual value Z of such a constraint is positive semidefinite; its trace is the multiplier of the scalar
constraint, and Z / trace Z is the slope of the eigenvalue at the solution (Overton, 1988).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.backends.cvxpy.package import cp
from constrain.language import nodes as n
from constrain.language.types import type_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from constrain.backends.cvxpy.expressions import Lowerer

__all__ = ["EIGENVALUES", "Inequality", "dual_of", "eigenvalue", "inequality"]

EIGENVALUES = ("lambda_max", "lambda_min")


@dataclass(frozen=True)
class Inequality:
    """One semidefinite constraint of the cvxpy problem.

    Attributes:
        constraint: of cvxpy.
        slope: where the slope of the eigenvalue goes.
    """

    constraint: Any
    slope: n.ArraySymbol


def _symmetric(matrix: Any) -> Any:
    return matrix if matrix.is_symmetric() else (matrix + matrix.T) / 2


def _identity(size: int) -> NDArray[np.float64]:
    return np.eye(size)


def eigenvalue(builder: Lowerer, node: n.Apply) -> Any | None:
    """A variable that bounds an extreme eigenvalue, with its constraint; None where the atom will do."""
    slope = node.option("slope")
    if slope is None or type_of(node).lead:
        return None
    matrix = _symmetric(builder.expression(node.args[0]))
    level = cp.Variable(name=f"{node.atom} {len(builder.inequalities) + 1}")
    bounded = level * _identity(matrix.shape[0])
    gap = bounded - matrix if node.atom == "lambda_max" else matrix - bounded
    builder.inequalities.append(Inequality(gap >> 0, slope))
    return level


def inequality(builder: Lowerer, residual: n.Node) -> Inequality | None:
    """The residual `b - lambda_min(M)` or `lambda_max(M) - b` as one semidefinite constraint, else None."""
    match residual:
        case n.Apply(atom="sub", args=(b, n.Apply(atom="lambda_min") as node)):
            sign = 1.0
        case n.Apply(atom="sub", args=(n.Apply(atom="lambda_max") as node, b)):
            sign = -1.0
        case _:
            return None
    slope, kind = node.option("slope"), type_of(b)
    if slope is None or kind.lead or kind.shape != () or type_of(node).lead:
        return None
    if any(isinstance(x, n.Apply) and x.atom in EIGENVALUES for x in n.postorder(b, *node.args)):
        return None
    level, matrix = builder.expression(b), _symmetric(builder.expression(node.args[0]))
    fixed = builder.number(b)
    if fixed is None:
        if not level.is_affine():
            return None
        moved = matrix - level * _identity(matrix.shape[0])
    else:
        moved = matrix - float(fixed) * _identity(matrix.shape[0]) if float(fixed) else matrix
    return Inequality((moved if sign > 0 else -moved) >> 0, slope)


def dual_of(found: Inequality) -> tuple[float, NDArray[np.float64] | None]:
    """The trace of the dual value, and the slope: the nearest positive semidefinite matrix of trace 1.

    None in the place of the slope where the dual value is zero.
    """
    value = np.asarray(found.constraint.dual_value, dtype=np.float64)
    values, vectors = np.linalg.eigh((value + value.T) / 2)
    kept = np.maximum(values, 0.0)
    total = float(kept.sum())
    if total <= 1e-12:
        return max(total, 0.0), None
    return total, (vectors * (kept / total)) @ vectors.T
