"""Problems in the forms that people write: certified in each, with the optimum and prices of CVXPY."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch

import constrain as cn

Z = np.random.default_rng(0).normal(size=(8, 3))
q = cn.Variable(8, "q", nonneg=True)
w = cn.Variable(3, "w")
V = cn.Variable((3, 3), "V")

INFORMATION = {
    "(Z' q) Z": lambda: (Z.T * q) @ Z,
    "(q Z') Z": lambda: (q * Z.T) @ Z,
    "Z' (q Z)": lambda: Z.T @ (q[:, None] * Z),
    "sum in Python": lambda: sum(q[i] * np.outer(Z[i], Z[i]) for i in range(8)),
    "sum over an axis": lambda: cn.sum(q[:, None, None] * np.einsum("ij,ik->ijk", Z, Z), axis=0),
}


@pytest.mark.parametrize("form", INFORMATION)
def test_a_design_with_the_largest_determinant(form):
    x = cp.Variable(8, nonneg=True)
    room = np.arange(8) @ x <= 3
    program = cp.Problem(cp.Maximize(cp.log_det(Z.T @ cp.diag(x) @ Z)), [cp.sum(x) == 1, room])
    program.solve(solver=cp.CLARABEL)
    problem = cn.maximize(cn.log_det(INFORMATION[form]())).subject_to(
        one=cn.sum(q) == 1, room=np.arange(8) @ q <= 3
    )
    solution = problem.solve(progress=False)
    assert solution.status == "optimal"
    assert solution.objective == pytest.approx(program.value, abs=1e-5)
    assert solution["room"].shadow_price == pytest.approx(float(room.dual_value), abs=1e-4)


@pytest.mark.parametrize(
    "matrix",
    [
        lambda: Z.T @ (q[:, None] * Z[::-1]),
        lambda: (Z.T * q) @ Z[::-1],
        lambda: V + V,
        lambda: V @ np.eye(3),
        lambda: np.arange(9.0).reshape(3, 3) * q[0],
        lambda: np.ones((3, 3)) * w,
    ],
)
def test_a_matrix_that_need_not_be_symmetric_is_not_taken_for_one(matrix):
    (reason,) = [r.reason for r in cn.maximize(cn.log_det(matrix())).explain().routes if r.method == "cvxpy"]
    assert "is not symmetric as it is written" in reason


@pytest.mark.parametrize(
    "distance",
    [
        lambda e: cn.sqrt(cn.sum_squares(e)),
        lambda e: torch.sqrt(cn.sum(e**2)),
        lambda e: cn.sum(cn.square(e)) ** 0.5,
    ],
)
def test_the_root_of_a_sum_of_squares_is_a_norm(distance):
    """Its least value, 0 at a kink, is where the square root has no slope."""
    w.value = np.ones(3)
    target = np.array([1.0, 2.0, 3.0])
    solution = cn.minimize(distance(w - target) + 0.5 * cn.sum(w)).solve(progress=False)
    assert solution.status == "optimal"
    assert solution.objective == pytest.approx(3.0)
    assert w.value == pytest.approx(target, abs=1e-6)
