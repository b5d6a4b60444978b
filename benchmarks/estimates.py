"""Minibatch estimates against exact solutions: rare groups, and the absolute gap between two groups.

Exact solutions come from the convex route on the same data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

import constrain as cn
from constrain import E

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Outcome", "gap", "rare_groups", "rare_problem", "rare_sample"]


@dataclass(frozen=True)
class Outcome:
    """How far a minibatch solution is from the exact one.

    Attributes:
        violation: worst one on the training data.
        multiplier: median relative error of the multipliers that are not zero.
        objective: relative error.
    """

    violation: float
    multiplier: float
    objective: float

    def __str__(self) -> str:
        return (
            f"worst violation {self.violation:.4f}, median error of multipliers {self.multiplier:.1%}, "
            f"objective {self.objective:+.2%}"
        )


def _outcome(found: cn.Solution, exact: cn.Solution, name: str) -> Outcome:
    truth = np.atleast_1d(exact[name].multiplier)
    active = truth > 1e-4
    error = np.abs(np.atleast_1d(found[name].multiplier) - truth)[active] / truth[active]
    worst = float(np.max(found[name].violation))
    return Outcome(worst, float(np.median(error)), found.objective / exact.objective - 1)


def rare_sample(rows: int = 40_000, groups: int = 50) -> dict[str, NDArray[np.float64]]:
    """Features, targets and groups; sizes fall off by Zipf's law (50 groups: to 0.2 % of rows)."""
    rng = np.random.default_rng(0)
    share = np.arange(1, groups + 1) ** -1.27
    group = rng.choice(groups, size=rows, p=share / share.sum())
    x = rng.normal(size=(rows, 8))
    level = rng.normal(size=groups) * 0.7
    y = x @ rng.normal(size=8) * 0.5 + level[group] + rng.normal(size=rows) * 0.5
    return {"x": x, "y": y, "g": group, "one_hot": np.eye(groups)[group]}


def rare_problem(rows: int = 40_000, groups: int = 50) -> cn.Problem:
    """Mean score of each group at most 0.3."""
    columns = rare_sample(rows, groups)
    D = cn.Data(
        "rows", x=torch.tensor(columns["x"]), y=torch.tensor(columns["y"]), g=columns["g"],
        one_hot=torch.tensor(columns["one_hot"]),
    )  # fmt: skip
    w, b = cn.Variable(8, "w"), cn.Variable(groups, "b")
    score = D.x @ w + D.one_hot @ b
    return cn.minimize(E((score - D.y) ** 2)).subject_to(rate=E(score, by=D.g) <= 0.3)


def rare_groups(
    rows: int = 40_000, groups: int = 50, batch: int = 128, seeds: int = 3, epochs: int | None = None
) -> list[Outcome]:
    """Minibatch solutions of `rare_problem` against the exact one."""
    problem = rare_problem(rows, groups)
    exact = problem.solve("cvxpy", progress=False)
    found: list[Outcome] = []
    for seed in range(seeds):
        for variable in problem.variables:
            variable.value = None
        solution = problem.solve("lagrangian", batch=batch, epochs=epochs, seed=seed, progress=False)
        found.append(_outcome(solution, exact, "rate"))
    return found


def gap(rows: int = 4_000, batches: tuple[int, ...] = (8, 32, 128)) -> dict[int, Outcome]:
    """Logistic regression with |mean score of one group - mean score of the other| at most 0.02."""
    rng = np.random.default_rng(0)
    a = (rng.random(rows) < 0.3).astype(int)
    x = rng.normal(size=(rows, 5))
    x[:, 0] += 1.2 * a
    y = (x @ np.array([1.0, 0.5, -0.5, 0.3, 0.0]) + rng.logistic(size=rows) > 0).astype(float)
    D = cn.Data("rows", x=torch.tensor(x), y=torch.tensor(y), a=a)

    def problem() -> cn.Problem:
        torch.manual_seed(0)
        f = cn.Model(nn.Sequential(nn.Linear(5, 1, dtype=torch.float64), nn.Flatten(0)), "f")
        score = f(D.x)
        loss = nn.functional.binary_cross_entropy_with_logits(score, D.y, reduction="none")
        difference = E(score, given=D.a == 1) - E(score, given=D.a == 0)
        return cn.minimize(E(loss)).subject_to(gap=abs(difference) <= 0.02)

    exact = problem().solve("cvxpy", progress=False)
    return {
        batch: _outcome(problem().solve("lagrangian", batch=batch, progress=False), exact, "gap")
        for batch in batches
    }
