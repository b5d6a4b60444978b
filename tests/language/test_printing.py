"""Printing: text and LaTeX in the user's order, and source that evaluates to an equal problem."""

from __future__ import annotations

import math
import re
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function_unary

import constrain as cn
from constrain import E, P, forall
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.expr import apply  # noqa: F401  # a word of some sources
from constrain.language.printing import latex, source, symbols, text

generator = torch.Generator().manual_seed(0)


def numbers(*shape):
    return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.5


x, y = numbers(6, 3), numbers(6)
D = cn.Data("adult", x=x, z=numbers(6, 3), y=y, q=numbers(6), c=[0, 1, 2] * 2, sex=["F", "M"] * 3, columns=y)
f = cn.Model(nn.Sequential(nn.Linear(3, 1, dtype=torch.float64), nn.Flatten(0)), "f")
w, t, M = cn.Variable(3, "w"), cn.Variable((), "t"), cn.Variable((3, 3), "M")
eps = cn.Parameter("eps", 0.05)
tensor, array, rows, matrix = numbers(3), numbers(3).numpy(), [0.5, 1.5, 2.5], numbers(3, 3)
series = pd.Series([0.5, 1.5, 2.5])
r, s = cn.Uniform("r", 0.0, 1.0), cn.Box("s", [0.0, 0.0], [1.0, 2.0])

# what is written; its text; its LaTeX
WRITTEN = [
    ("D.y + 2 * D.q", "y + 2 · q", r"y + 2 \cdot q"),
    ("D.y - (D.q - 1)", "y - (q - 1)", r"y - \left(q - 1\right)"),
    ("D.y + (D.q + 1)", "y + q + 1", r"y + \left(q + 1\right)"),
    ("(D.y + 1) * (D.q - 2)", "(y + 1) · (q - 2)", r"\left(y + 1\right) \cdot \left(q - 2\right)"),
    ("D.y * (D.q * 2)", "y · q · 2", r"y \cdot \left(q \cdot 2\right)"),
    ("D.y / (D.q / 2)", "y / (q / 2)", r"\frac{y}{\frac{q}{2}}"),
    ("8 / D.y", "8 / y", r"\frac{8}{y}"),
    ("-D.y * D.q", "-y · q", r"\left(-y\right) \cdot q"),
    ("-(D.y + 1)", "-(y + 1)", r"-\left(y + 1\right)"),
    ("D.y - -2 * D.q", "y - (-2 · q)", r"y - \left(-2\right) \cdot q"),
    ("D.y + -2", "y + (-2)", r"y + \left(-2\right)"),
    ("D.y**2", "y²", "y^{2}"),
    ("D.y**-1", "y⁻¹", "y^{-1}"),
    ("D.y**0.5", "y^0.5", "y^{0.5}"),
    ("2**D.y", "2^y", "2^{y}"),
    ("(D.y + 1)**12", "(y + 1)¹²", r"\left(y + 1\right)^{12}"),
    ("(-D.y)**2", "(-y)²", r"\left(-y\right)^{2}"),
    ("(D.y**2)**3", "(y²)³", r"\left(y^{2}\right)^{3}"),
    ("cn.square(D.y)", "y²", "y^2"),
    ("cn.sqrt(D.y + 1)", "√(y + 1)", r"\sqrt{y + 1}"),
    ("abs(D.y - 1)", "|y - 1|", r"\left|y - 1\right|"),
    ("abs(D.y) * 2", "|y| · 2", r"\left|y\right| \cdot 2"),
    ("D.x @ w", "x @ w", r"x \, w"),
    ("(D.x @ M) @ w", "x @ M @ w", r"x \, M \, w"),
    ("D.y * (D.x @ w)", "y · (x @ w)", r"y \cdot \left(x \, w\right)"),
    ("M.T @ w", "Mᵀ @ w", r"M^{\top} \, w"),
    ("(M @ M).T", "(M @ M)ᵀ", r"\left(M \, M\right)^{\top}"),
    ("cn.sum(w)", "sum(w)", r"\sum\left(w\right)"),
    ("cn.sum(M, axis=0)", "sum(M, axis=-2)", r"\sum_{\mathrm{axis}=-2}\left(M\right)"),
    ("cn.sum(M, axis=(0, 1), keepdims=True)", "sum(M, axis=(-2, -1), keepdims=True)", None),
    ("cn.norm(w)", "‖w‖₂", r"\left\|w\right\|_2"),
    ("cn.norm(w, 1)", "‖w‖₁", r"\left\|w\right\|_1"),
    ("cn.norm(w, math.inf)", "‖w‖∞", r"\left\|w\right\|_\infty"),
    ("cn.norm(D.x, 1, axis=-1)", "norm(x, axis=-1, ord=1.0)", r"\operatorname{norm}\left(x\right)"),
    ("cn.sum_squares(w - 1)", "‖w - 1‖²", r"\left\|w - 1\right\|_2^2"),
    ("cn.sum_squares(f)", "‖f.parameters‖²", r"\left\|\theta_{f}\right\|_2^2"),
    ("cn.count_nonzero(w)", "‖w‖₀", r"\left\|w\right\|_0"),
    ("cn.quad_form(w, M)", "wᵀ @ M @ w", r"w^{\top} M \, w"),
    ("cn.trace(M)", "trace(M)", r"\operatorname{tr}\left(M\right)"),
    ("w[0]", "w[0]", "w_{0}"),
    ("M[..., 1:3]", "M[..., 1:3]", r"M_{\ldots, 1:3}"),
    ("M[[0, 2], ::2]", "M[[0, 2], ::2]", "M_{[0, 2], ::2}"),
    ("w.reshape(3, 1)", "reshape(w, (3, 1))", r"\operatorname{reshape}_{3 \times 1}\left(w\right)"),
    ("cn.stack(t, 1)", "[t, 1]", r"\left[t, 1\right]"),
    ("cn.where(D.y > 0, D.y, 0)", "where(y > 0, y, 0)", r"\operatorname{where}\left(y > 0, y, 0\right)"),
    ("cn.maximum(D.y, 0)", "max(y, 0)", r"\max\left(y, 0\right)"),
    (
        "cn.max(E(D.y, by=D.sex))",
        "max(E[y | by sex])",
        r"\max\left(\mathbb{E}\left[y \mid \mathrm{sex}\right]\right)",
    ),
    ("torch.sigmoid(D.y)", "sigmoid(y)", r"\sigma\left(y\right)"),
    ("torch.softmax(D.x, -1)", "softmax(x)", r"\operatorname{softmax}\left(x\right)"),
    (
        "torch.einsum('ij,j->i', M, w)",
        'einsum("ij,j->i", M, w)',
        r"\operatorname{einsum}_{ij,j \to i}\left(M, w\right)",
    ),
    ("F.linear(D.x, M, w)", "x @ Mᵀ + w", r"x \, M^{\top} + w"),
    (
        "F.hardtanh(D.y, -2, 1)",
        "hardtanh(y, min_val=-2)",
        r"\operatorname{hardtanh}\left(y, \mathrm{min\_val}=\text{-2}\right)",
    ),
    ("F.cross_entropy(D.x, D.c, reduction='none')", "cross_entropy(x, c)", None),
    ("f(D.x)", "f(x)", r"f\left(x\right)"),
    ("E(f(D.x))", "E[f(x)]", r"\mathbb{E}\left[f\left(x\right)\right]"),
    ("E(D.y, given=D.q > 1)", "E[y | q > 1]", r"\mathbb{E}\left[y \mid q > 1\right]"),
    ("E(D.y, given=D.q > 1, by=(D.sex, D.c))", "E[y | q > 1, by sex, c]", None),
    ("P(f(D.x) > 0)", "P[f(x) > 0]", r"\mathbb{P}\left[f\left(x\right) > 0\right]"),
    ("P(~((D.y > 0) & (D.q >= 1)))", "P[¬(y > 0 ∧ q ≥ 1)]", None),
    ("P(((D.y > 0) | (D.q == 1)) & (D.c != 2))", "P[(y > 0 \N{LOGICAL OR} q = 1) ∧ c ≠ 2]", None),
    ("P(D.sex == 'F')", "P[sex = 'F']", r"\mathbb{P}\left[\mathrm{sex} = \text{F}\right]"),
    ("E(D.y * t) <= eps", "E[y · t] ≤ eps", r"\mathbb{E}\left[y \cdot t\right] \le \mathrm{eps}"),
    ("E(D.y * t) == 1e-6", "E[y · t] = 1e-06", r"\mathbb{E}\left[y \cdot t\right] = 10^{-6}"),
    (
        "cn.between(0, E(D.y * t), math.inf)",
        "0 ≤ E[y · t] ≤ ∞",
        r"0 \le \mathbb{E}\left[y \cdot t\right] \le \infty",
    ),
    ("forall(D, D.y * t >= 1)", "for all rows of adult: y · t ≥ 1", None),
    ("forall(D.where(D.sex == 'F'), D.y * t >= 1)", "for all rows of adult where sex = 'F': y · t ≥ 1", None),
    (
        "(E(D.y * t) <= 1).relax(cost=cn.squared(10.0) + cn.linear(eps))",
        "E[y · t] ≤ 1, relaxed by z at 10.0 · z²/2 + eps · z",
        r"\mathbb{E}\left[y \cdot t\right] \le 1\quad \text{relaxed by } z \text{ at } "
        r"10.0 \cdot \frac{z^2}{2} + \mathrm{eps} \cdot z",
    ),
    (
        "forall(D, D.y * t >= 1).relax(cost=cn.linear(2)).scale(100)",
        "for all rows of adult: y · t ≥ 1, relaxed by z at 2 · z, in units of 100.0",
        None,
    ),
    ("(t == 1).scale(1e-3)", "t = 1, in units of 0.001", r"t = 1\quad \text{in units of } 0.001"),
    ("cn.indicator(D.y > 0) * 2", "1[y > 0] · 2", r"\mathbf{1}\left[y > 0\right] \cdot 2"),
    ("w @ tensor", "w @ tensor", r"w \, \mathrm{tensor}"),
    ("w @ (tensor + 0)", "w @ array_1", None),
]


@pytest.mark.parametrize(("written", "shown", "mathematics"), WRITTEN, ids=[row[0] for row in WRITTEN])
@pytest.mark.semantics("S11")
def test_text_and_latex(written, shown, mathematics):
    e = eval(written)
    assert str(e) == shown
    if mathematics is not None:
        assert e._repr_latex_() == f"${mathematics}$"


def test_columns_are_prefixed_when_two_populations_or_names_meet():
    other = cn.Data("other", y=[1.0, 2.0])
    assert str(E(D.y) - E(other.y)) == "E[adult.y] - E[other.y]"
    same = cn.Variable((), "y")
    assert str(E(D.y) - same) == "E[adult.y] - y"


def test_equal_names_are_told_apart():
    first, second = cn.Variable((), "v"), cn.Variable((), "v")
    e = first + second * first
    assert str(e) == "v + v_1 · v"
    assert eval(repr(e), symbols(e.node)).node == e.node


def test_nodes_made_by_the_compiler_have_a_text():
    moment = n.Moment(D, (f(D.x) * 2).node, (D.y > 0).node, (D.sex.node,))
    assert text(moment) == "mean[f(x) · 2 | y > 0, by sex]"
    assert text(n.Indicator((D.y > 0).node)) == "1[y > 0]"
    assert repr(moment) == "<Moment: mean[f(x) · 2 | y > 0, by sex]>"


@pytest.mark.parametrize("limit", [1, 5, 20, 100])
def test_a_text_is_cut_at_the_limit(limit):
    e = sum([D.y * i for i in range(50)])
    cut = text(e.node, limit=limit)
    assert len(cut) == limit
    assert cut.endswith("…")
    assert str(e).startswith(cut[:-1])
    assert text(D.y.node, limit=limit) == "y"


def test_every_atom_prints_in_every_notation():
    options = {"axis": (-1,), "delta": 1.0, "equation": "i,i->", "key": (0,), "ord": 3.0, "shape": (3,)}
    for name in ATOMS:
        e = n.Apply(name, (D.y.node, D.q.node), tuple(options.items()))
        object.__setattr__(e, "_type", D.y.type)
        assert "adult" not in text(e)
        assert latex(e)


# ------------------------------------------------------------------------------- source evaluates back
def same(problem):
    """Whether the source of a problem evaluates to an equal one, with nothing but its symbols."""
    again = eval(repr(problem), dict(problem.symbols()))
    assert again == problem
    assert hash(again) == hash(problem)
    assert repr(again) == repr(problem)
    assert cn.from_json(problem.to_json(), problem.symbols()) == problem
    assert str(problem)
    assert "\\begin{aligned}" in problem._repr_latex_()
    return True


def back(e):
    """Whether the source of an expression evaluates back."""
    value = eval(source(e.node), symbols(e.node))
    assert isinstance(value, (cn.Expr, cn.Constraint))
    assert value.node == e.node, source(e.node)
    return True


ROUND = """
D.y * True ; D.y + 1 ; D.y + 1.0 ; D.y - (1 - D.q) ; 2 - (D.y - 1) ; D.y ** D.q ** 2 ; (D.y ** D.q) ** 2
-D.y ** 2 ; (-D.y) ** 2 ; (-2) ** D.y ; D.y ** -2 ; -(-D.y) ; +D.y ; D.y / D.q / 2 ; D.y * D.q / 2 * 3
D.y / (D.q * 2) ; D.y * (D.q / 2) ; 1e300 * D.y ; D.y * math.inf ; D.y * -math.inf ; D.y + math.nan
-0.0 * D.y ; tensor - D.x ; D.x - tensor ; array - D.x ; D.x - array ; cn.constant(rows) - D.x
D.x - rows ; rows + D.x ; D.x @ rows ; D.x * series ; cn.constant(series) * D.x
cn.constant(tensor) * tensor ; tensor / D.x ; array ** D.x ; D.x ** tensor ; tensor @ M ; array @ M
M @ array ; cn.constant(array) @ matrix ; abs(cn.constant(2)) ; -cn.constant(2) ; -cn.constant(tensor)
cn.constant(tensor)[0] ; cn.constant(rows).reshape(3, 1) ; cn.constant(matrix).T ; cn.exp(2)
cn.sum(tensor) ; cn.sum(cn.constant(rows)) ; cn.sum(rows) ; cn.constant(2) ** 3
torch.sub(D.x, tensor, alpha=2) ; torch.sub(tensor, D.x, alpha=2) ; torch.add(D.y, D.q, alpha=0.5)
torch.tanh(D.y) ; torch.tanh(cn.constant(2.0)) ; torch.expm1(D.y) ; torch.log1p(D.y) ; torch.erf(D.y)
F.logsigmoid(D.y) ; F.gelu(D.y) ; F.silu(D.y) ; F.elu(D.y) ; torch.floor(D.y) ; torch.sign(D.y)
torch.reciprocal(D.y) ; torch.matrix_exp(M * M) ; torch.logdet(M) ; torch.sin(math.pi * D.y)
torch.log_softmax(D.x, 1) ; F.softmax(M, 0) ; torch.sum(D.x, (-1,), keepdim=True)
torch.norm(D.x, dim=-1) ; torch.logsumexp(D.x, -1) ; torch.amax(D.x, -1) ; torch.clamp(D.y, 0, 1)
torch.max(D.y, D.q) ; cn.maximum(D.y, D.q, 1) ; cn.minimum(1, D.y) ; torch.stack([D.x, D.z], -1)
F.mse_loss(D.y, D.q, reduction='none') ; F.l1_loss(D.y, D.q, reduction='none')
F.mse_loss(D.x, tensor, reduction='none') ; F.binary_cross_entropy(D.y, D.q, reduction='none')
F.huber_loss(D.y, D.q, reduction='none', delta=0.5)
F.binary_cross_entropy_with_logits(f(D.x), D.y, reduction='none')
F.mse_loss(D.y, cn.constant(0.5), reduction='none') ; apply('huber', D.y, delta=1.0)
F.hardtanh(D.y, -1, 0.5) ; torch.hypot(D.y, D.q) ; torch.lerp(D.y, D.q, 0.25)
torch.addcmul(D.y, D.q, D.y, value=2) ; torch.cumsum(D.x, -1) ; torch.flip(D.x, [-1]) ; F.one_hot(D.c, 3)
torch.cumsum(D.x, -1, dtype=torch.float32) ; torch.lerp(D.x, tensor, tensor)
torch.lerp(D.y, D.q, torch.tensor(0.5)) ; F.cross_entropy(D.x, D.c, weight=tensor, reduction='none')
F.kl_div(D.x, D.z, reduction='none', log_target=True) ; F.layer_norm(D.x, (3,))
torch.special.xlogy(D.y, D.q) ; torch.linalg.vecdot(D.x, D.z) ; tensor.atan2(D.x)
cn.mean(E(D.y, by=D.sex)) ; cn.min(E(D.x, by=D.sex)) ; cn.sum(E(D.y, by=D.c))
cn.max(E(D.x, by=D.sex), axis=-1) ; cn.norm(E(D.x, by=D.sex)) ; cn.sum_squares(E(D.x))
cn.logsumexp(w, axis=-1, keepdims=True) ; cn.norm(f, 1) ; cn.rel_entr(D.y, D.q) ; cn.kl_div(D.y, 1)
cn.entr(D.y) ; cn.softplus(-D.y) ; cn.relu(D.y - 1) ; cn.where(D.y > 1, 0, D.q)
cn.where(torch.tensor([True, False, True]), D.x, 0) ; torch.where(D.sex == 'F', D.y, 0.0) ; M[..., None]
M[0, ...] ; M[-1, 0:2] ; M[:, [2, 0]] ; M[1:, ::2] ; w[0].reshape(()) ; M.reshape(-1)
P(D.y > 0, surrogate='hinge') ; P(D.y > 0, given=D.q < 1, by=D.c)
E(D.y, given=(D.q > 1) | ~(D.y <= 1), by=D.sex) ; P((D.y > 0) & (D.q > 0) & (D.c == 1))
P((D.y > 0) & ((D.q > 0) & (D.c == 1))) ; P((D.y > 0) | (D.q > 0) & (D.c == 1))
P(~(D.y > 0) & (D.c == 1)) ; P(1 >= D.y) ; P(torch.gt(D.y, D.q)) ; P(tensor < D.x) ; P(array < D.x)
P(rows < D.x) ; D['columns'] * 2 ; D['x'] @ w ; E(D.y) <= 1 ; 1 >= E(D.y) ; E(D.x) <= tensor
tensor >= E(D.x) ; E(D.x) == array ; array <= E(D.x) ; cn.between(E(D.y), t, 2)
forall(D, cn.between(-1, D.y * t, D.q)) ; forall(D, D.x @ w == D.y) ; f(D.x) * f(D.z) ; f(tensor)
f(D.x + rows) ; eps * t ; -eps ; E(D.y) / E(D.q) - eps ; cn.between(0, t, 1).scale(3).relax(cost=cn.squared())
cn.Var(D.y * t) ; cn.Cov(D.y, D.q * t, given=D.q > 1) ; cn.Corr(D.y, D.q, by=D.sex) ; cn.Var(D.x, by=D.c)
cn.CVaR(D.y * t, 0.9) <= eps ; cn.Quantile(f(D.x), 0.5, given=D.sex == 'F', by=(D.sex, D.c))
cn.CVaR(D.y * t, eps, by=D.sex) ; 1 - cn.Quantile(f(D.x), eps, given=D.sex == 'F')
P(D.y > 0, surrogate=cn.surrogate.Power(order=3.0)) ; cn.indicator(D.y > 0, surrogate='hinge')
cn.diff(torch.sin(r * t), r) ; cn.diff(torch.sin(r * t), r, 2) ; -cn.diff(r**3 * t, r, 3) * 2
cn.diff(cn.sum(s**2, axis=-1) * t, s[..., 0]) ; cn.grad(cn.sum(s**3, axis=-1), s) ; cn.jacobian(s**2, s)
cn.laplacian(cn.sum(s**4, axis=-1), s) ; cn.div(s**2, s) ; cn.hessian(cn.sum(s**3, axis=-1), s)
E(r * t) ; forall(r, r * t <= 1) ; forall(r.where(r > 0.5), r * t <= 1) ; cn.weak(r * t, tests=3) == 0
(E(D.y * t) >= 1).relax(cost=cn.linear(eps) + cn.squared(2.0)) ; forall(D, D.y * t >= 1).scale(2.0)
"""
ALL = [row[0] for row in WRITTEN] + [s.strip() for s in ROUND.replace("\n", ";").split(";") if s.strip()]


@pytest.mark.parametrize("written", ALL)
def test_an_expression_evaluates_back(written):
    assert back(eval(written))


def test_every_class_of_nodes_is_printed_above():
    """A new class of nodes needs a text, LaTeX and source: add an expression that has it."""
    codes = n.Codes(D, ("sex",))
    pinned = n.Pinned(n.ArraySymbol("(median of y)", (), 0.5))
    made = [n.Moment(D, (D.y * t).node, (D.y > 0).node, (D.sex.node,)), codes, pinned]
    written = [eval(row).node for row in ALL]
    assert {type(node) for node in n.postorder(*written, *made)} == set(get_args(n.AnyNode))
    for node in [*written, *made]:
        assert text(node)
        assert latex(node)
        assert repr(node).startswith(f"<{type(node).__name__}: ")
        assert text(node, limit=3) == text(node)[:2] + "…" or len(text(node)) <= 3


def test_numbers_keep_their_type():
    for number in (1, 1.0, True, -1, -1.5, 1e-300, math.inf, -math.inf, math.nan, -0.0, 10**30):
        e = D.y + number
        assert back(e)
    assert (D.y + 1).node != (D.y + 1.0).node != (D.y + True).node
    assert (D.y + 0.0).node != (D.y + -0.0).node
    assert (D.y + math.nan).node == (D.y + float("nan")).node


def test_names_are_kept_apart_from_the_words_of_the_language():
    E_, cn_ = cn.Variable((), "E"), cn.Variable((), "cn")
    lambda_, other = cn.Parameter("lambda", 1.0), cn.Data("F", torch=[1.0, 2.0])
    model = cn.Model(nn.Linear(3, 1, dtype=torch.float64), "torch")
    p = cn.minimize(lambda_ * E_ + cn_ * E(other.torch) + E(model(D.x)[..., 0])).subject_to(E=E_ >= 0)
    assert same(p)
    assert {"E_1", "cn_1", "lambda_1", "F_1", "torch_1"} <= set(p.symbols())


def test_data_and_arrays_with_odd_names():
    data = cn.Data(
        "UCI Adult (1994)", **{"hours per week": [1.0, 2.0], "name": [1.0, 2.0], "class": [3.0, 4.0]}
    )
    e = E(data["hours per week"] * data["name"] + data["class"])
    assert back(e)
    p = cn.minimize(e * t).subject_to(**{"not a name": t >= 0, "class": t <= 1, "plain": t == 0})
    assert same(p)
    assert list(eval(repr(p), p.symbols()).constraints) == ["not a name", "class", "plain"]


def test_arrays_without_a_name_are_numbered():
    p = cn.minimize(cn.sum_squares(w - torch.ones(3) * 2)).subject_to(
        a=w @ torch.ones(3) >= 1, b=w <= np.ones(3)
    )
    assert same(p)
    assert {"array_1", "array_2", "array_3"} <= set(p.symbols())


def test_a_function_that_torch_does_not_export_is_a_symbol():
    def mine(e):
        return handle_torch_function(mine, (e,), e) if has_torch_function_unary(e) else e.abs()

    e = mine(D.y)
    assert source(e.node) == "function_1(adult.y)"
    assert back(e)


def test_only_the_words_in_use_are_among_the_symbols():
    p = cn.minimize(cn.sum(w)).subject_to(c=w >= 0)
    assert set(p.symbols()) == {"cn", "w"}
    p = cn.minimize(E(torch.tanh(D.y) * t))
    assert set(p.symbols()) == {"cn", "E", "torch", "adult", "t"}


# -------------------------------------------------------------------------------- the target programs
def program_1():
    layers = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0)
    g = cn.Model(nn.Sequential(*layers).double(), "f")
    bce = F.binary_cross_entropy_with_logits(g(D.x), D.y, reduction="none")
    return cn.minimize(E(bce)).subject_to(
        parity=abs(E(torch.sigmoid(g(D.x)), by=D.sex) - E(torch.sigmoid(g(D.x)))) <= 0.02,
        recall=P(g(D.x) > 0, given=D.y == 1) >= 0.80,
    )


def program_2():
    alarm, alpha = f(D.x) > 0, cn.Parameter("alpha", 0.05)
    return cn.minimize(P(~alarm, given=D.y == 1)).subject_to(false_alarm=P(alarm, given=D.y == 0) <= alpha)


def program_3():
    bce = F.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")
    return cn.minimize(E(bce)).subject_to(rate=P(f(D.x) > 0, by=D.c) == 0.5)


def program_4():
    outliers_pay = forall(D, D.y * f(D.x) >= 1).relax(cost=cn.squared(10.0))
    return cn.minimize(cn.sum_squares(f)).subject_to(fit=outliers_pay)


def program_7():
    R, C, T, rho0, gamma = numbers(2, 3), numbers(2, 3), numbers(2, 3, 2), numbers(2), 0.9
    mu = cn.Variable((2, 3), "mu", nonneg=True)
    return cn.maximize(cn.sum(R * mu)).subject_to(
        flow=cn.sum(mu, axis=1) - gamma * torch.einsum("sap,sa->p", T, mu) == (1 - gamma) * rho0,
        budget=cn.sum(C * mu) <= 0.3,
    )


def program_8():
    g, Fisher = numbers(3), numbers(3, 3).numpy()
    d, delta = cn.Variable(3, "step"), cn.Parameter("delta", 0.01)
    return cn.maximize(g @ d).subject_to(kl=0.5 * cn.quad_form(d, Fisher) <= delta)


def program_9():
    z, m, m2 = np.linspace(-1, 1, 161), 0.1, 0.3
    p = cn.Variable(161, "p", nonneg=True)
    return cn.maximize(cn.sum(cn.entr(p))).subject_to(
        total=cn.sum(p) == 1, mean=z @ p == m, second=(z**2) @ p == m2
    )


def program_10():
    W, d = cn.Variable((3, 3), "W"), 3
    return cn.minimize(E(cn.sum((D.x - D.x @ W) ** 2, axis=-1)) / 2).subject_to(
        acyclic=cn.trace(torch.matrix_exp(W * W)) - d == 0
    )


PROGRAMS = {
    1: (
        program_1,
        "minimize   E[binary_cross_entropy_with_logits(f(x), y)]\n"
        "subject to parity: |E[sigmoid(f(x)) | by sex] - E[sigmoid(f(x))]| ≤ 0.02\n"
        "           recall: P[f(x) > 0 | y = 1] ≥ 0.8",
    ),
    2: (
        program_2,
        "minimize   P[¬(f(x) > 0) | y = 1]\nsubject to false_alarm: P[f(x) > 0 | y = 0] ≤ alpha",
    ),
    3: (
        program_3,
        "minimize   E[binary_cross_entropy_with_logits(f(x), y)]\nsubject to rate: P[f(x) > 0 | by c] = 0.5",
    ),
    4: (
        program_4,
        "minimize   ‖f.parameters‖²\n"
        "subject to fit: for all rows of adult: y · f(x) ≥ 1, relaxed by z at 10.0 · z²/2",
    ),
    7: (
        program_7,
        "maximize   sum(R · mu)\n"
        'subject to flow:   sum(mu, axis=-1) - 0.9 · einsum("sap,sa->p", T, mu) = array_1\n'
        "           budget: sum(C · mu) ≤ 0.3",
    ),
    8: (program_8, "maximize   g @ step\nsubject to kl: 0.5 · (stepᵀ @ Fisher @ step) ≤ delta"),
    9: (
        program_9,
        "maximize   sum(entr(p))\n"
        "subject to total:  sum(p) = 1\n"
        "           mean:   z @ p = 0.1\n"
        "           second: array_1 @ p = 0.3",
    ),
    10: (
        program_10,
        "minimize   E[sum((x - x @ W)², axis=-1)] / 2\nsubject to acyclic: trace(matrix_exp(W · W)) - 3 = 0",
    ),
}


@pytest.mark.parametrize("number", PROGRAMS)
def test_target_programs_print_and_evaluate_back(number):
    make, shown = PROGRAMS[number]
    problem = make()
    assert str(problem) == shown
    assert same(problem)


def test_the_latex_of_a_problem():
    assert program_2()._repr_latex_() == (
        "$$\n\\begin{aligned}\n"
        r"\operatorname*{minimize} \quad & "
        r"\mathbb{P}\left[\neg \left(f\left(x\right) > 0\right) \mid y = 1\right] \\"
        "\n"
        r"\text{subject to} \quad & \mathrm{false\_alarm}:\; "
        r"\mathbb{P}\left[f\left(x\right) > 0 \mid y = 0\right] \le \alpha"
        "\n\\end{aligned}\n$$"
    )


def test_find_and_an_objective_alone():
    assert str(cn.find().subject_to(a=t >= 1)) == "find\nsubject to a: t ≥ 1"
    assert same(cn.find().subject_to(a=t >= 1))
    assert same(cn.find())
    assert same(cn.minimize(3))
    assert same(cn.maximize(cn.Model(nn.Linear(3, 1, dtype=torch.float64), "g")(tensor)))


# ------------------------------------------------------------------------------------ random problems
UNARY = (
    cn.exp,
    cn.sigmoid,
    abs,
    torch.tanh,
    F.softplus,
    torch.sin,
    F.gelu,
    lambda e: -e,
    F.hardtanh,
    torch.log1p,
)
BINARY = (
    *(lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / b, lambda a, b: a**b),
    *(cn.maximum, cn.minimum, cn.rel_entr),
)
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -1.5, 1e-9, 2.0, math.inf, True, False]))


def leaf(draw, random, shape):
    """A symbol or number of a row shape, random or deterministic."""
    if shape == (3,):
        columns = [D.x, D.z] if random else []
        return draw(
            st.sampled_from([*columns, w, cn.constant(tensor), cn.constant(array), cn.constant(rows)])
        )
    columns = [D.y, D.q, f(D.x), D["columns"], cn.indicator(D.y > 1)] if random else []
    return draw(st.one_of(st.sampled_from([*columns, t, eps]), NUMBERS.map(cn.constant)))


def two(draw, depth, random, shape):
    return [expression(draw, depth, random, shape), expression(draw, depth, random, shape)]


def with_a_number(draw, depth, random, shape):
    sides = draw(st.permutations([expression(draw, depth, random, shape), draw(NUMBERS)]))
    return draw(st.sampled_from(BINARY[:5]))(*sides)


def with_an_array(draw, depth, random, shape):
    captured = draw(st.sampled_from([tensor, array]))
    sides = draw(st.permutations([expression(draw, depth, random, shape), captured]))
    return draw(st.sampled_from(BINARY[:5]))(*sides)


def reduced(draw, depth, random, _shape):
    reduce = draw(st.sampled_from([cn.sum, cn.mean, cn.max, cn.norm, cn.sum_squares, cn.logsumexp]))
    return reduce(expression(draw, depth, random, (3,)), axis=draw(st.sampled_from([None, -1])))


KINDS = {
    "leaf": lambda draw, _depth, random, shape: leaf(draw, random, shape),
    "unary": lambda draw, *rest: draw(st.sampled_from(UNARY))(expression(draw, *rest)),
    "binary": lambda draw, *rest: draw(st.sampled_from(BINARY))(*two(draw, *rest)),
    "number": with_a_number,
    "array": with_an_array,
    "reduce": reduced,
    "dot": lambda draw, d, random, _: expression(draw, d, random, (3,)) @ expression(draw, d, False, (3,)),
    "index": lambda draw, d, random, _: expression(draw, d, random, (3,))[draw(st.integers(-3, 2))],
    "matrix": lambda draw, *rest: (
        expression(draw, *rest) @ draw(st.sampled_from([M, M.T, cn.constant(matrix)]))
    ),
    "where": lambda draw, depth, *rest: cn.where(event(draw, depth), *two(draw, depth, *rest)),
    "statistic": lambda draw, depth, *_: statistic(draw, depth),
}


def expression(draw, depth, random, shape):
    """An expression of a row shape, random or deterministic."""
    kinds = ["leaf", "unary", "binary", "number"]
    kinds += ["reduce", "dot", "index"] if shape == () else ["array", "matrix"]
    if shape == ():
        kinds.append("where" if random else "statistic")
    kind = draw(st.sampled_from(kinds)) if depth > 0 else "leaf"
    return KINDS[kind](draw, depth - 1, random, shape)


def row(draw, depth, shape=()):
    """An expression that does depend on the rows."""
    e = expression(draw, depth, True, shape)
    return e if e.type.random else e * (D.y if shape == () else D.x)


def event(draw, depth):
    """An event of the rows."""
    if depth > 0 and draw(st.booleans()):
        a, b = event(draw, depth - 1), event(draw, depth - 1)
        return draw(st.sampled_from([a & b, a | b, ~a]))
    if draw(st.booleans()):
        return D.sex == draw(st.sampled_from(["F", "M"]))
    a, b = row(draw, depth), draw(st.one_of(NUMBERS, st.sampled_from([D.q, t])))
    return draw(st.sampled_from([a <= b, a >= b, a < b, a > b, a == b, a != b, b >= a]))


def statistic(draw, depth, by=None):
    """A deterministic scalar, or one value per level."""
    condition = event(draw, depth) if draw(st.booleans()) else None
    if draw(st.booleans()):
        surrogate = draw(st.sampled_from([None, "sigmoid", "hinge", cn.surrogate.Power(order=3.0)]))
        return P(event(draw, depth), given=condition, by=by, surrogate=surrogate)
    return E(row(draw, depth), given=condition, by=by)


@st.composite
def problems(draw):
    """A random problem."""
    objective = expression(draw, 3, False, ())
    constraints = {}
    for name in draw(
        st.lists(st.sampled_from(["a", "b", "parity", "class", "two words"]), unique=True, max_size=4)
    ):
        kind = draw(st.sampled_from(["scalar", "by", "between", "forall", "where", "vector"]))
        if kind == "forall":
            constraints[name] = forall(D, row(draw, 2) <= draw(NUMBERS))
        elif kind == "where":
            constraints[name] = forall(D.where(event(draw, 1)), cn.between(-3, row(draw, 2), draw(NUMBERS)))
        elif kind == "between":
            constraints[name] = cn.between(draw(NUMBERS), statistic(draw, 2), eps)
        elif kind == "vector":
            e = expression(draw, 2, False, (3,))
            constraints[name] = draw(st.sampled_from([e <= tensor, e == 0, e >= w, array >= e]))
        else:
            by = draw(st.sampled_from([D.sex, (D.sex, D.c)])) if kind == "by" else None
            e = statistic(draw, 2, by)
            constraints[name] = draw(
                st.sampled_from([abs(e) <= eps, e == 0.5, e >= draw(NUMBERS), e - t <= 0])
            )
        if draw(st.booleans()):
            weight = draw(st.sampled_from([1, 0.5, eps]))
            cost = draw(st.sampled_from([cn.squared(weight), cn.linear(weight) + cn.squared(10.0)]))
            constraints[name] = constraints[name].relax(cost=cost)
        if draw(st.booleans()):
            constraints[name] = constraints[name].scale(draw(st.sampled_from([1e-3, 100])))
    start = draw(st.sampled_from([cn.minimize(objective), cn.maximize(objective), cn.find()]))
    return start.subject_to(**constraints)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(problems())
@pytest.mark.semantics("S11")
def test_a_random_problem_evaluates_back(problem):
    assert same(problem)
    assert not re.search(r"\bnode\b|object at 0x", str(problem))


# --------------------------------------------------------------------------------------- deep problems
def deep(count=10_000):
    total = D.y * 0
    for i in range(1, count):
        total = total + D.y * i
    return total


def test_a_sum_of_ten_thousand_terms():
    e, again = deep(), deep()
    assert e.shape == ()
    assert e.node == again.node
    assert hash(e.node) == hash(again.node)
    assert e.node != (again + 1).node
    shown = str(e)
    assert shown.startswith("y · 0 + y · 1 + ")
    assert shown.endswith(" + y · 9999")
    assert source(e.node).count(" + ") == latex(e.node).count(" + ") == 9_999
    assert text(e.node, limit=30) == "y · 0 + y · 1 + y · 2 + y · 3…"
    problem = cn.minimize(E(e) * t)
    assert len(str(problem)) == len(shown) + len("minimize   E[] · t")
    assert problem == cn.minimize(E(again) * t)
    assert len(repr(e.node)) < 250


def test_other_deep_expressions_print():
    chain, tower, event_ = D.y, D.y, D.y > 0
    for _ in range(5_000):
        chain = torch.sigmoid(-chain * 2)
        tower = 1 / (1 + tower)
        event_ = ~(event_ & (D.q > 0))
    for e in (chain, tower, event_):
        assert len(str(e)) > 10_000
        assert len(source(e.node)) > 10_000
        assert latex(e.node)


def test_a_shared_expression_is_cut_without_being_written_out():
    e = D.y
    for _ in range(200):
        e = e + e
    assert len(text(e.node, limit=100)) == 100
    again = D.y
    for _ in range(200):
        again = again + again
    assert e.node == again.node
