"""The cvxpy package, untyped: its annotations are partial and strict checking would report every use."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import cvxpy
import cvxpy.reductions.solvers.solving_chain as chains

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["cp", "without_inferred_bounds"]

cp: Any = cvxpy


@contextmanager
def without_inferred_bounds() -> Generator[None]:
    """Runs a block in which cvxpy does not bound its auxiliary variables by interval arithmetic.

    For solvers that take bounds (HiGHS) it bounds the epigraph variables of `maximum`, `abs` and others by
    those of their arguments. In cvxpy 1.9.3 these are wrong for a number times a matrix product: a product of
    zeros and infinite bounds is NaN, and a number times NaN is taken for 0. A feasible problem is then
    infeasible, or has another optimum. Bounds of the problem's own variables are not touched.
    """
    module: Any = chains
    original = getattr(module, "SolverInfo", None)
    if original is None:  # versions that infer nothing
        yield
        return

    def unbounded(*args: Any, **options: Any) -> Any:
        found = original(*args, **options)
        found.solver_supports_bounds = False
        return found

    module.SolverInfo = unbounded
    try:
        yield
    finally:
        module.SolverInfo = original
