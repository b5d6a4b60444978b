"""The most powerful test at a given size, found by training under a bound on an exact rate.

Scores are normal with mean 0 (no signal) or 1.5 (signal), variance 1. Among all tests with false-alarm
rate at most alpha the Neyman-Pearson lemma names the one with the fewest misses: it raises the alarm
above the threshold Φ⁻¹(1 - alpha), and misses Φ(Φ⁻¹(1 - alpha) - 1.5) of the signals.

Both classes are represented by 2000 equally likely quantiles, so that the sample has the rates of the
population up to 1/2000. `alpha` is a parameter: it changes between two solves, the problem does not.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import torch

import constrain as cn
from constrain import P

SHIFT = 1.5
ROWS = 2000
SIZES = (0.05, 0.2)
TOLERANCE = 0.01


def problem():
    """Return the problem, its parameter and the sample."""
    quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / ROWS) for i in range(ROWS)])
    D = cn.Data(
        "scores",
        x=torch.tensor(np.concatenate([quantiles, quantiles + SHIFT]))[:, None],
        y=torch.cat([torch.zeros(ROWS), torch.ones(ROWS)]),
    )
    f = cn.Model(torch.nn.Linear(1, 1, dtype=torch.float64), "f")
    alarm, alpha = f(D.x).squeeze(-1) > 0, cn.Parameter("alpha", SIZES[0])
    misses = P(~alarm, given=D.y == 1)
    return cn.minimize(misses).subject_to(false_alarm=P(alarm, given=D.y == 0) <= alpha), alpha, f


def run():
    """Solve for both sizes of the test."""
    test, alpha, f = problem()
    measured, reference = {}, {}
    for size in SIZES:
        alpha.value = size
        torch.nn.init.ones_(f.module.weight)
        torch.nn.init.zeros_(f.module.bias)
        solution = test.solve(seed=0, progress=False)
        threshold = NormalDist().inv_cdf(1 - size)
        measured[f"false alarms at {size}"] = float(solution["false_alarm"].value)
        reference[f"false alarms at {size}"] = size
        measured[f"misses at {size}"] = float(solution.objective)
        reference[f"misses at {size}"] = NormalDist().cdf(threshold - SHIFT)
    return measured, reference


if __name__ == "__main__":
    print(problem()[0])
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:22} {value:.4f}   by the lemma {reference[name]:.4f}")
