"""Torch functions that rearrange or add entries: affine in variables, with the values that torch gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E

F64 = torch.float64
rng = np.random.default_rng(0)
x, y = cn.Variable(4, "x", bounds=(-1, 1)), cn.Variable(3, "y", bounds=(-1, 1))
X, Y = cn.Variable((3, 3), "X", bounds=(-1, 1)), cn.Variable((2, 3), "Y", bounds=(-1, 1))
ONES = torch.ones(2, dtype=F64)

FUNCTIONS = {
    "cat": lambda x, y, X, Y: torch.cat([x, y, ONES]),
    "concat of matrices": lambda x, y, X, Y: torch.concat((X, Y), dim=0),
    "concatenate of columns": lambda x, y, X, Y: torch.concatenate([X, X], dim=-1),
    "hstack": lambda x, y, X, Y: torch.hstack([x, y]),
    "hstack of matrices": lambda x, y, X, Y: torch.hstack([X, X]),
    "vstack": lambda x, y, X, Y: torch.vstack([X, y]),
    "diff": lambda x, y, X, Y: torch.diff(x),
    "second diff": lambda x, y, X, Y: torch.diff(x, n=2),
    "diff of rows": lambda x, y, X, Y: torch.diff(Y, dim=0),
    "cumsum": lambda x, y, X, Y: torch.cumsum(x, 0),
    "cumsum of columns": lambda x, y, X, Y: torch.cumsum(Y, dim=1),
    "cumsum of rows": lambda x, y, X, Y: torch.cumsum(Y, dim=0),
    "flatten": lambda x, y, X, Y: torch.flatten(Y),
    "ravel": lambda x, y, X, Y: torch.ravel(X),
    "outer": lambda x, y, X, Y: torch.outer(x, ONES),
    "diagonal": lambda x, y, X, Y: torch.diagonal(X),
    "diag of a matrix": lambda x, y, X, Y: torch.diag(X),
    "diag of a vector": lambda x, y, X, Y: torch.diag(x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_those_of_torch(name):
    for variable in (x, y, X, Y):
        variable.value = rng.uniform(-1, 1, size=variable.shape)
    tensors = [torch.as_tensor(np.asarray(v.value)) for v in (x, y, X, Y)]
    expected, expression = FUNCTIONS[name](*tensors), FUNCTIONS[name](x, y, X, Y)
    assert expression.shape == tuple(expected.shape)
    weights = torch.as_tensor(rng.normal(size=tuple(expected.shape)))
    problem = cn.minimize(cn.sum(weights * expression))
    assert problem.evaluate().objective == pytest.approx(float((weights * expected).sum()))
    assert problem.explain().facts.problem_class == "LP"


def test_a_matrix_with_a_diagonal_is_symmetric():
    w = cn.Variable(3, "w", nonneg=True)
    Z = rng.normal(size=(3, 2))
    problem = cn.maximize(cn.log_det(Z.T @ torch.diag(w) @ Z)).subject_to(one=cn.sum(w) == 1)
    assert problem.solve(progress=False).status == "optimal"


def test_differences_within_rows_of_data():
    D = cn.Data("d", x=rng.normal(size=(20, 4)))
    w = cn.Variable(3, "w")
    problem = cn.minimize(E((torch.diff(D.x, dim=-1) @ w - 1) ** 2))
    expected = np.linalg.lstsq(np.diff(np.asarray(D.values("x"))), np.ones(20), rcond=None)[0]
    assert problem.solve(progress=False).status == "optimal"
    assert w.value == pytest.approx(expected, abs=1e-6)


def test_what_stays_as_it_is():
    """Other options, and long axes, are functions of torch without a known curvature."""
    long = cn.Variable(4000, "long")
    for expression in (
        torch.cumsum(long, 0),
        torch.diff(x, prepend=torch.ones(1, dtype=F64)),
        torch.diag(x, 1),
    ):
        route = next(r for r in cn.minimize(cn.sum(expression)).explain().routes if r.method == "cvxpy")
        assert not route.open
