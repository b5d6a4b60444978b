"""A support-vector classifier as a constraint per row that outliers may exceed at a cost.

`forall(D, D.y * f(D.x) >= 1)` asks for a margin of one on every row, which no linear classifier has on the
breast-cancer data of scikit-learn (569 tumors, 30 measurements, standardized). Relaxed at the cost
h(z) = 5 z² it is the soft-margin classifier with squared hinge loss, relaxed at h(z) = z the one with hinge
loss. The slack of a row and its multiplier, h'(z), are part of the solution: rows with a multiplier are the
support vectors.

References: scikit-learn's `LinearSVC` for the squared hinge, whose objective is half of this one; for the
hinge the same program written in CVXPY, with the dual values of its constraints.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.svm import LinearSVC

import constrain as cn
from constrain import forall

TOLERANCE = {
    "squared: weights": 1e-6,
    "squared: objective": 1e-8,
    "squared: rows that pay": 0.0,
    "squared: largest slack": 1e-6,
    "hinge: weights": 1e-6,
    "hinge: objective": 1e-8,
    "hinge: support vectors": 0.0,
    "hinge: multipliers": 1e-6,
}


def rows():
    """Standardized measurements, and labels of -1 (malignant) and 1."""
    data = load_breast_cancer()
    return (data.data - data.data.mean(0)) / data.data.std(0), 2.0 * data.target - 1.0


def problem(cost):
    """Return the problem and its model."""
    x, y = rows()
    D = cn.Data("tumors", x=torch.tensor(x), y=torch.tensor(y))
    net = torch.nn.Sequential(torch.nn.Linear(30, 1, dtype=torch.float64), torch.nn.Flatten(0))
    f = cn.Model(net, "f")
    return cn.minimize(cn.sum_squares(f)).subject_to(fit=forall(D, D.y * f(D.x) >= 1).relax(cost=cost)), f


def weights(f):
    """Weights and bias in one array."""
    linear = f.module[0]
    return np.append(linear.weight.detach().numpy().ravel(), float(linear.bias.detach()))


def by_sklearn(x, y):
    """Weights of the squared hinge: (|w|² + b²) / 2 + 2.5 * sum of squared slacks, half of ours."""
    found = LinearSVC(C=2.5, loss="squared_hinge", dual=True, tol=1e-10, max_iter=10_000_000, random_state=0)
    found.fit(x, y)
    return np.append(found.coef_.ravel(), found.intercept_)


def by_cvxpy(x, y):
    """Weights, optimal value and dual values of the hinge."""
    w, slack = cp.Variable(31), cp.Variable(len(y), nonneg=True)
    margin = cp.multiply(y, np.column_stack([x, np.ones(len(y))]) @ w) >= 1 - slack
    value = cp.Problem(cp.Minimize(cp.sum_squares(w) + cp.sum(slack)), [margin]).solve(
        solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10
    )
    return w.value, value, margin.dual_value


def run():
    """Solve both classifiers."""
    x, y = rows()
    squared, f = problem(cn.squared(10.0))
    solution = squared.solve(progress=False)
    fit, expected = solution["fit"], by_sklearn(x, y)
    slack = np.maximum(0, 1 - y * (np.column_stack([x, np.ones(len(y))]) @ expected))
    measured = {
        "squared: weights": weights(f),
        "squared: objective": solution.objective,
        "squared: rows that pay": int(np.sum(fit.relaxation > 1e-5)),
        "squared: largest slack": fit.summary.max_relaxation,
    }
    reference = {
        "squared: weights": expected,
        "squared: objective": expected @ expected + 5 * slack @ slack,
        "squared: rows that pay": int(np.sum(slack > 1e-5)),
        "squared: largest slack": slack.max(),
    }
    hinge, f = problem(cn.linear(1.0))
    solution = hinge.solve(progress=False)
    fit, (expected, value, duals) = solution["fit"], by_cvxpy(x, y)
    measured |= {
        "hinge: weights": weights(f),
        "hinge: objective": solution.objective,
        "hinge: support vectors": fit.summary.support,
        "hinge: multipliers": fit.multiplier,
    }
    reference |= {
        "hinge: weights": expected,
        "hinge: objective": value,
        "hinge: support vectors": int(np.sum(duals > 1e-5)),
        "hinge: multipliers": duals,
    }
    return measured, reference


if __name__ == "__main__":
    print(problem(cn.squared(10.0))[0].solve(progress=False))
    measured, reference = run()
    for name, value in measured.items():
        error = np.max(np.abs(np.asarray(value) - reference[name]))
        shown = f"{value:.6f}" if np.ndim(value) == 0 else f"{np.size(value)} numbers"
        print(f"{name:24} {shown:>12}   largest difference {error:.1e}")
