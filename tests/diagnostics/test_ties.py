"""Points at kinks: the slopes that balance best, against closed forms and linear programs."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import constrain as cn
from constrain import E


def check_close(a, b, tolerance=1e-8):
    np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=tolerance, rtol=tolerance)


def test_a_median_is_stationary_at_a_row():
    x = np.array([0.3, 1.0, 2.0, 5.0, 9.0])
    D, w = cn.Data("d", x=x), cn.Variable((), "w")
    problem = cn.minimize(E(abs(D.x - w)))
    check_close(problem.kkt({"w": 2.0}).stationarity, 0.0)
    # at any other row the least slope is the distance of its share from one half
    check_close(problem.kkt({"w": 5.0}).stationarity, (3 - 1 - 1) / 5)
    check_close(problem.kkt({"w": 4.0}).stationarity, (3 - 2) / 5)


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
    check_close(problem.kkt({"w": point}).stationarity, np.abs(least).max())


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
    check_close(-record.fit["total"], found.eqlin.marginals[0], 1e-6)
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
    check_close(record.fit["tail"], solution["tail"].multiplier, 1e-4)


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
    check_close(problem.kkt({"w": 0.0}).stationarity, 0.0)
    check_close(problem.kkt({"w": 1.0}).stationarity, 2 / 3 - 1 / 2)


def test_points_with_too_many_rows_say_so(monkeypatch):
    monkeypatch.setattr("constrain.diagnostics.ties.WORK", 10)
    rng = np.random.default_rng(0)
    D, w = cn.Data("d", x=rng.normal(size=50)), cn.Variable((), "w")
    record = cn.minimize(cn.CVaR((D.x - w) ** 2, 0.9)).kkt({"w": 0.3})
    assert "CVaR" in record.nonsmooth
    assert "nonsmooth point" in str(record)
    assert cn.minimize(E((D.x - w) ** 2)).kkt({"w": 0.3}).nonsmooth == ""


def test_a_norm_of_order_two_that_is_zero_is_named():
    w = cn.Variable(4, "w")
    smooth = cn.sum_squares(w - np.array([0.1, 0.1, 2.0, -1.0]))
    problem = cn.minimize(smooth + cn.norm(w[:2]) + cn.norm(w[2:]) + cn.norm(w, 1))
    assert "a norm is 0" in problem.kkt({"w": np.array([0.0, 0.0, 1.0, 0.0])}).nonsmooth
    assert problem.kkt({"w": np.array([0.1, 0.0, 1.0, 0.0])}).nonsmooth == ""


def nearest_in_simplex(v):
    """The nearest probability vector, by sorting (Held, Wolfe and Crowder 1974)."""
    u = np.sort(v)[::-1]
    level = (np.cumsum(u) - 1) / np.arange(1, len(v) + 1)
    return np.maximum(v - level[u > level][-1], 0.0)


def nearest_in_cross(v):
    """The nearest vector whose sizes add up to at most 1."""
    return v if np.abs(v).sum() <= 1 else np.sign(v) * nearest_in_simplex(np.abs(v))


def on_ties(sides):
    """The least element of a force plus averages of some unit vectors with signs."""
    sides = np.array(sides)
    tied = np.flatnonzero(sides)

    def left(force):
        moved = force.astype(float)
        moved[tied] += sides[tied] * nearest_in_simplex(-sides[tied] * force[tied])
        return moved

    return left


def within(low, high):
    """The least element of a force plus slopes between limits per entry."""
    return lambda force: force + np.clip(-force, low, high)


FORCE = np.array([0.3, -0.8, 0.1, -0.4])
CASES = {
    "norm of order 1": (lambda w: cn.norm(w, 1), [0, 2, 0, -1], within([-1, 1, -1, -1], [1, 1, 1, -1])),
    "norm of order inf": (lambda w: cn.norm(w, np.inf), [1, -1, 0.5, 1e-9 - 1], on_ties([1, -1, 0, -1])),
    "norm of order inf at 0": (
        lambda w: cn.norm(w, np.inf),
        [0, 1e-12, 0, 0],
        lambda force: force + nearest_in_cross(-force),
    ),
    "leaky": (
        lambda w: cn.sum(torch.nn.functional.leaky_relu(w, 0.25)),
        [0, 0, 1, -1],
        within([0.25, 0.25, 1, 0.25], [1, 1, 1, 0.25]),
    ),
    "two limits": (
        lambda w: cn.sum(torch.clamp(w, 0.0, 1.0)),
        [0, 1, 1, 3],
        within([0, 0, 0, 0], [1, 1, 1, 0]),
    ),
    "a distance": (lambda w: abs(w[1] - 0.2), [1, 0.2 + 1e-12, 0, 0], within([0, -1, 0, 0], [0, 1, 0, 0])),
    "largest entry": (lambda w: 1.0 * cn.max(w), [1, 0.5, 1, 1], on_ties([1, 0, 1, 1])),
    "least entry": (lambda w: 1.0 * cn.min(w), [1, 2, 1, 1 + 1e-9], on_ties([1, 0, 1, 1])),
}


@pytest.mark.parametrize("name", CASES)
def test_the_least_subgradient_has_a_closed_form(name):
    function, point, least = CASES[name]
    w, point = cn.Variable(4, "w"), {"w": np.array(point, float)}
    record = cn.minimize(FORCE @ w + function(w)).kkt(point)
    check_close(record.stationarity, np.abs(least(FORCE)).max())
    assert record.kinks >= 1
    if name in ("a distance", "largest entry", "least entry"):  # a bound on these is one on their pieces
        return
    given = cn.minimize(FORCE @ w).subject_to(shape=function(w) <= 50.0).kkt(point, {"shape": np.array(2.0)})
    check_close(given.stationarity, 2 * np.abs(least(FORCE / 2)).max())


def test_kinks_in_rows_of_constraints_balance(rng):
    x = rng.normal(size=(60, 4))
    y = np.sin(x[:, 0]) - x[:, 1] + 0.1 * rng.normal(size=60)
    D, w = cn.Data("d", x=x, y=y), cn.Variable(4, "w")
    fit = E((D.x @ w - D.y) ** 2)
    rows = {
        "mean": E(cn.norm(D.x * (w - 0.3), 1)) <= 1.0,
        "each": cn.forall(D, torch.relu(D.x @ w) + abs(w[0] - 0.2) <= 0.7),
        "cube": cn.norm(w - 0.1, np.inf) <= 0.4,
    }
    for name, relation in rows.items():
        problem = cn.minimize(fit).subject_to(**{name: relation})
        solution = problem.solve("cvxpy", progress=False)
        record = problem.kkt(solution)
        assert solution.status == "optimal", name
        assert record.stationarity <= 1e-8, name
        assert record.kinks >= 1, name
        moved = solution.variables["w"] + 0.01 * rng.normal(size=4)
        assert problem.kkt({"w": moved}).stationarity > 1e-3, name


def test_a_budget_of_order_one_is_stationary_without_a_bound(rng):
    x = rng.normal(size=(60, 4))
    y = np.sin(x[:, 0]) - x[:, 1] + 0.1 * rng.normal(size=60)
    D = cn.Data("d", x=x, y=y)
    for order, budget in ((1, 0.8), (np.inf, 0.3)):
        w = cn.Variable(4, "w")
        w.value = np.array([0.1, 0.2, 0.3, 0.1])
        curved = E((torch.tanh(D.x @ w) - D.y) ** 2)
        problem = cn.minimize(curved).subject_to(budget=cn.norm(w, order) <= budget)
        solution = problem.solve("newton", progress=False)
        assert solution.status == "stationary"
        assert solution.bound is None
        there, force = solution.variables["w"], gradient_of_tanh(x, y, solution.variables["w"])
        signs = np.where(np.abs(there) > 1e-9, np.sign(there), 0)
        if order == 1:  # the multiplier is the force on every entry that moves
            assert (signs == 0).any()
            check_close(np.abs(force[signs != 0]), solution["budget"].multiplier, 1e-7)
            assert (np.abs(force[signs == 0]) <= solution["budget"].multiplier).all()
        else:  # the forces on the entries at the bound add up to it
            at = np.abs(np.abs(there) - budget) <= 1e-9
            assert at.sum() > 1
            check_close(-(force * signs)[at].sum(), solution["budget"].multiplier, 1e-7)
            check_close(force[~at], 0.0, 1e-7)


def gradient_of_tanh(x, y, w):
    """Of mean (tanh(x w) - y)^2."""
    score = np.tanh(x @ w)
    return 2 * x.T @ ((score - y) * (1 - score**2)) / len(y)
