"""UCI Adult, three times: one specification solved exactly, the same one trained, and recall under parity.

(a) Two gaps of the mean score between the sexes, over everyone and over those with a high income, at most
    0.1. With a linear score the problem is convex: the analysis certifies it and CVXPY solves it. With a
    network in its place, and nothing else changed, it is trained by multipliers.
(b) Mean predictions of each sex within 0.02 of the mean of all, and a recall (an exact share of decided
    rows, which has no gradient) of at least 0.80, with the network.

The official test split is the hold-out. `python examples/adult.py` takes about a minute on two cores.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import adult_data
import constrain as cn
from constrain import E, P

TOLERANCE = {"value": 1e-6, "gap": 2e-3, "positives": 2e-3, "feasible": 0.0}
GOLDEN = {"value": 0.370862905358, "gap": 0.04180455, "positives": 0.01251126}
"""Newton's method on the KKT equations, Clarabel and PyGRANSO agree on these."""


def sample(split: adult_data.Split) -> cn.Data:
    """A split as a sample with named columns."""
    return cn.Data("adult", x=torch.tensor(split.x), y=torch.tensor(split.y), sex=split.sex)


def linear() -> nn.Module:
    """A linear score; its intercept is a variable of the problem."""
    return nn.Sequential(nn.Linear(95, 1, bias=False), nn.Flatten(0)).double()


def network() -> nn.Module:
    """A small network with the same interface: rows of 95 features in, one score per row out."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(95, 64), nn.ReLU(), nn.Linear(64, 1, bias=False), nn.Flatten(0)).double()


def score_gap(D: cn.Data, net: nn.Module) -> cn.Problem:
    """The specification of (a). `net` is the only thing that differs between its two solves."""
    f, intercept = cn.Model(net, "f"), cn.Variable((), "intercept")
    score = f(D.x) + intercept
    male, female, high = D.sex == "Male", D.sex == "Female", D.y == 1
    bce = F.binary_cross_entropy_with_logits(score, D.y, reduction="none")
    return cn.minimize(E(bce) + 0.5e-3 * cn.sum_squares(f)).subject_to(
        gap=abs(E(score, given=male) - E(score, given=female)) <= 0.1,
        positives=abs(E(score, given=male & high) - E(score, given=female & high)) <= 0.1,
    )


def fair_recall(D: cn.Data, net: nn.Module) -> cn.Problem:
    """The specification of (b)."""
    f = cn.Model(net, "f")
    bce = F.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")
    return cn.minimize(E(bce)).subject_to(
        parity=abs(E(torch.sigmoid(f(D.x)), by=D.sex) - E(torch.sigmoid(f(D.x)))) <= 0.02,
        recall=P(f(D.x) > 0, given=D.y == 1) >= 0.80,
    )


def run(quick: bool = False, verbose: bool = False) -> tuple[dict[str, float], dict[str, float]]:
    """Solve all three; return (measured, reference).

    Args:
        quick: fewer epochs, for tests.
        verbose: print explanations, progress and reports.
    """
    data = adult_data.load()
    train, test = sample(data.train), sample(data.test)
    shorter = {"epochs": 20} if quick else {}

    def solve(title: str, problem: cn.Problem, **options: object) -> cn.Solution:
        if verbose:
            print(f"\n{'=' * 110}\n{title}\n{'=' * 110}\n{problem.explain()}\n", flush=True)
        solution = problem.solve(holdout=test, progress=verbose, **options)
        if verbose:
            print(f"\n{solution}", flush=True)
        return solution

    exact = solve("(a) score gap, linear score", score_gap(train, linear()))
    trained = solve("(a) the same specification, a network", score_gap(train, network()), **shorter)
    rates = solve("(b) soft parity and exact recall, a network", fair_recall(train, network()), **shorter)
    worst = max(float(np.max(s[name].violation)) for s in (trained, rates) for name in s.names)
    measured = {
        "value": exact.objective,
        "gap": float(exact["gap"].multiplier),
        "positives": float(exact["positives"].multiplier),
        "feasible": max(worst - (0.05 if quick else 2e-3), 0.0),
    }
    return measured, {**GOLDEN, "feasible": 0.0}


if __name__ == "__main__":
    measured, reference = run(verbose=True)
    print("\nmeasured against the reference optimum of the convex problem")
    for name, value in measured.items():
        print(f"  {name:<10} {value:.9f}   {reference[name]:.9f}")
