"""Control of a partial differential equation: a source z heats a plate towards a target.

Minimize ½‖w − w̄‖² + ½α‖z‖² subject to Δw + z = 0 on a square with w = 0 on its border, by the five-point
Laplacian on n × n inner points. There is no sampling: state and control are variables, the equation is one
constraint per grid point, and its multipliers are the adjoint state. Conditions of optimality in closed form:
z = −p/α and Δp = w̄ − w, of which the reference solves the sparse linear system.

The value on the 3 × 3 grid, and the multiplier at its first point, are those of a published run.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import spsolve

import constrain as cn

TOLERANCE = 1e-6
ALPHA = 0.1


def laplacian(n, h):
    """Five-point Laplacian of n x n inner points at distance h, zero on the border."""
    line = sp.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(n, n))
    return (sp.kron(line, sp.eye_array(n)) + sp.kron(sp.eye_array(n), line)).tocsr() / h**2


def target(n):
    """The published target on 3 x 3 points, and the same function on finer grids."""
    step = 0.1 / np.sqrt(15) * (np.arange(1, n + 1) * 4 / (n + 1) - 2)
    return (np.sin(4 + step)[:, None] + np.cos(3 + step)[None, :]).ravel()


def controlled(n, side=2.0):
    """Value, state, control and adjoint state, as solved here."""
    operator = torch.tensor(laplacian(n, side / (n + 1)).toarray())
    w, z = cn.Variable(n * n, "w"), cn.Variable(n * n, "z")
    cost = 0.5 * cn.sum_squares(w - torch.tensor(target(n))) + 0.5 * ALPHA * cn.sum_squares(z)
    solution = cn.minimize(cost).subject_to(heat=operator @ w + z == 0).solve(progress=False)
    return solution.objective, w.value, z.value, solution["heat"].multiplier


def factorized(n, side=2.0):
    """The same by the sparse system of state and adjoint state."""
    operator, wanted = laplacian(n, side / (n + 1)), target(n)
    identity = sp.eye_array(n * n)
    system = sp.block_array([[identity, operator.T], [operator, -identity / ALPHA]]).tocsc()
    w, p = np.split(spsolve(system, np.concatenate([wanted, np.zeros(n * n)])), 2)
    z = -p / ALPHA
    return 0.5 * np.sum((w - wanted) ** 2) + 0.5 * ALPHA * np.sum(z**2), w, z, p


def run():
    """The published grid, and one of 15 x 15 points against the factorization."""
    value, _, _, adjoint = controlled(3)
    fine, expected = controlled(15), factorized(15)
    names = ("value, 15 x 15", "state", "control", "adjoint state")
    measured = {"value": value, "first multiplier": adjoint[0], **dict(zip(names, fine, strict=True))}
    reference = {
        "value": 9.6444420518,
        "first multiplier": 0.21247954,
        **dict(zip(names, expected, strict=True)),
    }
    return measured, reference


if __name__ == "__main__":
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:17}", np.round(value, 6))
