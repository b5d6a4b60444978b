"""Hard predictions with the prevalence of the data in every group, on UCI Adult.

Logistic regression that predicts "above 50 000 dollars" where its score is positive does so for 7.7 % of the
women and 26.9 % of the men, where 11.4 % and 31.4 % are: its probabilities are calibrated on average, its
decisions are not. The constraint `P(f(D.x) > 0, by=D.sex) == P(D.y == 1, by=D.sex)` prescribes the rate of
positive predictions of every group: an equality of exact rates, one multiplier per group. The right side is a
rate of the data alone; the reference is counted by NumPy.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

import adult_data
import constrain as cn
from constrain import E, P

TOLERANCE = 0.002


def problem(*, constrained: bool = True):
    """Return the problem and its sample."""
    rows = adult_data.load().train
    D = cn.Data("adult", x=torch.tensor(rows.x).float(), y=torch.tensor(rows.y).float(), sex=rows.sex)
    f = cn.Model(torch.nn.Sequential(torch.nn.Linear(95, 1), torch.nn.Flatten(0)), "f")
    bce = F.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")
    plain = cn.minimize(E(bce))
    return plain.subject_to(rate=P(f(D.x) > 0, by=D.sex) == P(D.y == 1, by=D.sex)) if constrained else plain


def prevalence():
    """Share of incomes above 50 000 dollars by sex, counted."""
    rows = adult_data.load().train
    return {str(sex): float(np.mean(rows.y[rows.sex == sex])) for sex in np.unique(rows.sex)}


@cache
def solve():
    """Train with the defaults."""
    torch.manual_seed(0)
    return problem().solve(seed=0, progress=False)


def run():
    """Compare the rate of positive predictions of every group with its prevalence."""
    rate = solve()["rate"]
    measured = {str(level): float(value) for level, value in zip(rate.levels, rate.value, strict=True)}
    return measured, prevalence()


if __name__ == "__main__":
    print(solve())
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:20} {value:.4f}   prevalence {reference[name]:.4f}")
