"""Targets for a reservoir, trained through the multipliers of a dispatch problem.

Four stages, one reservoir, thermal units. Targets for the volume at the end of each stage go in; a linear
program dispatches water and thermal units to follow them at the least cost. By the envelope theorem the
derivative of its cost in a target is the multiplier of the row that tracks it (Rosemberg, Street, Valladão
and Van Hentenryck 2024), which is all that `cn.value` needs for training whatever gave the targets.

The cost and its derivatives at given targets, and the least cost over all targets, 84.0, are those of HiGHS.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

import constrain as cn

TOLERANCE = {"cost": 1e-6, "derivatives": 1e-6, "least cost": 2e-3}
INFLOW, DEMAND = torch.tensor([3.0, 1.0, 2.0, 0.5]), torch.tensor([4.0, 4.0, 5.0, 4.0])
THERMAL = torch.tensor([10.0, 12.0, 15.0, 11.0])
START, TRACKING, DEFICIT = 3.0, 100.0, 200.0


def dispatch():
    """The linear program of one run: targets -> cost."""
    target = cn.Parameter("target", shape=4)
    volume = cn.Variable(4, "volume", bounds=(0, 6))
    water, spill = cn.Variable(4, "water", bounds=(0, 4)), cn.Variable(4, "spill", nonneg=True)
    thermal, deficit = cn.Variable(4, "thermal", bounds=(0, 3)), cn.Variable(4, "deficit", nonneg=True)
    above, below = cn.Variable(4, "above", nonneg=True), cn.Variable(4, "below", nonneg=True)
    cost = THERMAL @ thermal + DEFICIT * cn.sum(deficit) + TRACKING * cn.sum(above + below)
    return cn.minimize(cost).subject_to(
        first=volume[0] == START + INFLOW[0] - water[0] - spill[0],
        balance=volume[1:] == volume[:-1] + INFLOW[1:] - water[1:] - spill[1:],
        serve=water + thermal + deficit == DEMAND,
        track=volume + below - above == target,
    )


def run(steps=250):
    """Cost and derivatives at given targets, then the targets trained."""
    problem = dispatch()
    given = torch.tensor([3.1, 1.3, 0.9, 0.2], dtype=torch.float64, requires_grad=True)
    cost = cn.value(problem, at=given, track="track")
    (slope,) = torch.autograd.grad(cost, given)

    # the cost is piecewise linear: steps that shrink find its lowest corner, where multipliers are not unique
    target = given.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([target], lr=0.2, betas=(0.0, 0.99))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    best = float("inf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cn.ModelingWarning)
        for _ in range(steps):
            loss = cn.value(problem, at=target, track="track")
            best = min(best, loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    measured = {"cost": cost.item(), "derivatives": slope.numpy(), "least cost": best}
    return measured, {"cost": 95.2, "derivatives": np.array([-2.0, -3.0, 4.0, 11.0]), "least cost": 84.0}


if __name__ == "__main__":
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:12} {np.round(value, 4)}   reference {np.round(reference[name], 4)}")
