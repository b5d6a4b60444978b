"""The solver object for CVXPY: values, dual values and endings against Clarabel."""

import cvxpy as cp
import numpy as np
import pytest

from constrain.integrations.cvxpy import conic
from constrain.solvers.augmented import AugmentedLagrangian
from constrain.solvers.second_order import Newton

EXACT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


def quadratic(rng):
    """Strictly convex with equalities, inequalities both ways and bounds: multipliers are unique."""
    x, root = cp.Variable(6, nonneg=True), rng.normal(size=(8, 6))
    rows = [rng.normal(size=(2, 6)) @ x == rng.normal(size=2) * 0.1 + 1, cp.sum(x) <= 3, x[:2] >= 0.05]
    return cp.Problem(cp.Minimize(cp.sum_squares(root @ x - rng.normal(size=8)) + x[0]), rows)


def linear(rng):
    """A transport program with positive costs."""
    x = cp.Variable((3, 4), nonneg=True)
    rows = [cp.sum(x, axis=1) <= rng.uniform(2, 3, 3), cp.sum(x, axis=0) >= rng.uniform(0.5, 1.2, 4)]
    return cp.Problem(cp.Minimize(cp.sum(cp.multiply(rng.uniform(1, 5, (3, 4)), x))), rows)


def piecewise(rng):
    """Kinks that CVXPY rewrites, maximized."""
    x = cp.Variable(4)
    worth = -cp.norm1(x - rng.normal(size=4)) - cp.max(rng.normal(size=(5, 4)) @ x) - 0.1 * cp.sum_squares(x)
    return cp.Problem(cp.Maximize(worth), [cp.sum(x) == 1, cp.norm_inf(x) <= 2])


@pytest.mark.parametrize("make", [quadratic, linear, piecewise])
@pytest.mark.parametrize("method", ["auto", "newton", "pyomo"])
def test_values_and_dual_values_are_those_of_clarabel(make, method):
    for seed in range(3):
        problem = make(np.random.default_rng(seed))
        expected = problem.solve(solver="CLARABEL", **EXACT)
        duals = [np.squeeze(c.dual_value) for c in problem.constraints]
        assert problem.solve(solver=conic(method)) == pytest.approx(expected, rel=1e-6, abs=1e-7)
        assert problem.status == "optimal"
        assert problem.solver_stats.solver_name == "CONSTRAIN"
        for constraint, dual in zip(problem.constraints, duals, strict=True):
            assert np.squeeze(constraint.dual_value) == pytest.approx(dual, abs=1e-4)


def test_the_dual_vector_of_a_cone_at_its_tip_balances_the_slopes():
    """The norm of x is least at 0 against a pull shorter than one; the other cone is not at its tip."""
    x, t, w, u = cp.Variable(3), cp.Variable(), cp.Variable(3), cp.Variable()
    pull, target = np.array([0.3, -0.4, 0.2]), np.array([1.0, 0.5, -1.0])
    tip, side = cp.SOC(t, x), cp.SOC(u, w)
    problem = cp.Problem(cp.Minimize(t + pull @ x + cp.sum_squares(w - target) + u), [tip, side])
    expected = problem.solve(solver="CLARABEL", **EXACT)
    duals = [np.squeeze(part) for cone in (tip, side) for part in cone.dual_value]
    assert problem.solve(solver=conic()) == pytest.approx(expected, abs=1e-6)
    found = [np.squeeze(part) for cone in (tip, side) for part in cone.dual_value]
    for one, other in zip(found, duals, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert found[1] == pytest.approx(pull, abs=1e-4)


def test_a_solver_object_with_options():
    problem = quadratic(np.random.default_rng(0))
    expected = problem.solve(solver="CLARABEL", **EXACT)
    for solver in (Newton(tolerance=1e-10), AugmentedLagrangian()):
        assert problem.solve(solver=conic(solver)) == pytest.approx(expected, rel=1e-6)
    assert problem.solve(solver=conic(), tolerance=1e-7) == pytest.approx(expected, rel=1e-6)


def test_problems_without_constraints_and_with_equalities_alone():
    x = cp.Variable(3)
    assert cp.Problem(cp.Minimize(cp.sum_squares(x - 1) + 2)).solve(solver=conic()) == pytest.approx(2.0)
    row = cp.sum(x) == 1
    assert cp.Problem(cp.Minimize(cp.sum_squares(x)), [row]).solve(solver=conic()) == pytest.approx(1 / 3)
    assert float(row.dual_value) == pytest.approx(-2 / 3)


def test_endings():
    x = cp.Variable(2, nonneg=True)
    impossible = cp.Problem(cp.Minimize(cp.sum(x)), [cp.sum(x) <= -1])
    impossible.solve(solver=conic())
    assert impossible.status == "infeasible"
    assert impossible.value == np.inf
    endless = cp.Problem(cp.Maximize(cp.sum(x)))
    endless.solve(solver=conic("cvxpy"))
    assert endless.status == "unbounded"
    assert endless.value == np.inf


def test_power_cones_and_large_matrices_are_refused():
    x = cp.Variable(3, nonneg=True)
    cone = cp.Problem(cp.Minimize(cp.sum(x)), [cp.PowCone3D(x[0], x[1], x[2] + 1, 0.3)])
    with pytest.raises(cp.error.SolverError, match=r"PowCone3D|CONSTRAIN"):
        cone.solve(solver=conic())
    y = cp.Variable(3000)
    with pytest.raises(cp.error.SolverError, match="dense entries, more than 4,000,000"):
        cp.Problem(cp.Minimize(cp.sum(y)), [y >= 0]).solve(solver=conic())
