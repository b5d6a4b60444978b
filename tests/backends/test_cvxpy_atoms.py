"""Every atom has one cvxpy lowering or one written refusal, and each lowering equals the torch function."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import constrain as cn
from constrain import E
from constrain.backends.cvxpy.atoms import LOWERINGS
from constrain.backends.cvxpy.expressions import Lowerer
from constrain.language.atoms import ATOMS
from constrain.language.expr import apply
from constrain.lowering.lower import lower
from constrain.runtime.constants import Constants

RNG = np.random.default_rng(0)
ROWS = 12
D = cn.Data(
    "d",
    x=RNG.normal(size=(ROWS, 3)),
    pair=RNG.normal(size=(ROWS, 2, 3)),
    t=RNG.uniform(size=ROWS),
    z=2.0 * (np.arange(ROWS) % 2) - 1.0,
    k=np.arange(ROWS) % 4,
    share=RNG.dirichlet(np.ones(4), size=ROWS),
    g=np.array(["a", "b", "c"] * (ROWS // 3)),
    h=np.arange(ROWS) // 6,
)
s = cn.Variable((), "s")
w = cn.Variable(3, "w")
v = cn.Variable(3, "v")
m = cn.Variable((2, 3), "m")
q = cn.Variable((3, 3), "q")
b = cn.Variable((2, 3, 4), "b")
p = cn.Variable(3, "p", nonneg=True)
r = cn.Variable((2, 3), "r", nonneg=True)
u = cn.Variable(3, "u", bounds=(0.1, 0.9))
eps = cn.Parameter("eps", 0.3)
A = RNG.normal(size=(4, 3))
SQUARE = RNG.normal(size=(3, 3))
PSD = SQUARE @ SQUARE.T
POSITIVE = np.array([1.0, 2.0, 3.0])
TENSOR = torch.as_tensor(RNG.normal(size=(2, 3, 5)))

torch.manual_seed(0)
f = cn.Model(nn.Linear(3, 1), "f")
c = cn.Model(nn.Sequential(nn.Tanh(), nn.Linear(3, 4)), "c")
MODELS = (f, c)
fx = f(D.x)[..., 0]
rows = D.x * w  # (rows, 3), moves
part = D.x @ w  # (rows,), moves
block = D.pair * w  # (rows, 2, 3), moves
positive = D.t * p[0] + 0.1  # (rows,), moves, positive

CASES = {
    "add": [lambda: w + v, lambda: s + m, lambda: part + s, lambda: rows + 1.0, lambda: w + m],
    "sub": [lambda: w - POSITIVE, lambda: part - D.t, lambda: 1 - m],
    "neg": [lambda: -w, lambda: -rows],
    "mul": [
        lambda: POSITIVE * w,
        lambda: s * A,
        lambda: w * w,
        lambda: D.x * w,
        lambda: D.z * part,
        lambda: eps * m,
    ],
    "div": [lambda: w / POSITIVE, lambda: part / 3, lambda: POSITIVE / u, lambda: D.t / positive],
    "pow": [
        lambda: w**2,
        lambda: w**4,
        lambda: w**6,
        lambda: p**1.5,
        lambda: p**0.5,
        lambda: u**-1,
        lambda: w**1,
        lambda: 2.0**w,
        lambda: part**2,
        lambda: p**3,
        lambda: POSITIVE**w,
    ],
    "matmul": [
        lambda: A @ w,
        lambda: w @ POSITIVE,
        lambda: m @ POSITIVE,
        lambda: A @ q,
        lambda: q @ A.T,
        lambda: w @ w,
        lambda: D.x @ w,
        lambda: D.x @ q,
        lambda: D.pair @ w,
        lambda: D.pair @ q,
        lambda: rows @ POSITIVE,
        lambda: rows @ A.T,
        lambda: block @ POSITIVE,
        lambda: A @ rows,
        lambda: POSITIVE @ rows,
        lambda: rows @ D.x,
        lambda: block @ D.x,
        lambda: rows @ rows,
    ],
    "linear": [
        lambda: F.linear(w, torch.as_tensor(A)),
        lambda: F.linear(rows, torch.as_tensor(A), torch.ones(4)),
        lambda: F.linear(D.x, torch.as_tensor(SQUARE), w),
    ],
    "einsum": [
        lambda: torch.einsum("ijk,ij->k", TENSOR, m),
        lambda: torch.einsum("ij,kj->ik", torch.as_tensor(A), m),
        lambda: torch.einsum("ii->i", q),
        lambda: torch.einsum("i,i->", D.x, w),
        lambda: torch.einsum("ij,j->i", block, torch.as_tensor(POSITIVE)),
        lambda: torch.einsum("ijk,lk->jil", b, torch.ones(2, 4)),
    ],
    "abs": [lambda: abs(w), lambda: abs(part)],
    "square": [lambda: torch.square(m), lambda: torch.square(rows)],
    "exp": [lambda: torch.exp(w), lambda: torch.exp(part)],
    "expm1": [lambda: torch.expm1(w)],
    "log": [lambda: torch.log(p), lambda: torch.log(positive)],
    "log1p": [lambda: torch.log1p(p)],
    "sqrt": [lambda: cn.sqrt(p), lambda: cn.sqrt(positive)],
    "reciprocal": [lambda: torch.reciprocal(u)],
    "entr": [lambda: cn.entr(p), lambda: cn.entr(r)],
    "relu": [lambda: torch.relu(w), lambda: torch.relu(1 - D.z * part)],
    "softplus": [lambda: cn.softplus(w), lambda: cn.softplus(part)],
    "logsigmoid": [lambda: F.logsigmoid(w), lambda: F.logsigmoid(rows)],
    "maximum": [lambda: cn.maximum(w, v), lambda: cn.maximum(m, 0.2), lambda: cn.maximum(part, D.t)],
    "minimum": [lambda: cn.minimum(w, 0.2), lambda: cn.minimum(rows, s)],
    "kl_div": [lambda: cn.kl_div(p, u), lambda: cn.kl_div(p, POSITIVE)],
    "rel_entr": [
        lambda: cn.rel_entr(p, u),
        lambda: cn.rel_entr(r, POSITIVE),
        lambda: cn.rel_entr(D.t, positive),
    ],
    "huber": [
        lambda: F.huber_loss(3 * w, torch.zeros(3), reduction="none", delta=0.7),
        lambda: F.huber_loss(3 * part, D.t, reduction="none"),
    ],
    "binary_cross_entropy_with_logits": [
        lambda: F.binary_cross_entropy_with_logits(part, D.t, reduction="none"),
        lambda: F.binary_cross_entropy_with_logits(fx, D.t, reduction="none"),
    ],
    "binary_cross_entropy": [
        lambda: F.binary_cross_entropy(u, torch.tensor([0.0, 1.0, 0.4]), reduction="none"),
        lambda: F.binary_cross_entropy(0.5 * u + 0.01 * D.x, D.share[..., :3], reduction="none"),
    ],
    "cross_entropy": [
        lambda: F.cross_entropy(c(D.x), D.k, reduction="none"),
        lambda: F.cross_entropy(c(D.x), D.share, reduction="none"),
    ],
    "mse_loss": [lambda: F.mse_loss(part, D.t, reduction="none")],
    "l1_loss": [lambda: F.l1_loss(part, D.t, reduction="none")],
    "sum": [
        lambda: cn.sum(s),
        lambda: cn.sum(m),
        lambda: cn.sum(m, axis=0),
        lambda: cn.sum(b, axis=(0, 2)),
        lambda: cn.sum(b, axis=1, keepdims=True),
        lambda: cn.sum(rows, axis=-1),
        lambda: cn.sum(block),
        lambda: cn.sum(block, axis=0),
        lambda: cn.sum(block, keepdims=True),
        lambda: cn.sum(part),
    ],
    "mean": [
        lambda: cn.mean(m),
        lambda: cn.mean(m, axis=1),
        lambda: cn.mean(b, axis=(0, 1)),
        lambda: cn.mean(rows),
    ],
    "max": [
        lambda: cn.max(w),
        lambda: cn.max(m, axis=0),
        lambda: cn.max(rows),
        lambda: cn.max(b, axis=(0, 2)),
    ],
    "min": [lambda: cn.min(m), lambda: cn.min(block, axis=-1)],
    "logsumexp": [
        lambda: cn.logsumexp(w),
        lambda: cn.logsumexp(m, axis=1),
        lambda: cn.logsumexp(rows),
        lambda: cn.logsumexp(b, axis=(0, 2), keepdims=True),
    ],
    "norm": [
        lambda: cn.norm(w),
        lambda: cn.norm(m),
        lambda: cn.norm(m, 1, axis=0),
        lambda: cn.norm(m, axis=1),
        lambda: cn.norm(m, math.inf, axis=1),
        lambda: cn.norm(w, 3),
        lambda: cn.norm(m, 3, axis=1),
        lambda: cn.norm(rows),
        lambda: cn.norm(block),
        lambda: cn.norm(block, math.inf, axis=0),
    ],
    "sum_squares": [
        lambda: cn.sum_squares(w),
        lambda: cn.sum_squares(m, axis=0),
        lambda: cn.sum_squares(rows),
        lambda: cn.sum_squares(f),
        lambda: cn.sum_squares(part),
    ],
    "log_softmax": [
        lambda: torch.log_softmax(w, -1),
        lambda: torch.log_softmax(m, -2),
        lambda: F.log_softmax(c(D.x), -1),
    ],
    "index": [
        lambda: w[0],
        lambda: w[-1],
        lambda: w[1:],
        lambda: m[:, 1],
        lambda: m[..., [0, 2]],
        lambda: w[None, :],
        lambda: w[:, None],
        lambda: rows[1],
        lambda: rows[..., None],
        lambda: block[1, ::2],
        lambda: s[None],
        lambda: part[..., None],
        lambda: b[1, ..., 0],
        lambda: w[[2, 2, 0]],
    ],
    "reshape": [
        lambda: m.reshape(3, 2),
        lambda: m.reshape(-1),
        lambda: rows.reshape(3, 1),
        lambda: part.reshape(1),
    ],
    "transpose": [lambda: m.T, lambda: w.T, lambda: block.T, lambda: b.T],
    "stack": [
        lambda: cn.stack(w, v, POSITIVE),
        lambda: cn.stack(s, 1.0),
        lambda: cn.stack(part, D.t, 2.0),
        lambda: cn.stack(rows, w),
    ],
    "where": [lambda: cn.where(D.z > 0, part, D.t), lambda: cn.where(D.g == "a", part, 2 * part)],
    "quad_form": [
        lambda: cn.quad_form(w, PSD),
        lambda: cn.quad_form(w - 1, -PSD),
        lambda: cn.quad_form(rows, PSD),
        lambda: cn.quad_form(POSITIVE, q),
    ],
    "trace": [lambda: cn.trace(q), lambda: cn.trace(SQUARE @ q)],
    "logdet": [lambda: torch.logdet(q + q.T)],
    "symmetric_part": [lambda: apply("symmetric_part", q)],
    "lambda_max": [
        lambda: cn.lambda_max(D.z[..., None, None] * q)
    ],  # of one matrix: tests/backends/test_matrices.py
    "lambda_min": [lambda: cn.lambda_min(D.z[..., None, None] * q)],
    "spectral_norm": [lambda: cn.spectral_norm(m), lambda: cn.spectral_norm(A @ m.T)],
    "nuclear_norm": [lambda: cn.nuclear_norm(m), lambda: cn.nuclear_norm(q)],
    "max_levels": [lambda: cn.max(E(part, by=D.g))],
    "min_levels": [lambda: cn.min(E(part, by=D.g))],
    "sum_levels": [lambda: cn.sum(E(rows, by=D.g))],
    "mean_levels": [lambda: cn.mean(E(part, by=D.g))],
    "pick_levels": [lambda: E(part, given=D.g == "c") - 2 * E(part, given=D.g == "a")],
    "logsumexp_levels": [lambda: cn.logsumexp(E(part, by=D.g)), lambda: cn.logsumexp(E(rows, by=D.g))],
    "norm_levels": [
        lambda: cn.norm(E(part, by=D.g)),
        lambda: cn.norm(E(rows, by=D.g), 1),
        lambda: cn.norm(E(rows, by=D.g), math.inf),
        lambda: cn.norm(E(rows, by=D.g)),
    ],
    "sum_squares_levels": [
        lambda: cn.sum_squares(E(part, by=D.g)),
        lambda: cn.sum_squares(E(rows, by=D.g)),
    ],
    "take": [lambda: cn.CVaR(part, 0.8, by=D.g), lambda: cn.CVaR(rows, 0.8, by=(D.g, D.h))],
    "variance": [
        lambda: cn.Var(part),
        lambda: cn.Var(fx - D.t, given=D.t > 0.3),
        lambda: cn.Var(rows, by=D.g),
        lambda: cn.Var(block, given=D.t > 0.05, by=D.h),
    ],
    "deviation": [lambda: cn.sqrt(cn.Var(part)), lambda: cn.Var(rows, by=D.g) ** 0.5],
    "kl_logits": [
        lambda: cn.kl(D.share, c(D.x)),
        lambda: cn.kl(POSITIVE, w),
        lambda: cn.kl(D.x, w * 1.0),
        lambda: cn.kl(POSITIVE, rows),
    ],
}


def point_of(rng):
    point = {x.symbol: rng.normal(size=x.symbol.shape) for x in (s, w, v, m, b)}
    point |= {x.symbol: rng.uniform(0.1, 2.0, size=x.symbol.shape) for x in (p, r)}
    point[u.symbol] = rng.uniform(0.15, 0.85, size=3)
    root = rng.normal(size=(3, 3))
    point[q.symbol] = root @ root.T + 0.5 * np.eye(3)
    return point


def _both(expression, point):
    """Value of the cvxpy expression and value by torch, at the same point."""
    total = cn.sum(expression) if expression.type.levels is None else cn.sum(cn.sum(expression))
    program = lower(cn.minimize(E(total) if expression.type.random else total))
    lowerer = Lowerer(program, {}, {eps.symbol: 0.3}, symbolic=False)
    hidden = {x: np.linspace(-1.0, 1.0, math.prod(x.shape)).reshape(x.shape) for x in program.auxiliary}
    point = point | hidden
    for symbol, variable in lowerer.variables.items():
        variable.value = point[symbol]
    for model, weights in lowerer.weights.items():
        for name, variable in weights.items():
            variable.value = dict(model.module.named_parameters())[name].detach().double().numpy()
    node = program.moments[0].integrand.args[0] if expression.type.random else program.objective.args[0]
    by_torch = Constants({}, {eps.symbol: 0.3}, point).array(node)
    return np.asarray(lowerer.expression(node).value), by_torch


def test_each_atom_has_one_lowering_or_one_refusal():
    refused = {name for name, atom in ATOMS.items() if "cvxpy" in atom.refusals}
    assert set(LOWERINGS) | refused == {name for name, atom in ATOMS.items() if atom.declared is None}
    assert not set(LOWERINGS) & refused
    assert set(CASES) == set(LOWERINGS)


@pytest.mark.parametrize(
    ("atom", "place"), [(atom, i) for atom, cases in CASES.items() for i in range(len(cases))]
)
def test_lowering_equals_torch(atom, place):
    by_cvxpy, by_torch = _both(CASES[atom][place](), point_of(np.random.default_rng(place)))
    assert by_cvxpy.shape == by_torch.shape
    np.testing.assert_allclose(by_cvxpy, by_torch, rtol=1e-6, atol=1e-7)


# ----------------------------------------------------------------------------------------------- averages
bce = F.binary_cross_entropy_with_logits
AVERAGES = {
    "column": lambda **k: E(D.t, **k) + s,
    "model": lambda **k: E(fx, **k),
    "model of several outputs": lambda **k: E(c(D.x), **k),
    "entry of a model": lambda **k: E(c(D.x)[..., 2], **k),
    "sum of terms": lambda **k: E(fx - 2 * part + D.t - s, **k),
    "weighted": lambda **k: E(D.z * fx / 3, **k),
    "weighted by a parameter": lambda **k: E(eps * fx, **k),
    "data times variable": lambda **k: E(D.x * w, **k),
    "data at variable": lambda **k: E(D.x @ w, **k),
    "data at matrix": lambda **k: E(D.x @ q, **k),
    "matrix at rows": lambda **k: E(A @ (D.x * w), **k),
    "stacked data at variable": lambda **k: E(D.pair @ w, **k),
    "sum within a row": lambda **k: E(cn.sum(D.x * w, axis=-1), **k),
    "reshaped": lambda **k: E((D.pair * w).reshape(6)[1:3], **k),
    "variable factor": lambda **k: E(w * D.x, **k),
    "scalar variable": lambda **k: E(s * D.t, **k),
    "logistic loss": lambda **k: E(bce(fx, D.t, reduction="none"), **k),
    "weighted logistic loss": lambda **k: E(D.t * bce(fx, D.t, reduction="none"), **k),
    "cross entropy": lambda **k: E(F.cross_entropy(c(D.x), D.k, reduction="none"), **k),
    "squares": lambda **k: E((fx - D.t) ** 2, **k),
    "chosen by data": lambda **k: E(cn.where(D.g == "b", fx, abs(part)), **k),
    "both rows": lambda **k: E(rows @ D.x, **k),
    "norm of rows": lambda **k: E(cn.norm(rows), **k),
    "curved vector": lambda **k: E(abs(rows), **k),
}
CONDITIONS = {
    "all": {},
    "given": {"given": D.t > 0.3},
    "by": {"by": D.g},
    "by numbers": {"by": D.h},
    "by two": {"by": (D.g, D.h)},
    "given and by": {"given": (D.t > 0.05) & ~(D.k == 3), "by": D.g},
}


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("label", AVERAGES)
def test_average_equals_torch(label, condition):
    expression = AVERAGES[label](**CONDITIONS[condition])
    by_cvxpy, by_torch = _both(expression, point_of(np.random.default_rng(3)))
    assert by_cvxpy.shape == by_torch.shape
    np.testing.assert_allclose(by_cvxpy, by_torch, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "label", ["model", "weighted", "data at variable", "stacked data at variable", "sum of terms"]
)
def test_affine_averages_hold_no_rows(label):
    program = lower(cn.minimize(cn.sum(AVERAGES[label]())))
    expression = Lowerer(program, {}, {}, symbolic=False).expression(program.objective)
    assert max((constant.size for constant in expression.constants()), default=0) < ROWS


def test_refused_atom_names_its_reason():
    program = lower(cn.minimize(cn.sum(torch.sin(w))))
    with pytest.raises(cn.RouteError, match="sin has no disciplined convex form"):
        Lowerer(program, {}, {}, symbolic=False).expression(program.objective)


@pytest.mark.parametrize("exponent", [4, 6, 10, 12])
def test_even_powers_take_negative_numbers(exponent):
    """The cones of cvxpy's sixth and tenth power hold the base nonnegative: -1 would be infeasible."""
    x = cn.Variable(2, "x")
    found = cn.minimize(cn.sum(x**exponent)).subject_to(low=cn.sum(x) <= -2).solve("cvxpy", progress=False)
    assert found.status.value == "optimal"
    assert found.objective == pytest.approx(2, rel=1e-6)
    np.testing.assert_allclose(found.variables["x"], -1, rtol=1e-3)


@pytest.mark.parametrize(("labels", "told"), [(D.k - 1, "go down to -1"), (D.k + 1, "go up to 4")])
def test_labels_that_are_no_position_of_a_score(labels, told):
    problem = cn.minimize(cn.E(F.cross_entropy(D.x @ cn.Variable((3, 4), "W"), labels, reduction="none")))
    with pytest.raises(cn.ModelingError, match=rf"E112.*{told}"):
        problem.to_cvxpy()
