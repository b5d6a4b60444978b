"""Derivatives of per-row expressions: known functions, laws, and everything that evaluates them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

import constrain as cn
from constrain import E, P, forall
from constrain.driver.setup import prepare
from constrain.lowering.lower import lower
from constrain.runtime.evaluator import Evaluator

CPU = torch.device("cpu")
points = torch.rand(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
D = cn.Data("physics", x=points[:, 0], z=points, y=points[:, 1], k=list(range(7)))


def compiled(problem, **options):
    return prepare(lower(problem), device=CPU, dtype=torch.float64, **options).evaluator


def per_row(e, where=D):
    """The value of an expression on every row of a sample, or on every point of a support."""
    t = cn.Variable((), "t")
    evaluator = compiled(cn.find().subject_to(c=forall(where, e + 0 * t == 0)))
    return evaluator.row_residuals(0)[0]


def close(a, b, tolerance=1e-10):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


x = points[:, 0]
KNOWN = [
    ("sine", lambda e: torch.sin(3 * e), lambda t: 3 * torch.cos(3 * t), lambda t: -9 * torch.sin(3 * t)),
    ("power", lambda e: e**5, lambda t: 5 * t**4, lambda t: 20 * t**3),
    ("exponential", lambda e: torch.exp(-(e**2)), lambda t: -2 * t * torch.exp(-(t**2)),
     lambda t: (4 * t**2 - 2) * torch.exp(-(t**2))),
    ("logarithm", lambda e: torch.log(1 + e), lambda t: 1 / (1 + t), lambda t: -1 / (1 + t) ** 2),
    ("quotient", lambda e: 1 / (1 + e**2), lambda t: -2 * t / (1 + t**2) ** 2,
     lambda t: (6 * t**2 - 2) / (1 + t**2) ** 3),
    ("linear", lambda e: 2 * e + 1, lambda t: torch.full_like(t, 2.0), torch.zeros_like),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "first", "second"), [row[1:] for row in KNOWN], ids=[r[0] for r in KNOWN]
)
def test_derivatives_of_known_functions(function, first, second):
    e = function(D.x)
    assert close(per_row(cn.diff(e, D.x)), first(x))
    assert close(per_row(cn.diff(e, D.x, 2)), second(x))
    assert close(per_row(cn.diff(cn.diff(e, D.x), D.x)), second(x))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_of_a_coordinate_of_any_order(order):
    s = cn.Uniform("s", 0.0, 2.0, size=9)
    t = torch.as_tensor(s.region.values("s"))
    found = per_row(cn.diff(torch.sin(math.pi * s), s, order), s)
    assert close(found, math.pi**order * torch.sin(math.pi * t + order * math.pi / 2), 1e-9)


def field(z):
    return torch.sin(z[..., 0] * z[..., 1]) + torch.exp(z[..., 2]) * z[..., 0] ** 2


def test_gradients_and_components():
    e = field(D.z)
    a, b, c = points.T
    expected = torch.stack(
        [b * torch.cos(a * b) + 2 * a * torch.exp(c), a * torch.cos(a * b), a**2 * torch.exp(c)], 1
    )
    assert close(per_row(cn.grad(e, D.z)), expected)
    for i in range(3):
        assert close(per_row(cn.diff(e, D.z[..., i])), expected[:, i])
        assert close(per_row(cn.diff(e, D.z[i])), expected[:, i])
        assert close(per_row(cn.diff(e, D.z[..., i - 3])), expected[:, i])
    assert close(per_row(cn.grad(torch.sin(D.x), D.x)), torch.cos(x))


def test_mixed_derivatives_commute():
    e = field(D.z)
    a, b, c = points.T
    one = cn.diff(cn.diff(e, D.z[..., 0]), D.z[..., 2])
    other = cn.diff(cn.diff(e, D.z[..., 2]), D.z[..., 0])
    assert close(per_row(one), 2 * a * torch.exp(c))
    assert close(per_row(one), per_row(other), 1e-12)
    thrice = cn.diff(cn.diff(e, D.z[..., 0], 2), D.z[..., 1])
    assert close(per_row(thrice), -2 * b * torch.sin(a * b) - a * b**2 * torch.cos(a * b))


def test_the_laplacian_is_the_trace_of_the_hessian_and_the_divergence_of_the_gradient():
    e = field(D.z)
    a, b, c = points.T
    expected = -(a**2 + b**2) * torch.sin(a * b) + torch.exp(c) * (2 + a**2)
    found = per_row(cn.laplacian(e, D.z))
    assert close(found, expected)
    assert close(found, per_row(cn.trace(cn.hessian(e, D.z))), 1e-12)
    assert close(found, per_row(cn.div(cn.grad(e, D.z), D.z)), 1e-12)
    assert close(found, per_row(sum(cn.diff(e, D.z[..., i], 2) for i in range(3))), 1e-12)
    hessian = per_row(cn.hessian(e, D.z))
    assert close(hessian, hessian.mT, 1e-12)
    assert close(per_row(cn.laplacian(torch.sin(D.x), D.x)), -torch.sin(x))


def test_jacobians_and_divergences_of_vector_fields():
    v = cn.stack(D.z[..., 0] ** 2, D.z[..., 0] * D.z[..., 1], torch.sin(D.z[..., 2]))
    a, b, c = points.T
    zero = torch.zeros_like(a)
    rows = [[2 * a, zero, zero], [b, a, zero], [zero, zero, torch.cos(c)]]
    expected = torch.stack([torch.stack(row, 1) for row in rows], 1)
    assert close(per_row(cn.jacobian(v, D.z)), expected)
    assert close(per_row(cn.div(v, D.z)), 3 * a + torch.cos(c))
    assert close(per_row(cn.div(torch.sin(D.x), D.x)), torch.cos(x))
    assert per_row(cn.grad(cn.stack(v, v), D.z)).shape == (7, 2, 3, 3)


def test_the_product_and_the_chain_rule():
    f, g = torch.sin(D.x), D.x**3 + D.y
    assert close(per_row(cn.diff(f * g, D.x)), per_row(cn.diff(f, D.x) * g + f * cn.diff(g, D.x)), 1e-12)
    assert close(per_row(cn.diff(torch.exp(f), D.x)), per_row(torch.exp(f) * cn.diff(f, D.x)), 1e-12)


def test_what_is_flat_at_one_order_is_zero_at_the_next():
    assert close(per_row(cn.diff(2 * D.x, D.x, 2)), torch.zeros(7, dtype=torch.float64))
    assert close(per_row(cn.diff(2 * D.x * D.y, D.x, 3)), torch.zeros(7, dtype=torch.float64))
    assert per_row(cn.hessian(D.z[..., 0], D.z)).abs().max() == 0


# -------------------------------------------------------------------------------------------- models
@pytest.fixture
def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def by_hand(net, order):
    """u, u' or u'' along the first feature by torch.autograd on leaves of our own."""
    leaf = points.clone().requires_grad_(True)
    value = net(leaf)[:, 0]
    for _ in range(order):
        value = torch.autograd.grad(value.sum(), leaf, create_graph=True)[0][:, 0]
    return value


@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivatives_of_a_model(net, order):
    u = cn.Model(net, "u")
    found = per_row(cn.diff(u(D.z)[..., 0], D.z[..., 0], order))
    assert not found.requires_grad
    assert close(found, by_hand(net, order).detach(), 1e-12)


def test_the_gradient_in_the_weights_is_that_of_the_derivative(net):
    u = cn.Model(net, "u")
    evaluator = compiled(cn.minimize(E(cn.diff(u(D.z)[..., 0], D.z[..., 0], 2) ** 2)))
    value, gradient = evaluator.pull([lambda outer: outer.objective])[0]
    expected = (by_hand(net, 2) ** 2).mean()
    known = torch.autograd.grad(expected, list(net.parameters()), allow_unused=True)
    assert math.isclose(value, float(expected.detach()), rel_tol=1e-12)
    for g, k in zip(gradient, known, strict=True):
        assert close(g, torch.zeros_like(g) if k is None else k, 1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_values_and_gradients_do_not_depend_on_the_chunks(net, chunk):
    u = cn.Model(net, "u")
    e = cn.laplacian(u(D.z)[..., 0], D.z)
    p = cn.minimize(E(e**2) + E(e) ** 2).subject_to(c=forall(D.where(D.y > 0.8), e >= 0))
    evaluator = compiled(p)

    def pulled(of):
        return of.pull([lambda outer: outer.objective], lambda _i, residual, _rows: (residual**2).sum())[0]

    value, gradient = pulled(evaluator)
    evaluator.chunk = chunk
    again, chunked = pulled(evaluator)
    assert math.isclose(value, again, rel_tol=1e-12)
    assert all(close(a, b, 1e-11) for a, b in zip(gradient, chunked, strict=True))


def test_the_hessian_in_the_weights(net):
    u = cn.Model(net, "u")
    evaluator = compiled(cn.minimize(E(cn.diff(u(D.z)[..., 0], D.z[..., 1], 2) ** 2)))
    found = evaluator.hessian(lambda outer: outer.objective)
    names = [name for name, _ in net.named_parameters()]
    sizes = [p.numel() for p in net.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in net.parameters()])

    def objective(theta):
        parts = {
            name: piece.reshape(p.shape)
            for name, piece, p in zip(names, theta.split(sizes), net.parameters(), strict=True)
        }

        value = functional_call(net, parts, (leaf,))[:, 0]
        for _ in range(2):
            value = torch.autograd.grad(value.sum(), leaf, create_graph=True)[0][:, 1]
        return (value**2).mean()

    leaf = points.clone().requires_grad_(True)
    expected = torch.autograd.functional.hessian(objective, flat)
    assert found.shape == expected.shape
    assert close(found, expected, 1e-9)


def test_derivatives_on_minibatches_have_gradients_only_where_they_are_recorded(net):
    u = cn.Model(net, "u")
    e = cn.diff(u(D.z)[..., 0], D.z[..., 0])
    evaluator = compiled(cn.minimize(E(e**2)))
    (job,) = evaluator.jobs
    rows = evaluator.populations[D].take(torch.tensor([4, 1, 4]))
    (recorded,) = evaluator.rows(job, rows, "primal")
    assert recorded.requires_grad
    with torch.no_grad():
        (plain,) = evaluator.rows(job, rows, "primal")
    assert not plain.requires_grad
    assert torch.equal(recorded.detach(), plain)
    assert close(plain, per_row(e)[[4, 1, 4]] ** 2, 1e-12)
    assert not evaluator.populations[D].columns["z"].requires_grad


def test_rows_that_couple_are_found_through_derivatives():
    torch.manual_seed(0)
    coupled = cn.Model(
        nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh(), nn.Linear(4, 1)
        ),
        "u",
    )
    coupled.module.double()
    p = cn.minimize(E(cn.diff(coupled(D.z)[..., 0], D.z[..., 0]) ** 2))
    with pytest.raises(cn.ModelingError, match="E122"):
        compiled(p)


def test_on_meta_tensors_shapes_are_found_without_numbers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double().to("meta")
    u = cn.Model(net, "u")
    p = lower(cn.minimize(E(cn.laplacian(u(D.z)[..., 0], D.z) ** 2)))
    evaluator = prepare(p, device=torch.device("meta"), dtype=torch.float64).evaluator
    assert isinstance(evaluator, Evaluator)
    value = evaluator.full("exact").objective
    assert value.shape == ()
    assert value.device.type == "meta"


def test_derivatives_in_events_and_conditions():
    slope = cn.diff(torch.sin(D.x), D.x)
    t = cn.Variable((), "t")
    p = cn.minimize(E(D.y * t, given=slope > 0.5) + 0 * P(slope > 0.5))
    t.value = 1.0
    evaluator = compiled(p)
    chosen = torch.cos(x) > 0.5
    assert 0 < chosen.sum() < 7
    assert math.isclose(float(evaluator.full().objective), float(points[chosen, 1].mean()), rel_tol=1e-12)


def test_a_second_derivative_of_a_piecewise_linear_model_is_refused():
    torch.manual_seed(0)
    u = cn.Model(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).double(), "u")
    first, second = (cn.minimize(E(cn.diff(u(D.z)[..., 0], D.z[..., 0], k) ** 2)) for k in (1, 2))
    compiled(first)
    said = r"E161. the derivative of ∂u\(z\)\[..., 0\]/∂z\[0\] with respect to z is zero for all weights"
    with pytest.raises(cn.ModelingError, match=said):
        compiled(second)
    smooth = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    nn.init.zeros_(smooth[2].weight)
    compiled(cn.minimize(E(cn.diff(cn.Model(smooth, "u")(D.z)[..., 0], D.z[..., 0], 2) ** 2)))
