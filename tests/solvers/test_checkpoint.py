"""Checkpoints: a run that is cut off and continued ends bit by bit where the uncut one ends."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E, P, forall
from constrain.solvers.checkpoint import Checkpoint, read, write
from constrain.solvers.primal_dual import PrimalDual


# ------------------------------------------------------------------------------------------- problems
def sample(rows=400):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=g, dtype=torch.float64)
    y = (x[:, 0] + torch.randn(rows, generator=g, dtype=torch.float64) > 0).double()
    return cn.Data("sample", x=x, y=y, group=(torch.rand(rows, generator=g) < 0.1).long())


def network(seed=3):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1), torch.nn.Flatten(0)
    ).double()


def rates(bound=0.4, D=None):
    """Rates by group, a level, one multiplier per row."""
    D = sample() if D is None else D
    f = cn.Model(network(), "f")
    s = f(D.x)
    loss = F.binary_cross_entropy_with_logits(s, D.y, reduction="none")
    constraints = {
        "rate": P(s > 0, by=D.group) >= bound,
        "level": E(s * s) <= 0.3,
        "fit": forall(D, loss <= 3.0),
    }
    return cn.minimize(E(loss)).subject_to(**constraints)


def tails():
    """Thresholds, a variance, a slack, an objective that is a largest value."""
    D = sample()
    f = cn.Model(network(), "f")
    s = f(D.x)
    loss = F.binary_cross_entropy_with_logits(s, D.y, reduction="none")
    return cn.minimize(cn.max(E(loss, by=D.group))).subject_to(
        tail=cn.CVaR(loss, 0.9) <= 1.2,
        median=cn.Quantile(s, 0.5) <= 0.1,
        spread=cn.Var(s) <= 0.4,
        soft=(E(s) <= -0.1).relax(cost=cn.squared(10.0)),
    )


def functions():
    """A multiplier per row as a network with an optimizer of its own, stratified batches."""
    D = sample()
    f, lam = cn.Model(network(), "f"), cn.Model(network(5), "lam")
    loss = F.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")
    problem = cn.minimize(E(loss)).subject_to(fit=forall(D, loss <= 1.0), gap=E(f(D.x), by=D.group) <= 0.1)
    return problem, {"multipliers": {"fit": lam(D.x)}, "sampling": "stratified"}


def points():
    """Fresh points of a continuous population."""
    t, u = cn.Uniform("t", 0.0, 1.0), cn.Model(network_of_one(), "u")
    return cn.minimize(E((u(t) - t) ** 2)).subject_to(level=E(u(t)) <= 0.4)


def network_of_one():
    torch.manual_seed(2)
    return torch.nn.Sequential(torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).double()


def refreshed():
    """Exact passes within the epochs, momentum and a second parameter group's worth of state."""
    return rates(), {"refresh": 5, "optimizer": lambda t: torch.optim.SGD(t, lr=0.05, momentum=0.9)}


CASES = {
    "rates": ("lagrangian", rates),
    "tails": ("lagrangian", tails),
    "functions": ("lagrangian", functions),
    "points": ("lagrangian", points),
    "refreshed": ("lagrangian", refreshed),
    "penalties": ("augmented", rates),
    "cooper": ("cooper", rates),
    "cooper penalties": ("cooper", lambda: (rates(), {"formulation": "augmented", "scheme": "alternating"})),
}


class Cut(BaseException):
    """The end of a process, as far as a run can tell."""


def cut_after(rounds):
    def callback(told):
        if told.done == rounds:
            raise Cut

    return callback


def made(build):
    found = build()
    return found if isinstance(found, tuple) else (found, {})


def solved(method, build, **options):
    problem, own = made(build)
    solution = problem.solve(method, progress=False, epochs=6, batch=60, **own, **options)
    return solution, problem


def same(a, b):
    """Whether two solutions are equal bit by bit."""
    assert a.objective == b.objective
    assert a.history == b.history
    assert {k: v.tolist() for k, v in a.weights.items()} == {k: v.tolist() for k, v in b.weights.items()}
    assert all(np.array_equal(a.multipliers[k], b.multipliers[k]) for k in a.multipliers)
    assert a.status == b.status


# ------------------------------------------------------------------------------------------ continuing
@pytest.mark.parametrize("name", CASES)
def test_a_continued_run_ends_where_the_uncut_one_ends(name, tmp_path):
    method, build = CASES[name]
    path = tmp_path / "run.ckpt"
    whole, _ = solved(method, build)
    with pytest.raises(Cut):
        solved(method, build, checkpoint=Checkpoint(path, steps=4), callback=cut_after(4))
    torch.manual_seed(99)
    continued, _ = solved(method, build, resume=path)
    same(whole, continued)


def test_cut_again_and_again(tmp_path):
    path = tmp_path / "run.ckpt"
    whole, _ = solved("lagrangian", rates)
    for rounds in (1, 2, 4):
        with pytest.raises(Cut):
            solved(
                "lagrangian",
                rates,
                checkpoint=Checkpoint(path, steps=3),
                resume=True,
                callback=cut_after(rounds),
            )
    continued, _ = solved("lagrangian", rates, checkpoint=path, resume=True)
    same(whole, continued)
    again, _ = solved("lagrangian", rates, checkpoint=path, resume=True)  # nothing is left to do
    same(whole, again)
