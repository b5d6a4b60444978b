"""Policy improvement within a trust region: the quadratic model, and the divergence itself.

The step of a natural-gradient method solves: maximize g·d subject to ½ d·F d ≤ δ. The optimum is known,
d = F⁻¹g / λ with λ = sqrt(g·F⁻¹g / 2δ), and the optimal value is 2δλ.

For a policy over four actions the divergence needs no model: maximize the expected advantage subject to
KL(new ‖ old) ≤ ε over the probabilities themselves. The optimum tilts the old policy, p ∝ π₀ exp(a / λ);
the reference solves for λ by bracketing.
"""

from __future__ import annotations

import numpy as np
import torch

import constrain as cn

TOLERANCE = 1e-4
DELTA = 0.01
EPSILON = 0.05
OLD_POLICY = np.array([0.1, 0.2, 0.3, 0.4])
ADVANTAGE = np.array([1.0, 0.2, -0.3, -0.5])


def quadratic_model():
    """Solve the quadratic model and return (value, step, multiplier), measured and by the formula."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 5))
    fisher, gradient = root.T @ root / 6 + 0.1 * np.eye(5), rng.normal(size=5)

    d, delta = cn.Variable(5, "step"), cn.Parameter("delta", DELTA)
    problem = cn.maximize(torch.tensor(gradient) @ d).subject_to(
        kl=0.5 * cn.quad_form(d, torch.tensor(fisher)) <= delta
    )
    solution = problem.solve(progress=False)

    natural = np.linalg.solve(fisher, gradient)
    multiplier = np.sqrt(gradient @ natural / (2 * DELTA))
    measured = float(solution.objective), np.asarray(d.value), float(solution["kl"].multiplier)
    return measured, (2 * DELTA * multiplier, natural / multiplier, multiplier)


def exact_divergence():
    """Solve the four-action problem and return (value, multiplier)."""
    advantage = torch.tensor(ADVANTAGE - OLD_POLICY @ ADVANTAGE)
    p = cn.Variable(4, "p", nonneg=True)
    problem = cn.maximize(advantage @ p).subject_to(
        total=cn.sum(p) == 1,
        kl=cn.sum(cn.rel_entr(p, torch.tensor(OLD_POLICY))) <= EPSILON,
    )
    solution = problem.solve(progress=False)
    return float(solution.objective), float(solution["kl"].multiplier)


def run():
    """Solve both problems."""
    (value, step, multiplier), (best, best_step, best_multiplier) = quadratic_model()
    gain, price = exact_divergence()
    measured = {
        "model: gain": value,
        "model: step": step,
        "model: multiplier": multiplier,
        "divergence: gain": gain,
        "divergence: multiplier": price,
    }
    reference = {
        "model: gain": best,
        "model: step": best_step,
        "model: multiplier": best_multiplier,
        "divergence: gain": 0.15592090,
        "divergence: multiplier": 1.65065,
    }
    return measured, reference


if __name__ == "__main__":
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:24} {np.round(value, 6)}   reference {np.round(reference[name], 6)}")
