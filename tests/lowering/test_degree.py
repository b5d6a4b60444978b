"""The degree of terms in the averages, against the third and second differences along a line of averages."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E, P
from constrain.lowering.degree import degree
from constrain.lowering.lower import lower
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator

RNG = np.random.default_rng(5)
D = cn.Data("d", x=RNG.normal(size=(30, 3)), y=RNG.random(30), g=["a", "b", "c"] * 10)
w = cn.Variable(3, "w")
w.value = np.array([0.5, -1.0, 2.0])
A = torch.tensor(RNG.normal(size=(3, 3)))
e = D.x @ w
m, v, by = E(e), E(D.x * w), E(e, by=D.g)

TABLE = {
    "no average": (lambda: cn.sum_squares(w), 0),
    "average": (lambda: m, 1),
    "rate": (lambda: P(e > 0), 1),
    "conditional": (lambda: E(e, given=D.y > 0.5) - 0.3, 1),
    "affine": (lambda: 3 * m - E(D.y * e) / w[0] + w[1], 1),
    "times a decision": (lambda: m * w[0], 1),
    "entries": (lambda: cn.sum(v[[0, 2]]) + cn.mean(A @ v) + v.reshape(3, 1)[1, 0], 1),
    "levels": (lambda: cn.sum(by) - cn.mean(by - m), 1),
    "stack": (lambda: cn.sum(cn.stack(m, E(D.y * e))), 1),
    "tail": (lambda: cn.CVaR(e, 0.8), 1),
    "tail by level": (lambda: cn.sum(cn.CVaR(e, 0.8, by=D.g)), 1),
    "quantile": (lambda: cn.Quantile(e, 0.3), 1),
    "covariance with data": (lambda: cn.Cov(e, D.y), 1),
    "first power": (lambda: m**1, 1),
    "product": (lambda: m * E(D.y * e), 2),
    "square": (lambda: cn.square(m) + m, 2),
    "second power": (lambda: (m - 1) ** 2, 2),
    "product of vectors": (lambda: v @ v, 2),
    "sum of squares": (lambda: cn.sum_squares(v), 2),
    "squares of levels": (lambda: cn.sum_squares(by - m), 2),
    "quadratic form": (lambda: cn.quad_form(v, A.numpy()), 2),
    "einsum": (lambda: torch.einsum("i,ij,j->", v, A, v), 2),
    "squared loss": (lambda: cn.sum(F.mse_loss(v, torch.ones(3), reduction="none")), 2),
    "variance": (lambda: cn.Var(e), 2),
    "variances by level": (lambda: cn.max(cn.Var(e, by=D.g) * 0) + cn.sum(cn.Var(e, by=D.g)), None),
    "sum of variances": (lambda: cn.sum(cn.Var(e, by=D.g)), 2),
    "covariance": (lambda: cn.Cov(e, e**2), 2),
    "quotient": (lambda: m / E(e**2), None),
    "cube": (lambda: m**3, None),
    "product of three": (lambda: m * m * m, None),
    "square of a square": (lambda: cn.square(cn.square(m)), None),
    "square of a product": (lambda: (m * E(D.y * e)) ** 2, None),
    "absolute value": (lambda: abs(m), None),
    "norm": (lambda: cn.norm(v), None),
    "worst level": (lambda: cn.min(by), None),
    "deviation": (lambda: cn.sqrt(cn.Var(e)), None),
    "correlation": (lambda: cn.Corr(e, D.y), None),
    "exponential": (lambda: cn.exp(m), None),
    "condition on decisions": (lambda: E(D.y, given=e > 0), None),
    "unknown function": (lambda: torch.erfinv(m / 100), None),
}


def term(make):
    return lower(cn.minimize(make()), use_epigraph=False)


@pytest.mark.parametrize("name", TABLE)
def test_degree(name):
    make, expected = TABLE[name]
    assert degree(term(make).objective) == expected


@pytest.mark.parametrize("name", [name for name, (_, found) in TABLE.items() if found is not None])
def test_a_polynomial_of_that_degree(name):
    """Differences of one order more vanish along a line of averages, and those of that order do not."""
    make, expected = TABLE[name]
    program = term(make)
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    evaluator = Evaluator(program, decisions, dtype=torch.float64)
    start = evaluator.moments("exact")
    generator = torch.Generator().manual_seed(0)
    step = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in start]

    def at(t):
        moved = [x + t * s for x, s in zip(start, step, strict=True)]
        return float(evaluator.outer(moved, "exact").objective.detach())

    values = np.array([at(t) for t in range(5)])
    scale = np.abs(values).max() + 1
    assert np.abs(np.diff(values, n=expected + 1)).max() <= 1e-9 * scale
    assert expected == 0 or np.abs(np.diff(values, n=expected)).max() > 1e-3
