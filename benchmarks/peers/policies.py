"""Alignment toy: 64 prompts, 32 responses, 5 constraints on expected gains, a divergence from a reference.

Whole calls by ours (problem in, judged solution out); the peers get the arrays. Iterative methods are looked
at after every step, at no cost to them; the time stands at which error and violation had fallen to a level.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp, rel_entr, softmax

from benchmarks.closed import BETA, Policies, alignment, policies
from benchmarks.peers.loops import COOPER, HUMAN, Evaluated, Step
from benchmarks.peers.table import Table, accurate, milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["table"]

LEVELS = (1e-2, 1e-3, 1e-4)
LIMIT = 3.0
"""Seconds of CPU time for each first-order method."""


def _judge(given: Policies, pi: NDArray[np.float64]) -> tuple[float, float]:
    """Objective and largest violation."""
    prompts = len(given.reward)
    value = (given.reward * pi).sum() / prompts - BETA * rel_entr(pi, given.reference).sum() / prompts
    gains = (given.gains * pi).sum((1, 2)) / prompts
    return float(value), float(max(0.0, (given.levels - gains).max()))


def _dual(given: Policies) -> NDArray[np.float64]:
    """The policy by L-BFGS-B on the dual: the multipliers tilt the reference."""
    log = np.log(given.reference)

    def dual(multipliers: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        tilted = log + (given.reward + np.tensordot(multipliers, given.gains, 1)) / BETA
        pi = softmax(tilted, axis=1)
        gains = (given.gains * pi).sum((1, 2)) / len(pi)
        value = BETA * float(logsumexp(tilted, axis=1).mean()) - float(multipliers @ given.levels)
        return value, gains - given.levels

    found: Any = minimize(
        dual, np.zeros(len(given.gains)), jac=True, method="L-BFGS-B",
        bounds=[(0, None)] * len(given.gains), options={"ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    return softmax(log + (given.reward + np.tensordot(found.x, given.gains, 1)) / BETA, axis=1)


def _cvxpy(given: Policies) -> NDArray[np.float64]:
    import cvxpy as cp

    pi = cp.Variable(given.reward.shape, nonneg=True)
    prompts = len(given.reward)
    value = cp.sum(cp.multiply(given.reward, pi)) / prompts
    value -= BETA * cp.sum(cp.rel_entr(pi, given.reference)) / prompts
    gains = [
        cp.sum(cp.multiply(g, pi)) / prompts >= b for g, b in zip(given.gains, given.levels, strict=True)
    ]
    cp.Problem(cp.Maximize(value), [cp.sum(pi, axis=1) == 1, *gains]).solve(solver=cp.CLARABEL)
    return np.asarray(pi.value)


def _train(
    given: Policies, best: float, make: Callable[..., Step], **options: Any
) -> tuple[dict[float, float], float, float]:
    """First-order training of the logits by Adam (0.1, halved every 500 steps), and when levels were met."""
    prompts = len(given.reward)
    reward, gains, reference, levels = (torch.tensor(a) for a in given)
    logits = reference.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 500, 0.5)

    def evaluate() -> Evaluated:
        log = torch.log_softmax(logits, 1)
        pi = log.exp()
        value = (pi * (reward - BETA * (log - reference.log()))).sum() / prompts
        return Evaluated(-value, [levels - (gains * pi).sum((1, 2)) / prompts])

    step = make(evaluate, [len(levels)], optimizer, **options)
    met: dict[float, float] = {}
    spent, error, violation = 0.0, np.inf, np.inf
    while spent < LIMIT and len(met) < len(LEVELS):
        start = time.process_time()
        found = step()
        schedule.step()
        spent += time.process_time() - start
        error = abs(-float(found.loss.detach()) - best) / abs(best)
        violation = max(0.0, float(found.constraints[0].detach().max()))
        met |= {level: spent for level in LEVELS if level not in met and max(error, violation) <= level}
    return met, error, violation


def table(rounds: int = 5) -> Table:
    """Exact routes by the median of whole calls, then first-order methods."""
    given = policies()
    best = alignment().solve("closed", progress=False).bound
    result = Table(
        "alignment", ("method", *(f"to {level:.0e}" for level in LEVELS), "error at the end", "violation")
    )

    def ours() -> NDArray[np.float64]:
        problem = alignment()
        problem.solve(progress=False)
        return np.asarray(problem.variables[0].value)

    exact = {
        "ours: `solve()`, problem written and solved": ours,
        "SciPy L-BFGS-B on the dual, derived by hand": lambda: _dual(given),
        "CVXPY, Clarabel": lambda: _cvxpy(given),
    }
    for who, work in exact.items():
        work()
        times: list[float] = []
        for _ in range(rounds):
            start = time.process_time()
            pi = work()
            times.append(time.process_time() - start)
        value, violation = _judge(given, pi)
        middle, least, most = map(milliseconds, (statistics.median(times), min(times), max(times)))
        result.add(
            who,
            *("same",) * (len(LEVELS) - 1),
            f"{middle} ({least} to {most})",
            accurate(abs(value - best) / abs(best)),
            accurate(violation),
        )
    peers = (
        ("Cooper, augmented, dual lr 0.1, penalty 1", COOPER, {"dual_lr": 0.1, "penalty": 1.0}),
        ("Cooper, Lagrangian, dual lr 0.05", COOPER, {"dual_lr": 0.05}),
        ("Cooper, augmented, plausible: dual lr 1, penalty 1", COOPER, {"dual_lr": 1.0, "penalty": 1.0}),
        ("humancompatible-train, ALM, dual lr 0.1, penalty 1", HUMAN, {"dual_lr": 0.1, "penalty": 1.0}),
    )
    for who, (package, make), options in peers:
        if not result.absent(package, who):
            met, error, violation = _train(given, best, make, **options)
            times = [milliseconds(met[level]) if level in met else f"not in {LIMIT:g} s" for level in LEVELS]
            result.add(who, *times, accurate(error), accurate(violation))
    return result
