"""Warnings and balance of programs with integers, rows of zeros, small units, or no feasible point."""

from __future__ import annotations

import numpy as np
import pytest

import constrain as cn
from constrain.runtime.result import RawResult

DEMAND, SETUP, COST = np.array([30.0, 50.0, 20.0]), 200.0, np.array([1.0, 2.0, 1.5])


def lots():
    """A lot-sizing program, whose link of amounts to lots is implied where no lot is made."""
    make, stock = cn.Variable(3, "make", bounds=(0, 120)), cn.Variable(3, "stock", nonneg=True)
    on = cn.Variable(3, "on", boolean=True)
    change = np.eye(3) - np.eye(3, k=-1)
    return cn.minimize(COST @ make + cn.sum(stock) + SETUP * cn.sum(on)).subject_to(
        balance=make - change @ stock == DEMAND,
        link=make <= 120 * on,
    )


def test_the_balance_of_an_integer_program_holds_its_integers_fixed():
    problem = lots()
    solution = problem.solve(progress=False)
    record = solution.kkt()
    assert solution.status == "optimal"
    assert record.stationarity < 1e-9
    assert solution.warnings == ()
    # prices with one lot, in the first period: one more unit costs its making and its storage
    assert solution["balance"].shadow_price == pytest.approx([1.0, 2.0, 3.0])
    assert solution["balance"].uncertified.startswith("with integer variables there are no prices")


def test_balanced_forces_with_the_integers_fixed_prove_nothing_about_other_integers():
    k = cn.Variable(2, "k", integer=True, bounds=(0, 5))
    x = cn.Variable((), "x", nonneg=True)
    x.value, k.value = 1.0, np.array([3.0, 0.0])  # of cost 10; x = 7 alone costs 7
    problem = cn.minimize(x + 3 * k[0] + 2 * k[1]).subject_to(need=x + 2 * k[0] + k[1] >= 7.0)

    class Stays:
        name, minibatch = "stays", False

        def solve(self, evaluator, **_options):
            (part,) = evaluator.program.parts
            return RawResult("converged", {part.key: np.array(1.0)}, "")

    solution = problem.solve(Stays(), progress=False)
    assert solution.kkt().stationarity < 1e-12
    assert solution.status == "feasible"


@pytest.mark.parametrize(
    ("matrix", "bound", "scale"),
    [
        ([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], [0.0, 1.0], 1.0),
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [2.0, 2.0], 1e-8),
    ],
    ids=["a row of zeros", "a small unit"],
)
def test_a_small_gradient_is_no_trap_where_multipliers_balance(matrix, bound, scale):
    x = cn.Variable(3, "x")
    rows = scale * np.array(matrix)
    problem = cn.minimize(cn.sum_squares(x)).subject_to(rows=rows @ x == scale * np.array(bound))
    solution = problem.solve(progress=False)
    assert solution.status == "optimal"
    assert not [w for w in solution.warnings if w.code == "W204"]
    assert 2 * x.value + np.asarray(solution["rows"].multiplier) @ rows == pytest.approx(0.0, abs=1e-6)


def test_points_that_are_infeasible_have_no_degenerate_prices():
    x = cn.Variable(3, "x", nonneg=True)
    solution = cn.minimize(cn.sum(x)).subject_to(total=cn.sum(x) >= 3, cap=x <= 0.5).solve(progress=False)
    assert solution.status == "infeasible"
    assert [w.code for w in solution.warnings] == ["C305"]


def test_a_point_without_a_value_is_not_feasible():
    t = cn.Variable((), "t")
    t.value = -1.0

    class Stays:
        name, minibatch = "stays", False

        def solve(self, _evaluator, **_options):
            return RawResult("converged", {}, "")

    solution = cn.minimize(t - cn.log(t)).solve(Stays(), progress=False)
    assert np.isnan(solution.objective)
    assert solution.status == "diverged"


def test_a_matrix_of_low_rank_is_a_point_of_many_slopes():
    """Completed with the least nuclear norm: the prices are a dual certificate, which no gradient shows."""
    rng = np.random.default_rng(7)
    low = rng.normal(size=(5, 1)) @ rng.normal(size=(1, 4))
    seen = (rng.random((5, 4)) < 0.7).astype(float)
    Z = cn.Variable((5, 4), "Z")
    solution = cn.minimize(cn.nuclear_norm(Z)).subject_to(seen=seen * Z == seen * low).solve(progress=False)
    prices = seen * np.asarray(solution["seen"].multiplier)
    assert solution.status == "optimal"
    assert np.linalg.norm(prices, 2) == pytest.approx(1.0, abs=1e-6)
    assert -(prices * low).sum() == pytest.approx(solution.objective)
    assert solution.kkt().nonsmooth.startswith("a norm is 0, or a singular value")
    assert solution.warnings == ()
