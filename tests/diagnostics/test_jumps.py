"""Pieces of `cn.where` that decisions choose: smooth inside, and not stationary above a lower piece."""

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E


def parabola(x, height):
    return (x - 1) ** 2 + height


PIECES = {
    "a lower piece beyond": (lambda x: cn.where(x >= 1, parabola(x, 5), 0 * x), 1),
    "constants": (lambda x: cn.where(x >= 1, 5.0, 0.0) + parabola(x, 0), 1),
    "the lowest piece": (lambda x: cn.where(x <= 1, parabola(x, 0), parabola(x, 5)), 0),
    "continuous": (lambda x: cn.where(x <= 1, parabola(x, 2), 2 + 3 * (x - 1) ** 2), 0),
    "an event of two": (lambda x: cn.where(x <= 1, 0.0, cn.where(x >= 3, 2.0, 1.0)) + parabola(x, 0), 0),
    "rows": (lambda x: E(cn.where((x * ROWS.t >= 1) & (ROWS.t <= 2), 3.0, 0.0)) + parabola(x, 0), 1),
}
"""Functions that are balanced at x = 1, and how many pieces end there above a lower one."""
ROWS = cn.Data("rows", t=torch.tensor([1.0, 0.3, 3.0], dtype=torch.float64))


@pytest.mark.parametrize("name", PIECES)
def test_a_balanced_point_above_a_lower_piece_is_not_stationary(name):
    build, jumps = PIECES[name]
    x = cn.Variable((), "x", bounds=(-5, 5))
    record = cn.minimize(build(x)).kkt({"x": 1.0})
    assert record.stationarity <= 1e-12
    assert record.jumps == jumps
    assert ("a piece of cn.where ends here" in str(record)) is bool(jumps)
    x.value = 1.0
    still = cn.minimize(build(x)).subject_to(pinned=x == 1).solve("newton", progress=False)
    assert still.status.value == ("feasible" if jumps else "stationary")
    if jumps:
        assert "a piece of cn.where ends" in still["pinned"].uncertified
        assert "at a jump" in str(still)


def test_pieces_of_decisions_are_values_and_slopes_of_their_formulas():
    """In vectors, inside of averages, and by parameters; compared with NumPy and finite differences."""
    rng = np.random.default_rng(0)
    t = rng.normal(size=20)
    D = cn.Data("d", t=torch.tensor(t))
    x, k = cn.Variable(3, "x"), cn.Parameter("k", 0.5)
    vector = cn.sum(cn.where(x <= 0.2, x**2, torch.sin(x)))
    total = vector + E(cn.where(x[0] >= k, x[0] * D.t, D.t**2))
    for point in rng.normal(size=(5, 3)):
        record = cn.minimize(total).kkt({"x": point})

        def value(p):
            pieces = np.where(p <= 0.2, p**2, np.sin(p)).sum()
            return pieces + np.where(p[0] >= 0.5, p[0] * t, t**2).mean()

        slope = [(value(point + e) - value(point - e)) / 2e-6 for e in 1e-6 * np.eye(3)]
        assert record.stationarity == pytest.approx(np.abs(slope).max(), abs=1e-8)
        assert record.jumps == 0


def test_what_a_condition_cannot_be():
    x, D = cn.Variable((), "x"), ROWS
    with pytest.raises(cn.ModelingError, match="E108"):
        cn.where(E(D.t) * x <= 1, 1.0, 2.0)
    with pytest.raises(cn.ModelingError, match="E108"):
        cn.where(cn.between(0, x, 1), 1.0, 2.0)
    with pytest.raises(cn.ModelingError, match="E109"):
        cn.where(x < 1, 1.0, 2.0)


def test_routes_that_refuse_pieces_say_so():
    x = cn.Variable(2, "x", bounds=(0, 5))
    x.value = [4.0, 4.0]
    problem = cn.minimize(cn.where(x[0] >= 3, 31 * x[0], 30 * x[0]) + x[1] ** 2).subject_to(a=cn.sum(x) >= 2)
    routes = {r.method: r for r in problem.explain().routes}
    assert "switches on an event that depends on decisions" in routes["cvxpy"].reason
    assert "where with a condition on decisions" in routes["pyomo"].reason
    assert problem.explain().method == "newton"
    solution = problem.solve(progress=False)
    assert solution.objective == pytest.approx(4, abs=1e-8)
    assert solution["a"].uncertified == ""
