"""How much a small network can amplify a change of its input: a certificate by semidefinite programming.

For f(x) = W₁ φ(W₀x + b₀) + b₁ and a diagonal T ≥ 0, the matrix inequality

    [ −ρI      W₀ᵀT        ]
    [ TW₀   −2T + W₁ᵀW₁   ]  ≼ 0

proves ‖f(x) − f(y)‖ ≤ √ρ ‖x − y‖ for every φ with slopes between 0 and 1, ReLU among them (LipSDP: Fazlyab,
Robey, Hassani, Morari and Pappas 2019). MaxMin sorts pairs of units: a difference of two inputs keeps its sum
over a pair, and its length does not grow. So T may have a block λI + γ11ᵀ per pair, with λ ≥ 0 and any γ, and
the inequality becomes W₀ᵀTW₀ ≼ ρI and W₁ᵀW₁ ≼ T (after Pauli, Havens, Araujo, Garg, Khorrami, Allgöwer and
Hu 2024).

The language has no matrix inequalities. It has functions of the user: the largest eigenvalue is convex, and
`cn.op` says so, and how CVXPY writes it. The reference is the same program written in CVXPY with `<<`. The
norm of the matrices multiplied, the usual bound, is above it; slopes found by search are below, and those of
ReLU reach it on this network.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import torch

import constrain as cn

TOLERANCE = {
    "relu": 1e-5,
    "maxmin": 1e-5,
    "one unit": 1e-5,
    "relu bounds the search": 0.0,
    "maxmin bounds the search": 0.0,
    "relu improves on the norms": 0.0,
}

ROUNDING = 1e-8
"""What the interior point may be short of a bound that is reached, as that of ReLU is here."""


def largest_eigenvalue(matrix):
    return torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[..., -1]


def for_cvxpy(matrix):
    """Of a matrix, or of each in a stack of them."""
    if matrix.ndim == 2:
        return cp.lambda_max((matrix + matrix.T) / 2)
    return cp.hstack([for_cvxpy(matrix[i]) for i in range(matrix.shape[0])])


eigenvalue = cn.op(
    "largest_eigenvalue",
    torch=largest_eigenvalue,
    shape="(n,n)->()",
    curvature="convex",
    monotone="none",
    sign="any",
    smooth=False,
    cvxpy=for_cvxpy,
    latex=r"\lambda_{\max}",
)


def layers(inputs=4, hidden=8, outputs=3):
    rng = np.random.default_rng(0)
    return rng.normal(size=(hidden, inputs)) / 2, rng.normal(size=(outputs, hidden)) / 3


def relu_certificate(first, second):
    """The bound of ReLU, and any other activation with slopes in [0, 1]."""
    units, inputs = first.shape
    a, top = torch.tensor(first), torch.eye(units + inputs, dtype=torch.float64)[:, :inputs]
    below = torch.eye(units + inputs, dtype=torch.float64)[:, inputs:]
    rho, t = cn.Variable((), "rho", nonneg=True), cn.Variable(units, "t", nonneg=True)
    cross = (below * t) @ a @ top.T  # rows of hidden units, columns of inputs
    fixed = below @ torch.tensor(second.T @ second) @ below.T
    matrix = cross + cross.T - 2 * (below * t) @ below.T - rho * (top @ top.T) + fixed
    problem = cn.minimize(rho).subject_to(certificate=eigenvalue(matrix) <= 0)
    return np.sqrt(problem.solve(progress=False).objective)


def maxmin_certificate(first, second):
    """The bound of MaxMin, which sorts units 2i and 2i + 1."""
    units, inputs = first.shape
    pairs = np.kron(np.eye(units // 2), np.ones((1, 2)))  # which units a pair has
    a, spread = torch.tensor(first), torch.tensor(pairs)
    rho = cn.Variable((), "rho", nonneg=True)
    length, total = cn.Variable(units // 2, "length", nonneg=True), cn.Variable(units // 2, "total")
    t = torch.eye(units, dtype=torch.float64) * (length @ spread) + (spread.T * total) @ spread
    problem = cn.minimize(rho).subject_to(
        before=eigenvalue(a.T @ t @ a - rho * torch.eye(inputs, dtype=torch.float64)) <= 0,
        after=eigenvalue(torch.tensor(second.T @ second) - t) <= 0,
    )
    return np.sqrt(problem.solve(progress=False).objective)


def by_hand(first, second, kind):
    """The same programs in CVXPY, as matrix inequalities."""
    units, inputs = first.shape
    rho = cp.Variable(nonneg=True)
    if kind == "relu":
        t = cp.diag(cp.Variable(units, nonneg=True))
        corner = -2 * t + second.T @ second
        conditions = [cp.bmat([[-rho * np.eye(inputs), first.T @ t], [t @ first, corner]]) << 0]
    else:
        length, total = cp.Variable(units // 2, nonneg=True), cp.Variable(units // 2)
        t = cp.kron(cp.diag(length), np.eye(2)) + cp.kron(cp.diag(total), np.ones((2, 2)))
        conditions = [first.T @ t @ first << rho * np.eye(inputs), second.T @ second << t]
    problem = cp.Problem(cp.Minimize(rho), conditions)
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return np.sqrt(float(problem.value))


def maxmin(z):
    return z.reshape(*z.shape[:-1], -1, 2).sort(-1, descending=True).values.flatten(-2)


def steepest(first, second, activation):
    """The largest slope at 20,000 random inputs: a lower bound of any certificate."""
    a, b = torch.tensor(first), torch.tensor(second)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, a.shape[1], generator=generator, dtype=torch.float64)
    slopes = torch.func.vmap(torch.func.jacrev(lambda v: b @ activation(a @ v)))(x)
    return float(torch.linalg.matrix_norm(slopes, 2).max())


def run():
    """Certificates of a network with 4 inputs, 8 hidden units and 3 outputs."""
    first, second = layers()
    norms = np.linalg.norm(first, 2) * np.linalg.norm(second, 2)
    smooth, sorted_pairs = relu_certificate(first, second), maxmin_certificate(first, second)
    measured = {
        "relu": smooth,
        "maxmin": sorted_pairs,
        "one unit": relu_certificate(np.array([[3.0, 4.0]]), np.array([[2.0]])),
        "relu bounds the search": smooth >= (1 - ROUNDING) * steepest(first, second, torch.relu),
        "maxmin bounds the search": sorted_pairs >= (1 - ROUNDING) * steepest(first, second, maxmin),
        "relu improves on the norms": smooth < norms,
    }
    reference = {
        "relu": by_hand(first, second, "relu"),
        "maxmin": by_hand(first, second, "maxmin"),
        "one unit": 10.0,
        "relu bounds the search": True,
        "maxmin bounds the search": True,
        "relu improves on the norms": True,
    }
    return measured, reference


if __name__ == "__main__":
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:27}", value)
