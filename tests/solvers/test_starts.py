"""Starts that stop methods of derivatives: flat violations, saddles, maxima, outside of the domain."""

import numpy as np
import pytest
import torch

import constrain as cn
from constrain.errors import ModelingError
from constrain.solvers.active import least_multipliers

A = torch.tensor(np.diag([1.0, 2.0, 3.0]))


def variable(size, **options):
    return cn.Variable(size, "x", **options)


def sphere():
    x = variable(3)
    return cn.maximize(cn.sum(x * (A @ x))).subject_to(c=cn.sum_squares(x) == 1)


def ball():
    x = variable(3)
    return cn.maximize(cn.sum(x * (A @ x))).subject_to(c=cn.sum_squares(x) <= 1)


def wells(size=2):
    x = variable(size)
    return cn.minimize(cn.sum(x**4 - x**2))


def roots():
    """The start balances gradients: it is the largest point of the line."""
    x = variable(2, nonneg=True)
    return cn.minimize(torch.sqrt(x[0]) + torch.sqrt(x[1])).subject_to(c=x[0] + x[1] >= 1)


def logarithms():
    x = variable(2)
    return cn.minimize(-torch.log(x[0]) - torch.log(x[1]) + x[0] * x[1]).subject_to(c=cn.sum(x) <= 1)


CASES = [
    (sphere, 3.0),
    (ball, 3.0),
    (wells, -0.5),
    (roots, 1.0),
    (logarithms, 2 * np.log(2) + 0.25),
]


@pytest.mark.parametrize("method", ["newton", "augmented"])
@pytest.mark.parametrize(("problem", "optimum"), CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_default_starts_without_a_way_to_follow_reach_the_optimum(problem, optimum, method):
    solution = problem().solve(method, progress=False)
    assert solution.status == "stationary"
    if problem is roots and method == "augmented":  # infinite slopes at the optimum: it says so
        assert [w.code for w in solution.warnings] == ["W218"]
        assert "a saddle or a maximum" in solution.message
        assert solution.history[-1]["objective"] == pytest.approx(2**0.5, abs=1e-4)
        return
    assert solution.objective == pytest.approx(optimum, abs=1e-6)
    assert not solution.warnings


def test_all_coordinates_leave_a_maximum_at_once():
    assert wells(600).solve("newton", progress=False).objective == pytest.approx(-150, abs=1e-6)


@pytest.mark.parametrize("method", ["newton", "augmented"])
def test_flat_violations_that_stay_are_still_reported(method):
    w = cn.Variable((), "w")
    problem = cn.minimize(w**2).subject_to(a=torch.sin(w) ** 2 + 2 * torch.sin(w) >= 4)
    assert problem.solve(method, progress=False).status == "likely_infeasible"


@pytest.mark.parametrize("method", ["newton", "augmented"])
def test_no_start_in_the_domain_is_refused_before_solving(method):
    x = variable(2)
    problem = cn.minimize(x[0] * x[1] - torch.log(-x[0] - 30)).subject_to(c=cn.sum_squares(x) <= 1e4)
    with pytest.raises(ModelingError, match=r"E199.*not finite at the start") as caught:
        problem.solve(method, progress=False)
    assert "x.value = ..." in str(caught.value)
    x.value = [-40.0, 1.0]
    assert problem.solve(method, progress=False).status == "stationary"


def test_multipliers_stay_small_where_no_constraint_qualification_holds():
    x = variable(2, nonneg=True)
    x.value = [1.0, 1.0]
    problem = cn.minimize((x[0] - 1) ** 2 + (x[1] - 2) ** 2).subject_to(c=x[0] * x[1] <= 0)
    solution = problem.solve("newton", progress=False)
    assert solution.objective == pytest.approx(1.0, abs=1e-6)
    assert solution["c"].multiplier == pytest.approx(1.0, abs=1e-4)
    said = next(w.message for w in solution.warnings if w.code == "W203")
    assert "the gradient of c vanishes along every decision that is not at its bound" in said
    assert "each other" not in said


class Copies:
    """x^2 / 2 - x, at 0, with two copies of x <= 0 and one of x == 0."""

    low, high = np.full(1, -np.inf), np.full(1, np.inf)
    equal = np.array([False, True, False])

    def values(self, x):
        return float(x[0] ** 2 / 2 - x[0]), np.repeat(x, 3)

    def derivatives(self, x):
        return x - 1, np.ones((3, 1))


def test_least_multipliers_balance_and_are_left_alone_when_they_are_small():
    x = np.zeros(1)
    huge = np.array([1e6, -2e6 + 1, 1e6])
    least = least_multipliers(Copies(), x, huge)
    np.testing.assert_allclose(least, 1 / 3, atol=1e-6)
    small = np.array([5.0, -9.0, 5.0])
    assert least_multipliers(Copies(), x, small) is small


@pytest.mark.parametrize("method", ["newton", "augmented"])
def test_a_limit_keeps_the_best_feasible_point_that_was_seen(method, monkeypatch):
    """Stopped after every number of evaluations, the result is feasible once any evaluation was."""
    from constrain.solvers import augmented, second_order  # noqa: PLC0415

    x = cn.Variable(2, "x")
    x.value = [0.5, 0.0]
    problem = cn.minimize((x[0] - 2) ** 2 + (x[1] - 1) ** 2 + x[0] * x[1]).subject_to(
        c=cn.sum_squares(x) <= 1
    )
    times = iter(range(10**6))
    module = augmented if method == "augmented" else second_order
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(times)))
    for limit in (12.0, 20.0, 30.0, 45.0):
        x.value = [0.5, 0.0]
        solution = problem.solve(method, time_limit=limit, progress=False)
        assert solution["c"].violation <= 1e-6, limit


def test_small_problems_run_on_one_thread_and_give_the_others_back():
    inside = []
    x = variable(2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        wells().solve("newton", progress=False, callback=lambda _: inside.append(torch.get_num_threads()))
        assert set(inside) == {1}
        assert torch.get_num_threads() == 2
        with pytest.raises(ModelingError, match="E199"):
            cn.minimize(-torch.log(-x[0] - 30) + x[1] ** 2).solve("newton", progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("size", "kind", "method"), [
    (2, "psd", "augmented"), (3, "psd", "augmented"), (3, "symmetric", "augmented"),
    (2, "symmetric", "newton"),
])  # fmt: skip
def test_matrices_of_a_log_determinant_begin_at_the_identity(size, kind, method):
    """Max log det X with tr(S X) <= t is t / n S^-1; its default start, 0, is outside of the domain."""
    S = np.eye(size) + 0.2 + np.diag(np.arange(float(size)))
    X, u = cn.Variable((size, size), "X", **{kind: True}), cn.Variable(2, "u")
    problem = cn.maximize(cn.log_det(X) - cn.sum_squares(u - 1)).subject_to(c=cn.trace(S @ X) <= 2)
    solution = problem.solve(method, progress=False)
    assert solution.status.value == "optimal"
    np.testing.assert_allclose(solution.variables["X"], 2 / size * np.linalg.inv(S), atol=1e-6)
    assert solution["c"].multiplier == pytest.approx(size / 2, rel=1e-5)
