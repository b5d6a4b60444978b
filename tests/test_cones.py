"""Dual values of cones in CVXPY, by `method="constrain"` and by the solver object, against Clarabel."""

import cvxpy as cp
import numpy as np
import pytest

from constrain.backends.cvxpy.cones import exponential, second_order
from constrain.integrations.cvxpy import conic

EXACT = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}


def second(sense):
    x, t = cp.Variable(3), cp.Variable()
    cost = t + np.array([0.2, 0.4, 0.6]) @ x + cp.sum_squares(x - 1)
    return _turned(cost, [cp.SOC(t, x), x[0] <= 0.5], sense)


def by_column(sense):
    X, t = cp.Variable((3, 2)), cp.Variable(2)
    cost = cp.sum(t) / 2 + cp.sum_squares(X - np.arange(6.0).reshape(3, 2)) + cp.sum_squares(t - 1)
    return _turned(cost, [cp.SOC(t, X, axis=0)], sense)


def by_row(sense):
    X, t = cp.Variable((2, 3)), cp.Variable(2)
    cost = cp.sum(t) / 2 + cp.sum_squares(X - np.arange(6.0).reshape(2, 3)) + cp.sum_squares(t - 1)
    return _turned(cost, [cp.SOC(t, X, axis=1)], sense)


def exponentials(sense):
    a, b, c = cp.Variable(2), cp.Variable(2), cp.Variable(2)
    cost = cp.sum(c) + cp.sum_squares(a - np.array([1.0, 0.5])) + cp.sum_squares(b - 2)
    return _turned(cost, [cp.ExpCone(a, b, c)], sense)


def semidefinite(sense):
    C = np.array([[1.0, 0.5, 0.0], [0.5, -1.0, 0.3], [0.0, 0.3, 0.2]])
    X = cp.Variable((3, 3), symmetric=True)
    cost = cp.trace(C @ X) + 0.3 * cp.sum_squares(X)
    return _turned(cost, [X >> 0.1 * np.eye(3), cp.trace(X) == 1], sense)


def mixed(sense):
    """Atoms from which CVXPY makes cones of every kind."""
    x = cp.Variable(4)
    cost = cp.norm(x) - cp.sum(cp.log(x))
    rows = [cp.norm(x - 1) <= 0.7, cp.sum(cp.exp(x)) <= 9, cp.lambda_max(cp.diag(x)) <= 1.2]
    return _turned(cost, rows, sense)


def _turned(cost, rows, sense):
    return cp.Problem(cp.Minimize(cost) if sense == "minimize" else cp.Maximize(-cost), rows)


def duals(problem):
    found = []
    for constraint in problem.constraints:
        value = constraint.dual_value
        found += [np.squeeze(v).copy() for v in (value if isinstance(value, list) else [value])]
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sense", ["minimize", "maximize"])
@pytest.mark.parametrize("make", [second, by_column, by_row, exponentials, semidefinite, mixed])
@pytest.mark.parametrize("how", ["method", "solver object"])
def test_dual_values_of_cones(make, sense, how):
    problem = make(sense)
    expected = problem.solve(solver="CLARABEL", **EXACT)
    wanted = duals(problem)
    options = {"method": "constrain"} if how == "method" else {"solver": conic()}
    assert problem.solve(**options) == pytest.approx(expected, rel=1e-6)
    assert problem.status == "optimal"
    for ours, theirs in zip(duals(problem), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("make", [second, by_column, exponentials])
@pytest.mark.parametrize("route", ["newton", "augmented"])
def test_methods_of_this_package_take_cones(make, route):
    """They know the cones as inequalities; nothing of CVXPY solves here."""
    problem = make("minimize")
    expected = problem.solve(solver="CLARABEL", **EXACT)
    wanted = duals(problem)
    for options in ({"solver": conic(route)}, {"method": "constrain", "route": route}):
        assert problem.solve(**options) == pytest.approx(expected, rel=1e-6)
        for ours, theirs in zip(duals(problem), wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_dual_vectors_lie_in_the_dual_cone_and_are_complementary():
    rng = np.random.default_rng(0)
    x, m = rng.normal(size=(20, 4)), rng.uniform(0.1, 2.0, 20)
    found = second_order(m, x)
    assert found is not None
    assert np.allclose(np.linalg.norm(found[:, 1:], axis=1), found[:, 0])
    assert np.allclose(found[:, 0] * np.linalg.norm(x, axis=1) + np.sum(found[:, 1:] * x, axis=1), 0)
    y, u = rng.uniform(0.2, 2.0, 20), rng.normal(size=20)
    z = y * np.exp(u / y)
    v = exponential(m, y, z)
    assert np.allclose(v[:, 0] * u + v[:, 1] * y + v[:, 2] * z, 0)
    # the dual cone: u < 0 and -u exp(v / u) <= e w
    assert np.allclose(-v[:, 0] * np.exp(v[:, 1] / v[:, 0]), np.e * v[:, 2])


def test_at_its_tip_a_cone_has_no_direction():
    assert second_order(np.array([0.0]), np.zeros((1, 2))) == pytest.approx(np.zeros((1, 3)))
    assert second_order(np.array([1.0]), np.zeros((1, 2))) is None
