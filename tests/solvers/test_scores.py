"""Second derivatives through affine scores against those of automatic differentiation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E
from constrain.driver.setup import lowered, prepare
from constrain.runtime.derivatives import hessian, linearize
from constrain.solvers import scores
from constrain.solvers.scores import scores_of


def sample(rows=80):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3))
    y = (x[:, 0] + rng.normal(size=rows) > 0).astype(float)
    return cn.Data(
        "sample", x=torch.tensor(x), y=torch.tensor(y), g=["a" if i % 3 else "b" for i in range(rows)]
    )


def problems():
    D, w, b = sample(), cn.Variable(3, "w"), cn.Variable((), "b")
    f = cn.Model(torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0)).double(), "f")
    both = cn.Model(torch.nn.Linear(3, 2).double(), "both")
    w.value, b.value = np.array([0.3, -0.2, 0.5]), 0.1
    score, fitted = D.x @ w + b, f(D.x) + b
    bce = F.binary_cross_entropy_with_logits(fitted, D.y, reduction="none")
    return {
        "logistic": cn.minimize(E(bce) + 0.1 * cn.sum_squares(f)).subject_to(
            gap=abs(E(fitted, given=D.g == "a") - E(fitted)) <= 0.1
        ),
        "groups": cn.minimize(E(torch.exp(-score))).subject_to(level=E(score**2, by=D.g) <= 2),
        "two scores": cn.minimize(E(torch.exp(-score) * torch.sigmoid(D.x[0] * w[1] - b))),
        "factors": cn.minimize(b**2 * E(torch.exp(-score)) + E(score**2)),
        "rows": cn.minimize(E(score**2)).subject_to(each=cn.forall(D, torch.exp(score) <= 9)),
        "scaled": cn.minimize(E(torch.exp(2 * f(D.x) - D.x[1] + 1))),
        "layer called twice": cn.minimize(E((f(D.x) - f(2 * D.x) - D.y) ** 2)),
        "layer with two outputs": cn.minimize(E(torch.exp(both(D.x)[0] - 2 * both(D.x)[1]))),
    }


def test_the_analysis_tells_which_problems_are_convex(monkeypatch):
    monkeypatch.setattr(scores, "_LEAST", 0)
    found = {name: scores_of(prepared(problem), lambda: None).convex for name, problem in problems().items()}
    assert [name for name, convex in found.items() if not convex] == ["two scores", "factors"]


def prepared(problem):
    return prepare(lowered(problem), device=torch.device("cpu"), dtype=torch.float64).evaluator


@pytest.mark.parametrize("name", problems())
def test_the_hessian_is_that_of_automatic_differentiation(name, monkeypatch):
    monkeypatch.setattr(scores, "_LEAST", 0)
    evaluator = prepared(problems()[name])
    found = scores_of(evaluator, lambda: None)
    assert found is not None
    generator = torch.Generator().manual_seed(0)
    full = evaluator.full("primal").residuals
    weights = [None if r is None else torch.rand(r.shape, generator=generator, dtype=r.dtype) for r in full]

    def function(outer):
        pairs = zip(outer.residuals, weights, strict=True)
        return outer.objective + sum(((r * w).sum() for r, w in pairs if r is not None), start=0.0)

    def term(_i, residual, _index):
        return (residual * torch.linspace(0, 1, len(residual), dtype=residual.dtype)).sum()

    for _ in range(2):  # at two points
        expected = hessian(evaluator, function, term)
        torch.testing.assert_close(found.hessian(function, term, lambda: None), expected)
        plain, own = linearize(evaluator), found.linearize()
        for part in ("objective", "gradient", "residuals", "jacobian"):
            torch.testing.assert_close(getattr(own, part), getattr(plain, part))
        evaluator.decisions.set(evaluator.decisions.get() + 0.3)


def test_terms_that_see_the_decisions_otherwise_have_no_scores(monkeypatch):
    monkeypatch.setattr(scores, "_LEAST", 0)
    D, w, b = sample(), cn.Variable(3, "w"), cn.Variable((), "b")
    score = D.x @ w
    others = [
        cn.minimize(E((b * score) ** 2)),  # a product of decisions in every row
        cn.minimize(E(score**2) ** 2),  # not affine in the average
        cn.minimize(cn.sum_squares(w)),  # no rows
    ]
    assert [scores_of(prepared(problem), lambda: None) for problem in others] == [None] * 3


def test_a_large_logistic_regression_takes_the_same_steps(monkeypatch):
    def solved():
        D, w = sample(3000), cn.Variable(3, "w")
        bce = F.binary_cross_entropy_with_logits(D.x @ w, D.y, reduction="none")
        problem = cn.minimize(E(bce)).subject_to(gap=E(D.x @ w, given=D.g == "a") >= 0.1)
        return problem.solve("newton", progress=False)

    plain = solved()
    monkeypatch.setattr(scores, "_LEAST", 0)
    found = solved()
    assert len(found.history) == len(plain.history)
    assert found.objective == pytest.approx(plain.objective, abs=1e-12)
