"""The learning rate of a run that nobody gave one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E
from constrain.driver.setup import lowered, prepare
from constrain.solvers.primal_dual import LR, PrimalDual, Training


def scores(net):
    """Logistic regression with two groups whose mean scores may differ by 0.1."""
    g = torch.Generator().manual_seed(0)
    rows = 600
    group = (torch.rand(rows, generator=g) < 0.3).long()
    x = torch.randn(rows, 5, generator=g, dtype=torch.float64)
    x[:, 0] += group
    y = (x[:, 0] + torch.randn(rows, generator=g, dtype=torch.float64) > 0).double()
    D = cn.Data("sample", x=x, y=y, group=group)
    f = cn.Model(net, "f")
    loss = F.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")
    gap = abs(E(f(D.x), given=D.group == 1) - E(f(D.x), given=D.group == 0))
    return cn.minimize(E(loss) + 1e-3 * cn.sum_squares(f)).subject_to(gap=gap <= 0.1)


def linear():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(5, 1), torch.nn.Flatten(0)).double()


def network():
    torch.manual_seed(1)
    layers = torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1), torch.nn.Flatten(0)
    return torch.nn.Sequential(*layers).double()


def rate(problem, **options):
    setup = prepare(lowered(problem), device=torch.device("cpu"), dtype=torch.float64)
    return Training(PrimalDual(**options), setup.evaluator).optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("net", "options", "expected"),
    [
        (linear, {"batch": 600, "epochs": 300}, 0.2),
        (linear, {"batch": 600, "epochs": 3000}, 0.02),
        (linear, {"batch": 600, "epochs": 100_000}, LR),
        (linear, {"batch": 600, "epochs": 300, "lr": 0.01}, 0.01),
        (linear, {"batch": 100, "epochs": 300}, LR),
        (network, {"batch": 600, "epochs": 300}, LR),
    ],
)
def test_what_follows_from_models_and_batches(net, options, expected):
    assert rate(scores(net()), **options) == pytest.approx(expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_hundred_steps_on_all_rows_come_within_a_thousandth(seed):
    exact = scores(linear()).solve("cvxpy", progress=False)
    found = scores(linear()).solve("lagrangian", batch=600, epochs=300, seed=seed, progress=False)
    assert found.objective == pytest.approx(exact.objective, rel=1e-3)
    assert float(found["gap"].violation) <= 1e-3
    assert found["gap"].multiplier == pytest.approx(exact["gap"].multiplier, rel=0.05)
