"""A budget for data, split over groups: continuous, and in whole batches.

The error of a model on a group falls with its sample size as w s n^(-1/2), and rows of the groups have
different costs. The best split of a budget follows from one equation, n_k proportional to
(w_k s_k / c_k)^(2/3), and one more unit of budget lowers the error by value / (2 budget), which is the
multiplier. Where rows are only sold in batches of 25, the sizes are integers: a convex mixed-integer
nonlinear program, solved by outer approximation and checked by enumeration.
"""

from __future__ import annotations

import numpy as np

import constrain as cn

WEIGHT, SPREAD, COST = np.array([0.5, 0.3, 0.2]), np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 5.0])
BUDGET, BATCH = 1000.0, 25.0
TOLERANCE = {
    "error": 1e-6,
    "price of the budget, scaled": 1e-5,
    "sizes": 1e-4,
    "error in batches": 1e-6,
    "batches": 0.0,
}


def continuous():
    """Return the problem with sizes that are real numbers, and the sizes."""
    n = cn.Variable(3, "n", nonneg=True)
    return cn.minimize(cn.sum(WEIGHT * SPREAD * n**-0.5)).subject_to(budget=COST @ n <= BUDGET), n


def in_batches():
    """Return the problem with whole batches, and their numbers."""
    k = cn.Variable(3, "k", integer=True, bounds=(1, BUDGET / BATCH))
    error = cn.sum(WEIGHT * SPREAD * (BATCH * k) ** -0.5)
    return cn.minimize(error).subject_to(budget=BATCH * (COST @ k) <= BUDGET), k


def enumerated():
    """Return the least error in batches, and their numbers, among all that the budget pays."""
    most = int(BUDGET / BATCH)
    grid = np.stack(np.meshgrid(*[np.arange(1, most + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    paid = grid[BATCH * (grid @ COST) <= BUDGET]
    errors = (WEIGHT * SPREAD / np.sqrt(BATCH * paid)).sum(axis=1)
    return float(errors.min()), paid[errors.argmin()]


def run():
    """Solve both problems."""
    problem, n = continuous()
    solution = problem.solve(progress=False)
    whole, k = in_batches()
    batched = whole.solve(progress=False)
    share = (WEIGHT * SPREAD / COST) ** (2 / 3)
    sizes = BUDGET * share / (COST @ share)
    error = float(np.sum(WEIGHT * SPREAD / np.sqrt(sizes)))
    least, batches = enumerated()
    measured = {
        "error": solution.objective,
        "price of the budget, scaled": 2 * BUDGET * solution["budget"].multiplier,
        "sizes": np.asarray(n.value),
        "error in batches": batched.objective,
        "batches": np.asarray(k.value),
    }
    reference = {
        "error": error,
        "price of the budget, scaled": error,
        "sizes": sizes,
        "error in batches": least,
        "batches": batches,
    }
    return measured, reference


if __name__ == "__main__":
    print(in_batches()[0].explain())
    print(in_batches()[0].solve(progress=False))
    measured, reference = run()
    for name in measured:
        print(f"{name:20} {measured[name]}   reference {reference[name]}")
