"""Products of decisions: exact with a discrete factor, and a bound of programs where none is."""

import itertools

import numpy as np
import pytest

import constrain as cn
from constrain.backends.pyomo import build
from constrain.backends.pyomo.engines import nonlinear_engine
from constrain.backends.pyomo.products import product_bound
from constrain.lowering.lower import lower

nonlinear = pytest.mark.skipif(nonlinear_engine() is None, reason="needs a nonlinear solver")


def solved(problem):
    return problem.solve("pyomo", progress=False)


# ------------------------------------------------------------------------------------ discrete factors
def test_a_binary_times_a_continuous_decision():
    """Of two machines with their own speeds, by enumeration of what is on."""
    on, speed = cn.Variable(2, "on", boolean=True), cn.Variable(2, "speed", bounds=(1, 4))
    made = on * speed
    problem = cn.minimize(np.array([3.0, 2.0]) @ speed + np.array([2.0, 5.0]) @ on).subject_to(
        demand=cn.sum(made) >= 5, cap=made[0] <= 3.5
    )
    solution = solved(problem)
    best = np.inf
    axis = np.linspace(1, 4, 121)
    for a, b in itertools.product((0, 1), repeat=2):
        s, t = np.meshgrid(axis, axis)
        held = (a * s + b * t >= 5 - 1e-9) & (a * s <= 3.5 + 1e-9)
        values = 3 * s + 2 * t + 2 * a + 5 * b
        best = min(best, values[held].min(initial=np.inf))
    assert solution.status.value == "optimal"
    assert solution.objective == pytest.approx(best, abs=1e-6)
    assert solution.bound == pytest.approx(best, abs=1e-5)
    assert problem.explain().method == "pyomo"
    assert "mixed-integer linear program" in problem.explain().reason


@pytest.mark.parametrize("seed", range(4))
def test_quadratic_programs_of_binaries_by_enumeration(seed):
    """Neither convex nor concave; squares of binaries are themselves."""
    rng = np.random.default_rng(seed)
    Q, c = rng.normal(size=(6, 6)), rng.normal(size=6)
    z = cn.Variable(6, "z", boolean=True)
    problem = cn.maximize(cn.sum((Q @ z) * z) + c @ z).subject_to(
        few=cn.sum(z) <= 4, apart=z[0] * z[1] + z[2] * z[3] <= 1, both=z[4] * z[5] == z[0] * z[2]
    )
    points = np.array(list(itertools.product((0, 1), repeat=6)), dtype=float)
    values = np.einsum("ki,ij,kj->k", points, Q, points) + points @ c
    p = points.T
    held = (p.sum(axis=0) <= 4) & (p[0] * p[1] + p[2] * p[3] <= 1) & (p[4] * p[5] == p[0] * p[2])
    solution = solved(problem)
    assert solution.status.value == "optimal"
    assert solution.objective == pytest.approx(values[held].max(), abs=1e-6)


def test_an_integer_times_a_continuous_decision():
    """Binary digits: a number of boxes times their size, with an integer below zero as well."""
    k, size = cn.Variable((), "k", integer=True, bounds=(-3, 6)), cn.Variable((), "size", bounds=(0.5, 2.5))
    problem = cn.minimize(cn.abs(k * size - 4.2) + 0.1 * k**2 - 0.3 * k * size)
    best = min(
        abs(i * s - 4.2) + 0.1 * i**2 - 0.3 * i * s
        for i in range(-3, 7)
        for s in [0.5, 2.5, *([4.2 / i] if i and 0.5 <= 4.2 / i <= 2.5 else [])]
    )
    solution = solved(problem)
    assert solution.objective == pytest.approx(best, abs=1e-6)
    assert solution.status.value == "optimal"


def test_multipliers_are_those_of_the_fixed_integers():
    on, x = cn.Variable((), "on", boolean=True), cn.Variable((), "x", bounds=(0, 10))
    problem = cn.minimize(2 * x + 3 * on).subject_to(need=on * x >= 4)
    solution = solved(problem)
    assert (float(on.value), float(x.value)) == (1.0, pytest.approx(4.0))
    assert solution["need"].multiplier == pytest.approx(2.0)
    assert "integers fixed" in solution.message


def test_a_convex_product_stays_a_product():
    """A squared distance of integers is left to outer approximation."""
    k = cn.Variable(2, "k", integer=True, bounds=(-5, 5))
    program = lower(cn.minimize(cn.sum_squares(k - np.array([1.4, -2.7])) + k[0] * k[1]))
    built = build(program)
    assert built.kind == "MIQP"
    assert built.switches == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda z, x: cn.minimize(z * x + x**2), "needs integers, and these need bounds of x"),
        (
            lambda z, x: cn.minimize(cn.Variable((), "k", integer=True, bounds=(0, 9000)) * z),
            None,
        ),
        (
            lambda z, x: cn.minimize(
                cn.Variable((), "k", integer=True, bounds=(0, 9000)) * cn.Variable((), "y", bounds=(0, 1))
            ),
            "9001 values are many",
        ),
    ],
)
def test_refusals_say_what_is_missing(make, words):
    z, x = cn.Variable((), "z", boolean=True), cn.Variable((), "x")
    problem = make(z, x)
    if words is None:
        assert solved(problem).objective == pytest.approx(0.0)
        return
    route = next(r for r in problem.explain().routes if r.method == "pyomo")
    assert not route.open
    assert words in route.reason


# -------------------------------------------------------------------------------------------- a bound
@nonlinear
@pytest.mark.parametrize("seed", range(6))
def test_the_bound_of_a_nonconvex_quadratic_program(seed):
    """Never above the best point of a grid, and no point is called optimal without it."""
    rng = np.random.default_rng(seed)
    Q, c = rng.normal(size=(2, 2)), rng.normal(size=2)
    Q = (Q + Q.T) / 2
    x = cn.Variable(2, "x", bounds=(-1, 2))
    x.value = rng.uniform(-1, 2, 2)
    problem = cn.minimize(cn.quad_form(x, Q) + c @ x).subject_to(near=x[0] * x[1] <= 0.5, sum=cn.sum(x) >= -1)
    solution = solved(problem)
    axis = np.linspace(-1, 2, 301)
    a, b = (g.ravel() for g in np.meshgrid(axis, axis))
    points = np.stack([a, b], axis=1)
    held = (a * b <= 0.5) & (a + b >= -1)
    best = (np.einsum("ki,ij,kj->k", points, Q, points) + points @ c)[held].min()
    assert solution.bound is not None
    assert solution.bound <= best + 1e-9
    assert solution.objective >= best - 0.05
    if solution.status.value == "optimal":
        assert solution.objective == pytest.approx(solution.bound, abs=1e-5)


@nonlinear
def test_a_concave_program_over_a_box_is_proven():
    """Its relaxation is tight at the corners, so that a local optimum there is known to be the best."""
    x = cn.Variable(3, "x", bounds=(-1, 1))
    x.value = np.array([0.5, -0.4, 0.3])
    solution = solved(cn.minimize(-cn.sum_squares(x) + 0.5 * x[0] - 0.2 * x[1] + 0.1 * x[2]))
    assert solution.objective == pytest.approx(-3.8, abs=1e-6) or solution.status.value == "stationary"
    assert solution.bound == pytest.approx(-3.8, abs=1e-6)


@nonlinear
def test_a_relaxation_without_a_point_proves_infeasibility():
    x = cn.Variable(2, "x", bounds=(0, 1))
    problem = cn.minimize(cn.sum(x)).subject_to(large=x[0] * x[1] >= 1.5)
    solution = solved(problem)
    assert solution.status.value == "infeasible"
    assert "linear relaxation of the products" in solution.message


def test_no_bound_without_limits_or_polynomials():
    x, y = cn.Variable((), "x"), cn.Variable((), "y", bounds=(0, 1))
    assert product_bound(build(lower(cn.minimize(x * y)))) == (None, False)
    assert product_bound(build(lower(cn.minimize(cn.exp(y) * y)))) == (None, False)
    assert product_bound(build(lower(cn.minimize(y)))) == (None, False)
