"""Curvature, sign and reasons: one row per expression; and the law that what is certified is so."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import constrain as cn
from constrain import E, P
from constrain.analysis.curvature import analyze
from constrain.language import nodes as n
from constrain.lowering.lower import _Lowering
from constrain.runtime.constants import Constants

RNG = np.random.default_rng(0)
ROWS = 24
D = cn.Data(
    "d",
    x=RNG.normal(size=(ROWS, 3)),
    y=(np.arange(ROWS) % 2).astype(float),
    z=2.0 * (np.arange(ROWS) % 2) - 1.0,
    k=np.arange(ROWS) % 4,
    g=np.array(["a", "b", "c"] * (ROWS // 3)),
)
w = cn.Variable(3, "w")
v = cn.Variable(3, "v")
p = cn.Variable(3, "p", nonneg=True)
q = cn.Variable(3, "q", nonneg=True)
u = cn.Variable(3, "u", bounds=(0.1, 0.9))
m = cn.Variable((3, 3), "m")
s = cn.Variable((), "s")
eps = cn.Parameter("eps", 0.1)
loose = cn.Parameter("loose", -0.3)
A = RNG.normal(size=(3, 3))
PSD = A @ A.T
NSD = -PSD
INDEFINITE = np.diag([1.0, 2.0, -3.0])
COST = np.array([1.0, 2.0, 3.0])
MIXED = np.array([1.0, -2.0, 3.0])

torch.manual_seed(0)
f = cn.Model(nn.Linear(3, 1), "f")
scores = cn.Model(nn.Linear(3, 4), "scores")
deep = cn.Model(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), "deep")
fixed = cn.Model(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), "fixed", frozen=True)
fx = f(D.x)[..., 0]
bce = F.binary_cross_entropy_with_logits
ce = F.cross_entropy

# label: expression, curvature, sign, form (for what is known) or a part of the reason
TABLE = {
    # leaves
    "number": (lambda: 2.0 * eps + 1, "constant", "nonneg", "affine"),
    "negative parameter": (lambda: loose * 2, "constant", "nonpos", "affine"),
    "column": (lambda: D.y + 0, "constant", "nonneg", "affine"),
    "column of both signs": (lambda: D.z * 1, "constant", "any", "affine"),
    "sigmoid of data": (lambda: torch.sigmoid(D.z), "constant", "nonneg", "affine"),
    "frozen model": (lambda: torch.sigmoid(fixed(D.x)), "constant", "nonneg", "affine"),
    "variable": (lambda: w + 0, "affine", "any", "affine"),
    "nonneg variable": (lambda: p * 3, "affine", "nonneg", "affine"),
    "bounded variable": (lambda: u - 1, "affine", "nonpos", "affine"),
    "linear model": (lambda: fx, "affine", "any", "affine"),
    "deep model": (
        lambda: deep(D.x)[..., 0],
        "unknown",
        "any",
        "deep is not affine in its weights: ReLU '1' follows",
    ),
    "model of a decision": (lambda: f(w), "unknown", "any", "the model f is applied to decisions"),
    # affine combinations
    "sum": (lambda: w + v - 3, "affine", "any", "affine"),
    "negated": (lambda: -p, "affine", "nonpos", "affine"),
    "scaled": (lambda: MIXED * w, "affine", "any", "affine"),
    "over a constant": (lambda: w / MIXED, "affine", "any", "affine"),
    "times a parameter": (lambda: eps * w, "affine", "any", "affine"),
    "matrix times vector": (lambda: A @ w, "affine", "any", "affine"),
    "data times vector": (lambda: D.x @ w, "affine", "any", "affine"),
    "nonneg inner product": (lambda: COST @ p, "affine", "nonneg", "affine"),
    "einsum": (lambda: torch.einsum("ij,j->i", torch.as_tensor(A), w), "affine", "any", "affine"),
    "index": (lambda: p[1], "affine", "nonneg", "affine"),
    "trace": (lambda: cn.trace(m), "affine", "any", "affine"),
    "transpose": (lambda: m.T, "affine", "any", "affine"),
    "stack": (lambda: cn.stack(p[0], q[1]), "affine", "nonneg", "affine"),
    "sum of entries": (lambda: cn.sum(-p), "affine", "nonpos", "affine"),
    "mean score": (lambda: E(fx), "affine", "any", "affine"),
    "mean score by group": (lambda: E(fx, by=D.g) - E(fx), "affine", "any", "affine"),
    "conditional mean": (lambda: E(fx, given=D.y == 1), "affine", "any", "affine"),
    "share of data": (lambda: P(D.y == 1) + s, "affine", "any", "affine"),
    "choice by data": (lambda: cn.where(D.y == 1, fx, -fx), "affine", "any", "affine"),
    # convex
    "abs": (lambda: abs(w), "convex", "nonneg", "piecewise"),
    "abs of a gap": (
        lambda: abs(E(fx, given=D.y == 1) - E(fx, given=D.y == 0)),
        "convex",
        "nonneg",
        "piecewise",
    ),
    "relu": (lambda: torch.relu(1 - D.z * fx), "convex", "nonneg", "piecewise"),
    "maximum": (lambda: cn.maximum(w, v), "convex", "any", "piecewise"),
    "largest entry": (lambda: cn.max(p), "convex", "nonneg", "piecewise"),
    "worst group": (lambda: cn.max(E(fx, by=D.g)), "convex", "any", "piecewise"),
    "one norm": (lambda: cn.norm(w, 1), "convex", "nonneg", "piecewise"),
    "max norm": (lambda: cn.norm(w, math.inf), "convex", "nonneg", "piecewise"),
    "two norm": (lambda: cn.norm(A @ w - 1), "convex", "nonneg", "general"),
    "three norm": (lambda: cn.norm(w, 3), "convex", "nonneg", "general"),
    "absolute loss": (lambda: F.l1_loss(fx, D.y, reduction="none"), "convex", "nonneg", "piecewise"),
    "square": (lambda: (w - v) ** 2, "convex", "nonneg", "quadratic"),
    "square by itself": (lambda: w * w, "convex", "nonneg", "quadratic"),
    "inner product with itself": (lambda: w @ w, "convex", "nonneg", "quadratic"),
    "sum of squares": (lambda: cn.sum_squares(w), "convex", "nonneg", "quadratic"),
    "model weights": (lambda: cn.sum_squares(f), "convex", "nonneg", "quadratic"),
    "all weights of a deep model": (lambda: cn.sum_squares(deep), "convex", "nonneg", "quadratic"),
    "squared loss": (lambda: E(F.mse_loss(fx, D.y, reduction="none")), "convex", "nonneg", "quadratic"),
    "quadratic form": (lambda: cn.quad_form(w, PSD), "convex", "any", "quadratic"),
    "halved quadratic form": (lambda: cn.quad_form(w, PSD / 2), "convex", "any", "quadratic"),
    "square of abs": (lambda: abs(w) ** 2, "convex", "nonneg", "general"),
    "square of a nonneg convex": (lambda: cn.square(cn.softplus(w)), "convex", "nonneg", "general"),
    "even power": (lambda: w**4, "convex", "nonneg", "general"),
    "cube of nonneg": (lambda: p**3, "convex", "nonneg", "general"),
    "power 1.5": (lambda: p**1.5, "convex", "nonneg", "general"),
    "reciprocal": (lambda: 1 / u, "convex", "nonneg", "general"),
    "torch reciprocal": (lambda: torch.reciprocal(u), "convex", "nonneg", "general"),
    "negative power": (lambda: u**-0.5, "convex", "nonneg", "general"),
    "cost over nonneg": (lambda: cn.sum(COST / u), "convex", "nonneg", "general"),
    "exp": (lambda: torch.exp(w - 1), "convex", "nonneg", "general"),
    "constant to a power": (lambda: 2.0**w, "convex", "nonneg", "general"),
    "small constant to a power": (lambda: 0.5 ** cn.sqrt(p), "convex", "nonneg", "general"),
    "softplus": (lambda: cn.softplus(w), "convex", "nonneg", "general"),
    "logsumexp": (lambda: cn.logsumexp(w), "convex", "any", "general"),
    "softplus of convex": (lambda: cn.softplus(cn.sum_squares(w)), "convex", "nonneg", "general"),
    "kl": (lambda: cn.kl_div(p, q), "convex", "nonneg", "general"),
    "relative entropy": (lambda: cn.rel_entr(p, COST), "convex", "any", "general"),
    "huber": (lambda: F.huber_loss(fx, D.y, reduction="none"), "convex", "nonneg", "general"),
    "logistic loss": (lambda: bce(fx, D.y, reduction="none"), "convex", "any", "general"),
    "weighted logistic loss": (
        lambda: E((1 - D.y) * bce(fx, D.y, reduction="none")),
        "convex",
        "any",
        "general",
    ),
    "log loss": (
        lambda: F.binary_cross_entropy(u, torch.tensor([0.0, 1.0, 0.5]), reduction="none"),
        "convex",
        "nonneg",
        "general",
    ),
    "cross entropy": (lambda: E(ce(scores(D.x), D.k, reduction="none")), "convex", "nonneg", "general"),
    "convex minus concave": (lambda: cn.sum_squares(w) - cn.sum(cn.sqrt(p)), "convex", "any", "general"),
    "convex over negative": (lambda: cn.sum(cn.sqrt(p)) / -2.0, "convex", "nonpos", "general"),
    "choice of convex": (lambda: cn.where(D.y == 1, abs(fx), fx**2), "convex", "nonneg", "quadratic"),
    # concave
    "log": (lambda: torch.log(p), "concave", "any", "general"),
    "log1p": (lambda: torch.log1p(p), "concave", "nonneg", "general"),
    "sqrt": (lambda: cn.sqrt(p), "concave", "nonneg", "general"),
    "entropy": (lambda: cn.sum(cn.entr(p)), "concave", "any", "general"),
    "minimum": (lambda: cn.minimum(w, 1.0), "concave", "any", "piecewise"),
    "smallest entry": (lambda: cn.min(A @ w), "concave", "any", "piecewise"),
    "log sigmoid": (lambda: F.logsigmoid(fx), "concave", "nonpos", "general"),
    "log softmax": (lambda: torch.log_softmax(w, -1), "concave", "nonpos", "general"),
    "negative definite form": (lambda: cn.quad_form(w, NSD), "concave", "any", "quadratic"),
    "log of concave": (lambda: torch.log(cn.sum(cn.sqrt(p))), "concave", "any", "general"),
    "clamped below and above": (lambda: -cn.maximum(w, -1.0), "concave", "any", "piecewise"),
    "negated square": (lambda: -(w**2), "concave", "nonpos", "quadratic"),
    "largest eigenvalue": (lambda: cn.lambda_max(m), "convex", "any", "general"),
    "smallest eigenvalue": (lambda: cn.lambda_min(m), "concave", "any", "general"),
    "spectral norm": (lambda: cn.spectral_norm(m), "convex", "nonneg", "general"),
    "nuclear norm": (lambda: cn.nuclear_norm(m), "convex", "nonneg", "general"),
    "log det": (lambda: torch.logdet(m + m.T), "concave", "any", "general"),
    # unknown, and why
    "product": (
        lambda: w * v,
        "unknown",
        "any",
        "w · v is a product of two expressions that depend on decisions",
    ),
    "product of nonneg": (lambda: p * q, "unknown", "nonneg", "product of two expressions"),
    "inner product": (lambda: w @ v, "unknown", "any", "product of two expressions"),
    "quotient": (lambda: E(fx) / E(abs(fx)), "unknown", "any", "quotient of two expressions"),
    "over any sign": (lambda: 1 / w, "unknown", "any", "convex only where w >= 0"),
    "cube": (lambda: w**3, "unknown", "any", "convex only where w >= 0"),
    "moving exponent": (lambda: p**q, "unknown", "nonneg", "base and exponent depend on decisions"),
    "negative base": (lambda: (-2.0) ** w, "unknown", "any", "only for a positive base"),
    "sigmoid": (
        lambda: E(torch.sigmoid(fx)),
        "unknown",
        "nonneg",
        "sigmoid(f(x)[..., 0]) is neither convex nor concave",
    ),
    "tanh": (lambda: torch.tanh(w), "unknown", "any", "tanh(w) is neither convex nor concave in w"),
    "sine": (lambda: torch.sin(w), "unknown", "any", "neither convex nor concave"),
    "softmax": (lambda: torch.softmax(w, -1), "unknown", "nonneg", "neither convex nor concave"),
    "matrix exponential": (lambda: cn.trace(torch.matrix_exp(m)), "unknown", "any", "matrix_exp"),
    "nonzeros": (lambda: cn.count_nonzero(w), "unknown", "nonneg", "neither convex nor concave"),
    "rate": (lambda: P(fx > 0), "unknown", "nonneg", "depends on decisions: its rate jumps"),
    "indicator": (lambda: E(cn.indicator((fx > 0) & (D.y == 1))), "unknown", "nonneg", "its rate jumps"),
    "choice by decisions": (lambda: cn.where(fx > 0, fx, 0.0), "unknown", "any", "switches on an event"),
    "indefinite form": (
        lambda: cn.quad_form(w, INDEFINITE),
        "unknown",
        "any",
        "eigenvalues of its matrix run from -3 to 2",
    ),
    "sum of both": (
        lambda: cn.sum_squares(w) + cn.sum(cn.sqrt(p)),
        "unknown",
        "nonneg",
        "their sum is neither",
    ),
    "difference of convex": (
        lambda: cn.norm(w) - cn.norm(v),
        "unknown",
        "any",
        "their difference is neither",
    ),
    "both signs of convex": (lambda: MIXED * (w**2), "unknown", "any", "takes both signs"),
    "reweighted loss": (lambda: D.z * bce(fx, D.y, reduction="none"), "unknown", "any", "takes both signs"),
    "sqrt of convex": (
        lambda: cn.sqrt(cn.sum_squares(w)),
        "unknown",
        "nonneg",
        "sqrt is concave and increasing, but",
    ),
    "log of convex": (
        lambda: torch.log(cn.sum_squares(w)),
        "unknown",
        "any",
        "log is concave and increasing, but",
    ),
    "abs of convex": (lambda: abs(w**2 - 1), "unknown", "nonneg", "abs is convex, but its argument"),
    "soft targets outside": (
        lambda: F.binary_cross_entropy(u, torch.as_tensor(MIXED), reduction="none"),
        "unknown",
        "nonneg",
        "only for targets in [0, 1]",
    ),
    "moving targets": (lambda: bce(w, v, reduction="none"), "unknown", "any", "depend on decisions"),
    "half norm": (lambda: cn.norm(w, 0.5), "unknown", "nonneg", "its order is below 1"),
    "log det of anything": (lambda: torch.logdet(m), "unknown", "any", "not symmetric as it is written"),
    "function outside the table": (
        lambda: torch.special.i0(w),
        "unknown",
        "any",
        "not in the table of functions",
    ),
    "unknown inside": (lambda: cn.softplus(torch.tanh(w) + w), "unknown", "nonneg", "tanh(w) is neither"),
}


@pytest.mark.parametrize("label", TABLE)
def test_table(label):
    build, curvature, sign, word = TABLE[label]
    fact = analyze(build().node)
    assert (fact.curvature, fact.sign) == (curvature, sign)
    if curvature == "unknown":
        assert word in " | ".join(reason.text for reason in fact.reasons)
        assert fact.source is None
    else:
        assert fact.form == word
        assert not fact.reasons
        assert (fact.source is not None) == (curvature in ("convex", "concave"))


def test_reasons_point_at_the_line():
    product = w * v
    fact = analyze((cn.sum(product) + 1).node)
    (line,) = fact.reasons[0].lines()
    assert "test_curvature.py" in line
    assert "product = w * v" in line


def test_reasons_stay_few():
    total = cn.sum(torch.tanh(w))
    for i in range(20):
        total = total + cn.sum(torch.sin(float(i + 1) * w))
    assert len(analyze(total.node).reasons) == 4


def test_sum_of_ten_thousand_terms():
    total = w[0]
    for i in range(10_000):
        total = total + float(i) * w[i % 3]
    assert analyze(total.node).curvature == "affine"


# ------------------------------------------------------------------------------------------------ the law
def _random_point(rng):
    """Values of all variables within their declared bounds; fresh weights of the linear models."""
    point = {x.symbol: rng.normal(size=x.symbol.shape) for x in (w, v, s)}
    point |= {x.symbol: rng.uniform(0.1, 2.0, size=3) for x in (p, q)}
    point[u.symbol] = rng.uniform(0.1, 0.9, size=3)
    root = rng.normal(size=(3, 3))
    point[m.symbol] = root @ root.T + 0.1 * np.eye(3)
    weights = [
        torch.as_tensor(rng.normal(size=tuple(t.shape)))
        for model in _MODELS
        for t in model.module.parameters()
    ]
    return point, weights


_MODELS = (f, scores, deep)
PARAMETERS = {eps.symbol: 0.1, loose.symbol: -0.3}


def _value(node, point, weights):
    tensors = [t for model in _MODELS for t in model.module.parameters()]
    with torch.no_grad():
        for tensor, weight in zip(tensors, weights, strict=True):
            tensor.copy_(weight)
    return Constants({}, PARAMETERS, point).array(node)


def _mean(a, b):
    (point_a, weights_a), (point_b, weights_b) = a, b
    point = {k: (point_a[k] + point_b[k]) / 2 for k in point_a}
    return point, [(x + y) / 2 for x, y in zip(weights_a, weights_b, strict=True)]


def _moments(root):
    """The expression with its statistics in moment form, without lowering a whole problem."""
    return _Lowering(cn.find()).expression(root, "test")


@pytest.fixture(scope="module", autouse=True)
def _double_models():
    for model in _MODELS:
        model.module.double()
    yield
    for model in _MODELS:
        model.module.float()


CERTIFIED = [label for label, row in TABLE.items() if row[1] != "unknown"]


@pytest.mark.parametrize("label", CERTIFIED)
@pytest.mark.semantics("S9")
def test_certified_curvature_holds_at_midpoints(label):
    node = _moments(TABLE[label][0]().node)
    fact = analyze(node)
    assert fact.curvature == TABLE[label][1]
    rng = np.random.default_rng(1)
    for _ in range(25):
        a, b = _random_point(rng), _random_point(rng)
        value_a, value_b = _value(node, *a), _value(node, *b)
        middle, chord = _value(node, *_mean(a, b)), (value_a + value_b) / 2
        slack = 1e-6 * (1 + np.abs(chord))
        if fact.curvature in ("convex", "affine", "constant"):
            assert (middle <= chord + slack).all()
        if fact.curvature in ("concave", "affine", "constant"):
            assert (middle >= chord - slack).all()
        assert (value_a >= fact.bounds.low - 1e-9).all()
        assert (value_a <= fact.bounds.high + 1e-9).all()


UNKNOWN = [label for label, row in TABLE.items() if row[1] == "unknown"]


@pytest.mark.parametrize("label", UNKNOWN)
def test_bounds_hold_where_the_curvature_is_unknown(label):
    node = _moments(TABLE[label][0]().node)
    fact = analyze(node)
    rng = np.random.default_rng(2)
    if label == "soft targets outside":
        pytest.skip(reason="torch refuses targets outside of [0, 1]")
    for _ in range(10):
        value = _value(node, *_random_point(rng))
        assert not (value < fact.bounds.low - 1e-9).any()
        assert not (value > fact.bounds.high + 1e-9).any()


def test_every_known_node_type_is_covered():
    seen = {type(x) for row in TABLE.values() for x in n.postorder(row[0]().node)}
    expected = {n.Call, n.Weights, n.Column, n.Knob, n.Decision, n.Array, n.Constant, n.Apply, n.Opaque}
    assert expected | {n.Mean, n.Rate, n.Indicator, n.Comparison, n.Logic} == seen
