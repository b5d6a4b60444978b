"""Every function of the language: its SymPy form has the values and derivatives of torch, or a refusal."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E, P, forall
from constrain.errors import RouteError
from constrain.language.atoms import ATOMS
from constrain.symbolic.functions import ELEMENTWISE, STRUCTURAL

torch.manual_seed(1)
X = torch.randn(7, 2, dtype=torch.float64)
Y = torch.tensor([0.0, 1, 1, 0, 1, 0, 1], dtype=torch.float64)
KIND = ["b", "a", "b", "a", "a", "b", "b"]
SQUARE = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)


def data():
    return cn.Data("people", x=X, y=Y, kind=KIND, label=torch.tensor([0, 1, 1, 0, 1, 0, 1]))


def positive(shape=2):
    return cn.Variable(shape, "p", bounds=(0.1, 0.9))


UNARY = (
    *("abs", "square", "exp", "expm1", "log", "log1p", "sqrt", "reciprocal", "entr", "relu", "softplus"),
    *("logsigmoid", "sigmoid", "tanh", "sin", "cos", "erf", "gelu", "silu", "elu"),
)
TORCH = {"softplus": F.softplus, "logsigmoid": F.logsigmoid, "gelu": F.gelu, "silu": F.silu, "elu": F.elu}


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_number(name, check_agrees):
    function = cn.entr if name == "entr" else TORCH.get(name) or getattr(torch, name)
    p = positive()
    check_agrees(cn.minimize(cn.sum(function(p) * torch.tensor([1.0, -2.0], dtype=torch.float64))))


FORMS = {
    "arithmetic": lambda p, w: cn.sum((p + 1) / (2 - p) - p**3 * p[0] + (-p) ** 2),
    "maximum": lambda p, w: cn.sum(torch.maximum(p, 0.5 * p + 0.2) - torch.minimum(p, p**2)),
    "kl_div": lambda p, w: cn.sum(cn.kl_div(p, torch.tensor([0.3, 0.7], dtype=torch.float64))),
    "huber": lambda p, w: cn.sum(F.huber_loss(3 * p, 0 * p, reduction="none", delta=1.0)),
    "bce": lambda p, w: cn.sum(F.binary_cross_entropy(p, 0.5 * p + 0.1, reduction="none")),
    "losses": lambda p, w: cn.sum(
        F.mse_loss(p, 2 * p, reduction="none") + F.l1_loss(p, 3 * p, reduction="none")
    ),
    "mean": lambda p, w: cn.mean(p) ** 2 + cn.sum(cn.mean(w, axis=0) ** 2),
    "sum axis": lambda p, w: cn.sum(cn.sum(w, axis=1) ** 3),
    "max": lambda p, w: cn.exp(cn.max(p)) - cn.exp(cn.min(p)),
    "logsumexp": lambda p, w: torch.logsumexp(p, 0) + cn.sum(torch.logsumexp(w, 1)),
    "norm": lambda p, w: cn.norm(p) * cn.norm(p, 1),
    "softmax": lambda p, w: cn.sum(torch.softmax(p, -1) ** 2) - cn.sum(torch.log_softmax(w, -1)[:, 0]),
    "index": lambda p, w: cn.sum(w[1, ::2] ** 2) + w[0, -1] * w[:, [2, 0]][1, 0],
    "reshape": lambda p, w: cn.sum(w.reshape((3, 2))[2] ** 2) + cn.sum(w.reshape(6)[1:4] ** 3),
    "transpose": lambda p, w: cn.sum((w.T @ p) ** 2),
    "stack": lambda p, w: cn.sum(cn.stack(p[0], p[1] ** 2, p[0] * p[1]) ** 2),
    "matmul": lambda p, w: p @ SQUARE @ p + cn.sum((SQUARE @ w) ** 2),
    "einsum": lambda p, w: torch.einsum("i,ij,j->", p, SQUARE, p) + cn.sum(torch.einsum("ij->j", w) ** 2),
    "quad_form": lambda p, w: cn.quad_form(p, SQUARE),
    "trace": lambda p, w: cn.trace(cn.Variable((2, 2), "s") @ SQUARE),
    "logdet": lambda p, w: -torch.logdet(SQUARE + 0.1 * cn.stack(p, p)),
    "entropy of logits": lambda p, w: cn.entropy(logits=p),
    "kl of logits": lambda p, w: cn.kl(p, torch.tensor([0.1, -0.4], dtype=torch.float64)),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("written_out", [6, 0])
def test_functions_of_arrays_written_out_and_with_index_symbols(name, written_out, check_agrees):
    check_agrees(
        cn.minimize(FORMS[name](positive(), cn.Variable((2, 3), "w", bounds=(0.2, 0.9)))),
        written_out=written_out,
    )


def scores():
    return data(), cn.Variable(2, "w")


def averages(name):
    D, w = scores()
    s = D.x @ w
    loss = F.binary_cross_entropy_with_logits(s, D.y, reduction="none")
    a, b = E(s, given=D.kind == "a"), E(s**2, by=D.kind)
    return {
        "mean": cn.minimize(E(loss)).subject_to(level=E(s) <= 0.1),
        "condition": cn.minimize(E(loss, given=(D.y == 1) | ~(D.x[..., 0] > 0))).subject_to(level=a >= 0.1),
        "groups": cn.minimize(E(loss)).subject_to(
            gap=abs(E(s, by=D.kind) - E(s)) <= 0.1, worst=cn.max(b) <= 2
        ),
        "worst group": cn.minimize(cn.max(b)),
        "levels": cn.minimize(cn.sum(b) + cn.mean(b) ** 2 + cn.norm(b)),
        "variance": cn.minimize(cn.Var(s) + cn.Cov(s, D.y)).subject_to(spread=cn.sqrt(cn.Var(loss)) <= 1),
        "correlation": cn.minimize(cn.Corr(s, D.y)),
        "rows": cn.minimize(E(loss)).subject_to(fit=forall(D, D.y * s >= -1)),
        "some rows": cn.minimize(E(loss)).subject_to(fit=forall(D.where(D.y == 1), s**2 <= 4)),
        "data rate": cn.minimize(E(loss) * P(D.y == 1)).subject_to(
            r=E(s) * P(D.y == 1, given=D.kind == "b") <= 1
        ),
        "where": cn.minimize(E(cn.where(D.y > 0, s**2, cn.exp(s)))),
        "between": cn.minimize(E(loss)).subject_to(level=cn.between(-0.1, E(s), 0.1)),
        "relaxed": cn.minimize(E(loss)).subject_to(level=(E(s) <= -1).relax(cost=cn.squared(2.0))),
    }[name]


AVERAGES = (
    *("mean", "condition", "groups", "worst group", "levels", "variance", "correlation", "rows"),
    *("some rows", "data rate", "where", "between", "relaxed"),
)


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("written_out", [7, 1])
def test_averages_of_data(name, written_out, check_agrees):
    check_agrees(averages(name), written_out=written_out)


def test_every_atom_has_a_form_or_a_refusal():
    refused = {"count_nonzero", "matrix_exp", "lambda_max", "lambda_min", "spectral_norm", "nuclear_norm"}
    own = (name for name, atom in ATOMS.items() if atom.declared is None)
    language = {name for name in own if "." not in name and not name.startswith("test")}
    assert refused <= language
    assert set(ELEMENTWISE) | set(STRUCTURAL) >= language - refused - {"take"}
    assert (set(ELEMENTWISE) | set(STRUCTURAL)) <= language


def test_a_function_outside_of_the_table_is_an_undefined_function():
    t = cn.Variable((), "t")
    written = str(cn.minimize(torch.lgamma(t) + t).derive())
    assert "lgamma(t)" in written
    with pytest.raises(RouteError, match="of arrays"):
        cn.minimize(cn.sum(torch.cumprod(cn.Variable(3, "w"), 0))).derive()


def test_a_model_is_a_function_of_its_parameters():
    D = data()
    f = cn.Model(
        torch.nn.Sequential(torch.nn.Linear(2, 9), torch.nn.Tanh(), torch.nn.Linear(9, 1)).double(), "f"
    )
    derivation = cn.minimize(E((f(D.x)[..., 0] - D.y) ** 2)).derive()
    (condition,) = derivation.stationarity
    assert condition.name == "theta_f[j]"
    assert "d[f_0(x[i]; theta_f)]/d[theta_f[j]]" in str(derivation)
    assert r"\frac{\partial f_{0}({x}_{i}; \theta_{f})}{\partial {\theta_{f}}_{j}}" in derivation.latex()


def test_names_of_decisions_stay_and_others_give_way():
    x = cn.Variable(2, "x")
    D = cn.Data("people", x=X)
    derivation = cn.minimize(E((D.x @ x) ** 2)).subject_to(x_lower=cn.sum(x) >= 1).derive()
    assert "x" in derivation.symbols
    assert "x_" in derivation.symbols
    assert np.array_equal(derivation.constants()[derivation.symbols["x_"]], X.numpy())


def test_text_and_latex_of_the_whole():
    t, b = cn.Variable((), "t"), cn.Parameter("b", 1.0)
    derivation = cn.maximize(-(t**2)).subject_to(floor=t >= b).derive()
    assert (
        str(derivation)
        == """\
minimize   -(objective) = t**2
L = lambda_floor*(b - t) + t**2

stationarity
  t  -lambda_floor + 2*t = 0

primal feasibility
  floor  b - t ≤ 0

dual feasibility
  floor  lambda_floor ≥ 0

complementarity
  floor  lambda_floor*(b - t) = 0"""
    )
    latex = derivation._repr_latex_()
    assert latex.startswith("$$\n\\begin{aligned}\n\\mathcal{L} &= ")
    assert re.search(r"\\text\{stationarity\} \\quad & - \\lambda_\{floor\} \+ 2 t = 0", latex)
    assert derivation.solve()._repr_latex_().startswith("$$")
