"""Known problems over variables: allocation, transport of probability, policies, control."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constrain._lazy import attribute
from constrain.language.functions import entr, min, rel_entr, sum, sum_squares  # the language's words
from constrain.language.problem import find, maximize, minimize
from constrain.language.symbols import Variable
from constrain.testing.known import CONVEX, EXACT, FULL_DATA, NO_DATA, KnownProblem

if TYPE_CHECKING:
    from constrain.language.problem import Problem

__all__ = ["decision_problems"]

_VARIABLES = {"lagrangian": NO_DATA, "cooper": NO_DATA}
_ALL = {"cvxpy": CONVEX, "newton": EXACT, "augmented": FULL_DATA}
_FORMULA = {"closed": EXACT, **_ALL}


def _tensor(values: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


# ------------------------------------------------------------------------------------ distributions
def _maxent() -> Problem:
    z = torch.linspace(-10, 10, 401, dtype=torch.float64)
    p = Variable(401, "p", nonneg=True)
    p.value = np.full(401, 1 / 401)
    return maximize(sum(entr(p))).subject_to(
        total=sum(p) == 1, mean=z @ p == 0.5, second=(z**2) @ p == 1.7 + 0.5**2
    )


_OLD = (0.1, 0.2, 0.3, 0.4)
_ADVANTAGE = (1.0, 0.2, -0.3, -0.5)


def _trust_region(*, new_first: bool) -> Problem:
    old = _tensor(_OLD)
    advantage = _tensor(_ADVANTAGE)
    advantage = advantage - old @ advantage
    p = Variable(4, "p", nonneg=True)
    p.value = np.asarray(_OLD)
    divergence = rel_entr(p, old) if new_first else rel_entr(old, p)
    return maximize(advantage @ p).subject_to(total=sum(p) == 1, near=sum(divergence) <= 0.05)


def _tilt() -> Problem:
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(6, 8))
    first = rng.normal(size=(6, 8)) - 0.6 * reward
    second = rng.normal(size=(6, 8)) - 0.6 * reward
    reference = np.stack([rng.dirichlet(np.ones(8)) for _ in range(6)])
    pi = Variable((6, 8), "pi", nonneg=True)
    pi.value = reference
    ref = _tensor(reference)
    gain = sum(_tensor(reward) * pi) / 6 - 0.1 * sum(rel_entr(pi, ref)) / 6
    g1, g2 = _tensor(first), _tensor(second)
    return maximize(gain).subject_to(
        total=sum(pi, axis=1) == 1,
        helpful=sum(g1 * pi) / 6 >= 0.15 + float((g1 * ref).sum()) / 6,
        harmless=sum(g2 * pi) / 6 >= 0.10 + float((g2 * ref).sum()) / 6,
    )


# ---------------------------------------------------------------------------------- decision processes
def _frozen_lake(budget: float | None) -> Problem:
    make = attribute("gymnasium:make")
    lake = make("FrozenLake-v1", map_name="4x4", is_slippery=True).unwrapped
    holes: Any = lake.desc.ravel() == b"H"
    transition, reward, falls = np.zeros((16, 4, 16)), np.zeros((16, 4)), np.zeros((16, 4))
    for state, actions in lake.P.items():
        for action, outcomes in actions.items():
            for probability, after, gain, _ in outcomes:
                transition[state, action, after] += probability
                reward[state, action] += probability * gain
                falls[state, action] += probability * float(holes[after] and not holes[state])
    start = np.eye(16)[0]
    mu = Variable((16, 4), "mu", nonneg=True)
    arriving = torch.einsum("sap,sa->p", _tensor(transition), mu)  # type: ignore[arg-type]  # records an expression
    problem = maximize(sum(_tensor(reward) * mu)).subject_to(
        flow=sum(mu, axis=1) - 0.99 * arriving == _tensor(start)
    )
    return problem if budget is None else problem.subject_to(budget=sum(_tensor(falls) * mu) <= budget)


def _worst_of_three() -> Problem:
    rewards = _tensor([[1, 0.2, 0.6], [0.1, 0.9, 0.7], [0.8, -0.5, 0.4]])
    p, t = Variable(3, "p", nonneg=True), Variable((), "t")
    return maximize(t).subject_to(total=sum(p) == 1, rows=rewards @ p - t >= 0)


def _worst_of_three_max_min() -> Problem:
    rewards = _tensor([[1, 0.2, 0.6], [0.1, 0.9, 0.7], [0.8, -0.5, 0.4]])
    p = Variable(3, "p", nonneg=True)
    return maximize(min(rewards @ p)).subject_to(total=sum(p) == 1)


# --------------------------------------------------------------------------------- allocation, control
def _allocation() -> Problem:
    n = Variable(3, "n", nonneg=True)
    n.value = np.full(3, 100.0)
    scale = _tensor([0.5 * 1, 0.3 * 2, 0.2 * 4])
    return minimize(sum(scale * n**-0.5)).subject_to(budget=_tensor([1, 2, 5]) @ n <= 1000)


def _projection() -> Problem:
    u, mu = Variable(4, "u"), _tensor([1, 2, 0.5, 0.3])
    precision = 1 / _tensor([0.5, 0.2, 1, 0.1])
    return minimize(sum(precision * (u - mu) ** 2)).subject_to(mean=0.25 * sum(u) == 1.2)


def _pde_control() -> Problem:
    places = np.arange(1, 4)
    target = np.sin(4 + 0.1 / math.sqrt(15) * (places - 2))[:, None] + np.cos(
        3 + 0.1 / math.sqrt(15) * (places - 2)
    )
    line = np.diag([-2.0] * 3) + np.diag([1.0] * 2, 1) + np.diag([1.0] * 2, -1)
    laplacian = np.kron(line, np.eye(3)) + np.kron(np.eye(3), line)
    w, z = Variable(9, "w"), Variable(9, "z")
    cost = 0.5 * sum_squares(w - _tensor(target.ravel())) + 0.05 * sum_squares(z)
    return minimize(cost).subject_to(state=_tensor(laplacian / 0.5**2) @ w + z == 0)


_STATE_PRICES = (
    0.21247954, 0.26028580, 0.21307769,
    0.26156946, 0.32332746, 0.26227892,
    0.21525010, 0.26357193, 0.21584826,
)  # fmt: skip


def _hydro() -> Problem:
    inflow, demand = _tensor([3, 1, 2, 0.5]), _tensor([4, 4, 5, 4])
    target = _tensor([3.1, 1.3, 0.9, 0.2])
    volume = Variable(4, "volume", bounds=(0.0, 6.0))
    release = Variable(4, "release", bounds=(0.0, 4.0))
    thermal = Variable(4, "thermal", bounds=(0.0, 3.0))
    deficit, miss = Variable(4, "deficit", nonneg=True), Variable(4, "miss", nonneg=True)
    spill, over = Variable(4, "spill", nonneg=True), Variable(4, "over", nonneg=True)
    earlier = torch.diag(torch.ones(3, dtype=torch.float64), -1)
    start = _tensor([3, 0, 0, 0])
    cost = sum(_tensor([10, 12, 15, 11]) * thermal) + 200 * sum(deficit) + 100 * sum(miss + over)
    return minimize(cost).subject_to(
        balance=volume - earlier @ volume + release + spill == inflow + start,
        serve=release + thermal + deficit == demand,
        track=volume + miss - over == target,
    )


# ------------------------------------------------------------------------------------------ pathologies
def _impossible() -> Problem:
    w = Variable((), "w")
    return minimize(w**2).subject_to(above=w >= 2, below=w <= 1.5)


def _impossible_find() -> Problem:
    p = Variable(3, "p", nonneg=True)
    return find().subject_to(total=sum(p) == 1, heavy=p[0] + p[1] >= 1.5)


def decision_problems() -> list[KnownProblem]:
    """Known problems over variables only."""
    lake = ("gymnasium",)
    allocation = (209.997, 149.387, 98.246)
    return [
        KnownProblem(
            "maxent", _maxent, 4.679984932, "closed form", {"second": 0.2941186}, {}, _FORMULA, _VARIABLES
        ),
        KnownProblem(
            "trust-region-kl", lambda: _trust_region(new_first=True), 0.1559208975, "scalar root (Brent)",
            {"near": 1.6506476}, {}, _ALL, _VARIABLES,
        ),
        KnownProblem(
            "trust-region-trpo", lambda: _trust_region(new_first=False), 0.1680348236, "scalar root (Brent)",
            {"near": 1.8924629}, {}, _ALL, _VARIABLES,
        ),
        KnownProblem(
            "tilt", _tilt, 0.7426550474, "L-BFGS on the dual, Clarabel",
            {"helpful": 0.24319542, "harmless": 0.27002369}, {}, _FORMULA, _VARIABLES,
        ),
        KnownProblem(
            "frozenlake", lambda: _frozen_lake(None), 0.5420259320, "HiGHS", {}, {}, _ALL, _VARIABLES,
            needs=lake,
        ),
        KnownProblem(
            "frozenlake-cost", lambda: _frozen_lake(0.10), 0.4591470588, "HiGHS",
            {"budget": 4.5914705882}, {}, _ALL, _VARIABLES, needs=lake,
        ),
        KnownProblem(
            "worst-of-three", _worst_of_three, 0.52, "linear program by hand", {"rows": (0, 0.4, 0.6)},
            {"p": (0.3, 0, 0.7)}, _ALL, _VARIABLES,
        ),
        KnownProblem(
            "worst-of-three-max-min", _worst_of_three_max_min, 0.52, "linear program by hand",
            {"total": 0.52}, {"p": (0.3, 0, 0.7)}, _ALL, _VARIABLES,
        ),
        KnownProblem(
            "allocation", _allocation, 0.164304778, "closed form", {"budget": 0.164304778 / 2000},
            {"n": allocation}, _ALL, _VARIABLES,
        ),
        KnownProblem(
            "projection", _projection, 5 / 9, "closed form", {"mean": -40 / 9},
            {"u": (1.2777778, 2.1111111, 1.0555556, 0.3555556)}, _FORMULA, _VARIABLES,
        ),
        KnownProblem(
            "pde-control-3", _pde_control, 9.6444420518, "factorization of the KKT system",
            {"state": _STATE_PRICES}, {}, _FORMULA, _VARIABLES,
        ),
        KnownProblem(
            "hydro", _hydro, 95.2, "HiGHS, finite differences", {"track": (2, 3, -4, -11)}, {},
            _ALL, _VARIABLES,
        ),
        KnownProblem(
            "impossible", _impossible, math.nan, "2 > 1.5", {}, {}, _ALL, _VARIABLES, outcome="infeasible"
        ),
        KnownProblem(
            "impossible-find", _impossible_find, math.nan, "1.5 > 1", {}, {}, _ALL, _VARIABLES,
            outcome="infeasible",
        ),
    ]  # fmt: skip
