"""The augmented Lagrangian where its inner problems are hard: kinks, and no lower bound."""

import numpy as np
import pytest
import torch

import constrain as cn


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
