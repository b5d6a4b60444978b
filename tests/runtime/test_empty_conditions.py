"""Rates among rows that follow the decisions, P(A | B), where no row is in B: 0, and training goes on."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E, P

ROWS = 200
X = torch.sin(torch.arange(ROWS, dtype=torch.float64) * 1.7)
LABEL = (X > 0.8).double()


def classifier(shift):
    """A logistic model of which the threshold selects nobody when `shift` is small."""
    D = cn.Data("people", x=X, y=LABEL)
    slope, offset = cn.Variable((), "slope"), cn.Variable((), "offset")
    slope.value, offset.value = 0.0, shift
    score = slope * D.x + offset
    loss = E(F.binary_cross_entropy_with_logits(score, D.y, reduction="none"))
    return D, score, cn.minimize(loss)


@pytest.mark.parametrize(("shift", "precision"), [(-3.0, 0.0), (3.0, float(LABEL.mean()))])
def test_the_value(shift, precision):
    D, score, problem = classifier(shift)
    held = problem.subject_to(
        precision=P(D.y == 1, given=score > 0) >= 0.9, loss=E(D.x**2, given=score > 0) <= 5.0
    )
    found = held.evaluate()
    assert float(found["precision"].value) == pytest.approx(precision)
    if precision == 0.0:
        assert float(found["loss"].value) == 0.0
    else:
        assert float(found["loss"].value) == pytest.approx(float(X.square().mean()))


def test_the_inverse_of_a_rate_is_no_average():
    _, score, problem = classifier(-3.0)
    assert problem.subject_to(c=1 / P(score > 0) <= 4).evaluate()["c"].value == math.inf


@pytest.mark.parametrize("graph", ["off", "recorded"])
def test_training_goes_on_from_a_model_that_selects_nobody(graph):
    D, score, problem = classifier(-3.0)
    alarm = score > 0
    solution = problem.subject_to(
        precision=P(D.y == 1, given=alarm) >= 0.8, recall=P(alarm, given=D.y == 1) >= 0.8
    ).solve(epochs=100, lr=0.05, seed=0, graph=graph, progress=False)
    assert solution.status == "feasible"
    assert solution["precision"].value >= 0.8
    assert solution["recall"].value >= 0.8
    prices = solution.history.to_frame()["multiplier:precision"]
    assert prices.abs().max() < 1000
    assert math.isfinite(solution.objective)
