"""A training loop of your own: the compiled problem is a module, its multipliers are its state.

Least squares with a floor on the mean prediction of one group. The model is linear and the floor is
affine in the weights, so the optimum and the multiplier follow from one linear system, and the loop can
be compared with it.
"""

from __future__ import annotations

import numpy as np
import torch

import constrain as cn
from constrain import E

FLOOR = 0.5
ROWS, BATCH, EPOCHS = 1000, 250, 400
TOLERANCE = 5e-3


def problem():
    """Return the problem, its model and its sample."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 3))
    group = np.where(rng.random(ROWS) < 0.3, "b", "a")
    y = x @ [1.0, -0.5, 0.25] - 0.3 * (group == "b") + 0.1 * rng.normal(size=ROWS)
    D = cn.Data("sample", x=torch.tensor(x), y=torch.tensor(y), group=group)
    f = cn.Model(torch.nn.Linear(3, 1, dtype=torch.float64), "f")
    prediction = f(D.x).squeeze(-1)
    floor = E(prediction, given=D.group == "b") >= FLOOR
    return cn.minimize(E((prediction - D.y) ** 2)).subject_to(floor=floor), f, D, (x, group, y)


def train():
    """Train by descent in the weights and ascent in the multiplier, and return what the loop has learned."""
    torch.manual_seed(0)
    p, f, D, _ = problem()
    lagrangian = p.compile()
    optimizer = torch.optim.SGD(f.module.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for index in torch.randperm(ROWS).split(BATCH):
            optimizer.zero_grad()
            loss = lagrangian(D.rows(index))
            loss.backward()
            optimizer.step()
            lagrangian.ascend()
        schedule.step()
    return f.module, lagrangian


def exact():
    """Return weights, bias and multiplier from the KKT equations of the same problem."""
    _, _, _, (x, group, y) = problem()
    design = np.column_stack([x, np.ones(ROWS)])
    row = design[group == "b"].mean(axis=0)
    system = np.block([[2 * design.T @ design / ROWS, -row[:, None]], [row[None, :], np.zeros((1, 1))]])
    return np.linalg.solve(system, np.append(2 * design.T @ y / ROWS, FLOOR))


def run():
    """Compare the loop with the linear system."""
    module, lagrangian = train()
    measured = {
        "weights": module.weight.detach().numpy().ravel(),
        "bias": float(module.bias.detach()),
        "multiplier": float(lagrangian.multipliers()["floor"]),
    }
    solved = exact()
    return measured, {"weights": solved[:3], "bias": solved[3], "multiplier": solved[4]}


if __name__ == "__main__":
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:12} {np.round(value, 4)}   exact {np.round(reference[name], 4)}")
