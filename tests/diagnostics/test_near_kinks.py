"""Kinks beside outliers: what counts as at a kink, and what the slopes chosen there certify."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E
from constrain.diagnostics.judge import judge_status
from constrain.runtime.result import RawResult

SIZES = (1e4, 1e5, 1e6, 1e7, 1e8)


def status_of(problem, point):
    """What a run that ended there would be called: the status, and the record."""
    record = problem.kkt(point)
    raw = RawResult(ending="converged", multipliers=None, solver="none")
    return judge_status(record, raw, certified_convex=True, tolerance=1e-6), record


def kinked(rng):
    """A small convex problem with kinks, rows of which are outliers that may be left out.

    Returns:
        Its term, the variable, and the term as a function of a variable of CVXPY.
    """
    rows, size = int(rng.integers(5, 12)), int(rng.integers(1, 4))
    x = rng.normal(size=(rows, size)) if size > 1 else np.ones((rows, 1))
    y = np.round(3 * rng.normal(size=rows), 1)
    kept = np.ones(rows, dtype=bool)
    far = rng.random() < 0.8
    if far:
        y[-1] = rng.choice(SIZES) * rng.choice([-1, 1])
        kept[-1] = rng.random() < 0.3
    D = cn.Data("d", x=x, y=y, g=np.where(kept, "in", "out"))
    w = cn.Variable(size, "w")
    r, a, b = D.x @ w - D.y, x[kept], y[kept]
    kind = rng.choice(["abs", "max", "hinge", "norm 1", "norm inf"])
    if kind == "abs":
        return E(abs(r), given=D.g == "in"), w, lambda v: cp.sum(cp.abs(a @ v - b)) / len(b)
    if kind == "max":
        other = rng.normal()
        term = E(cn.maximum(r, other - r), given=D.g == "in")
        return term, w, lambda v: cp.sum(cp.maximum(a @ v - b, other - a @ v + b)) / len(b)
    if kind == "hinge":
        term = E(cn.maximum(r, 0), given=D.g == "in") - 0.4 * E(r, given=D.g == "in")
        return term, w, lambda v: cp.sum(cp.pos(a @ v - b) - 0.4 * (a @ v - b)) / len(b)
    order = 1 if kind == "norm 1" else np.inf
    matrix, at = (x, y) if kept.all() else (a, b)
    if order == np.inf and far:  # an outlier among the entries that are compared
        at = np.where(np.abs(at) > 1e3, np.sign(at) * 1e4, at)
    return cn.norm(matrix @ w - at, order), w, lambda v: cp.norm(matrix @ v - at, order)


def solved(build, size):
    """The optimal value and point, by a simplex method, and the function of numpy arrays."""
    v = cp.Variable(size)
    value = build(v)
    with np.errstate(invalid="ignore"):  # CVXPY multiplies the bounds of v, which are infinite, by 0
        best = cp.Problem(cp.Minimize(value)).solve(solver=cp.HIGHS)
    there = np.array(v.value)

    def at(point):
        v.value = point
        return float(value.value)

    return best, there, at


@pytest.mark.parametrize("seed", range(30))
def test_no_status_is_better_than_a_point_beside_outliers(seed):
    rng = np.random.default_rng(seed)
    for _ in range(4):
        term, w, build = kinked(rng)
        problem = cn.minimize(term)
        best, there, at = solved(build, w.shape[0])
        for _ in range(2):
            point = there + rng.choice([0.03, 0.3, 2.0]) * rng.normal(size=len(there))
            excess = at(point) - best
            status, record = status_of(problem, {"w": point})
            if excess > 1e-6 * (1 + abs(best)):
                assert status != "optimal"
            if excess > 1e-4:
                assert not record.stationary
        status, record = status_of(problem, {"w": there + 1e-9 * rng.normal(size=len(there))})
        if np.abs(there).max() < 1e3:
            assert status == "optimal", (seed, best, record.stationarity, record.gap)


def test_an_outlier_that_is_left_out_makes_no_kinks():
    D = cn.Data("d", x=np.array([0.0, 1, 2, 3, 4, 5, 1e7]), g=["a"] * 6 + ["b"])
    w = cn.Variable((), "w")
    problem = cn.minimize(E(abs(D.x - w), given=D.g == "a"))
    for point, optimal in ((0.0, False), (4.7, False), (2.5, True), (2.0 + 1e-9, True), (3.0 - 1e-9, True)):
        status, record = status_of(problem, {"w": point})
        assert (status == "optimal") is record.stationary is optimal, point


def test_a_slope_that_is_chosen_near_a_kink_belongs_to_the_gap():
    w = cn.Variable((), "w")
    problem = cn.minimize(1000.0 * abs(w) + 0.25 * w)
    for off in (3e-7, -3e-7, 1e-12):  # near enough to choose the slope; the value tells how near
        status, record = status_of(problem, {"w": off})
        assert record.kinks == 1
        assert record.stationary
        # the slope -0.25 is a subgradient at 0, and at `off` up to what the function lies above that plane
        epsilon = abs(1000.0 * np.sign(off) + 0.25) * abs(off)
        np.testing.assert_allclose(record.gap, epsilon, rtol=1e-9)
        assert status == ("optimal" if off == 1e-12 else "stationary")


def test_kinks_of_one_argument_that_bend_to_opposite_sides_have_the_slopes_of_the_sum():
    u = cn.Variable(2, "u", bounds=(-3.0, 3.0))
    same = cn.maximum(u[0], 0) - cn.maximum(-u[0], 0)  # u[0]
    assert not cn.minimize(same).kkt({"u": np.zeros(2)}).stationary
    assert cn.minimize(same).kkt({"u": np.array([-3.0, 0.0])}).stationary
    both = u[0] + u[1]
    tilted = cn.maximum(both, 0) - 0.5 * abs(2.0 * both) - 0.3 * both  # slope -0.3 above 0, 0.7 below
    record = cn.minimize(tilted + 0.4 * u[0]).kkt({"u": np.zeros(2)})  # u[0]: 0.1 .. 1.1, u[1]: -0.3 .. 0.7
    assert record.kinks == 2
    np.testing.assert_allclose(record.stationarity, 0.2)  # the least sum of squares is at 0.2 of both
    smooth = abs(u[0]) - abs(-u[0]) + 0.3 * u[0]  # 0.3 u[0]
    np.testing.assert_allclose(cn.minimize(smooth).kkt({"u": np.zeros(2)}).stationarity, 0.3)
    bounded = cn.minimize(-u[0] + u[1] ** 2).subject_to(c=cn.maximum(u[0], 0) - cn.maximum(-u[0], 0) <= 0)
    record = bounded.kkt({"u": np.zeros(2)})
    np.testing.assert_allclose(record.fit["c"], 1.0)
    assert record.stationary


def test_kinks_within_kinks_are_named_where_they_are_not_resolved():
    w = cn.Variable(2, "w")
    for term in (torch.relu(abs(w[0])), abs(torch.relu(abs(w[0])))):
        record = cn.minimize(term + 0.5 * w[0]).kkt({"w": np.zeros(2)})
        assert record.stationary or "kinks sit inside of kinks" in record.nonsmooth
