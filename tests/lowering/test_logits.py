"""W219: probabilities that a loss takes for scores."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import constrain as cn
from constrain import E

D = cn.Data("D", x=torch.linspace(-1, 1, 40).reshape(20, 2), y=torch.arange(20) % 2)


def model(outputs, *last):
    return cn.Model(nn.Sequential(nn.Linear(2, outputs), *last), "f")(D.x)


def binary(score):
    return F.binary_cross_entropy_with_logits(score, D.y, reduction="none")


def classes(scores):
    return F.cross_entropy(scores, D.y, reduction="none")


TWICE = {
    "sigmoid": lambda: binary(torch.sigmoid(model(1)[..., 0])),
    "sigmoid before the shape": lambda: binary(torch.sigmoid(model(1)).squeeze(-1)),
    "a last layer": lambda: binary(model(1, nn.Sigmoid(), nn.Flatten(0))),
    "softmax": lambda: classes(torch.softmax(model(2), -1)),
    "a last softmax": lambda: classes(model(2, nn.Softmax(-1))),
}
ONCE = {
    "score": lambda: binary(model(1)[..., 0]),
    "probability": lambda: F.binary_cross_entropy(torch.sigmoid(model(1)[..., 0]), D.y, reduction="none"),
    "log-probabilities": lambda: classes(torch.log_softmax(model(2), -1)),
    "scores": lambda: classes(model(2)),
    "squashed": lambda: binary(3 * torch.tanh(model(1)[..., 0])),
}


@pytest.mark.parametrize("case", TWICE)
def test_what_is_applied_twice_is_warned_of_once(case):
    problem = cn.minimize(E(TWICE[case]()))
    with pytest.warns(cn.ModelingWarning, match=r"W219.*is given probabilities") as told:
        problem.solve(epochs=1, progress=False)
    assert len(told) == 1
    with pytest.warns(cn.ModelingWarning, match=r"W219"):
        problem.compile()


@pytest.mark.parametrize("case", ONCE)
def test_what_is_applied_once_is_not(case):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cn.minimize(E(ONCE[case]())).compile()
    assert not [w for w in told if issubclass(w.category, cn.ModelingWarning)]
