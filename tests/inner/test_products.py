"""Inner problems solved with products instead of matrices: the same answers, derivatives and warnings."""

import warnings

import numpy as np
import pytest
import torch
from torch.autograd import gradgradcheck

import constrain as cn
from constrain.inner import compiled, program
from constrain.inner.krylov import gmres, minres, ritz_values
from constrain.inner.products import Products

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.fixture
def products(monkeypatch):
    """Every inner problem counts as a large one, whose matrices do not fit."""
    compiled.cache_clear()
    monkeypatch.setattr(program, "LARGE", 0)
    monkeypatch.setattr(program, "NUMBERS", 0)
    yield
    compiled.cache_clear()


# ------------------------------------------------------------------------------------- Krylov methods
def test_systems_are_those_of_a_factorization():
    A = normal(3, 30, 30, seed=1) / 8 + torch.eye(30, dtype=F64)
    S, rhs = A + A.mT, normal(3, 30, seed=2)
    rhs[1] = 0

    def times(matrix):
        return lambda v: (matrix @ v[..., None])[..., 0]

    torch.testing.assert_close(gmres(times(A), rhs).x, torch.linalg.solve(A, rhs), atol=1e-9, rtol=0)
    torch.testing.assert_close(gmres(times(A), rhs, memory=8, rounds=200).error < 1e-11, rhs[:, 0] < 9)
    torch.testing.assert_close(minres(times(S), rhs).x, torch.linalg.solve(S, rhs), atol=1e-8, rtol=0)
    values = torch.linalg.eigvals(A).abs().amax(1)
    torch.testing.assert_close(ritz_values(times(A), normal(3, 30)).abs().amax(1), values, atol=1e-6, rtol=0)


def test_a_singular_system_has_its_solution_of_least_norm():
    basis = torch.linalg.qr(normal(20, 20, seed=3))[0]
    S = (basis * torch.cat([torch.zeros(4), torch.linspace(-2, 3.1, 16)]).double()) @ basis.T
    rhs = normal(2, 20, seed=4) @ S
    found = minres(lambda v: v @ S, rhs)
    torch.testing.assert_close(
        found.x, rhs @ torch.linalg.pinv(S, rtol=1e-10, hermitian=True), atol=1e-9, rtol=0
    )
    assert bool((minres(lambda v: v @ S, normal(2, 20, seed=5)).error > 0.1).all())
    assert bool((gmres(lambda v: v @ S, normal(2, 20, seed=5)).error > 0.1).all())


# ------------------------------------------------------------------------------------- the same answers
def quadratic():
    n, m, p = 8, 10, 2
    L, G, A = normal(n, n, seed=1), normal(m, n, seed=2), normal(p, n, seed=3)
    x, q, h = cn.Variable(n, "x", bounds=(-1, 1)), cn.Parameter("q", shape=n), cn.Parameter("h", shape=m)
    problem = cn.minimize(cn.sum_squares(L @ x) / n + q @ x).subject_to(c=G @ x <= h, d=A @ x == 0.1)
    return problem, (2 * normal(3, n, seed=4), 0.5 + normal(3, m, seed=5).abs())


def linear():
    g, shed = cn.Variable(4, "g", bounds=(0, 2)), cn.Variable((), "shed", nonneg=True)
    cost, demand = cn.Parameter("cost", shape=4), cn.Parameter("demand")
    problem = cn.minimize(cost @ g + 20 * shed).subject_to(serve=cn.sum(g) + shed == demand)
    return problem, (1 + normal(3, 4, seed=5).abs(), torch.tensor([0.7, 3.3, 9.1], dtype=F64))


def variation():
    x, y = cn.Variable(9, "x"), cn.Parameter("y", shape=9)
    return cn.minimize(cn.sum_squares(x - y) + 0.8 * cn.norm(x[1:] - x[:-1], 1)), (normal(3, 9, seed=6),)


def metric():
    x, L, y = cn.Variable(4, "x", nonneg=True), cn.Parameter("L", shape=(4, 4)), cn.Parameter("y", shape=4)
    problem = cn.minimize(cn.sum_squares(L @ (x - y))).subject_to(total=cn.sum(x) == 1)
    return problem, (normal(2, 4, 4, seed=1) + 2 * torch.eye(4, dtype=F64), normal(2, 4, seed=2))


def cone():
    x, y, r = cn.Variable(3, "x"), cn.Parameter("y", shape=3), cn.Parameter("r")
    problem = cn.minimize(cn.sum_squares(x - y)).subject_to(
        cone=cn.norm(normal(3, 3, seed=4) @ x + 0.1) <= r + 0.2 * x[0], half=cn.sum(x) >= -1
    )
    return problem, (3 * normal(2, 3, seed=5), torch.tensor([0.7, 1.2], dtype=F64))


def nonlinear():
    x, c = cn.Variable(2, "x"), cn.Parameter("c", shape=2)
    x.value = np.array([1.0, 0.5])
    problem = cn.minimize(cn.sum_squares(x - c)).subject_to(circle=cn.sum_squares(x) == 1, half=x[0] >= 0.2)
    return problem, (torch.tensor([[2.0, 1.0], [1.0, -0.7]], dtype=F64),)


def answers(make):
    problem, tensors = make()
    inputs = [t.clone().requires_grad_(True) for t in tensors]
    outputs = [*(v.name for v in problem.variables), "value", *problem.constraints]
    found = cn.layer(problem, outputs=outputs)(*inputs)
    total = sum(torch.cos(t).sum() for t in found)
    return [*found, *torch.autograd.grad(total, inputs)]


@pytest.mark.parametrize(
    "make", [quadratic, linear, variation, metric, cone, nonlinear], ids=lambda f: f.__name__
)
def test_answers_and_derivatives_are_those_of_matrices(make, monkeypatch):
    compiled.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = answers(make)
        monkeypatch.setattr(program, "LARGE", 0)
        monkeypatch.setattr(program, "NUMBERS", 0)
        compiled.cache_clear()
        found = answers(make)
    compiled.cache_clear()
    for mine, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, reference, atol=2e-7, rtol=1e-7)


def test_second_derivatives_without_matrices(products):
    x, q = cn.Variable(2, "x"), cn.Parameter("q", shape=2)
    problem = cn.minimize(cn.sum(cn.exp(x)) + cn.sum_squares(x - q)).subject_to(c=x[0] + 2 * x[1] <= 0.1)
    at = normal(1, 2, seed=5).requires_grad_(True)
    assert "products in the place of matrices" in compiled(problem).route
    assert gradgradcheck(lambda t: cn.argmin(problem, at=t), (at,))


# --------------------------------------------------------------------------------------- what is said
def test_the_route_says_when_there_are_no_matrices():
    x, y = cn.Variable(1200, "x"), cn.Parameter("y", shape=1200)
    small = cn.minimize(cn.sum_squares(x - y) + cn.norm(x[1:30] - x[:29], 1))
    large = cn.minimize(cn.sum_squares(x - y) + cn.norm(x[1:] - x[:-1], 1))
    assert compiled(small).route == "a quadratic program: batched interior point"
    assert compiled(large).route == (
        "a quadratic program: operator splitting with conjugate gradients, products in the place of matrices "
        "(MINRES; 4797 variables and constraints > 3000)"
    )


def test_what_is_degenerate_is_said_without_matrices(products):
    x, b = cn.Variable(2, "x"), cn.Parameter("b", shape=3)
    lines = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=F64)
    corner = cn.minimize(-cn.sum(x)).subject_to(c=lines @ x <= b)
    edge = cn.minimize(-x[0] + 0 * x[1]).subject_to(c=lines @ x <= b, low=x >= -5)
    for problem, at, output, code in [
        (corner, [1.0, 1.0, 2.0], "value", "W220"),
        (edge, [1.0, 1.0, 9.0], "x", "W221"),
    ]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cn.layer(problem, outputs=output)(
                torch.tensor(at, dtype=F64, requires_grad=True)
            ).sum().backward()
        assert code in {w.message.code for w in caught}


def test_no_solution_is_proved_without_matrices(products):
    g, d = cn.Variable((), "g", bounds=(0, 4)), cn.Parameter("demand")
    with pytest.raises(cn.RouteError, match=r"\[E192\].* row 1 of the batch \(infeasible.*: demand = 9"):
        cn.value(cn.minimize(2 * g).subject_to(serve=g >= d), at=torch.tensor([1.0, 9.0]))
    u, c = cn.Variable(2, "u", nonneg=True), cn.Parameter("c", shape=2)
    with pytest.raises(cn.RouteError, match=r"\[E192\].* row 1 of the batch \(unbounded"):
        cn.argmin(cn.minimize(c @ u), at=torch.tensor([[1.0, 1.0], [1.0, -1.0]]))


@pytest.mark.parametrize("rank", [60, 59])
def test_systems_of_condition_1e6_are_solved_by_their_matrix_made_from_products(rank):
    """MINRES leaves a thousandth of such a system; the same with a direction that nothing sees."""
    n, p = 60, 3
    basis = torch.linalg.qr(normal(n, n, seed=8))[0]
    sizes = torch.logspace(0, 6, n, dtype=F64)
    sizes[rank:] = 0.0
    A = normal(p, n, seed=9)
    A = A - (A @ basis[:, rank:]) @ basis[:, rank:].mT
    x, q = cn.Variable(n, "x"), cn.Parameter("q", shape=n)
    root = (basis * sizes.sqrt()).mT
    functions = compiled(cn.minimize(cn.sum_squares(root @ x) / 2 + q @ x).subject_to(e=A @ x == 1)).functions
    point = (normal(2, n), torch.zeros(2, 0, dtype=F64), normal(2, p))
    idle = torch.zeros(2, 0, dtype=torch.bool)
    products = Products(functions, point, idle, [normal(2, n, seed=3)], [True])
    wanted = normal(2, n, seed=4) - (normal(2, n, seed=4) @ basis[:, rank:]) @ basis[:, rank:].mT
    u, _, v = products.solve(wanted, point[1], normal(2, p, seed=5))
    K = torch.cat([torch.cat([root.mT @ root, A.mT], 1), torch.cat([A, torch.zeros(p, p)], 1)])
    right = torch.cat([wanted, normal(2, p, seed=5)], 1)
    found = torch.cat([u, v], 1)
    assert float((found @ K - right).norm() / right.norm()) < 1e-9
    if rank == n:
        expected = torch.linalg.solve(K, right[..., None])[..., 0]
        torch.testing.assert_close(found, expected, atol=1e-6 * float(expected.abs().max()), rtol=0)
    first = minres(products, right, tolerance=1e-11, steps=n + p)  # as before, without the matrix
    assert bool((first.error > 1e-4).all())


@pytest.mark.parametrize("kind", ["bounds", "rows", "budget"])
def test_quadratic_programs_of_condition_1e6_are_solved_with_matrices_that_fit(kind, monkeypatch):
    """Products alone take half a minute for n = 200; the oracle are the optimality conditions."""
    monkeypatch.setattr(program, "LARGE", 0)
    compiled.cache_clear()
    n = 120
    basis = torch.linalg.qr(normal(n, n, seed=8))[0]
    P = (basis * torch.logspace(0, 6, n, dtype=F64)) @ basis.mT
    x, q = cn.Variable(n, "x"), cn.Parameter("q", shape=n)
    rows = normal(2 * n, n, seed=9)
    held = {
        "bounds": lambda: {"low": x >= -0.1, "high": x <= 0.1},
        "rows": lambda: {"low": rows @ x <= 0.3},
        "budget": lambda: {"low": x >= 0, "budget": cn.sum(x) == 1},
    }[kind]()
    layer = cn.layer(
        cn.minimize(cn.quad_form(x, (P + P.mT) / 2) / 2 + q @ x).subject_to(**held), outputs=["x", *held]
    )
    assert "products in the place of matrices" in layer.route
    at = normal(2, n, seed=3).requires_grad_(True)
    solved = layer(at)
    (gradient,) = torch.autograd.grad(solved[0].square().sum(), at)
    found, *multipliers = (t.detach() for t in solved)
    slope = found @ P + at.detach()
    if kind == "bounds":
        slacks, slope = [found + 0.1, 0.1 - found], slope - multipliers[0] + multipliers[1]
    elif kind == "rows":
        slacks, slope = [0.3 - found @ rows.mT], slope + multipliers[0] @ rows
    else:
        slacks, slope = [found], slope - multipliers[0] + multipliers[1][:, None]
        torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=F64), atol=1e-10, rtol=0)
    assert float(slope.abs().max()) < 1e-10 * 1e6  # the curvature is as large
    for slack, multiplier in zip(slacks, multipliers, strict=False):
        assert float(slack.min()) > -1e-10
        assert float(multiplier.min()) >= 0
        assert float((slack * multiplier).abs().max()) < 1e-10
    direction, step = normal(2, n, seed=4), 1e-5
    ahead, behind = (layer(at.detach() + sign * step * direction)[0] for sign in (1, -1))
    compiled.cache_clear()
    change = (ahead.square().sum() - behind.square().sum()) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), change, atol=1e-7, rtol=1e-5)
