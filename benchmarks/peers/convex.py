"""Adult, linear score: logistic regression under bounds on two gaps of the mean score; optimum known."""

from __future__ import annotations

import math
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize

import adult
import adult_data
from benchmarks.peers.loops import COOPER, HUMAN, Evaluated, Step
from benchmarks.peers.table import Table, accurate, milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["table"]

RIDGE, BOUND = 1e-3, 0.1
LEVELS = (1e-2, 1e-3, 1e-4)
LIMIT = 5.0
"""Seconds of CPU time for each first-order method."""


class Fit(NamedTuple):
    """The problem as arrays; the last column of `x` is the intercept.

    Attributes:
        x: (rows, 96) features.
        y: (rows,) labels, 0 or 1.
        gaps: (4, 96) so that gaps @ w <= 0.1.
        ridge: (96,) weights of squares; 0 for the intercept.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    gaps: NDArray[np.float64]
    ridge: NDArray[np.float64]

    def value(self, w: NDArray[np.float64]) -> float:
        score = self.x @ w
        return float(np.mean(np.logaddexp(0, score) - self.y * score) + 0.5 * np.sum(self.ridge * w**2))

    def slope(self, w: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.x.T @ (1 / (1 + np.exp(-(self.x @ w))) - self.y) / len(self.y) + self.ridge * w

    def curvature(self, w: NDArray[np.float64]) -> NDArray[np.float64]:
        p = 1 / (1 + np.exp(-(self.x @ w)))
        return (self.x * (p * (1 - p) / len(p))[:, None]).T @ self.x + np.diag(self.ridge)

    def judged(self, w: NDArray[np.float64]) -> tuple[float, float]:
        """Relative error of the objective and largest violation."""
        error = abs(self.value(w) / adult.GOLDEN["value"] - 1)
        return error, max(0.0, float((self.gaps @ w).max()) - BOUND)


def arrays(split: adult_data.Split) -> Fit:
    """The training split."""
    x = np.column_stack([split.x, np.ones(len(split.y))])
    male, high = split.sex == "Male", split.y == 1

    def gap(rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        return x[rows & male].mean(0) - x[rows & ~male].mean(0)

    gaps = np.stack([gap(np.ones_like(male)), gap(high)])
    ridge = np.append(np.full(x.shape[1] - 1, RIDGE), 0.0)
    return Fit(x, split.y, np.concatenate([gaps, -gaps]), ridge)


def by_newton(fit: Fit) -> NDArray[np.float64]:
    """Augmented Lagrangian with exact Hessians, written for this problem."""
    w, multipliers, penalty = np.zeros(fit.x.shape[1]), np.zeros(len(fit.gaps)), 10.0
    for _ in range(20):
        for _ in range(20):
            shifted = np.maximum(0, multipliers + penalty * (fit.gaps @ w - BOUND))
            slope = fit.slope(w) + fit.gaps.T @ shifted
            if np.abs(slope).max() < 1e-10:
                break
            active = fit.gaps[shifted > 0]
            w = w - np.linalg.solve(fit.curvature(w) + penalty * active.T @ active, slope)
        moved = np.maximum(0, multipliers + penalty * (fit.gaps @ w - BOUND))
        if np.abs(moved - multipliers).max() < 1e-9:
            break
        multipliers = moved
    return w


def by_slsqp(fit: Fit) -> NDArray[np.float64]:
    below = {"type": "ineq", "fun": lambda w: BOUND - fit.gaps @ w, "jac": lambda _: -fit.gaps}
    found: Any = minimize(
        fit.value, np.zeros(fit.x.shape[1]), jac=fit.slope, method="SLSQP", constraints=[below],
        options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    return found.x


def by_cvxpy(fit: Fit) -> NDArray[np.float64]:
    import cvxpy as cp

    w = cp.Variable(fit.x.shape[1])
    score = fit.x @ w
    loss = cp.sum(cp.logistic(score) - cp.multiply(fit.y, score)) / len(fit.y)
    ridge = 0.5 * RIDGE * cp.sum_squares(w[:-1])
    cp.Problem(cp.Minimize(loss + ridge), [fit.gaps @ w <= BOUND]).solve(solver=cp.CLARABEL)
    return np.asarray(w.value)


def by_ours(split: adult_data.Split, method: str = "auto", **options: Any) -> NDArray[np.float64]:
    """Problem written, analyzed, solved and judged."""
    net = adult.linear()
    problem = adult.score_gap(adult.sample(split), net)
    problem.solve(method, progress=False, **options)
    intercept = problem.variables[0].value
    return np.append(net[0].weight.detach().numpy().ravel(), float(intercept))


def train(
    fit: Fit, make: Callable[..., Step], lr: float, **options: Any
) -> tuple[dict[float, float], int, float, float]:
    """First-order training on all rows; Adam halved every 300 steps. CPU times at which levels were met."""
    x, y, gaps, ridge = (torch.tensor(a) for a in fit)
    w = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 300, 0.5)

    def evaluate() -> Evaluated:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ w, y) + 0.5 * (ridge * w**2).sum()
        return Evaluated(loss, [gaps @ w - BOUND])

    step = make(evaluate, [len(gaps)], optimizer, **options)
    met: dict[float, float] = {}
    spent, count, error, violation = 0.0, 0, math.inf, math.inf
    while spent < LIMIT and len(met) < len(LEVELS):
        start = time.process_time()
        found = step()
        schedule.step()
        spent += time.process_time() - start
        count += 1
        error = abs(float(found.loss.detach()) / adult.GOLDEN["value"] - 1)
        violation = max(0.0, float(found.constraints[0].detach().max()))
        met |= {level: spent for level in LEVELS if level not in met and max(error, violation) <= level}
    return met, count, error, violation


def table(rounds: int = 3) -> Table:
    """Exact methods in alternation, then first-order methods by their best and by plausible step sizes."""
    split = adult_data.load().train
    fit = arrays(split)
    result = Table(
        "adult-convex",
        (
            "method",
            *(f"to {level:.0e}" for level in LEVELS),
            "time / Newton by hand",
            "error at the end",
            "violation",
        ),
    )
    exact: dict[str, Callable[[], NDArray[np.float64]]] = {
        "Newton by hand (NumPy, for this problem only)": lambda: by_newton(fit),
        "ours: `solve()`, problem written and solved": lambda: by_ours(split),
        "SciPy SLSQP, exact gradients": lambda: by_slsqp(fit),
        "CVXPY, Clarabel": lambda: by_cvxpy(fit),
    }
    times: dict[str, list[float]] = {who: [] for who in exact}
    found = {who: work() for who, work in exact.items() if "CVXPY" not in who}
    for done in range(rounds):
        for who, work in exact.items():
            if done and "CVXPY" in who:
                continue  # tens of times the others: once
            start = time.process_time()
            found[who] = work()
            times[who].append(time.process_time() - start)
    base = times[next(iter(exact))]
    for who, taken in times.items():
        ratios = [t / b for t, b in zip(taken, base, strict=False)]
        spread = f"{statistics.median(ratios):.2g} ({min(ratios):.2g} to {max(ratios):.2g})"
        error, violation = fit.judged(found[who])
        last = milliseconds(statistics.median(taken))
        result.add(who, *("same",) * (len(LEVELS) - 1), last, spread, accurate(error), accurate(violation))
    start = time.process_time()
    w = by_ours(split, "lagrangian", batch=len(fit.y), epochs=300)
    spent = milliseconds(time.process_time() - start)
    error, violation = fit.judged(w)
    met = [spent if max(error, violation) <= level else "not in 300 steps" for level in LEVELS]
    result.add(
        'ours: `solve("lagrangian")`, 300 steps on all rows, by its defaults',
        *met,
        "",
        accurate(error),
        accurate(violation),
    )
    peers = (
        ("Cooper, augmented, lr 0.03, dual lr 0.03, penalty 0.3", COOPER,
         0.03, {"dual_lr": 0.03, "penalty": 0.3}),
        ("Cooper, Lagrangian, lr 0.03, dual lr 0.001", COOPER, 0.03, {"dual_lr": 1e-3}),
        ("Cooper, Lagrangian, plausible: lr 0.05, dual lr 0.1", COOPER, 0.05, {"dual_lr": 0.1}),
        ("humancompatible-train, ALM, lr 0.03, dual lr 0.03, penalty 0.3", HUMAN,
         0.03, {"dual_lr": 0.03, "penalty": 0.3}),
        ("humancompatible-train, ALM, plausible: lr 0.05, dual lr 0.1, penalty 1", HUMAN,
         0.05, {"dual_lr": 0.1, "penalty": 1.0}),
    )  # fmt: skip
    for who, (package, make), lr, options in peers:
        if not result.absent(package, who):
            reached, count, error, violation = train(fit, make, lr, **options)
            cells = [milliseconds(reached[v]) if v in reached else f"not in {count} steps" for v in LEVELS]
            result.add(who, *cells, "", accurate(error), accurate(violation))
    return result
