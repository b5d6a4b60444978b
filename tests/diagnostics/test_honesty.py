"""No status better than the residuals allow, no bound beyond the optimum: random convex problems."""

import os

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import linprog

import constrain as cn
from constrain.solvers.augmented import AugmentedLagrangian

COUNT = int(os.environ.get("CONSTRAIN_HONESTY", "25"))


def random_problem(rng):
    """A quadratic or linear program that has a solution, with its data."""
    size, rows = int(rng.integers(2, 6)), int(rng.integers(1, 7))
    a, inside = rng.normal(size=(rows, size)), rng.normal(size=size)
    b = a @ inside + rng.exponential(size=rows) * (rng.random(rows) < 0.7)
    linear = rng.random() < 0.4
    root = np.zeros((size, size)) if linear else rng.normal(size=(int(rng.integers(1, size + 1)), size))
    c = rng.normal(size=size) * 10.0 ** rng.integers(-3, 4)
    return root, c, a, b, linear


def problem_of(root, c, a, b, linear):
    w = cn.Variable(len(c), "w", bounds=(-5.0, 5.0))
    objective = c @ w if linear else cn.sum_squares(root @ w) + c @ w
    return cn.minimize(objective).subject_to(rows=a @ w <= b)


def optimum(root, c, a, b, linear):
    """The optimal value: by HiGHS, or by a fine solve of an interior point."""
    bounds = [(-5.0, 5.0)] * len(c)
    if linear:
        return linprog(c, a, b, bounds=bounds, method="highs").fun
    w = cp.Variable(len(c))
    objective = cp.sum_squares(root @ w) + c @ w
    found = cp.Problem(cp.Minimize(objective), [a @ w <= b, w >= -5, w <= 5])
    return found.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)


@pytest.mark.parametrize("seed", range(COUNT))
def test_a_status_is_never_better_than_the_point(seed):
    rng = np.random.default_rng(seed)
    data = random_problem(rng)
    best = optimum(*data)
    root, c, a, b, linear = data
    limits = [None, 1, 2, 4]
    for outer in limits:
        method = (
            "cvxpy" if outer is None else AugmentedLagrangian(outer=outer, inner=int(rng.integers(1, 30)))
        )
        solution = problem_of(*data).solve(method, progress=False)
        w = solution.variables["w"]
        value = (0.0 if linear else float(np.sum((root @ w) ** 2))) + float(c @ w)
        violation = float(np.max((a @ w - b) / (1 + np.abs(b)), initial=0.0))
        unit = 1 + abs(best)
        if solution.status in ("optimal", "stationary"):  # of a convex problem both are optimal
            assert violation <= 1e-6
            assert abs(value - best) <= 2e-5 * unit, (solution.status, value, best)
        if solution.status == "feasible":
            assert violation <= 1e-6
        if solution.bound is not None:
            assert solution.bound <= best + 1e-6 * unit
        if solution.status not in ("optimal", "stationary"):
            assert solution["rows"].uncertified or not solution["rows"].has_duals
