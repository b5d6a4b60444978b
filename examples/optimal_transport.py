"""Optimal transport: exact, with few sources per target, and smoothed by entropy.

Between two samples on a line the cheapest plan for a squared distance matches quantiles, whatever the cost
matrix is given as: its value is known in closed form, and the multipliers of the marginals are the potentials
of Kantorovich, which cost less than the cost everywhere. A plan in which every target has at most two sources
is a mixed-integer program (`cn.count_nonzero(plan, axis=0) <= 2`). With an entropy term the problem is smooth
and its solution is that of the scaling iteration of Sinkhorn (Cuturi 2013, "Sinkhorn distances").
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import LinearConstraint, milp

import constrain as cn

RNG = np.random.default_rng(3)
X, Y = np.sort(RNG.normal(size=6)), np.sort(RNG.normal(1.0, 0.7, size=5))
A, B = RNG.dirichlet(4 * np.ones(6)), RNG.dirichlet(4 * np.ones(5))
COST = (X[:, None] - Y[None, :]) ** 2
MOST, SMOOTHING = 2, 0.05
TOLERANCE = 1e-5


def problem(*, few=False, smoothing=0.0):
    """Return the problem and its plan."""
    most = np.minimum(A[:, None], B[None, :]) if few else None  # what is counted needs bounds
    plan = cn.Variable(COST.shape, "plan", bounds=(0.0, most))
    value = cn.sum(COST * plan)
    if smoothing:
        value = value - smoothing * cn.sum(cn.entr(plan))
    transport = cn.minimize(value).subject_to(
        sources=cn.sum(plan, axis=1) == A, targets=cn.sum(plan, axis=0) == B
    )
    return (transport.subject_to(few=cn.count_nonzero(plan, axis=0) <= MOST) if few else transport), plan


def quantile_coupling():
    """Return the cost of matching quantiles."""
    cuts = np.unique(np.concatenate([[0.0], np.cumsum(A)[:-1], np.cumsum(B)[:-1], [1.0]]))
    middle = (cuts[1:] + cuts[:-1]) / 2
    pairs = COST[np.searchsorted(np.cumsum(A), middle), np.searchsorted(np.cumsum(B), middle)]
    return float(np.diff(cuts) @ pairs)


def by_scipy():
    """Return the value with few sources, by a mixed-integer program written by hand for scipy."""
    m, n = COST.shape
    size = m * n
    rows, columns = np.kron(np.eye(m), np.ones(n)), np.kron(np.ones(m), np.eye(n))
    none, most = np.zeros((m + n, size)), np.minimum(A[:, None], B[None, :]).reshape(-1)
    found = milp(
        np.concatenate([COST.reshape(-1), np.zeros(size)]),
        integrality=np.repeat([0, 1], size),
        bounds=(0, np.concatenate([most, np.ones(size)])),
        constraints=[
            LinearConstraint(np.hstack([np.vstack([rows, columns]), none]), np.r_[A, B], np.r_[A, B]),
            LinearConstraint(np.hstack([np.eye(size), -np.diag(most)]), -np.inf, 0.0),
            LinearConstraint(np.hstack([np.zeros((n, size)), columns]), -np.inf, MOST),
        ],
    )
    return float(found.fun)


def sinkhorn(steps=20_000):
    """Return the smoothed plan by alternating scaling."""
    kernel = np.exp(-COST / SMOOTHING)
    v = np.ones(len(B))
    for _ in range(steps):
        u = A / (kernel @ v)
        v = B / (kernel.T @ u)
    return u[:, None] * kernel * v[None, :]


def run():
    """Solve the three problems."""
    exact = problem()[0].solve(progress=False)
    potentials = -np.asarray(exact["sources"].multiplier), -np.asarray(exact["targets"].multiplier)
    room = COST - potentials[0][:, None] - potentials[1][None, :]
    few = problem(few=True)[0].solve(progress=False)
    smooth, plan = problem(smoothing=SMOOTHING)
    smooth.solve(progress=False)
    measured = {
        "cost": exact.objective,
        "value of the potentials": float(potentials[0] @ A + potentials[1] @ B),
        "potentials beyond the cost": max(0.0, -float(room.min())),
        "cost with few sources": few.objective,
        "most sources of a target": float(np.max(few["few"].value)),
        "smoothed plan": np.asarray(plan.value),
    }
    reference = {
        "cost": quantile_coupling(),
        "value of the potentials": quantile_coupling(),
        "potentials beyond the cost": 0.0,
        "cost with few sources": by_scipy(),
        "most sources of a target": float(MOST),
        "smoothed plan": sinkhorn(),
    }
    return measured, reference


if __name__ == "__main__":
    print(problem(few=True)[0].solve(progress=False))
    measured, reference = run()
    for name in ("cost", "value of the potentials", "cost with few sources"):
        print(f"{name:26} {measured[name]:.6f}   reference {reference[name]:.6f}")
