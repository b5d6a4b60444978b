"""Coordinates, derivatives, models of scalars and weak forms: types, printing, and what is refused."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import constrain as cn
from constrain import E, P, forall
from constrain.language import nodes as n
from constrain.language.printing import latex, source, symbols, text


def network(features, outputs=1, *tail):
    torch.manual_seed(0)
    layers = nn.Linear(features, 4), nn.Tanh(), nn.Linear(4, outputs)
    return nn.Sequential(*layers, *tail).double()


x = cn.Uniform("x", 0.0, 1.0)
z = cn.Box("z", [0.0, 0.0], [1.0, 2.0])
g = cn.Normal("g", 1.0, 2.0)
b = cn.Grid("b", [0.0, 1.0])
u, v = cn.Model(network(1), "u"), cn.Model(network(2), "v")
D = cn.Data("data", x=torch.rand(5, 3).double(), y=torch.rand(5).double(), k=[1, 2, 3, 4, 5], w=[0.1] * 5)
tensor = torch.ones(3, dtype=torch.float64)


# ------------------------------------------------------------------------------------------- printing
WRITTEN = [
    ("x", "x", "x"),
    ("x**2 + 1", "x² + 1", "x^{2} + 1"),
    ("u(x)", "u(x)", r"u\left(x\right)"),
    ("u(0.0)", "u(0.0)", r"u\left(0.0\right)"),
    ("cn.diff(u(x), x)", "∂u(x)/∂x", r"\frac{\partial u\left(x\right)}{\partial x}"),
    ("cn.diff(u(x), x, 2)", "∂²u(x)/∂x²", r"\frac{\partial^{2} u\left(x\right)}{\partial x^{2}}"),
    ("cn.diff(cn.diff(u(x), x), x, 2)", "∂³u(x)/∂x³", None),
    ("-cn.diff(u(x) * x, x) ** 2", "-(∂(u(x) · x)/∂x)²", None),
    ("2 * cn.diff(u(x), x)", "2 · ∂u(x)/∂x", None),
    ("cn.grad(v(z)[..., 0], z)", "∇v(z)[..., 0]", r"\nabla_{z} \left(v\left(z\right)_{\ldots, 0}\right)"),
    ("cn.grad(v(z), z)[..., 0]", "∂v(z)/∂z[0]", r"\frac{\partial v\left(z\right)}{\partial z_{0}}"),
    ("cn.diff(z[..., 0] * z[..., 1], z[..., 1], 2)", "∂²(z[..., 0] · z[..., 1])/∂z[1]²", None),
    ("cn.diff(cn.diff(z[..., 0]**2, z[..., 0]), z[..., 1])", "∂(∂(z[..., 0]²)/∂z[0])/∂z[1]", None),
    (
        "cn.laplacian(v(z)[..., 0], z)",
        "Δv(z)[..., 0]",
        r"\Delta_{z} \left(v\left(z\right)_{\ldots, 0}\right)",
    ),
    ("cn.laplacian(u(x), x)", "∂²u(x)/∂x²", None),
    ("cn.div(z**2, z)", "∇·(z²)", r"\nabla_{z} \cdot \left(z^{2}\right)"),
    ("cn.hessian(v(z)[..., 0], z)", "∇(∇v(z)[..., 0])", None),
    ("cn.diff(D.y**2, D.y)", "∂(y²)/∂y", None),
    ("cn.grad(torch.sin(D.x), D.x)", "∇sin(x)", None),
    ("E(cn.diff(u(x), x)**2) <= 1", "E[(∂u(x)/∂x)²] ≤ 1", None),
    ("forall(x, u(x) >= 0)", "for all x: u(x) ≥ 0", r"u\left(x\right) \ge 0\quad \text{for all } x"),
    ("forall(x.where(x > 0.5), u(x) >= 0)", "for all x where x > 0.5: u(x) ≥ 0", None),
    ("P(u(x) > 0, given=x > 0.5)", "P[u(x) > 0 | x > 0.5]", None),
    ("cn.weak(u(x) - x, tests=[x, 1])", "E[(u(x) - x)[..., None] · [x, 1]]", None),
    ("E(g**2) + E(b)", "E[g²] + E[b]", None),
]  # fmt: skip
ROUND = """
v(z[..., 0], z[..., 1]) ; v(x, 0.0) ; v(0, x) ; u([0.0, 0.5]) ; u(torch.tensor([0.0, 0.5]))
u(cn.constant(1))
cn.weak(u(x), tests=3) ; cn.weak(v(z)[..., 0], tests=2) ; cn.weak(x, tests=cn.stack(x, x**2))
cn.diff(D.x[..., 1] ** 2, D.x[..., 1]) ; cn.jacobian(cn.stack(z[..., 0], z[..., 1] ** 2), z)
cn.grad(cn.grad(z[..., 0]**3, z), z)[..., 0, 1] ; cn.grad(z**2, z)[0, 1] ; cn.grad(z**2, z)[..., [0]]
cn.trace(cn.constant(torch.eye(3))) ; cn.div(cn.grad(v(z)[..., 0], z), z) ; cn.diff(x**2, x) * cn.constant(2)
E(D.y) + E(x) ; x * x - 1 ; E(cn.diff(u(b), b)) == 0 ; cn.between(0, u(0.0), 1)
"""
ALL = [row[0] for row in WRITTEN] + [s.strip() for s in ROUND.replace("\n", ";").split(";") if s.strip()]


@pytest.mark.parametrize(("written", "shown", "mathematics"), WRITTEN, ids=[row[0] for row in WRITTEN])
def test_text_and_latex(written, shown, mathematics):
    e = eval(written)
    assert text(e.node) == shown
    if mathematics is not None:
        assert latex(e.node) == mathematics


@pytest.mark.parametrize("written", ALL)
def test_an_expression_evaluates_back(written):
    e = eval(written)
    again = eval(source(e.node), symbols(e.node))
    assert again.node == e.node, source(e.node)
    assert repr(again) == repr(e)
    assert latex(e.node)


def test_a_problem_evaluates_back_and_has_its_regions():
    residual = -cn.diff(u(x), x, 2) - math.pi**2 * torch.sin(math.pi * x)
    p = cn.minimize(E(residual**2)).subject_to(left=u(0.0) == 0, right=u(1.0) == 0)
    assert eval(repr(p), p.symbols()) == p
    assert str(p) == (
        "minimize   E[(-∂²u(x)/∂x² - 9.869604401089358 · sin(3.141592653589793 · x))²]\n"
        "subject to left:  u(0.0) = 0\n"
        "           right: u(1.0) = 0"
    )
    assert p.populations == (x.region,)
    assert set(p.symbols()) == {"cn", "E", "torch", "u", "x"}


def test_a_coordinate_and_a_column_of_one_name_are_told_apart():
    y = cn.Uniform("y", 0.0, 1.0)
    assert text((E(D.y) + E(y)).node) == "E[data.y] + E[y]"
    assert text((E(D.w) + E(y)).node) == "E[w] + E[y]"
    data = cn.Uniform("data", 0.0, 1.0)
    e = E(D.y) + E(data)
    assert eval(source(e.node), symbols(e.node)).node == e.node


def test_coordinates_compare_and_are_compared_in_the_order_written():
    assert eval("0.5 <= x").node == n.Comparison(">=", x.node, n.Constant(0.5))
    assert (x <= u(x)).node == n.Comparison("<=", x.node, u(x).node)
    assert (u(x) <= x).node == n.Comparison("<=", u(x).node, x.node)


# ---------------------------------------------------------------------------------------------- types
def test_shapes():
    assert x.shape == g.shape == b.shape == ()
    assert z.shape == (2,)
    assert cn.Grid("p", [[0.0, 1.0, 2.0]]).shape == (3,)
    assert cn.Grid("p", axes=[[0.0, 1.0], [0.0, 2.0]]).shape == (2,)
    assert cn.Normal("n", [0.0, 1.0], 1.0).shape == (2,)
    assert cn.Normal("n", [0.0], 1.0).shape == (1,)
    assert cn.diff(u(x), x, 3).shape == ()
    assert cn.grad(v(z), z).shape == (1, 2)
    assert cn.grad(v(z)[..., 0], z).shape == (2,)
    assert cn.hessian(v(z)[..., 0], z).shape == (2, 2)
    assert cn.laplacian(v(z)[..., 0], z).shape == cn.div(z, z).shape == ()
    assert cn.weak(u(x), tests=5).shape == (5,)
    assert cn.weak(v(z)[..., 0], tests=3).shape == (9,)
    assert cn.weak(u(x), tests=[x, x**2]).shape == (2,)
    assert x.type.rows is x.region
    assert cn.diff(u(x), x).type.rows is x.region
    assert not E(cn.diff(u(x), x)).type.random


def test_models_of_scalars():
    """Numbers per row are stacked where the model has a feature axis; an output of length one is dropped."""
    assert u(x).node.features
    assert u(x).shape == ()
    assert u(0.0).shape == u(1).shape == ()
    assert u([0.0, 0.5]).shape == u(np.array([0.0, 0.5])).shape == u(torch.zeros(2)).shape == (2,)
    assert v(z[..., 0], z[..., 1]).shape == v(x, 0.0).shape == v(0.0, x).shape == ()
    assert v([0.0, 1.0], [0.5, 0.5]).shape == (2,)
    two = cn.Model(network(1, 2), "two")
    assert two(x).shape == two(0.0).shape == (2,)
    assert cn.Model(network(1, 1, nn.Flatten(0)), "flat")(x).shape == ()
    lazy = cn.Model(nn.LazyLinear(1), "lazy")
    assert lazy(x).node.features
    assert lazy(x).shape is None


def test_models_that_take_their_arguments_as_they_are_get_them_so():
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(2)

        def forward(self, s, t):
            return self.net(torch.stack([s, t], -1))[..., 0]

    field, table = cn.Model(Field(), "field"), cn.Model(nn.Embedding(10, 3), "table")
    assert not field(x, x).node.features
    assert field(x, x).shape == field(x, 0.0 * x + 0.5).shape == ()
    with pytest.raises(cn.ModelingError, match="E112"):
        field(x, 0.5)
    assert not cn.Model(nn.Tanh(), "tanh")(x).node.features
    assert not table(D.k).node.features
    assert table(D.k).shape == (3,)
    assert not v(z).node.features
    assert v(z).shape == (1,)
    assert v([0.0, 0.5]).shape == (1,)
    assert not v([0.0, 0.5]).node.features
    assert v(cn.stack(0.0 * x, x)).shape == (1,)


def test_models_that_take_neither_say_what_was_given():
    with pytest.raises(cn.ModelingError, match=r"E112.*v\(x\) does not take rows of shape \(\)"):
        v(x)
    with pytest.raises(cn.ModelingError, match="E112"):
        u(x, x)
    with pytest.raises(cn.ModelingError, match="E112"):
        u(z)
    assert cn.Model(network(3), "three")(D.x).shape == (1,)


def test_two_regions_never_align():
    t = cn.Uniform("t", 0.0, 1.0)
    with pytest.raises(cn.ModelingError, match=r"E107.*mixes the populations \['x', 't'\]") as caught:
        x * t
    assert "cn.Box" in str(caught.value)
    with pytest.raises(cn.ModelingError, match="E107"):
        cn.weak(u(x), tests=[t])
    with pytest.raises(cn.ModelingError, match="E107"):
        forall(t, u(x) >= 0)
    with pytest.raises(cn.ModelingError, match="E107"):
        E(u(x), given=t > 0)
    assert cn.minimize(E(u(x)) + E(t)).populations == (x.region, t.region)


def test_an_open_coordinate_is_no_constraint():
    with pytest.raises(cn.ModelingError, match="E101") as caught:
        cn.find().subject_to(c=u(x) >= 0)
    scope = {"x": x, "u": u, "E": E, "P": P, "forall": forall, "share": 0.9}
    for reading in (line.split(", for ")[0] for line in caught.value.fix.splitlines()):
        assert isinstance(eval(reading, scope), cn.Constraint)


# ----------------------------------------------------------------------------------------- weak forms
def test_sine_modes_are_those_of_the_interval(evaluate):
    s = cn.Uniform("s", -1.0, 3.0, size=5, rule="trapezoid")
    modes = cn.weak(s, tests=4).node.arg.args[1]
    numbers = math.pi * torch.arange(1, 5).double() / 4
    expected = torch.sin(torch.outer(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).double(), numbers))
    found = evaluate(cn.Expr(modes))
    assert torch.allclose(found, expected, atol=1e-6)
    assert found[[0, -1]].abs().max() < 1e-6
    corner = cn.Box("corner", [0.0, 0.0], [1.0, 2.0], size=2, rule="trapezoid")
    products = evaluate(cn.Expr(cn.weak(corner[..., 0], tests=2).node.arg.args[1]))
    assert products.shape == (4, 4)
    assert products.abs().max() < 1e-6


def test_a_weak_form_is_an_average_against_each_test_function():
    e = cn.weak(u(x) - 1, tests=[x, x**2])
    r = u(x) - 1
    assert e.node == E(r[..., None] * cn.stack(x, x**2)).node
    assert cn.weak(r, tests=cn.stack(x, x**2)).node == e.node
    p = cn.find().subject_to(weak=e == 0)
    assert str(p) == "find\nsubject to weak: E[(u(x) - 1)[..., None] · [x, x²]] = 0"


# ------------------------------------------------------------------------------------------- refusals
REFUSED = [
    ("cn.diff(u(x), u(x))", "E160", "a derivative with respect to u(x), which is no coordinate"),
    ("cn.diff(u(x), 0.5)", "E160", "a derivative with respect to 0.5, which is no coordinate"),
    ("cn.diff(z[..., 0], z)", "E160", "z has shape (2,): its components have a derivative each"),
    ("cn.diff(z[..., 0], z[..., :1])", "E160", "which is no coordinate"),
    ("cn.grad(z, z[..., 0])", "E160", "cn.grad takes all components together, got z[..., 0]"),
    ("cn.laplacian(v(z)[..., 0], z[..., 0])", "E160", "cn.laplacian takes all components together"),
    ("cn.diff(D.k * D.y, D.k)", "E160", "with respect to k, a column that holds no real numbers"),
    (
        "cn.diff(u(x), g)",
        "E161",
        "the derivative of u(x) with respect to g is zero: it does not depend on it",
    ),
    ("cn.diff(E(u(x)), x)", "E161", "it is an average, which depends on no single row"),
    ("cn.diff(1.0, x)", "E161", "the derivative of 1.0 with respect to x is zero"),
    ("cn.diff(u(0.0), x)", "E161", "the derivative of u(0.0) with respect to x is zero"),
    ("cn.diff(u(x) > 0, x)", "E162", "the event u(x) > 0 has no derivative"),
    ("cn.diff(u(x), x, 0)", "E117", "the order of a derivative is 0"),
    ("cn.diff(u(x), x, True)", "E117", "the order of a derivative is True"),
    ("cn.diff(u(x), x, 1.5)", "E117", "the order of a derivative is 1.5"),
    ("cn.laplacian(v(z), z)", "E164", "cn.laplacian: v(z) has shape (1,) and the coordinate (2,)"),
    ("cn.hessian(z, z)", "E164", "cn.hessian: z has shape (2,)"),
    ("cn.div(cn.stack(z[..., 0], 0.0, 0.0), z)", "E164", "has shape (3,) and the coordinate (2,)"),
    ("cn.jacobian(v(z)[..., 0], z)", "E164", "has shape () and the coordinate (2,)"),
    ("cn.jacobian(cn.stack(x, x), x)", "E164", "has shape (2,) and the coordinate ()"),
    ("cn.weak(E(u(x)), tests=3)", "E165", "the residual E[u(x)] of a weak form is deterministic"),
    ("cn.weak(z, tests=3)", "E165", "the residual z of a weak form is of shape (2,)"),
    ("cn.weak(x > 0, tests=3)", "E165", "the residual x > 0 of a weak form is an event"),
    ("cn.weak(u(x), tests=[])", "E165", "tests is a list of shape (0,)"),
    ("cn.weak(u(x), tests=u)", "E165", "tests is <Model u"),
    ("cn.weak(u(x), tests=x)", "E165", "the test functions x have shape ()"),
    ("cn.weak(u(x), tests=0)", "E165", "0 sine modes per axis make 0 test functions"),
    ("cn.weak(v(z)[..., 0], tests=65)", "E165", "65 sine modes per axis make 4225 test functions"),
    ("cn.weak(g, tests=3)", "E165", "sine modes belong to a uniform interval or box; 'g' is none"),
    ("cn.weak(D.y, tests=3)", "E165", "sine modes belong to a uniform interval or box; 'data' is none"),
    ("forall(1, u(x) >= 0)", "E117", "forall needs a sample first"),
]


@pytest.mark.parametrize(("written", "code", "said"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_refused(written, code, said):
    with pytest.raises(cn.ModelingError) as caught:
        eval(written)
    assert caught.value.code == code
    assert said in str(caught.value)
    assert caught.value.fix
    assert len(str(caught.value).splitlines()) <= 8


# -------------------------------------------------------------------------------------- the W206 trap
t, w = cn.Variable((), "t"), cn.Variable(3, "w")
r = u(x) - x
VANISHING = [
    "E(r**2) == 0", "E(r**2) <= 0", "0 == E(r**2)", "0 >= E(r**2)", "E(cn.square(r)) == 0", "E(r * r) == 0",
    "2 * E(r**2) + E(r**4) / 3 == 0", "E(torch.nn.functional.mse_loss(u(x), x, reduction='none')) == 0.0",
    "cn.sum_squares(w - 1) <= 0", "cn.sum((w - 1)**2) == 0", "forall(x, r**2 == 0)",
    "E(r**2, given=x > 0.5) == 0",
    "cn.max(cn.stack(E(r**2), t**2)) <= 0", "E(r**2)[None] == 0",
]  # fmt: skip
SOUND = [
    "E(r**2) <= 1e-6", "E(r) == 0", "E(r**2) >= 0", "E(r**3) == 0", "E(abs(r)) == 0", "cn.norm(w) == 0",
    "E(r**2) - 0.1 == 0", "E(r**2) == E(x**2)", "-1 * E(r**2) == 0", "E(x**2) == 0", "forall(x, r == 0)",
    "cn.weak(r, tests=4) == 0", "E(r * x) == 0", "t * E(r**2) == 0", "cn.between(0, E(r**2), 1)",
    "E(r)**2 <= t",
]  # fmt: skip


@pytest.mark.parametrize("written", VANISHING)
def test_a_square_that_has_to_vanish_is_warned_about(written):
    with pytest.warns(cn.ModelingWarning, match=r"W206.*'c'.*is zero wherever it holds") as caught:
        cn.minimize(t).subject_to(c=eval(written))
    assert len(caught) == 1
    assert caught[0].message.code == "W206"
    assert caught[0].message.fix


@pytest.mark.parametrize("written", SOUND)
def test_other_constraints_are_not(written):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cn.minimize(t).subject_to(c=eval(written))
    assert not caught


def test_the_text_of_the_warning():
    with pytest.warns(cn.ModelingWarning) as caught:
        cn.minimize(t).subject_to(fit=E(r**2) == 0)
    lines = str(caught[0].message).splitlines()
    assert lines[0] == (
        "[W206] the gradient of the constraint 'fit' ( E[(u(x) - x)²] = 0 ) is zero wherever it holds: "
        "no finite multiplier exists"
    )
    assert lines[1] == (
        "  write: forall(x, r == 0), the weak form cn.weak(r, tests=...) == 0, "
        "or a tolerance: E(r**2) <= 1e-6"
    )
    assert lines[2].startswith("  at:    test_calculus.py:")
    assert caught[0].filename == __file__
