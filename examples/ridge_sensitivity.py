"""How the solution of a regression moves with its penalty, by implicit differentiation.

Ridge regression on the diabetes data of scikit-learn (centered target, no intercept): w(α) minimizes
‖X w − y‖² + α‖w‖². The layer differentiates the optimality conditions; the formula for this problem is
dw/dα = −(XᵀX + αI)⁻¹ w. The reference values of the first four entries at α = 0.5 come from the formula and
from finite differences.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_diabetes

import constrain as cn

TOLERANCE = 1e-6
ALPHA = 0.5


def ridge():
    """The regression as a layer: penalty -> coefficients."""
    data = load_diabetes()
    X, y = torch.as_tensor(data.data), torch.as_tensor(data.target - data.target.mean())
    w, alpha = cn.Variable(X.shape[1], "w"), cn.Parameter("alpha")
    problem = cn.minimize(cn.sum_squares(X @ w - y) + alpha * cn.sum_squares(w))
    return cn.layer(problem, inputs=alpha, outputs=w), X, y


def run():
    """Coefficients and their sensitivities, by the layer and by the formulas."""
    layer, X, y = ridge()
    alpha = torch.tensor(ALPHA, dtype=torch.float64, requires_grad=True)
    w = layer(alpha)
    slope = torch.stack([torch.autograd.grad(entry, alpha, retain_graph=True)[0] for entry in w])

    matrix = X.T @ X + ALPHA * torch.eye(X.shape[1], dtype=torch.float64)
    coefficients = torch.linalg.solve(matrix, X.T @ y)
    measured = {
        "coefficients": w.detach().numpy(),
        "sensitivities": slope.numpy(),
        "first four": slope[:4].numpy(),
    }
    reference = {
        "coefficients": coefficients.numpy(),
        "sensitivities": -torch.linalg.solve(matrix, coefficients).numpy(),
        "first four": np.array([29.59336462, 133.90215389, -200.33516383, -109.70819058]),
    }
    return measured, reference


if __name__ == "__main__":
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:14} {np.round(value, 4)}\n{'reference':14} {np.round(reference[name], 4)}")
