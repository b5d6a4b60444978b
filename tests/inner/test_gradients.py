"""Values, solutions and gradients of inner problems against other solvers and finite differences."""

import warnings

import numpy as np
import pytest
import torch

import constrain as cn
from constrain.inner import compiled

torch.set_default_dtype(torch.float32)
ROWS = 3


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def dense_qp():
    """Matrices in the objective and in both kinds of constraints, all of them parameters but two."""
    n, m, p = 6, 8, 2
    L, G = normal(n, n, seed=1), normal(m, n, seed=2)
    x, q = cn.Variable(n, "x"), cn.Parameter("q", shape=n)
    h, A, b = cn.Parameter("h", shape=m), cn.Parameter("A", shape=(p, n)), cn.Parameter("b", shape=p)
    P = L @ L.T / n + 0.1 * torch.eye(n, dtype=torch.float64)
    problem = cn.minimize(0.5 * cn.quad_form(x, P) + q @ x).subject_to(below=G @ x <= h, equal=A @ x == b)
    inputs = {
        "q": 3 * normal(ROWS, n, seed=3),
        "h": 0.2 + torch.rand(ROWS, m, generator=rng(4), dtype=torch.float64),
        "A": normal(ROWS, p, n, seed=5),
        "b": 0.1 * normal(ROWS, p, seed=6),
    }
    return problem, inputs


def learned_metric():
    """The curvature itself depends on parameters, and is a square."""
    x, L, y = cn.Variable(4, "x", nonneg=True), cn.Parameter("L", shape=(4, 4)), cn.Parameter("y", shape=4)
    problem = cn.minimize(cn.sum_squares(L @ (x - y))).subject_to(total=cn.sum(x) == 1)
    return problem, {"L": normal(ROWS, 4, 4, seed=1) + 2 * torch.eye(4, dtype=torch.float64),
                     "y": normal(ROWS, 4, seed=2)}  # fmt: skip


def free_form():
    """A quadratic form in a parameter, about whose curvature nothing is known before there are numbers."""
    x, Q = cn.Variable(3, "x", bounds=(-1, 1)), cn.Parameter("Q", shape=(3, 3))
    c = cn.Parameter("c", shape=3)
    M = normal(ROWS, 3, 3, seed=1)
    problem = cn.minimize(0.5 * cn.quad_form(x, Q) + c @ x)
    return problem, {"Q": M @ M.mT + torch.eye(3, dtype=torch.float64), "c": 2 * normal(ROWS, 3, seed=2)}


def dispatch():
    """A linear program with one optimal vertex and unique multipliers."""
    g, t = cn.Variable(3, "g", nonneg=True), cn.Parameter("demand")
    shed, cost = cn.Variable((), "shed", nonneg=True), cn.Parameter("cost", shape=3)
    problem = cn.minimize(cost @ g + 50 * shed).subject_to(
        serve=cn.sum(g) + shed == t, capacity=g <= torch.tensor([1.0, 2.0, 1.5], dtype=torch.float64)
    )
    demand = torch.tensor([0.4, 1.7, 3.3], dtype=torch.float64)
    costs = torch.tensor([[1.0, 2.0, 4.0], [3.0, 1.0, 2.0], [2.5, 5.0, 1.0]], dtype=torch.float64)
    return problem, {"demand": demand, "cost": costs}


def robust_mean():
    """Corners in the objective and a largest value: rewritten to a linear program beside a square."""
    x, y = cn.Variable(2, "x"), cn.Parameter("y", shape=(5, 2))
    spread = cn.max(abs(x - 0.3)) + 0.1 * cn.sum(torch.relu(x))
    return cn.minimize(cn.sum(cn.square(x - y)) + cn.norm(x, 1) + spread), {
        "y": 2 * normal(ROWS, 5, 2, seed=8)
    }


def cone():
    """A second-order cone and an ellipsoid."""
    x, y, r = cn.Variable(3, "x"), cn.Parameter("y", shape=3), cn.Parameter("r")
    W = normal(3, 3, seed=4)
    problem = cn.minimize(cn.sum_squares(x - y)).subject_to(
        cone=cn.norm(W @ x + 0.1) <= r + 0.2 * x[0], half=cn.sum(x) >= -1
    )
    return problem, {
        "y": 3 * normal(ROWS, 3, seed=5),
        "r": 0.5 + torch.rand(ROWS, generator=rng(6), dtype=torch.float64),
    }


def entropy():
    """An exponential cone: the softmax with a mean."""
    p, a, m = cn.Variable(4, "p", nonneg=True), cn.Parameter("a", shape=4), cn.Parameter("m")
    z = torch.arange(4, dtype=torch.float64)
    problem = cn.maximize(a @ p + cn.sum(cn.entr(p))).subject_to(total=cn.sum(p) == 1, mean=z @ p == m)
    return problem, {"a": normal(ROWS, 4, seed=3), "m": torch.tensor([1.0, 1.5, 2.2], dtype=torch.float64)}


def program():
    """A nonlinear program: a nonconvex equality and a bound."""
    x, c = cn.Variable(2, "x"), cn.Parameter("c", shape=2)
    x.value = np.array([1.0, 0.5])
    problem = cn.minimize(cn.sum_squares(x - c)).subject_to(circle=cn.sum_squares(x) == 1, half=x[0] >= 0.2)
    return problem, {"c": torch.tensor([[2.0, 1.0], [1.0, -0.7], [0.0, 2.0]], dtype=torch.float64)}


PROBLEMS = [dense_qp, learned_metric, free_form, dispatch, robust_mean, cone, entropy, program]


def run(problem, tensors, *outputs):
    layer = cn.layer(problem, outputs=outputs or None)
    return layer(*(tensors[p.name] for p in problem.parameters))


def by_driver(problem, tensors, row):
    """The same row by the routes of the package."""
    params = {
        name: np.asarray(t[row] if t.dim() > len(_shape(problem, name)) else t) for name, t in tensors.items()
    }
    starts = [(v, v.value) for v in problem.variables]
    solution = problem.solve(params=params, progress=False)
    found = np.concatenate([np.reshape(v.value, -1) for v in problem.variables])
    for v, start in starts:
        v.value = start
    return float(solution.objective), found


def _shape(problem, name):
    return next(p.shape for p in problem.parameters if p.name == name)


@pytest.mark.parametrize("make", PROBLEMS, ids=lambda f: f.__name__)
def test_solution_and_value_are_those_of_the_other_routes(make):
    problem, tensors = make()
    names = [v.name for v in problem.variables]
    *xs, value = run(problem, tensors, *names, "value")
    for row in range(ROWS):
        objective, x = by_driver(problem, tensors, row)
        mine = torch.cat([v[row].reshape(-1) for v in xs]).numpy()
        assert value[row] == pytest.approx(objective, abs=1e-5)
        np.testing.assert_allclose(mine, x, atol=2e-4)


@pytest.mark.parametrize("make", PROBLEMS, ids=lambda f: f.__name__)
def test_gradients_are_those_of_finite_differences(make):
    problem, tensors = make()
    inputs = {name: t.clone().requires_grad_(True) for name, t in tensors.items()}
    names = [v.name for v in problem.variables]

    def scalars(given):
        *xs, value = run(problem, given, *names, "value")
        mixed = sum((torch.cos(v) * (i + 1)).reshape(ROWS, -1).sum() for i, v in enumerate(xs))
        return mixed, value.sum()

    for which in (0, 1):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            grads = torch.autograd.grad(scalars(inputs)[which], list(inputs.values()), allow_unused=True)
        for (name, t), g in zip(tensors.items(), grads, strict=True):
            direction = normal(*t.shape, seed=9)
            if name == "Q":
                direction = direction + direction.mT
            eps = 1e-5
            ends = [scalars({**tensors, name: t + s * eps * direction})[which] for s in (1, -1)]
            numeric = (ends[0] - ends[1]) / (2 * eps)
            analytic = (g * direction).sum() if g is not None else 0.0
            assert float(analytic) == pytest.approx(float(numeric), rel=1e-5, abs=1e-5), (name, which)


@pytest.mark.parametrize("make", PROBLEMS, ids=lambda f: f.__name__)
def test_a_batch_is_its_rows_one_by_one(make):
    problem, tensors = make()
    whole = run(problem, tensors, *[v.name for v in problem.variables], "value")
    for row in range(ROWS):
        one = run(
            problem, {k: t[row] for k, t in tensors.items()}, *[v.name for v in problem.variables], "value"
        )
        for a, b in zip(whole, one, strict=True):
            assert b.shape == a.shape[1:]
            torch.testing.assert_close(a[row], b, atol=1e-8, rtol=1e-8)


def test_routes_are_recognized():
    found = {make.__name__: compiled(make()[0]).route for make in PROBLEMS}
    assert found["dense_qp"] == "a quadratic program: batched interior point"
    assert found["dispatch"] == "a linear program: batched interior point"
    assert found["robust_mean"] == "a quadratic program: batched interior point"
    assert found["cone"].startswith("a convex cone program: CVXPY")
    assert found["program"].startswith("a nonlinear program: solvers of the package")


@pytest.mark.parametrize("linear", [False, True], ids=["quadratic", "linear"])
def test_gradients_of_random_programs(linear):
    for seed in range(12):
        g = rng(seed)
        n = 2 + seed % 6
        L, G, c, w = (
            torch.randn(*s, generator=g, dtype=torch.float64) for s in ((n, n), (n + 2, n), (n,), (n,))
        )
        x = cn.Variable(n, "x", bounds=(-2, 2))
        q, h = cn.Parameter("q", shape=n), cn.Parameter("h", shape=n + 2)
        objective = (q + c) @ x if linear else cn.sum_squares(L @ x) + q @ x
        layer = cn.layer(cn.minimize(objective).subject_to(c=G @ x <= h), [q, h], ["x", "value"])
        at = (
            2 * torch.randn(3, n, generator=g, dtype=torch.float64),
            0.3 + torch.rand(3, n + 2, generator=g, dtype=torch.float64),
        )
        along = [torch.randn(t.shape, generator=g, dtype=torch.float64) for t in at]
        inputs = [t.clone().requires_grad_(True) for t in at]
        for k in (0, 1):
            weight = w if k == 0 else torch.ones(())
            grads = torch.autograd.grad((layer(*inputs)[k] * weight).sum(), inputs)
            ends = [
                (layer(*(t + s * 1e-6 * d for t, d in zip(at, along, strict=True)))[k] * weight).sum()
                for s in (1, -1)
            ]
            numeric = float((ends[0] - ends[1]) / 2e-6)
            analytic = float(sum((a * d).sum() for a, d in zip(grads, along, strict=True)))
            assert analytic == pytest.approx(numeric, rel=1e-5, abs=1e-5), (seed, k)


def random_cone(g, n):
    """Second-order cones that cut off the nearest point, and a norm in the objective."""
    x, y, r = cn.Variable(n, "x"), cn.Parameter("y", shape=n), cn.Parameter("r", shape=2)
    W, V = (torch.randn(n, n, generator=g, dtype=torch.float64) / n**0.5 for _ in range(2))
    problem = cn.minimize(cn.sum_squares(x - y) + 0.5 * cn.norm(V @ x - 3)).subject_to(
        cone=cn.norm(W @ x + 0.1) <= r[0], second=cn.norm(x[:2]) <= r[1] + 0.3 * x[n - 1]
    )
    at = 3 * torch.randn(2, n, generator=g, dtype=torch.float64)
    return problem, [y, r], (at, 1 + torch.rand(2, 2, generator=g, dtype=torch.float64))


def random_program(g, n):
    """A sphere as an equality, a curved inequality and bounds; the start is near one local solution."""
    x, c, s = cn.Variable(n, "x", bounds=(-2, 2)), cn.Parameter("c", shape=n), cn.Parameter("s")
    x.value = np.full(n, 1 / n**0.5)
    q = torch.randn(n, generator=g, dtype=torch.float64)
    problem = cn.minimize(cn.sum(torch.sin(x)) + cn.sum_squares(x - c)).subject_to(
        sphere=cn.sum_squares(x) == 1 + s**2, wave=torch.sin(q @ x) + x[0] ** 3 <= 0.6
    )
    at = 1 + torch.randn(2, n, generator=g, dtype=torch.float64)
    return problem, [c, s], (at, torch.rand(2, generator=g, dtype=torch.float64))


@pytest.mark.parametrize("make", [random_cone, random_program], ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", range(5))
def test_gradients_of_random_curved_programs(make, seed):
    """Solutions, values and multipliers of cones and of nonlinear programs, along random directions."""
    g = rng(seed)
    problem, inputs, at = make(g, 2 + seed % 3)
    layer = cn.layer(problem, inputs, ["x", "value", *problem.constraints])
    given = [t.clone().requires_grad_(True) for t in at]
    along = [torch.randn(t.shape, generator=g, dtype=torch.float64) for t in at]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = layer(*given)
        steps = [layer(*(t + s * 1e-6 * d for t, d in zip(at, along, strict=True))) for s in (1, -1)]
        for k, output in enumerate(found):
            grads = torch.autograd.grad(torch.cos(output).sum(), given, retain_graph=True)
            analytic = float(sum((a * d).sum() for a, d in zip(grads, along, strict=True)))
            numeric = float((torch.cos(steps[0][k]).sum() - torch.cos(steps[1][k]).sum()) / 2e-6)
            assert analytic == pytest.approx(numeric, rel=1e-5, abs=1e-5), k


def touched_cone():
    x, y = cn.Variable(2, "x"), cn.Parameter("y", shape=2)
    W = torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    at = torch.linalg.solve(W, torch.tensor([0.6, 0.8], dtype=torch.float64))  # on the boundary of the cone
    return cn.minimize(cn.sum_squares(x - y)).subject_to(c=cn.norm(W @ x) <= 1), at, "x", "W222"


def doubled_cone():
    x, b = cn.Variable(2, "x"), cn.Parameter("b", shape=2)
    problem = cn.minimize(cn.sum(x)).subject_to(c=cn.norm(x) <= b[0], d=2 * cn.norm(x) <= 2 * b[1])
    return problem, torch.ones(2, dtype=torch.float64), "value", "W220"


def touched_curve():
    z, y = cn.Variable(2, "z"), cn.Parameter("y", shape=2)
    z.value = np.array([0.5, 0.5])
    problem = cn.minimize(cn.sum_squares(z - y)).subject_to(c=torch.sin(z[0]) + z[1] <= 1)
    at = torch.tensor([0.3, 1 - np.sin(0.3)], dtype=torch.float64)
    return problem, at, "z", "W222"


def doubled_curve():
    z, b = cn.Variable(2, "z"), cn.Parameter("b", shape=2)
    z.value = np.array([0.5, 0.5])
    curve = torch.sin(z[0]) + z[1]
    problem = cn.minimize(cn.sum_squares(z - 2)).subject_to(c=curve <= b[0], d=2 * curve <= 2 * b[1])
    return problem, torch.ones(2, dtype=torch.float64), "value", "W220"


@pytest.mark.parametrize(
    "make", [touched_cone, doubled_cone, touched_curve, doubled_curve], ids=lambda f: f.__name__
)
def test_degenerate_curved_programs_are_said(make):
    problem, at, output, code = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cn.layer(problem, outputs=output)(at.requires_grad_(True)).sum().backward()
    assert [w.message.code for w in caught] == [code]
