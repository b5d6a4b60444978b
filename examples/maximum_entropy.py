"""The distribution of largest entropy with a given mean and variance, on a grid.

On the whole line the answer is the normal distribution, whose entropy grows by 1 / (2 variance) per unit
of variance: that is the multiplier of the second moment. On 401 points of [-10, 10] the optimum is a
normal density at the points, up to the error of the grid, and the entropy is that of the density minus
the logarithm of the spacing.
"""

from __future__ import annotations

import numpy as np
import torch

import constrain as cn

MEAN, VARIANCE = 0.5, 1.7
POINTS = np.linspace(-10.0, 10.0, 401)
TOLERANCE = {"entropy": 1e-6, "multiplier of the second moment": 1e-4, "probabilities": 1e-5}


def problem():
    """Return the problem and its decision."""
    z = torch.tensor(POINTS)
    p = cn.Variable(len(POINTS), "p", nonneg=True)
    return cn.maximize(cn.sum(cn.entr(p))).subject_to(
        total=cn.sum(p) == 1,
        mean=z @ p == MEAN,
        second=(z**2) @ p == VARIANCE + MEAN**2,
    ), p


def run():
    """Solve the problem."""
    entropy, p = problem()
    solution = entropy.solve(progress=False)
    spacing = POINTS[1] - POINTS[0]
    density = np.exp(-((POINTS - MEAN) ** 2) / (2 * VARIANCE)) / np.sqrt(2 * np.pi * VARIANCE)
    measured = {
        "entropy": float(solution.objective),
        "multiplier of the second moment": float(solution["second"].multiplier),
        "probabilities": np.asarray(p.value),
    }
    reference = {
        "entropy": 0.5 * np.log(2 * np.pi * np.e * VARIANCE) - np.log(spacing),
        "multiplier of the second moment": 1 / (2 * VARIANCE),
        "probabilities": density * spacing,
    }
    return measured, reference


if __name__ == "__main__":
    entropy, p = problem()
    print(entropy)
    print(entropy.solve(progress=False))
    measured, reference = run()
    for name in ("entropy", "multiplier of the second moment"):
        print(f"{name:34} {measured[name]:.7f}   normal distribution {reference[name]:.7f}")
