"""Energy bought a day ahead, under uncertain demand, with a unit commitment problem behind it.

Bought energy is paid for at a price per hour. What is missing of the demand, which is known on the day only,
is made by three units that are switched on (at a cost) and run between a least and a largest output, or is
shed at a high price: a mixed-integer linear program per scenario. Its value is differentiated with the
binaries fixed at their optimum; that is the derivative wherever the best commitment stays the same nearby.

The value is not convex. Training starts from the optimum of the relaxation, whose binaries are anything
between 0 and 1: its value is convex, so that CVXPY gets it written out and solves it. Then steps along the
multipliers of the mixed-integer programs follow.

The reference is the extensive form, bought energy and the commitment of all scenarios at once, by HiGHS; the
derivatives at a given purchase are those of finite differences of scenarios solved by HiGHS.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp

import constrain as cn
from constrain import E

TOLERANCE = {"expected cost": 1e-3, "relaxed bound": 1e-5, "value": 1e-6, "derivatives": 1e-5}
HOURS, UNITS, SHED, SPILL = 4, 3, 60.0, 1.0
COST, START = np.array([18.0, 24.0, 35.0]), np.array([40.0, 25.0, 5.0])
LEAST, MOST = np.array([2.0, 1.0, 0.5]), np.array([5.0, 3.0, 2.0])
PRICE = torch.tensor([16.0, 22.0, 30.0, 20.0], dtype=torch.float64)
DEMAND = torch.tensor(
    np.array([6.0, 8.0, 9.0, 7.0]) + np.random.default_rng(4).normal(0, 1.5, (6, HOURS)), dtype=torch.float64
)
GIVEN = torch.tensor([4.0, 5.0, 5.5, 4.5], dtype=torch.float64)


def commitment(*, relaxed=False):
    """The unit commitment of one scenario: what is missing per hour -> least cost."""
    shape = (UNITS, HOURS)
    missing = cn.Parameter("missing", shape=HOURS)
    kind = {"bounds": (0, 1)} if relaxed else {"boolean": True}
    on, begins = cn.Variable(shape, "on", **kind), cn.Variable(shape, "begins", bounds=(0, 1))
    output = cn.Variable(shape, "output", nonneg=True)
    shed, spill = cn.Variable(HOURS, "shed", nonneg=True), cn.Variable(HOURS, "spill", nonneg=True)
    running = cn.sum(COST[:, None] * output) + cn.sum(START[:, None] * begins)
    return cn.minimize(running + SHED * cn.sum(shed) + SPILL * cn.sum(spill)).subject_to(
        serve=cn.sum(output, axis=0) + shed - spill == missing,
        least=output >= LEAST[:, None] * on,
        most=output <= MOST[:, None] * on,
        first=begins[:, 0] >= on[:, 0],
        later=begins[:, 1:] >= on[:, 1:] - on[:, :-1],
    )


def train(problem, start, steps=30, length=0.3, factor=0.93):
    """The least expected cost on the way along the multipliers of the mixed-integer programs."""
    bought, best = start, float("inf")
    for _ in range(steps):
        bought = bought.detach().requires_grad_(True)
        cost = PRICE @ bought + cn.value(problem, at=DEMAND - bought, track="serve").mean()
        (slope,) = torch.autograd.grad(cost, bought)
        best = min(best, cost.item())
        bought = (bought - length * slope / slope.norm()).clamp_min(0.0)
        length *= factor
    return best


def extensive_form(demand, *, bought=None, relaxed=False):
    """By HiGHS: the least expected cost over purchases (or at given ones) and the commitment of scenarios."""
    count, block = len(demand), 3 * UNITS * HOURS + 2 * HOURS
    size = HOURS + count * block
    own = np.concatenate([
        *(np.zeros(UNITS * HOURS), np.repeat(START, HOURS), np.repeat(COST, HOURS)),
        *(np.full(HOURS, SHED), np.full(HOURS, SPILL)),
    ])  # fmt: skip
    cost = np.concatenate([PRICE.numpy(), np.tile(own / count, count)])
    high = np.tile(np.r_[np.ones(2 * UNITS * HOURS), np.full(UNITS * HOURS + 2 * HOURS, np.inf)], count)
    free = np.zeros(HOURS), np.full(HOURS, np.inf)
    low_bought, high_bought = free if bought is None else (bought, bought)
    rows, low, up = [], [], []

    def add(entries, least, most):
        row = np.zeros(size)
        for place, value in entries:
            row[place] += value
        rows.append(row)
        low.append(least)
        up.append(most)

    for s in range(count):
        base = HOURS + s * block
        on, begins, output = (
            base + i * UNITS * HOURS + np.arange(UNITS * HOURS).reshape(UNITS, HOURS) for i in range(3)
        )
        shed = base + 3 * UNITS * HOURS + np.arange(HOURS)
        for h in range(HOURS):
            made = [(output[u, h], 1.0) for u in range(UNITS)]
            add([*made, (shed[h], 1.0), (shed[h] + HOURS, -1.0), (h, 1.0)], demand[s, h], demand[s, h])
            for u in range(UNITS):
                add([(output[u, h], 1.0), (on[u, h], -LEAST[u])], 0.0, np.inf)
                add([(output[u, h], 1.0), (on[u, h], -MOST[u])], -np.inf, 0.0)
                before = [(on[u, h - 1], 1.0)] if h else []
                add([(begins[u, h], 1.0), (on[u, h], -1.0), *before], 0.0, np.inf)
    whole = np.zeros(size)
    for s in range(count):
        whole[HOURS + s * block : HOURS + s * block + UNITS * HOURS] = not relaxed
    bounds = np.concatenate([low_bought, np.zeros(count * block)]), np.concatenate([high_bought, high])
    found = milp(
        cost,
        constraints=LinearConstraint(np.array(rows), low, up),
        integrality=whole,
        bounds=bounds,
        options={"mip_rel_gap": 1e-6},
    )
    return found.fun


def run():
    """The trained purchase against the extensive form, and value and derivatives at a given one."""
    problem = commitment()
    D, bought = cn.Data("days", demand=DEMAND), cn.Variable(HOURS, "bought", nonneg=True)
    behind = cn.value(commitment(relaxed=True), at=D.demand - bought, track="serve")
    at = GIVEN.clone().requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cn.ModelingWarning)  # W220: values have kinks
        bound = cn.minimize(PRICE @ bought + E(behind)).solve(progress=False).objective
        best = train(problem, torch.as_tensor(bought.value.copy()))
        value = PRICE @ at + cn.value(problem, at=DEMAND - at, track="serve").mean()
        (slope,) = torch.autograd.grad(value, at)
    demand, given, eps = DEMAND.numpy(), GIVEN.numpy(), 1e-4
    ends = [[extensive_form(demand, bought=given + s * eps * e) for s in (1, -1)] for e in np.eye(HOURS)]
    measured = {
        "expected cost": best,
        "relaxed bound": bound,
        "value": value.item(),
        "derivatives": slope.numpy(),
    }
    reference = {
        "expected cost": extensive_form(demand),
        "relaxed bound": extensive_form(demand, relaxed=True),
        "value": extensive_form(demand, bought=given),
        "derivatives": np.array([(up - down) / (2 * eps) for up, down in ends]),
    }
    return measured, reference


if __name__ == "__main__":
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:14} {np.round(value, 4)}   reference {np.round(reference[name], 4)}")
