"""Projected Newton: flat directions, infinite slopes at bounds, and the end of what rounding shows."""

import numpy as np

import constrain as cn
from constrain.solvers.newton import projected_gradient, projected_newton, truncated_newton


class Counted:
    """A function that counts its evaluations."""

    def __init__(self, function):
        self.function = function
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return self.function(x)


def run(value, hessian, x, low=0.0, high=np.inf, tolerance=1e-9):
    counted, curved = Counted(value), Counted(hessian)
    shape = np.ones(len(x))
    found = projected_newton(
        counted,
        curved,
        np.asarray(x, dtype=float),
        low * shape,
        high * shape,
        tolerance=tolerance,
        iterations=200,
    )
    return found, counted.calls, curved.calls


def test_a_penalized_linear_program_has_flat_directions_and_ends_at_a_vertex():
    rng = np.random.default_rng(0)
    A, c = rng.random((4, 20)), rng.random(20) + 0.1
    b = A @ rng.random(20)

    def value(x):
        r = A @ x - b
        return c @ x + 50 * (r @ r), c + 100 * A.T @ r

    found, calls, _ = run(value, lambda x: 100 * A.T @ A, np.ones(20))
    assert found.converged
    assert (found.x <= 1e-9).sum() >= 16
    assert calls < 1000


def test_entropy_keeps_inside_of_its_bound_and_stops_at_rounding():
    z = np.linspace(-10, 10, 101)

    def value(p):
        safe = np.maximum(p, 1e-300)
        r = np.asarray([p.sum() - 1, p @ z**2 - 0.5])
        J = np.stack([np.ones(101), z**2])
        return p @ np.log(safe) + 500 * (r @ r), np.log(safe) + 1 + 1000 * J.T @ r

    def hessian(p):
        J = np.stack([np.ones(101), z**2])
        return np.diag(1 / np.maximum(p, 1e-300)) + 1000 * J.T @ J

    found, calls, hessians = run(value, hessian, np.full(101, 0.01))
    assert np.isfinite(found.gradient).all()
    assert (found.x > 0).all()
    assert calls < 200
    assert hessians < 60


def test_a_refused_step_does_not_evaluate_the_hessian_again():
    """-log x + x**4 from far away: the first steps are refused, the curvature at the point is known."""
    found, calls, hessians = run(
        lambda x: (float(np.sum(np.abs(x - 3) ** 1.5)), 1.5 * np.sign(x - 3) * np.abs(x - 3) ** 0.5),
        lambda x: np.diag(0.75 / np.sqrt(np.maximum(np.abs(x - 3), 1e-12))),
        [1.0, 9.0], tolerance=1e-4,
    )  # fmt: skip
    assert np.allclose(found.x, 3.0, atol=1e-3)
    assert hessians <= found.iterations + 1 <= calls


def test_no_tolerance_below_rounding_is_chased():
    H = np.diag([1e8, 1.0, 1e-4])
    g = np.asarray([1.0, 2.0, 3.0])
    found, calls, _ = run(
        lambda x: (0.5 * x @ H @ x - g @ x, H @ x - g), lambda x: H, [7.0, -2.0, 5.0], -np.inf, tolerance=0.0
    )
    assert np.allclose(found.x, g / np.diag(H), rtol=1e-6)
    assert calls < 200


def test_a_hessian_that_is_not_finite_costs_a_gradient_step():
    def value(x):
        return float((x - 2) @ (x - 2)), 2 * (x - 2)

    def hessian(x):
        return np.full((2, 2), np.nan) if not x.any() else 2 * np.eye(2)

    found, _, _ = run(value, hessian, [0.0, 0.0], low=-np.inf)
    assert found.converged
    np.testing.assert_allclose(found.x, 2.0, atol=1e-9)


def test_a_projected_gradient_is_not_lost_next_to_a_large_point():
    x, g = np.full(2, 1e20), np.array([1.0, -2.0])
    free = np.full(2, np.inf)
    np.testing.assert_array_equal(projected_gradient(x, g, -free, free), g)
    np.testing.assert_array_equal(projected_gradient(np.zeros(2), g, np.zeros(2), free), [0.0, -2.0])


# ------------------------------------------------------------------------------- without a matrix
def chained(x):
    """Rosenbrock's function of many coordinates: value and gradient."""
    a, b = x[:-1], x[1:]
    g = np.zeros_like(x)
    g[:-1] = -400 * a * (b - a**2) - 2 * (1 - a)
    g[1:] += 200 * (b - a**2)
    return float(np.sum(100 * (b - a**2) ** 2 + (1 - a) ** 2)), g


def test_products_with_the_hessian_reach_the_digits_of_the_dense_method():
    n = 60
    low, high = np.full(n, -np.inf), np.full(n, 0.9)

    def curvature(x):
        H = np.zeros((n, n))
        i = np.arange(n - 1)
        H[i, i] = 1200 * x[:-1] ** 2 - 400 * x[1:] + 2
        H[i + 1, i + 1] += 200
        H[i, i + 1] = H[i + 1, i] = -400 * x[:-1]
        return lambda v: H @ v

    found = truncated_newton(chained, curvature, np.zeros(n), low, high, tolerance=1e-9, iterations=300)
    dense = projected_newton(
        chained, lambda x: curvature(x)(np.eye(n)), np.zeros(n), low, high, tolerance=1e-9, iterations=300
    )
    assert found.converged
    np.testing.assert_allclose(found.x, dense.x, atol=1e-8)


def test_products_follow_negative_curvature_to_a_bound():
    H = np.diag([-1.0, 2.0])
    found = truncated_newton(
        lambda x: (0.5 * x @ H @ x, H @ x), lambda _x: lambda v: H @ v,
        np.asarray([0.1, 0.5]), np.full(2, -1.0), np.full(2, 1.0), tolerance=1e-9, iterations=50,
    )  # fmt: skip
    assert found.converged
    np.testing.assert_allclose(np.abs(found.x), [1.0, 0.0], atol=1e-8)


def test_the_augmented_lagrangian_with_products_has_more_digits_than_with_l_bfgs():
    n = 1200
    x = cn.Variable(n, "x")
    x.value = np.full(n, -1.0)
    chain = cn.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)
    problem = cn.minimize(chain).subject_to(ball=cn.sum_squares(x) <= n / 2, total=cn.sum(x) == 10)
    solution = problem.solve("augmented", products=True, progress=False)
    assert solution.status == "stationary"
    assert solution.kkt().stationarity <= 1e-6
