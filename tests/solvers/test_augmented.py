"""The augmented Lagrangian where its inner problems are hard: kinks, and no lower bound."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import scale

import constrain as cn
from constrain.solvers.saddles import least_curvature


@pytest.mark.parametrize("second_order", [True, False])
def test_a_norm_has_no_hessian_at_the_default_start(second_order):
    w = cn.Variable(3, "w")
    problem = cn.minimize(cn.sum_squares(w - 1)).subject_to(c=cn.norm(w) <= 0.2)
    solution = problem.solve(method="augmented", second_order=second_order, progress=False)
    assert solution.status == "optimal"
    assert solution.objective == pytest.approx((3**0.5 - 0.2) ** 2, rel=1e-6)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("relation", ["none", "equality"])
def test_an_objective_that_falls_without_bound_is_no_solution(relation):
    w = cn.Variable(3, "w")
    problem = cn.minimize(cn.sum(w))
    if relation == "equality":
        problem = problem.subject_to(c=w[0] == w[1])
    solution = problem.solve(method="augmented", progress=False)
    assert solution.status == "diverged"
    assert "without bound" in solution.message
    assert np.isfinite(w.value).all()


def test_a_penalty_that_is_too_weak_is_not_taken_for_an_unbounded_problem():
    w = cn.Variable((), "w", bounds=(-1.0, np.inf))
    problem = cn.minimize(-torch.exp(w)).subject_to(c=w**2 <= 1)
    solution = problem.solve(method="augmented", progress=False)
    assert solution.objective == pytest.approx(-np.e, rel=1e-6)
    assert float(w.value) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("size", [10, 1500])
def test_falling_without_bound_is_seen_by_both_inner_methods(size):
    w = cn.Variable(size, "w")
    solution = cn.minimize(cn.sum(w)).solve(method="augmented", progress=False)
    assert solution.status == "diverged"
    assert "without bound" in solution.message


def test_inner_problems_that_do_not_converge_are_no_proof_of_infeasibility():
    """A tail of absolute errors: kinks in every row; the bound can be met, as training shows."""
    x, y = load_diabetes(return_X_y=True)
    D = cn.Data("d", x=torch.tensor(scale(x)), y=torch.tensor(scale(y)))
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(10, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1), torch.nn.Flatten(0)
    )
    error = abs(cn.Model(net, "f")(D.x) - D.y)
    problem = cn.minimize(cn.E(error)).subject_to(c=cn.CVaR(error, 0.9) <= 1.3)
    solution = problem.solve(method="augmented", outer=15, inner=20, max_penalty=1e3, progress=False)
    assert solution.status.value in ("limit", "feasible")
    assert "did not converge" in solution.message or solution.kkt().feasibility <= 1e-6


def test_a_violation_that_nothing_reduces_is_infeasible():
    w = cn.Variable((), "w")
    solution = cn.minimize(w**2).subject_to(a=torch.sin(w) >= 1.5).solve("augmented", progress=False)
    assert solution.status == "likely_infeasible"


def well(n=1500):
    """w_0^4 - 2 w_0^2 has a maximum at the start, and minima at 1 and -1."""
    w = cn.Variable(n, "w")
    w.value = np.zeros(n)
    f = cn.sum_squares(w) + w[0] ** 4 - 3 * w[0] ** 2
    return cn.minimize(f).subject_to(total=cn.sum(w[1:]) == 3), -1 + 9 / (n - 1)


@pytest.mark.parametrize("options", [{}, {"products": True}])
def test_many_variables_leave_a_saddle_by_products_with_the_hessian(options):
    problem, value = well()
    found = problem.solve("augmented", progress=False, **options)
    assert found.status.value == "stationary"
    assert found.objective == pytest.approx(value, abs=1e-8)
    assert abs(found.variables["w"][0]) == pytest.approx(1, abs=1e-6)


def test_least_curvature_is_the_least_eigenvalue():
    rng = np.random.default_rng(0)
    H = rng.normal(size=(40, 40))
    H = H + H.T
    free = np.arange(40) % 4 > 0
    direction, curvature = least_curvature(lambda v: H @ v, free)
    inner = H[np.ix_(free, free)]
    assert curvature == pytest.approx(np.linalg.eigvalsh(inner)[0], rel=1e-3)
    assert (direction[~free] == 0).all()
    assert direction @ H @ direction / (direction @ direction) == pytest.approx(curvature, rel=1e-2)
    assert least_curvature(lambda v: (H @ H + np.eye(40)) @ v, free) is None
