"""Points at kinks: the slopes that balance best, against closed forms and linear programs."""

import numpy as np
import torch
from scipy.optimize import linprog

import constrain as cn
from constrain import E


def close(a, b, tolerance=1e-8):
    np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=tolerance, rtol=tolerance)


def test_a_median_is_stationary_at_a_row():
    x = np.array([0.3, 1.0, 2.0, 5.0, 9.0])
    D, w = cn.Data("d", x=x), cn.Variable((), "w")
    problem = cn.minimize(E(abs(D.x - w)))
    close(problem.kkt({"w": 2.0}).stationarity, 0.0)
    # at any other row the least slope is the distance of its share from one half
    close(problem.kkt({"w": 5.0}).stationarity, (3 - 1 - 1) / 5)
    close(problem.kkt({"w": 4.0}).stationarity, (3 - 2) / 5)


def test_a_lasso_solution_is_stationary_and_a_nearby_point_is_not(rng):
    x = rng.normal(size=(80, 4))
    y = x @ np.array([1.0, 0.0, 0.0, -0.5]) + 0.1 * rng.normal(size=80)
    D, w = cn.Data("d", x=x, y=y), cn.Variable(4, "w")
    problem = cn.minimize(E((D.x @ w - D.y) ** 2) + 0.4 * cn.sum(abs(w)))
    solution = problem.solve(progress=False)
    assert (np.abs(solution.variables["w"]) < 1e-6).sum() == 2
    assert solution.kkt().stationarity <= 1e-6
    there = solution.variables["w"]
    # the least subgradient at a point with zeros is soft thresholding
    point = np.array([there[0] + 0.1, 0.0, 0.0, there[3]])
    force = 2 * x.T @ (x @ point - y) / 80
    least = np.where(
        point != 0, force + 0.4 * np.sign(point), np.sign(force) * np.maximum(np.abs(force) - 0.4, 0)
    )
    close(problem.kkt({"w": point}).stationarity, np.abs(least).max())


def test_the_threshold_of_a_tail_is_a_row(rng):
    loss = rng.exponential(size=(60, 3))
    D, w = cn.Data("d", loss=loss), cn.Variable(3, "w", nonneg=True)
    problem = cn.minimize(cn.CVaR(D.loss @ w, 0.8)).subject_to(total=cn.sum(w) == 1)
    # Rockafellar and Uryasev's linear program: min t + mean(u) / 0.2, u >= loss w - t
    cost = np.r_[np.zeros(3), 1.0, np.full(60, 1 / 60 / 0.2)]
    below = np.c_[loss, -np.ones((60, 1)), -np.eye(60)]
    total = np.r_[np.ones(3), np.zeros(61)][None]
    bounds = [(0, None)] * 3 + [(None, None)] + [(0, None)] * 60
    found = linprog(cost, below, np.zeros(60), total, [1.0], bounds=bounds, method="highs")
    record = problem.kkt({"w": found.x[:3]})
    assert record.kinks >= 1
    assert record.stationarity <= 1e-7
    close(-record.fit["total"], found.eqlin.marginals[0], 1e-6)
    away = np.array([0.2, 0.3, 0.5])
    assert problem.kkt({"w": away}).stationarity > 1e-3


def test_multipliers_of_a_tail_that_is_bounded(rng):
    x = rng.normal(size=(100, 2))
    y = x @ np.array([1.0, -0.5]) + 0.3 * rng.standard_t(3, size=100)
    D, w = cn.Data("d", x=x, y=y), cn.Variable(2, "w")
    r = D.x @ w - D.y
    tail = cn.CVaR(r**2, 0.8)
    best = cn.minimize(tail).solve(progress=False).objective
    free = cn.minimize(E(r**2)).subject_to(tail=tail <= 100).solve(progress=False)["tail"].value
    problem = cn.minimize(E(r**2)).subject_to(tail=tail <= best + 0.3 * (free - best))
    solution = problem.solve(progress=False)
    assert solution.status == "optimal"
    assert solution["tail"].multiplier > 0.01
    record = problem.kkt(solution)
    assert record.stationarity <= 1e-5
    close(record.fit["tail"], solution["tail"].multiplier, 1e-4)


def test_guards_of_logarithms_are_no_kinks(place):
    p = cn.Variable(3, "p", nonneg=True)
    p.value = np.array([0.5, 0.5, 0.0])
    problem = cn.maximize(cn.sum(cn.entr(p)) + np.array([0.0, 0.0, 1.0]) @ p).subject_to(total=cn.sum(p) == 1)
    record = place(problem).kkt()
    assert record.kinks == 0
    assert record.stationarity > 1e-2


def test_kinks_inside_modules_and_clamps(rng):
    x = np.array([-1.0, 0.0, 2.0])
    D = cn.Data("d", x=x)
    w = cn.Variable((), "w")
    problem = cn.minimize(E(torch.clamp(w - D.x, min=0.0)) - w / 2)
    # the least w with as many rows below as a half: any slope between 1/3 and 2/3 at the row 0
    close(problem.kkt({"w": 0.0}).stationarity, 0.0)
    close(problem.kkt({"w": 1.0}).stationarity, 2 / 3 - 1 / 2)


def test_points_with_too_many_rows_say_so(monkeypatch):
    monkeypatch.setattr("constrain.diagnostics.ties.WORK", 10)
    rng = np.random.default_rng(0)
    D, w = cn.Data("d", x=rng.normal(size=50)), cn.Variable((), "w")
    record = cn.minimize(cn.CVaR((D.x - w) ** 2, 0.9)).kkt({"w": 0.3})
    assert "CVaR" in record.nonsmooth
    assert "nonsmooth point" in str(record)
    assert cn.minimize(E((D.x - w) ** 2)).kkt({"w": 0.3}).nonsmooth == ""


def test_a_largest_value_that_is_reached_twice_is_named():
    w = cn.Variable(3, "w")
    problem = cn.minimize(cn.max(w) + cn.sum_squares(w) - cn.sum(w))
    assert "largest value" in problem.kkt({"w": np.array([1.0, 1.0, 0.0])}).nonsmooth
    assert problem.kkt({"w": np.array([1.0, 0.5, 0.0])}).nonsmooth == ""
