"""Known problems over data: linear models, constraints per row, averages by group."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constrain._lazy import attribute
from constrain.language.data import Data
from constrain.language.functions import sum, sum_squares  # the language's words
from constrain.language.problem import minimize
from constrain.language.statistics import E, forall
from constrain.language.symbols import Model, Variable
from constrain.testing.known import CONVEX, EXACT, FULL_DATA, KnownProblem, Tolerance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from constrain.language.expr import Expr
    from constrain.language.problem import Problem

__all__ = ["adult_convex", "learning_problems"]

_MINIBATCH = Tolerance(value=1e-2, multiplier=0.2, primal=math.inf)
_ALL = {"cvxpy": CONVEX, "newton": EXACT, "augmented": FULL_DATA}


def _tensor(values: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def _linear(inputs: int, outputs: int = 1, *, bias: bool = False) -> torch.nn.Linear:
    """A linear layer in float64 that starts at zero."""
    layer = torch.nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    return layer


def _logistic(score: Expr, y: Expr) -> Expr:
    """log(1 + exp(s)) - y s."""
    return torch.nn.functional.binary_cross_entropy_with_logits(score, y, reduction="none")  # type: ignore[arg-type]  # recorded


# ------------------------------------------------------------------------------------------------ Adult
def _adult(x: NDArray[Any], y: NDArray[Any], sex: NDArray[Any]) -> Problem:
    D = Data("adult", x=_tensor(x), y=_tensor(y), sex=sex)
    f, intercept = Model(_linear(x.shape[1]), "f"), Variable((), "intercept")
    score = f(D.x).reshape(()) + intercept
    male, female, positive = D.sex == "Male", D.sex == "Female", D.y == 1
    cost = E(_logistic(score, D.y)) + 1e-3 / 2 * sum_squares(f)
    return minimize(cost).subject_to(
        all=abs(E(score, given=male) - E(score, given=female)) <= 0.1,
        positives=abs(E(score, given=male & positive) - E(score, given=female & positive)) <= 0.1,
    )


def adult_convex(x: NDArray[Any], y: NDArray[Any], sex: NDArray[Any]) -> KnownProblem:
    """Logistic regression on UCI Adult with bounds on two gaps of the mean score between the sexes.

    Args:
        x: (30162, 95) features of the complete training rows: five standardized numbers and the indicators of
            all category levels but the first.
        y: (30162,) 1.0 for an income above 50 000 dollars.
        sex: (30162,) `Female` or `Male`.
    """
    return KnownProblem(
        "adult-convex", partial(_adult, x, y, sex), 0.370862905358, "Newton method to 1e-12, Clarabel",
        {"all": 0.04180455, "positives": 0.01251126}, {}, _ALL,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------- scikit-learn
def _interpolation() -> Problem:
    x, y = attribute("sklearn.datasets:load_digits")(return_X_y=True)
    D = Data("digits", x=_tensor(x[:50] / 16), y=_tensor(np.eye(10)[y[:50]]))
    f = Model(_linear(64, 10), "f")
    return minimize(sum_squares(f)).subject_to(fit=forall(D, f(D.x) == D.y))


def _ridge() -> Problem:
    x, y = attribute("sklearn.datasets:load_diabetes")(return_X_y=True)
    D = Data("diabetes", x=_tensor(x), y=_tensor(y - y.mean()))
    w = Variable(10, "w")
    return minimize(len(D) * E((D.x @ w - D.y) ** 2) + 0.5 * sum_squares(w))


def _sphere() -> Problem:
    x, y = attribute("sklearn.datasets:load_breast_cancer")(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    rng = np.random.default_rng(0)
    rows, sides = _tensor(rng.normal(size=(10, 30))), _tensor(0.1 * rng.normal(size=10))
    D = Data("cancer", x=_tensor(x), y=_tensor(y))
    w = Variable(30, "w")
    w.value = np.ones(30)
    return minimize(E(_logistic(D.x @ w, D.y))).subject_to(lines=rows @ w == sides, ball=sum_squares(w) == 1)


# -------------------------------------------------------------------------------------------- synthetic
def synthetic_arrays() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Features (2000, 5), labels (2000,) and group of the synthetic parity problem."""
    rng = np.random.default_rng(7)
    group = np.where(rng.random(2000) < 0.4, "b", "a")
    x = rng.normal(size=(2000, 5)) + 0.8 * (group == "b")[:, None] * np.asarray([1, 0, 0, 0.5, 0])
    chance = 1 / (1 + np.exp(-(x @ [1.0, -1.0, 0.5, 0.7, 0.0] - 0.4)))
    return x, (rng.random(2000) < chance).astype(np.float64), group


def _synthetic() -> Problem:
    x, y, group = synthetic_arrays()
    D = Data("sample", x=_tensor(x), y=_tensor(y), group=group)
    f = Model(_linear(5, bias=True), "f")
    score = f(D.x).reshape(())
    gap = E(score, given=D.group == "b") - E(score, given=D.group == "a")
    return minimize(E(_logistic(score, D.y))).subject_to(parity=abs(gap) <= 0.2, level=E(score) <= 0)


def _lasso_budget() -> Problem:
    x, y, _ = synthetic_arrays()
    D = Data("sample", x=_tensor(x), y=_tensor(y))
    w = Variable(5, "w")
    return minimize(E((D.x @ w - D.y) ** 2)).subject_to(budget=sum(abs(w)) <= 0.2)


def learning_problems() -> list[KnownProblem]:
    """Known problems over data that need no file."""
    sklearn = ("sklearn",)
    return [
        KnownProblem(
            "interpolation", _interpolation, 2925.81972, "pseudoinverse", {}, {}, _ALL, needs=sklearn
        ),
        KnownProblem(
            "ridge", _ridge, 1540228.1684025014, "normal equations", {}, {}, _ALL, needs=sklearn
        ),
        KnownProblem(
            "sphere-logistic", _sphere, 0.175091150183, "SLSQP; its convex relaxation by Clarabel is tight",
            {"ball": 0.07911018}, {}, {"newton": EXACT, "augmented": FULL_DATA},
            {"cvxpy": "an equality is convex only when its sides are affine"}, needs=sklearn,
        ),
        KnownProblem(
            "synthetic-parity", _synthetic, 0.5475041891, "SLSQP",
            {"parity": 0.200825, "level": 0.013363}, {}, {**_ALL, "lagrangian": _MINIBATCH},
        ),
        KnownProblem(
            "lasso-budget", _lasso_budget, 0.4048619607, "SLSQP on w = u - v", {"budget": 0.3401441}, {},
            {"cvxpy": CONVEX, "newton": EXACT}, {},
        ),
    ]  # fmt: skip
