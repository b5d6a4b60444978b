"""A problem compiled by hand, and a table of problems that covers every kind of average."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E, P, forall
from constrain.lowering.lower import lower
from constrain.runtime.decisions import Decisions
from constrain.runtime.estimates import Estimator
from constrain.runtime.evaluator import Evaluator

ROWS = 400


class Compiled:
    """A problem with its decisions and evaluator."""

    def __init__(self, problem, dtype=torch.float64, chunk=ROWS // 50, device="cpu"):
        self.problem = problem
        self.program = lower(problem)
        self.decisions = Decisions(self.program, torch.device(device), dtype)
        self.evaluator = Evaluator(self.program, self.decisions, dtype=dtype, chunk=chunk)


def sample(rows=ROWS, groups=4, dtype=torch.float64, seed=0, name="sample"):
    rng = np.random.default_rng(seed)
    group = np.asarray([f"g{i}" for i in rng.integers(groups, size=rows)])
    group[:groups] = [f"g{i}" for i in range(groups)]
    x = torch.tensor(rng.normal(size=(rows, 3)), dtype=dtype)
    y = torch.tensor(rng.integers(2, size=rows), dtype=dtype)
    return cn.Data(name, x=x, y=y, group=group)


def network(dtype=torch.float64, seed=1):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1), torch.nn.Flatten(0)
    ).to(dtype)


def network_of(inputs, seed=1, dtype=torch.float64):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(inputs, 24), torch.nn.Tanh(), torch.nn.Linear(24, 1)).to(dtype)


def loss(s, y):
    return F.binary_cross_entropy_with_logits(s, y, reduction="none")


SPECS = {
    "affine": lambda D, s: cn.minimize(E(loss(s, D.y))).subject_to(c=E(s) <= 0.1),
    "conditional": lambda D, s: cn.minimize(E(loss(s, D.y))).subject_to(c=E(s, given=D.y == 1) >= 0.1),
    "ratio": lambda D, s: cn.minimize(E(s**2) / (1 + E(torch.exp(s)))).subject_to(
        c=E(s) / (2 + E(s**2)) <= 0.1
    ),
    "abs": lambda D, s: cn.minimize(abs(E(s)) + E(loss(s, D.y))).subject_to(c=abs(E(s)) <= 0.02),
    "product": lambda D, s: cn.minimize(E(s) * E(s * D.y) + E(s**2)).subject_to(c=E(s**2) - E(s) ** 2 <= 0.1),
    "by group": lambda D, s: cn.minimize(E(loss(s, D.y))).subject_to(
        c=abs(E(torch.sigmoid(s), by=D.group) - E(torch.sigmoid(s))) <= 0.02,
        d=cn.max(E(s, by=(D.group, D.y))) <= 1,
    ),
    "rate": lambda D, s: cn.minimize(E(loss(s, D.y))).subject_to(
        c=P(s > 0, given=D.y == 1) >= 0.8, d=P((s > 0) & (D.y == 1), by=D.group) <= 0.5
    ),
    "rate given a decision": lambda D, s: cn.minimize(E(loss(s, D.y))).subject_to(
        c=P(D.y == 1, given=s > 0) >= 0.6
    ),
    "per row": lambda D, s: cn.minimize(E(s**2)).subject_to(c=forall(D, (2 * D.y - 1) * s >= 0.1)),
    "per row, some": lambda D, s: cn.minimize(E(s**2)).subject_to(
        c=forall(D.where(D.y == 1), s >= 0.1), d=E(s) <= 1
    ),
}


def spec(name, module=None, data=None, dtype=torch.float64):
    D = data or sample(dtype=dtype)
    f = cn.Model(module or network(dtype), "f")
    return SPECS[name](D, f(D.x))


def estimate(evaluator, index, kinds="auto"):
    """Estimates on rows given by position, by sample name."""
    rows = {data.name: p.take(index[data.name]) for data, p in evaluator.populations.items()}
    return Estimator(evaluator, kinds)(rows)


class Kit:
    """What the tests of the runtime build with."""

    rows = ROWS
    specs = SPECS
    compiled = staticmethod(Compiled)
    sample = staticmethod(sample)
    network = staticmethod(network)
    network_of = staticmethod(network_of)
    loss = staticmethod(loss)
    spec = staticmethod(spec)
    estimate = staticmethod(estimate)


@pytest.fixture
def kit():
    return Kit


@pytest.fixture(params=list(SPECS))
def name(request):
    return request.param
