"""Entropies and divergences: values and gradients of torch.distributions, stability, curvature, refusals."""

import math

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E
from constrain.analysis.curvature import analyze
from constrain.lowering.lower import lower
from constrain.runtime import rowwise
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator

torch_kl = torch.distributions.kl_divergence
d = cn.distributions
td = torch.distributions
GENERATOR = torch.Generator().manual_seed(4)
ROWS = 12
THIRD = torch.tensor(0.3, dtype=torch.float64)


def uniform(*shape):
    return torch.rand(shape, generator=GENERATOR, dtype=torch.float64)


def simplex(*shape):
    return torch.softmax(3 * uniform(*shape), -1)


A, B = 4 * uniform(ROWS, 4) - 2, 4 * uniform(ROWS, 4) - 2
P, Q = simplex(ROWS, 4), simplex(ROWS, 4)
S, R = 0.1 + uniform(ROWS), 0.1 + 0.8 * uniform(ROWS)
D = cn.Data("d", a=A, b=B, p=P, q=Q, s=S, r=R)
scale = cn.Variable((), "scale")

# expression of the columns, torch's own distributions (one for entropies), the column that moves
CASES = {
    "entropy of logits": (lambda a: cn.entropy(logits=a), lambda a: td.Categorical(logits=a).entropy(), "a"),
    "entropy of probabilities": (
        lambda p: cn.entropy(probs=p), lambda p: -(p * p.log()).sum(-1), "p"),
    "entropy of a categorical": (
        lambda a: cn.entropy(d.Categorical(logits=a)), lambda a: td.Categorical(logits=a).entropy(), "a"),
    "entropy of a normal": (
        lambda s: cn.entropy(d.Normal(0.3, s)), lambda s: td.Normal(0.3, s).entropy(), "s"),
    "entropy of a Bernoulli": (
        lambda r: cn.entropy(d.Bernoulli(r)), lambda r: td.Bernoulli(r).entropy(), "r"),
    "entropy of a Bernoulli by logits": (
        lambda s: cn.entropy(d.Bernoulli(logits=s)), lambda s: td.Bernoulli(logits=s).entropy(), "s"),
    "kl of logits": (
        lambda a: cn.kl(a, D.b), lambda a: torch_kl(td.Categorical(logits=a), td.Categorical(logits=B)), "a"),
    "kl of logits, second": (
        lambda b: cn.kl(D.a, b), lambda b: torch_kl(td.Categorical(logits=A), td.Categorical(logits=b)), "b"),
    "kl of probabilities": (
        lambda p: cn.kl(p, D.q, probs=True), lambda p: (p * (p / Q).log()).sum(-1), "p"),
    "kl of logits and probabilities": (
        lambda a: cn.kl(d.Categorical(logits=a), d.Categorical(D.q)),
        lambda a: torch_kl(td.Categorical(logits=a), td.Categorical(logits=Q.log())), "a"),
    "kl of probabilities and logits": (
        lambda b: cn.kl(d.Categorical(D.p), d.Categorical(logits=b)),
        lambda b: torch_kl(td.Categorical(logits=P.log()), td.Categorical(logits=b)), "b"),
    "kl of normals": (
        lambda s: cn.kl(d.Normal(D.r, s), d.Normal(D.s, 0.7)),
        lambda s: torch_kl(td.Normal(R, s), td.Normal(S, 0.7)), "s"),
    "kl of normals, second": (
        lambda s: cn.kl(d.Normal(D.r, 0.7), d.Normal(s, s)),
        lambda s: torch_kl(td.Normal(R, 0.7), td.Normal(s, s)), "s"),
    "kl of a normal and torch's": (
        lambda s: cn.kl(d.Normal(s, 0.5), td.Normal(0.0, 1.0)),
        lambda s: torch_kl(td.Normal(s, 0.5), td.Normal(0.0, 1.0)), "s"),
    "kl of Bernoullis": (
        lambda r: cn.kl(d.Bernoulli(r), d.Bernoulli(0.3)),
        lambda r: torch_kl(td.Bernoulli(r), td.Bernoulli(THIRD)), "r"),
    "kl of Bernoullis by logits": (
        lambda s: cn.kl(d.Bernoulli(logits=s), d.Bernoulli(logits=D.r)),
        lambda s: torch_kl(td.Bernoulli(logits=s), td.Bernoulli(logits=R)), "s"),
    "kl of a Bernoulli and logits": (
        lambda r: cn.kl(d.Bernoulli(r), d.Bernoulli(logits=D.s)),
        lambda r: torch_kl(td.Bernoulli(r), td.Bernoulli(logits=S)), "r"),
    "kl of logits and a Bernoulli": (
        lambda s: cn.kl(d.Bernoulli(logits=s), td.Bernoulli(THIRD)),
        lambda s: torch_kl(td.Bernoulli(logits=s), td.Bernoulli(THIRD)), "s"),
    "kl of torch's categorical": (
        lambda b: cn.kl(td.Categorical(logits=torch.zeros(4, dtype=torch.float64)), d.Categorical(logits=b)),
        lambda b: torch_kl(td.Categorical(logits=torch.zeros(ROWS, 4, dtype=torch.float64)),
                           td.Categorical(logits=b)), "b"),
}  # fmt: skip
COLUMNS = {"a": A, "b": B, "p": P, "q": Q, "s": S, "r": R}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
    """E of the expression and its derivative in a factor of the moving column, against torch's own."""
    make, by_torch, column = CASES[name]
    scale.value = 1.1 if column not in ("p", "r") else 0.9
    program = lower(cn.minimize(E(make(D[column] * scale))))
    evaluator = Evaluator(
        program, Decisions(program, torch.device("cpu"), torch.float64), dtype=torch.float64
    )
    ((value, (slope,)),) = evaluator.pull([lambda outer: outer.objective])
    factor = torch.tensor(scale.value, dtype=torch.float64, requires_grad=True)
    expected = by_torch(COLUMNS[column] * factor).mean()
    (gradient,) = torch.autograd.grad(expected, factor)
    assert value == pytest.approx(float(expected.detach()), rel=1e-10)
    assert float(slope) == pytest.approx(float(gradient), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_source_evaluates_back(name):
    make, _, column = CASES[name]
    problem = cn.minimize(E(make(D[column] * scale)))
    assert eval(repr(problem), problem.symbols()) == problem


def test_the_shape_is_that_of_one_row():
    assert cn.entropy(logits=D.a).shape == ()
    assert cn.kl(D.a, D.b).shape == ()
    assert cn.kl(D.p, D.q, probs=True).shape == ()
    assert cn.kl(d.Normal(D.a, 1.0), d.Normal(D.b, 1.0)).shape == (4,)
    assert str(cn.kl(D.a, D.b)) == "kl(a, b)"
    assert str(cn.entropy(logits=D.a)) == "entropy(a)"


def value(expression):
    program = lower(cn.find().subject_to(c=expression + 0 * scale <= 1e9))
    evaluator = Evaluator(
        program, Decisions(program, torch.device("cpu"), torch.float64), dtype=torch.float64
    )
    return float(evaluator.sides()[0][0])


def test_large_logits_and_impossible_classes():
    wide = torch.tensor([[1e4, 0.0, -1e4], [800.0, 801.0, -800.0]], dtype=torch.float64)
    masked = torch.tensor([[0.0, 0.0, -math.inf]], dtype=torch.float64)
    T = cn.Data("t", wide=wide, mask=masked.expand(2, 3), plain=torch.zeros(2, 3, dtype=torch.float64))
    one = 1 / (1 + math.e)
    binary = -(one * math.log(one) + (1 - one) * math.log(1 - one))
    assert value(E(cn.entropy(logits=T.wide))) == pytest.approx(binary / 2)
    constant = cn.entropy(logits=cn.constant(masked[0]))
    assert value(constant) == pytest.approx(math.log(2))
    divergence = cn.kl(cn.constant(masked[0]), cn.constant(torch.zeros(3, dtype=torch.float64)))
    assert value(divergence) == pytest.approx(math.log(1.5))
    assert value(cn.kl(cn.constant(torch.zeros(3, dtype=torch.float64)), cn.constant(masked[0]))) == math.inf
    logits = masked.clone().requires_grad_(True)
    rowwise.entropy_logits(logits, lead=(1,)).sum().backward()
    assert torch.isfinite(logits.grad).all()
    logits = masked.clone().requires_grad_(True)
    rowwise.kl_logits(logits, torch.zeros(1, 3, dtype=torch.float64), lead=(1, 1)).sum().backward()
    assert torch.isfinite(logits.grad).all()


f = cn.Model(torch.nn.Linear(4, 4).double(), "f")
ref = cn.Model(torch.nn.Linear(4, 4).double(), "ref", frozen=True)
u = cn.Variable(4, "u", nonneg=True)
mu = cn.Variable((), "mu")
sigma = cn.Variable((), "sigma", bounds=(0.1, 5.0))
CURVATURE = {
    "entropy of probabilities": (lambda: cn.entropy(probs=u), "concave"),
    "entropy of logits": (lambda: cn.entropy(logits=f(D.a)), "unknown"),
    "kl from a fixed policy": (lambda: cn.kl(ref(D.a), f(D.a)), "convex"),
    "kl to a fixed policy": (lambda: cn.kl(f(D.a), ref(D.a)), "unknown"),
    "kl of probabilities": (lambda: cn.kl(u, u[[1, 0, 3, 2]], probs=True), "convex"),
    "kl of a mean": (lambda: cn.kl(d.Normal(mu, 0.5), td.Normal(0.0, 1.0)), "convex"),
    "kl of a deviation": (lambda: cn.kl(d.Normal(0.0, sigma), td.Normal(0.0, 1.0)), "convex"),
    "kl to a normal": (lambda: cn.kl(td.Normal(0.0, 1.0), d.Normal(0.0, sigma)), "unknown"),
    "kl to Bernoulli logits": (lambda: cn.kl(d.Bernoulli(0.3), d.Bernoulli(logits=mu)), "convex"),
    "entropy of a normal": (lambda: cn.entropy(d.Normal(0.0, sigma)), "concave"),
}


@pytest.mark.parametrize("name", CURVATURE)
def test_curvature(name):
    make, expected = CURVATURE[name]
    assert analyze(make().node).curvature == expected


def test_a_policy_near_a_reference_is_convex_and_solved():
    """Nearest to a target within a ball about the uniform distribution: a mixture of both, and its price."""
    target = torch.softmax(torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64), -1)
    logits = cn.Variable(3, "logits")

    def problem(radius):
        return cn.minimize(cn.kl(target.log(), logits)).subject_to(
            near=cn.kl(cn.constant(np.zeros(3)), logits) <= radius, center=cn.sum(logits) == 0
        )

    solution = problem(0.02).solve(progress=False)
    assert solution.status is cn.Status.OPTIMAL
    q = torch.softmax(torch.as_tensor(solution.variables["logits"]), -1)
    # stationarity: q is the mixture of target and uniform with weights 1 and the multiplier
    lam = solution["near"].multiplier
    np.testing.assert_allclose(q, (target + lam / 3) / (1 + lam), atol=1e-5)
    h = 1e-4
    values = [problem(0.02 + step).solve(progress=False).objective for step in (-h, h)]
    assert solution["near"].shadow_price == pytest.approx((values[1] - values[0]) / (2 * h), rel=1e-3)


def test_expressions_have_no_attributes_of_tensors():
    e = f(D.a)
    assert not hasattr(e, "dtype")
    for name in ("dtype", "device", "size", "dim"):
        with pytest.raises(cn.ModelingError, match="E154"):
            getattr(e, name)
