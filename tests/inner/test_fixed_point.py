"""Fixed points z = F(z) against closed forms, finite differences and unrolled iterations."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import constrain as cn
from constrain import E
from constrain.inner import fixed

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.fixture(params=["matrices", "maps"])
def way(request, monkeypatch):
    """Small equations by the way of small ones, and by that of large ones."""
    fixed.compiled_equation.cache_clear()
    if request.param == "maps":
        monkeypatch.setattr(fixed, "SMALL", 0)
    yield request.param
    fixed.compiled_equation.cache_clear()


def affine():
    z, A, b = cn.Variable(4, "z"), cn.Parameter("A", shape=(4, 4)), cn.Parameter("b", shape=4)
    return cn.fixed_point(z == A @ z + b), (0.3 * normal(2, 4, 4, seed=1), normal(2, 4, seed=2))


def recurrent():
    z, x = cn.Variable(5, "z"), cn.Parameter("x", shape=3)
    W, U = cn.Parameter("W", shape=(5, 5)), cn.Parameter("U", shape=(5, 3))
    layer = cn.fixed_point(z == torch.tanh(W @ z + U @ x), inputs=[W, U, x])
    return layer, (0.4 * normal(5, 5, seed=3), normal(5, 3, seed=4), normal(2, 3, seed=5))


def expanding():
    """An iteration leaves this fixed point: the derivative of the map is about -3."""
    z, c = cn.Variable(2, "z"), cn.Parameter("c", shape=2)
    return cn.fixed_point(z == c - 3 * z - 0.1 * z**3), (normal(3, 2, seed=6),)


def matrix():
    """Square root of a matrix: Z = Z + (A - Z Z) / 4."""
    z, A = cn.Variable((2, 2), "Z"), cn.Parameter("A", shape=(2, 2))
    z.value = np.eye(2)
    M = 0.3 * normal(3, 2, 2, seed=7)
    return cn.fixed_point(z == z + (A - z @ z) / 4), (M @ M.mT + torch.eye(2, dtype=F64),)


EQUATIONS = [affine, recurrent, expanding, matrix]


@pytest.mark.filterwarnings("ignore:.*W224")
@pytest.mark.parametrize("make", EQUATIONS, ids=lambda f: f.__name__)
def test_derivatives_are_those_of_finite_differences(make, way):
    layer, tensors = make()
    inputs = [t.clone().requires_grad_(True) for t in tensors]
    assert layer.root.small == (way == "matrices")
    assert gradcheck(layer, inputs, eps=1e-6, atol=1e-6)
    assert gradgradcheck(layer, inputs, eps=1e-5, atol=1e-5)


def test_closed_forms(way):
    layer, (A, b) = affine()
    expected = torch.linalg.solve(torch.eye(4, dtype=F64) - A, b)
    torch.testing.assert_close(layer(A, b), expected, atol=1e-11, rtol=0)
    root, (S,) = matrix()
    torch.testing.assert_close(root(S) @ root(S), S, atol=1e-9, rtol=0)


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.outside = nn.Linear(4, 4), nn.Linear(2, 4)

    def forward(self, z, x):
        return torch.tanh(self.inside(z) + self.outside(x))


def test_trained_weights_have_the_gradients_of_an_unrolled_iteration(way):
    torch.manual_seed(0)
    cell = Cell().double()
    z, x = cn.Variable(4, "z"), cn.Parameter("x", shape=2)
    layer = cn.fixed_point(z == 0.3 * cn.Model(cell, "cell")(z, x))
    rows = normal(6, 2, seed=8).requires_grad_(True)
    assert [p.shape for p in layer.parameters()] == [p.shape for p in cell.parameters()]
    wanted = [rows, *cell.parameters()]
    found = layer(rows)
    state = torch.zeros(6, 4, dtype=F64)
    for _ in range(200):
        state = 0.3 * cell(state, rows)
    torch.testing.assert_close(found, state, atol=1e-10, rtol=0)
    for mine, unrolled in zip(
        torch.autograd.grad(found.square().sum(), wanted),
        torch.autograd.grad(state.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, unrolled, atol=1e-9, rtol=0)


def test_a_map_of_many_numbers_is_never_a_matrix(monkeypatch):
    """Heat on a line of 400 points with a nonlinear sink; the gradient along a direction by differences."""
    monkeypatch.setattr(fixed, "jacrev", None)
    n = 400
    z, q = cn.Variable(n, "z"), cn.Parameter("q", shape=n)
    padded = nn.functional.pad(z, (1, 1))
    layer = cn.fixed_point(z == 0.45 * (padded[:-2] + padded[2:]) + q - 0.1 * torch.tanh(z))
    at, along = normal(2, n, seed=1).requires_grad_(True), normal(2, n, seed=2)
    assert not layer.root.small
    (slope,) = torch.autograd.grad(torch.cos(layer(at)).sum(), at)
    ends = [torch.cos(layer(at.detach() + s * 1e-5 * along)).sum() for s in (1, -1)]
    assert float((slope * along).sum()) == pytest.approx(float((ends[0] - ends[1]) / 2e-5), rel=1e-6)


def test_a_call_starts_from_the_last_one():
    layer, tensors = recurrent()
    root, counted = layer.root, []
    original = root.image
    root.image = lambda *args: counted.append(1) or original(*args)
    root.last = None
    layer(*tensors)
    cold = len(counted)
    layer(*tensors)
    assert 2 * (len(counted) - cold) < cold
    root.image = original


# ------------------------------------------------------------------------------------------------ words
def said(layer, *tensors):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer(*[t.clone().requires_grad_(True) for t in tensors]).sum().backward()
    return [str(w.message) for w in caught]


def test_what_is_no_contraction_is_said_with_its_radius(way):
    layer, tensors = expanding()
    (message,) = said(layer, *tensors)
    assert message.startswith("[W224] the map is no contraction at its fixed point in rows 0, 1, 2: ")
    point = layer(*tensors)
    radius = (3 + 0.3 * point**2).max()
    assert f"the spectral radius {float(radius):.3g}" in message
    contraction, inputs = affine()
    assert said(contraction, *inputs) == []


def test_a_fixed_point_that_is_not_isolated_is_said(way):
    z, c = cn.Variable(2, "z"), cn.Parameter("c")
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=F64)
    found = said(cn.fixed_point(z == swap @ z + 0 * c), torch.tensor(1.0, dtype=F64))
    assert any(text.startswith("[W221] the fixed point is not isolated in row 0") for text in found)


def test_no_fixed_point_is_an_error_that_names_the_row():
    z, c = cn.Variable((), "z"), cn.Parameter("c")
    layer = cn.fixed_point(z == z + z**2 + c)
    torch.testing.assert_close(layer(torch.tensor([-1.0, -4.0])).abs(), torch.tensor([1.0, 2.0]))
    with pytest.raises(cn.RouteError, match=r"\[E193\] no fixed point was found in row 1 of the batch"):
        layer(torch.tensor([-1.0, 1.0]))
    with pytest.raises(cn.RouteError, match=r"row 0 of the batch \(Parameter 'c' is infinite or NaN"):
        layer(torch.tensor([float("nan"), -1.0]))


def test_what_is_no_equation_of_this_form_is_refused():
    z, w, c = cn.Variable(2, "z"), cn.Variable(2, "w"), cn.Parameter("c", shape=2)
    D = cn.Data("D", x=np.ones((4, 2)))
    for equation, text in [
        (z <= c, "a fixed point is an equation z == F(z), got z ≤ c"),
        (c, "a fixed point is an equation z == F(z), got c"),
        (2 * z == c, "no side of 2 · z = c is a Variable alone"),
        (z == c + w, "holds Variable 'w'"),
        (z == 0.5 * z + D.x, "holds x, of rows"),
    ]:
        with pytest.raises(cn.ModelingError, match=r"\[E188\]") as caught:
            cn.fixed_point(equation)
        assert text in str(caught.value)
    with pytest.raises(cn.ModelingError, match=r"\[E112\] Variable 'z' has shape \(2,\)"):
        cn.fixed_point(z == cn.sum(c))
    with pytest.raises(cn.ModelingError, match=r"\[E194\] the equation has no Parameter 'b'"):
        cn.fixed_point(z == 0.5 * z + c, inputs="b")
    layer = cn.fixed_point(c + 0.5 * z == z)
    with pytest.raises(cn.ModelingError, match=r"\[E112\] the fixed point takes 1 inputs \(c\), got 2"):
        layer(torch.ones(2), torch.ones(2))
    with pytest.raises(cn.ModelingError, match=r"\[E112\] Parameter 'c' of the fixed point has shape"):
        layer(torch.ones(3))
    with pytest.raises(cn.ModelingError, match=r"\[E112\] Parameter 'c' of the fixed point has shape"):
        layer(D.x[..., 0])


# ------------------------------------------------------------------------------------- torch and problems
def test_types_shapes_and_devices():
    z, x, s = cn.Variable((2, 3), "z"), cn.Parameter("x", shape=(2, 3)), cn.Parameter("s", 0.5)
    layer = cn.fixed_point(z == s * torch.sin(z) + x, inputs=x)
    t = torch.randn(4, 5, 2, 3)
    found = layer(t)
    assert (found.shape, found.dtype) == (t.shape, torch.float32)
    torch.testing.assert_close(layer(t[1, 2]), found[1, 2])
    assert layer(t.to("meta")).shape == t.shape
    assert layer(t.double()[:0]).shape == (0, 5, 2, 3)
    torch.testing.assert_close(copy.deepcopy(layer)(t), found)
    assert "(x) -> z, Anderson acceleration, then Newton's method with matrices (6 numbers" in repr(layer)
    jacobian = torch.autograd.functional.jacobian(layer, t[0, 0].double(), vectorize=True)
    slow = torch.autograd.functional.jacobian(layer, t[0, 0].double())
    torch.testing.assert_close(jacobian, slow)


def test_a_layer_trains_inside_of_a_model():
    torch.manual_seed(0)
    cell = nn.Linear(4, 4)
    z, x = cn.Variable(4, "z"), cn.Parameter("x", shape=4)
    layer = cn.fixed_point(z == 0.5 * torch.tanh(cn.Model(cell, "cell")(z)) + x)
    net = nn.Sequential(nn.Linear(2, 4), layer, nn.Linear(4, 1))
    assert len(list(net.parameters())) == 6
    inputs = torch.randn(64, 2)
    wanted = torch.sin(2 * inputs[:, :1]) * inputs[:, 1:]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    losses = []
    for _ in range(120):
        loss = nn.functional.mse_loss(net(inputs), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_a_fixed_point_inside_of_a_problem():
    """Of an affine map the fixed point is affine: a least-squares problem with a known solution."""
    z, u = cn.Variable((), "z"), cn.Parameter("u")
    reply = cn.fixed_point(z == 0.5 * z + u)
    x = torch.linspace(0, 1, 20, dtype=F64)
    D, w = cn.Data("D", x=x, y=3 * x), cn.Variable((), "w")
    problem = cn.minimize(E((reply(w * D.x) - D.y) ** 2)).subject_to(cap=w <= 1.2)
    assert eval(repr(problem), problem.symbols()) == problem
    assert cn.from_json(problem.to_json(), problem.symbols()) == problem
    solution = problem.solve("augmented", progress=False)
    assert float(w.value) == pytest.approx(1.2, abs=1e-6)
    price = float(-2 * ((2.4 * x - 3 * x) * 2 * x).mean())
    assert float(solution["cap"].multiplier) == pytest.approx(price, abs=1e-5)


def test_models_in_an_equation_are_decisions_of_the_problem():
    torch.manual_seed(0)
    cell = nn.Linear(1, 1).double()
    m = cn.Model(cell, "cell")
    z, u = cn.Variable(1, "z"), cn.Parameter("u", shape=1)
    layer = cn.fixed_point(z == 0.5 * m(z) + u)
    x = torch.linspace(-1, 1, 16, dtype=F64)[:, None]
    D = cn.Data("D", x=x, y=1.25 * x + 0.5)  # 1 / (1 - w / 2) = 1.25 and half the bias times that = 0.5
    problem = cn.minimize(E(cn.sum((layer(D.x) - D.y) ** 2, axis=-1)))
    assert problem.models == (m,)
    assert eval(repr(problem), problem.symbols()) == problem
    problem.solve("augmented", progress=False)
    assert cell.weight.item() == pytest.approx(0.4, abs=1e-4)
    assert cell.bias.item() == pytest.approx(0.8, abs=1e-4)
