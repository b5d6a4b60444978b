"""Layers: closed forms, degenerate points, refusals, types and devices; inner problems inside of problems."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import constrain as cn
from constrain import E
from constrain.inner import compiled

cp = pytest.importorskip("cvxpy")
F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# --------------------------------------------------------------------------------------- closed forms
N = 7
WEIGHT = 0.5 + torch.rand(N, generator=torch.Generator().manual_seed(1), dtype=F64)
PRICE = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 1.5, 1.0], dtype=F64)
CENTER = 0.1 * torch.arange(N, dtype=F64)


def near(x, y):
    return cn.minimize(cn.sum_squares(x - y))


def weighted(x, y):
    return cn.minimize(cn.sum(WEIGHT * cn.square(x - y)))


BUDGET, TWO, ONE = "box and budget", "ball in the norm of order 2", "ball in the norm of order 1"
SIGNED = {"bounds": (-1, 1)}
FORMS = {
    "simplex": (lambda x, y: near(x, y).subject_to(c=cn.sum(x) == 1), {"nonneg": True}, BUDGET),
    "capped simplex": (lambda x, y: near(x, y).subject_to(c=cn.sum(x) == 2), {"bounds": (0, 1)}, BUDGET),
    "budget": (lambda x, y: weighted(x, y).subject_to(c=PRICE @ x <= 0.7), SIGNED, BUDGET),
    "floor": (lambda x, y: weighted(x, y).subject_to(c=PRICE @ x >= 1.5), SIGNED, BUDGET),
    "half-space": (lambda x, y: weighted(x, y).subject_to(c=PRICE @ x <= -3), {}, "half-space"),
    "hyperplane": (lambda x, y: near(x, y).subject_to(c=cn.sum(x) == 1), {}, "hyperplane"),
    "box": (weighted, {"bounds": (-0.5, 0.7)}, "box"),
    "ball": (lambda x, y: near(x, y).subject_to(c=cn.norm(x - CENTER) <= 1.5), {}, TWO),
    "squared ball": (lambda x, y: near(x, y).subject_to(c=cn.sum_squares(2 * x) <= 9), {}, TWO),
    "cross-polytope": (lambda x, y: near(x, y).subject_to(c=cn.norm(x - CENTER, 1) <= 2), {}, ONE),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_closed_form_is_what_cvxpy_finds(name):
    make, kind, route = FORMS[name]
    x, y = cn.Variable(N, "x", **kind), cn.Parameter("y", shape=N)
    problem = make(x, y)
    tensors = 1.3 * normal(5, N, seed=3)
    outputs = ["x", "value", *problem.constraints]
    layer = cn.layer(problem, outputs=outputs)
    assert layer.route == f"closed form: {route}"
    found = layer(tensors)
    for row in range(5):
        y.value = tensors[row].numpy()
        reference = problem.to_cvxpy()
        reference.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
        (variable,) = [v for v in reference.variables() if v.shape == (N,)]
        np.testing.assert_allclose(found[0][row], variable.value, atol=1e-6)
        assert found[1][row] == pytest.approx(reference.value, abs=1e-7)
        for value, rule in zip(found[2:], reference.constraints, strict=False):
            assert float(value[row]) == pytest.approx(float(np.sum(rule.dual_value)), abs=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_derivatives_of_a_closed_form(name):
    make, kind, _ = FORMS[name]
    x, y = cn.Variable(N, "x", **kind), cn.Parameter("y", shape=N)
    problem = make(x, y)
    layer = cn.layer(problem, outputs=["x", "value", *problem.constraints])
    tensors = (1.3 * normal(3, N, seed=3)).requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gradcheck(layer, (tensors,))


def test_a_projection_in_a_metric_keeps_mass():
    """The golden `projection`: mean (1, 2, .5, .3), diagonal covariance, a quarter of the sum is 1.2."""
    u, mean = cn.Variable(4, "u"), cn.Parameter("mean", shape=4)
    precision = torch.diag(1 / torch.tensor([0.5, 0.2, 1.0, 0.1], dtype=F64))
    problem = cn.minimize(0.5 * cn.quad_form(u - mean, precision)).subject_to(mass=0.25 * cn.sum(u) == 1.2)
    found = cn.layer(problem)(torch.tensor([1.0, 2.0, 0.5, 0.3], dtype=F64))
    np.testing.assert_allclose(found, [1.2777778, 2.1111111, 1.0555556, 0.3555556], atol=1e-7)


# ------------------------------------------------------------------------------------------ gradients
def test_second_derivatives_of_a_value():
    """A value has a Hessian: the derivative of its multipliers."""
    x, q = cn.Variable(4, "x"), cn.Parameter("q", shape=4)
    P, G = normal(4, 4, seed=1), normal(3, 4, seed=2)
    problem = cn.minimize(cn.sum_squares(P @ x) + q @ x).subject_to(c=G @ x <= 0.1)
    tensors = (2 * normal(2, 4, seed=5)).requires_grad_(True)
    assert compiled(problem).closed is None
    assert gradcheck(lambda t: cn.value(problem, at=t), (tensors,))
    assert gradgradcheck(lambda t: cn.value(problem, at=t), (tensors,))
    curved = cn.minimize(cn.sum(cn.exp(x)) + cn.sum_squares(x - q)).subject_to(c=G @ x <= 0.1)
    assert gradgradcheck(lambda t: cn.argmin(curved, at=t), (tensors,))


def test_multipliers_are_outputs_with_gradients():
    x, q = cn.Variable(4, "x"), cn.Parameter("q", shape=4)
    G = normal(3, 4, seed=2)
    problem = cn.minimize(cn.quad_form(x, torch.eye(4, dtype=F64) + 0.1) + q @ x).subject_to(
        c=G @ x <= 0.1, total=cn.sum(x) == 0.5
    )
    layer = cn.layer(problem, outputs=["c", "total"])
    assert gradcheck(layer, ((3 * normal(2, 4, seed=7)).requires_grad_(True),))


def test_a_value_of_a_maximization_has_its_sign():
    u, cap = cn.Variable((), "u", nonneg=True), cn.Parameter("cap")
    problem = cn.maximize(3 * u).subject_to(limit=u <= cap)
    at = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    value = cn.value(problem, at=at)
    (slope,) = torch.autograd.grad(value.sum(), at)
    np.testing.assert_allclose(value.detach(), [3.0, 6.0])
    np.testing.assert_allclose(slope, [3.0, 3.0])


def test_integers_have_a_value_with_the_gradient_of_the_program_that_fixes_them():
    """Two units with fixed costs serve a demand: on, off and output are those of an enumeration."""
    on, g = cn.Variable(2, "on", boolean=True), cn.Variable(2, "g", nonneg=True)
    demand = cn.Parameter("demand")
    cost, fixed, cap = (torch.tensor(v, dtype=F64) for v in ([1.0, 3.0], [4.0, 1.0], [5.0, 2.0]))
    problem = cn.minimize(cost @ g + fixed @ on).subject_to(capacity=g <= cap * on, serve=cn.sum(g) == demand)
    at = torch.tensor([0.7, 3.0, 6.0], dtype=F64, requires_grad=True)
    value = cn.value(problem, at=at)
    (slope,) = torch.autograd.grad(value.sum(), at)
    np.testing.assert_allclose(value.detach(), [3.1, 7.0, 13.0], atol=1e-6)
    np.testing.assert_allclose(slope, [3.0, 1.0, 3.0], atol=1e-6)
    with pytest.raises(cn.ModelingError, match=r"\[E191\] the solution of an inner problem with integer"):
        cn.argmin(problem, "g", at=at)


# --------------------------------------------------------------------------------------- degenerate
def check_degenerate(problem, at, output, code):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cn.layer(problem, outputs=output)(at).sum().backward()
    assert {w.message.code for w in caught} >= {code}


def test_what_is_degenerate_is_said():
    x, b = cn.Variable(2, "x"), cn.Parameter("b", shape=3)
    lines = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=F64)
    corner = cn.minimize(-cn.sum(x)).subject_to(c=lines @ x <= b)
    check_degenerate(corner, torch.tensor([1.0, 1.0, 2.0], dtype=F64, requires_grad=True), "value", "W220")
    edge = cn.minimize(-x[0] + 0 * x[1]).subject_to(c=lines @ x <= b, low=x >= -5)
    check_degenerate(edge, torch.tensor([1.0, 1.0, 9.0], dtype=F64, requires_grad=True), "x", "W221")
    touched = cn.minimize(cn.quad_form(x, torch.eye(2, dtype=F64) + 0.3)).subject_to(c=lines @ x <= b)
    check_degenerate(touched, torch.tensor([1.0, 0.0, 1.0], dtype=F64, requires_grad=True), "x", "W222")
    y = cn.Parameter("y", shape=2)
    kink = cn.minimize(cn.sum_squares(x - y)).subject_to(c=cn.sum(x) <= 1)
    check_degenerate(kink, torch.tensor([0.5, 0.5], dtype=F64, requires_grad=True), "x", "W222")


# ----------------------------------------------------------------------------------------- refusals
def test_no_solution_is_an_error_that_names_the_row():
    g, d = cn.Variable((), "g", bounds=(0, 4)), cn.Parameter("demand")
    inner = cn.minimize(2 * g).subject_to(serve=g >= d)
    with pytest.raises(cn.RouteError, match=r"row 1 of the batch \(infeasible.*: demand = 9"):
        cn.value(inner, at=torch.tensor([1.0, 9.0]))
    u, c = cn.Variable(2, "u", nonneg=True), cn.Parameter("c", shape=2)
    with pytest.raises(cn.RouteError, match=r"row 1 of the batch \(unbounded.*: c = \[1, -1\]"):
        cn.argmin(cn.minimize(c @ u), at=torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    y = cn.Parameter("y", shape=2)
    ball = cn.minimize(cn.sum_squares(u - y)).subject_to(a=cn.norm(u) <= 1, b=cn.sum(u) >= 3)
    with pytest.raises(cn.RouteError, match=r"row 0 of the batch \(infeasible"):
        cn.argmin(ball, at=torch.zeros(1, 2))
    simplex = cn.minimize(cn.sum_squares(u - y)).subject_to(a=cn.sum(u) == -1)
    with pytest.raises(cn.RouteError, match=r"row 0 of the batch \(infeasible"):
        cn.argmin(simplex, at=torch.zeros(1, 2))
    with pytest.raises(
        cn.RouteError, match=r"\[E193\].*in row 1 of the batch .*infinite or NaN.*\n  write: finite"
    ):
        cn.argmin(simplex, at=torch.tensor([[1.0, 2.0], [1.0, float("nan")]]))


def test_what_cannot_be_an_inner_problem_is_refused_at_once():
    D = cn.Data("D", x=np.arange(4.0))
    u, t = cn.Variable((), "u"), cn.Parameter("t")
    f = cn.Model(nn.Linear(1, 1).double(), "f")
    z = cn.Variable(1, "z")
    for problem, text in [
        (cn.minimize(E((D.x - u) ** 2)), "depends on rows of 'D'"),
        (cn.minimize(cn.sum(f(z)) + (u - t) ** 2), "holds the trained model 'f'"),
        (cn.find().subject_to(a=u <= t), "nothing to optimize"),
        (
            cn.minimize(u**2).subject_to(a=(u >= t).relax(cost=cn.linear(1.0))),
            "cannot stand in an inner problem",
        ),
    ]:
        with pytest.raises(cn.ModelingError, match=r"\[E190\]") as caught:
            cn.layer(problem)
        assert text in str(caught.value)
    good = cn.minimize((u - t) ** 2)
    with pytest.raises(cn.ModelingError, match=r"\[E194\].*'s'"):
        cn.value(good, at={"s": torch.tensor(1.0)})
    with pytest.raises(cn.ModelingError, match=r"\[E189\].*'v'"):
        cn.layer(good, outputs="v")
    with pytest.raises(cn.ModelingError, match=r"takes 1 inputs \(t\), got 2\n  write: layer\(t\)"):
        cn.layer(good, outputs="u")(torch.ones(2), torch.ones(3))
    with pytest.raises(cn.ModelingError, match="takes no inputs: it has no Parameter, got 1"):
        cn.layer(cn.minimize((u - 1) ** 2))(torch.ones(2))
    pair = cn.Parameter("pair", shape=2)
    with pytest.raises(cn.ModelingError, match=r"write: a tensor of shape \(2,\), or \(rows, 2\)"):
        cn.layer(cn.minimize((u - cn.sum(pair)) ** 2))(torch.ones(3))


# ------------------------------------------------------------------------------------ types and shapes
def test_types_shapes_and_devices():
    x, y = cn.Variable((2, 3), "x", nonneg=True), cn.Parameter("y", shape=(2, 3))
    layer = cn.layer(cn.minimize(cn.sum_squares(x - y)).subject_to(rows=cn.sum(x, axis=1) == 1))
    t = torch.randn(4, 5, 2, 3)
    found = layer(t)
    assert found.shape == (4, 5, 2, 3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(-1), torch.ones(4, 5, 2))
    torch.testing.assert_close(layer(t[1, 2]), found[1, 2])
    assert not found.requires_grad
    assert layer(t.to("meta")).device.type == "meta"
    assert layer(t.to("meta")).shape == (4, 5, 2, 3)
    assert not list(layer.parameters())
    assert not layer.state_dict()
    torch.testing.assert_close(copy.deepcopy(layer)(t), found)
    assert "(y) -> (x)" in repr(layer)


def test_a_layer_trains_inside_of_a_model():
    x, y = cn.Variable(3, "x", nonneg=True), cn.Parameter("y", shape=3)
    layer = cn.layer(cn.minimize(cn.sum_squares(x - y)).subject_to(total=cn.sum(x) == 1))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), layer)
    inputs = torch.randn(64, 2)
    wanted = torch.softmax(inputs @ torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]]), -1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        loss = nn.functional.mse_loss(net(inputs), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


# --------------------------------------------------------------------------------- inside of problems
def test_a_value_inside_of_a_problem():
    """Targets for a dispatch with a known best one: the slope of the cost meets the price of the target."""
    t, g, s = cn.Parameter("t"), cn.Variable((), "g", nonneg=True), cn.Variable((), "s", nonneg=True)
    dispatch = cn.minimize(cn.square(g) + 10 * s).subject_to(track=g + s == t, capacity=g <= 3)
    target = cn.Variable((), "target", bounds=(0.1, 6))
    cost = cn.value(dispatch, at=target, track="track")
    solution = cn.minimize(cost - 4 * target).solve("augmented", progress=False)
    assert float(target.value) == pytest.approx(2.0, abs=1e-5)
    assert solution.objective == pytest.approx(-4.0, abs=1e-6)
    assert str(cost) == "value(target)"


def test_a_solution_inside_of_a_problem_per_row():
    """The best reply to a price per row is trained through: its optimum is a least-squares line."""
    u, price = cn.Variable((), "u", bounds=(-5, 5)), cn.Parameter("price")
    reply = cn.minimize(cn.square(u) - price * u)
    x = torch.linspace(-1, 1, 20, dtype=F64)
    D = cn.Data("D", x=x[:, None], y=3 * x + 0.5)
    f = cn.Model(nn.Sequential(nn.Linear(1, 1), nn.Flatten(0)).double(), "f")
    answer = cn.argmin(reply, u, at=f(D.x))
    solution = cn.minimize(E((answer - D.y) ** 2)).solve(progress=False, seed=0)
    assert solution.objective == pytest.approx(0.0, abs=1e-8)
    weight, bias = (p.item() for p in f.module.parameters())
    assert (weight, bias) == pytest.approx((6.0, 1.0), abs=1e-3)


def test_a_problem_with_an_inner_problem_is_stored_and_rebuilt():
    u, price = cn.Variable((), "u", bounds=(-5, 5)), cn.Parameter("price")
    reply = cn.minimize(cn.square(u) - price * u)
    D = cn.Data("D", x=np.ones((4, 1)), y=np.ones(4))
    f = cn.Model(nn.Sequential(nn.Linear(1, 1), nn.Flatten(0)).double(), "f")
    answer = cn.layer(reply)(f(D.x))
    problem = cn.minimize(E((answer - D.y) ** 2)).subject_to(v=E(cn.value(reply, at=f(D.x))) >= -3)
    assert eval(repr(problem), problem.symbols()) == problem
    assert cn.from_json(problem.to_json(), problem.symbols()) == problem
    with pytest.raises(cn.ModelingError, match=r"\[E189\] an expression is one output"):
        cn.argmin(reply, "u", "value", at=f(D.x))


def test_without_parameters_and_with_a_frozen_model():
    x, y = cn.Variable(2, "x"), cn.Parameter("y", shape=2)
    ball = cn.minimize(cn.sum_squares(x - 3)).subject_to(b=cn.norm(x) <= 1)
    np.testing.assert_allclose(cn.argmin(ball), [0.5**0.5] * 2, atol=1e-6)
    torch.manual_seed(0)
    g = cn.Model(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), "g", frozen=True)
    attack = cn.maximize(cn.sum(g(x)) - 2 * cn.sum_squares(x - y))
    at = normal(2, 2).requires_grad_(True)
    assert gradcheck(lambda t: cn.argmin(attack, at=t), (at,), eps=1e-4, atol=1e-5)
    assert not any(p.requires_grad and p.grad is not None for p in g.module.parameters())


def test_a_corner_that_cannot_be_rewritten_is_said():
    x, y = cn.Variable(2, "x"), cn.Parameter("y", shape=2)
    apex = cn.minimize(cn.norm(x - y) + 0.1 * cn.sum_squares(x))
    with pytest.warns(cn.ModelingWarning, match="W223"):
        found = cn.argmin(apex, at=torch.tensor([0.5, 0.2], dtype=F64))
    np.testing.assert_allclose(found, [0.5, 0.2], atol=1e-4)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)], ids=["closed form", "quadratic program"])
def test_no_rows_have_an_empty_result_with_a_gradient(bounds):
    x, p = cn.Variable(2, "x", bounds=bounds), cn.Parameter("p", np.zeros(2))
    problem = cn.minimize(cn.sum_squares(x - p)).subject_to(total=cn.sum(x) == 1)
    for lead in ((0,), (3, 0)):
        given = torch.zeros((*lead, 2), requires_grad=True)
        found, price = cn.layer(problem, inputs=[p], outputs=[x, "total"])(given)
        assert (found.shape, price.shape, found.dtype) == ((*lead, 2), lead, given.dtype)
        (found.sum() + price.sum()).backward()
        assert given.grad.shape == given.shape
        assert torch.equal(given.grad, torch.zeros_like(given))
