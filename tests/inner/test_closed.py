"""The formulas of nearest points: exact in value, multiplier and gradient, on batches of any kind of row."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch.autograd import gradcheck

from constrain.inner.closed import _searched, affine_set, ball, knapsack

F64 = torch.float64


def batch(seed, n=9, rows=40):
    """Rows of very different size, some entries open, some fixed, some without a weight."""
    g = torch.Generator().manual_seed(seed)
    size = 10.0 ** torch.randint(-4, 5, (rows, 1), generator=g)
    p = 10.0 ** (2 * torch.rand(n, generator=g, dtype=F64) - 1)
    q = size * torch.randn(rows, n, generator=g, dtype=F64)
    a = torch.randn(rows, n, generator=g, dtype=F64)
    a[:, 0] = 0.0
    lower = torch.where(torch.rand(n, generator=g) < 0.3, -torch.inf, -torch.rand(n, generator=g).double())
    upper = torch.where(torch.rand(n, generator=g) < 0.3, torch.inf, torch.rand(n, generator=g).double())
    lower[1] = upper[1] = 0.25
    inside = torch.rand(rows, n, generator=g, dtype=F64)
    low, high = lower.clamp_min(-5), upper.clamp_max(5)
    b = (a * (low + inside * (high - low))).sum(1)
    return p, q, a, b, lower, upper


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("equality", [True, False])
def test_a_budget_meets_its_conditions(seed, equality):
    p, q, a, b, lower, upper = batch(seed)
    x, nu, feasible, _ = knapsack(p, q, a, b, lower, upper, equality=equality)
    assert feasible.all()
    scale = 1 + q.abs().amax(1) + (a * x).abs().sum(1)
    off = (a * x).sum(1) - b
    assert (off.abs() if equality else off.clamp_min(0)).div(scale).max() <= 1e-12
    loose = (-q - nu[:, None] * a) / p
    torch.testing.assert_close(x, loose.clamp(lower, upper), rtol=1e-10, atol=1e-10)
    if not equality:
        assert (nu >= 0).all()
        assert (nu * off).abs().div(scale * (1 + nu)).max() <= 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_newton_and_the_search_find_the_same_piece(seed):
    given = batch(seed)
    x, nu, _, _ = knapsack(*given, equality=True)
    p, q, a, _, lower, upper = given
    found = ((-q - _searched(*given)[:, None] * a) / p).clamp(lower, upper)
    torch.testing.assert_close(x, found, rtol=1e-9, atol=1e-9)
    row = 7

    def used(nu):
        loose = (-q[row] - nu * a[row]) / p
        return float((a[row] * loose.clamp(lower, upper)).sum() - given[3][row])

    around = max(1.0, abs(float(nu[row])))
    if used(float(nu[row]) - around) > 0 > used(float(nu[row]) + around):
        root = brentq(used, float(nu[row]) - around, float(nu[row]) + around, xtol=1e-14)
        assert used(root) == pytest.approx(used(float(nu[row])), abs=1e-9)


def test_metrics_and_bounds_may_differ_by_row():
    p, q, a, b, lower, upper = batch(0)
    whole = knapsack(p, q, a, b, lower, upper, equality=True)
    rows = knapsack(p.expand_as(q), q, a, b, lower.expand_as(q), upper.expand_as(q), equality=True)
    for one, other in zip(whole, rows, strict=True):
        torch.testing.assert_close(one, other)


def test_no_point_is_said_to_be_none():
    zeros, ones = torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)
    b = torch.tensor([1.0, -0.5, 3.5], dtype=F64)
    _, _, feasible, _ = knapsack(
        ones, torch.randn(3, 3, dtype=F64), ones[None], b, zeros, ones, equality=True
    )
    assert feasible.tolist() == [True, False, False]
    _, _, feasible, _ = knapsack(
        ones, torch.randn(3, 3, dtype=F64), ones[None], b, zeros, ones, equality=False
    )
    assert feasible.tolist() == [True, False, True]


def test_derivatives_of_the_capped_simplex():
    """Where x is free its derivative is that of a projection onto the hyperplane of the free entries."""
    y = torch.randn(16, 12, generator=torch.Generator().manual_seed(0), dtype=F64)

    def project(t):
        zeros, ones = torch.zeros(12, dtype=F64), torch.ones(12, dtype=F64)
        return knapsack(ones, -t, ones[None], 3 * ones.new_ones(len(t)), zeros, ones, equality=True)[0]

    assert gradcheck(project, (y[:3].clone().requires_grad_(True),))
    x = project(y)
    upstream = torch.randn(16, 12, generator=torch.Generator().manual_seed(1), dtype=F64)
    t = y.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(project(t), t, upstream)
    free = ((x > 0) & (x < 1)).double()
    mean = (upstream * free).sum(1, keepdim=True) / free.sum(1, keepdim=True)
    torch.testing.assert_close(gradient, free * (upstream - mean), rtol=0, atol=1e-14)


@pytest.mark.parametrize("order", [1.0, 2.0])
def test_balls(order):
    g = torch.Generator().manual_seed(4)
    y, center = torch.randn(6, 5, generator=g, dtype=F64), 0.1 * torch.ones(6, 5, dtype=F64)
    radius = torch.tensor([0.1, 0.5, 1.0, 2.0, 9.0, 1.0], dtype=F64)
    x, price, _ = ball(y, center, radius, order=order)
    size = torch.linalg.vector_norm(x - center, order, dim=1)
    assert (size <= radius + 1e-12).all()
    assert ((price == 0) | (size - radius).abs().le(1e-12)).all()
    force = (y - x).abs()  # price times a subgradient of the norm
    if order == 1.0:
        moved = (x - center).abs() > 0
        torch.testing.assert_close(force[moved], price[:, None].expand_as(y)[moved])
        assert (force <= price[:, None] + 1e-12).all()
    else:
        torch.testing.assert_close(torch.linalg.vector_norm(force, dim=1), price)


def test_affine_sets_with_dependent_rows():
    rng = np.random.default_rng(1)
    p, q = torch.tensor(0.5 + rng.random(6)), torch.tensor(rng.normal(size=(3, 6)))
    a = torch.tensor(rng.normal(size=(2, 6)))
    a = torch.cat([a, a[:1] + 2 * a[1:]])
    b = torch.tensor([[1.0, 2.0, 5.0], [0.0, 0.0, 0.0], [1.0, 2.0, 4.0]], dtype=F64)
    x, y, feasible = affine_set(p, q, a[None], b)
    assert feasible.tolist() == [True, True, False]
    torch.testing.assert_close(x[:2] @ a.T, b[:2])
    torch.testing.assert_close(p * x + q + y @ a, torch.zeros(3, 6, dtype=F64))
    least = torch.linalg.lstsq(a.T, -(p * x + q).T, driver="gelsd").solution.T
    torch.testing.assert_close(y[:2], least[:2])
    inside = (q[:2].clone().requires_grad_(True), b[:2, :2].clone().requires_grad_(True))
    assert gradcheck(lambda q, b: affine_set(p, q, a[None, :2], b)[0], inside)
