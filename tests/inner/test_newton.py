"""Newton's method through the optimal value of an inner problem."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import constrain as cn

F64 = torch.float64
ROOT = np.random.default_rng(0).normal(size=(4, 4))
Q = torch.tensor(ROOT @ ROOT.T + np.eye(4))


def reply():
    """A quadratic program in the cost vector c, with bounds that are active for some c."""
    z, c = cn.Variable(4, "z"), cn.Parameter("c", shape=4)
    return cn.minimize(0.5 * cn.quad_form(z, Q) - c @ z).subject_to(low=z >= -0.2, total=cn.sum(z) <= 1)


def test_gradients_that_are_taken_several_at_once_are_those_taken_one_by_one():
    inner = reply()
    at = torch.tensor([[1.0, 1, 1, 1], [0.5, -2, 1, 0]], dtype=F64, requires_grad=True)
    (plain,) = torch.autograd.grad(cn.value(inner, at=at).sum(), at)
    value = cn.value(inner, at=at)
    (found,) = torch.autograd.grad(value, at, torch.eye(2, dtype=F64), is_grads_batched=True)
    torch.testing.assert_close(found[0, 0], plain[0])
    torch.testing.assert_close(found[1, 1], plain[1])
    assert found[0, 1].abs().max() == found[1, 0].abs().max() == 0
    one = torch.ones(4, dtype=F64, requires_grad=True)  # shared by all rows
    value = cn.value(inner, at=one)
    (found,) = torch.autograd.grad(value.reshape(1), one, torch.eye(1, dtype=F64), is_grads_batched=True)
    torch.testing.assert_close(found[0], plain[0])


CASES = {
    "sum": (lambda v, value: cn.minimize(value + cn.sum_squares(v - 1)), 1.0, None),
    "difference": (lambda v, value: cn.minimize(cn.sum_squares(v - 1) - value), -1.0, None),
    "at least": (lambda v, value: cn.minimize(cn.sum_squares(v - 1)).subject_to(b=value >= -0.3), 0.0, -0.3),
    "at most": (lambda v, value: cn.minimize(cn.sum_squares(v - 1)).subject_to(b=value <= -1.5), 0.0, -1.5),
}


@pytest.mark.parametrize("name", CASES)
def test_optimal_values_in_objectives_and_constraints(name):
    """SciPy minimizes the same, by differences of values of the inner problem."""
    make, weight, bound = CASES[name]
    inner = reply()
    v = cn.Variable(4, "v", bounds=(-3, 3))
    v.value = np.ones(4)
    found = make(v, cn.value(inner, at=v)).solve("newton", progress=False)

    def value(x):
        return float(cn.value(inner, at=torch.tensor(x)))

    sign = -1.0 if name == "at most" else 1.0
    limits = [] if bound is None else [{"type": "ineq", "fun": lambda x: sign * (value(x) - bound)}]
    expected = minimize(
        lambda x: ((x - 1) ** 2).sum() + weight * value(x), np.ones(4), method="SLSQP",
        bounds=[(-3, 3)] * 4, constraints=limits, options={"ftol": 1e-12},
    )  # fmt: skip
    certified = name in ("difference", "at least")  # the value is a minimum of affine functions: concave
    assert found.status.value == ("optimal" if certified else "stationary")
    assert found.objective == pytest.approx(expected.fun, abs=1e-5)
    assert found.kkt().stationarity <= 1e-10
    assert len(found.history) <= 20
