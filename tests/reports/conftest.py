"""Solutions to look at: small, solved once for the whole session, with names that would be markup."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E, P

EVIL = '<script>alert("1")</script>'
LEVELS = ("<b>bold", "a & b")


def sample(name, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, dtype=torch.float64, generator=generator)
    group = [LEVELS[i % 3 == 0] for i in range(rows)]
    noise = torch.randn(rows, dtype=torch.float64, generator=generator)
    y = (x.sum(dim=1) + noise > 0).double()
    return cn.Data(name, x=x, y=y, group=group)


@pytest.fixture(scope="session")
def rich():
    """A trained network: a block, an exact rate, rows, a hold-out, a history, and markup as names."""
    torch.manual_seed(0)
    D, held = sample("train", 200, 0), sample("test", 90, 1)
    layers = torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1), torch.nn.Flatten(0)
    f = cn.Model(torch.nn.Sequential(*layers).double(), "f")
    bce = F.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")
    relations = {
        EVIL: abs(E(f(D.x), by=D.group) - E(f(D.x))) <= 0.05,
        "recall": P(f(D.x) > 0, given=D.y == 1) >= 0.6,
        "every": cn.forall(D, f(D.x) <= 3).relax(cost=cn.squared(1.0)),
        "band": cn.between(-0.5, E(f(D.x)), 0.5),
    }
    problem = cn.minimize(E(bce)).subject_to(**relations)
    return problem.solve("lagrangian", epochs=15, holdout=held, progress=False)


@pytest.fixture
def linear():
    """Wyndor Glass with the hours of the second plant as a parameter, by the convex route."""
    x = cn.Variable(2, "x", nonneg=True)
    hours = cn.Parameter("hours", 12.0)
    problem = cn.maximize(3 * x[0] + 5 * x[1]).subject_to(
        first=x[0] <= 4, second=2 * x[1] <= hours, third=3 * x[0] + 2 * x[1] <= 18
    )
    solution = problem.solve(progress=False)
    solution.path("hours", np.linspace(4, 22, 10))
    return solution


def with_margins():
    """Bounds that were moved by measured margins, per group and for one number; an equality has none."""
    D, held = sample("train", 400, 2), sample("test", 300, 3)
    f = cn.Model(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0)).double(), "f")
    bce = F.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")
    relations = {
        EVIL: abs(E(f(D.x), by=D.group) - E(f(D.x))) <= 0.3,
        "level": E(f(D.x)) <= 0.4,
        "first": E(f(D.x) * D.y) == 0.4,
    }
    return cn.minimize(E(bce)).subject_to(**relations).solve(margin="auto", holdout=held, progress=False)


def conflicting():
    """Three constraints of which two exclude each other, with names that would be markup."""
    x, least = cn.Variable(3, "x", nonneg=True), cn.Parameter("least", 5.0)
    relations = {EVIL: x[0] + x[1] <= 3, "output": x[0] + x[1] >= least, "other": x[2] <= 1}
    return cn.minimize(cn.sum(x)).subject_to(**relations).solve(progress=False)
