"""Symmetric and positive semidefinite matrices: optima, dual matrices, the judge, and both ways."""

import math

import numpy as np
import pytest
import torch

import constrain as cn
from constrain.runtime import rowwise

cp = pytest.importorskip("cvxpy")
torch.set_num_threads(1)

EXACT = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}


def symmetric(size, seed):
    root = np.random.default_rng(seed).normal(size=(size, size))
    return (root + root.T) / 2


def laplacian(size, seed):
    weights = np.abs(symmetric(size, seed))
    np.fill_diagonal(weights, 0.0)
    return np.diag(weights.sum(axis=1)) - weights


def diagonal(X, size):
    return cn.stack([X[i, i] for i in range(size)])


# ------------------------------------------------------------------------------------- optima and duals
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("way", ["psd", ">>", "<<", "lambda_min", "lambda_max"])
def test_the_smallest_eigenvalue_as_a_semidefinite_program(seed, way):
    """min <C, X> with trace 1 is the smallest eigenvalue; the dual matrix is C - lambda I."""
    C = symmetric(4, seed)
    X = cn.Variable((4, 4), "X", symmetric=way != "psd", psd=way == "psd")
    written = {
        "psd": {},
        ">>": {"cone": X >> 0},
        "<<": {"cone": 0 << X},
        "lambda_min": {"cone": cn.lambda_min(X) >= 0},
        "lambda_max": {"cone": cn.lambda_max(-X) <= 0},
    }[way]
    problem = cn.minimize(cn.sum(C * X)).subject_to(unit=cn.trace(X) == 1, **written)
    solution = problem.solve(progress=False)
    least = np.linalg.eigvalsh(C)[0]
    cone = solution["X psd" if way == "psd" else "cone"]
    assert solution.status.value == "optimal"
    assert solution.objective == pytest.approx(least, abs=1e-8)
    assert solution["unit"].multiplier == pytest.approx(-least, abs=1e-7)
    np.testing.assert_allclose(cone.matrix, C - least * np.eye(4), atol=1e-6)
    assert cone.multiplier == pytest.approx(np.trace(C) - 4 * least, abs=1e-6)
    np.testing.assert_allclose(X.value, X.value.T)
    assert solution.kkt().stationarity < 1e-7
    assert abs(np.sum(cone.matrix * X.value)) < 1e-7
    assert np.linalg.eigvalsh(cone.matrix)[0] > -1e-8


@pytest.mark.parametrize("sense", ["maximize", "minimize"])
def test_max_cut_against_cvxpy(sense):
    """Multiple eigenvalues 0 at the optimum: the slope of the eigenvalue is that of the dual matrix."""
    L = laplacian(5, 0)
    Y = cn.Variable((5, 5), "Y", symmetric=True)
    value = cn.sum(L * Y) / 4
    start = cn.maximize(value) if sense == "maximize" else cn.minimize(-value)
    solution = start.subject_to(cone=Y >> 0, unit=diagonal(Y, 5) == 1).solve(progress=False)
    Z = cp.Variable((5, 5), symmetric=True)
    rows = [Z >> 0, cp.diag(Z) == 1]
    objective = cp.sum(cp.multiply(L, Z)) / 4
    other = cp.Problem(cp.Maximize(objective) if sense == "maximize" else cp.Minimize(-objective), rows)
    other.solve(solver="CLARABEL", **EXACT)
    assert solution.status.value == "optimal"
    assert solution.objective == pytest.approx(other.value, rel=1e-7)
    np.testing.assert_allclose(solution["cone"].matrix, rows[0].dual_value, atol=1e-4)
    np.testing.assert_allclose(solution["unit"].multiplier, rows[1].dual_value, atol=1e-4)
    assert solution.kkt().stationarity_scaled < 1e-7


def test_the_shadow_price_of_a_smallest_eigenvalue():
    """The derivative of the optimal value in b of lambda_min(X) >= b is the trace of the dual matrix."""
    C, b = symmetric(3, 3), cn.Parameter("b", 0.05)
    X = cn.Variable((3, 3), "X", symmetric=True)
    problem = cn.minimize(cn.sum(C * X) + 0.5 * cn.sum_squares(X)).subject_to(
        floor=cn.lambda_min(X) >= b, unit=cn.trace(X) == 1
    )
    price = problem.solve(progress=False)["floor"].shadow_price
    ends = [problem.solve(params={"b": 0.05 + h}, progress=False).objective for h in (-1e-3, 1e-3)]
    assert price == pytest.approx((ends[1] - ends[0]) / 2e-3, rel=1e-3)
    assert price > 0.1


def test_eigenvalues_within_other_expressions():
    """Not a constraint of their own: their slope comes from the epigraph's dual matrix."""
    matrices = [symmetric(4, k) for k in range(4)]
    w = cn.Variable(3, "w")
    combined = matrices[0] + w[0] * matrices[1] + w[1] * matrices[2] + w[2] * matrices[3]
    spread = cn.lambda_max(combined) - cn.lambda_min(combined)
    problem = cn.minimize(spread + 0.05 * cn.sum_squares(w)).subject_to(
        cap=2.0 * cn.lambda_max(combined) + w[0] <= 2.0
    )
    solution = problem.solve(progress=False)
    u = cp.Variable(3)
    other = matrices[0] + sum(u[k] * matrices[k + 1] for k in range(3))
    theirs = cp.Problem(
        cp.Minimize(cp.lambda_max(other) - cp.lambda_min(other) + 0.05 * cp.sum_squares(u)),
        [2 * cp.lambda_max(other) + u[0] <= 2.0],
    )
    theirs.solve(solver="CLARABEL", **EXACT)
    assert solution.status.value == "optimal"
    assert solution.objective == pytest.approx(theirs.value, rel=1e-7)
    assert solution.kkt().stationarity < 1e-6


def test_log_det_of_a_symmetric_variable():
    """The maximum likelihood estimate of a precision matrix is the inverse of the covariance."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 3))
    S = rows.T @ rows / 50
    X = cn.Variable((3, 3), "X", symmetric=True)
    solution = cn.maximize(cn.log_det(X) - cn.sum(S * X)).solve("cvxpy", progress=False)
    np.testing.assert_allclose(X.value, np.linalg.inv(S), atol=1e-4)
    assert solution.objective == pytest.approx(-math.log(np.linalg.det(S)) - 3, abs=1e-7)


@pytest.mark.parametrize("norm", ["spectral_norm", "nuclear_norm"])
def test_norms_of_matrices_against_their_duals(norm):
    """min |X| with <A, X> = 1 is one over the dual norm of A."""
    A = np.random.default_rng(1).normal(size=(3, 4))
    X = cn.Variable((3, 4), "X")
    problem = cn.minimize(getattr(cn, norm)(X)).subject_to(plane=cn.sum(A * X) == 1)
    solution = problem.solve(progress=False)
    values = np.linalg.svd(A, compute_uv=False)
    dual = values.sum() if norm == "spectral_norm" else values[0]
    assert solution.status.value == "optimal"
    assert solution.objective == pytest.approx(1 / dual, rel=1e-6)


def test_bounds_of_a_symmetric_variable():
    """cvxpy has no attribute for both; the nearest correlation matrix without negative entries."""
    target = symmetric(4, 5)
    X = cn.Variable((4, 4), "X", nonneg=True, psd=True)
    solution = (
        cn.minimize(cn.sum_squares(X - target)).subject_to(unit=diagonal(X, 4) == 1).solve(progress=False)
    )
    Y = cp.Variable((4, 4), symmetric=True)
    other = cp.Problem(cp.Minimize(cp.sum_squares(Y - target)), [Y >> 0, Y >= 0, cp.diag(Y) == 1])
    other.solve(solver="CLARABEL", **EXACT)
    assert solution.objective == pytest.approx(other.value, rel=1e-6)
    np.testing.assert_allclose(X.value, Y.value, atol=1e-4)


# ----------------------------------------------------------------------------------- other routes, judge
def test_other_routes_take_eigenvalues_or_say_why_not():
    A, B = symmetric(3, 0), symmetric(3, 1)
    t = cn.Variable((), "t")
    problem = cn.minimize(cn.lambda_max(A + t * B) + 0.5 * t**2)
    reasons = {route.method: route for route in problem.explain().routes}
    assert (reasons["pyomo"].open, reasons["newton"].open) == (False, False)
    assert reasons["pyomo"].reason == "eigenvalues are no closed formula"
    assert "lambda_max" in reasons["newton"].reason
    exact = problem.solve(progress=False)
    followed = problem.solve("augmented", progress=False)
    assert exact.status.value == "optimal"
    assert followed.objective == pytest.approx(exact.objective, abs=1e-5)
    with pytest.raises(cn.RouteError, match="eigenvalues"):
        problem.derive()


def test_the_judge_at_other_points_has_its_own_slopes():
    """A slope of the solution is used where it is one, and nowhere else."""
    C = symmetric(3, 2)
    X = cn.Variable((3, 3), "X", symmetric=True)
    problem = cn.minimize(cn.sum(C * X)).subject_to(unit=cn.trace(X) == 1, cone=X >> 0)
    solution = problem.solve(progress=False)
    assert solution.kkt().stationarity < 1e-7
    off = problem.kkt({"X": np.diag([0.5, 0.3, 0.2])}, {"unit": solution["unit"].multiplier, "cone": 0.0})
    rest = C + solution["unit"].multiplier * np.eye(3)
    assert off.stationarity == pytest.approx(np.abs(rest).max(), rel=1e-6)
    outside = problem.kkt({"X": np.diag([1.2, -0.3, 0.1])})
    assert outside.feasibility == pytest.approx(0.3)


def test_slopes_of_eigenvalues():
    """Simple: finite differences. Multiple: the slope that was set, if it is one there."""
    x = torch.tensor(symmetric(4, 1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: rowwise.lambda_max(v, lead=(0,)), (x,))
    twice = torch.eye(3, dtype=torch.float64, requires_grad=True)

    class Slope:
        value = np.diag([0.5, 0.25, 0.25])

    rowwise.lambda_min(twice, lead=(0,), slope=Slope).backward()
    np.testing.assert_allclose(twice.grad, Slope.value)
    apart = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)).requires_grad_()
    rowwise.lambda_min(apart, lead=(0,), slope=Slope).backward()
    np.testing.assert_allclose(apart.grad, np.diag([1.0, 0.0, 0.0]), atol=1e-12)


# ------------------------------------------------------------------------------------------ there and back
@pytest.mark.filterwarnings("ignore:.*CPP backend")
def test_round_trip_through_cvxpy():
    L = laplacian(4, 2)
    Y = cn.Variable((4, 4), "Y", psd=True)
    problem = cn.maximize(cn.sum(L * Y) / 4 - 0.1 * cn.lambda_max(Y)).subject_to(unit=diagonal(Y, 4) == 1)
    ours = problem.solve(progress=False)
    exported = problem.to_cvxpy()
    assert any(type(c).__name__ == "PSD" and c.label == "Y psd" for c in exported.constraints)
    exported.solve(solver="CLARABEL", **EXACT)
    assert -exported.value == pytest.approx(ours.objective, rel=1e-7)
    again = cn.from_cvxpy(exported).solve(progress=False)
    assert again.objective == pytest.approx(exported.value, rel=1e-6)
    assert again.status.value == "optimal"


def test_json_and_files(tmp_path):
    X = cn.Variable((3, 3), "X", psd=True)
    C = symmetric(3, 0)
    problem = cn.minimize(cn.sum(C * X)).subject_to(unit=cn.trace(X) == 1)
    again = cn.from_json(problem.to_json())
    assert (again.variables[0].psd, again.variables[0].symmetric) == (True, True)
    solution = problem.solve(progress=False)
    assert again.solve(progress=False).objective == pytest.approx(solution.objective)
    solution.save(tmp_path / "run")
    np.testing.assert_allclose(cn.load(tmp_path / "run")["X psd"].matrix, solution["X psd"].matrix)


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda: cn.Variable((2, 3), "X", symmetric=True), "E112", "square matrix"),
        (lambda: cn.Variable(3, "x", psd=True), "E112", "square matrix"),
        (lambda: cn.Variable((2, 2), "X") >> 1.0, "E112", "compared with the number 1.0"),
        (lambda: cn.Variable(3, "x") >> 0, "E112", "square matrix is needed"),
        (lambda: cn.lambda_max(cn.Variable((2, 3), "X")), "E112", "square matrix is needed"),
        (lambda: cn.nuclear_norm(cn.Variable(3, "x")), "E112", "a matrix is needed"),
    ],
)
def test_refusals(make, code, words):
    with pytest.raises(cn.ModelingError, match=words) as caught:
        make()
    assert caught.value.code == code
