"""Targets for a reservoir, trained through the multipliers of a dispatch problem.

Four stages, one reservoir, thermal units. Targets for the volume at the end of each stage go in; a linear
program dispatches water and thermal units to follow them at the least cost. By the envelope theorem the
derivative of its cost in a target is the multiplier of the row that tracks it (Rosemberg, Street, Valladão
and Van Hentenryck 2024), which is all that training needs, whatever gave the targets.

The cost is piecewise linear in the targets, so that multipliers jump and do not go to zero at the lowest
corner. Steps along them, all of one length that shrinks by a constant factor, find it (Goffin 1977) if the
factor is close enough to one: at 0.98 they stop at 84.16, at 0.985 they reach 84.0. The value is convex, too,
which `cn.minimize(cn.value(...))` finds out: CVXPY gets the dispatch written out, and proves the optimum.

With inflows that are only known as they come, a rule gives the targets: each stage sees the inflows up to
its own. Its weights are trained on eight years of inflows in both ways.

The cost and its derivatives at given targets, and the least cost over all targets, 84.0, are those of HiGHS;
so is the least expected cost, of the linear program over the rule and the dispatch of all years.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.optimize import linprog

import constrain as cn
from constrain import E

TOLERANCE = {
    **{"cost": 1e-6, "derivatives": 1e-6, "least cost, trained": 1e-5, "least cost, proven": 1e-6},
    **{"expected cost, trained": 2e-3, "expected cost, proven": 1e-6},
}
INFLOW, DEMAND = torch.tensor([3.0, 1.0, 2.0, 0.5]), torch.tensor([4.0, 4.0, 5.0, 4.0])
THERMAL = torch.tensor([10.0, 12.0, 15.0, 11.0])
START, TRACKING, DEFICIT, CAP, LEVEL, TURBINE = 3.0, 100.0, 200.0, 3.0, 6.0, 4.0
YEARS = INFLOW.double() * torch.tensor(np.random.default_rng(0).lognormal(0, 0.5, (8, 4)))
SCORES = torch.cat([torch.ones(8, 1), (YEARS - YEARS.mean(0)) / YEARS.std(0)], 1)
SEEN = torch.tensor(np.triu(np.ones((5, 4)), -1))  # a constant, then inflows: stage k sees those up to k


def dispatch():
    """The linear program of one run: targets and inflows -> cost."""
    target, inflow = cn.Parameter("target", shape=4), cn.Parameter("inflow", INFLOW.numpy(), shape=4)
    volume = cn.Variable(4, "volume", bounds=(0, LEVEL))
    water, spill = cn.Variable(4, "water", bounds=(0, TURBINE)), cn.Variable(4, "spill", nonneg=True)
    thermal, deficit = cn.Variable(4, "thermal", bounds=(0, CAP)), cn.Variable(4, "deficit", nonneg=True)
    above, below = cn.Variable(4, "above", nonneg=True), cn.Variable(4, "below", nonneg=True)
    cost = THERMAL @ thermal + DEFICIT * cn.sum(deficit) + TRACKING * cn.sum(above + below)
    return cn.minimize(cost).subject_to(
        first=volume[0] == START + inflow[0] - water[0] - spill[0],
        balance=volume[1:] == volume[:-1] + inflow[1:] - water[1:] - spill[1:],
        serve=water + thermal + deficit == DEMAND,
        track=volume + below - above == target,
    )


def descend(cost, start, optimizer, steps, factor=0.985):
    """The least cost on the way, and where: steps whose length shrinks by a constant factor."""
    point = start.clone().requires_grad_(True)
    steps_of = optimizer([point])
    schedule = torch.optim.lr_scheduler.ExponentialLR(steps_of, factor)
    best, where = float("inf"), point
    for _ in range(steps):
        value = cost(point)
        if value.item() < best:
            best, where = value.item(), point.detach().clone()
        (slope,) = torch.autograd.grad(value, point)
        point.grad = slope / slope.norm().clamp_min(1e-12)
        steps_of.step()
        schedule.step()
    return best, where


def extensive_form():
    """The least expected cost of a rule by HiGHS: its weights, then 7 x 4 variables of each year."""
    cells = [(i, k) for i in range(5) for k in range(4) if SEEN[i, k]]
    size = len(cells) + 28 * len(YEARS)
    year_cost = np.concatenate([np.zeros(12), THERMAL, np.full(4, DEFICIT), np.full(8, TRACKING)])
    cost = np.concatenate([np.zeros(len(cells)), np.tile(year_cost / len(YEARS), len(YEARS))])
    limits = [(0, LEVEL)] * 4 + [(0, TURBINE)] * 4 + [(0, None)] * 4 + [(0, CAP)] * 4 + [(0, None)] * 12
    rows, sides = [], []
    for s, inflow in enumerate(YEARS.numpy()):
        own = len(cells) + 28 * s + 4 * np.arange(7)[:, None] + np.arange(4)  # volume, water, spill, ...
        for k in range(4):
            balance, serve, track = np.zeros((3, size))
            balance[own[:3, k]] = 1
            balance[own[0, k - 1]] -= k > 0
            serve[own[[1, 3, 4], k]] = 1
            track[own[[0, 6, 5], k]] = 1, 1, -1
            for place, (i, stage) in enumerate(cells):
                track[place] = -(stage == k) * SCORES[s, i]
            rows += [balance, serve, track]
            sides += [inflow[k] + START * (k == 0), DEMAND[k], 0.0]
    bounds = [(None, None)] * len(cells) + limits * len(YEARS)
    return linprog(cost, A_eq=np.array(rows), b_eq=np.array(sides), bounds=bounds, method="highs").fun


def run():
    """Cost and derivatives at given targets, the best targets, and the best rule for uncertain inflows."""
    problem = dispatch()
    given = torch.tensor([3.1, 1.3, 0.9, 0.2], dtype=torch.float64, requires_grad=True)
    cost = cn.value(problem, at=given, track="track")
    (slope,) = torch.autograd.grad(cost, given)

    def expected(weights):
        return cn.value(problem, at={"target": SCORES @ (weights * SEEN), "inflow": YEARS}).mean()

    def plain(points):
        return torch.optim.SGD(points, lr=1.0)

    def adam(points):
        return torch.optim.Adam(points, lr=0.2, betas=(0.5, 0.99))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cn.ModelingWarning)  # the best points are corners
        trained, best = descend(lambda t: cn.value(problem, at=t, track="track"), given.detach(), plain, 600)
        rule, _ = descend(expected, torch.cat([best[None], torch.zeros(4, 4)]), adam, 300)
        target, weights = cn.Variable(4, "target"), cn.Variable((5, 4), "weights")
        proven = cn.minimize(cn.value(problem, at=target, track="track")).solve(progress=False)
        D = cn.Data("years", scores=SCORES, inflow=YEARS)
        at = {"target": D.scores @ (weights * SEEN), "inflow": D.inflow}
        both = cn.minimize(E(cn.value(problem, at=at))).solve(progress=False)
    measured = {
        **{"cost": cost.item(), "derivatives": slope.numpy()},
        **{"least cost, trained": trained, "least cost, proven": proven.objective},
        **{"expected cost, trained": rule, "expected cost, proven": both.objective},
    }
    least = extensive_form()
    reference = {
        **{"cost": 95.2, "derivatives": np.array([-2.0, -3.0, 4.0, 11.0])},
        **{"least cost, trained": 84.0, "least cost, proven": 84.0},
        **{"expected cost, trained": least, "expected cost, proven": least},
    }
    return measured, reference


if __name__ == "__main__":
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:22} {np.round(value, 4)}   reference {np.round(reference[name], 4)}")
