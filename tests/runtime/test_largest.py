"""A largest value in the objective: weights on the simplex, in training too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E
from constrain.lowering.lower import EPIGRAPH, lower
from constrain.runtime.largest import on_simplex

GROUPS = 4


def regression(ridge=0.0):
    """Four groups of unequal size, each with its own slope: the worst ones pull against each other."""
    rng = np.random.default_rng(0)
    g = rng.choice(GROUPS, 3000, p=[0.6, 0.25, 0.1, 0.05])
    x, slopes = rng.normal(size=(3000, 5)), rng.normal(size=(GROUPS, 5))
    y = (x * slopes[g]).sum(1) + 0.3 * rng.normal(size=3000)
    D = cn.Data("d", x=torch.tensor(x), y=torch.tensor(y), g=g)
    w = cn.Variable(5, "w")
    worst = cn.max(E((D.x @ w - D.y) ** 2, by=D.g))
    return cn.minimize(worst + ridge * cn.sum_squares(w) if ridge else worst), w


def test_projection_is_the_nearest_point_of_the_simplex():
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 7, 50):
        values = 2 * torch.randn(size, generator=generator, dtype=torch.float64)
        found = on_simplex(values)
        assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)
        assert bool((found >= 0).all())
        shift = (values - found)[found > 0]  # optimality: the same for all that are positive, less elsewhere
        assert float(shift.max() - shift.min()) < 1e-12
        assert bool((values[found == 0] <= shift.max() + 1e-12).all())


@pytest.mark.parametrize("ridge", [0.0, 0.05])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_training_finds_the_least_largest_value(ridge, scale):
    problem, w = regression(ridge)
    exact = problem.solve("cvxpy", progress=False)
    w.value = None
    if scale != 1.0:
        (D,) = problem.populations
        problem = cn.minimize(
            cn.max(scale * E((D.x @ w - D.y) ** 2, by=D.g)) + scale * ridge * cn.sum_squares(w)
        )
    found = problem.solve("lagrangian", batch=128, progress=False)
    assert found.objective / scale == pytest.approx(exact.objective, rel=2e-3)


def two(kind):
    """Sums of largest values that pull against each other, and their weights by name."""
    rng = np.random.default_rng(0)
    g, h = rng.choice(GROUPS, 3000, p=[0.6, 0.25, 0.1, 0.05]), rng.choice(3, 3000)
    x, first, second = rng.normal(size=(3000, 5)), rng.normal(size=(GROUPS, 5)), rng.normal(size=(3, 5))
    y, z = (x * first[g]).sum(1) + 0.3 * rng.normal(size=3000), (x * second[h]).sum(1)
    D = cn.Data("d", x=torch.tensor(x), y=torch.tensor(y), z=torch.tensor(z), g=g, h=h)
    w = cn.Variable(5, "w")
    a, b = cn.max(E((D.x @ w - D.y) ** 2, by=D.g)), cn.max(E((D.x @ w - D.z) ** 2, by=D.h))
    small = -cn.min(-E((D.x @ w - D.z) ** 2, by=D.h))
    level = abs(E(D.x @ w, given=D.h == 1) - 0.2)
    written = {
        "sum": a + b,
        "scaled": a + 0.3 * b + 0.05 * cn.sum_squares(w),
        "a least one": a + small / 2,
        "a deviation": a + level,
        "with a loss": a + b + E((D.x @ w - D.z) ** 2),
    }
    return cn.minimize(written[kind]), w


@pytest.mark.parametrize("kind", ["sum", "scaled", "a least one", "a deviation", "with a loss"])
def test_every_largest_value_has_weights_of_its_own(kind):
    """All routes agree with CVXPY; the weights of each of the two sum to one."""
    problem, w = two(kind)
    exact = problem.solve("cvxpy", progress=False)
    for method in ("newton", "augmented"):
        w.value = None
        found = problem.solve(method, progress=False)
        assert found.objective == pytest.approx(exact.objective, rel=1e-6)
        assert found.kkt().stationarity < 1e-6
    solutions = [exact]
    if kind in ("sum", "a deviation"):
        w.value = None
        solutions.append(problem.solve("lagrangian", batch=128, progress=False))
        close = 2e-3 if kind == "a deviation" else 1e-3
        assert solutions[1].objective == pytest.approx(exact.objective, rel=close)
    for solution in solutions:
        sums = [0.0, 0.0]
        for key, values in solution.multipliers.items():
            sums["2" in key] += float(np.sum(values))
        assert sums == pytest.approx([1.0, 1.0], abs=1e-6)


def test_what_may_fall_in_a_largest_value_keeps_it():
    """max - 2 max and max + (9 - max)^2 are not minimized by a bound that may exceed the maximum."""
    problem, w = regression()
    (D,) = problem.populations
    worst = cn.max(E((D.x @ w - D.y) ** 2, by=D.g))
    for objective, bounds in (
        (worst + worst, 1),
        (worst - 0.5 * worst, 1),
        (worst - 2 * worst + 3 * cn.sum_squares(w), 0),
        (worst + (9 - worst) ** 2, 0),
    ):
        program = lower(cn.minimize(objective))
        assert sum(form.name == EPIGRAPH for form in program.forms) == bounds
    double, single = (cn.minimize(e).solve("cvxpy", progress=False) for e in (worst + worst, worst))
    assert double.objective == pytest.approx(2 * single.objective, rel=1e-6)


def test_the_bound_variable_is_the_largest_value_and_weights_sum_to_one():
    problem, _ = regression()
    lagrangian = problem.compile(dtype=torch.float64)
    lagrangian.calibrate(torch.Generator().manual_seed(0))
    (D,) = problem.populations
    loss = lagrangian(D.rows(torch.arange(200)))
    assert bool(loss.isfinite())
    lagrangian.ascend()
    assert float(lagrangian.values.sum()) == pytest.approx(1.0, abs=1e-12)
    (bound,) = [t for t in lagrangian.evaluator.decisions.tensors if t is lagrangian.largest.bounds[0]]
    assert all(t is not bound for t in lagrangian.moved(lagrangian.evaluator.decisions.tensors))
