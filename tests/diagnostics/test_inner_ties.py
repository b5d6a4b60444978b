"""Kinks of optimal values of inner problems: the multipliers that balance best, by closed forms and QPs."""

import cvxpy as cp
import numpy as np
import pytest

import constrain as cn
from constrain import E

from .test_ties import FORCE, check_close, nearest_in_simplex, on_ties


def dispatch():
    """Two units of capacity 3 with unit costs 1 and 2; what is missing costs 10."""
    demand = cn.Parameter("demand", shape=2)
    unit = cn.Variable(2, "unit", bounds=(0, 3))
    shed = cn.Variable(2, "shed", nonneg=True)
    cost = np.array([1.0, 2.0]) @ unit + 10 * cn.sum(shed)
    return cn.minimize(cost).subject_to(serve=unit + shed == demand)


@pytest.mark.parametrize(("price", "left"), [(5.0, 0.0), (12.0, -2.0), (0.5, 0.5)])
def test_a_capacity_that_is_used_up_has_an_interval_of_prices(price, left):
    target = cn.Variable(2, "target", nonneg=True)
    problem = cn.minimize(cn.value(dispatch(), at=target, track="serve") - np.array([price, 2.0]) @ target)
    record = problem.kkt({"target": np.array([3.0, 1.0])})
    assert record.kinks == 1
    check_close(record.stationarity, abs(left))
    # off the kink the price is one number
    assert problem.kkt({"target": np.array([2.0, 1.0])}).kinks == 0
    check_close(problem.kkt({"target": np.array([2.0, 1.0])}).stationarity, abs(1.0 - price))
    # in a constraint, with twice the multiplier
    inside = cn.minimize(-2 * (np.array([price, 2.0]) @ target)).subject_to(
        cost=cn.value(dispatch(), at=target, track="serve") <= 5.0
    )
    given = inside.kkt({"target": np.array([3.0, 1.0])}, {"cost": np.array(2.0)})
    check_close(given.stationarity, 2 * abs(left))


def shared(theta):
    """minimize c x subject to A x >= theta, x >= 0, and its multipliers: the best of A' y <= c, y >= 0."""
    A = np.array([[1.0, 0.0, 1.0, 2.0], [0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]])
    c = np.array([2.0, 2.0, 3.0, 4.0])
    y = cp.Variable(3, nonneg=True)
    largest = cp.Problem(cp.Maximize(theta @ y), [A.T @ y <= c]).solve(solver="CLARABEL")
    need, x = cn.Parameter("need", shape=3), cn.Variable(4, "x", nonneg=True)
    inner = cn.minimize(c @ x).subject_to(meet=A @ x >= need)
    face = [A.T @ y <= c, theta @ y == largest]
    return inner, y, face


@pytest.mark.parametrize("theta", [[1.0, 1.0, 1.0], [2.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.5, 3.0]])
def test_the_least_slope_over_all_multipliers_of_a_linear_program(theta):
    theta = np.array(theta)
    inner, y, face = shared(theta)
    need = cn.Variable(3, "needs")
    for force in (np.array([-1.0, -1.5, -0.2]), np.array([-0.3, -1.0, -1.2])):
        problem = cn.minimize(force @ need + cn.value(inner, at=need, track="meet"))
        record = problem.kkt({"needs": theta})
        cp.Problem(cp.Minimize(cp.sum_squares(force + y)), face).solve(solver="CLARABEL")
        check_close(record.stationarity, np.abs(force + y.value).max(), 1e-5)


def test_a_median_by_a_linear_program_per_row_is_stationary():
    """|r| is the least t with t >= r and t >= -r."""
    gap, t = cn.Parameter("gap"), cn.Variable((), "t")
    size = cn.minimize(t).subject_to(above=t >= gap, below=t >= -gap)
    D, w = cn.Data("d", x=np.array([0.3, 1.0, 2.0, 5.0, 9.0])), cn.Variable((), "w")
    problem = cn.minimize(E(cn.value(size, at=D.x - w)))
    check_close(problem.kkt({"w": 2.0}).stationarity, 0.0)
    check_close(problem.kkt({"w": 5.0}).stationarity, (3 - 1 - 1) / 5)
    check_close(problem.kkt({"w": 4.0}).stationarity, (3 - 2) / 5)


def test_a_value_bends_where_its_solution_is_not_unique():
    """The least p x over probabilities x is the least entry of p."""
    price, x = cn.Parameter("price", shape=4), cn.Variable(4, "x", nonneg=True)
    cheapest = cn.minimize(price @ x).subject_to(all=cn.sum(x) == 1)
    w = cn.Variable(4, "w")
    record = cn.minimize(FORCE @ w + cn.value(cheapest, at=w)).kkt({"w": np.array([1.0, 2.0, 1.0, 1.0])})
    check_close(record.stationarity, np.abs(on_ties([1, 0, 1, 1])(FORCE)).max())
    assert record.kinks == 1


@pytest.mark.parametrize(
    ("objective", "price"),
    [(lambda x: 0.5 * cn.square(x), 1.0), (cn.exp, np.e), (lambda x: -cn.log(3 - x), 0.5)],
)
def test_any_convex_inner_problem_has_all_its_multipliers(objective, price):
    """f(max(theta)) for a growing f, as the least f(x) over x >= theta."""
    low, x = cn.Parameter("low", shape=2), cn.Variable((), "x", bounds=(0.0, 2.5))
    inner = cn.minimize(objective(x)).subject_to(above=x >= low)
    theta = cn.Variable(2, "theta")
    force = np.array([-0.9, 0.1])
    record = cn.minimize(force @ theta + cn.value(inner, at=theta)).kkt({"theta": np.ones(2)})
    check_close(record.stationarity, np.abs(force + price * nearest_in_simplex(-force / price)).max(), 1e-7)


def test_a_plan_at_a_kink_is_stationary_by_its_gradients():
    target = cn.Variable(2, "target", nonneg=True)
    lacking = 3.0 * cn.sum_squares(np.array([4.0, 2.0]) - target)
    problem = cn.minimize(cn.value(dispatch(), at=target, track="serve") + lacking)
    solution = problem.solve(progress=False)
    check_close(solution.variables["target"], [3.0, 2.0 - 2.0 / 6.0], 1e-6)
    assert solution.status == "optimal"
    assert solution.kkt().stationarity < 1e-5
    moved = problem.kkt({"target": np.array([2.99, 2.0 - 2.0 / 6.0])})
    check_close(moved.stationarity, 6 * 1.01 - 1.0)


def test_inner_problems_that_are_not_convex_say_so():
    low, x = cn.Parameter("low", shape=2), cn.Variable((), "x", bounds=(-1.0, 2.0))
    inner = cn.minimize(x**3).subject_to(above=x >= low)
    theta = cn.Variable(2, "theta")
    theta.value = np.ones(2)
    record = cn.minimize(cn.value(inner, at=theta) - cn.sum(theta)).kkt()
    assert "not convex" in record.nonsmooth
